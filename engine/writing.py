"""The writing half of a store: how a draft becomes a transaction, and where it waits on the way.

One writer drafts at a time, under the writer lock. Committing appends the payload to the log; where the engine stages,
the lock is free again at once and the next writer builds on what is appended, so that one sync serves many. Where it
does not, and for a bulk load, the lock stays taken until the engine has the transaction: such a record is a *barrier*,
and whoever committed it applies it as soon as it may be published.

Two bounds slow writers down: what is appended and not yet written, and what is applied and not yet checkpointed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

from .committer import Committer, in_callback
from .contract import BulkEngine, Engine, StagingEngine, TxT, ViewT
from .errors import (
    ConditionNotMet,
    DiskFull,
    HoldfastError,
    InvalidInput,
    LimitReached,
    OutcomeUnknown,
    RolledBack,
    StoreClosed,
    Unsupported,
)
from .history import Position, Record
from .housekeeper import Housekeeper
from .log.log import Log
from .plugins import Hooks
from .seams import Seams
from .settings import Durability, Settings, check_duration
from .shown import shown
from .stages import Stages
from .system import is_limit

logger = logging.getLogger("holdfast.store")

LOOK_S = 0.5
"""Who waits for the writer lock looks this often, in seconds, whether that is still of use."""


def entering(call: Callable[[], bool]) -> AbstractContextManager[bool]:
    """A block that is entered by calling `call`, a function of C, and is given what it returns. After an ordinary call
    a signal's handler may raise before anybody knows what was returned; between this one and the first statement
    of the block none does."""
    made: AbstractContextManager[bool] = type("Entering", (), {"__enter__": staticmethod(call), "__exit__": _leave})()
    return made


def _leave(*_: object) -> None:
    """Nothing is to be done at the end of such a block."""


class TransactionScope(Generic[TxT]):
    """What `Store.transaction` returns: a context manager that yields the engine's draft, commits it at the end of the
    block, and rolls it back if the block raises."""

    __slots__ = ("_draft", "_durability", "_store", "_thread")

    def __init__(self, store: Writing[TxT, Any], durability: Durability) -> None:
        self._store = store
        self._durability = durability
        self._draft: TxT | None = None

    def __enter__(self) -> TxT:
        self._draft = draft = self._store._begin()
        self._thread = self._store._writer_thread
        return draft

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        draft = self._draft
        assert draft is not None
        try:
            if kind is None:
                self._store._commit(draft, self._durability, self._thread)
            else:
                self._store._roll_back(draft, self._thread)
        finally:
            self._roll_back_stranded(draft)
            self.__class__ = TransactionScope

    def _roll_back_stranded(self, draft: TxT) -> None:
        """A signal's handler may have raised before the end had begun."""
        if draft._state is None and self._store._writer_thread == self._thread:
            self._store._roll_back(draft, self._thread)


class OpenScope(TransactionScope[TxT]):
    """One that has not ended. A signal's handler that raises at the start of `__exit__` keeps it from ending anything:
    then it is rolled back when it goes."""

    __slots__ = ()

    def __del__(self) -> None:
        draft = getattr(self, "_draft", None)
        if draft is not None:
            self._roll_back_stranded(draft)


