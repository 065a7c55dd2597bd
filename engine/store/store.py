"""The store: an engine driven by a log, open in one process.

    writers ─► transaction ─► hooks ─► log: append ─► group fsync ─► (held acks) ─► publish ─► views ─► readers
                                                                                │
                                                                           checkpoint ─► image

Here its parts are put together, and here is what users call: open, read, write, checkpoint, close. How it writes is in
`write_path.py`.
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
from .recovery_report import Recovery
from .settings import Settings, checked_options
from .usability import Usability
from .watermarks import Positions, Watermarks
from .write_path import TransactionScope, WritePath

logger = logging.getLogger("holdfast.store")

_open_stores: weakref.WeakSet[Store[Any, Any]] = weakref.WeakSet()


class Store(Generic[TxT, ViewT]):
    """See the module's text. Made by `open`; a context manager; safe to use from any number of threads.

    Attributes:
        directory: where it is.
        instance: random id of this opening, hex.
        engine, log, leases, hooks, settings, env, group commit, backpressure, checkpoints, write_path: its parts.
        options: the engine's own, as it was opened with.
        state_format, payload_version: the engine's, as it was opened with.
        recovery: what opening found.
        read_only: whether it was opened so.
        backup_uri: where its backup service answers, or None.
    """

    seams = renamed.attribute("seams", "env")

    def __init__(self, directory: Path, opened: Opened, hooks: Hooks, options: Mapping[str, Any], settings: Settings,
                 env: Env) -> None:
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
        end = self.log.end
        if self._staging is not None:
            self._staging.publish(end)
        self._watermarks = Watermarks(end, self.engine.position, len(hooks.logged))
        self._usability = Usability(directory, read_only=self.read_only)
        self._ending = OwnedLock(env)
        self._told_closing = False
        self._patience_s = settings.wait_s  # for an open transaction to end, before the store is closed
        self._pid = os.getpid()
        self.group_commit = GroupCommit(self.log, self._watermarks, hooks, env, relaxed_s=settings.relaxed_ms / 1000,
                                        staging=self._staging, on_fault=partial(_tell_fault, directory, hooks))
        self._ack_tracker = None
        self._maintenance = None
        self.backpressure = Backpressure(self.engine, self.log, self.group_commit, settings, env)
        self.checkpoints = Checkpoints(self.engine, self.group_commit, hooks, env, self._usability,
                                       settle=opened.settle)
        self.write_path = WritePath(self.engine, self.group_commit, hooks, self.backpressure, self.checkpoints,
                                    settings, env, self._usability)
        try:
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
             settings: Settings | None = None, env: Env = REAL) -> Self:
        """Open the store in `directory`, and recover it.

        Args:
            directory: of a store or of a backup. Opening a backup for writing makes it a store of its own.
            engine: the engine's class.
            create: make an empty store if there is none.
            read_only: change no byte. Shows the log up to the end that is known to be durable. Where nobody writes the
                store at that moment, nobody can until this one is closed.
            plugins: objects, or names registered in the entry-point group `holdfast.plugins`.
            options: the engine's own. One that is a `Path` is made absolute.
            settings, env: see there.

        Raises:
            StoreLocked, StoreNotFound, StoreExists, WrongEngine, Damaged, UnsupportedFormat, UpgradeRequired, DiskFull,
            LimitReached, AccessDenied, DeviceFailed, SettingError, PluginError.
        """
        root = env.files.absolute(directory)
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
                                          prune=not hooks.pruning)
            try:
                store = cls(root, opened, hooks, options, settings, opened.env)
            except BaseException:  # no more threads, for instance
                opened.log.abandon()
                opened.release()
                raise
        if store.recovery.cut_bytes and not read_only:
            logger.warning("%s was not closed properly: %d bytes of a torn group were cut at byte %d of %s", root,
                           store.recovery.cut_bytes, store.recovery.cut_offset, store.recovery.cut_path)
        try:
            if opened.copied is not None:
                store.checkpoint()  # so that where the copy is from need no longer be remembered
            hooks.open(store)
        except BaseException as error:
            store.close()
            if isinstance(error, HoldfastError) or not isinstance(error, Exception):
                raise
            limit = told(error, f"cannot open {root}, since a plugin could not start") if is_limit(error) else None
            raise limit or PluginError(f"a plugin could not start: {error}") from error
        opened.undo = None
        return store

    # --- where it stands -------------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        return self.log.history

    @property
    def durable(self) -> Position:
        return self._watermarks.durable

    @property
    def published(self) -> Position:
        return self._watermarks.published

    @property
    def handed(self) -> Position:
        """The highest position that the engine may have in its files: what a moving image must be replayed to."""
        return self.checkpoints.handed

    @property
    def poisoned(self) -> bool:
        return self.group_commit.poison is not None

    @property
    def closed(self) -> bool:
        return self._usability.ended is not None

    def positions(self) -> Positions:
        return self._watermarks.positions()

    def complete_until_us(self) -> int:
        """Every transaction with a commit time up to this one is published, and none will come later: a promise that
        is in the log when this returns, so that neither a crash nor a clock that is put back breaks it."""
        self._usability.check()
        return self.write_path.complete_until_us()

    @property
    def clock_doubted_us(self) -> int:
        """By how many microseconds the clock is ahead of the time by which log and slots grow old; 0: it is
        believed. See the setting `clock_is_right`."""
        return 0 if self._maintenance is None else self._maintenance.calendar.doubted_us

    def status(self) -> dict[str, Any]:
        """Everything an operator asks for, as plain values."""
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
        }

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
        if self._usability.ended is not None:
            raise self._usability.error()
        if at_least is not None and self._watermarks.published.txid < at_least:
            self.group_commit.sync_within(0.0)
            if not self.group_commit.wait_until(lambda: self._watermarks.published.txid >= at_least,
                                                self.settings.wait_s):
                raise ConditionNotMet(f"transaction {at_least} is not published", txid=at_least,
                                      hint="it is not committed yet, or waits for a condition; ask again later")
        if unsynced:
            if self._staging is None:
                raise Unsupported(f"the {self.engine.name} engine does not stage", hint="leave out unsynced=")
            if self.group_commit.poison is not None:  # what is staged and not published may never have been
                raise self.group_commit.poisoned()
            staged: ViewT = self._staging.staged_view()
            return staged
        return self.engine.view()

    def refresh(self) -> int:
        """Read-only stores: show what the writer in another process has made durable since; the last txid shown.

        Raises:
            LogPruned, Unsupported: it went too far to be followed; open it again.
            Whatever the engine or the disk raises, a signal's handler too: where that was in the middle of a
            transaction, nothing is shown any more, and the store has to be opened again.
        """
        if not self.read_only:
            raise InvalidInput(f"{self.directory} is not open read-only",
                               hint="a store that writes is always up to date")
        replayed = self.write_path.lock.run(self._refresh, lambda: None)  # one at a time
        logger.debug("%s: %d more transactions", self.directory, replayed)
        return self.log.end.txid

    def _refresh(self) -> int:
        """How many transactions came; with the writer lock held."""
        self._usability.check()
        try:
            replayed = follow(self._opened, self.settings, self.env)
            self.group_commit.follow(self.log.end)
        except BaseException:
            if self._opened.half_way:
                self._usability.ended = "was interrupted as it was refreshed"
            raise
        self._opened.half_way = False
        return replayed

    def image(self) -> Image:
        """The engine's image, for a source. Hold a lease on the log after the present checkpoint first."""
        self._usability.check()
        if self._opened.reader is not None:
            raise Unsupported(f"{self.directory} is open read-only beside its writer, which goes on meanwhile",
                              hint="back up from the writer's service")
        self.env.files.look(self.directory)
        return self.checkpoints.image()

    # --- writing ---------------------------------------------------------------------------------------------------

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
        return self.write_path.transaction(durability)

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
        return self.write_path.bulk(load)

    def wait(self, txid: int, timeout: float | None = None) -> None:
        """Wait until a transaction is acknowledged, for instance after `ConditionNotMet`.

        Raises:
            ConditionNotMet: not within `timeout` seconds.
            OutcomeUnknown: the store is poisoned.
            InvalidInput: there is no such transaction yet.
            SettingError: `timeout` is not a length of time.
        """
        self.write_path.wait(txid, timeout)

    def wait_published(self, after: int, timeout: float) -> int:
        """Wait up to `timeout` seconds until something after `after` is published; the last published txid."""
        self.group_commit.wait_until(lambda: self._watermarks.published.txid > after or self.closed, timeout)
        return self._watermarks.published.txid

    # --- checkpoints and pruning -----------------------------------------------------------------------------------

    def checkpoint(self) -> Position:
        """Make the engine's durable state hold everything published; the position it reached.

        Raises:
            DiskFull, LimitReached, DirectoryMoved: try again when there is room, or more of what ran out, or when it is
                back where it was.
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
        """Whoever has a lock, a bulk load without room for instance, may wait for the store to be closed, and closing
        for us. Raises `StoreClosed`."""
        if self.closed or self.backpressure.closing:
            raise StoreClosed(f"{self.directory} is being closed")

    def prune(self) -> int:
        """Delete the log that need not be kept, now; how many segments went."""
        self._usability.check_writable()
        assert self._maintenance is not None
        return len(self._maintenance.prune())

    # --- ending ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop plugins, sync and seal the log, checkpoint, let go. Fine to call twice; where a signal interrupts it,
        call it again, and it goes on.

        Raises:
            InvalidInput: this thread has a transaction open, or it is one that closing waits for: it runs a plugin's
                hook in the background.
        """
        if self._pid != os.getpid():
            return  # carried across a fork: nothing of it is ours
        if self.write_path.lock.held_here() and not self.closed:
            raise InvalidInput("this thread has a transaction open", hint="end it before closing the store")
        if any(part is not None and part.runs_here()
               for part in (self.group_commit, self._ack_tracker, self._maintenance)):
            raise InvalidInput("closing the store would wait for this very thread",
                               hint="close it in a thread of your own, not in a hook")
        if not self._ending.held_here():  # a plugin's *closing* may come by here
            self._ending.run(self._close, lambda: None)  # whoever comes second waits until it is closed

    def _close(self) -> None:
        if self._opened.released:
            return
        if not self._told_closing:
            self._told_closing = True
            self.hooks.tell("closing", self)
        if self._maintenance is not None:
            self._maintenance.close()
        hold = Hold(self.write_path.lock)  # who waits for it learns that the store is closed
        hold.ending(lambda: self._end(hold))

    def _end(self, hold: Hold) -> None:
        # An open transaction of another thread ends first, within bounds.
        if not hold.take(self._patience_s):
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
        """In a child process: neither lock nor socket nor log is ours."""
        self._usability.ended = f"was carried across a fork; it is open in process {self._pid}"
        self.hooks.tell("forked")
        self.log.abandon()
        for part in (self._opened.lock, self._opened.reader, self._opened.still):
            if part is not None:
                part.abandon()

    def __del__(self) -> None:
        """Nobody has it any more, and nobody has closed it: close it, so that others can open it, and say so. Its
        threads do not hold it; a plugin may, such as the backup service, and who has a transaction open does."""
        opened: Opened | None = getattr(self, "_opened", None)
        if (opened is None or opened.released or not self.env.scheduler.closes_forgotten or self._pid != os.getpid()
                or sys.is_finalizing()):
            return
        self._patience_s = 0.0  # whoever had a transaction open is gone as well
        try:
            if self._maintenance is not None and self._maintenance.runs_here():
                self.env.scheduler.spawn("holdfast-forgotten", self.close)
            else:
                self.close()
        finally:
            warnings.warn(f"the store in {self.directory} was never closed, and has been closed now that nobody has it "
                          "any more", ResourceWarning, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is not None and not self.closed:
            self.write_path.lock.release_here()  # a signal's handler may have raised where a transaction was to end
        self.close()


def _tell_fault(directory: Path, hooks: Hooks, error: BaseException) -> None:
    logger.error("%s is poisoned and takes no more writes: %s", directory, error)
    hooks.tell("fault", error)


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
