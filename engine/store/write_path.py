"""The writing half of a store: how a transaction is committed, and where it waits on the way.

One writer transactions at a time, under the writer lock. Committing appends the payload to the log; where the engine
stages, the lock is free again at once and the next writer builds on what is appended, so that one sync serves many.
Where it does not, and for a bulk load, the lock stays taken until the engine has the transaction: such a record is a
*barrier*, and whoever committed it applies it as soon as it may be published.

Two bounds slow writers down: what is appended and not yet written, and what is applied and not yet checkpointed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

from ..contract.engine import BulkEngine, Engine, StagingEngine, TxT, ViewT
from ..contract.transaction import Durability
from ..env import Env, Lock
from ..env.owned_lock import Hold, OwnedLock
from ..env.shown import shown
from ..env.system import is_limit
from ..errors import (
    LACKS,
    CommitPoisoned,
    ConditionNotMet,
    DiskFull,
    HoldfastError,
    InvalidInput,
    LimitReached,
    OutcomeUnknown,
    RolledBack,
    StoreClosed,
    Unsupported,
    rolled_back,
)
from ..model.positions import Position
from ..model.records import Record
from ..wal.log import Log
from .backpressure import Backpressure
from .commit_queue import Waiter
from .group_commit import GroupCommit
from .hooks import Hooks
from .settings import Settings, check_duration
from .watermarks import Watermarks

logger = logging.getLogger("holdfast.store")


class TransactionScope(Generic[TxT]):
    """What `Store.transaction` returns: a context manager that yields the engine's transaction, commits it at the end
    of the block, and rolls it back if the block raises."""

    __slots__ = ("_durability", "_hold", "_store", "_tx")

    def __init__(self, store: Writing[TxT, Any], durability: Durability) -> None:
        self._store = store
        self._durability = durability
        self._hold = Hold(None)
        self._tx: TxT | None = None

    def __enter__(self) -> TxT:
        self._tx = tx = self._store._begin(self._hold)
        return tx

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        tx = self._tx
        assert tx is not None
        try:
            if kind is None:
                self._store._commit(tx, self._durability, self._hold)
            else:
                self._store._roll_back(tx, self._hold)
        finally:
            self._end_stranded()
            self.__class__ = TransactionScope

    def _end_stranded(self) -> None:
        """A signal's handler may have raised before the end had begun, or as the lock was to be given back."""
        hold, writer = self._hold, self._store._writer
        if writer.held_by(hold):
            if self._tx is not None and self._tx._state is None:
                self._store._roll_back(self._tx, hold)
            writer.release(hold)


class OpenScope(TransactionScope[TxT]):
    """One that has not ended. A signal's handler that raises at the start of `__exit__` keeps it from ending anything:
    then it is rolled back when it goes."""

    __slots__ = ()

    def __del__(self) -> None:
        if hasattr(self, "_hold"):
            self._end_stranded()


