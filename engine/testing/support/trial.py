"""Tries the workload before the engine is tried with it.

A slip in a workload would make dozens of checks fail with words about the engine. So it is looked for first, once in a
process, and said in one sentence. What the engine itself does wrong is left to the checks.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Hashable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import SkipTest

from ...contract.engine import Context, Engine
from ...contract.options import checked
from ...contract.view import View
from ...errors import InvalidInput, SettingError
from ...model.positions import origin
from ...model.records import Record
from .neighbours import has_prefixes
from .not_tried import not_tried, trying
from .workload import SIZED, KeyValues, Workload, sampled

_DRAWN = 150
_MANY = 50
_ORIGIN = origin(b"a store's own id")


@dataclass
class Outcome:
    """What a trial found: what is wrong with the workload, and what cannot be tried with it."""

    wrong: SettingError | None = None
    untried: dict[str, str] = field(default_factory=dict)
    said: bool = False


_outcomes: dict[Hashable, Outcome] = {}


def tried(made: Any, work: Workload) -> SettingError | None:
    """What is wrong with a workload, which is of what `made` it; tried once in a process for each of these."""
    engine: Any = work.engine
    trying(str(getattr(engine, "name", None) or getattr(engine, "__name__", engine)))
    outcome = _outcome(made, work)
    for what, why in outcome.untried.items():
        not_tried(what, why)
    return outcome.wrong


def stands_trial(made: Any, work: Workload) -> None:
    """The first check of a workload that is wrong raises what is wrong with it, and all others are skipped."""
    if (wrong := tried(made, work)) is None:
        return
    outcome = _outcome(made, work)
    if outcome.said:
        raise SkipTest(f"the workload is not right: {wrong.message}")
    outcome.said = True
    raise wrong


def _outcome(made: Any, work: Workload) -> Outcome:
    key = work.engine, made
    try:
        hash(key)
    except TypeError:
        key = work.engine, id(made)
    if key not in _outcomes:
        outcome = Outcome()
        try:
            _try(work, outcome.untried)
        except SettingError as wrong:
            outcome.wrong = wrong
        _outcomes[key] = outcome
    return _outcomes[key]


def _try(work: Workload, untried: dict[str, str]) -> None:
    _try_engine(work)
    if work.tiny is None:
        untried["what the engine does seldom (a new file, a merge)"] = (
            "the workload names no options that make it common: give tiny={…}, or tiny={} if there are none")
    if isinstance(work, KeyValues):
        _try_calls(work)
        _try_numbers(work)
        _try_draws(work, untried)
    else:
        _try_model(work)
    with tempfile.TemporaryDirectory(prefix="holdfast-") as place:
        try:
            _try_to_open(work, Path(place))
        except SettingError:
            raise
        except Exception:  # the engine's own, which its checks will tell
            return


def _try_engine(work: Workload) -> None:
    engine: Any = work.engine
    if not (isinstance(engine, type) and issubclass(engine, Engine)):
        raise SettingError(f"the workload's engine is {engine!r:.80}, which is not a subclass of Engine",
                           hint="give the engine's class")
    if lacking := sorted(engine.__abstractmethods__):
        raise SettingError(f"{engine.__name__} does not define {', '.join(lacking)}",
                           hint="the docstrings of Engine say what each has to do")
    for name, given in (("options", work.options), ("tiny", work.tiny or {})):
        try:
            checked(engine.options, given)
        except InvalidInput as error:
            raise SettingError(f"{name}= of the workload: {error.message}", hint=error.hint) from error
        except AttributeError:  # the engine declares something else than an Option, which its checks will tell
            continue


def _try_calls(work: KeyValues) -> None:
    ways = work.ways
    calls: dict[str, tuple[Any, str]] = {
        "put": (work.put, "transaction key value"), "items": (ways.items, "view"),
        "get": (work.get, "transaction key"), "delete": (work.delete, "transaction key"),
        "find": (ways.find, "view key"), "scan": (ways.scan, "view prefix"), "range": (ways.range, "view low high"),
        "count": (ways.count, "view"), "number": (work.number, "n"),
        **{f"refused[{n}]": (call, "transaction") for n, call in enumerate(work.refused)}}
    for name, (call, given) in calls.items():
        if call is None and name not in ("put", "items"):
            continue
        arguments = given.split()
        if not callable(call):
            raise SettingError(f"{name}= is {call!r:.80}, which cannot be called",
                               hint=f"give a function of {', '.join(arguments)}")
        try:
            inspect.signature(call).bind(*arguments)
        except TypeError as error:
            raise SettingError(f"{name}= cannot be called as {name}({', '.join(arguments)}): {error}",
                               hint="give a lambda that calls it as it wants to be called") from error
        except ValueError:  # it does not tell its signature
            continue


def _try_numbers(work: KeyValues) -> None:
    keys: dict[Any, int] = {}
    for n in (*range(60), 255, 256, 1000, SIZED, SIZED + 1, 10**12):
        pair = _called(f"number({n})", work.number, n)
        if not _is_pair(pair):
            raise SettingError(f"number({n}) gives {pair!r:.80}, which is not a pair", hint="give a key and a value")
        key = pair[0]
        _is_key(f"number({n})", key)
        if pair != work.number(n):
            raise SettingError(f"number({n}) gives another key or value when it is called again",
                               hint="make them from the number alone")
        if key in keys:
            raise SettingError(f"number({keys[key]}) and number({n}) give the same key, {key!r:.80}",
                               hint="give another key for each number, up to 10**12")
        keys[key] = n


def _try_draws(work: KeyValues, untried: dict[str, str]) -> None:
    keys = _called("keys=", sampled, work.keys, _DRAWN)
    for key in keys:
        _is_key("keys=", key)
    of_numbers = [work.number(n)[0] for n in range(_DRAWN)]
    try:
        sorted([*keys[:20], *of_numbers[:3]])
    except TypeError as error:
        raise SettingError(f"the keys of keys= and number= cannot be sorted together: {error}",
                           hint="give number= keys of the kind that keys= draws") from error
    distinct = set(keys)
    if both := distinct.intersection(of_numbers):
        raise SettingError(f"keys= draws {min(both)!r:.80}, which is the key of a number",
                           hint="give number= keys that keys= never draws")
    if len(distinct) < 2:
        raise SettingError(f"keys= draws only the key {keys[0]!r:.80}", hint="draw many keys")
    if len(distinct) < _MANY:
        untried["transactions with many keys of the kind that keys= draws"] = (
            f"it draws {len(distinct)} different ones, and {_MANY} would do")
    if work.ways.scan is not None and not has_prefixes(keys[0]):
        raise SettingError(f"scan= is given, and a key that is a {type(keys[0]).__name__} has no prefixes",
                           hint="give scan= only if keys are bytes, texts, or tuples")
    values = _called("values=", sampled, work.values, 30)
    for value in values:
        with suppress(copy.Error, TypeError):
            same: Any = copy.deepcopy(value) == value
            if not isinstance(same, bool):
                raise SettingError(f"a value of values= compared with a copy gives {same!r:.80}, which is not a bool",
                                   hint="have items= and get= give values that == compares")
            if not same:
                raise SettingError(f"values= draws {value!r:.80}, which is not equal to a copy of itself",
                                   hint="draw values that == compares by what they hold")
    if all(value == values[0] for value in values):
        untried["values that change"] = "values= draws one value only"


def _is_key(what: str, key: Any) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise SettingError(f"{what} gives the key {key!r:.80}, which cannot be hashed",
                           hint="keys are those of a dictionary, which is the model") from error
    if key != copy.copy(key):
        raise SettingError(f"{what} gives the key {key!r:.80}, which is not equal to itself",
                           hint="draw keys that == compares by what they hold")


def _try_model(work: Workload) -> None:
    model = _called("new_model()", work.new_model)
    if not hasattr(model, "copy"):
        raise SettingError(f"new_model() gives a {type(model).__name__}, which has no copy()",
                           hint="give the model a copy() that later changes to the one do not reach in the other")
    if _called("expected()", work.expected, model) != work.expected(model.copy()):
        raise SettingError("expected() of a model and of its copy are not equal", hint="give what == compares")
    if _called("numbered(0)", work.numbered, 0) == work.numbered(1):
        raise SettingError("numbered(0) and numbered(1) give the same operations",
                           hint="give operations that add another thing for each number")
    if work.numbered(0) != work.numbered(0):
        raise SettingError("numbered(0) gives other operations when it is called again",
                           hint="make them from the number alone")
    if not all(_called("operations()", lambda: work.examples)):
        raise SettingError("operations() draws a transaction without an operation", hint="draw at least one")


def _try_to_open(work: Workload, place: Path) -> None:
    """Open the engine, and read one transaction by each way that is given."""
    engine_type, context = work.engine, Context(options=work.opened_with)
    engine_type.create(place, _ORIGIN, context)
    engine: Any = engine_type.open(place, context)
    if not isinstance(engine, Engine):
        raise SettingError(f"{engine_type.__name__}.open returns {engine!r:.80}, and must return the engine",
                           hint="end it with return cls(…)")
    with closing(engine):
        tx = engine.begin()
        if tx is None:
            raise SettingError(f"{engine_type.__name__}.begin returns None, and must return a transaction",
                               hint="return one")
        if not isinstance(work, KeyValues):
            return
        key, value = work.number(0)
        _gives_none("get", work.get, tx, key)
        work.put(tx, key, value)
        payload = tx.payload()
        tx.close()
        if type(payload) is not bytes or not payload:
            return
        record = Record.make(_ORIGIN.chain, 1, 0, 1, engine.payload_version, payload, None)
        engine.apply([record])
        view = engine.view()
        if not isinstance(view, View):
            raise SettingError(f"{engine_type.__name__}.view returns {view!r:.80}, and must return a View",
                               hint="return one")
        with closing(view):
            _try_reading(work, view)


def _try_reading(work: KeyValues, view: View) -> None:
    for name, call in (("items", work.ways.items), ("scan", work.ways.scan), ("range", work.ways.range)):
        if call is None:
            continue
        key, other = sorted((work.number(0)[0], work.number(1)[0]))
        given: dict[str, tuple[Any, ...]] = {"items": (), "scan": (work.number(0)[0],), "range": (key, other)}
        found = call(view, *given[name])
        if not isinstance(found, Iterable):
            raise SettingError(f"{name}= gives {found!r:.80}, which cannot be iterated over",
                               hint="give an iterator over pairs of a key and a value")
        for pair in list(found):
            if not _is_pair(pair):
                raise SettingError(f"{name}= gives {pair!r:.80}, which is not a pair of a key and a value",
                                   hint=f"give {name}= a function that gives pairs")
    _gives_none("find", work.ways.find, view, work.number(1)[0])
    if work.ways.count is not None:
        count = work.ways.count(view)
        if type(count) is not int:
            raise SettingError(f"count= gives {count!r:.80}, which is not a number", hint="give the number of keys")


def _gives_none(name: str, call: Callable[..., Any] | None, where: Any, key: Any) -> None:
    """A look-up of a key that is not there must give None."""
    if call is None:
        return
    try:
        call(where, key)
    except KeyError as error:
        raise SettingError(f"{name}= raises {type(error).__name__} for a key that is not there, and must give None",
                           hint=f"give {name}= a function that catches it") from error


def _is_pair(thing: Any) -> bool:
    return not isinstance(thing, bytes | str) and hasattr(thing, "__len__") and len(thing) == 2


def _called(what: str, call: Callable[..., Any], *given: Any) -> Any:
    """What the workload's author has written, called."""
    try:
        return call(*given)
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(f"{what} of the workload raises {type(error).__name__}: {error}",
                           hint="mend the workload first") from error

