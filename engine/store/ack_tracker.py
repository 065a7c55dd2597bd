"""Conditions on acknowledgement: asks the plugins that listen to *logged*, and watches their conditions.

A thread of its own asks every listener about each synced range, in order. A condition that is met moves the watermarks.
A condition that failed or timed out ends the wait of the commits in its range with `ConditionNotMet`. It then stays
open if it gates publication; otherwise the transactions count as acknowledged.

Open conditions are in a heap, ordered by deadline, and a failed condition is queued for the thread by its own future.
So the thread looks only at what is due, however many conditions are open.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any

from ..contract.plugin import Condition
from ..env import Env
from ..model.records import LogRange
from .group_commit import GroupCommit
from .hooks import Hooks

_LOOK_S = 60.0
"""Time-outs may be longer than a lock can wait, so look at least this often, seconds."""
_SPARE = 64
"""Met conditions are removed from the heap once it holds this many more than twice those still open."""


def _is_one(condition: object) -> bool:
    return (isinstance(condition, Condition) and isinstance(condition.met, Future)
            and isinstance(condition.timeout, int | float) and not math.isnan(condition.timeout))


@dataclass(slots=True)
class _Watched:
    first: int
    last: int
    listener: int
    condition: Condition


class AckTracker:
    """See the module's text. It stops when group commit is poisoned, or on `close`."""

    def __init__(self, group_commit: GroupCommit, hooks: Hooks, env: Env) -> None:
        self._group_commit = group_commit
        self._hooks = hooks
        self._clock = env.clock
        self._due: list[tuple[float, int, _Watched]] = []  # a heap; may still hold conditions that were met
        self._number = count()
        self._failed: deque[_Watched] = deque()
        self._interrupted: deque[_Watched] = deque()  # they are met, and perhaps nobody was told of it
        self._news = env.scheduler.event()
        self._closing = False
        try:
            self._task = env.scheduler.spawn("holdfast-ack", self._run)
        except BaseException:  # a signal handler may raise when the thread is already running
            self._end()
            raise

    def notice(self) -> None:
        """Something was synced: let the thread look. From any thread."""
        self._news.set()

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # without this, committing threads would wait for ever
            self._group_commit.fail(error)

    def _watch(self) -> None:
        group_commit = self._group_commit
        while not self._closing and group_commit.poison is None:
            self._news.wait(self._pause())
            self._news.clear()
            while self._interrupted:
                watched = self._interrupted.popleft()
                self._when_done(watched)(watched.condition.met)
            while True:
                with group_commit.mutex:
                    log = group_commit.watermarks.next_unanswered()
                if log is None:
                    break
                self._ask(log)
            self._give_up()

    def _pause(self) -> float | None:
        if not self._due:
            return None
        return min(_LOOK_S, max(0.0, self._due[0][0] - self._clock.monotonic()))

    def _ask(self, log: LogRange) -> None:
        now = self._clock.monotonic()
        answers = []
        for listener, hook in enumerate(self._hooks.logged):
            try:
                condition = hook(log)
                if condition is not None and not _is_one(condition):
                    raise TypeError(f"the hook returned {condition!r}, which is not a Condition")
            except BaseException as error:  # this thread must continue, whatever a plugin does
                failed: Future[Any] = Future()
                failed.set_exception(error)
                condition = Condition(met=failed, timeout=0.0, gates_publication=False, name=repr(hook))
            if condition is not None:
                answers.append(_Watched(log.first, log.last, listener, condition))
        with self._group_commit.mutex:
            self._group_commit.watermarks.answered(
                log.last, [(w.listener, w.condition.gates_publication) for w in answers])
            self._group_commit.heard(log)
        self._group_commit.advance()
        for watched in answers:
            heapq.heappush(self._due, (now + watched.condition.timeout, next(self._number), watched))
            watched.condition.met.add_done_callback(self._when_done(watched))

    def _when_done(self, watched: _Watched) -> Callable[[Future[Any]], None]:
        def done(met: Future[Any]) -> None:
            if not met.cancelled() and met.exception() is None:
                try:
                    with self._group_commit.mutex:
                        self._group_commit.watermarks.met(watched.listener, watched.last)
                    self._group_commit.advance()
                except BaseException:  # a signal's handler: the thread does it once more
                    self._interrupted.append(watched)
                    self._news.set()
                    raise
            else:
                self._failed.append(watched)
                self._news.set()

        return done

    def _give_up(self) -> None:
        """End the wait for conditions that failed or whose time is over."""
        while self._failed:
            watched = self._failed.popleft()
            met = watched.condition.met
            self._expire(watched, "was cancelled" if met.cancelled() else f"failed: {met.exception()}")
        now, due, watermarks = self._clock.monotonic(), self._due, self._group_commit.watermarks
        while due and due[0][0] <= now:
            watched = heapq.heappop(due)[2]
            if not watched.condition.met.done():
                self._expire(watched, f"was not met within {watched.condition.timeout} s")
            elif watermarks.is_open(watched.listener, watched.last):  # a signal kept it from being noticed
                self._when_done(watched)(watched.condition.met)
        if len(due) > 2 * watermarks.open_conditions() + _SPARE:
            due[:] = [entry for entry in due if watermarks.is_open(entry[2].listener, entry[2].last)]
            heapq.heapify(due)

    def _expire(self, watched: _Watched, why: str) -> None:
        group_commit = self._group_commit
        with group_commit.mutex:
            if not group_commit.watermarks.is_open(watched.listener, watched.last):
                return
        group_commit.give_up(watched.first, watched.last,
                             f"is durable here, but the condition of {watched.condition.name} {why}")
        with group_commit.mutex:
            group_commit.watermarks.expired(watched.listener, watched.last)
        group_commit.advance()

    def runs_here(self) -> bool:
        """Whether the caller runs on this object's thread."""
        return self._task.runs_here()

    def _end(self) -> None:
        self._closing = True
        self._news.set()

    def close(self) -> None:
        """Stop the thread, and wait for its end."""
        self._end()
        self._task.join()
