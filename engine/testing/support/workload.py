"""What the contract suites need to know of an engine: a `Workload`, which authors write.

A workload says how to draw random operations, how to run them in a transaction and beside it in a plain model, and what
a view shows, in the model's terms. The model is what the engine is compared with, so it must not ask the engine.

Operations are drawn without knowledge of the state, so that Hypothesis can shrink them; if one names something that
exists, it does so by an index, taken modulo the number of such things when it runs. Transaction and model take each
operation together, because some engines give out the ids.

For an engine that maps keys to values, whatever its calls are named, `KeyValues` is the whole workload.
"""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ...contract.engine import Engine, StagingEngine
from ...contract.view import View
from ...errors import HoldfastError, InvalidInput, NotFound
from .alike import alike
from .limits import an_engine, filled, rooms
from .neighbours import neighbour
from .ways import Ways

T = TypeVar("T")
Operation = tuple[Any, ...]
"""One call, as the workload's `run` understands it: its kind, then its arguments."""


class Workload(ABC):
    """What to do to an engine, and what it must show then. Subclass it, or use `KeyValues`.

    Attributes:
        engine: the engine's class.
        options: the engine's own options, for every opening.
        tiny: those of its options that make rare paths common: small files, early rotation. They come over `options`
            in every check except those about sizes. {} says that the engine has none. None: nobody has thought of it,
            and the report says so.
        above_env: the engine does all its file operations through the environment that it is given, so that a simulated
            disk can try every crash on it. Engines on a database library do not, and are killed instead.
        fragile: names, as patterns, of files that mutations leave alone, since the engine's library hangs or dies on
            some of them and the engine can do nothing about it, as LMDB does on its data file. Say so in the engine's
            description.
        kept: a directory with states that earlier versions of the engine wrote, each made by `python -m
            holdfast.engine.testing keep`. They must open, or be refused as too old.
    """

    engine: type[Engine[Any, Any]]
    options: Mapping[str, Any] = {}
    tiny: Mapping[str, Any] | None = None
    above_env: bool = True
    fragile: tuple[str, ...] = ()
    kept: Path | str | None = None

    @abstractmethod
    def operations(self) -> st.SearchStrategy[list[Operation]]:
        """The operations of one transaction, at least one; some may turn out to change nothing."""

    @abstractmethod
    def new_model(self) -> Any:
        """The model of an empty store. It has `copy()`."""

    @abstractmethod
    def run(self, tx: Any, model: Any, operations: list[Operation]) -> None:
        """Do `operations` in the transaction and to the model. `assert` that the transaction answers as the model does,
        and that an id it gives out was never given out before. The model is always that of the state that the
        transaction sees."""

    @abstractmethod
    def expected(self, model: Any) -> Any:
        """The model's content, comparable. Content that readers cannot see is not in it."""

    @abstractmethod
    def content(self, view: View) -> Any:
        """A view's content, comparable with `expected`, by every way of reading it that the view has."""

    @abstractmethod
    def numbered(self, number: int) -> list[Operation]:
        """The operations of one transaction that certainly adds something, another thing for each number (0 to 10**12),
        to any state. Used where many threads and processes write. Each number is used once in a state."""

    @abstractmethod
    def shows(self, content: Any, number: int) -> bool:
        """Whether a content has, whole, what `numbered(number)` adds."""

    def bulk_load(self, number: int, model: Any) -> Any:
        """What `Store.bulk` takes; the same is added to the model. Called for engines that take bulk loads."""
        raise NotImplementedError(f"{type(self).__name__}.bulk_load is needed, since the engine takes bulk loads")

    def sized(self, size: int, seed: int) -> list[Operation] | None:
        """The operations of one transaction that adds about `size` bytes to any state, other ones for each seed. The
        same size and seed may come again in a state: then it replaces the same things, or adds once more if the engine
        has nothing to replace. None: the workload cannot say, so large states are not tried, and the report says so.
        """
        return None

    def walks(self, view: View) -> Mapping[str, Iterator[Any]]:
        """An iterator for each way in which a view gives its content piece by piece, begun now. A walk that is read
        while transactions run must give what it gives alone. Without any, that is not tried, and the report says so."""
        return {}

    @property
    def opened_with(self) -> dict[str, Any]:
        """The options for an opening: `options`, with `tiny` over them."""
        return {**self.options, **(self.tiny or {})}

    def at_full_size(self) -> Self:
        """The same without `tiny`, for checks of sizes."""
        other = copy.copy(self)
        other.tiny = {}
        return other

    @cached_property
    def examples(self) -> list[list[Operation]]:
        """About sixty examples of `operations`, the same each time. Drawing them takes long."""
        return sampled(self.operations(), 60)

    @property
    def watermarks(self) -> bool:
        return issubclass(self.engine, StagingEngine)


