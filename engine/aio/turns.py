"""Whose turn it is to write: the queue of one event loop's writers, first come, first served.

Only the writer whose turn it is asks for the store's writer lock, which threads and other loops may hold. So at most
one writer of a loop waits in a thread for that lock, however many tasks want to write.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  the loop is the user's
import contextlib
import weakref
from collections import deque

from ..env.owned_lock import Hold
from ..errors import InvalidInput


class Turns:
    """See the module's text. In the loop's thread. A writer is known by its `Hold`, because a reference to the
    transaction itself would keep one alive that was forgotten."""

    __slots__ = ("_holder", "_loop", "_task", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._holder: Hold | None = None
        self._task: weakref.ref[asyncio.Task[object]] | None = None  # that of the holder
        self._waiting: deque[tuple[Hold, asyncio.Future[None]]] = deque()

    def refuse_here(self, what: str) -> None:
        """Raises `InvalidInput` if the running task has the turn, and would wait for itself."""
        if self._holder is not None and self._task is not None and self._task() is asyncio.current_task():
            raise InvalidInput("this task already has a transaction open", hint=f"end it before {what}")

    def try_take(self, hold: Hold) -> bool:
        """Take the turn if nobody has it; then nobody waits for it either."""
        if self._holder is not None:
            return False
        self._holder = hold
        task = asyncio.current_task()
        self._task = None if task is None else weakref.ref(task)
        return True

    async def take(self, hold: Hold) -> None:
        """Wait for the turn. Raises `InvalidInput`."""
        self.refuse_here("beginning another")
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((hold, turn))
        try:
            await turn
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                turn.cancel()
            self.give(hold)  # it may have been given just before
            raise
        task = asyncio.current_task()
        self._task = None if task is None else weakref.ref(task)

    def give(self, hold: Hold) -> None:
        """Pass on the turn, if `hold` has it. May be called again."""
        if self._holder is not hold:
            return
        self._holder = self._task = None
        while self._waiting:
            following, turn = self._waiting.popleft()
            if not turn.done():
                self._holder = following
                with contextlib.suppress(RuntimeError):  # the loop was closed while tasks were waiting
                    turn.set_result(None)
                return
