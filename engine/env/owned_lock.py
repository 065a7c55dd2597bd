"""Locks that know who has them, such as the writer lock: nobody is ever left holding one.

A signal's handler may raise after any call and at the start of any function: between a lock's acquisition and the first
statement that could know of it, too. So who has an owned lock stands in the lock itself. It is taken by one call in C
that enters the holder if there is none (`dict.setdefault`), and whatever became of that call, whoever made it can look
(`Hold.held`). A release names the holder, and does nothing for anybody else, so a block may end with it however it came
to its end. The release itself may be interrupted as it starts. So the outermost function that holds a lock is called
through `Hold.ending` or `OwnedLock.run`, which release a second time. What runs inside releases once, to be early.

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

    def held_here(self) -> bool:
        """Whether it is this thread's."""
        holder = self._holders.get(0)
        return holder is not None and holder.thread == self.here()

    def release_here(self) -> None:
        """Release it if it is this thread's, whichever hold has it."""
        holder = self.holder
        if holder is not None and holder.thread == self.here():
            holder.release()

    def run(self, work: Callable[[], T], still: Callable[[], object]) -> T:
        """Take the lock, do `work`, and release it. While it has to wait, it calls `still` every `LOOK_S` seconds,
        which raises if waiting is of no use any more."""
        hold = Hold(self)

        def locked() -> T:
            while not hold.take():
                still()
            return work()

        return hold.ending(locked)


class Hold:
    """Somebody who has an owned lock or asks for it. It is made before it asks.

    `thread`: which thread that is; None: none, since what is done under the lock is done in the background.
    """

    __slots__ = ("_lock", "thread")

    def __init__(self, lock: OwnedLock) -> None:
        self._lock = lock
        self.thread: int | None = None

    @property
    def held(self) -> bool:
        """Whether this is who has the lock."""
        return self._lock._holders.get(0) is self

    def try_take(self) -> bool:
        """Take the lock for the running thread if it is free; whether this has it."""
        lock = self._lock
        self.thread = lock.here()
        return lock._holders.setdefault(0, self) is self

    def take(self, seconds: float = LOOK_S) -> bool:
        """Take it for the running thread, waiting so long if need be; whether this has it."""
        lock, deadline = self._lock, None
        self.thread = lock.here()
        while lock._holders.setdefault(0, self) is not self:
            now = lock._clock.monotonic()
            if deadline is None:
                deadline = now + seconds
            elif now >= deadline:
                return False
            lock._baton.acquire(timeout=min(LOOK_S, deadline - now))
        return True

    def pass_on(self, to: Hold) -> None:
        """This, which has it, gives it to another without a moment in which it is free."""
        assert self.held
        self._lock._holders[0] = to

    def release(self) -> None:
        """Release it, if this has it. Any thread may."""
        lock = self._lock
        if lock._holders.get(0) is self:
            del lock._holders[0]
            if lock._baton.locked():
                with contextlib.suppress(RuntimeError):  # another release was faster
                    lock._baton.release()

    def ending(self, work: Callable[[], T]) -> T:
        """Do `work`, and release the lock, if this has it by then."""
        try:
            return work()
        finally:
            try:  # twice, since a signal's handler may raise as the first one starts
                self.release()
            finally:
                self.release()
