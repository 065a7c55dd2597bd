"""The engine of a backup: found by its name, its versions compared with those of the state and the payloads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..engine.contract.engine import Engine
from ..engine.contract.registry import find_engine
from ..engine.errors import SettingError, UnsupportedFormat, UpgradeRequired, WrongEngine

AnyEngine = type[Engine[Any, Any]]
Options = Mapping[str, Any]
"""Options of the engine, used whenever a copy is opened."""


def engine_named(name: str, given: AnyEngine | None) -> AnyEngine:
    """The engine class to use for a backup of the engine `name`.

    Raises:
        WrongEngine: `given` has another name.
        SettingError: no engine of that name is installed.
    """
    if given is None:
        found: AnyEngine = find_engine(name)
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