class Writing(Generic[TxT, ViewT]):
    """See the module's text. `Store` is made of this and of what else a store does; it sets these attributes."""

    directory: Path
    engine: Engine[TxT, ViewT]
    log: Log
    hooks: Hooks
    settings: Settings
    seams: Seams
    read_only: bool
    committer: Committer
    _stages: Stages
    _staging: StagingEngine[TxT, ViewT] | None
    _housekeeper: Housekeeper | None
    _handed: Position
    """The highest position that the engine may have in its files."""
    _unusable: str | None
    """Why nothing can be done with the store any more."""
    _writer: threading.Lock
    """The writer lock. It may be released by another thread than took it. It is always released in place: at the start
    of a function of ours a signal's handler could raise, and nobody would ever release it."""
    _try_writer: AbstractContextManager[bool]
    _await_writer: AbstractContextManager[bool]
    """Blocks that try to take it: at once, and for `LOOK_S` seconds. See `entering`."""
    _writer_thread: int | None
    """Who has it and may be told so: None also while a late transaction is applied."""
    _writer_waits: bool
    """Whoever has it waits for a sync."""
    _checkpointing: threading.Lock
    _imaging: threading.Lock
    """Held where the durable state changes or an image of it is made, unless the engine lets both happen at once."""
    _pressure: threading.Condition
    _slow: int
    """Pending or waiting bytes below which no bound can have been reached."""
    _delayed_commits: int

    def transaction(self, durability: Durability | None = None) -> TransactionScope[TxT]:
        """A write transaction: `with store.transaction() as tx: …`.

        Args:
            durability: `synced`, `pipelined` or `relaxed` (see `Settings`); the store's own without.

        Raises, at the end of the block:
            RolledBack: certainly not there (`DiskFull`: no room; try again).
            ConditionNotMet: durable here, a plugin's condition is open.
            OutcomeUnknown: may or may not be there; reopen and look.
        """
        if durability is None:
            durability = self.settings.durability
        elif durability not in ("synced", "pipelined", "relaxed"):
            raise InvalidInput(f"durability is 'synced', 'pipelined' or 'relaxed', not {shown(durability)}")
        return OpenScope(self, durability)

    def _begin(self) -> TxT:
        if self._unusable is not None or self.read_only:
            raise self._why_unusable()
        if self.engine.pending_bytes() >= self._slow or self.log.waiting_bytes >= self._slow:
            self._relieve()
        me = threading.get_ident()
        if self._writer_thread == me:
            raise InvalidInput("this thread has a transaction open already", hint="end it before beginning another")
        try:
            with self._try_writer as taken:
                if taken:
                    self._writer_thread = me
            if not taken:
                self._wait_for_writer(me)
            self._writer_waits = False
            if self._unusable is not None:
                raise self._why_unusable()
            if self.committer.poison is not None:
                raise self.committer.poisoned()
            return self.engine.begin()
        except BaseException:
            if self._writer_thread == me:
                self._writer_thread = None
                self._writer.release()
            raise

    def _wait_for_writer(self, me: int) -> None:
        """Take the writer lock, but wait neither for a store that was closed meanwhile, nor, where others wait for this
        thread, for one who waits for them."""
        while True:
            with self._await_writer as taken:
                if taken:
                    self._writer_thread = me
                    return
            if self._unusable is not None:
                raise self._why_unusable()
            if in_callback() and self._writer_waits:
                raise RolledBack("the writer waits for a sync, which a callback of a commit's future holds up",
                                 hint="hand the work to a thread of your own")

    def _why_unusable(self) -> HoldfastError:
        if self._unusable is None:
            return InvalidInput(f"{self.directory} is open read-only", hint="open it for writing")
        return StoreClosed(f"{self.directory} {self._unusable}")

    def _relieve(self) -> None:
        """Slow down: much is waiting to be checkpointed or written."""
        settings, keeper = self.settings, self._housekeeper
        assert keeper is not None
        if self.engine.pending_bytes() >= settings.checkpoint_soft_bytes:
            keeper.wake()
        if self.log.waiting_bytes >= settings.unwritten_bytes:
            self._refuse_in_callback()
            self._delayed_commits += 1
            self.committer.sync_within(0.0)
            caught_up = self.committer.wait_until(lambda: self.log.waiting_bytes < settings.unwritten_bytes,
                                                  settings.wait_s)
            if not caught_up and self.committer.poison is None and self._unusable is None and not keeper.closing:
                raise RolledBack(f"{settings.unwritten_bytes:,} bytes are waiting to be written, and were not within "
                                 f"{settings.wait_s} s", hint="try again; the disk is slow")
        if self.engine.pending_bytes() < settings.checkpoint_hard_bytes:
            return
        self._delayed_commits += 1
        deadline = self.seams.clock.monotonic() + settings.wait_s
        with self._pressure:
            while self.engine.pending_bytes() >= settings.checkpoint_hard_bytes:
                if self._unusable is not None or self.committer.poison is not None:
                    return  # the caller finds out
                if keeper.closing:
                    raise RolledBack("the store is being closed")
                if (blocked := keeper.blocked) is not None:
                    hard = settings.checkpoint_hard_bytes
                    what = "no room for a checkpoint" if isinstance(blocked, DiskFull) else "no checkpoint can be made"
                    raise type(blocked)(f"{what}, and {hard:,} bytes wait for it: {blocked.message}",
                                        hint=blocked.hint) from blocked
                if self.seams.clock.monotonic() >= deadline:
                    raise RolledBack(f"the checkpoint did not catch up within {settings.wait_s} s",
                                     hint="try again; a slower load or a larger checkpoint_hard_bytes avoids this")
                keeper.wake()
                self._pressure.wait(0.05)

    def notify_pressure(self) -> None:
        """Used by the housekeeper: a checkpoint was made, or could not be."""
        with self._pressure:
            self._pressure.notify_all()

    def _roll_back(self, draft: TxT, me: int | None) -> None:
        try:
            draft.seal("rolled back")
            draft.close()
        finally:
            if self._writer_thread == me:  # not where the store's own block was left before this one
                self._writer_thread = None
                self._writer.release()

    def _commit(self, draft: TxT, durability: Durability, me: int | None) -> None:
        record = None
        try:
            if durability == "synced" or self._staging is None:
                self._refuse_in_callback()
            if self.hooks.committing or self.hooks.final:
                self._ask_plugins(draft)
            draft.seal("being committed")  # what another thread still adds to it would be staged and not logged
            payload = draft.payload()
            if not payload:
                seen = self._stages.appended.txid
                self._writer_thread = None
                self._writer.release()
                self._wait_published(seen)
                return
            if self._unusable is not None:
                raise RolledBack(f"{self.directory} {self._unusable}")
            staging = self._staging
            before = self.log.appended.txid
            try:
                record = self.committer.append(payload, self.engine.payload_version, None, draft,
                                               barrier=staging is None,
                                               promise=durability != "relaxed" or staging is None)
                draft.txid = record.txid
            except BaseException as error:
                if self.log.appended.txid == before:
                    raise
                self.committer.fail(error)  # it is in the log and not in the state: only reopening can mend that
                if isinstance(error, Exception):
                    raise self.committer.unknown(before + 1) from error
                raise
            if staging is not None:
                self._writer_thread = None
                self._writer.release()
            else:
                self._finish_barrier(record, None)
        except BaseException as error:
            if record is not None and self._writer_thread == me:
                self.committer.fail(error)  # as above
            raise
        finally:
            try:
                draft.seal("ended")
                draft.close()
            finally:
                if self._writer_thread == me:
                    self._writer_thread = None
                    self._writer.release()
        if durability == "synced":
            self.committer.wait(record.txid)
        elif durability == "pipelined":
            draft.outcome = self.committer.outcome(record.txid)
        else:
            self.committer.sync_within()

    def _ask_plugins(self, draft: TxT) -> None:
        """The moments *committing* and *final*. Raises `RolledBack` from what a plugin raises, or for one too slow."""
        for hook in self.hooks.committing:
            self._ask(hook, draft)
        draft.seal("being committed")
        for hook in self.hooks.final:
            self._ask(hook, draft)

    def _ask(self, hook: Callable[[TxT], None], draft: TxT) -> None:
        clock = self.seams.clock
        began = clock.monotonic()
        try:
            hook(draft)
        except Exception as error:
            raise RolledBack(f"a plugin refused the transaction: {error}", hint="see the plugin's own error") from error
        took = clock.monotonic() - began
        if took > self.settings.hook_s:
            raise RolledBack(f"{getattr(hook, '__qualname__', hook)} took {took:.1f} s over the transaction, more than "
                             f"hook_s={self.settings.hook_s}", hint="do the plugin's work beside the commit")

    @staticmethod
    def _refuse_in_callback(kind: type[HoldfastError] = RolledBack) -> None:
        """Who waits for a sync must not be the one that others wait for."""
        if in_callback():
            raise kind("a callback of a commit's future cannot wait for a commit",
                       hint="commit pipelined there, or hand the work to a thread of your own")

    def _wait_published(self, txid: int) -> None:
        """What was read is in the end not taken back: wait until it is published."""
        if self._stages.published.txid >= txid:
            return
        self._refuse_in_callback()
        self.committer.sync_within(0.0)
        if not self.committer.wait_until(lambda: self._stages.published.txid >= txid, self.settings.wait_s):
            if self.committer.poison is not None:
                raise RolledBack("what this transaction read may never have been committed: the store is poisoned",
                                 hint="reopen the store and read again")
            raise RolledBack(f"what this transaction read (transaction {txid}) was not published in time",
                             hint="a condition on acknowledgement is open; read again later")

    def _finish_barrier(self, record: Record, path: Path | None) -> None:
        """Wait until the record at the barrier may be published, apply it, lift the barrier, release the writer lock,
        and wait until it is acknowledged. Where a condition that gates publication is late, the rest is done in the
        background and `ConditionNotMet` raised."""
        txid, committer = record.txid, self.committer
        future: Future[int] | None = None
        try:
            self._writer_waits = True
            if self._stages.listeners:
                future = outcome = committer.outcome(txid)
                outcome.add_done_callback(lambda _: committer.settle())
                committer.wait_until(lambda: self._stages.publishable.txid >= txid or outcome.done(), None)
                if self._stages.publishable.txid < txid and outcome.done():
                    outcome.result()
            else:
                committer.wait(txid)
        except BaseException:
            # It is in the log: whatever ended the wait, a signal perhaps, the engine gets it once it may be published.
            if committer.poison is None:
                committer.sync_within(0.0)
                self._writer_thread = None  # the lock stays taken, and this thread is free
                try:
                    self.seams.scheduler.spawn("holdfast-late", lambda: self._apply_late(record, path))
                except BaseException as error:  # no more threads, for instance
                    self._writer.release()
                    committer.fail(error)
                    raise
            raise
        self._apply_barrier(record, path)
        if future is not None:
            future.result()

    def _apply_late(self, record: Record, path: Path | None) -> None:
        self.committer.wait_until(lambda: self._stages.publishable.txid >= record.txid, None)
        if self._stages.publishable.txid < record.txid:
            self._writer.release()
            return
        try:
            self._apply_barrier(record, path)
        except OutcomeUnknown:
            logger.exception("transaction %d could not be applied", record.txid)

    def _apply_barrier(self, record: Record, path: Path | None) -> None:
        try:
            if self._stages.publishable.txid < record.txid:
                raise self.committer.unknown(record.txid)
            try:
                self._handed = record.position
                if path is None:
                    self.engine.apply([record])
                else:
                    assert isinstance(self.engine, BulkEngine)
                    with self._checkpointing:
                        self._apply_bulk(self.engine, record, path)
                with self.committer.mutex:
                    self._stages.lift(record.position)
            except BaseException as error:
                self.committer.fail(error)
                if isinstance(error, Exception):
                    raise self.committer.unknown(record.txid) from error
                raise
            self.committer.settle()
        finally:
            self._writer_thread = None
            self._writer.release()

    def _apply_bulk(self, engine: BulkEngine[TxT, ViewT], record: Record, path: Path) -> None:
        """It is in the log, so it must get into the state: without room, wait until there is some."""
        while True:
            try:
                with self._no_image_beside():
                    engine.apply_bulk(record, path)
                break
            except (DiskFull, LimitReached, OSError) as error:
                if not isinstance(error, RolledBack) and not is_limit(error):
                    raise
                logger.warning("transaction %d, a bulk load, waits to be applied: %s", record.txid, error)
                if self._unusable is not None or self.committer.wait_until(lambda: self._unusable is not None, 1.0):
                    raise
        self._stages.checkpoint(engine.position)

    def _no_image_beside(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self.engine.abilities.background_checkpoint else self._imaging

    def bulk(self, load: Any) -> int:
        """Load in bulk, as one transaction whose data stands in a file beside the log.

        Args:
            load: what the engine takes.

        Returns:
            Its txid.

        Raises:
            Unsupported: the engine takes none.
            InvalidInput: nothing happened.
            As `transaction`, and `DiskFull`.
        """
        engine = self.engine
        if not isinstance(engine, BulkEngine):
            raise Unsupported(f"the {engine.name} engine takes no bulk loads", hint="write ordinary transactions")
        self._refuse_in_callback()
        draft = self._begin()
        me, record = self._writer_thread, None
        try:
            self._writer_waits = True
            draft.seal("a bulk load")
            draft.close()
            self._wait_published(self._stages.appended.txid)
            try:
                out = self.log.new_attachment()
                try:
                    payload = engine.write_bulk(load, out)  # type: ignore[arg-type]  # a raw stream: binary I/O enough
                    attachment = out.finish()
                except BaseException:
                    out.abandon()
                    raise
            except OSError as error:
                raise RolledBack(f"the file of the bulk load could not be made: {error}") from error
            path = self.log.attachment_path(attachment.name)
            before = self.log.appended.txid
            try:
                record = self.committer.append(payload, engine.payload_version, attachment, None, barrier=True,
                                               promise=True)
            except BaseException as error:
                if self.log.appended.txid == before:
                    with contextlib.suppress(OSError):  # no record names it: the next opening removes it
                        self.seams.files.unlink(path, missing_ok=True)
                else:  # it is in the log, names the file, and will never be applied by us
                    self.committer.fail(error)
                raise
            self._finish_barrier(record, path)
        except BaseException as error:
            if record is not None and self._writer_thread == me:
                self.committer.fail(error)  # as above
            raise
        finally:
            if self._writer_thread == me:
                self._writer_thread = None
                self._writer.release()
        self.hooks.tell("checkpointed", self.engine.position)
        return record.txid

    def wait(self, txid: int, timeout: float | None = None) -> None:
        """Wait until a transaction is acknowledged, for instance after `ConditionNotMet`.

        Raises:
            ConditionNotMet: not within `timeout` seconds.
            OutcomeUnknown: the store is poisoned.
            InvalidInput: there is no such transaction yet.
            SettingError: `timeout` is no length of time.
        """
        if timeout is not None and timeout != 0:
            check_duration("timeout", timeout)
        if txid > self._stages.appended.txid:
            raise InvalidInput(f"transaction {txid} is not there; the last one is {self._stages.appended.txid}",
                               hint="pass the txid of a transaction of this store")
        if self._stages.acknowledged.txid < txid:
            self._refuse_in_callback(InvalidInput)
            self.committer.sync_within(0.0)
        if not self.committer.wait_until(lambda: self._stages.acknowledged.txid >= txid, timeout):
            if self.committer.poison is not None:
                raise self.committer.unknown(txid)
            raise ConditionNotMet(f"transaction {txid} was not acknowledged within {timeout} s", txid=txid)

    def wait_published(self, after: int, timeout: float) -> int:
        """Wait up to `timeout` seconds until something after `after` is published; the last published txid."""
        self.committer.wait_until(lambda: self._stages.published.txid > after or self._unusable is not None, timeout)
        return self._stages.published.txid
