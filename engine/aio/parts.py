"""What the face of a store consists of: the loop's queue of writers, the threads, and the way back to the loop."""

from __future__ import annotations

import asyncio  # noqa: TID251  the loop is the user's
from concurrent.futures import Future
from typing import Any, TypeVar

from ..env.pool import Pool
from ..errors import InvalidInput, StoreClosed
from ..store.store import Store
from .answers import Answer, Answers
from .turns import Turns
from .watch import Watch

T = TypeVar("T")


class Parts:
    """See the module's text. Made in the loop. Each thread starts when it is first needed.

    Attributes:
        store, path: the store, and its way of writing.
        loop: the event loop. Only its tasks may use the face.
        turns, answers: whose turn it is to write; answers from threads.
        published, acknowledged: wait for these watermarks.
        writing: one thread, for what a writer waits for.
        scanning: one thread, for pieces of scans.
        slow: one thread, for bulk loads, checkpoints and the like.
    """

    def __init__(self, store: Store[Any, Any]) -> None:
        self.store = store
        self.path = store.write_path
        self.loop = asyncio.get_running_loop()
        self.turns = Turns(self.loop)
        self.answers = Answers(self.loop)
        group_commit, scheduler, path = store.group_commit, store.env.scheduler, store.write_path
        watermarks = group_commit.watermarks

        def ended() -> bool:
            return path.usability.ended is not None or group_commit.poison is not None

        self.published = Watch("holdfast-aio-published", lambda: group_commit.shown, ended, group_commit, store.env)
        self.acknowledged = Watch("holdfast-aio-acknowledged", lambda: watermarks.acknowledged.txid, ended,
                                  group_commit, store.env)
        self.writing = Pool("holdfast-aio-writing", 1, scheduler)
        self.scanning = Pool("holdfast-aio-scanning", 1, scheduler)
        self.slow = Pool("holdfast-aio-slow", 1, scheduler)
        self._ended = False

    def check(self) -> None:
        """Raises `StoreClosed` if the face has ended, and `InvalidInput` in any other loop."""
        if self._ended:
            raise self.closed()
        if asyncio.get_running_loop() is not self.loop:
            raise InvalidInput("this face of the store belongs to another event loop",
                               hint="make one for each loop: async with aio.AsyncStore(store)")

    def closed(self) -> StoreClosed:
        return StoreClosed(f"the asyncio face of {self.store.directory} has ended",
                           hint="use it inside its `async with` block")

    def answer(self, work: Future[T]) -> Answer[T]:
        """The result of `work`, for the loop."""
        made: Answer[T] = Answer(self.answers)
        return made.follow(work)

    def tell_read(self, seen: int, end: Answer[int | None]) -> None:
        """Tell the end of a transaction that changed nothing and may have read transaction `seen`. It ends once that is
        published, so that what it read cannot vanish. From any thread."""
        def reached(published: Future[bool]) -> None:
            if published.result():
                end.set_result(None)
            else:
                end.set_exception(self.path.unpublished(seen))

        if self.store.group_commit.shown >= seen:
            end.set_result(None)
        else:
            self.published.reached(seen, self.store.settings.wait_s).add_done_callback(reached)

    def end(self) -> None:
        """End the threads once they have done what they have begun. May be called again, from any thread."""
        self._ended = True
        for pool in (self.writing, self.scanning, self.slow):
            pool.close()
