"""The workload of an engine whose author has written none, guessed by the names of the engine's own calls.

A guess that is wrong would blame a right engine. So a call is taken only if its name and its arguments leave no doubt,
or if it answers rightly on three keys; what is taken and what is left out is said.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import strategies as st

from ...contract.engine import Context, Engine
from ...errors import NotFound, SettingError
from ...model.positions import origin
from ..disks.quiet import quiet_env
from ..disks.simdisk import SimDisk
from .contract import scratch
from .driver import Driver, driven
from .ways import Ways
from .workload import SIZED, KeyValues, Workload

Call = Callable[..., Any]


class _Sought(NamedTuple):
    """What a call of a transaction or a view may be named, and the names of its arguments."""

    names: tuple[str, ...]
    arguments: tuple[str, ...]
    plain: tuple[tuple[str, ...], ...] = ()
    """Names of arguments that leave no doubt; without any, the call's own name leaves none."""


_OF_TRANSACTIONS = {
    "put": _Sought(("put", "set", "__setitem__"), ("key", "value")),
    "get": _Sought(("get",), ("key",)),
    "delete": _Sought(("delete", "remove", "pop", "__delitem__"), ("key",)),
}
_OF_VIEWS = {
    "items": _Sought(("items",), ()),
    "find": _Sought(("get", "find"), ("key",), (("key",),)),
    "scan": _Sought(("scan",), ("prefix",), (("prefix",),)),
    "range": _Sought(("range",), ("low", "high"), (("low", "high"), ("start", "stop"), ("start", "end"))),
    "count": _Sought(("count", "__len__"), ()),
}


@dataclass(frozen=True, slots=True)
class Guess:
    """
    Attributes:
        workload: the workload.
        said: what was taken for what, in one line.
        left_out: calls that may be meant otherwise, with why.
    """

    workload: KeyValues
    said: str
    left_out: dict[str, str]


class _Kind(NamedTuple):
    """Things that keys or values may be."""

    type: type
    keys: st.SearchStrategy[Any] | None
    values: st.SearchStrategy[Any] | None
    key: Callable[[int], Any]
    value: Callable[[int], Any]


_KINDS = (
    _Kind(bytes, None, None, lambda n: b"number %d" % n, lambda n: b"%d" % n),
    _Kind(str, st.text("abcdefgh", min_size=1, max_size=3), st.text("abc ä€😀", min_size=1, max_size=20),
          lambda n: f"number {n}", str),
    _Kind(int, st.integers(0, 199), st.integers(0, 99), lambda n: 1000 + n, lambda n: n % 100),
)


_WAYS = ("find", "scan", "range", "count")


def workload_of(engine: type[Engine[Any, Any]]) -> Workload:
    """The workload of an engine: `workload` of its class, or of its module, or a guess. Raises `SettingError`."""
    return written(engine) or guess(engine).workload


def written(engine: type[Engine[Any, Any]]) -> Workload | None:
    """The workload that an engine's author has put beside it, as `workload` of its class or module, if any."""
    for place in (engine, sys.modules.get(engine.__module__)):
        made: Any = getattr(place, "workload", None)
        if callable(made):
            made = made()
        if isinstance(made, Workload) and made.engine is engine:
            return made
    return None


@functools.cache
def guess(engine: type[Engine[Any, Any]]) -> Guess:
    """The workload of an engine that maps keys to values. Raises `SettingError` if its calls do not say how."""
    transaction, view = _classes(engine)
    taken = dict([*_named(transaction, _OF_TRANSACTIONS), *_named(view, _OF_VIEWS)])
    lacking = [name for name in ("put", "items") if name not in taken]
    if lacking:
        raise SettingError("; ".join(f"{(transaction if name == 'put' else view).__name__} has no "
                                     f"{_wanted(name)}" for name in lacking), hint=_example(engine, transaction, view))
    certain = {name: call for name, call in taken.items() if name not in _WAYS}
    keys, values = _kinds(engine, certain)
    work = _made(engine, keys, values, **certain)
    above_env = _above_env(work)
    left_out = _left_out(work, {name: call for name, call in taken.items() if name in _WAYS})
    taken = {name: call for name, call in taken.items() if name not in left_out}
    missing = [name for name in (*_OF_TRANSACTIONS, *_OF_VIEWS) if name not in taken and name not in left_out]
    said = ", ".join(f"{name}={call.__qualname__}" for name, call in taken.items())
    said += f"; keys are {keys.type.__name__}, values {values.type.__name__}"
    said += "" if above_env else "; it writes past the environment"
    said += f"; not found: {', '.join(missing)}" if missing else ""
    return Guess(_made(engine, keys, values, above_env=above_env, **taken), said, left_out)


