"""Outcomes of commits as futures, and the thread that runs their callbacks.

The thread that made a transaction durable resolves its outcome. Other commits wait for that thread, so it does not run
callbacks. A thread of the store's runs them all, one after the other, in the order in which the outcomes were resolved.
It is started for the first callback. A slow callback delays later callbacks and nothing else. A callback may commit,
wait for commits, and close the store.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from ..env import Env, Event, Task
from ..env.owned_lock import LOOK_S

logger = logging.getLogger("holdfast.store")


class Callbacks:
    """See the module's text. `scheduler`, `clock`: used here, and by threads that wait for outcomes."""

    def __init__(self, env: Env, *, close_s: float = 5.0) -> None:
        """`close_s`: how long `close` waits for pending callbacks, seconds. Those left still run after it."""
        self._close_s = close_s
        self.scheduler, self.clock = env.scheduler, env.clock
        self._changed = env.scheduler.condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._task: Task | None = None
        self._closing = False

    def add(self, call: Callable[[], object]) -> None:
        """Run `call` in the thread, after those that were added before."""
        with self._changed:
            self._waiting.append(call)
            self._changed.notify()
            if self._task is None:
                self._closing = False
                self._task = self.scheduler.spawn("holdfast-callbacks", self._run)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        self._task = None
                        return
                    self._changed.wait()
                call = self._waiting.popleft()
            try:
                call()
            except BaseException:  # one bad callback must not end the thread that all share
                logger.exception("a callback of a commit's outcome raised")
            del call  # free what it refers to now, not when the next callback comes

    def close(self) -> None:
        """Let the thread end when nothing is left to run, and wait for that, at most `close_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            task = self._task
        if task is not None and not task.runs_here() and not task.join(self._close_s):
            logger.warning("the store is closed while callbacks of its commits still run")


class Outcome(Future[int]):
    """The outcome of one commit: done, with the transaction's txid or an error, when it is acknowledged.

    An ordinary `concurrent.futures.Future`, except that its callbacks always run in the store's callback thread, even
    those added after it is done. It cannot be cancelled, because the transaction is already in the log.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        super().__init__()
        self._state = "RUNNING"  # so it cannot be cancelled; nobody else has it yet, so this needs no lock
        self._callbacks = callbacks
        self._ended: Event | None = None  # when somebody waits

    def done(self) -> bool:
        """Whether the commit has ended. Takes no lock: the state is set after the result, and only once."""
        return self._state == "FINISHED"

    def add_done_callback(self, fn: Callable[[Future[int]], Any]) -> None:
        """Call `fn` with this future when it is done, in the store's thread for callbacks."""
        super().add_done_callback(lambda done: self._callbacks.add(partial(fn, done)))

    def result(self, timeout: float | None = None) -> int:
        self._wait(timeout)
        return super().result(0) if self._result is None else self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        """Wait through the store's scheduler, which the base class would not use. Raises `TimeoutError`."""
        if self.done():
            return
        clock = self._callbacks.clock
        deadline = None if timeout is None else clock.monotonic() + timeout
        ended = self._ended
        if ended is None:
            ended = self._callbacks.scheduler.event()
            super().add_done_callback(lambda _: ended.set())  # in the thread that resolves it
            self._ended = ended
        while not self.done():  # check now and then: a signal may keep that thread from running the callback
            left = LOOK_S if deadline is None else min(LOOK_S, deadline - clock.monotonic())
            if left <= 0:
                raise TimeoutError
            ended.wait(left)
