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
from ..cluster import best_source
from ..connection import Connection, Named
from .errors import Fenced

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
    """Archives a store into a repository from the moment when it is opened.

    Args:
        repository: the repository's URL, or a path.
        interval: seconds from one piece to the next.
        key: of an encrypted repository.
        accept_branch: id of a branch that is new to the repository.
        ack: commits return once they are in the repository, at the latest after `ack_timeout` seconds; then they raise
            `ConditionNotMet`.
    """

    def __init__(self, repository: str, *, interval: float = 1.0, key: Key | None = None,
                 accept_branch: str | None = None, ack: bool = False, ack_timeout: float = 30.0) -> None:
        self._url, self._interval, self._key, self._accept = repository, interval, key, accept_branch
        self._ack, self._ack_timeout = ack, ack_timeout
        self._waiting: deque[tuple[int, Future[Any]]] = deque()
        self._archived = 0
        self._ended: Exception | None = None
        self._task: Task | None = None
        self._loop: Archiving | None = None
        self._repository: Repository | None = None

    def opened(self, store: StoreHandle) -> None:
        from .repository import Repository

        env = store.env
        self._repository = repository = Repository.open(self._url, key=self._key, env=env)
        self._guard = env.scheduler.lock()
        self._archived, self._ended = 0, None
        source: Source = LocalSource(store)  # type: ignore[arg-type]  # what it uses of a store, every store has

        def begin() -> Archiver:
            return repository.archiver(source, accept_branch=self._accept)

        try:
            begin().close()  # another store's repository, a key that is wrong: the store is not opened
        except BaseException:
            repository.close()
            raise
        self._loop = Archiving(begin, self._interval, env, env.scheduler.event(), env.scheduler.event(), self._told)
        self._task = env.scheduler.spawn("holdfast-archive", self._run)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run()
        except Fenced as error:
            logger.error("archiving has ended: %s", error)
            self._refuse(error)
        except StoreClosed:
            pass
        except Exception as error:
            logger.exception("archiving has ended")
            self._refuse(error)

    def logged(self, batch: LogRange) -> Condition | None:
        if not self._ack or self._loop is None:
            return None
        met: Future[Any] = Future()
        with self._guard:
            if self._ended is not None:
                met.set_exception(self._ended)
            elif batch.last <= self._archived:
                met.set_result(None)
            else:
                self._waiting.append((batch.last, met))
        return Condition(met=met, timeout=self._ack_timeout, gates_publication=False, name="archived")

    def published(self, records: Sequence[Record]) -> None:
        if self._ack and self._loop is not None:
            self._loop.wake.set()

    def _told(self, archiver: Archiver) -> None:
        met = []
        with self._guard:
            self._archived = archiver.end.txid
            while self._waiting and self._waiting[0][0] <= self._archived:
                met.append(self._waiting.popleft()[1])
        for future in met:
            future.set_result(None)

    def _refuse(self, error: Exception) -> None:
        """Nothing is archived any more: commits that wait for it end now."""
        with self._guard:
            self._ended = error
            refused, self._waiting = list(self._waiting), deque()
        for _, future in refused:
            future.set_exception(error)

    def closing(self, store: StoreHandle) -> None:
        """Archives what is published, if the repository can be reached, and stops."""
        loop, task, repository = self._loop, self._task, self._repository
        self._loop = None
        if loop is not None and task is not None and repository is not None:
            loop.stop.set()
            loop.wake.set()
            task.join()
            repository.close()


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
