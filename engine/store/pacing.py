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

_BUSY_S = 1.0
_LONGEST_S = 2.0
"""The longest that one piece waits, so that a low rate does not look like a source that has gone."""
_AHEAD = 2
"""Bytes are sent at so many times the rate: while one piece is sent, the next one is waited for."""


class Pacing:
    """The bound of one store. For any thread.

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
        self._busy_until = self._free_at = 0.0

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
        if self._rate is None:
            return 0.0
        with self._lock:
            return size / self._rate / _AHEAD if self._is_busy(self._clock.monotonic()) else 0.0

    def records(self) -> Callable[[], None]:
        """What to call after each record that is read: it rests now and then if transactions commit. O(1)."""
        with self._lock:
            busy = self._rate is not None and self._is_busy(self._clock.monotonic())
        return Pace(self._clock) if busy else _on

    def _is_busy(self, now: float) -> bool:
        """Whether there was a commit of late. The lock is held."""
        published = self._watermarks.published
        if published != self._seen:
            self._seen, self._busy_until = published, now + _BUSY_S
        return now < self._busy_until


def _on() -> None:
    """Go on without a rest."""
