"""A bounded pool of threads for work that may block. Each thread is started when it is first needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import StoreClosed
from . import Scheduler

T = TypeVar("T")


class Pool:
    """At most `threads` threads. They do what is submitted, in order of submission."""

    def __init__(self, name: str, threads: int, scheduler: Scheduler) -> None:
        self._name = name
        self._threads = threads
        self._scheduler = scheduler
        self._guard = scheduler.condition()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = 0
        self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done by one of the threads. The future's callbacks run on that thread too.

        Raises:
            StoreClosed: the pool is closed.
            RuntimeError: no thread is running and none can be started.
        """
        future: Future[T] = Future()
        with self._guard:
            if self._closed:
                raise StoreClosed("the service has stopped")
            self._waiting.append((future, work))
            if len(self._waiting) > self._idle and self._running < self._threads:
                self._running += 1
                try:
                    self._scheduler.spawn(f"{self._name}-{self._running}", self._work)
                except BaseException:
                    self._running -= 1
                    if not self._running:
                        self._waiting.remove((future, work))
                        raise
            self._guard.notify()
        return future

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            future, work = taken
            if future.set_running_or_notify_cancel():
                try:
                    made = work()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(made)
                    del made
            del taken, future, work  # free them now, not when the next one comes

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._guard:
            self._idle += 1
            self._guard.wait_for(lambda: self._waiting or self._closed)
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._running -= 1
            return None

    def close(self) -> None:
        """Cancel what has not begun. Does not wait for what is running."""
        with self._guard:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            self._guard.notify_all()
        for future, _ in waiting:
            future.cancel()
