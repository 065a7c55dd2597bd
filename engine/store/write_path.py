"""How a transaction is committed, and where it waits on the way.

One transaction is open at a time, under the writer lock. A commit appends the payload to the log. If the engine stages,
the lock is released at once and the next writer builds on what is appended, so one sync serves many commits. If the
engine does not stage, or for a bulk load, the record is a *barrier*: the lock is held until the record may be
published and the committing thread has applied it to the engine.

Two bounds slow writers down: bytes appended and not yet written, and bytes applied and not yet checkpointed. A plugin
may have further ones.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

from ..contract.engine import BulkEngine, Engine, StagingEngine, TxT
from ..contract.transaction import Durability, Transaction, end, freeze
from ..env import Env
from ..env.owned_lock import LOOK_S, Hold, OwnedLock
from ..env.shown import shown
from ..errors import (
    LACKS,
    CommitPoisoned,
    ConditionNotMet,
    DirectoryMoved,
    DiskFull,
    InvalidInput,
    LimitReached,
    OutcomeUnknown,
    RolledBack,
    Unsupported,
    rolled_back,
)
from ..model.records import Attachment, Record
from .backpressure import Backpressure
from .checkpoints import Checkpoints
from .commit_queue import CommitTicket
from .group_commit import GroupCommit
from .hooks import Hooks
from .settings import Settings, check_duration
from .usability import Usability

logger = logging.getLogger("holdfast.store")

_LARGE = 64 << 10
"""A larger payload may need a segment of its own, whose room takes long to make, bytes."""


class TransactionScope(Generic[TxT]):
    """What `Store.transaction` returns: a context manager that yields the engine's transaction, commits it at the end
    of the block, and rolls it back if the block raises."""

    __slots__ = ("_durability", "_hold", "_owner", "_path", "_tx")

    def __init__(self, path: WritePath[TxT], durability: Durability, owner: object) -> None:
        self._path = path
        self._owner = owner  # a store that nobody else holds must not be closed before this ends
        self._durability = durability
        self._tx: TxT | None = None
        self._hold = Hold(path.lock)

    def __enter__(self) -> TxT:
        if self._hold.held:  # its lock would be taken for the second block too, and released by whichever ends first
            raise InvalidInput("this block has begun already", hint="ask for each with store.transaction()")
        try:
            self._tx = tx = self._path.begin(self._hold)
        except BaseException:
            self._hold.release()
            raise
        return tx

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        tx = self._tx
        assert tx is not None
        try:
            if kind is None:
                self._path._commit(tx, self._durability, self._hold)
            else:
                self._path.roll_back(tx, self._hold)
        finally:
            if self._hold.held:
                self._end_stranded()
            self.__class__ = TransactionScope

    def _end_stranded(self) -> None:
        """Finish after a signal handler raised before the end had begun, or just before the lock was released."""
        hold, tx = self._hold, self._tx
        if hold.held:
            if tx is not None and tx._kit_state is None:
                self._path.roll_back(tx, hold)
            hold.release()


class OpenScope(TransactionScope[TxT]):
    """A scope that has not ended. If a signal handler raises at the start of `__exit__`, nothing is ended there, so the
    transaction is rolled back when the scope is garbage-collected."""

    __slots__ = ()

    def __del__(self) -> None:
        if hasattr(self, "_hold"):
            self._end_stranded()


class WritePath(Generic[TxT]):
    """See the module's text. From any thread. `Store` documents what the calls do and raise.

    `lock`: the writer lock, for one transaction at a time. A barrier whose condition is late keeps it after the
    committing thread has returned.
    """

    def __init__(self, engine: Engine[TxT, Any], group_commit: GroupCommit, hooks: Hooks, backpressure: Backpressure,
                 checkpoints: Checkpoints, settings: Settings, env: Env, usability: Usability) -> None:
        self.lock = OwnedLock(env)
        self.engine = engine
        self.group_commit = group_commit
        self.hooks = hooks
        self.log = group_commit.log
        self._log_writer = group_commit.log.writer
        self.settings = settings
        self.env = env
        self._backpressure = backpressure
        self._checkpoints = checkpoints
        self._watermarks = group_commit.watermarks
        self._at_barriers = not isinstance(engine, StagingEngine)  # then every transaction is a barrier
        self.usability = usability

    def transaction(self, durability: Durability | None, owner: object = None) -> TransactionScope[TxT]:
        if durability is None:
            durability = self.settings.durability
        elif durability not in ("synced", "pipelined", "relaxed"):
            raise InvalidInput(f"durability must be 'synced', 'pipelined' or 'relaxed', not {shown(durability)}")
        return OpenScope(self, durability, owner)

    def admits(self, hold: Hold) -> bool:
        """Take the writer lock, if neither that nor a bound nor a plugin makes a transaction wait now. Otherwise call
        `begin` on a thread that may wait."""
        slow = self._backpressure.slow
        if (self.engine.pending_bytes() >= slow or self._log_writer.waiting_bytes >= slow
                or self.group_commit.unheard_bytes >= slow) and not self._backpressure.admits():
            return False
        return not self.hooks.beginning and hold.try_take()

    def begin(self, hold: Hold, *, admitted: bool = False) -> TxT:
        """Begin a transaction under the writer lock. `admitted`: `admits` has taken the lock; then nothing is waited
        for. Raises as `Store.transaction`; then the lock is released, unless `admitted`."""
        usability, pressure = self.usability, self._backpressure
        if usability.ended is not None or usability.no_writes:
            raise usability.error()
        if not admitted:
            if self.hooks.beginning:
                pressure.admit(self.hooks.beginning, lambda: usability.ended is None)
            slow = pressure.slow
            if (self.engine.pending_bytes() >= slow or self._log_writer.waiting_bytes >= slow
                    or self.group_commit.unheard_bytes >= slow):
                pressure.wait(lambda: usability.ended is None)
        try:
            if not hold.try_take():
                if self.lock.held_here():
                    raise InvalidInput("this thread already has a transaction open",
                                       hint="end it before beginning another")
                while not hold.take():
                    if usability.ended is not None:
                        raise usability.error()
            if usability.ended is not None or usability.no_writes:
                raise usability.error()
            if self.group_commit.poison is not None:
                raise self.group_commit.poisoned(CommitPoisoned)
            return self.engine.begin()
        except BaseException as error:
            hold.release()
            if isinstance(error, (DiskFull, LimitReached, DirectoryMoved)):
                raise rolled_back(error, "no transaction could be begun") from error
            raise

    def roll_back(self, tx: TxT, hold: Hold) -> None:
        try:
            end(tx, "rolled back")
        finally:
            hold.release()

    def _commit(self, tx: TxT, durability: Durability, hold: Hold) -> None:
        logged = self.commit(tx, hold)
        if isinstance(logged, int):
            self._wait_published(logged)
        elif durability == "synced" or self._at_barriers:
            logged.wait()
            if durability == "pipelined":
                tx.outcome = logged.future()
        elif durability == "pipelined":
            tx.outcome = logged.future()
        else:
            logged.drop()

    def commit(self, tx: TxT, hold: Hold, payload: bytes | None = None) -> CommitTicket | int:
        """Log the transaction, end it, and release the writer lock. If it is a barrier, first wait until it may be
        published, and apply it.

        Args:
            tx, hold: the transaction, and the lock under which it was begun.
            payload: what `payload_at_once` returned on this thread.

        Returns:
            Its ticket. If it changes nothing: the last transaction that it may have read, which must be published
            before its caller is told that it has ended.

        Raises:
            As `Store.transaction`.
        """
        try:
            if payload is None:
                if self.hooks.committing or self.hooks.final:
                    self._ask_plugins(tx)
                freeze(tx, "being committed")  # a change added by another thread from here on would not be logged
                payload = _payload(tx)
            if not payload:
                return self._watermarks.appended.txid
            if self.usability.ended is not None:
                raise RolledBack(f"{self.usability.directory} {self.usability.ended}")
            barrier = self._at_barriers
            before = self._log_writer.appended.txid
            try:
                record, ticket = self.group_commit.append(payload, self.engine.payload_version, None, tx,
                                                          barrier=barrier)
                tx.txid = record.txid
            except BaseException as error:
                if self._log_writer.appended.txid == before:
                    raise
                self.group_commit.fail(error)  # the log has the record and the state does not: only reopening helps
                if isinstance(error, Exception):
                    raise self.group_commit.unknown(before + 1) from error
                raise
            if barrier:
                self._finish_barrier(record, ticket, None, hold)
            else:
                hold.release()
        except BaseException as error:
            if hold.held and self._watermarks.barrier is not None:
                self.group_commit.fail(error)  # the barrier's record is in the log and not in the state
            raise
        finally:
            try:
                end(tx, "ended")
            finally:
                hold.release()
        return ticket

    def payload_at_once(self, tx: TxT) -> bytes | None:
        """Freeze the transaction, and return its payload for `commit`, if that needs no wait then. None if it may have
        to wait: for a plugin, for publication, or for room in the log. Raises as `Store.transaction`."""
        if self._at_barriers or self.hooks.committing or self.hooks.final:
            return None
        freeze(tx, "being committed")
        payload = _payload(tx)
        if len(payload) > _LARGE or self._log_writer.wants_spare:
            return None
        return payload

    def _ask_plugins(self, tx: TxT) -> None:
        """Call the hooks for *committing* and *final*. Raises `RolledBack` if a plugin raises, is too slow, or changes
        a transaction that it may only look at."""
        payload = None if tx.bulk is None else b""
        for hook in self.hooks.committing:
            self._ask(hook, tx, payload)
        freeze(tx, "being committed")
        if self.hooks.final:
            payload = _payload(tx)
        for hook in self.hooks.final:
            self._ask(hook, tx, payload)

    def _ask(self, hook: Callable[[TxT], None], tx: TxT, payload: bytes | None) -> None:
        """`payload`: what the transaction's payload must still be after the hook; None if the hook may change it."""
        clock = self.env.clock
        began = clock.monotonic()
        try:
            hook(tx)
        except Exception as error:
            raise RolledBack(f"a plugin refused the transaction: {error}", hint="see the plugin's own error") from error
        took = clock.monotonic() - began
        name = getattr(hook, "__qualname__", hook)
        if took > self.settings.hook_s:
            raise RolledBack(f"{name} took {took:.1f} s over the transaction, more than hook_s={self.settings.hook_s}",
                             hint="do the plugin's work outside the commit")
        if payload is not None and tx.payload() != payload:
            what = "the final transaction" if tx.bulk is None else "a bulk load"
            raise RolledBack(f"{name} changed {what}, which takes no additions",
                             hint="let the plugin make its changes in `committing`, and none to a bulk load")

    def _wait_published(self, txid: int) -> None:
        """A read-only transaction may have read unpublished data: wait until it is published, so it cannot vanish."""
        if self._watermarks.published.txid >= txid:
            return
        self.group_commit.sync_within(0.0)
        if not self.group_commit.wait_until(lambda: self._watermarks.published.txid >= txid, self.settings.wait_s):
            raise self.unpublished(txid)

    def unpublished(self, txid: int) -> RolledBack:
        """What ends a transaction that only read, if what it read was not published in time."""
        if self.group_commit.poison is not None:
            return RolledBack("what this transaction read may never have been committed: the store is poisoned",
                              hint="reopen the store and read again")
        return RolledBack(f"what this transaction read (transaction {txid}) was not published in time",
                          hint="a condition on acknowledgement is open; read again later")

    def _finish_barrier(self, record: Record, ticket: CommitTicket, path: Path | None, hold: Hold) -> None:
        """Wait until the record at the barrier may be published, apply it, lift the barrier, and release the writer
        lock. If a condition that gates publication is late, raise `ConditionNotMet`, and do the rest in the
        background."""
        group_commit = self.group_commit
        try:
            ticket.wait_publishable()
        except BaseException as ended:
            # The record is in the log. So whatever ended the wait, the engine must get it once it may be published.
            if group_commit.poison is None:
                group_commit.sync_within(0.0)
                late = Hold(self.lock)  # the lock stays held, but no longer by this thread
                try:
                    hold.pass_on(late)
                    self.env.scheduler.spawn("holdfast-late", lambda: self._apply_late(record, path, late))
                except BaseException as error:  # no more threads, for instance
                    try:
                        group_commit.fail(error)  # before others have the lock: they would append behind the barrier
                    finally:
                        late.release()
                    if not isinstance(error, Exception):
                        raise
                    if isinstance(ended, Exception):
                        raise group_commit.unknown(record.txid) from error
            raise
        self._apply_barrier(record, path, hold)

    def _apply_late(self, record: Record, path: Path | None, late: Hold) -> None:
        self.group_commit.wait_until(lambda: self._watermarks.publishable.txid >= record.txid, None)
        if self._watermarks.publishable.txid < record.txid:
            late.release()
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
                if self._checkpoints.handing is None:  # a call less, in every commit of such an engine
                    self._checkpoints.handed = record.position
                else:
                    self._checkpoints.hand(record.position)
                if path is None:
                    self.engine.apply([record])
                else:
                    self._checkpoints.apply_bulk(record, path)
                with self.group_commit.mutex:
                    self._watermarks.lift(record.position)
            except BaseException as error:
                self.group_commit.fail(error)
                if isinstance(error, Exception):
                    raise self.group_commit.unknown(record.txid) from error
                raise
            self.group_commit.advance()
        finally:
            hold.release()

    def bulk(self, load: Any) -> int:
        engine = self.engine
        if not isinstance(engine, BulkEngine):
            raise Unsupported(f"the {engine.name} engine takes no bulk loads", hint="write ordinary transactions")
        hold = Hold(self.lock)
        txid = hold.ending(lambda: self._load(engine, load, hold))
        self.hooks.tell("checkpointed", engine.position)
        return txid

    def _load(self, engine: BulkEngine[TxT, Any], load: Any, hold: Hold) -> int:
        tx = self.begin(hold)
        try:
            tx.bulk = load
            freeze(tx, "a bulk load")
            try:
                if self.hooks.committing or self.hooks.final:
                    self._ask_plugins(tx)
            finally:
                end(tx, "a bulk load")
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
            self._tell_attached(attachment, path)
            before = self._log_writer.appended.txid
            try:
                record, ticket = self.group_commit.append(payload, engine.payload_version, attachment, None,
                                                          barrier=True)
            except BaseException as error:
                if self._log_writer.appended.txid == before:
                    with contextlib.suppress(OSError):  # no record names the file: the next opening removes it
                        self.env.files.unlink(path, missing_ok=True)
                else:  # the record is in the log and names the file, but this process will never apply it
                    self.group_commit.fail(error)
                    if isinstance(error, Exception):
                        raise self.group_commit.unknown(before + 1) from error
                raise
            self._finish_barrier(record, ticket, path, hold)
            ticket.wait()
            return record.txid
        except BaseException as error:
            if hold.held and self._watermarks.barrier is not None:
                self.group_commit.fail(error)  # as in `_commit`
            raise

    def _tell_attached(self, attachment: Attachment, path: Path) -> None:
        try:
            for hook in self.hooks.attached:
                hook(attachment)
        except BaseException as error:
            with contextlib.suppress(OSError):  # no record names the file: the next opening removes it
                self.env.files.unlink(path, missing_ok=True)
            if isinstance(error, Exception):
                raise RolledBack(f"a plugin refused the bulk load: {error}",
                                 hint="see the plugin's own error") from error
            raise

    def mark(self, *, wait: bool = True) -> int:
        """Log a kit record as an ordinary commit. Returns its txid. Without `wait`, it is synced within the bound for
        relaxed commits, and `RolledBack` is raised if another writer has the lock. Raises as `Store.transaction`."""
        usability, hold = self.usability, Hold(self.lock)
        if usability.ended is not None or usability.no_writes:
            raise usability.error()
        if self.lock.held_here():
            raise InvalidInput("this thread has a transaction open", hint="end it first")
        ticket = hold.ending(lambda: self._mark(hold, wait))
        if wait:
            ticket.wait()
        else:
            ticket.drop()
        return ticket.txid

    def _mark(self, hold: Hold, wait: bool) -> CommitTicket:
        usability = self.usability
        while not hold.take(LOOK_S if wait else 0.0):
            usability.check_writable()
            if not wait:
                raise RolledBack("another writer has the lock, so the store is not idle", hint="mark it later")
        if usability.ended is not None or usability.no_writes:
            raise usability.error()
        return self.group_commit.append(b"", 0, None, None, barrier=False)[1]

    def wait(self, txid: int, timeout: float | None) -> None:
        if timeout is not None and timeout != 0:
            check_duration("timeout", timeout)
        if txid > self._watermarks.appended.txid:
            raise InvalidInput(f"there is no transaction {txid} yet; the last is {self._watermarks.appended.txid}",
                               hint="pass the txid of a transaction of this store")
        if self._watermarks.acknowledged.txid < txid:
            self.group_commit.sync_within(0.0)
        if not self.group_commit.wait_until(lambda: self._watermarks.acknowledged.txid >= txid, timeout):
            if self.group_commit.poison is not None or self.group_commit.gives_up_unknown:
                raise self.group_commit.unknown(txid)
            raise ConditionNotMet(f"transaction {txid} was not acknowledged within {timeout} s", txid=txid)

    def complete_until_us(self) -> int:
        group_commit = self.group_commit
        if not self.usability.read_only:
            group_commit.heartbeat(start=True)
        with group_commit.mutex:
            published = self._watermarks.published.txid
            if published == self._watermarks.appended.txid and not group_commit.member:
                return self.log.complete_us
        return self.log.time_of(published)


def _payload(tx: Transaction) -> bytes:
    """Raises `RolledBack` if the engine lacks what it takes."""
    try:
        return tx.payload()
    except (DiskFull, LimitReached, DirectoryMoved) as error:
        raise rolled_back(error, "the payload of the transaction could not be made") from error
