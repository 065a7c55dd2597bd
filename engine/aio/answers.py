"""Answers from threads to the tasks of one event loop.

The thread that knows an answer appends it to a queue, and wakes the loop only if it is not awake for this queue
already. So the acknowledgements of a whole group cost one wake-up.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  the loop is the user's
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from ..errors import StoreClosed

T = TypeVar("T")


class Answers:
    """See the module's text. `loop`: the event loop."""

    __slots__ = ("_told", "_waking", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._told: deque[Answer[Any]] = deque()
        self._waking = False

    def tell(self, answer: Answer[Any]) -> None:
        """`answer` is known: wake its waiters. From any thread. If the loop is closed, nobody waits any more."""
        self._told.append(answer)
        if self._waking:
            return
        self._waking = True
        try:
            self.loop.call_soon_threadsafe(self._pass_on)
        except RuntimeError:
            self._told.clear()
        except BaseException:  # a signal's handler
            self._waking = False
            raise

    def _pass_on(self) -> None:
        """In the loop's thread. First `_waking` is cleared: whoever appends from here on wakes the loop again."""
        self._waking = False
        told = self._told
        while told:
            told.popleft().wake()


class Answer(Generic[T]):
    """What a thread will know: `await` it for the result, or for the error.

    It may be awaited any number of times, by any number of tasks of the loop. If one of them is cancelled, that changes
    nothing for the others, nor for what the thread does.

    `set_result` and `set_exception` are for the thread. They may be called again with the same, because a signal
    handler may have raised in the first call.
    """

    __slots__ = ("_answers", "_done", "_error", "_result", "_waiters")

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []  # changed in the loop's thread only

    def done(self) -> bool:
        """Whether the answer is known, so that awaiting it waits for nothing."""
        return self._done

    def set_result(self, result: T) -> None:
        self._result = result
        self._answers.tell(self)
        self._done = True

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._answers.tell(self)
        self._done = True

    def follow(self, future: Future[T]) -> Answer[T]:
        """Take the answer from `future`, once that is done. Returns this object."""
        future.add_done_callback(self._take)
        return self

    def _take(self, future: Future[T]) -> None:
        if future.cancelled():  # what has not begun is cancelled as the face ends
            self.set_exception(StoreClosed("the asyncio face of the store has ended"))
        elif (error := future.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(future.result())

    def wake(self) -> None:
        """In the loop's thread, once the answer is known."""
        self._done = True
        for waiter in self._waiters:
            if not waiter.done():  # else its task was cancelled
                waiter.set_result(None)
        self._waiters.clear()

    def __await__(self) -> Generator[Any, None, T]:
        if not self._done:
            waiter = self._answers.loop.create_future()
            self._waiters.append(waiter)
            yield from waiter
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it is set, unless there is an error
