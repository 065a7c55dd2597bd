"""Time: by the calendar, since some moment, and waiting for it to pass."""

from __future__ import annotations

import time


class Clock:
    """Wall-clock times are microseconds since the Unix epoch, UTC."""

    def now_us(self) -> int:
        """Microseconds since the Unix epoch, UTC. May jump either way."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds that only grow, of no particular origin."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let others run for a while."""
        time.sleep(seconds)
