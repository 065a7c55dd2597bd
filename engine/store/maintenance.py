"""What a store does in the background: checkpoints, the next segment, heartbeats, pruning, expiry of leases.

One thread, woken when there is something to do and every `TICK_S` seconds. Each duty is a method that does what is due
now. What goes wrong is logged, and poisons the store if the durability of the state is in question.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import ref

from ..contract.engine import Engine
from ..env import DirectoryLock, Env
from ..errors import DirectoryMoved, DiskFull, HoldfastError, LimitReached
from ..model.positions import Position
from ..model.records import SegmentInfo
from ..wal.log import AHEAD_US, Log
from ..wal.retention import SHARE, CautiousClock, KeepLogs, PrunePlan, plan_pruning
from .backpressure import Backpressure
from .group_commit import GroupCommit
from .hooks import Hooks
from .layout import lock_text
from .leases import Leases
from .opened import process_name
from .reader_leases import Reader, readers_in
from .settings import Settings

logger = logging.getLogger("holdfast.store")

TICK_S = 0.5
PRUNE_EVERY_S = 30.0
RETRY_S, RETRY_MOST_S = 1.0, 60.0


class Maintained(Protocol):
    """What is maintained: a store, or a stand-in for one in a test."""

    directory: Path
    engine: Engine[Any, Any]
    log: Log
    settings: Settings
    env: Env
    group_commit: GroupCommit
    leases: Leases
    hooks: Hooks

    @property
    def poisoned(self) -> bool: ...
    def checkpoint(self) -> Position: ...


class Maintenance:
    """See the module's text."""

    def __init__(self, store: Maintained, backpressure: Backpressure, lock: DirectoryLock) -> None:
        """
        Args:
            store: what is maintained. Maintenance does not keep it alive.
            backpressure: where writers ask for checkpoints, and learn that one was made.
            lock: on the store's directory. What `holdfast info` shows of an open store is written into its file.
        """
        self._held = ref(store)
        self._hooks = store.hooks
        self._clock = store.env.clock
        self._backpressure = backpressure
        self._wake = backpressure.wanted
        self._sealed: deque[SegmentInfo] = deque()
        self._lock = lock
        known = None if store.settings.clock_is_right else store.log.complete_us
        self.calendar = CautiousClock(self._clock, known)
        self._doubts = False
        self._tell_doubt()
        self._keep = KeepLogs.parse(store.settings.keep_logs)
        self._beat = self._clock.monotonic()
        self._prune = self._clock.monotonic() + PRUNE_EVERY_S
        self._retry = 0.0
        self._spare_retry, self._spare_pause = 0.0, RETRY_S
        self._seen = store.log.end.txid
        self._pruning = store.env.scheduler.lock()
        store.log.writer.on_sealed = self._on_sealed
        try:
            self._task = store.env.scheduler.spawn("holdfast-keep", partial(_keep, self._held, self, backpressure))
        except BaseException:  # a signal handler may raise when the thread is already running
            self._end()
            raise

    @property
    def _store(self) -> Maintained:
        """Held by a weak reference, so that a store that everybody else has dropped can be closed."""
        store = self._held()
        assert store is not None, "the thread and every caller hold a reference during a round"
        return store

    def _on_sealed(self, info: SegmentInfo) -> None:
        self._sealed.append(info)
        self._wake.set()

    def round(self) -> None:
        """Do what is due now. If the directory has moved, do nothing but check again; this is logged once."""
        try:
            self._store.env.files.look(self._store.directory)
        except DirectoryMoved as error:
            if not isinstance(self._backpressure.blocked, DirectoryMoved):
                self._backpressure.blocked = error
                logger.error("%s: commits continue until the next log segment or checkpoint is due", error)
            self._backpressure.notify()
            return
        if isinstance(self._backpressure.blocked, DirectoryMoved):
            self._backpressure.blocked = None
            logger.warning("%s is back", self._store.directory)
        for duty in (self._spare, self._checkpoint, self._tell_sealed, self._heartbeat, self._leases, self._prune_log):
            try:
                duty()
            except BaseException:  # a plugin's error too: the other duties must still run
                logger.exception("maintenance of %s: %s failed", self._store.directory, duty.__name__.strip("_"))

    def _spare(self) -> None:
        log = self._store.log
        if log.writer.wants_spare and self._clock.monotonic() >= self._spare_retry:
            try:
                log.writer.prepare_spare()
                self._spare_pause = RETRY_S
            except (HoldfastError, OSError) as error:  # a commit that needs a segment makes its own, or fails
                self._spare_retry = self._clock.monotonic() + self._spare_pause
                logger.warning("no segment could be prepared; trying again in %g s: %s", self._spare_pause, error)
                self._spare_pause = min(2 * self._spare_pause, RETRY_MOST_S)

    def _checkpoint(self) -> None:
        store = self._store
        if store.engine.pending_bytes() < store.settings.checkpoint_soft_bytes:
            return
        if self._backpressure.blocked is not None and self._clock.monotonic() < self._retry:
            return
        try:
            store.checkpoint()
            self._backpressure.blocked = None
        except (DiskFull, LimitReached, DirectoryMoved) as error:
            self._backpressure.blocked = error
            self._retry = self._clock.monotonic() + RETRY_S
            logger.warning("the checkpoint must wait: %s", error)
        except HoldfastError as error:
            logger.error("no checkpoint was made: %s", error)
        self._backpressure.notify()

    def _tell_sealed(self) -> None:
        while self._sealed:
            self._hooks.tell("sealed", self._sealed.popleft())
            self._prune = 0.0

    def _heartbeat(self) -> None:
        interval = self._store.settings.heartbeat_s
        if not interval:
            return
        now, end = self._clock.monotonic(), self._store.log.end.txid
        if end != self._seen:
            self._seen, self._beat = end, now
        elif now - self._beat >= interval:
            self._beat = now
            self._store.group_commit.heartbeat()

    def _leases(self) -> None:
        self._store.leases.sweep()

    def _prune_log(self) -> None:
        if self._clock.monotonic() >= self._prune:
            self._prune = self._clock.monotonic() + PRUNE_EVERY_S
            self.prune()
            self._tell_doubt()

    def _tell_doubt(self) -> None:
        """Log once that the clock is doubted, and once that it is believed again."""
        doubted_us = self.calendar.doubted_us
        if (doubted_us > 0) == self._doubts:
            return
        self._doubts, directory = doubted_us > 0, self._store.directory
        if self._doubts:
            logger.log(logging.WARNING if doubted_us > AHEAD_US else logging.INFO,
                       "the clock is %.1f hours ahead of the last time recorded in %s: either it has leapt, or the "
                       "store was closed for that long. For an hour nothing is deleted for its age (if the clock is "
                       "right, open the store with clock_is_right=True)", doubted_us / 3.6e9, directory)
        else:
            logger.info("the clock is believed again in %s", directory)
        with suppress(OSError):  # no room in the lock file: the log above has it
            self._lock.tell(lock_text(process_name(), doubted_us // 1_000_000))

    def prune(self) -> list[SegmentInfo]:
        """Delete what `keep_logs`, leases, slots and the last checkpoint allow. Returns the segments deleted."""
        with self._pruning:
            # Ask the plugins without the locks that leases and readers wait for, and plan again under the locks.
            with self._planned() as (plan, _):
                wished = plan.segments
            if not wished or self._vetoed(wished):
                return []
            with self._planned() as (plan, lagging):
                log = self._store.log
                for reader in lagging:
                    logger.warning("a reading process lags too far behind, at transaction %d: log is no longer kept "
                                   "for it", reader.after)
                    self._store.env.files.unlink(reader.path, missing_ok=True)
                for slot in plan.dropped:
                    logger.warning("slot %s (%s) lags too far behind, at transaction %d: log is no longer kept for it",
                                   slot.id, slot.name, slot.position.txid)
                    log.slots.drop(slot.id)
                doomed = list(plan.segments[: len(wished)])
                if doomed:
                    log.prune(doomed)
                log.slots.write_postponed()
                return doomed

    @contextmanager
    def _planned(self) -> Iterator[tuple[PrunePlan, list[Reader]]]:
        """What may be deleted, and which readers lag too far to be waited for. No lease or reader is admitted within
        the block. Planning changes nothing, because a plugin may still object."""
        store = self._store
        with (store.leases.frozen() as leased,
              readers_in(store.directory, process_name(), store.env) as readers):
            yield self._plan(leased, readers)

    def _plan(self, leased: int | None, readers: list[Reader]) -> tuple[PrunePlan, list[Reader]]:
        store, settings, log = self._store, self._store.settings, self._store.log
        most = store.env.files.capacity(log.directory) // SHARE
        lag = min(settings.slot_bytes, most)
        lagging = [reader for reader in readers if log.size_after(reader.after) > lag]
        floors = [store.engine.position.txid]
        if leased is not None:
            floors.append(leased)
        floors += [reader.after for reader in readers if reader not in lagging]
        base, slots = log.base.txid, log.slots.list()
        minded = [slot for slot in slots if slot.id in log.slots.minded and slot.position.txid >= base]
        floors += [slot.position.txid for slot in minded]
        plan = plan_pruning(log.oldest(), size=log.size(), base=base, newest=log.end.txid, held=log.size_after,
                            keep=self._keep.within(most), floor=min(floors),
                            slots=[slot for slot in slots if slot not in minded],
                            slot_bytes=lag, slot_hours=settings.slot_days * 24,
                            now_us=self.calendar.now_us())
        return plan, lagging

    def _vetoed(self, segments: tuple[SegmentInfo, ...]) -> bool:
        for hook in self._store.hooks.pruning:
            try:
                why = hook(segments)
            except Exception:
                logger.exception("a plugin failed on pruning: the log is kept")
                return True
            if why is not None:
                logger.info("a plugin keeps %d segments: %s", len(segments), why)
                return True
        return False

    def runs_here(self) -> bool:
        """Whether the caller runs on the maintenance thread."""
        return self._task.runs_here()

    def _end(self) -> None:
        self._backpressure.closing = True
        self._wake.set()

    def close(self) -> None:
        """Stop the thread, wait for its end, and report the last sealed segments."""
        self._end()
        self._task.join()
        self._tell_sealed()


def _keep(held: ref[Maintained], keeper: Maintenance, backpressure: Backpressure) -> None:
    """The thread. It holds a reference to the store only during a round, and ends when the store is gone."""
    while not backpressure.closing:
        backpressure.wanted.wait(TICK_S)
        backpressure.wanted.clear()
        store = held()
        if store is None or backpressure.closing or store.poisoned:
            break
        keeper.round()
        del store
