"""How fast a store gives out its images while transactions commit.

A copy competes with commits for the disk, the processor and the interpreter: a full backup at the disk's whole speed
makes commits wait for a hundred times as long. So while transactions commit, all copies together get a bounded number
of bytes in a second. If there was none for a second, copies get all that the machine has.
"""

from __future__ import annotations

from ..env import Env
from .watermarks import Watermarks

_BUSY_S = 1.0
_LONGEST_S = 2.0
"""The longest that one piece waits, so that a low rate does not look like a source that has gone."""


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
            now, published = self._clock.monotonic(), self._watermarks.published
            if published != self._seen:
                self._seen, self._busy_until = published, now + _BUSY_S
            if now >= self._busy_until:
                return
            begin = min(max(self._free_at, now), now + _LONGEST_S)
            self._free_at = begin + size / self._rate
        if begin > now:
            self._clock.sleep(begin - now)
