"""Locks that know their holder, such as the writer lock. A signal cannot leave one held for ever.

Signal safety: a signal handler may raise after any call and at the start of any function, so also between acquiring a
lock and the first statement after that. So the lock itself records its holder. One C call, `dict.setdefault`, both
takes the lock and records the `Hold`; if a handler raises next, `Hold.held` tells whether that took effect. `release`
does nothing unless this hold has the lock, so every block may end with it, however the block ends. `release` itself may
be interrupted as it starts. So the outermost function that holds a lock is called through `Hold.ending` or
`OwnedLock.run`, which release twice. Code inside releases once, in order to release early.

Waiters sleep on a plain lock, the baton, which means "the lock may be free". Each release opens it. If a waiter takes
the baton and dies, the others look again after `LOOK_S`.

Whoever runs takes a free lock before one who must wake up first. That is fast, and starves those who wait if holders
come back at once. So if one has waited for `_PATIENT_S`, those who come just after the next release give way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from . import Env

T = TypeVar("T")

LOOK_S = 0.5
"""How often a waiter checks whether waiting still makes sense, seconds."""
_PATIENT_S = 0.02
_MOMENT_S, _STEP_ASIDE_S = 0.01, 0.0005
"""How long those who come later give way, and for how long each of them."""


class OwnedLock:
    """See the module's text. `here`: returns the number of the running thread, as in `Hold.thread`."""

    __slots__ = ("_baton", "_clock", "_giving_way_until", "_holders", "_impatient", "here")

    def __init__(self, env: Env) -> None:
        self._clock = env.clock
        self.here = env.scheduler.here
        self._holders: dict[int, Hold] = {}  # the holder, if there is one, under the key 0
        self._baton = env.scheduler.lock()
        self._baton.acquire()
        self._impatient = False  # somebody has waited for long, and the next release is to say so
        self._giving_way_until = 0.0

    @property
    def holder(self) -> Hold | None:
        return self._holders.get(0)

    @property
    def gives_way(self) -> bool:
        """Whether somebody has waited for so long that whoever comes now should let others be first."""
        if self._giving_way_until and self._clock.monotonic() >= self._giving_way_until:
            self._giving_way_until = 0.0
        return self._giving_way_until > 0

    def held_here(self) -> bool:
        """Whether this thread holds the lock."""
        holder = self._holders.get(0)
        return holder is not None and holder.thread == self.here()

    def release_here(self) -> None:
        """Release the lock if this thread holds it, through whichever hold."""
        holder = self.holder
        if holder is not None and holder.thread == self.here():
            holder.release()

    def run(self, work: Callable[[], T], still: Callable[[], object]) -> T:
        """Take the lock, do `work`, and release it. While waiting, call `still` every `LOOK_S` seconds; it raises if
        waiting no longer makes sense."""
        hold = Hold(self)

        def locked() -> T:
            while not hold.take():
                still()
            return work()

        return hold.ending(locked)


class Hold:
    """One holder of an owned lock, or one waiter for it. Make it before you take the lock.

    `thread`: the thread that holds it; None if the lock is held for background work.
    """

    __slots__ = ("_lock", "thread")

    def __init__(self, lock: OwnedLock) -> None:
        self._lock = lock
        self.thread: int | None = None

    @property
    def held(self) -> bool:
        """Whether this hold has the lock."""
        return self._lock._holders.get(0) is self

    def try_take(self) -> bool:
        """Take the lock for the running thread if it is free, and nobody has waited for long. Whether this hold now has
        it."""
        lock = self._lock
        self.thread = lock.here()
        if lock._giving_way_until and lock.gives_way:
            return False
        return lock._holders.setdefault(0, self) is self

    def take(self, seconds: float = LOOK_S) -> bool:
        """Take the lock for the running thread, waiting at most `seconds`. Whether this hold now has it."""
        lock, deadline, began = self._lock, None, 0.0
        self.thread = lock.here()
        if seconds and lock.gives_way:
            lock._clock.sleep(_STEP_ASIDE_S)
        while lock._holders.setdefault(0, self) is not self:
            now = lock._clock.monotonic()
            if deadline is None:
                began, deadline = now, now + seconds
            elif now >= deadline:
                return False
            elif now - began >= _PATIENT_S:
                lock._impatient = True
            lock._baton.acquire(timeout=min(LOOK_S, deadline - now))
        return True

    def pass_on(self, to: Hold) -> None:
        """Give the lock to another hold. It is never free in between. This hold must have it."""
        assert self.held
        self._lock._holders[0] = to

    def release(self) -> None:
        """Release the lock if this hold has it. From any thread."""
        lock = self._lock
        if lock._holders.get(0) is self:
            if lock._impatient:
                lock._giving_way_until = lock._clock.monotonic() + _MOMENT_S
                lock._impatient = False
            del lock._holders[0]
            if lock._baton.locked():
                with contextlib.suppress(RuntimeError):  # another release was faster
                    lock._baton.release()

    def ending(self, work: Callable[[], T]) -> T:
        """Do `work`, then release the lock if this hold has it."""
        try:
            return work()
        finally:
            try:  # twice, because a signal handler may raise at the start of the first
                self.release()
            finally:
                self.release()
