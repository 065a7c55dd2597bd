"""The environment of a run that is the same each time: one thread, a clock that is set, tokens by a seed.

Nothing runs in the background. What a store would do there (prepare the next segment, prune, checkpoint) its owner
calls; so every operation that reaches the disk does so in one order, and a run can be told by its seed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import TypeVar, cast

from ...env import Clock, Env, Event, Files, Lock, Randomness, Scheduler, Task

T = TypeVar("T")


class _Alone(threading.Condition):
    """A condition that nobody else can notify: its waits are over at once."""

    def __init__(self, lock: Lock | None, scheduler: QuietScheduler) -> None:
        super().__init__(cast("threading.Lock | None", lock))
        self._scheduler = scheduler

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        if not predicate():
            self.wait(timeout)
        return predicate()

    def wait(self, timeout: float | None = None) -> bool:
        self._scheduler.pass_time(timeout)
        return False


class _Unset(threading.Event):
    """An event that nobody else can set: its waits are over at once, too."""

    def __init__(self, scheduler: QuietScheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._scheduler.pass_time(timeout)
        return self.is_set()


class QuietScheduler(Scheduler):
    """Spawns nothing: what runs in the background is the test's to call, so that a run is the same each time.

    A wait with a time-out is over at once, and by the clock too. `on_wait` is called first, and may change the world.
    """

    closes_forgotten = False

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SetClock()
        self.on_wait: Callable[[], None] = lambda: None

    def condition(self, lock: Lock | None = None) -> threading.Condition:
        return _Alone(lock, self)

    def event(self) -> Event:
        return _Unset(self)

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        return Task(None)

    def pass_time(self, seconds: float | None) -> None:
        """What a wait comes to."""
        if seconds is None:
            raise AssertionError("this waits for ever: nothing runs in the background that could end it")
        self.on_wait()
        self.clock.sleep(seconds)


class SetClock(Clock):
    """A clock that is set: each reading of the wall clock is `step_us` later than the one before."""

    def __init__(self, now_us: int = 1_700_000_000_000_000, step_us: int = 1000) -> None:
        self.time_us = now_us
        self.step_us = step_us
        self.seconds = 0.0

    def now_us(self) -> int:
        self.time_us += self.step_us
        return self.time_us

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class SeededRandomness(Randomness):
    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)

    def token(self, length: int) -> bytes:
        return self._random.randbytes(length)


def quiet_env(files: Files, *, clock: Clock | None = None, seed: int = 0) -> Env:
    """The environment of a run that is the same each time."""
    clock = clock or SetClock()
    return Env(files, clock, SeededRandomness(seed), QuietScheduler(clock))
