"""What the suites could not try, and why, so that a run says what it did not prove."""

from __future__ import annotations

from typing import NamedTuple


class Untried(NamedTuple):
    """What was not tried on an engine, and why."""

    engine: str
    what: str
    why: str


_noted: dict[Untried, None] = {}
_engine = ""


def not_tried(what: str, why: str) -> None:
    """Note for the running check what it could not try, and why: `not_tried("large states", "the workload has no
    sized()")`. It is shown once for each engine, however often it is noted."""
    _noted[Untried(_engine, what, why)] = None


def trying(engine: str) -> None:
    """What is noted from now on is of this engine."""
    global _engine
    _engine = engine


def untried() -> list[Untried]:
    """What was noted since this was asked last."""
    noted = list(_noted)
    _noted.clear()
    return noted
