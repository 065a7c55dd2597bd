"""A transaction of an asyncio program.

A task may be cancelled at every `await`, and what it waited for in a thread happens all the same. So each wait says
what becomes of it then: a transaction that a thread begins is rolled back by that thread, and one that a thread logs
ends there, and its `Answer` says how.

Signal safety is that of `store/write_path.py`: the writer lock is released however the block ends, and by the
destructor if a signal handler raised before the end had begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..contract.engine import TxT
from ..contract.transaction import Durability
from ..env.owned_lock import Hold
from ..errors import InvalidInput, RolledBack
from ..store.commit_queue import CommitTicket
from .answers import Answer
from .parts import Parts

T = TypeVar("T")


class AsyncTransaction(Generic[TxT]):
    """What `AsyncStore.transaction` returns: an async context manager that yields the engine's transaction, commits it
    at the end of the block, and rolls it back if the block raises or is cancelled.

    After the block, however it ended, the transaction's `outcome` is an `Answer`. After a `relaxed` commit it is None.
    """

    __slots__ = ("_away", "_durability", "_hold", "_open", "_parts", "_tx")

    def __init__(self, parts: Parts, durability: Durability) -> None:
        self._parts = parts
        self._durability = durability
        self._tx: TxT | None = None
        self._open = False
        self._away: dict[int, bool] | None = None  # see `_in_thread`
        self._hold: Hold | None = Hold(parts.path.lock)

    async def __aenter__(self) -> TxT:
        parts, hold = self._parts, self._hold
        parts.check()
        if hold is None or self._open:
            raise InvalidInput("this block has begun already", hint="ask for each with store.transaction()")
        self._open = True
        try:
            if not parts.turns.try_take(hold):
                await parts.turns.take(hold)
            if parts.path.admits(hold):
                tx: TxT = parts.path.begin(hold, admitted=True)
            else:
                tx = await self._begin_in_thread(hold)
            self._tx = tx
        except BaseException:
            self._leave(hold)
            raise
        return tx

    async def _begin_in_thread(self, hold: Hold) -> TxT:
        """If this is interrupted, the thread may get the writer lock later. It then releases it at once."""
        parts = self._parts
        job: Future[TxT] = self._in_thread(partial(parts.path.begin, hold))
        try:
            tx = await parts.answer(job)
        except BaseException:
            job.cancel()
            job.add_done_callback(partial(_take_back, parts, hold))
            raise
        hold.thread = parts.path.lock.here()
        self._away = None
        return tx

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        tx, parts, hold = self._tx, self._parts, self._hold
        assert tx is not None
        assert hold is not None
        end: Answer[int | None] = Answer(parts.answers)
        tx.outcome = end
        try:
            if kind is not None:
                parts.path.roll_back(tx, hold)
                end.set_exception(RolledBack("the block of the transaction raised, or was cancelled"))
                return
            try:
                payload = parts.path.payload_at_once(tx)
            except BaseException:
                parts.path.roll_back(tx, hold)
                raise
            if payload is None:
                logged = await self._log_in_thread(tx, hold, end)
            else:
                logged = parts.path.commit(tx, hold, payload)
                self._tell(logged, end)
        except Exception as failure:
            end.set_exception(failure)
            raise
        finally:
            self._leave(hold)
        if self._durability == "synced" or isinstance(logged, int):
            await end
        elif self._durability == "relaxed":
            tx.outcome = None

    async def _log_in_thread(self, tx: TxT, hold: Hold, end: Answer[int | None]) -> CommitTicket | int:
        """If this is interrupted, the thread logs the transaction all the same, unless it has not begun to."""
        parts = self._parts

        def log() -> CommitTicket | int:
            try:
                logged = hold.ending(lambda: parts.path.commit(tx, hold))
            except BaseException as error:
                end.set_exception(error)
                raise
            self._tell(logged, end)
            return logged

        try:
            job = self._in_thread(log)
        except Exception as error:  # no more threads, for instance
            parts.path.roll_back(tx, hold)
            raise RolledBack(f"the transaction could not be logged: {error}") from error
        try:
            return await parts.answer(job)
        except BaseException:
            if job.cancel() or self._is_ours():  # it has not begun, and never will
                self._away = None
                parts.path.roll_back(tx, hold)
                end.set_exception(RolledBack("the task was cancelled before its transaction was logged"))
            raise

    def _tell(self, logged: CommitTicket | int, end: Answer[int | None]) -> None:
        """Tell `end` once the transaction has ended. From any thread."""
        if isinstance(logged, int):
            self._parts.tell_read(logged, end)
        elif self._durability == "relaxed":
            logged.drop()
            if self._away is not None:  # the task may be cancelled, and then asks
                end.set_result(logged.txid)
        else:
            logged.tell(end)

    def _in_thread(self, work: Callable[[], T]) -> Future[T]:
        """Have `work` done by a thread, which has the hold from the moment at which it begins. A signal handler may
        raise before anybody knows whether the work is queued. So whoever is first at the key 0 of `_away` has the
        hold: the thread (True), or the end of the block (False), and then the work is not begun."""
        away = self._away = {}

        def begun() -> T:
            if not away.setdefault(0, True):
                raise RolledBack("the block of the transaction was interrupted")
            return work()

        return self._parts.writing.submit(begun)

    def _is_ours(self) -> bool:
        """Whether the end of the block has the hold, and not a thread. See `_in_thread`."""
        return self._away is None or not self._away.setdefault(0, False)

    def _leave(self, hold: Hold) -> None:
        """Release what this block still holds, and pass on the turn. From the loop's thread. May be called again."""
        self._release(hold)
        self._parts.turns.give(hold)
        self._hold = None

    def _release(self, hold: Hold) -> None:
        """Unless a thread has the hold, release it. If a signal handler raised before the transaction had ended, it is
        rolled back."""
        if self._is_ours() and hold.held:
            try:
                if self._tx is not None and self._tx._kit_state is None:
                    self._parts.path.roll_back(self._tx, hold)
            finally:
                hold.release()

    def __del__(self) -> None:
        """The block may not have ended: a signal handler raised as its end began, or the loop is gone."""
        if getattr(self, "_open", False) and (hold := self._hold) is not None:
            self._release(hold)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._parts.loop.call_soon_threadsafe(self._parts.turns.give, hold)


def _take_back(parts: Parts, hold: Hold, job: Future[Any]) -> None:
    """Nobody waits any more for the transaction that `job` has begun: roll it back. From any thread."""
    if not job.cancelled() and job.exception() is None:
        parts.path.roll_back(job.result(), hold)
