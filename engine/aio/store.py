"""The store as an asyncio program sees it."""

from __future__ import annotations

import asyncio  # noqa: TID251  the loop is the user's
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ..contract.engine import Engine, TxT, ViewT
from ..contract.plugin import Plugin
from ..contract.transaction import Durability
from ..env import REAL, Clock
from ..env.pool import Pool
from ..env.shown import shown
from ..errors import ConditionNotMet, InvalidInput
from ..model.positions import Position
from ..store.settings import Settings
from ..store.store import Store
from .answers import Answer, Answers
from .parts import Parts
from .transaction import AsyncTransaction

T = TypeVar("T")

_PIECE = 1000
"""The most values that a scan fetches at once."""
_PIECE_S = 0.005
"""After this long, a scan hands over what it has fetched, seconds."""


class AsyncStore(Generic[TxT, ViewT]):
    """The face of an open store for the tasks of one event loop. An async context manager.

    Its end does not close the store; that of `aio.open` does. A store may have several: one for each loop. Threads may
    use the store itself at the same time.

    Attributes:
        store: the store. Its calls that wait for nothing may be made in the loop: `positions()`, `status()`, `history`.
    """

    def __init__(self, store: Store[TxT, ViewT]) -> None:
        """Call it in the loop. `store`: open, for writing or read-only."""
        self.store = store
        self._parts = Parts(store)

    # --- writing ---------------------------------------------------------------------------------------------------

    def transaction(self, durability: Durability | None = None) -> AsyncTransaction[TxT]:
        """A write transaction: `async with store.transaction() as tx: …`. Its calls are those of the engine's
        transaction, and wait for nothing.

        The block may await. Every other writer waits meanwhile, in this loop or in threads, so let it be short.

        If the task is cancelled in the block, or before it, the transaction is rolled back. If it is cancelled while
        it waits for its commit, `CancelledError` is raised at once. The transaction is no longer stopped by that, and
        `await tx.outcome` says how it ended.

        Args:
            durability: as `Store.transaction`. After a `pipelined` commit, `await tx.outcome` waits for its
                acknowledgement.

        Raises, at the end of the block:
            RolledBack, ConditionNotMet, OutcomeUnknown: as `Store.transaction`.
        """
        if durability is None:
            durability = self.store.settings.durability
        elif durability not in ("synced", "pipelined", "relaxed"):
            raise InvalidInput(f"durability must be 'synced', 'pipelined' or 'relaxed', not {shown(durability)}")
        return AsyncTransaction(self._parts, durability)

    def bulk(self, load: Any) -> Answer[int]:
        """Load in bulk, as `Store.bulk`, in a thread: `txid = await store.bulk(load)`. It begins with the call. If the
        task is cancelled, the load continues, and its `Answer` may be awaited again.

        Raises, when it is awaited:
            As `Store.bulk`.
        """
        parts = self._parts
        parts.check()
        parts.turns.refuse_here("loading in bulk")
        return parts.answer(parts.slow.submit(partial(self.store.bulk, load)))

    async def wait(self, txid: int) -> None:
        """Wait until a transaction is acknowledged, for instance after `ConditionNotMet`. For a bound, use
        `asyncio.timeout`.

        Raises:
            OutcomeUnknown, InvalidInput: as `Store.wait`.
            ConditionNotMet: the store was closed before that.
        """
        self._parts.check()
        try:
            self.store.wait(txid, 0)
        except ConditionNotMet:
            await self._reached(self._parts.acknowledged.reached(txid, None))
            self.store.wait(txid, 0)

    # --- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self, *, unsynced: bool = False, at_least: int | None = None) -> AbstractAsyncContextManager[ViewT]:
        """A read view: `async with store.snapshot() as view: …`, closed at the end of the block.

        Its calls are those of the engine's view, in the loop. One that takes long keeps the loop: use `scan` for many
        values, and `asyncio.to_thread` for one long call, such as `view.digest`.

        Args:
            unsynced, at_least: as `Store.snapshot`.

        Raises:
            As `Store.snapshot`.
        """
        return self._snapshot(unsynced, at_least)

    @asynccontextmanager
    async def _snapshot(self, unsynced: bool, at_least: int | None) -> AsyncIterator[ViewT]:
        parts, settings = self._parts, self.store.settings
        parts.check()
        if at_least is not None and self.store.group_commit.shown < at_least and not self.store.closed and (
                not await self._reached(parts.published.reached(at_least, settings.wait_s))):
            raise ConditionNotMet(f"transaction {at_least} is not published", txid=at_least,
                                  hint="it is not committed yet, or waits for a condition; ask again later")
        with self.store.snapshot(unsynced=unsynced) as view:
            yield view

    async def scan(self, values: Iterable[T]) -> AsyncGenerator[T, None]:
        """Iterate over many values without keeping the loop: `async for key, value in store.scan(view.items()): …`.

        They are fetched in a thread, up to a thousand or for five milliseconds at a time. Use it inside the block of
        the view. If you leave the loop early, close the scan before the view, with `contextlib.aclosing`.

        Args:
            values: what a view's call returned, or any other iterable that may be used in another thread.
        """
        parts = self._parts
        parts.check()
        iterator, clock, more = iter(values), self.store.env.clock, True
        while more:
            job = parts.scanning.submit(partial(_piece, iterator, clock))
            try:
                fetched, error, more = await parts.answer(job)
            except BaseException:
                if not job.cancel():
                    job.exception()  # wait until it is fetched: the view may be closed next
                raise
            for value in fetched:
                yield value
            if error is not None:
                raise error

    async def refresh(self) -> int:
        """In a read-only store, show what the writer has made durable since, as `Store.refresh`. In a thread.

        If the task is cancelled, the refresh continues.
        """
        return await self._in_thread(self.store.refresh)

    # --- checkpoints and pruning -----------------------------------------------------------------------------------

    async def checkpoint(self) -> Position:
        """Make the engine's durable state hold everything published, as `Store.checkpoint`. In a thread.

        If the task is cancelled, the checkpoint continues.
        """
        self._parts.turns.refuse_here("asking for a checkpoint")
        return await self._in_thread(self.store.checkpoint)

    async def prune(self) -> int:
        """Delete now the log that need not be kept, as `Store.prune`. In a thread."""
        return await self._in_thread(self.store.prune)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._parts.check()
        return await self._reached(self._parts.slow.submit(work))

    async def _reached(self, answer: Future[T]) -> T:
        """Wait for an answer. If the task is cancelled, so is the answer, unless it is being made."""
        try:
            return await self._parts.answer(answer)
        except BaseException:
            answer.cancel()
            raise

    # --- ending ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._parts.check()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._parts.end()

    def __del__(self) -> None:
        parts: Parts | None = getattr(self, "_parts", None)
        if parts is not None:
            parts.end()