def _classes(engine: type[Engine[Any, Any]]) -> tuple[type, type]:
    """Of an engine's transactions and its views."""
    with scratch() as place:
        context = Context()
        try:
            engine.create(place, origin(b"a store's own id"), context)
            with closing(engine.open(place, context)) as opened:
                tx, view = opened.begin(), opened.view()
                tx.close()
                view.close()
        except Exception as error:  # the author's own code
            raise SettingError(f"{engine.__name__} cannot be opened, to look for its calls: {type(error).__name__}: "
                               f"{error}", hint="mend that first, or write a workload") from error
    return type(tx), type(view)


def _named(of: type, sought: dict[str, _Sought]) -> Iterator[tuple[str, Call]]:
    for what, (names, arguments, _) in sought.items():
        for name in names:
            call = getattr(of, name, None)
            if callable(call) and _takes(call, arguments):
                yield what, _or_none(call) if what in ("get", "find") else call
                break


def _takes(call: Call, arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(call).bind("self", *arguments)
    except (TypeError, ValueError):
        return False
    return True


def _wanted(name: str) -> str:
    names, arguments, _ = {**_OF_TRANSACTIONS, **_OF_VIEWS}[name]
    return " or ".join(f"{each}({', '.join(arguments)})" for each in names)


def _example(engine: type, transaction: type, view: type) -> str:
    return (f"write a workload beside it, for holdfast check {engine.__module__}:workload\n"
            "from holdfast.engine.testing import KeyValues\n"
            "def workload():\n"
            f"    return KeyValues({engine.__name__},\n"
            f"        put=lambda tx, key, value: …,  # a call of {transaction.__name__}\n"
            f"        items=lambda view: …)  # of {view.__name__}: pairs of key and value\n"
            "An engine that does not map keys to values returns a Workload of its own there: see "
            "docs/writing-an-engine.md")


def _or_none(call: Call) -> Call:
    @functools.wraps(call)
    def found(of: Any, key: Any) -> Any:
        try:
            return call(of, key)
        except (KeyError, NotFound):
            return None

    return found


# --- trying what was found -------------------------------------------------------------------------------------------


def _made(engine: type[Engine[Any, Any]], keys: _Kind, values: _Kind, **given: Any) -> KeyValues:
    return KeyValues(engine, keys=keys.keys, values=values.values, number=lambda n: (keys.key(n), values.value(n)),
                     tiny=None if engine.options else {}, **given)


def _kinds(engine: type[Engine[Any, Any]], given: dict[str, Call]) -> tuple[_Kind, _Kind]:
    """What keys and values are: what `put` is declared to take, or the first that an engine takes and shows."""
    declared = _declared(given["put"])
    pairs = [(key, value) for key in _KINDS for value in _KINDS]
    pairs.sort(key=lambda pair: [kind.type is not of for kind, of in zip(pair, declared, strict=False)])
    refused = []
    for key, value in pairs:
        work = _made(engine, key, value, **given)
        try:
            with driven(work) as it:
                for number in (0, 1, SIZED):
                    it.commit(work.numbered(number))
                it.compare_state()
                return key, value
        except Exception as error:  # the author's own code
            refused.append(f"{key.type.__name__} and {value.type.__name__}: {type(error).__name__}: {error}")
    raise SettingError(f"{given['put'].__qualname__} takes no keys and values that are bytes, str or int, or "
                       f"{given['items'].__qualname__} does not show them",
                       hint=f"mend that, or write a workload; tried with {refused[0]}")


def _declared(put: Call) -> list[Any]:
    """The declared types of a key and a value."""
    try:
        hints = typing.get_type_hints(put)
    except Exception:  # a name that only type checkers know
        hints = {}
    return [hints.get(name) for name in list(inspect.signature(put).parameters)[1:3]]


def _above_env(work: KeyValues) -> bool:
    """Whether an engine works on a simulated disk, and leaves nothing on a real one."""
    with scratch() as place:
        directory = place / "simulated"
        try:
            it = Driver(work, directory, quiet_env(SimDisk()))
            with closing(it):
                it.commit(work.numbered(0))
                it.engine.checkpoint(it.end)
                it.compare_state()
        except Exception:  # a library that finds no directory raises what it likes
            return False
        return not directory.exists()


def _left_out(work: KeyValues, ways: dict[str, Call]) -> dict[str, str]:
    """Those ways of reading a view that may be meant otherwise, since they do not answer rightly on three keys."""
    left_out = {}
    with driven(work) as it:
        it.commit([operation for number in (0, 1, 2) for operation in work.numbered(number)])
        with closing(it.engine.view()) as view:
            for name, call in ways.items():
                if _plain(name, call):
                    continue
                tried = {"find": None, "scan": None, "range": None, "count": None, name: call}
                try:
                    Ways(work.ways.items, **tried).content(view)
                except Exception as error:  # the author's own code
                    left_out[name] = (f"{call.__qualname__} was left out, since it does not do what {_wanted(name)} of "
                                      f"a workload does: {type(error).__name__}: {error}")
    return left_out


def _plain(name: str, call: Call) -> bool:
    """Whether a call's name and its arguments leave no doubt about what it does."""
    plain = _OF_VIEWS[name].plain
    return not plain or tuple(inspect.signature(call).parameters)[1:] in plain