class Writing(Generic[TxT, ViewT]):
    """See the module's text. `Store` is made of this and of what else a store does; it sets these attributes."""

    directory: Path
    engine: Engine[TxT, ViewT]
    log: Log
    hooks: Hooks
    settings: Settings
    env: Env
    read_only: bool
    group_commit: GroupCommit
    _watermarks: Watermarks
    _staging: StagingEngine[TxT, ViewT] | None
    backpressure: Backpressure
    _handed: Position
    """The highest position that the engine may have in its files."""
    _unusable: str | None
    """Why nothing can be done with the store any more."""
    _writer: OwnedLock
    """One transaction at a time. A late transaction keeps it when the thread that committed it has gone."""
    _checkpointing: OwnedLock
    _imaging: Lock
    """Held where the durable state changes or an image of it is made, unless the engine lets both happen at once."""

    def transaction(self, durability: Durability | None = None) -> TransactionScope[TxT]:
        """A write transaction: `with store.transaction() as tx: …`.

        Args:
            durability: `synced`, `pipelined` or `relaxed` (see `Settings`); the store's own without.

        Raises, at the end of the block:
            RolledBack: certainly not there. It is a `DiskFull`, `LimitReached`, `DirectoryMoved` or `StorePoisoned` too
                if that is why.
            ConditionNotMet: durable here, a plugin's condition is open.
            OutcomeUnknown: may or may not be there; reopen and look.
        """
        if durability is None:
            durability = self.settings.durability
        elif durability not in ("synced", "pipelined", "relaxed"):
            raise InvalidInput(f"durability is 'synced', 'pipelined' or 'relaxed', not {shown(durability)}")
        return OpenScope(self, durability)

    def _begin(self, hold: Hold) -> TxT:
        if self._unusable is not None or self.read_only:
            raise self._why_unusable()
        slow = self.backpressure.slow
        if (self.engine.pending_bytes() >= slow or self.log.waiting_bytes >= slow
                or self.group_commit.unheard_bytes >= slow):
            self.backpressure.wait(lambda: self._unusable is None)
        if self._writer.held_here():
            raise InvalidInput("this thread has a transaction open already", hint="end it before beginning another")
        hold.thread = self._writer.here()
        try:
            if not self._writer.try_take(hold):
                while not self._writer.take(hold):
                    if self._unusable is not None:
                        raise self._why_unusable()
            if self._unusable is not None:
                raise self._why_unusable()
            if self.group_commit.poison is not None:
                raise self.group_commit.poisoned(CommitPoisoned)
            return self.engine.begin()
        except BaseException as error:
            try:
                self._writer.release(hold)
            finally:
                self._writer.release(hold)
            if isinstance(error, (DiskFull, LimitReached)):
                raise rolled_back(error, "no transaction could be begun") from error
            raise

    def _why_unusable(self) -> HoldfastError:
        if self._unusable is None:
            return InvalidInput(f"{self.directory} is open read-only", hint="open it for writing")
        return StoreClosed(f"{self.directory} {self._unusable}")

    def _roll_back(self, tx: TxT, hold: Hold) -> None:
        try:
            tx.seal("rolled back")
            tx.close()
        finally:
            self._writer.release(hold)

    def _commit(self, tx: TxT, durability: Durability, hold: Hold) -> None:
        record = None
        try:
            if self.hooks.committing or self.hooks.final:
                self._ask_plugins(tx)
            tx.seal("being committed")  # what another thread still adds to it would be staged and not logged
            payload = tx.payload()
            if not payload:
                seen = self._watermarks.appended.txid
                self._writer.release(hold)
                self._wait_published(seen)
                return
            if self._unusable is not None:
                raise RolledBack(f"{self.directory} {self._unusable}")
            staging = self._staging
            before = self.log.appended.txid
            try:
                record = self.group_commit.append(payload, self.engine.payload_version, None, tx,
                                                  barrier=staging is None,
                                                  promise=durability != "relaxed" or staging is None)
                tx.txid = record.txid
            except BaseException as error:
                if self.log.appended.txid == before:
                    raise
                self.group_commit.fail(error)  # it is in the log and not in the state: only reopening can mend that
                if isinstance(error, Exception):
                    raise self.group_commit.unknown(before + 1) from error
                raise
            if staging is not None:
                self._writer.release(hold)
            else:
                self._finish_barrier(record, None, hold)
        except BaseException as error:
            if record is not None and self._writer.held_by(hold):
                self.group_commit.fail(error)  # as above
            raise
        finally:
            try:
                tx.seal("ended")
                tx.close()
            finally:
                self._writer.release(hold)
        if durability == "synced":
            self.group_commit.wait(record.txid)
        elif durability == "pipelined":
            tx.outcome = self.group_commit.outcome(record.txid)
        else:
            self.group_commit.sync_within()

    def _ask_plugins(self, tx: TxT) -> None:
        """The moments *committing* and *final*. Raises `RolledBack` from what a plugin raises, or for one too slow."""
        for hook in self.hooks.committing:
            self._ask(hook, tx)
        tx.seal("being committed")
        for hook in self.hooks.final:
            self._ask(hook, tx)

    def _ask(self, hook: Callable[[TxT], None], tx: TxT) -> None:
        clock = self.env.clock
        began = clock.monotonic()
        try:
            hook(tx)
        except Exception as error:
            raise RolledBack(f"a plugin refused the transaction: {error}", hint="see the plugin's own error") from error
        took = clock.monotonic() - began
        if took > self.settings.hook_s:
            raise RolledBack(f"{getattr(hook, '__qualname__', hook)} took {took:.1f} s over the transaction, more than "
                             f"hook_s={self.settings.hook_s}", hint="do the plugin's work beside the commit")

    def _wait_published(self, txid: int) -> None:
        """What was read is in the end not taken back: wait until it is published."""
        if self._watermarks.published.txid >= txid:
            return
        self.group_commit.sync_within(0.0)
        if not self.group_commit.wait_until(lambda: self._watermarks.published.txid >= txid, self.settings.wait_s):
            if self.group_commit.poison is not None:
                raise RolledBack("what this transaction read may never have been committed: the store is poisoned",
                                 hint="reopen the store and read again")
            raise RolledBack(f"what this transaction read (transaction {txid}) was not published in time",
                             hint="a condition on acknowledgement is open; read again later")

    def _finish_barrier(self, record: Record, path: Path | None, hold: Hold) -> None:
        """Wait until the record at the barrier may be published, apply it, lift the barrier, release the writer lock,
        and wait until it is acknowledged. Where a condition that gates publication is late, the rest is done in the
        background and `ConditionNotMet` raised."""
        txid, group_commit = record.txid, self.group_commit
        waiter: Waiter | None = None
        try:
            if self._watermarks.listeners:
                waiter = waits = group_commit.watch(txid)
                group_commit.wait_until(lambda: self._watermarks.publishable.txid >= txid or waits.done, None)
                if self._watermarks.publishable.txid < txid and waits.error is not None:
                    raise waits.error
            else:
                group_commit.wait(txid)
        except BaseException:
            # It is in the log: whatever ended the wait, a signal perhaps, the engine gets it once it may be published.
            if group_commit.poison is None:
                group_commit.sync_within(0.0)
                late = Hold(None)  # the lock stays taken, and this thread is free
                try:
                    self._writer.pass_on(hold, late)
                    self.env.scheduler.spawn("holdfast-late", lambda: self._apply_late(record, path, late))
                except BaseException as error:  # no more threads, for instance
                    self._writer.release(late)
                    group_commit.fail(error)
                    raise
            raise
        self._apply_barrier(record, path, hold)
        if waiter is not None:
            assert waiter.outcome is not None
            waiter.outcome.result()

    def _apply_late(self, record: Record, path: Path | None, late: Hold) -> None:
        self.group_commit.wait_until(lambda: self._watermarks.publishable.txid >= record.txid, None)
        if self._watermarks.publishable.txid < record.txid:
            self._writer.release(late)
            return
        try:
            self._apply_barrier(record, path, late)
        except OutcomeUnknown:
            logger.exception("transaction %d could not be applied", record.txid)

    def _apply_barrier(self, record: Record, path: Path | None, hold: Hold) -> None:
        try:
            if self._watermarks.publishable.txid < record.txid:
                raise self.group_commit.unknown(record.txid)
            try:
                self._handed = record.position
                if path is None:
                    self.engine.apply([record])
                else:
                    assert isinstance(self.engine, BulkEngine)
                    engine = self.engine
                    self._checkpointing.run(lambda: self._apply_bulk(engine, record, path), lambda: None)
                with self.group_commit.mutex:
                    self._watermarks.lift(record.position)
            except BaseException as error:
                self.group_commit.fail(error)
                if isinstance(error, Exception):
                    raise self.group_commit.unknown(record.txid) from error
                raise
            self.group_commit.settle()
        finally:
            try:
                self._writer.release(hold)
            finally:
                self._writer.release(hold)

    def _apply_bulk(self, engine: BulkEngine[TxT, ViewT], record: Record, path: Path) -> None:
        """It is in the log, so it must get into the state: without room, wait until there is some."""
        while True:
            try:
                with self._no_image_beside():
                    engine.apply_bulk(record, path)
                break
            except (DiskFull, LimitReached, OSError) as error:
                if isinstance(error, OSError) and not is_limit(error):
                    raise
                logger.warning("transaction %d, a bulk load, waits to be applied: %s", record.txid, error)
                if self._unusable is not None or self.group_commit.wait_until(lambda: self._unusable is not None, 1.0):
                    raise
        self._watermarks.checkpoint(engine.position)

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
            RolledBack: a plugin refused it, or one adds to every transaction, which a bulk load does not take.
            As `transaction`.
        """
        engine = self.engine
        if not isinstance(engine, BulkEngine):
            raise Unsupported(f"the {engine.name} engine takes no bulk loads", hint="write ordinary transactions")
        hold, record = Hold(None), None
        tx = self._begin(hold)
        try:
            tx.bulk = load
            tx.seal("a bulk load, which takes no additions")
            try:
                if self.hooks.committing or self.hooks.final:
                    self._ask_plugins(tx)
            finally:
                tx.close()
            self._wait_published(self._watermarks.appended.txid)
            try:
                out = self.log.new_attachment()
                try:
                    payload = engine.write_bulk(load, out)  # type: ignore[arg-type]  # a raw stream: binary I/O enough
                    attachment = out.finish()
                except BaseException:
                    out.abandon()
                    raise
            except LACKS as error:
                raise rolled_back(error, "the file of the bulk load could not be made") from error
            path = self.log.attachment_path(attachment.name)
            before = self.log.appended.txid
            try:
                record = self.group_commit.append(payload, engine.payload_version, attachment, None, barrier=True,
                                                  promise=True)
            except BaseException as error:
                if self.log.appended.txid == before:
                    with contextlib.suppress(OSError):  # no record names it: the next opening removes it
                        self.env.files.unlink(path, missing_ok=True)
                else:  # it is in the log, names the file, and will never be applied by us
                    self.group_commit.fail(error)
                raise
            self._finish_barrier(record, path, hold)
        except BaseException as error:
            if record is not None and self._writer.held_by(hold):
                self.group_commit.fail(error)  # as above
            raise
        finally:
            try:
                self._writer.release(hold)
            finally:
                self._writer.release(hold)
        self.hooks.tell("checkpointed", self.engine.position)
        return record.txid

    def wait(self, txid: int, timeout: float | None = None) -> None:
        """Wait until a transaction is acknowledged, for instance after `ConditionNotMet`.

        Raises:
            ConditionNotMet: not within `timeout` seconds.
            OutcomeUnknown: the store is poisoned.
            InvalidInput: there is no such transaction yet.
            SettingError: `timeout` is not a length of time.
        """
        if timeout is not None and timeout != 0:
            check_duration("timeout", timeout)
        if txid > self._watermarks.appended.txid:
            raise InvalidInput(f"transaction {txid} is not there; the last one is {self._watermarks.appended.txid}",
                               hint="pass the txid of a transaction of this store")
        if self._watermarks.acknowledged.txid < txid:
            self.group_commit.sync_within(0.0)
        if not self.group_commit.wait_until(lambda: self._watermarks.acknowledged.txid >= txid, timeout):
            if self.group_commit.poison is not None:
                raise self.group_commit.unknown(txid)
            raise ConditionNotMet(f"transaction {txid} was not acknowledged within {timeout} s", txid=txid)

    def wait_published(self, after: int, timeout: float) -> int:
        """Wait up to `timeout` seconds until something after `after` is published; the last published txid."""
        self.group_commit.wait_until(lambda: self._watermarks.published.txid > after or self._unusable is not None,
                                     timeout)
        return self._watermarks.published.txid
