"""What the contract suites need to know of an engine: a `Workload`, which authors write.

A workload says how to draw random operations, how to run them in a transaction and beside it in a plain model, and what
a view shows, in the model's terms. The model is what the engine is compared with, so it must not ask the engine.

Operations are drawn without knowledge of the state, so that Hypothesis can shrink them; if one names something that
exists, it does so by an index, taken modulo the number of such things when it runs. Transaction and model take each
operation together, because some engines give out the ids.

For an engine that maps keys to values, whatever its calls are named, `KeyValues` is the whole workload.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ...contract.engine import Engine, StagingEngine
from ...contract.view import View

T = TypeVar("T")
Operation = tuple[Any, ...]
"""One call, as the workload's `run` understands it: its kind, then its arguments."""


class Workload(ABC):
    """What to do to an engine, and what it must show then. Subclass it, or use `KeyValues`.

    Attributes:
        engine: the engine's class.
        options: the engine's own options, for every opening.
        above_env: the engine does all its file operations through the environment that it is given, so that a simulated
            disk can try every crash on it. Engines on a database library do not, and are killed instead.
        fragile: names, as patterns, of files that mutations leave alone, since the engine's library hangs or dies on
            some of them and the engine can do nothing about it. Say so in the engine's description.
    """

    engine: type[Engine[Any, Any]]
    options: Mapping[str, Any] = {}
    above_env: bool = True
    fragile: tuple[str, ...] = ()

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
        to any state. Used where many threads and processes write."""

    @abstractmethod
    def shows(self, content: Any, number: int) -> bool:
        """Whether a content has, whole, what `numbered(number)` adds."""

    def bulk_load(self, number: int, model: Any) -> Any:
        """What `Store.bulk` takes; the same is added to the model. Called for engines that take bulk loads."""
        raise NotImplementedError(f"{type(self).__name__}.bulk_load is needed, since the engine takes bulk loads")

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


KEYS = st.binary(min_size=1, max_size=2)
"""Few enough to meet again, and shorter than any that `numbered` makes."""
VALUES = st.builds(text_of, st.integers(0, 255), st.sampled_from((0, 1, 20, 3000)))


class KeyValues(Workload):
    """The workload of an engine that maps keys to values: bytes, unless other strategies are given."""

    def __init__(self, engine: type[Engine[Any, Any]], *, put: Callable[[Any, Any, Any], object],
                 items: Callable[[Any], Iterable[tuple[Any, Any]]], get: Callable[[Any, Any], Any] | None = None,
                 delete: Callable[[Any, Any], object] | None = None, keys: st.SearchStrategy[Any] = KEYS,
                 values: st.SearchStrategy[Any] = VALUES, number: Callable[[int], tuple[Any, Any]] | None = None,
                 bulk: Callable[[dict[Any, Any]], Any] | None = None, options: Mapping[str, Any] | None = None,
                 above_env: bool = True) -> None:
        """
        Args:
            engine: its class.
            put: `put(transaction, key, value)` sets a value.
            items: `items(view)` gives all keys and values.
            get: `get(transaction, key)` gives the value or None, the transaction's own changes included.
            delete: `delete(transaction, key)` removes a key that is there.
            keys, values: how to draw them; keys can be sorted.
            number: `number(n)` gives a key, which `keys` never draws, and a value, other ones for each n. Without it
                `b"number n"` and `b"n"`.
            bulk: makes what the engine takes as a bulk load from a dictionary, which is set as a whole.
            options, above_env: see `Workload`.
        """
        self.engine = engine
        self.options = options or {}
        self.above_env = above_env
        self._put, self._items, self._get, self._delete, self._bulk = put, items, get, delete, bulk
        self._keys, self._values = keys, values
        self._number = number or (lambda n: (b"number %d" % n, b"%d" % n))

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        kinds: list[st.SearchStrategy[Operation]] = [st.tuples(st.just("put"), self._keys, self._values),
                                                     st.tuples(st.just("set"), index, self._values)]
        if self._delete is not None:
            kinds.append(st.tuples(st.just("delete"), index))
        return st.lists(st.one_of(kinds), min_size=1, max_size=6)

    def new_model(self) -> dict[Any, Any]:
        return {}

    def run(self, tx: Any, model: dict[Any, Any], operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "put":
                key, value = rest
            elif not model:
                continue
            else:
                key, value = pick(rest[0], model), rest[-1]
            if self._get is not None:
                assert self._get(tx, key) == model.get(key), f"the transaction's value of {key!r}"
            if kind == "delete":
                assert self._delete is not None
                self._delete(tx, key)
                del model[key]
            else:
                self._put(tx, key, value)
                model[key] = value

    def expected(self, model: dict[Any, Any]) -> dict[Any, Any]:
        return dict(model)

    def content(self, view: View) -> dict[Any, Any]:
        items = list(self._items(view))
        content = dict(items)
        assert len(content) == len(items), "a key is there twice"
        return content

    def numbered(self, number: int) -> list[Operation]:
        key, value = self._number(number)
        return [("put", key, value)]

    def shows(self, content: dict[Any, Any], number: int) -> bool:
        key, value = self._number(number)
        return key in content and content[key] == value

    def bulk_load(self, number: int, model: dict[Any, Any]) -> Any:
        if self._bulk is None:
            return super().bulk_load(number, model)
        key, value = self._number(number)
        model[key] = value
        return self._bulk({key: value})
