"""What the suites count as they go, so that a run can say how much it tried."""

from __future__ import annotations

from collections import Counter

_counted: Counter[tuple[str, str]] = Counter()


def count(what: str, of: str, number: int) -> None:
    """Add to how many of something were tried on an engine or another part."""
    _counted[what, of] += number


def taken() -> dict[tuple[str, str], int]:
    """What was counted since this was asked last."""
    counted = dict(_counted)
    _counted.clear()
    return counted
