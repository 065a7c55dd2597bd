"""The engine of a backup: found by its name, its versions compared with those of the state and the payloads.

A name in a store or a backup is only looked up among what is installed. `module:Class` imports a module, so it is taken
from a command line alone, never from a file.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..engine.contract.registry import find_engine
from ..engine.errors import SettingError, UnsupportedFormat, UpgradeRequired, WrongEngine

if TYPE_CHECKING:
    from ..engine.contract.engine import Engine

AnyEngine: TypeAlias = "type[Engine[Any, Any]]"
Options = Mapping[str, Any]
"""Options of the engine, used whenever a copy is opened."""


def named(reference: str) -> Any:
    """What `module:Name` refers to. The current directory is searched, too, as for `python -m`.

    Raises:
        SettingError: there is no such module, it cannot be imported, or it does not have the name.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise SettingError(f"{reference!r} names nothing", hint="write module:Class, such as scores:ScoreEngine")
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the author's own code, which may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise SettingError(f"there is no module {error.name!r}",
                               hint="write module:Class; the module is installed or in the current directory") from None
        raise SettingError(f"the module {module!r} cannot be imported: {type(error).__name__}: {error}",
                           hint=f"python -c 'import {module}' shows where") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise SettingError(f"{module} has no {name!r}", hint="write module:Class; upper and lower case differ")
        found = getattr(found, part)
    return found


def engine_given(given: str | None) -> AnyEngine | None:
    """The engine that a command line names, by its registered name or as `module:Class`; None if it names none.

    Raises:
        SettingError: there is none, or it is not an engine's class.
    """
    if given is None or ":" not in given:
        return None if given is None else find_engine(given)
    from ..engine.contract.engine import Engine

    found = named(given)
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise SettingError(f"{given} is not a subclass of holdfast.engine.Engine",
                           hint="name the class of the engine")
    return found


def engine_named(name: str, given: AnyEngine | None) -> AnyEngine:
    """The engine class to use for a backup of the engine `name`.

    Raises:
        WrongEngine: `given` has another name.
        SettingError: no engine of that name is installed.
    """
    if given is None:
        try:
            found: AnyEngine = find_engine(name)
        except SettingError as error:
            error.hint += "; or pass its class: engine=…"
            raise
        return found
    if given.name != name:
        raise WrongEngine(f"the backup is of the {name} engine, and the {given.name} engine was given")
    return given


def engine_at_hand(name: str, given: AnyEngine | None) -> AnyEngine | None:
    """As `engine_named`, but None if no engine of that name is installed."""
    try:
        return engine_named(name, given)
    except SettingError:
        return None


def compare_versions(engine: AnyEngine, state_format: int, payloads: Iterable[int], whose: str) -> None:
    """Check that an engine reads a state of this format and payloads of these versions. `whose` names their owner.

    Raises:
        UpgradeRequired: the state is of an older format.
        UnsupportedFormat: the state is of a newer format, or a payload's version is unknown.
    """
    if state_format < engine.state_format:
        raise UpgradeRequired(f"{whose} has state format {state_format}, and this {engine.name} engine has "
                              f"{engine.state_format}",
                              hint="use the release that wrote it; or upgrade the store, and take a full backup of it")
    if state_format > engine.state_format:
        raise UnsupportedFormat(f"{whose} has state format {state_format}, and this {engine.name} engine has "
                                f"{engine.state_format}")
    if unknown := sorted(set(payloads) - engine.reads_payloads):
        raise UnsupportedFormat(f"{whose} has transactions of payload version {unknown[0]}, and this {engine.name} "
                                f"engine reads {sorted(engine.reads_payloads)}")
