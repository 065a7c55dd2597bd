"""How a store gives way to commits while it is copied.

A copy competes with commits for the disk, the processor and the interpreter: a full backup at the disk's whole speed
makes commits wait for a hundred times as long. So while transactions commit, all copies together get a bounded number
of bytes in a second, these are sent a little at a time, and records are read with rests in between. If there was no
commit for a second, copies get all that the machine has.
"""

from __future__ import annotations

from collections.abc import Callable

from ..env import Env
from ..env.pace import Pace
from .watermarks import Watermarks

_BUSY_S, _AWAY_S = 1.0, 10.0
_LONGEST_S, _LONGEST_REST_S = 2.0, 0.1
"""The longest that one piece waits, and that is rested while it is sent, so that a low rate does not look like a source
that has gone."""
_AHEAD = 2
"""Bytes are sent at so many times the rate: while one piece is sent, the next one is waited for."""


class Pacing:
    """The bound of one store. For any thread.

    A store is busy for `_BUSY_S` after it was seen to have committed between two questions. What it committed before
    the first one, or while nobody asked for `_AWAY_S`, says nothing. That is longer than a chunk may wait and be sent.

    Args:
        rate: bytes per second while transactions commit; None: no bound.
        watermarks: those of the store: they say whether transactions commit.
    """

    def __init__(self, rate: float | None, watermarks: Watermarks, env: Env) -> None:
        self._rate = rate
        self._watermarks = watermarks
        self._clock = env.clock
        self._lock = env.scheduler.lock()
        self._seen = watermarks.published
        self._asked = self._busy_until = self._free_at = 0.0

    def wait(self, size: int) -> None:
        """Wait until `size` bytes of an image may be given out. O(1)."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock.monotonic()
            if not self._is_busy(now):
                return
            begin = min(max(self._free_at, now), now + _LONGEST_S)
            self._free_at = begin + size / self._rate
        if begin > now:
            self._clock.sleep(begin - now)

    def rest(self, size: int) -> float:
        """How long to rest after each `size` bytes that are sent, seconds; 0 if nothing commits. Sent at once, a piece
        would keep a processor busy on either side, for longer than a commit takes. O(1)."""
        if self._rate is None or not self.busy():
            return 0.0
        return min(size / self._rate / _AHEAD, _LONGEST_REST_S)

    def records(self) -> Callable[[], None]:
        """What to call after each record that is read: now and then it looks whether transactions commit, and rests if
        so. O(1)."""
        return Pace(self._clock, when=self.busy) if self._rate is not None else _go_on

    def busy(self) -> bool:
        """Whether transactions commit. O(1)."""
        with self._lock:
            return self._is_busy(self._clock.monotonic())

    def _is_busy(self, now: float) -> bool:
        """As `busy`. The lock is held."""
        published, asked, self._asked = self._watermarks.published, self._asked, now
        if published != self._seen:
            self._seen = published
            if now - asked <= _AWAY_S:
                self._busy_until = now + _BUSY_S
        return now < self._busy_until


def _go_on() -> None:
    """No rest."""
