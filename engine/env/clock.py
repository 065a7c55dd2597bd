"""Time: the wall clock, a monotonic clock, and sleeping."""

from __future__ import annotations

import time


class Clock:
    """Wall-clock times are microseconds since the Unix epoch, UTC."""

    def now_us(self) -> int:
        """Microseconds since the Unix epoch, UTC. May jump forward or back."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment. Never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread for `seconds`."""
        time.sleep(seconds)