def _piece(iterator: Iterator[T], clock: Clock) -> tuple[list[T], Exception | None, bool]:
    """The next values; the error that the iterator raised after them; and whether there may be more."""
    fetched: list[T] = []
    until = clock.monotonic() + _PIECE_S
    try:
        for value in iterator:
            fetched.append(value)
            if len(fetched) >= _PIECE or clock.monotonic() >= until:
                return fetched, None, True
    except Exception as error:
        return fetched, error, False
    return fetched, None, False


@asynccontextmanager
async def open(directory: str | Path, engine: type[Engine[TxT, ViewT]], *, create: bool = True,
               read_only: bool = False, plugins: Iterable[Plugin | str] = (),
               options: Mapping[str, Any] | None = None,
               settings: Settings | None = None) -> AsyncIterator[AsyncStore[TxT, ViewT]]:
    """Open a store for the block: `async with aio.open("data", MemoryEngine) as store: …`. It is opened and closed in a
    thread.

    If the task is cancelled while the store is opened, the thread closes it once it is open. Closing goes on to its end
    even if the task is cancelled meanwhile; `CancelledError` is raised after that.

    Args:
        directory, engine, create, read_only, plugins, options, settings: as `Store.open`.

    Raises:
        As `Store.open`.
    """
    answers, opening = Answers(asyncio.get_running_loop()), Pool("holdfast-aio-opening", 1, REAL.scheduler)
    try:
        job: Future[Store[TxT, ViewT]] = opening.submit(lambda: Store.open(
            directory, engine, create=create, read_only=read_only, plugins=plugins, options=options,
            settings=settings))
        try:
            opened: Answer[Store[TxT, ViewT]] = Answer(answers)
            store = await opened.follow(job)
        except BaseException:
            if not job.cancel():
                job.add_done_callback(_close_unwanted)
            raise
        face = AsyncStore(store)
        try:
            yield face
        finally:
            await _to_its_end(opening.submit(store.close), answers)
            face._parts.end()
    finally:
        opening.close()


def _close_unwanted(job: Future[Store[Any, Any]]) -> None:
    """Nobody waits any more for the store that `job` has opened."""
    if job.exception() is None:
        REAL.scheduler.spawn("holdfast-aio-closing", job.result().close)


async def _to_its_end(job: Future[None], answers: Answers) -> None:
    """Wait for `job`, even if the task is cancelled meanwhile. The cancellation is raised after that."""
    cancelled: asyncio.CancelledError | None = None
    while not job.done():
        try:
            closed: Answer[None] = Answer(answers)
            await closed.follow(job)
        except asyncio.CancelledError as error:
            cancelled = error
    job.result()
    if cancelled is not None:
        raise cancelled
