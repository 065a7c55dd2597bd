"""Archiving continuously: in a store's own process as a plugin, or in a process beside it that follows a source.

Both run the same loop. It archives what can be read of the log, waits for the interval, and goes on. If the repository
or the source cannot be reached, it tries again with growing pauses, and goes on where it was. If another archiver takes
over, it stops.

Meanwhile the store keeps its log for the archiver's slot. The plugin minds that slot: its operator says how much log
may wait, and what happens then. `hold`: transactions wait before they begin, while readers go on; what is under way may
still end, so the bound is passed by that much. `drop`: what is not archived is given up by name, and the archive goes
on after a gap. An operator who drops the slot has given it up, too.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...engine.contract.plugin import Condition, Fact, Obstacle, Plugin, StoreHandle
from ...engine.env import REAL, Env, Event, Task
from ...engine.env.shown import shown
from ...engine.errors import HoldfastError, LogPruned, NotFound, SettingError, StoreClosed
from ...engine.model.positions import Position
from ...engine.model.records import LogRange
from ...engine.source.local import LocalSource
from ...engine.store.settings import check_duration
from ...engine.store.store import Store
from ...engine.wal.retention import SHARE, KeepLogs
from ..cluster import best_source
from ..connection import Connection, Named
from .archiver import IDLE_S, slot_name
from .errors import Fenced, StorageUnavailable
from .storage.url import open_storage

if TYPE_CHECKING:
    from .archiver import Archiver
    from .keys import Key
    from .repository import Repository

logger = logging.getLogger("holdfast.repository")

KEEP = "14 days, 16 GiB"
"""How much log waits for the archive, if nothing else is asked for: as much as for any other slot."""
Overrun = Literal["hold", "drop"]

_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(slots=True)
class Archiving:
    """The loop. `begin` opens an archiver, and is called again after an error. `told` is called after each piece and
    each step, `failed` after each error that is tried again; both in the loop's thread."""

    begin: Callable[[], Archiver]
    interval: float
    env: Env
    stop: Event
    wake: Event
    told: Callable[[Archiver], None]
    trouble: HoldfastError | None = None
    failed: Callable[[HoldfastError], None] = lambda error: None

    def run(self) -> None:
        """Archive until `stop` is set. Raises `Fenced`."""
        archiver: Archiver | None = None
        pause = _PAUSE_S
        try:
            while True:
                last = self.stop.is_set()  # what was committed before it was set is archived, too
                try:
                    if archiver is None:
                        archiver = self.begin()
                    archiver.step(self.told)
                    self.told(archiver)
                except Fenced:
                    raise
                except HoldfastError as error:
                    if self.trouble is None or self.trouble.message != error.message:
                        logger.warning("not archived, will be tried again: %s", error)
                    self.trouble = error
                    if archiver is not None:
                        archiver.close()
                    archiver = None
                    self.failed(error)
                    if last:
                        return
                    self.stop.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
                    continue
                self.trouble, pause = None, _PAUSE_S
                if last:
                    return
                self.wake.wait(self.interval)
                if self.wake is not self.stop:
                    self.wake.clear()
        finally:
            if archiver is not None:
                archiver.close()


