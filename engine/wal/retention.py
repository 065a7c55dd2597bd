"""Retention: which segments may be pruned. Pure: facts in, a plan out.

Whole segments are pruned, oldest first. A segment is never pruned if it holds a transaction after the last checkpoint,
or after the position of a lease or slot. `keep_logs` says how much more is kept: when the log exceeds any of its
bounds, the oldest segments are pruned. A slot that lags beyond its own bounds is dropped, so that a forgotten target
does not fill the disk. `keep_logs` and slots keep at most half of the file system (`SHARE`), because commits need room
too. Only a `keep_logs` of "for ever" is exempt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..env import Clock
from ..env.shown import shown
from ..errors import SettingError
from ..model.records import SegmentInfo
from .slots import Slot

LEAP_US = 60_000_000
"""If the wall clock gains more than this on the monotonic clock, microseconds, it has leapt."""
BELIEVE_S = 3600.0
SHARE = 2

_UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_HOURS = {"hour": 1, "hours": 1, "day": 24, "days": 24}
_HINT = 'say for example "7 days, 4 GiB", "100000 transactions" or "for ever"'
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLogs:
    """How much log to keep, whichever bound comes first. All None: for ever.

    >>> KeepLogs.parse("7 days, 4 GiB")
    KeepLogs(bytes=4294967296, hours=168.0, transactions=None)
    >>> KeepLogs.parse("for ever")
    KeepLogs(bytes=None, hours=None, transactions=None)
    >>> KeepLogs.parse("1000 transactions").transactions
    1000
    """

    bytes: int | None = None
    hours: float | None = None
    transactions: int | None = None

    @classmethod
    def parse(cls, text: str, what: str = "keep_logs") -> KeepLogs:
        """Parse the text of the setting `what`. Raises `SettingError`."""
        if not isinstance(text, str):
            raise SettingError(f"{what} must be a string, not {shown(text)}", hint=_HINT)
        said = text.strip().lower()
        if said in ("for ever", "forever"):
            return cls()
        values: dict[str, float] = {}
        for part in said.split(","):
            match = _PART.fullmatch(part.strip())
            if match is None:
                raise SettingError(f"{what}: {part.strip()!r} is not understood", hint=_HINT)
            amount, unit = float(match[1]), match[2]
            if unit in _UNITS:
                values["bytes"] = amount * _UNITS[unit]
            elif unit in _HOURS:
                values["hours"] = amount * _HOURS[unit]
            elif unit in ("transaction", "transactions"):
                values["transactions"] = amount
            else:
                raise SettingError(f"{what}: {unit!r} is not a unit",
                                   hint="units are KiB, MiB, GiB, hours, days, transactions")
        return cls(bytes=int(values["bytes"]) if "bytes" in values else None, hours=values.get("hours"),
                   transactions=int(values["transactions"]) if "transactions" in values else None)

    def within(self, most: int) -> KeepLogs:
        """The same, and at most `most` bytes. "For ever" stays unchanged.

        >>> KeepLogs.parse("7 days").within(5), KeepLogs().within(5)
        (KeepLogs(bytes=5, hours=168.0, transactions=None), KeepLogs(bytes=None, hours=None, transactions=None))
        """
        if self == KeepLogs():
            return self
        return replace(self, bytes=most if self.bytes is None else min(self.bytes, most))


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What may be deleted now, and which slots must be dropped first."""

    segments: tuple[SegmentInfo, ...]
    dropped: tuple[Slot, ...]


def plan_pruning(oldest: Iterable[SegmentInfo], *, size: int, base: int, newest: int, held: Callable[[int], int],
                 keep: KeepLogs, floor: int, slots: Sequence[Slot], slot_bytes: int, slot_hours: float,
                 now_us: int) -> PrunePlan:
    """Plan a pruning. Changes nothing. O(slots + segments to prune): stops at the first segment that stays.

    Args:
        oldest: all segments except the last one, which always stays; oldest first.
        size: bytes of the whole log.
        base, newest: the transaction after which the log begins, and its last one.
        held: gives the bytes of the segments that hold transactions after a given one.
        keep: the bounds from `keep_logs`.
        floor: every transaction after this one is needed (the least of checkpoint and leases).
        slots: the registered slots.
        slot_bytes, slot_hours: how far a slot may lag.
        now_us: the time, microseconds since the Unix epoch.
    """
    dropped = []
    for slot in slots:
        lag_us = now_us - slot.seen_us
        if newest > slot.position.txid and (
                slot.position.txid < base  # what it needs is already gone
                or lag_us > slot_hours * 3_600_000_000 or held(slot.position.txid) > slot_bytes):
            dropped.append(slot)
        else:
            floor = min(floor, slot.position.txid)
    pruned: list[SegmentInfo] = []
    undated: list[SegmentInfo] = []  # dated by a clock that was ahead; they are older than the next dated one
    by_age = keep.hours is not None
    for segment in oldest:
        over = ((keep.bytes is not None and size > keep.bytes)
                or (keep.hours is not None and now_us - segment.last_time_us > keep.hours * 3_600_000_000)
                or (keep.transactions is not None and newest - segment.last >= keep.transactions))
        if not segment.sealed or segment.last > floor or not (over or (by_age and segment.last_time_us > now_us)):
            break
        undated.append(segment)
        if over:
            pruned += undated
            size -= sum(s.size for s in undated)
            undated.clear()
    return PrunePlan(tuple(pruned), tuple(dropped))


class CautiousClock:
    """The time by which the ages of log and slots are measured. It is the wall clock's, but a leap forward is believed
    only after `BELIEVE_S` seconds. Otherwise, a clock that is wrong for a moment would delete log for good.

    At the start, a leap looks the same as a store that was closed for a while. So time continues from the last known
    one, and the clock is believed after `BELIEVE_S`. A store that is never open that long lags by one opening.
    """

    def __init__(self, clock: Clock, known_us: int | None = None) -> None:
        """`known_us`: the last time that is known to have passed; None to believe the clock at once."""
        self._clock = clock
        monotonic = clock.monotonic()
        self._offset = self._offset_at(monotonic)
        self._leapt: float | None = None
        if known_us is not None:
            known = known_us - int(monotonic * 1e6)
            if self._offset > known + LEAP_US:
                self._offset, self._leapt = known, monotonic

    @property
    def doubted_us(self) -> int:
        """Microseconds by which the wall clock is ahead of the time that is believed; 0 if it is believed."""
        return 0 if self._leapt is None else max(0, self._offset_at(self._clock.monotonic()) - self._offset)

    def now_us(self) -> int:
        """The time, microseconds since the Unix epoch."""
        monotonic = self._clock.monotonic()
        offset = self._offset_at(monotonic)
        if offset <= self._offset + LEAP_US:
            self._leapt, self._offset = None, offset
        elif self._leapt is None:
            self._leapt = monotonic
        elif monotonic - self._leapt >= BELIEVE_S:
            self._leapt, self._offset = None, offset
        return self._offset + int(monotonic * 1e6)

    def _offset_at(self, monotonic: float) -> int:
        return self._clock.now_us() - int(monotonic * 1e6)
