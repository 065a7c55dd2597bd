"""Locks that know who has them, such as the writer lock: nobody is ever left holding one.

A signal's handler may raise after any call and at the start of any function: between a lock's acquisition and the first
statement that could know of it, too. So who has an owned lock stands in the lock itself. It is taken by one call in C
that enters the holder if there is none (`dict.setdefault`), and whatever became of that call, whoever made it can look
(`held_by`). Giving it back names the holder, and does nothing for anybody else. So a block may end with `release`
however it came to its end. Since that may be interrupted as it starts, it is said twice, the second time in a `finally`
or by whoever comes by next.

Who waits sleeps on a plain lock that stands for "it may be free". It is opened by each release; a waiter that takes it
and dies costs the others `LOOK_S`, after which they look again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from . import Env

T = TypeVar("T")

LOOK_S = 0.5
"""Who waits for such a lock looks this often, in seconds, whether waiting is still of use."""


class Hold:
    """Somebody who has an owned lock or asks for it. It is made before it asks.

    `thread`: which thread that is; None: none, since what is done under the lock is done in the background.
    """

    __slots__ = ("thread",)

    def __init__(self, thread: int | None) -> None:
        self.thread = thread


class OwnedLock:
    """See the module's text. `here`: gives the number of the running thread, as holds have it."""

    __slots__ = ("_baton", "_clock", "_holders", "here")

    def __init__(self, env: Env) -> None:
        self._clock = env.clock
        self.here = env.scheduler.here
        self._holders: dict[int, Hold] = {}  # under the key 0, if there is one
        self._baton = env.scheduler.lock()
        self._baton.acquire()

    @property
    def holder(self) -> Hold | None:
        return self._holders.get(0)

    def held_by(self, hold: Hold) -> bool:
        return self._holders.get(0) is hold

    def held_here(self) -> bool:
        """Whether it is this thread's."""
        holder = self._holders.get(0)
        return holder is not None and holder.thread == self.here()

    def try_take(self, hold: Hold) -> bool:
        """Take it if it is free; whether `hold` has it."""
        return self._holders.setdefault(0, hold) is hold

    def take(self, hold: Hold, seconds: float = LOOK_S) -> bool:
        """Take it, waiting so long if need be; whether `hold` has it."""
        deadline: float | None = None
        while self._holders.setdefault(0, hold) is not hold:
            now = self._clock.monotonic()
            if deadline is None:
                deadline = now + seconds
            elif now >= deadline:
                return False
            self._baton.acquire(timeout=min(LOOK_S, deadline - now))
        return True

    def pass_on(self, hold: Hold, to: Hold) -> None:
        """`hold`, who has it, gives it to another without a moment in which it is free."""
        assert self.held_by(hold)
        self._holders[0] = to

    def release(self, hold: Hold) -> None:
        """Give it back, if `hold` has it. Any thread may."""
        if self._holders.get(0) is hold:
            del self._holders[0]
            if self._baton.locked():
                with contextlib.suppress(RuntimeError):  # another release was faster
                    self._baton.release()

    def run(self, work: Callable[[], T], still: Callable[[], object]) -> T:
        """Take the lock, do `work`, and give it back. While it has to wait, it calls `still` every `LOOK_S` seconds,
        which raises if waiting is of no use any more."""
        hold = Hold(self.here())
        try:
            while not self.take(hold):
                still()
            return work()
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                self.release(hold)
            finally:
                self.release(hold)
