"""Long work in Python that lets others run.

A thread that wants the interpreter lock gets it when its holder waits for something, or else after 5 ms. That is many
times what a commit takes. So work that nobody waits for, and that goes on for long, rests for a moment now and then.
"""

from __future__ import annotations

from collections.abc import Callable

from .clock import Clock

_WORK_S, _REST_S = 400e-6, 60e-6


class Pace:
    """Called now and then by long work: sleeps for a moment if the work has run for `work` seconds since the last
    time, and `when()` says that somebody gains from it."""

    __slots__ = ("_clock", "_since", "_when", "_work")

    def __init__(self, clock: Clock, work: float = _WORK_S, *, when: Callable[[], bool] = lambda: True) -> None:
        self._clock = clock
        self._work = work
        self._when = when
        self._since = clock.monotonic()

    def __call__(self) -> None:
        if self._clock.monotonic() - self._since > self._work:
            if self._when():
                self._clock.sleep(_REST_S)
            self._since = self._clock.monotonic()