def text_of(seed: int, size: int) -> bytes:
    """`size` bytes that differ from place to place and from seed to seed, so that a misplaced piece shows."""
    return bytes((seed * 31 + i * (i // 7 + 1)) % 256 for i in range(size))


def pick(index: int, among: Iterable[Any]) -> Any:
    """The existing thing that an index refers to."""
    names = sorted(among)
    return names[index % len(names)]


def sampled(strategy: st.SearchStrategy[T], count: int, *, number: int = 0) -> list[T]:
    """About this many examples of a strategy, the same each time for a number."""
    found: list[T] = []

    @seed(number)
    @settings(max_examples=count, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(value: T) -> None:
        found.append(value)

    collect()
    return found


def of_each_kind(work: Workload) -> list[Operation]:
    """Some operations of each kind that a workload draws, the same each time."""
    kinds: dict[Any, list[Operation]] = {}
    for operations in work.examples:
        for operation in operations:
            kinds.setdefault(operation[0], []).append(operation)
    return [operation for some in kinds.values() for operation in some[:5]]


_LONG = b"k" * 254
AWKWARD_KEYS = (b"", b"\0", b"\0\0", b"k", b"k\0", b"k\0\0", b"k\0k", b"kk", b"k\xff", b"K", b"\xff", b"\xff\xff",
                b"\xff\xff\0", *(_LONG + end for end in (b"", b"k", b"kk", b"kkk", b"kkl", b"kk\0")))
"""Prefixes of one another, with NULs and the highest byte, and alike up to where a length of one byte ends."""
KEYS = st.one_of(st.binary(max_size=2), st.sampled_from(AWKWARD_KEYS))
"""Few enough to meet again, and none that `numbered` makes."""
VALUES = st.builds(text_of, st.integers(0, 255), st.sampled_from((0, 1, 20, 255, 256, 257, 3000)))
_NUMBERS = 1000
SIZED = 5 * 10**11
"""Numbers from here on are those of `sized`."""


class KeyValues(Workload):
    """The workload of an engine that maps keys to values: bytes, unless other strategies are given.

    Keys and values that the author has drawn are to be taken. What the kit adds (neighbours of these keys, and its own
    keys and values if none are given) may be refused with `InvalidInput`.

    Attributes:
        put, get, delete: the calls of a transaction; None if they were not given.
        keys, values: how they are drawn.
        number: the key and the value of a number.
        ways: the ways of reading a view.
        refused: the calls that must be refused.
    """

    def __init__(self, engine: type[Engine[Any, Any]], *, put: Callable[[Any, Any, Any], object],
                 items: Callable[[Any], Iterable[tuple[Any, Any]]], get: Callable[[Any, Any], Any] | None = None,
                 delete: Callable[[Any, Any], object] | None = None, find: Callable[[Any, Any], Any] | None = None,
                 scan: Callable[[Any, Any], Iterable[tuple[Any, Any]]] | None = None,
                 range: Callable[[Any, Any, Any], Iterable[tuple[Any, Any]]] | None = None,
                 count: Callable[[Any], int] | None = None, refused: Sequence[Callable[[Any], object]] = (),
                 keys: st.SearchStrategy[Any] | None = None, values: st.SearchStrategy[Any] | None = None,
                 number: Callable[[int], tuple[Any, Any]] | None = None,
                 bulk: Callable[[dict[Any, Any]], Any] | None = None, options: Mapping[str, Any] | None = None,
                 tiny: Mapping[str, Any] | None = None, above_env: bool = True,
                 kept: Path | str | None = None) -> None:
        """
        Args:
            engine: its class.
            put: `put(transaction, key, value)` sets a value.
            items: `items(view)` gives all keys and values, in any order.
            get: `get(transaction, key)` gives the value or None, the transaction's own changes included.
            delete: `delete(transaction, key)` removes a key that is there.
            find: `find(view, key)` gives the value or None.
            scan: `scan(view, prefix)` gives the keys that begin so, and their values, in any order.
            range: `range(view, low, high)` gives the keys with low <= key < high, and their values, by ascending keys.
            count: `count(view)` gives the number of keys.
            refused: calls `f(transaction)` that raise `InvalidInput` (or `NotFound`) and change nothing.
            keys, values: how to draw them; keys can be sorted.
            number: `number(n)` gives a key, which `keys` never draws, and a value, other ones for each n. Without it
                `b"number n"` and `b"n"`.
            bulk: makes what the engine takes as a bulk load from a dictionary, which is set as a whole.
            options, tiny, above_env, kept: see `Workload`.
        """
        self.engine = engine
        self.options = options or {}
        self.tiny = tiny
        self.above_env = above_env
        self.kept = kept
        self.put, self.get, self.delete, self.refused, self._bulk = put, get, delete, tuple(refused), bulk
        self.ways = Ways(items, find, scan, range, count)
        self.keys, self.values = KEYS if keys is None else keys, VALUES if values is None else values
        self.number = number or (lambda n: (b"number %d" % n, b"%d" % n))
        self._own_keys, self._own_values = keys is not None, values is not None

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        drawn = "put" if self._own_keys and self._own_values else "try"
        kinds: list[st.SearchStrategy[Operation]] = [st.tuples(st.just(drawn), self.keys, self.values),
                                                     st.tuples(st.just("set"), index, self.values)]
        if self._own_keys:
            kinds.append(st.tuples(st.just("try"), st.builds(self._near, self.keys, index), self.values))
        if self.delete is not None:
            kinds.append(st.tuples(st.just("delete"), index))
        if self.refused:
            kinds.append(st.tuples(st.just("refuse"), st.integers(0, len(self.refused) - 1)))
        return st.lists(st.one_of(kinds), min_size=1, max_size=6)

    def _near(self, key: Any, which: int) -> Any:
        """A neighbour of a key, unless it is that of a number."""
        near = neighbour(key, which)
        return key if near in self._numbers else near

    @cached_property
    def _numbers(self) -> frozenset[Any]:
        return frozenset(self.number(n)[0] for n in range(_NUMBERS))

    def new_model(self) -> dict[Any, Any]:
        return {}

    def run(self, tx: Any, model: dict[Any, Any], operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "refuse":
                self.refuse(tx, self.refused[rest[0]], f"refused[{rest[0]}]")
                continue
            if kind in ("put", "try"):
                key, value = rest
            elif not model:
                continue
            else:
                key, value = pick(rest[0], model), rest[-1]
            self._answers(tx, model, key, "")
            if kind == "delete":
                assert self.delete is not None
                self.delete(tx, key)
                del model[key]
            elif self.takes(tx, key, value, strictly=kind == "put" or (kind == "set" and self._own_values)):
                model[key] = value
            self._answers(tx, model, key, f" after {kind}")

    def _answers(self, tx: Any, model: dict[Any, Any], key: Any, when: str) -> None:
        if self.get is not None:
            try:
                found = self.get(tx, key)
            except InvalidInput:
                if key in model:
                    raise
                return  # a key that the engine does not take
            assert alike(found, model.get(key)), (
                f"the transaction's value of {key!r}{when} is {found!r}, and should be {model.get(key)!r}")

    def takes(self, tx: Any, key: Any, value: Any, *, strictly: bool = False) -> bool:
        """Put a value. Whether it was taken, and not refused with `InvalidInput`; strictly, a refusal is raised."""
        try:
            self.put(tx, key, value)
        except InvalidInput:
            if strictly:
                raise
            return False
        except HoldfastError:
            raise
        except Exception as error:
            error.add_note(f"this was put() of the key {key!r:.80}: what an engine does not take, it refuses with "
                           "InvalidInput")
            raise
        return True

    @staticmethod
    def refuse(tx: Any, call: Callable[[Any], object], what: str) -> None:
        """Make a call that must be refused."""
        try:
            call(tx)
        except (InvalidInput, NotFound):
            return
        except HoldfastError:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise AssertionError(f"{what} raises {kind}: {error}, and must raise InvalidInput") from error
        raise AssertionError(f"{what} was not refused: it must raise InvalidInput")

    def expected(self, model: dict[Any, Any]) -> dict[Any, Any]:
        return dict(model)

    def content(self, view: View) -> dict[Any, Any]:
        return self.ways.content(view)

    def walks(self, view: View) -> Mapping[str, Iterator[Any]]:
        return self.ways.walks(view)

    def numbered(self, number: int) -> list[Operation]:
        key, value = self.number(number)
        return [("put", key, value)]

    def shows(self, content: dict[Any, Any], number: int) -> bool:
        key, value = self.number(number)
        return key in content and alike(content[key], value)

    def sized(self, size: int, seed: int) -> list[Operation] | None:
        draw, made = random.Random(seed), 0
        operations: list[Operation] = []
        key_room, value_room = self._rooms
        if not key_room and not value_room:
            return None  # a MiB of numbers is a hundred thousand calls, which takes minutes
        while made < size:
            key, value = self.number(SIZED + seed * 10**6 + len(operations))
            value = filled(value, value_room, draw)
            if not value_room:
                key = filled(key, key_room, draw)
            operations.append(("put", key, value))
            made += value_room or key_room
        return operations

    @cached_property
    def _rooms(self) -> tuple[int, int]:
        """How long keys and values are that make up a large state."""
        with an_engine(self.engine, self.opened_with) as engine:
            return rooms(engine, self.takes, *self.number(0))

    def bulk_load(self, number: int, model: dict[Any, Any]) -> Any:
        if self._bulk is None:
            return super().bulk_load(number, model)
        key, value = self.number(number)
        model[key] = value
        return self._bulk({key: value})
