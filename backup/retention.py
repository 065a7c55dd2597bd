"""Restore points, and how long they are kept.

Restore points of the last `keep_points` (by default 7 days) are kept. Compaction takes only log that is older. A full
backup that replaces another keeps that one as an *older generation* until all its points are older than the period.
The manifest of the generation in force names the older ones, each with what it restores to. A generation that it does
not name is garbage. So to drop one, first the manifest is written without it, durably, then it is removed.

"Now", the end of the period, is by the target's clock or the source's, whichever is earlier. So points are not lost
because one clock jumped ahead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..engine.errors import SettingError
from ..engine.store.layout import Generation
from .report import Bounds

KEEP_POINTS = "7 days"
FOR_EVER, NONE = 0, 1 << 63
"""Cut-off times for "for ever" and "none"."""
_UNITS = {"minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400}
_PERIOD = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) (minute|hour|day|week)s?")

Older = tuple[Mapping[str, Any], ...]


def cutoff_us(keep: str, now_us: int) -> int:
    """The time before which restore points need not be kept.

    >>> cutoff_us("2 hours", 7200_000_000), cutoff_us("for ever", 5), cutoff_us("none", 5) == NONE
    (0, 0, True)

    Raises:
        SettingError.
    """
    text = keep.strip().lower() if isinstance(keep, str) else ""
    if text in ("for ever", "forever"):
        return FOR_EVER
    if text == "none":
        return NONE
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise SettingError(f"keep_points={keep!r} is not a period",
                           hint='say for example "7 days", "12 hours", "for ever" or "none"')
    return max(0, now_us - int(float(match[1]) * _UNITS[match[2]] * 1_000_000))


def older_one(generation: Generation, bounds: Bounds, damage: str) -> dict[str, Any]:
    """A manifest's entry for a generation that another has replaced. `damage`: what is wrong with it, or empty."""
    return {"generation": generation.name, "first": bounds.first, "last": bounds.last,
            "first_time_us": bounds.first_time_us, "last_time_us": bounds.last_time_us,
            "complete_until_us": bounds.complete_until_us, "damage": damage}


def needed(older: Iterable[Mapping[str, Any]], cutoff: int) -> Older:
    """The older generations that have a point at or after the cut-off time."""
    return tuple(one for one in older if one["complete_until_us"] >= cutoff)


def gaps(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The gaps between ranges, both ends included.

    >>> gaps([(8, 9), (0, 3), (2, 4), (9, 12)])
    ((5, 7),)
    """
    found, end = [], None
    for first, last in sorted(ranges):
        if end is not None and first > end + 1:
            found.append((end + 1, first - 1))
        end = last if end is None else max(end, last)
    return tuple(found)


def ranges(bounds: Bounds) -> list[tuple[int, int]]:
    """The ranges of transactions that can be restored to.

    >>> ranges(Bounds(first=0, last=9, first_time_us=None, last_time_us=None, complete_until_us=0, gaps=((3, 6),)))
    [(0, 2), (7, 9)]
    """
    edges = [bounds.first, *(edge for low, high in bounds.gaps for edge in (low - 1, high + 1)), bounds.last]
    return list(zip(edges[::2], edges[1::2], strict=True))


def gone(before: Bounds, after: Bounds) -> tuple[tuple[int, int], ...]:
    """The ranges of transactions that could be restored to before and cannot any more.

    >>> old = Bounds(first=0, last=5, first_time_us=None, last_time_us=None, complete_until_us=0)
    >>> gone(old, Bounds(first=3, last=9, first_time_us=None, last_time_us=None, complete_until_us=0, gaps=((5, 7),)))
    ((0, 2), (5, 5))
    """
    left = ranges(before)
    for low, high in ranges(after):
        left = [piece for first, last in left for piece in ((first, min(last, low - 1)), (max(first, high + 1), last))
                if piece[0] <= piece[1]]
    return tuple(left)
