"""The store: an engine driven by a log, open in one process.

    writers ─► draft ─► hooks ─► log: append ─► group fsync ─► (held acks) ─► publish ─► views ─► readers
                                                                                │
                                                                           checkpoint ─► image

One writer drafts at a time, under the writer lock. Committing appends the payload to the log; where the engine stages,
the lock is free again at once and the next writer builds on what is appended, so that one sync serves many. Where it
does not, and for a bulk load, the lock stays taken until the engine has the transaction: such a record is a *barrier*,
and whoever committed it applies it as soon as it may be published.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self

from .acknowledger import Acknowledger
from .committer import Committer
from .contract import BulkEngine, Engine, Image, StagingEngine, TxT, ViewT
from .errors import (
    ConditionNotMet,
    DiskFull,
    HoldfastError,
    InvalidInput,
    OutcomeUnknown,
    PluginError,
    RolledBack,
    StoreClosed,
    Unsupported,
)
from .history import History, Position, Record
from .housekeeper import Housekeeper
from .leases import Leases
from .opening import Opened, follow, open_for_writing, open_to_read
from .plugins import Hooks, Plugin, find_plugin
from .seams import REAL, Seams, is_disk_full
from .settings import Durability, Settings
from .stages import Stages

logger = logging.getLogger("holdfast.store")

_open_stores: weakref.WeakSet[Store[Any, Any]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Positions:
    """The stages of a store, as txids."""

    appended: int
    durable: int
    acknowledged: int
    published: int
    checkpointed: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a store found and did.

    Attributes:
        clean: it had been closed properly.
        replayed: transactions replayed over the engine's durable state.
        cut_bytes, cut_path, cut_offset: a torn end of the log that was cut; it held nothing acknowledged.
        rewritten_bytes: bytes written again because they were perhaps in memory only.
    """

    clean: bool
    replayed: int
    cut_bytes: int
    cut_path: str | None
    cut_offset: int
    rewritten_bytes: int


class TransactionScope(Generic[TxT]):
    """What `Store.transaction` returns: a context manager that yields the engine's draft, commits it at the end of the
    block, and rolls it back if the block raises."""

    __slots__ = ("_draft", "_durability", "_store")

    def __init__(self, store: Store[TxT, Any], durability: Durability) -> None:
        self._store = store
        self._durability = durability

    def __enter__(self) -> TxT:
        self._draft = self._store._begin()
        return self._draft

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self._store._commit(self._draft, self._durability)
        else:
            self._store._roll_back(self._draft)


