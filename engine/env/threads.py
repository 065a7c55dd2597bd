"""Threads, and the objects they wait on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import Condition as Condition
from threading import Event as Event
from types import TracebackType
from typing import Protocol, cast

LONGEST_WAIT_S = threading.TIMEOUT_MAX
"""The longest time that a thread can wait, seconds."""


class Lock(Protocol):
    """A plain lock, as from `threading.Lock`: not re-entrant, and any thread may release it."""

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
        """`thread`: the thread that runs the task; None if it has ended."""
        self._thread = thread

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it ends, at most `timeout` seconds. Whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def runs_here(self) -> bool:
        """Whether the calling thread runs this task."""
        return self._thread is threading.current_thread()


class Scheduler:
    """Makes threads, and the objects they wait on. These are the interpreter's own, so going through here costs
    nothing. A simulation provides others with the same methods.

    Attributes:
        closes_forgotten: whether a store that nothing refers to any more is closed. False in a simulation, where
            dropping a store means that its process was killed.
        here: returns the number of the running thread, unique among the threads that are running.
    """

    closes_forgotten = True
    here: Callable[[], int] = staticmethod(threading.get_ident)

    def is_main(self) -> bool:
        """Whether this is the main thread, which runs signal handlers."""
        return threading.current_thread() is threading.main_thread()

    def lock(self) -> Lock:
        return threading.Lock()

    def condition(self, lock: Lock | None = None) -> Condition:
        """A condition on `lock`, or on a lock of its own."""
        return Condition(cast("threading.Lock | None", lock))

    def event(self) -> Event:
        return Event()

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        """Run `work` in a new thread. Its owner must make it end on close; it does not keep the process alive."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return Task(thread)
