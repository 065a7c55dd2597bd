"""Simulated threads and time: one thread runs at a time, until it waits, and a seed says who goes on.

Each stands on a thread of the system's, which is parked on a gate of its own until it is its turn. Who waits with a
time-out is woken by the clock, which moves only when nobody else can go on: an hour in which nothing happens takes no
time. A thread may lose its turn wherever it takes a lock, starts another, or wakes somebody. So a run can be told by
its seed, whatever the machine does meanwhile.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Any, TypeVar

from holdfast.engine.env import Clock, Condition, Event, Lock, Scheduler, Task

T = TypeVar("T")

EPOCH_US = 1_700_000_000_000_000


class _Runner:
    """A simulated thread.

    Attributes:
        gate: the real lock it is parked on.
        until: when its wait is over, in seconds; None: when it is woken.
        waits: it cannot go on.
        woken: its last wait ended because it was woken, not by the clock.
        ended: nothing of it is left to run.
        joining: who waits for its end.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.until: float | None = None
        self.waits = self.woken = self.ended = False
        self.joining: list[_Runner] = []


class Turns(Scheduler):
    """See the module's text. Whoever makes it is the first thread, and the main one.

    Attributes:
        clock: the time, by which they wait.
        seconds: what it says.
        now: who has the turn.
        story: who had it, one after the other.
        failed: what ended a thread that should not have raised.
    """

    closes_forgotten = False

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.seconds = 0.0
        self.clock = TurnsClock(self)
        self.now = self._main = _Runner(0, "main")
        self.story: list[str] = []
        self.failed: list[BaseException] = []
        self._runners = [self.now]
        self._stuck: list[str] = []
        self.here = lambda: self.now.number

    def is_main(self) -> bool:
        return self.now is self._main

    def lock(self) -> Lock:
        return TurnsLock(self)

    def condition(self, lock: Lock | None = None) -> Condition:
        return TurnsCondition(self, lock or TurnsLock(self))

    def event(self) -> Event:
        return TurnsEvent(self)

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        runner = _Runner(len(self._runners), name)
        self._runners.append(runner)

        def run() -> None:
            runner.gate.acquire()
            try:
                work()
            except BaseException as error:
                self.failed.append(error)
            runner.ended = True
            self.wake(runner.joining)
            self._next().gate.release()

        _thread.start_new_thread(run, ())
        self.maybe_others()
        return TurnsTask(self, runner)

    def running(self) -> list[str]:
        """Who has not ended, but for the main thread."""
        return [runner.name for runner in self._runners[1:] if not runner.ended]

    # --- turns -----------------------------------------------------------------------------------------------------

    def maybe_others(self) -> None:
        """Somebody else may go on, by the seed."""
        if self._random.random() < 0.3:
            self._turn()

    def park(self, queue: list[_Runner], seconds: float | None) -> bool:
        """Wait in `queue` until woken, or for so long; whether woken."""
        me = self.now
        me.waits, me.woken = True, False
        me.until = None if seconds is None else self.seconds + max(0.0, seconds)
        queue.append(me)
        self._turn()
        if me in queue:
            queue.remove(me)
        return me.woken

    def wake(self, queue: list[_Runner], count: int | None = None) -> None:
        for runner in queue[:count]:
            queue.remove(runner)
            runner.waits, runner.woken = False, True

    def _turn(self) -> None:
        me, other = self.now, self._next()
        if other is not me:
            other.gate.release()
            me.gate.acquire()
        if self._stuck:
            stuck, self._stuck = self._stuck, []
            raise AssertionError(f"all wait for ever: {stuck}")

    def _next(self) -> _Runner:
        """Who is to go on, and has the turn from now on."""
        ready = [runner for runner in self._runners if not runner.waits and not runner.ended]
        if not ready:
            timed = [runner for runner in self._runners if runner.until is not None and not runner.ended]
            if not timed:  # which the main thread is to hear
                self._stuck, self._main.waits, timed = self.running(), False, [self._main]
                self._main.until = self.seconds
            first = min(runner.until for runner in timed if runner.until is not None)
            self.seconds = max(self.seconds, first)
            ready = [runner for runner in timed if runner.until is not None and runner.until <= first]
            for runner in ready:
                runner.waits = False
        self.now = self._random.choice(ready)
        self.now.until = None
        self.story.append(f"{self.seconds:.3f} {self.now.name}")
        return self.now


class TurnsClock(Clock):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def now_us(self) -> int:
        return EPOCH_US + int(self._turns.seconds * 1e6)

    def monotonic(self) -> float:
        return self._turns.seconds

    def sleep(self, seconds: float) -> None:
        self._turns.park([], seconds)


class TurnsTask(Task):
    def __init__(self, turns: Turns, runner: _Runner) -> None:
        super().__init__(None)
        self._turns, self._runner = turns, runner

    def join(self, timeout: float | None = None) -> bool:
        if not self._runner.ended:
            self._turns.park(self._runner.joining, timeout)
        return self._runner.ended

    def runs_here(self) -> bool:
        return self._turns.now is self._runner


class TurnsLock:
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._taken = False
        self._queue: list[_Runner] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        turns = self._turns
        turns.maybe_others()
        until = turns.seconds + timeout
        while self._taken:
            if not blocking or (timeout >= 0 and turns.seconds >= until):
                return False
            turns.park(self._queue, until - turns.seconds if timeout >= 0 else None)
        self._taken = True
        return True

    def release(self) -> None:
        if not self._taken:
            raise RuntimeError("release unlocked lock")
        self._taken = False
        self._turns.wake(self._queue, 1)

    def locked(self) -> bool:
        return self._taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None, /) -> None:
        self.release()


class TurnsCondition(threading.Condition):
    def __init__(self, turns: Turns, lock: Lock) -> None:
        self._turns, self._guard = turns, lock
        self._queue: list[_Runner] = []
        self.acquire, self.release = lock.acquire, lock.release  # type: ignore[method-assign]  # as the base does

    def __enter__(self) -> bool:
        return self._guard.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._guard.release()

    def wait(self, timeout: float | None = None) -> bool:
        self._guard.release()
        woken = self._turns.park(self._queue, timeout)
        self._guard.acquire()
        return woken

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        until = None if timeout is None else self._turns.seconds + timeout
        while not (result := predicate()):
            left = None if until is None else until - self._turns.seconds
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        self._turns.wake(self._queue, n)

    def notify_all(self) -> None:
        self._turns.wake(self._queue)


class TurnsEvent(threading.Event):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._set = False
        self._queue: list[_Runner] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._turns.wake(self._queue)
        self._turns.maybe_others()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            self._turns.park(self._queue, timeout)
        return self._set