class ArchivePlugin(Plugin):
    """Archives a store into a repository from the moment when it is opened. If the repository cannot be reached then,
    the store opens all the same; if it is another store's, or the key is wrong, it does not.

    Args:
        repository: the repository's URL, or a path.
        interval: seconds from one piece to the next.
        idle: seconds after which a piece says how far an idle store is complete.
        keep: how much log may wait for the archive, as in the setting `keep_logs`: "14 days, 16 GiB", "for ever". At
            most half of the file system, unless it is "for ever".
        overrun: what happens if more waits. `hold`: transactions wait before they begin until there is less, at most
            `Settings.wait_s`, and are then rolled back. `drop`: what is not archived is given up, and the archive has a
            gap, after which a new image is needed.
        key: of an encrypted repository.
        accept_branch: id of a branch that is new to the repository.

    Raises:
        SettingError: a setting makes no sense.
    """

    def __init__(self, repository: str, *, interval: float = 1.0, idle: float = IDLE_S, keep: str = KEEP,
                 overrun: Overrun = "drop", key: Key | None = None, accept_branch: str | None = None) -> None:
        check_duration("interval", interval)
        check_duration("idle", idle)
        if overrun not in ("hold", "drop"):
            raise SettingError(f"overrun must be 'hold' or 'drop', not {shown(overrun)}")
        self._url, self._interval, self._idle, self._key, self._accept = repository, interval, idle, key, accept_branch
        self._bound, self._overrun = KeepLogs.parse(keep, "keep"), overrun
        self._place = ""
        self._task: Task | None = None
        self._loop: Archiving | None = None
        self._repository: Repository | None = None

    # --- a store's life -------------------------------------------------------------------------------------------

    def opened(self, store: StoreHandle) -> None:
        assert isinstance(store, Store)  # a source, and the slot that it minds, need more than a plugin may rely on
        if store.replica is not None:
            raise SettingError(f"{store.directory} is a member's of a cluster, of which only the primary archives",
                               hint="give each member a MemberArchivePlugin")
        env = store.env
        self._store: Store[Any, Any] = store
        self._source = LocalSource(store)
        self._place = open_storage(self._url, env).url  # reads nothing
        self._keep = self._bound.within(env.files.capacity(store.directory) // SHARE)
        self._archived: Position | None = None
        self._slot: str | None = None
        self._registered = self._skips = False
        self._given_up: Position | None = None
        self._gaps = self._writer = 0
        self._put_us: int | None = None
        self._proved_us: int | None = None
        self._trouble: str | None = None
        self._bounded = True
        first: list[Archiver] = []
        try:
            first.append(self._begin())
        except StorageUnavailable as error:
            logger.warning("%s cannot be reached: %s. The store is archived once it can", self._place, error.message)
            self._trouble = error.message
            self._find_slot()
        except BaseException:  # another store's repository, a key that is wrong: the store is not opened
            self._end()
            raise
        self._loop = Archiving(lambda: first.pop() if first else self._begin(), self._interval, env,
                               env.scheduler.event(), env.scheduler.event(), self._told, failed=self._failed)
        self._task = env.scheduler.spawn("holdfast-archive", self._run)

    def _begin(self) -> Archiver:
        from .repository import Repository

        if self._repository is None:
            self._repository = Repository.open(self._url, key=self._key, env=self._store.env)
        archiver = self._repository.archiver(self._source, accept_branch=self._accept, idle=self._idle,
                                             skip=self._skips)
        self._skips = False
        self._note(archiver)
        return archiver

    def _find_slot(self) -> None:
        """Without the repository, what the slot says of the archive counts. If there is none, there is no archive yet,
        as far as is known here, and no bound."""
        name = slot_name(self._place)
        for slot in self._store.log.slots.list():
            if slot.name == name:
                self._mind(slot.id)
                self._archived, self._registered = slot.position, True

    def _mind(self, slot: str) -> None:
        self._slot = slot
        self._store.log.slots.minded.add(slot)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run()
        except Fenced as error:
            logger.error("archiving has ended: %s", error)
            self._stop_minding()  # the slot is the other one's now
            self._trouble = error.message
            self.ended(error)
        except StoreClosed:
            pass
        except Exception as error:
            logger.exception("archiving has ended")
            if self._overrun == "drop":
                self._stop_minding()
            self._trouble = str(error)
            self.ended(error)

    def _stop_minding(self) -> None:
        """From here on, the store's own bounds for slots hold."""
        self._bounded = False
        if self._slot is not None:
            self._store.log.slots.minded.discard(self._slot)

    def reached(self, archiver: Archiver) -> None:
        """After each piece and each step. In the archiver's thread."""

    def ended(self, error: Exception) -> None:
        """Nothing is archived any more, because of this. In the archiver's thread."""

    def closing(self, store: StoreHandle) -> None:
        """Archives what is durable, if the repository can be reached, and stops."""
        if self._loop is not None and self._task is not None:
            self._loop.stop.set()
            self._loop.wake.set()
            self._task.join()
        self._loop = None
        self._end()

    def _end(self) -> None:
        repository, self._repository = self._repository, None
        if repository is not None:
            repository.close()

    # --- how far it is --------------------------------------------------------------------------------------------

    def _note(self, archiver: Archiver) -> None:
        assert self._repository is not None
        self._mind(self._repository.id)
        self._archived, self._writer = archiver.end, archiver.writer
        self._put_us, self._proved_us, self._trouble = archiver.put_us, archiver.proved_us, None

    def _told(self, archiver: Archiver) -> None:
        self._note(archiver)
        self._registered = self._registered or self._has_slot()
        self.reached(archiver)
        if self._overrun == "drop" and (why := self._too_far(aged=False)):  # it archives, but too slowly
            self._give_up(why)
            raise LogPruned(f"the log after transaction {archiver.end.txid} is not kept for the archive any more")

    def _failed(self, error: HoldfastError) -> None:
        self._trouble = error.message
        if self._registered and not self._has_slot():
            self._give_up("its slot was dropped")
        elif self._overrun == "drop" and (why := self._too_far()):
            self._give_up(why)

    def _has_slot(self) -> bool:
        return any(slot.id == self._slot for slot in self._store.log.slots.list())

    def _too_far(self, *, aged: bool = True) -> str | None:
        """Why the archive is too far behind; None if it is not, or if that is not known. `aged`: for its age, too.
        O(log segments)."""
        archived, keep, store = self._archived, self._keep, self._store
        if archived is None or not self._bounded:
            return None
        behind = store.durable.txid - archived.txid
        if behind <= 0:
            return None
        size, since_us = store.log.beyond(archived.txid)
        hours = (store.env.clock.now_us() - store.clock_doubted_us - since_us) / 3_600_000_000
        if keep.bytes is not None and size > keep.bytes:
            return f"{size:,} bytes of log are not archived, and {keep.bytes:,} may wait"
        if keep.transactions is not None and behind > keep.transactions:
            return f"{behind:,} transactions are not archived, and {keep.transactions:,} may wait"
        if aged and keep.hours is not None and hours > keep.hours:
            return f"log of {hours:,.1f} hours is not archived, and {keep.hours:g} hours may wait"
        return None

    def _give_up(self, why: str) -> None:
        """Keep no log for the archive any more, until it goes on after what is published then. In the archiver's
        thread."""
        archived, slot = self._archived, self._slot
        assert archived is not None
        logger.error("what is not archived in %s after transaction %d is given up: %s. The archive will have a gap; "
                     "the points after it need a new image", self._place, archived.txid, why)
        self._given_up, self._archived = archived, None
        self._skips, self._registered = True, False
        if slot is not None:
            self._store.log.slots.minded.discard(slot)
            try:
                self._source.drop(slot)
            except NotFound:
                pass
            except HoldfastError as error:  # then the store's own bounds hold
                logger.warning("slot %s was not dropped: %s", slot, error)
        self._gaps += 1

    def beginning(self) -> Obstacle | None:
        """Holds transactions at the bound, if the operator chose that."""
        if self._overrun != "hold" or self._loop is None:
            return None
        why = self._too_far()
        if why is None or (self._registered and not self._has_slot()):  # given up by hand
            return None
        self._loop.wake.set()
        archived, trouble = self._archived, self._trouble
        cause = "" if trouble is None else f": {trouble}"
        return Obstacle(f"the archive in {self._place} ends at transaction {archived.txid if archived else 0}: {why}"
                        f"{cause}",
                        "see to it that the repository can be reached; or give up what is not archived: holdfast slots "
                        f"drop {self._store.backup_uri or 'URI'} {self._slot}")

    def facts(self) -> tuple[Fact, ...]:
        """How far the archive is. While that is not known, because the repository was not reached, figures are None."""
        if not self._place:
            return ()
        store, archived = self._store, self._archived
        lag: tuple[int | None, int | None, float | None] = (None, None, None)
        if archived is not None and not store.closed:
            size, since_us = store.log.beyond(archived.txid)
            age = max(0.0, (store.env.clock.now_us() - since_us) / 1e6) if size else 0.0
            lag = max(0, store.durable.txid - archived.txid), size, age
        held = self._overrun == "hold" and self._too_far() is not None
        figures: tuple[tuple[str, float | str | None, str], ...] = (
            ("archive_branch", store.history.branch.id.hex(), "branch that is archived"),
            ("archive_writer", self._writer or None, "number of this archiver"),
            ("archive_txid", None if archived is None else archived.txid, "last transaction that is archived"),
            ("archive_lag_transactions", lag[0], "durable transactions that are not archived"),
            ("archive_lag_bytes", lag[1], "bytes of log that are not archived, rounded up"),
            ("archive_lag_seconds", lag[2], "age of the oldest transaction that is not archived, rounded up"),
            ("archive_success_timestamp_seconds", _seconds(self._put_us), "when something was archived last"),
            ("archive_proof_timestamp_seconds", _seconds(self._proved_us), "newest proof that the archiver has seen"),
            ("archive_error", self._trouble, "why nothing is archived now"),
            ("archive_failing", int(self._trouble is not None), "1 if nothing is archived now, because of an error"),
            ("archive_overrun", self._overrun, "what happens if too much is not archived"),
            ("archive_held", int(held), "1 if transactions wait for the archive before they begin"),
            ("archive_given_up_txid", None if self._given_up is None else self._given_up.txid,
             "last transaction before what was given up"))
        return (*(Fact(name, value, text, of=self._place) for name, value, text in figures),
                Fact("archive_given_up_total", self._gaps, "how often what was not archived was given up", "counter",
                     of=self._place))


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / 1e6


class ArchiveAckPlugin(ArchivePlugin):
    """As `ArchivePlugin`, and commits return once they are in the repository. A commit that is not there after
    `ack_timeout` seconds raises `ConditionNotMet`; it is durable here. At the bound, transactions are held. If
    archiving ends for good, since another archiver has taken over, the commits that wait and all later ones raise
    `ConditionNotMet` at once.

    Args:
        ack_timeout: seconds.
        gates_publication: False: views show a transaction once it is durable here, so a reader may see what would be
            lost with this machine. True: they show it once it is archived. Then an outage of the repository holds back
            all that readers see, and an engine that does not stage commits one transaction at a time. Not in a member
            of a cluster, of which what is published is archived.
    """

    def __init__(self, repository: str, *, ack_timeout: float = 30.0, gates_publication: bool = False,
                 interval: float = 1.0, idle: float = IDLE_S, keep: str = KEEP, key: Key | None = None,
                 accept_branch: str | None = None) -> None:
        super().__init__(repository, interval=interval, idle=idle, keep=keep, overrun="hold", key=key,
                         accept_branch=accept_branch)
        check_duration("ack_timeout", ack_timeout)
        self._timeout, self._gates = ack_timeout, gates_publication
        self._waiting: deque[tuple[int, Future[Any]]] = deque()
        self._acked = 0
        self._error: Exception | None = None

    def opened(self, store: StoreHandle) -> None:
        if self._gates and isinstance(store, Store) and store.replica is not None:
            raise SettingError("a member of a cluster archives what is published, so publication cannot wait for that",
                               hint="leave out gates_publication")
        self._guard = store.env.scheduler.lock()
        self._acked, self._error = 0, None
        super().opened(store)

    def logged(self, batch: LogRange) -> Condition:
        met: Future[Any] = Future()
        with self._guard:
            if self._error is not None:
                met.set_exception(self._error)
            elif batch.last <= self._acked:
                met.set_result(None)
            else:
                self._waiting.append((batch.last, met))
        loop = self._loop
        if loop is not None:
            loop.wake.set()  # archive at once
        return Condition(met=met, timeout=self._timeout, gates_publication=self._gates, name="archived")

    def beginning(self) -> Obstacle | None:
        """Also if archiving has ended and publication waits for it: it would wait for ever."""
        if self._gates and self._error is not None:
            return Obstacle(f"archiving has ended, and publication waits for it: {self._error}",
                            "open the store again, with the archiver that it is to have")
        return super().beginning()

    def reached(self, archiver: Archiver) -> None:
        met = []
        with self._guard:
            self._acked = archiver.end.txid
            while self._waiting and self._waiting[0][0] <= self._acked:
                met.append(self._waiting.popleft()[1])
        for future in met:
            future.set_result(None)

    def ended(self, error: Exception) -> None:
        """Commits that wait end now."""
        with self._guard:
            self._error = error
            waiting, self._waiting = list(self._waiting), deque()
        for _, future in waiting:
            future.set_exception(error)


def archive_source(repository: Repository, named: Named, connection: Connection, *, interval: float = 1.0,
                   idle: float = IDLE_S, once: bool = False, accept_branch: str | None = None,
                   told: Callable[[int, int], None] | None = None, stop: Event | None = None, env: Env = REAL) -> None:
    """Archive a source that is named, until `stop` is set. Blocks.

    Args:
        repository: where to. It is used by this thread until this returns.
        named, connection: a URI, an open store, or any `Source`; and how to reach a URI.
        interval, idle: as for `ArchivePlugin`.
        once: archive what is published now, and return; an error is raised and not tried again.
        accept_branch: id of a branch that is new to the repository.
        told: called in this thread after each piece, with the transaction that it reached and the number of
            transactions.

    Raises:
        Fenced: another archiver has taken over.
        ForeignStore, OtherBranch, Diverged: refused at the start.
    """
    check_duration("interval", interval)
    check_duration("idle", idle)
    stop = stop or env.scheduler.event()
    with ExitStack() as opened:
        def begin() -> Archiver:
            opened.close()  # the connection before; of a cluster, perhaps to a member that has gone
            source = opened.enter_context(best_source(named, connection))
            return repository.archiver(source, accept_branch=accept_branch, idle=idle)

        archiver = begin()
        reached = archiver.end.txid

        def say(archiver: Archiver) -> None:
            nonlocal reached
            if told is not None and archiver.end.txid > reached:
                told(archiver.end.txid, archiver.end.txid - reached)
            reached = archiver.end.txid

        if once:
            try:
                archiver.step()
                say(archiver)
            finally:
                archiver.close()
            return
        first = [archiver]
        Archiving(lambda: first.pop() if first else begin(), interval, env, stop, stop, say).run()
