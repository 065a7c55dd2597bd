"""Archiving continuously: in a store's own process as a plugin, or in a process beside it that follows a source.

Both run the same loop. It archives what has been published, waits for the interval, and goes on. If the repository or
the source cannot be reached, it tries again with growing pauses, and goes on where it was; the store keeps its log
meanwhile, within the bounds of its slots. If another archiver takes over, it stops.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...engine.contract.plugin import Condition, Plugin, StoreHandle
from ...engine.env import REAL, Env, Event, Task
from ...engine.errors import HoldfastError, StoreClosed
from ...engine.model.records import LogRange, Record
from ...engine.source.interface import Source
from ...engine.source.local import LocalSource
from ...engine.store.settings import check_duration
from ..cluster import best_source
from ..connection import Connection, Named
from .errors import Fenced, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .archiver import Archiver
    from .keys import Key
    from .repository import Repository

logger = logging.getLogger("holdfast.repository")

_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(slots=True)
class Archiving:
    """The loop. `begin` opens an archiver, and is called again after an error. `told` is called after each step, in the
    loop's thread."""

    begin: Callable[[], Archiver]
    interval: float
    env: Env
    stop: Event
    wake: Event
    told: Callable[[Archiver], None]
    trouble: HoldfastError | None = None

    def run(self) -> None:
        """Archive until `stop` is set. Raises `Fenced`."""
        archiver: Archiver | None = None
        pause = _PAUSE_S
        try:
            while True:
                last = self.stop.is_set()  # what was published before it was set is archived, too
                try:
                    if archiver is None:
                        archiver = self.begin()
                    archiver.step()
                except Fenced:
                    raise
                except HoldfastError as error:
                    if self.trouble is None or self.trouble.message != error.message:
                        logger.warning("not archived, will be tried again: %s", error)
                    self.trouble = error
                    if archiver is not None:
                        archiver.close()
                    archiver = None
                    if last:
                        return
                    self.stop.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
                    continue
                self.trouble, pause = None, _PAUSE_S
                self.told(archiver)
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
        key: of an encrypted repository.
        accept_branch: id of a branch that is new to the repository.
    """

    def __init__(self, repository: str, *, interval: float = 1.0, key: Key | None = None,
                 accept_branch: str | None = None) -> None:
        check_duration("interval", interval)
        self._url, self._interval, self._key, self._accept = repository, interval, key, accept_branch
        self._task: Task | None = None
        self._loop: Archiving | None = None
        self._repository: Repository | None = None

    def opened(self, store: StoreHandle) -> None:
        from .repository import Repository

        env = store.env
        source: Source = LocalSource(store)  # type: ignore[arg-type]  # what it uses of a store, every store has

        def begin() -> Archiver:
            if self._repository is None:
                self._repository = Repository.open(self._url, key=self._key, env=env)
            return self._repository.archiver(source, accept_branch=self._accept)

        first: list[Archiver] = []
        try:
            first.append(begin())
        except StorageUnavailable as error:
            logger.warning("%s cannot be reached: %s. The store is archived once it can", self._url, error.message)
        except BaseException:  # another store's repository, a key that is wrong: the store is not opened
            self._end()
            raise
        self._loop = Archiving(lambda: first.pop() if first else begin(), self._interval, env, env.scheduler.event(),
                               env.scheduler.event(), self.reached)
        self._task = env.scheduler.spawn("holdfast-archive", self._run)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run()
        except Fenced as error:
            logger.error("archiving has ended: %s", error)
            self.ended(error)
        except StoreClosed:
            pass
        except Exception as error:
            logger.exception("archiving has ended")
            self.ended(error)

    def reached(self, archiver: Archiver) -> None:
        """After each step. In the archiver's thread."""

    def ended(self, error: Exception) -> None:
        """Nothing is archived any more, because of this. In the archiver's thread."""

    def closing(self, store: StoreHandle) -> None:
        """Archives what is published, if the repository can be reached, and stops."""
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


class ArchiveAckPlugin(ArchivePlugin):
    """As `ArchivePlugin`, and commits return once they are in the repository. A commit that is not there after
    `ack_timeout` seconds raises `ConditionNotMet`; it is durable here, and views show it."""

    def __init__(self, repository: str, *, ack_timeout: float = 30.0, interval: float = 1.0, key: Key | None = None,
                 accept_branch: str | None = None) -> None:
        super().__init__(repository, interval=interval, key=key, accept_branch=accept_branch)
        check_duration("ack_timeout", ack_timeout)
        self._timeout = ack_timeout
        self._waiting: deque[tuple[int, Future[Any]]] = deque()
        self._archived = 0
        self._error: Exception | None = None

    def opened(self, store: StoreHandle) -> None:
        self._guard = store.env.scheduler.lock()
        self._archived, self._error = 0, None
        super().opened(store)

    def logged(self, batch: LogRange) -> Condition:
        met: Future[Any] = Future()
        with self._guard:
            if self._error is not None:
                met.set_exception(self._error)
            elif batch.last <= self._archived:
                met.set_result(None)
            else:
                self._waiting.append((batch.last, met))
        return Condition(met=met, timeout=self._timeout, gates_publication=False, name="archived")

    def published(self, records: Sequence[Record]) -> None:
        """Archive at once."""
        if self._loop is not None:
            self._loop.wake.set()

    def reached(self, archiver: Archiver) -> None:
        met = []
        with self._guard:
            self._archived = archiver.end.txid
            while self._waiting and self._waiting[0][0] <= self._archived:
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
                   once: bool = False, accept_branch: str | None = None,
                   told: Callable[[int, int], None] | None = None, stop: Event | None = None, env: Env = REAL) -> None:
    """Archive a source that is named, until `stop` is set. Blocks.

    Args:
        repository: where to. It is used by this thread until this returns.
        named, connection: a URI, an open store, or any `Source`; and how to reach a URI.
        interval: seconds from one piece to the next.
        once: archive what is published now, and return; an error is raised and not tried again.
        accept_branch: id of a branch that is new to the repository.
        told: called in this thread after each step that archived something, with the transaction that it reached and
            the number of transactions.

    Raises:
        Fenced: another archiver has taken over.
        ForeignStore, OtherBranch, Diverged: refused at the start.
    """
    stop = stop or env.scheduler.event()
    with ExitStack() as opened:
        def begin() -> Archiver:
            opened.close()  # the connection before; of a cluster, perhaps to a member that has gone
            source = opened.enter_context(best_source(named, connection))
            return repository.archiver(source, accept_branch=accept_branch)

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
