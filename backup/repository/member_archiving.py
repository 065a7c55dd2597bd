"""A cluster that archives by itself: every member has this plugin, and whichever of them is primary archives.

A member archives only what the cluster has published. That cannot be cut off by a fail-over, and the next primary has
it, so the archive is at every moment the beginning of the log of each later primary. A primary that is deposed stops:
it learns of it by the archive's fence, or when its store is closed, whichever comes first. The next one goes on in the
same slot of the source, of which the heartbeats tell all members.

A store that closes waits for none of this. So a member steps down at once, whatever the repository does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from ...engine.contract.plugin import Condition, Fact, StoreHandle
from ...engine.env import Lock, Task
from ...engine.env.shown import shown
from ...engine.errors import HoldfastError, SettingError
from ...engine.model.positions import Position
from ...engine.model.records import LogRange, Record
from ...engine.source.interface import SourceInfo
from ...engine.source.local import LocalSource
from ...engine.store.settings import check_duration
from ...engine.store.store import Store
from ...replay.ha.plugin import LogToBranch, MemberPlugin
from .archiver import IDLE_S
from .archiving import Archiving
from .errors import Fenced, StorageUnavailable
from .pieces import PIECE_BYTES

if TYPE_CHECKING:
    from .archiver import Archiver
    from .keys import Key

logger = logging.getLogger("holdfast.repository")

TAKE_OVER_S = 10.0
"""After a primary was fenced. Who fenced it may be a primary before it that woke up, and knows better by then."""
LAST_S = 2.0
"""How long a member that is closed while it is primary waits for its last piece."""


class MemberArchivePlugin(MemberPlugin):
    """Archives the cluster's log into a repository while this member is primary. Give it to every member: then
    whichever is primary archives, without a gap. If the repository cannot be reached, members open all the same. If it
    is another store's, or the key is wrong, they do not.

    If a promotion of this member is forced, it first takes from the archive what its own log lacks, and does not lead
    before it could look. Afterwards the cluster is on a new branch, which the repository must accept.

    Args:
        repository: the repository's URL, or a path.
        interval: seconds from one piece to the next.
        idle: seconds after which a piece says how far an idle cluster is complete.
        key: of an encrypted repository.
        accept_branch: id of a branch that is new to the repository.
    """

    def __init__(self, repository: str, *, interval: float = 1.0, idle: float = IDLE_S, key: Key | None = None,
                 accept_branch: str | None = None) -> None:
        check_duration("interval", interval)
        check_duration("idle", idle)
        self._url, self._interval, self._idle, self._key, self._accept = repository, interval, idle, key, accept_branch
        self._store: Store[Any, Any] | None = None
        self._looked = False
        self._term: _Term | None = None
        self._guard: Lock

    def opened(self, store: StoreHandle) -> None:
        if not isinstance(store, Store) or store.replica is None:
            raise SettingError(f"{shown(str(store.directory))} is not the store of a member of a cluster",
                               hint="archive a single store with ArchivePlugin")
        if self._looked:  # a member that was deposed must open its store again, whatever the repository says
            self._store = store
            return
        from .repository import Repository

        try:
            with Repository.open(self._url, key=self._key, env=store.env) as repository:
                repository.check_store(store.history.store_id)
        except StorageUnavailable as error:
            logger.warning("%s cannot be reached: %s. The cluster is archived once it can", self._url, error.message)
        self._guard = store.env.scheduler.lock()
        self._looked, self._store = True, store

    def role_changed(self, role: str, epoch: int) -> None:
        """Begin to archive. The end of that comes with `closing`: a member is deposed by closing its store."""
        with self._guard:  # else a word that comes late would begin for a store that is closed
            if role == "primary" and self._term is None and self._store is not None:
                self._term = _Term(self._store, self)

    def closing(self, store: StoreHandle) -> None:
        """Stop. If the member is closed while it is primary, what is published is archived before, if that is quick."""
        with self._guard:
            term, self._term, self._store = self._term, None, None
        if term is not None:
            term.end()

    def branching(self, log: LogToBranch) -> None:
        """Take what only the archive has, and fence the primary before."""
        from .repository import Repository

        with Repository.open(self._url, key=self._key, env=log.store.env) as repository:
            repository.extend(log)

    def reached(self, term: object, archiver: Archiver) -> None:
        """After each piece and each step. In the archiver's thread."""

    def facts(self) -> Sequence[Fact]:
        """How far the archive is, on the member that archives."""
        term = self._term
        return () if term is None else term.facts()


