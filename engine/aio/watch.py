"""Waits of tasks for a watermark: one thread waits for all of them.

The thread starts with the first wait, and ends when nobody waits any more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count

from ..env import Env
from ..env.owned_lock import LOOK_S
from ..store.group_commit import GroupCommit


class Watch:
    """See the module's text."""

    def __init__(self, name: str, mark: Callable[[], int], ended: Callable[[], bool], group_commit: GroupCommit,
                 env: Env) -> None:
        """
        Args:
            name: of the thread.
            mark: the last transaction that the watermark has reached. It only grows.
            ended: whether the store is closed or poisoned, so that the watermark may never move again.
            group_commit, env: of the store.
        """
        self._name = name
        self._mark = mark
        self._ended = ended
        self._group_commit = group_commit
        self._env = env
        self._number = count()
        self._guard = env.scheduler.lock()  # guards the three below
        self._waiting: list[tuple[int, int, float | None, Future[bool]]] = []  # a heap, by transaction
        self._running = False
        self._changed = False

    def reached(self, txid: int, seconds: float | None) -> Future[bool]:
        """A future, done when the watermark has reached `txid` (True), or when `seconds` are over or it may never get
        there (False). Cancel it if nobody waits any more. From any thread."""
        reached: Future[bool] = Future()
        deadline = None if seconds is None else self._env.clock.monotonic() + seconds
        with self._guard:
            heapq.heappush(self._waiting, (txid, next(self._number), deadline, reached))
            self._changed = True
            if not self._running:
                self._env.scheduler.spawn(self._name, self._run)
                self._running = True
        group_commit = self._group_commit
        group_commit.sync_within(0.0)
        with group_commit.mutex:
            group_commit.moved.notify_all()
        return reached

    def _run(self) -> None:
        while (first := self._look()) is not None:
            self._group_commit.wait_until(lambda: self._changed or self._mark() >= first, LOOK_S)

    def _look(self) -> int | None:
        """Answer whom there is something to tell, and return the first transaction that is still waited for."""
        answers: list[tuple[Future[bool], bool]] = []
        ended, now = self._ended(), self._env.clock.monotonic()
        with self._guard:
            self._changed = False
            mark = self._mark()
            while self._waiting and self._waiting[0][0] <= mark:
                answers.append((heapq.heappop(self._waiting)[3], True))
            kept = []
            for entry in self._waiting:
                _, _, deadline, reached = entry
                if ended or (deadline is not None and now >= deadline):
                    answers.append((reached, False))
                elif not reached.cancelled():
                    kept.append(entry)
            if len(kept) < len(self._waiting):
                self._waiting = kept
                heapq.heapify(kept)
            first = self._waiting[0][0] if self._waiting else None
            self._running = first is not None
        for reached, answer in answers:
            if reached.set_running_or_notify_cancel():
                reached.set_result(answer)
        return first
