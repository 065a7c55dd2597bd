"""The store: an engine driven by a log, open in one process.

    writers ─► transaction ─► hooks ─► log: append ─► group fsync ─► (held acks) ─► publish ─► views ─► readers
                                                                                │
                                                                           checkpoint ─► image

This module puts the parts together and has the calls for users: open, read, write, checkpoint, close. `write_path.py`
has the writing.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self

from .. import renamed
from ..contract.engine import Engine, StagingEngine, TxT, ViewT
from ..contract.image import Image
from ..contract.plugin import Plugin
from ..contract.registry import listed
from ..contract.transaction import Durability
from ..env import REAL, Env
from ..env.owned_lock import Hold, OwnedLock
from ..env.shown import shown
from ..env.system import is_limit, system_errors, told
from ..errors import (
    ConditionNotMet,
    HoldfastError,
    InvalidInput,
    PluginError,
    SettingError,
    StoreClosed,
    Unsupported,
)
from ..model.positions import History, Position
from .ack_tracker import AckTracker
from .backpressure import Backpressure
from .checkpoints import Checkpoints
from .group_commit import GroupCommit
from .hooks import Hooks
from .leases import Leases
from .maintenance import Maintenance
from .open_read_only import follow, open_to_read
from .open_writable import open_for_writing
from .opened import Opened
from .pacing import Pacing
from .recovery_report import Recovery
from .replica import Replica
from .settings import Settings, checked_options
from .usability import Usability
from .watermarks import Positions, Watermarks
from .write_path import TransactionScope, WritePath

logger = logging.getLogger("holdfast.store")

_DEPOSED_S = 0.5
"""How long closing waits for an open transaction if new ones are refused, because another member takes over."""

_open_stores: weakref.WeakSet[Store[Any, Any]] = weakref.WeakSet()


class Store(Generic[TxT, ViewT]):
    """See the module's text. Made by `open`; a context manager; safe to use from any number of threads.

    Attributes:
        directory: the store's directory, absolute.
        instance: a random id of this opening, hex.
        engine, log, leases, pacing, hooks, settings, env, group_commit, backpressure, checkpoints, write_path: its
            parts.
        options: the engine's options that the store was opened with.
        state_format, payload_version: the engine's, at the time of opening.
        recovery: what opening found.
        read_only: whether the store was opened read-only.
        replica: what a member of a cluster uses; None in any other store.
        backup_uri: where its backup service answers, or None.
    """

    seams = renamed.attribute("seams", "env")

    def __init__(self, directory: Path, opened: Opened, hooks: Hooks, options: Mapping[str, Any], settings: Settings,
                 env: Env, *, replica: bool = False) -> None:
        self.directory = directory
        self.instance = env.randomness.token(16).hex()
        self.engine: Engine[TxT, ViewT] = opened.engine
        self.state_format, self.payload_version = self.engine.state_format, self.engine.payload_version
        self.log = opened.log
        self.hooks = hooks
        self.options = options
        self.settings = settings
        self.env = env
        self.leases = Leases(env)
        self.backup_uri: str | None = None
        self.read_only = opened.lock is None
        self.recovery = Recovery.of(opened.log, opened.replayed)
        self._opened = opened
        self._staging = self.engine if isinstance(self.engine, StagingEngine) else None
        end = self.log.end if opened.shown is None else opened.shown
        if self._staging is not None:
            self._staging.publish(opened.applied)
        self._watermarks = Watermarks(self.log.end, self.engine.position, len(hooks.logged), end)
        self.pacing = Pacing(settings.image_rate, self._watermarks, env)
        self._usability = Usability(directory, read_only=self.read_only)
        self._ending = OwnedLock(env)
        self._told_closing = False
        self._patience_s = settings.wait_s  # how long `close` waits for an open transaction to end
        self._pid = os.getpid()
        self.group_commit = GroupCommit(self.log, self._watermarks, hooks, env, relaxed_s=settings.relaxed_ms / 1000,
                                        staging=self._staging, on_fault=partial(_tell_fault, directory, hooks))
        self.group_commit.applied(opened.applied, end)
        self._ack_tracker = None
        self._maintenance = None
        self.backpressure = Backpressure(self.engine, self.log, self.group_commit, settings, env)
        self.checkpoints = Checkpoints(self.engine, self.group_commit, hooks, env, self._usability,
                                       settle=opened.settle)
        self.write_path = WritePath(self.engine, self.group_commit, hooks, self.backpressure, self.checkpoints,
                                    settings, env, self._usability)
        self.replica: Replica | None = None
        try:
            if replica:
                self.replica = Replica(self.engine, self.group_commit, self.checkpoints, self.backpressure,
                                       self.write_path, env)
            if hooks.logged:
                self._ack_tracker = AckTracker(self.group_commit, hooks, env)
                self.group_commit.on_synced = self._ack_tracker.notice
            if opened.lock is not None:
                self._maintenance = Maintenance(self, self.backpressure, opened.lock)
        except BaseException:
            self._stop_committing()
            raise
        _open_stores.add(self)

    @classmethod
    @renamed.arguments(seams="env")
    def open(cls, directory: str | Path, engine: type[Engine[TxT, ViewT]], *, create: bool = True,
             read_only: bool = False, plugins: Iterable[Plugin | str] = (), options: Mapping[str, Any] | None = None,
             settings: Settings | None = None, env: Env = REAL, replica: int | None = None) -> Self:
        """Open the store in `directory`, and recover it.

        Args:
            directory: of a store or of a backup. Opening a backup for writing makes it a store of its own.
            engine: the engine's class.
            create: make an empty store if there is none.
            read_only: change no byte. The store shows the log up to the end that is known to be durable. If no process
                has the store open for writing now, none can open it for writing until this one is closed.
            plugins: objects, or names registered in the entry-point group `holdfast.plugins`.
            options: the engine's own. A `Path` among them is made absolute.
            settings, env: see `Settings` and `Env`.
            replica: open for following another log, see `replica.py`. Only the log up to this transaction is applied
                and shown, or up to what the engine's state already holds. The rest stays durable and unpublished.

        Raises:
            StoreLocked, StoreNotFound, StoreExists, WrongEngine, Damaged, UnsupportedFormat, UpgradeRequired, DiskFull,
            LimitReached, AccessDenied, DeviceFailed, SettingError, PluginError.
        """
        root = env.files.absolute(directory)
        if replica is not None and (type(replica) is not int or replica < 0 or read_only):
            raise SettingError(f"replica={shown(replica)} is not the number of a transaction, or the store is opened "
                               "read-only", hint="pass the last transaction that is known to be published")
        settings = Settings() if settings is None else settings
        if not isinstance(settings, Settings):
            raise SettingError(f"{shown(settings)} is not a Settings", hint="pass settings=Settings(…)")
        options = checked_options(options, env.files)
        hooks = Hooks(listed(plugins), env.scheduler)
        with system_errors(f"cannot open {root}"):
            if read_only:
                opened = open_to_read(root, engine, options=options, settings=settings, env=env)
            else:
                opened = open_for_writing(root, engine, create=create, options=options, settings=settings, env=env,
                                          prune=not hooks.pruning, replica=replica)
            try:
                store = cls(root, opened, hooks, options, settings, opened.env, replica=replica is not None)
            except BaseException:  # no more threads, for instance
                opened.log.abandon()
                opened.release()
                raise
        if store.recovery.cut_bytes and not read_only:
            logger.warning("%s was not closed properly: %d bytes of a torn group were cut at byte %d of %s", root,
                           store.recovery.cut_bytes, store.recovery.cut_offset, store.recovery.cut_path)
        try:
            if opened.copied is not None:
                store.checkpoint()  # from here on, the copied image's positions need not be remembered
            hooks.open(store)
        except BaseException as error:
            store.close()
            if isinstance(error, HoldfastError) or not isinstance(error, Exception):
                raise
            limit = told(error, f"cannot open {root}: a plugin could not start") if is_limit(error) else None
            raise limit or PluginError(f"a plugin could not start: {error}") from error
        opened.undo = None
        return store

    # --- where it stands -------------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """The identity of the store, and its branches."""
        return self.log.history

    @property
    def durable(self) -> Position:
        """Everything up to here is on stable storage."""
        return self._watermarks.durable

    @property
    def published(self) -> Position:
        """Views show everything up to here."""
        return self._watermarks.published

    @property
    def handed(self) -> Position:
        """The highest position that the engine's files may contain: a moving image must be replayed up to here."""
        return self.checkpoints.handed

    @property
    def poisoned(self) -> bool:
        """Whether a failed write or sync has poisoned the store."""
        return self.group_commit.poison is not None

    @property
    def closed(self) -> bool:
        """Whether the store can no longer be used."""
        return self._usability.ended is not None

    def positions(self) -> Positions:
        """All watermarks, consistent with one another. From any thread, O(1)."""
        return self._watermarks.positions()

    def complete_until_us(self) -> int:
        """A time, microseconds since the Unix epoch. Every transaction with a commit time up to it is published, and
        no later one will get such a time. The log holds this promise, so it survives a crash and a clock set back."""
        self._usability.check()
        return self.write_path.complete_until_us()

    @property
    def clock_doubted_us(self) -> int:
        """Microseconds by which the clock is ahead of the time that the ages of log and slots are measured by; 0 if the
        clock is believed. See the setting `clock_is_right`."""
        return 0 if self._maintenance is None else self._maintenance.calendar.doubted_us

    def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as plain values. O(leases + slots)."""
        return {
            "directory": str(self.directory), "engine": self.engine.name, "instance": self.instance,
            "store_id": self.history.store_id.hex(), "branch": self.history.branch.id.hex(), "epoch": self.log.epoch,
            "positions": asdict(self.positions()), "log": self.log.status(),
            "pending_bytes": self.engine.pending_bytes(), "checkpoints": self.checkpoints.made,
            "delayed_commits": self.backpressure.delayed, "poisoned": str(self.group_commit.poison or "") or None,
            "checkpoint_blocked": str(self.backpressure.blocked or "") or None,
            "leases": [asdict(lease) for lease in self.leases.list()],
            "slots": [{"id": c.id, "name": c.name, "txid": c.position.txid, "seen_us": c.seen_us}
                      for c in self.log.slots.list()],
            "clock_doubted_us": self.clock_doubted_us,
            "backup_uri": self.backup_uri, "read_only": self.read_only,
            "plugins": [{"name": fact.name, "of": fact.of, "value": fact.value} for fact in self.hooks.shown()],
        }

    # --- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self, *, unsynced: bool = False, at_least: int | None = None) -> ViewT:
        """A read view of everything published.

        Args:
            unsynced: also show what is appended but not yet synced or acknowledged. The engine must stage.
            at_least: wait until this transaction is published.

        Raises:
            StoreClosed.
            ConditionNotMet: `at_least` was not published within `Settings.wait_s`.
            Unsupported, StorePoisoned: only with `unsynced`.
        """
        if self._usability.ended is not None:
            raise self._usability.error()
        if at_least is not None and self.group_commit.shown < at_least:
            self.group_commit.sync_within(0.0)
            if not self.group_commit.wait_until(lambda: self.group_commit.shown >= at_least, self.settings.wait_s):
                raise ConditionNotMet(f"transaction {at_least} is not published", txid=at_least,
                                      hint="it is not committed yet, or waits for a condition; ask again later")
        if unsynced:
            if self._staging is None:
                raise Unsupported(f"the {self.engine.name} engine does not stage", hint="leave out unsynced=")
            if self.group_commit.poison is not None:  # what is staged but not published may never become durable
                raise self.group_commit.poisoned()
            staged: ViewT = self._staging.staged_view()
            return staged
        return self.engine.view()

    def refresh(self) -> int:
        """In a read-only store, show what the writer in another process has made durable since. Returns the last txid
        shown. O(new log).

        Raises:
            LogPruned, Unsupported: the writer is too far ahead; open the store again.
            Whatever the engine, the disk or a signal handler raises. If that was in the middle of applying
            transactions, this store is then closed to use: open it again.
        """
        if not self.read_only:
            raise InvalidInput(f"{self.directory} is not open read-only",
                               hint="a store that writes is always up to date")
        replayed = self.write_path.lock.run(self._refresh, lambda: None)  # one at a time
        logger.debug("%s: %d more transactions", self.directory, replayed)
        return self.log.end.txid

    def _refresh(self) -> int:
        """Apply what is new, with the writer lock held. Returns how many transactions that were."""
        self._usability.check()
        try:
            replayed = follow(self._opened, self.settings, self.env)
            self.group_commit.follow(self.log.end, self._opened.applied)
        except BaseException:
            if self._opened.half_way:
                self._usability.ended = "was interrupted during a refresh"
            raise
        self._opened.half_way = False
        return replayed

    def image(self) -> Image:
        """The engine's image, for a source. First take a lease on the log after the present checkpoint."""
        self._usability.check()
        if self._opened.reader is not None:
            raise Unsupported(f"{self.directory} is open read-only while another process writes it",
                              hint="back up from the writer's service")
        self.env.files.look(self.directory)
        return self.checkpoints.image()

    # --- writing ---------------------------------------------------------------------------------------------------

    def transaction(self, durability: Durability | None = None) -> TransactionScope[TxT]:
        """A write transaction: `with store.transaction() as tx: …`.

        Args:
            durability: `synced`, `pipelined` or `relaxed`; None for that of the store's `Settings`.

        Raises, at the end of the block:
            RolledBack: the transaction is certainly not in the store. The error is also a `DiskFull`, `LimitReached`,
                `DirectoryMoved` or `StorePoisoned` if that is the cause.
            ConditionNotMet: the transaction is durable here, but a plugin's condition is still open.
            OutcomeUnknown: the transaction may or may not be durable; reopen the store and look.
        """
        return self.write_path.transaction(durability, self)

    def bulk(self, load: Any) -> int:
        """Load in bulk, as one transaction whose data is in a file beside the log.

        Args:
            load: what the engine takes.

        Returns:
            Its txid.

        Raises:
            Unsupported: the engine takes no bulk loads.
            InvalidInput: the engine refused the load; nothing was changed.
            RolledBack: also if a plugin refused the load or tried to add to it.
            ConditionNotMet, OutcomeUnknown: as `transaction`.
        """
        return self.write_path.bulk(load)

    def wait(self, txid: int, timeout: float | None = None) -> None:
        """Wait until a transaction is acknowledged, for instance after `ConditionNotMet`.

        Raises:
            ConditionNotMet: it was not acknowledged within `timeout` seconds. None waits without a bound.
            OutcomeUnknown: the store is poisoned.
            InvalidInput: there is no such transaction yet.
            SettingError: `timeout` is not a length of time.
        """
        self.write_path.wait(txid, timeout)

    def wait_published(self, after: int, timeout: float) -> int:
        """Wait up to `timeout` seconds for a transaction after `after` to be published. Returns the last published."""
        self.group_commit.wait_until(lambda: self.group_commit.shown > after or self.closed, timeout)
        return self.group_commit.shown

    # --- checkpoints and pruning -----------------------------------------------------------------------------------

    def checkpoint(self) -> Position:
        """Make the engine's durable state hold everything published. Returns the position it reached. O(changes since
        the last checkpoint), for most engines.

        Raises:
            DiskFull, LimitReached, DirectoryMoved: nothing has changed; try again once the cause is mended.
            StorePoisoned: the engine failed in the middle; the store is poisoned.
        """
        self._usability.check_writable()
        if self.checkpoints.beside:
            return self.checkpoints.make(self._refuse_closing)
        writer = self.write_path.lock
        if writer.held_here():
            raise InvalidInput("this thread has a transaction open", hint="end it before asking for a checkpoint")
        return writer.run(lambda: self.checkpoints.make(self._refuse_closing), self._refuse_closing)

    def _refuse_closing(self) -> None:
        """Avoid a deadlock: the holder of the lock we wait for (a bulk load without room, say) may wait for the store
        to be closed, while `close` waits for us. Raises `StoreClosed`."""
        if self.closed or self.backpressure.closing:
            raise StoreClosed(f"{self.directory} is being closed")

    def prune(self) -> int:
        """Delete now the log that need not be kept. Returns how many segments were deleted."""
        self._usability.check_writable()
        assert self._maintenance is not None
        return len(self._maintenance.prune())

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop plugins, sync, checkpoint, seal the log, release the directory. May be called twice. If a signal handler
        interrupts it, call it again to finish.

        Raises:
            InvalidInput: this thread has a transaction open; or closing would wait for this thread, which is one of the
                store's own and runs a plugin's hook.
        """
        if self._pid != os.getpid():
            return  # we are a forked child: the store belongs to the parent
        if self.write_path.lock.held_here() and not self.closed:
            raise InvalidInput("this thread has a transaction open", hint="end it before closing the store")
        if any(part is not None and part.runs_here()
               for part in (self.group_commit, self._ack_tracker, self._maintenance)):
            raise InvalidInput("closing the store would wait for this very thread",
                               hint="close it in a thread of your own, not in a hook")
        if not self._ending.held_here():  # a plugin's *closing* hook may call `close`
            self._ending.run(self._close, lambda: None)  # a second caller waits until the store is closed

    def _close(self) -> None:
        if self._opened.released:
            return
        if not self._told_closing:
            self._told_closing = True
            self.hooks.tell("closing", self)
        if self._maintenance is not None:
            self._maintenance.close()
        hold = Hold(self.write_path.lock)  # threads that wait for this lock will find the store closed
        hold.ending(lambda: self._end(hold))

    def _end(self, hold: Hold) -> None:
        deposed = self.replica is not None and self._usability.no_writes
        if deposed:  # a commit that waits for other members may hold the lock, and would for ever
            self.group_commit.forsake()
        # Let another thread's open transaction end first, but do not wait for it for ever.
        if not hold.take(min(self._patience_s, _DEPOSED_S) if deposed else self._patience_s) and not deposed:
            logger.error("%s is closed while a transaction is open", self.directory)
        self._usability.ended = "is closed"
        self._stop_committing()
        self.leases.close()
        try:
            if not self.read_only and not self._opened.engine_closed:
                self._leave_in_order()
        finally:
            self._opened.release()
            _open_stores.discard(self)

    def _stop_committing(self) -> None:
        self.group_commit.close()
        if self._ack_tracker is not None:
            self._ack_tracker.close()
        self.group_commit.give_up(0, 1 << 63, "was not acknowledged before the store was closed")
        self.group_commit.callbacks.close()

    def _leave_in_order(self) -> None:
        if self.group_commit.poison is not None:
            self.log.abandon()
            return
        try:
            self.checkpoints.make(lambda: None)
        except HoldfastError as error:
            logger.warning("%s is closed without a checkpoint: %s", self.directory, error)
        try:
            self.log.close()
        except (OSError, HoldfastError):
            logger.exception("the log of %s could not be sealed; the next opening recovers it", self.directory)
            self.log.abandon()

    def abandon_after_fork(self) -> None:
        """In a forked child: the locks, sockets and log belong to the parent."""
        self._usability.ended = f"was carried across a fork; it is open in process {self._pid}"
        self.hooks.tell("forked")
        self.log.abandon()
        for part in (self._opened.lock, self._opened.reader, self._opened.still):
            if part is not None:
                part.abandon()

    def __del__(self) -> None:
        """The store was dropped without being closed: close it, so that others can open it, and warn. Its threads hold
        no reference to it. A plugin may (the backup service does), and so does an open transaction."""
        opened: Opened | None = getattr(self, "_opened", None)
        if (opened is None or opened.released or not self.env.scheduler.closes_forgotten or self._pid != os.getpid()
                or sys.is_finalizing()):
            return
        self._patience_s = 0.0  # a thread with an open transaction would hold a reference
        try:
            if self._maintenance is not None and self._maintenance.runs_here():
                self.env.scheduler.spawn("holdfast-forgotten", self.close)
            else:
                self.close()
        finally:
            warnings.warn(f"the store in {self.directory} was never closed, and has been closed now that nothing "
                          "refers to it any more", ResourceWarning, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is not None and not self.closed:
            self.write_path.lock.release_here()  # a signal handler may have kept a transaction from ending
        self.close()


def _tell_fault(directory: Path, hooks: Hooks, error: BaseException) -> None:
    logger.error("%s is poisoned and takes no more writes: %s", directory, error)
    hooks.tell("fault", error)


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