class _Term:
    """The archiving of one primary's store, in a thread of its own."""

    def __init__(self, store: Store[Any, Any], plugin: MemberArchivePlugin) -> None:
        self._store, self._plugin = store, plugin
        self._over = False
        self._archiver: Archiver | None = None
        self._trouble: str | None = None
        self.stop, self.wake = store.env.scheduler.event(), store.env.scheduler.event()
        self._task: Task = store.env.scheduler.spawn("holdfast-archive", self._run)

    def _leads(self) -> bool:
        store = self._store
        return not self._over and not store.closed and store.replica is not None and store.replica.accepting

    def _run(self) -> None:
        plugin, env = self._plugin, self._store.env
        while True:
            try:
                with ExitStack() as opened:
                    Archiving(self._beginning(opened), plugin._interval, env, self.stop, self.wake, self._told,
                              failed=self._failed).run()
                return
            except Fenced as error:
                if not self._leads():
                    return
                self._trouble = error.message
                logger.warning("%s. This member is the primary, so it takes over again in %g s", error.message,
                               TAKE_OVER_S)
            except Exception as error:
                self._trouble = repr(error)
                logger.exception("archiving failed, and is begun again in %g s", TAKE_OVER_S)
            if self.stop.wait(TAKE_OVER_S):
                return

    def _beginning(self, opened: ExitStack) -> Callable[[], Archiver]:
        from .repository import Repository

        plugin, env = self._plugin, self._store.env
        source = _PrimarysSource(self._store, self._leads)
        repository: list[Repository] = []

        def begin() -> Archiver:
            source.check()
            if not repository:
                repository.append(opened.enter_context(Repository.open(plugin._url, key=plugin._key, env=env)))
            return repository[0].archiver(source, accept_branch=plugin._accept, idle=plugin._idle)

        return begin

    def _told(self, archiver: Archiver) -> None:
        self._archiver, self._trouble = archiver, None
        self._plugin.reached(self, archiver)

    def _failed(self, error: HoldfastError) -> None:
        self._trouble = error.message

    def facts(self) -> tuple[Fact, ...]:
        """See `MemberArchivePlugin.facts`. What is not known, because the repository was not reached, is None."""
        archiver, store, trouble = self._archiver, self._store, self._trouble
        txid = None if archiver is None else archiver.end.txid
        lag = None if txid is None else max(0, store.published.txid - txid)
        return (Fact("archive_writer", None if archiver is None else archiver.writer, "number of this archiver"),
                Fact("archive_txid", txid, "last transaction that is archived"),
                Fact("archive_lag_transactions", lag, "published transactions that are not archived"),
                Fact("archive_success_timestamp_seconds", None if archiver is None else archiver.put_us / 1e6,
                     "when something was archived last"),
                Fact("archive_error", trouble, "why nothing is archived now"),
                Fact("archive_failing", int(trouble is not None),
                     "1 if nothing is archived now, because of an error"))

    def end(self) -> None:
        """Archive what is published, if the store is still a primary's and the repository is quick. Then stop."""
        deposed = self._store.write_path.usability.no_writes or self._store.poisoned
        self._over = deposed
        self.stop.set()
        self.wake.set()
        if not deposed and not self._task.join(LAST_S):
            logger.warning("the last transactions are not archived yet: the next primary does it")
        self._over = True


class _PrimarysSource(LocalSource):
    """A primary's own store. It is not held open while what was read is stored. It says so once it is not a primary's
    any more, by `Fenced`: then somebody else is about to archive."""

    def __init__(self, store: Store[Any, Any], leads: Callable[[], bool]) -> None:
        super().__init__(store)
        self._leads = leads

    def check(self) -> None:
        """Raise `Fenced` if the store is not a primary's any more."""
        if not self._leads():
            raise Fenced("this member is not the primary any more", hint="the next one archives")

    def info(self) -> SourceInfo:
        self.check()
        return super().info()

    def read_log(self, lease_id: str, after: Position, upto: int) -> Generator[Record]:
        while after.txid < upto:
            burst: list[Record] = []
            size = 0
            try:
                with closing(super().read_log(lease_id, after, upto)) as found:
                    for record in found:
                        burst.append(record)
                        size += len(record.header) + len(record.payload)
                        if size >= PIECE_BYTES:
                            break
            except HoldfastError:
                self.check()  # that it was closed meanwhile is nothing to be told of
                raise
            yield from burst
            after = burst[-1].position


class MemberArchiveAckPlugin(MemberArchivePlugin):
    """As `MemberArchivePlugin`, and commits return once they are in the repository, too. A commit that is not there
    `ack_timeout` seconds after it was durable on the primary raises `ConditionNotMet`. Views show it once the cluster
    has it, whether it is archived or not."""

    def __init__(self, repository: str, *, ack_timeout: float = 30.0, interval: float = 1.0, idle: float = IDLE_S,
                 key: Key | None = None, accept_branch: str | None = None) -> None:
        super().__init__(repository, interval=interval, idle=idle, key=key, accept_branch=accept_branch)
        check_duration("ack_timeout", ack_timeout)
        self._timeout = ack_timeout
        self._waiting: deque[tuple[int, Future[Any]]] = deque()
        self._archived = 0

    def opened(self, store: StoreHandle) -> None:
        super().opened(store)
        self._waiting, self._archived = deque(), 0

    def logged(self, batch: LogRange) -> Condition:
        met: Future[Any] = Future()
        with self._guard:
            if batch.last <= self._archived:
                met.set_result(None)
            else:
                self._waiting.append((batch.last, met))
        return Condition(met=met, timeout=self._timeout, gates_publication=False, name="archived")

    def published(self, records: Sequence[Record]) -> None:
        """Archive at once."""
        term = self._term
        if term is not None:
            term.wake.set()

    def reached(self, term: object, archiver: Archiver) -> None:
        met = []
        with self._guard:
            if term is not self._term:  # of a store that is closed by now
                return
            self._archived = archiver.end.txid
            while self._waiting and self._waiting[0][0] <= self._archived:
                met.append(self._waiting.popleft()[1])
        for future in met:
            future.set_result(None)
