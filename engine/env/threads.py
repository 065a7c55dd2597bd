"""Threads, and what they wait on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import Condition as Condition
from threading import Event as Event
from types import TracebackType
from typing import Protocol, cast

LONGEST_WAIT_S = threading.TIMEOUT_MAX
"""So long, in seconds, a thread can wait at most."""


class Lock(Protocol):
    """A plain lock, as `threading.Lock` makes it: not re-entrant, may be released by another thread than took it."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def locked(self) -> bool: ...

    def __enter__(self) -> bool: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None, /) -> None: ...


class Task:
    """A running background task."""

    __slots__ = ("_thread",)

    def __init__(self, thread: threading.Thread | None) -> None:
        """`thread`: what runs it; None: it has ended."""
        self._thread = thread

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end; whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def runs_here(self) -> bool:
        """Whether this very thread runs it."""
        return self._thread is threading.current_thread()


class Scheduler:
    """Threads and the things they wait on. They are the interpreter's own, so that what passes here costs nothing more;
    a simulation gives others of the same methods.

    Attributes:
        closes_forgotten: whether a store that nobody has any more is closed. In a simulated process, whoever drops a
            store has killed it.
        here: which thread this is: a number that no other thread has that runs now.
    """

    closes_forgotten = True
    here: Callable[[], int] = staticmethod(threading.get_ident)

    def is_main(self) -> bool:
        """Whether this is the thread that signals' handlers run in."""
        return threading.current_thread() is threading.main_thread()

    def lock(self) -> Lock:
        return threading.Lock()

    def condition(self, lock: Lock | None = None) -> Condition:
        """One with `lock`, or with a lock of its own."""
        return Condition(cast("threading.Lock | None", lock))

    def event(self) -> Event:
        return Event()

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        """Run `work` beside the caller. It must end when its owner closes; it does not keep the process alive."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return Task(thread)
