"""Conditions on acknowledgement: asks the plugins that listen to *logged*, and watches what they answer.

One thread asks every listener about each synced range, in order, never on the thread that syncs. A condition that is
met moves the stages. One whose time is over, or that failed, ends the wait of the commits in its range with
`ConditionNotMet`; if it gates publication it stays open, otherwise the transactions count as acknowledged.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .committer import Committer
from .plugins import Condition, Hooks, LogRange
from .seams import Seams

_LOOK_S = 60.0
"""Time-outs may be longer than a lock can wait: look this often, in seconds."""


def _is_one(condition: object) -> bool:
    return (isinstance(condition, Condition) and isinstance(condition.met, Future)
            and isinstance(condition.timeout, int | float) and not math.isnan(condition.timeout))


@dataclass(slots=True)
class _Watched:
    log: LogRange
    listener: int
    condition: Condition
    deadline: float


class Acknowledger:
    """See the module's text. It stops when the committer is poisoned, or on `close`."""

    def __init__(self, committer: Committer, hooks: Hooks, seams: Seams) -> None:
        self._committer = committer
        self._hooks = hooks
        self._clock = seams.clock
        self._watched: list[_Watched] = []
        self._news = threading.Event()
        self._closing = False
        self._task = seams.scheduler.spawn("holdfast-ack", self._run)

    def notice(self) -> None:
        """Something was synced."""
        self._news.set()

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # nobody else would end the wait of those who commit
            self._committer.fail(error)

    def _watch(self) -> None:
        committer = self._committer
        while not self._closing and committer.poison is None:
            self._news.wait(self._pause())
            self._news.clear()
            while True:
                with committer.mutex:
                    log = committer.stages.next_unanswered()
                if log is None:
                    break
                self._ask(log)
            self._give_up()

    def _pause(self) -> float | None:
        if not self._watched:
            return None
        return min(_LOOK_S, max(0.0, min(w.deadline for w in self._watched) - self._clock.monotonic()))

    def _ask(self, log: LogRange) -> None:
        now = self._clock.monotonic()
        answers = []
        for listener, hook in enumerate(self._hooks.logged):
            try:
                condition = hook(log)
                if condition is not None and not _is_one(condition):
                    raise TypeError(f"the hook returned {condition!r}, which is no Condition")
            except BaseException as error:  # this thread must go on, whatever a plugin does
                failed: Future[Any] = Future()
                failed.set_exception(error)
                condition = Condition(met=failed, timeout=0.0, gates_publication=False, name=repr(hook))
            if condition is not None:
                answers.append(_Watched(log, listener, condition, now + condition.timeout))
        with self._committer.mutex:
            self._committer.stages.answered(log, [(w.listener, w.condition.gates_publication) for w in answers])
        self._committer.settle()
        self._watched += answers
        for watched in answers:
            watched.condition.met.add_done_callback(self._when_done(watched))

    def _when_done(self, watched: _Watched) -> Callable[[Future[Any]], None]:
        def done(met: Future[Any]) -> None:
            if not met.cancelled() and met.exception() is None:
                with self._committer.mutex:
                    self._committer.stages.met(watched.listener, watched.log.last)
                self._committer.settle()
            self._news.set()

        return done

    def _give_up(self) -> None:
        """End the wait for conditions that failed or whose time is over."""
        now = self._clock.monotonic()
        committer = self._committer
        still = []
        for watched in self._watched:
            condition = watched.condition
            with committer.mutex:
                is_open = committer.stages.is_open(watched.listener, watched.log)
            if not is_open:
                continue
            if not condition.met.done() and now < watched.deadline:
                still.append(watched)
                continue
            if condition.met.cancelled():
                why = "was cancelled"
            elif condition.met.done():
                why = f"failed: {condition.met.exception()}"
            else:
                why = f"was not met within {condition.timeout} s"
            committer.give_up(watched.log.first, watched.log.last,
                              f"is durable here, but the condition of {condition.name} {why}")
            with committer.mutex:
                committer.stages.expired(watched.listener, watched.log)
            committer.settle()
        self._watched = still

    def runs_here(self) -> bool:
        """Whether this thread is its own."""
        return self._task.runs_here()

    def close(self) -> None:
        self._closing = True
        self._news.set()
        self._task.join()