class Store(Generic[TxT, ViewT]):
    """See the module's text. Made by `open`; a context manager; safe to use from any number of threads.

    Attributes:
        directory: where it is.
        instance: random id of this opening, hex.
        engine, log, leases, hooks, settings, seams: its parts.
        recovery: what opening found.
        read_only: whether it was opened so.
        backup_uri: where its backup service answers, or None.
    """

    def __init__(self, directory: Path, opened: Opened, hooks: Hooks, settings: Settings, seams: Seams) -> None:
        self.directory = directory
        self.instance = seams.randomness.token(16).hex()
        self.engine: Engine[TxT, ViewT] = opened.engine
        self.log = opened.log
        self.hooks = hooks
        self.settings = settings
        self.seams = seams
        self.leases = Leases(seams)
        self.backup_uri: str | None = None
        self.read_only = opened.lock is None
        found = opened.log.recovery
        self.recovery = Recovery(found.clean, opened.replayed, found.cut_bytes, found.path if found.cut_bytes else None,
                                 found.cut_offset, found.rewritten_bytes)
        self._opened = opened
        self._staging = self.engine if isinstance(self.engine, StagingEngine) else None
        end = self.log.end
        if self._staging is not None:
            self._staging.publish(end)
        self._handed = end
        self._stages = Stages(end, self.engine.position, len(hooks.logged))
        self._unusable: str | None = None
        self._writer = seams.scheduler.lock()
        self._writer_thread: int | None = None
        self._checkpointing = seams.scheduler.lock()
        self._slow = min(settings.checkpoint_soft_bytes, settings.unwritten_bytes)
        self._pressure = threading.Condition()
        self._ending = threading.RLock()
        self._ends = False
        self._delayed_commits = 0
        self._checkpoints = 0
        self._pid = os.getpid()
        self.committer = Committer(self.log, self._stages, hooks, seams, relaxed_s=settings.relaxed_ms / 1000,
                                   on_published=self._staging.publish if self._staging else _nothing, on_fault=self._on_fault)
        self._acknowledger = None
        if hooks.logged:
            self._acknowledger = Acknowledger(self.committer, hooks, seams)
            self.committer.on_synced = self._acknowledger.notice
        self._housekeeper = None if self.read_only else Housekeeper(self)
        _open_stores.add(self)

    @classmethod
    def open(cls, directory: str | Path, engine: type[Engine[TxT, ViewT]], *, create: bool = True,
             read_only: bool = False, plugins: Iterable[Plugin | str] = (), options: Mapping[str, Any] | None = None,
             settings: Settings | None = None, seams: Seams = REAL) -> Self:
        """Open the store in `directory`, and recover it.

        Args:
            directory: of a store or of a backup. Opening a backup for writing makes it a store of its own.
            engine: the engine's class.
            create: make an empty store if there is none.
            read_only: change no byte. Shows the log up to the end that is known to be durable.
            plugins: objects, or names registered in the entry-point group `holdfast.plugins`.
            options: the engine's own.
            settings, seams: see there.

        Raises:
            StoreLocked, StoreNotFound, StoreExists, WrongEngine, Damaged, UnsupportedFormat, UpgradeRequired, DiskFull,
            SettingError, PluginError.
        """
        root = Path(directory)
        settings = settings or Settings()
        hooks = Hooks([find_plugin(p) if isinstance(p, str) else p for p in plugins])
        try:
            if read_only:
                opened = open_to_read(root, engine, options=options or {}, settings=settings, seams=seams)
            else:
                opened = open_for_writing(root, engine, create=create, options=options or {}, settings=settings,
                                          seams=seams)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(f"no room to open {root}") from error
            raise
        store = cls(root, opened, hooks, settings, seams)
        if store.recovery.cut_bytes and not read_only:
            logger.warning("%s was not closed properly: %d bytes of a torn group were cut at byte %d of %s", root,
                           store.recovery.cut_bytes, store.recovery.cut_offset, store.recovery.cut_path)
        try:
            if opened.manifest is not None and not read_only:
                store.checkpoint()  # so that the copy's p0 and p1 need no longer be remembered
            for hook in hooks.opened:
                hook(store)
        except BaseException as error:
            store.close()
            if isinstance(error, HoldfastError) or not isinstance(error, Exception):
                raise
            raise PluginError(f"a plugin could not start: {error}") from error
        return store

    # --- where it stands -------------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        return self.log.history

    @property
    def durable(self) -> Position:
        return self._stages.durable

    @property
    def published(self) -> Position:
        return self._stages.published

    @property
    def handed(self) -> Position:
        """The highest position that the engine may have in its files: what a moving image must be replayed to."""
        return self._handed

    @property
    def poisoned(self) -> bool:
        return self.committer.poison is not None

    @property
    def closed(self) -> bool:
        return self._unusable is not None

    def positions(self) -> Positions:
        s = self._stages
        # From the last to the first: each read moves on at most, so what comes before is never behind what comes after.
        checkpointed, published, acknowledged = s.checkpointed.txid, s.published.txid, s.acknowledged.txid
        return Positions(durable=s.durable.txid, appended=s.appended.txid, acknowledged=acknowledged,
                         published=published, checkpointed=checkpointed)

    def complete_until_us(self) -> int:
        """Every transaction with a commit time up to this one is published, and none will come later."""
        with self.committer.mutex:
            if self._stages.published.txid == self._stages.appended.txid:
                return self.log.complete_now()
            published = self._stages.published.txid
        return self.log.time_of(published)

    def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as plain values."""
        return {
            "directory": str(self.directory), "engine": self.engine.name, "instance": self.instance,
            "store_id": self.history.store_id.hex(), "branch": self.history.branch.id.hex(), "epoch": self.log.epoch,
            "positions": asdict(self.positions()), "log": self.log.status(),
            "pending_bytes": self.engine.pending_bytes(), "checkpoints": self._checkpoints,
            "delayed_commits": self._delayed_commits, "poisoned": str(self.committer.poison or "") or None,
            "checkpoint_blocked": str(self._housekeeper.blocked or "") or None if self._housekeeper else None,
            "leases": [asdict(lease) for lease in self.leases.list()],
            "consumers": [{"id": c.id, "name": c.name, "txid": c.position.txid, "seen_us": c.seen_us}
                          for c in self.log.consumers.list()],
            "backup_uri": self.backup_uri, "read_only": self.read_only,
        }

    # --- writing ---------------------------------------------------------------------------------------------------

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
            raise InvalidInput(f"durability is 'synced', 'pipelined' or 'relaxed', not {durability!r}")
        return TransactionScope(self, durability)

    def _begin(self) -> TxT:
        if self._unusable is not None or self.read_only:
            raise self._why_unusable()
        if self.engine.pending_bytes() >= self._slow or self.log.waiting_bytes >= self._slow:
            self._relieve()
        me = threading.get_ident()
        if not self._writer.acquire(False):
            if self._writer_thread == me:
                raise InvalidInput("this thread has a transaction open already", hint="end it before beginning another")
            self._writer.acquire()
        self._writer_thread = me
        try:
            if self._unusable is not None:
                raise self._why_unusable()
            if self.committer.poison is not None:
                raise self.committer.poisoned()
            return self.engine.begin()
        except BaseException:
            self._release_writer()
            raise

    def _release_writer(self) -> None:
        self._writer_thread = None
        self._writer.release()

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
                if keeper.blocked is not None:
                    raise DiskFull(f"no room for a checkpoint, and {settings.checkpoint_hard_bytes:,} bytes are waiting "
                                   "for it") from keeper.blocked
                if self.seams.clock.monotonic() >= deadline:
                    raise RolledBack(f"the checkpoint did not catch up within {settings.wait_s} s",
                                     hint="try again; a slower load or a larger checkpoint_hard_bytes avoids this")
                keeper.wake()
                self._pressure.wait(0.05)

    def notify_pressure(self) -> None:
        """Used by the housekeeper: a checkpoint was made, or could not be."""
        with self._pressure:
            self._pressure.notify_all()

    def _roll_back(self, draft: TxT) -> None:
        draft.seal("rolled back")
        draft.close()
        self._release_writer()

    def _commit(self, draft: TxT, durability: Durability) -> None:
        held = True
        try:
            if self.hooks.committing or self.hooks.final:
                self._ask_plugins(draft)
            payload = draft.payload()
            if not payload:
                seen = self._stages.appended.txid
                held = False
                self._release_writer()
                self._wait_published(seen)
                return
            if self._unusable is not None:
                raise RolledBack(f"{self.directory} {self._unusable}")
            staging = self._staging
            before = self.log.appended.txid
            try:
                record = self.committer.append(payload, self.engine.payload_version, None, barrier=staging is None,
                                               promise=durability != "relaxed" or staging is None)
                draft.txid = record.txid
                if staging is not None:
                    staging.stage(record, draft)
            except BaseException as error:
                if self.log.appended.txid == before:
                    raise
                self.committer.fail(error)  # it is in the log and not in the state: only reopening can mend that
                if isinstance(error, Exception):
                    raise self.committer.unknown(before + 1) from error
                raise
            held = False
            if staging is not None:
                self._release_writer()
            else:
                self._finish_barrier(record, None)
        finally:
            draft.seal("ended")
            draft.close()
            if held:
                self._release_writer()
        if durability == "synced":
            self.committer.wait(record.txid)
        elif durability == "pipelined":
            draft.outcome = self.committer.outcome(record.txid)
        else:
            self.committer.sync_within()

    def _ask_plugins(self, draft: TxT) -> None:
        """The moments *committing* and *final*. Raises `RolledBack` from what a plugin raises."""
        try:
            for hook in self.hooks.committing:
                hook(draft)
            draft.seal("being committed")
            for hook in self.hooks.final:
                hook(draft)
        except Exception as error:
            raise RolledBack(f"a plugin refused the transaction: {error}", hint="see the plugin's own error") from error

    def _wait_published(self, txid: int) -> None:
        """What was read is in the end not taken back: wait until it is published."""
        if self._stages.published.txid >= txid:
            return
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
                self.seams.scheduler.spawn("holdfast-late", lambda: self._apply_late(record, path))
            else:
                self._release_writer()
            raise
        self._apply_barrier(record, path)
        if future is not None:
            future.result()

    def _apply_late(self, record: Record, path: Path | None) -> None:
        self.committer.wait_until(lambda: self._stages.publishable.txid >= record.txid, None)
        if self._stages.publishable.txid < record.txid:
            self._release_writer()
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
            except BaseException as error:
                self.committer.fail(error)
                raise self.committer.unknown(record.txid) from error
            with self.committer.mutex:
                self._stages.lift(record.position)
            self.committer.settle()
        finally:
            self._release_writer()

    def _apply_bulk(self, engine: BulkEngine[TxT, ViewT], record: Record, path: Path) -> None:
        """It is in the log, so it must get into the state: without room, wait until there is some."""
        while True:
            try:
                engine.apply_bulk(record, path)
                break
            except DiskFull:
                logger.warning("transaction %d, a bulk load, waits for room to be applied", record.txid)
                if self._unusable is not None or self.committer.wait_until(lambda: self._unusable is not None, 1.0):
                    raise
        self._stages.checkpoint(engine.position)

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
        draft = self._begin()
        held = True
        try:
            draft.seal("a bulk load")
            draft.close()
            self._wait_published(self._stages.appended.txid)
            out = self.log.new_attachment()
            try:
                payload = engine.write_bulk(load, out)  # type: ignore[arg-type]  # a raw stream is binary I/O enough
                attachment = out.finish()
            except BaseException:
                out.abandon()
                raise
            path = self.log.attachment_path(attachment.name)
            try:
                record = self.committer.append(payload, engine.payload_version, attachment, barrier=True, promise=True)
            except BaseException:
                self.seams.files.unlink(path, missing_ok=True)
                raise
            held = False
            self._finish_barrier(record, path)
        finally:
            if held:
                self._release_writer()
        self.hooks.tell("checkpointed", self.engine.position)
        return record.txid

    def wait(self, txid: int, timeout: float | None = None) -> None:
        """Wait until a transaction is acknowledged, for instance after `ConditionNotMet`.

        Raises:
            ConditionNotMet: not within `timeout` seconds.
            OutcomeUnknown: the store is poisoned.
        """
        if self._stages.acknowledged.txid < txid <= self._stages.appended.txid:
            self.committer.sync_within(0.0)
        if not self.committer.wait_until(lambda: self._stages.acknowledged.txid >= txid, timeout):
            if self.committer.poison is not None:
                raise self.committer.unknown(txid)
            raise ConditionNotMet(f"transaction {txid} was not acknowledged within {timeout} s", txid=txid)

    def wait_published(self, after: int, timeout: float) -> int:
        """Wait up to `timeout` seconds until something after `after` is published; the last published txid."""
        self.committer.wait_until(lambda: self._stages.published.txid > after or self._unusable is not None, timeout)
        return self._stages.published.txid

    def _on_fault(self, error: BaseException) -> None:
        logger.error("%s is poisoned and takes no more writes: %s", self.directory, error)
        self.hooks.tell("fault", error)

    # --- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self, *, unsynced: bool = False, at_least: int | None = None) -> ViewT:
        """A read view of everything published.

        Args:
            unsynced: show also what is appended and not yet synced or acknowledged (engines that stage).
            at_least: wait until this transaction is published.

        Raises:
            StoreClosed, Unsupported, ConditionNotMet (`at_least` is not published within the setting `wait_s`),
            StorePoisoned (with `unsynced`).
        """
        if self._unusable is not None:
            raise self._why_unusable()
        if at_least is not None and self._stages.published.txid < at_least:
            self.committer.sync_within(0.0)
            if not self.committer.wait_until(lambda: self._stages.published.txid >= at_least, self.settings.wait_s):
                raise ConditionNotMet(f"transaction {at_least} is not published", txid=at_least)
        if unsynced:
            if self._staging is None:
                raise Unsupported(f"the {self.engine.name} engine does not stage", hint="leave out unsynced=")
            if self.committer.poison is not None:  # what is staged and not published may never have been
                raise self.committer.poisoned()
            staged: ViewT = self._staging.staged_view()
            return staged
        view: ViewT = self.engine.view()
        return view

    def refresh(self) -> int:
        """Read-only stores: show what the writer in another process has made durable since; the last txid shown.

        Raises:
            LogPruned, Unsupported: it went too far to be followed; open it again.
        """
        if self._unusable is not None or not self.read_only:
            raise InvalidInput(f"{self.directory} is not open read-only", hint="a store that writes is always up to date")
        before = self.log.end
        log, replayed = follow(self._opened, self.settings, self.seams)
        self.log, self._opened.log = log, log
        if replayed:
            logger.debug("%s: %d more transactions", self.directory, replayed)
        self._stages.append(log.end)
        self._stages.synced(log.end)
        if self._staging is not None:
            self._staging.publish(log.end)
        assert log.end.txid >= before.txid
        return log.end.txid

    def image(self) -> Image:
        """The engine's image, for a source. Hold a lease on the log after the present checkpoint first."""
        if self._unusable is not None or self.read_only:
            raise self._why_unusable()
        return self.engine.image()

    # --- checkpoints and pruning -----------------------------------------------------------------------------------

    def checkpoint(self) -> Position:
        """Make the engine's durable state hold everything published; the position it reached.

        Raises:
            DiskFull: try again when there is room.
            StorePoisoned: the engine failed in the middle; the store is poisoned.
        """
        if self._unusable is not None or self.read_only:
            raise self._why_unusable()
        if self.engine.abilities.background_checkpoint:
            with self._checkpointing:
                return self._checkpoint()
        if self._writer_thread == threading.get_ident():
            raise InvalidInput("this thread has a transaction open", hint="end it before asking for a checkpoint")
        while not self._writer.acquire(timeout=0.5):  # not for ever: whoever holds it may wait for us to end
            if self._unusable is not None or (self._housekeeper is not None and self._housekeeper.closing):
                raise StoreClosed(f"{self.directory} is being closed")
        try:
            with self._checkpointing:
                if self._unusable is not None:
                    raise self._why_unusable()
                return self._checkpoint()
        finally:
            self._writer.release()

    def _checkpoint(self) -> Position:
        if self.committer.poison is not None:
            raise self.committer.poisoned()
        upto = self._stages.published
        if upto.txid > self.engine.position.txid:
            if upto.txid > self._handed.txid:
                self._handed = upto
            try:
                reached = self.engine.checkpoint(upto)
            except DiskFull:
                raise
            except BaseException as error:
                self.committer.fail(error)
                raise self.committer.poisoned() from error
            self._stages.checkpoint(reached)
            self._checkpoints += 1
            self.hooks.tell("checkpointed", reached)
        self._settle_manifest()
        return self.engine.position

    def _settle_manifest(self) -> None:
        manifest = self._opened.manifest
        if manifest is not None and self.engine.position.txid >= manifest.p1.txid:
            manifest.settle().write(self.seams.files, self._opened.generation)
            self._opened.manifest = None

    def prune(self) -> int:
        """Delete the log that need not be kept, now; how many segments went."""
        if self._unusable is not None or self._housekeeper is None:
            raise self._why_unusable()
        return len(self._housekeeper.prune())

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop plugins, sync and seal the log, checkpoint, let go. Fine to call twice."""
        if self._writer_thread == threading.get_ident() and self._unusable is None:
            raise InvalidInput("this thread has a transaction open", hint="end it before closing the store")
        if self._pid != os.getpid():
            return  # carried across a fork: nothing of it is ours
        with self._ending:  # whoever comes second waits until it is closed
            if not self._ends:
                self._ends = True
                self._close()

    def _close(self) -> None:
        self.hooks.tell("closing", self)
        if self._housekeeper is not None:
            self._housekeeper.close()
        # An open transaction of another thread ends first, within bounds.
        locked = self._writer.acquire(timeout=self.settings.wait_s)
        self._unusable = "is closed"
        if not locked:
            logger.error("%s is closed while a transaction is open", self.directory)
        self.committer.close()
        if self._acknowledger is not None:
            self._acknowledger.close()
        self.committer.give_up(0, 1 << 63, "was not acknowledged before the store was closed")
        self.leases.close()
        try:
            if not self.read_only:
                self._leave_in_order()
        finally:
            self.engine.close()
            if self._opened.scratch is not None:
                self._opened.scratch.cleanup()
            if self._opened.lock is not None:
                self._opened.lock.release()
            _open_stores.discard(self)
            if locked:
                self._writer.release()  # so that who waits for it learns that the store is closed

    def _leave_in_order(self) -> None:
        if self.committer.poison is not None:
            self.log.abandon()
            return
        try:
            with self._checkpointing:
                self._checkpoint()
        except HoldfastError as error:
            logger.warning("%s is closed without a checkpoint: %s", self.directory, error)
        try:
            self.log.close()
        except (OSError, HoldfastError):
            logger.exception("the log of %s could not be sealed; the next opening recovers it", self.directory)
            self.log.abandon()

    def abandon_after_fork(self) -> None:
        """In a child process: neither lock nor socket nor log is ours."""
        self._unusable = f"was carried across a fork; it is open in process {self._pid}"
        self.hooks.tell("forked")
        self.log.abandon()
        if self._opened.lock is not None:
            self._opened.lock.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _nothing(position: Position) -> None:
    """An engine that does not stage shows what is applied."""


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
