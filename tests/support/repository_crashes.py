"""A source whose content at each transaction is known, and what must be there of it in a repository whatever happened:
every object that the catalog's state needs, archived log without a gap, and every promised point.

What takes several threads elsewhere is done in the caller's thread here, so that each run is the same, and a run can be
cut off, or others can take their turns (`orders.py`), at any call to the storage.
"""

from __future__ import annotations

import itertools
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import orders
import pytest
from orders import BEGUN_US, Turns
from repository_rig import Objects
from workloads import staging

from holdfast.backup.repository import archiver as archiving
from holdfast.backup.repository import names
from holdfast.backup.repository.archive import Archive
from holdfast.backup.repository.errors import BlocksDropped, SessionAborted
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.pieces import Piece, decode
from holdfast.backup.repository.reports import RepositoryInfo
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.restoring import tree_of
from holdfast.backup.repository.storage.interface import ObjectStore
from holdfast.engine.env import Env
from holdfast.engine.errors import LogPruned
from holdfast.engine.model.positions import Position
from holdfast.engine.source.interface import SourceInfo
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store
from holdfast.engine.testing import Workload
from holdfast.engine.testing.disks.quiet import SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.support.forks import Say
from holdfast.engine.testing.support.simulated_run import SETTINGS, Run

DEST = Path("/stores/restored")
BLOCK_BYTES = 4096
_ID = bytes(range(16))
_VALUE_BYTES = 3000


class _InTheCaller:
    """Stands in for a pool of threads."""

    def __init__(self, *_: Any) -> None:
        pass

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


class _WhenAsked:
    """Stands in for threads that read ahead."""

    def __init__(self, read: Callable[..., Any], pieces: Iterable[tuple[Any, ...]], _: Any) -> None:
        self._read, self._pieces = read, iter(pieces)

    def take(self) -> Any:
        return self._read(*next(self._pieces))

    def close(self) -> None:
        pass


def in_one_thread(patch: pytest.MonkeyPatch) -> None:
    """Backups and restores do everything in the caller's thread from now on, and in small parts: packs have two blocks
    or so, and two pieces are merged into one."""
    for name, attribute, value in (("blocks", "Pool", _InTheCaller), ("restoring", "Pool", _InTheCaller),
                                   ("copying", "Pool", _InTheCaller),
                                   ("imaging", "Ahead", _WhenAsked), ("blocks", "PACK_BYTES", 2 * BLOCK_BYTES),
                                   ("imaging", "GROUP_BYTES", BLOCK_BYTES),
                                   ("archiver", "FAN_IN", 2)):
        patch.setattr(f"holdfast.backup.repository.{name}.{attribute}", value)


class Upto(LocalSource):
    """A source that has published its transactions up to `limit`, and no longer has the log before `pruned`."""

    limit = 0
    pruned = 0

    def info(self) -> SourceInfo:
        info, log = super().info(), self._store.log
        if not 0 < self.limit < info.published.txid:
            return info
        at = Position(self.limit, log.chain_at(self.limit))
        return replace(info, published=at, durable=at, complete_until_us=log.time_of(self.limit))

    def confirm(self, lease_id: str) -> Any:
        info = self.info()
        return replace(super().confirm(lease_id), published=info.published, complete_until_us=info.complete_until_us)

    def chain_at(self, txid: int) -> bytes:
        if txid < self.pruned:
            raise LogPruned(f"the log begins after transaction {self.pruned}")
        return super().chain_at(txid)

    def register(self, slot_id: str, owner: str, position: Position) -> None:
        """Nothing is pruned here."""


class Past:
    """A store that was written to.

    Attributes:
        run: it, with its models.
        source: of all of it. Others may be made of less: see `upto`.
    """

    def __init__(self) -> None:
        self.run = Run(staging())
        self.run.do(("open",))
        self.source = self.upto(0)
        self._random = Random(5 + orders.draw)

    @property
    def last(self) -> int:
        return self.run.last

    def upto(self, limit: int, *, pruned: int = 0) -> Upto:
        source = Upto(self.run.store)
        source.limit, source.pruned = limit, pruned
        return source

    def write(self, count: int) -> None:
        for _ in range(count):
            key = b"key %d" % (self.last % 6)
            self.run.do(("commit", [("put", key, self._random.randbytes(_VALUE_BYTES))]))

    def load(self) -> None:
        """A bulk load."""
        self.run.do(("load", self.last))

    def checkpoint(self) -> None:
        self.run.do(("checkpoint",))

    def shows(self, env: Env, place: Path, txid: int) -> None:
        """A store that was restored to `txid` holds what was written up to there."""
        work = self.run.work
        with (Store.open(place, work.engine, create=False, read_only=True, settings=SETTINGS, env=env) as store,
              store.snapshot() as view):
            assert view.txid == txid
            assert work.content(view) == work.expected(self.run.models[txid]), f"the content at {txid} is another one"
            assert list(view.check()) == []

    def restores(self, repository: Repository, **point: Any) -> int:
        """A restore gives what was written up to the point. The transaction."""
        env = replace(repository._env, files=SimDisk())
        reached = Repository(repository._store, bytes.fromhex(repository.id), repository._keyring, env).restore(
            DEST, engine=self.run.work.engine, **point).txid
        self.shows(env, DEST, reached)
        return reached


def begun() -> Past:
    """A store with six transactions, of which four are checkpointed."""
    made = Past()
    made.write(4)
    made.checkpoint()
    made.write(2)
    return made


# --- what must be there ---------------------------------------------------------------------------------------------


def needs(repository: Repository) -> set[str]:
    """The names of all objects that the catalog's state needs: of images, of log within its runs, of the catalog."""
    store, seal, state = repository._store, repository._seal, repository._catalog.refresh()
    found = {names.numbered(names.CATALOG, number + 1) for number in range(state.number)}

    def with_files(name: str, folder: str) -> Piece:
        piece, _ = decode(seal, name, store.get(name), store)
        found.add(name)
        for one in piece.attachments:
            found.update(listed.name for listed in store.list(names.attachment(folder, one.name, 1)[:-10]))
        return piece

    for image in state.images.values():
        found |= {names.root(image.session), *tree_of(store, seal, image, repository._env).root.packs}
        for number in range(1, image.log_objects + 1):
            with_files(names.image_log(image.session, number), names.image_files(image.session))
    archive = Archive(store, seal, state)
    for branch, log in state.branches.items():
        tail = archive.tail(branch)
        for run in log.runs:
            slot, at = run.first, run.after
            last = run.last if run.last is not None else tail.slot if tail is not None else 0
            units = {unit.first: unit for unit in log.largest()}
            while slot <= last:
                unit = units.get(slot)
                piece = with_files(unit.name if unit else names.piece(branch, slot), names.branch_files(branch))
                assert piece.after == at, f"slot {slot} begins after {piece.after}, and what is before it ends at {at}"
                slot, at = unit.last + 1 if unit else slot + 1, piece.end
            assert run.end is None or at == run.end, f"a run ends at {at}, and is said to end at {run.end}"
    return found


def is_whole(repository: Repository) -> RepositoryInfo:
    """Everything that is needed is there, and right."""
    needed = needs(repository)
    missing = needed - {name for name, _, _ in repository.ls()}
    assert not missing, f"the state needs {sorted(missing)}"
    verified = repository.verify()
    assert not verified.damaged, verified.damaged
    return repository.info()


def is_right(repository: Repository, past: Past, *, restore: bool = True) -> RepositoryInfo:
    """It is whole. With `restore`, the ends of all bounds are restored, too."""
    info = is_whole(repository)
    for branch in info.branches if restore else ():
        for bounds in branch.restores_to:
            for txid in {bounds.first, bounds.last}:
                assert past.restores(repository, to_txid=txid, branch=branch.id) == txid
    return info


def garbage(repository: Repository) -> set[str]:
    """The objects of images and log that nobody needs."""
    return {name for folder in (names.PACKS, names.IMAGES, names.LOG, names.MERGED)
            for name, _, _ in repository.ls(f"{folder}/")} - needs(repository)


def restorable(info: RepositoryInfo) -> set[int]:
    """The transactions that it says it restores to."""
    return {txid for branch in info.branches for bounds in branch.restores_to
            for txid in range(bounds.first, bounds.last + 1)}


def archived(info: RepositoryInfo) -> int:
    """Where the archive of the only branch ends; 0 if there is none."""
    return max((branch.archived_to or 0 for branch in info.branches), default=0)


# --- in processes that are killed ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """What a child does.

    Attributes:
        directory: of its store. url: of the repository. environ: what reaches it.
        seed: of what it draws.
    """

    directory: Path
    url: str
    environ: Mapping[str, str]
    seed: int


KEYS = 30


def live(work: Workload, say: Say, life: Life) -> None:
    """Write and archive, and beside that back up and expire, until somebody kills this process."""
    os.environ.update(life.environ)
    archiving.FAN_IN = 4
    random = Random(life.seed)
    with Store.open(life.directory, work.engine, settings=SETTINGS) as store:
        source = LocalSource(store)

        def loop(what: Callable[[Repository], None]) -> Callable[[], None]:
            def run() -> None:
                with Repository.open(life.url) as repository:
                    while True:
                        try:
                            what(repository)
                        except (SessionAborted, BlocksDropped):
                            say("given up")
                        except BaseException:
                            say("broken", traceback.format_exc())
                            raise

            return run

        def back_up(repository: Repository) -> None:
            store.checkpoint()
            say("image", repository.backup(source, block_bytes=BLOCK_BYTES).to_txid)

        def expire(repository: Repository) -> None:
            say("expired", repository.expire(Keep(points="none", abandoned=random.choice(("1 day", "none")))).objects)

        with Repository.open(life.url) as repository:
            archiver = repository.archiver(source)
            say("open", store.published.txid)
            for what in (back_up, expire):
                store.env.scheduler.spawn("holdfast-loop", loop(what))
            while True:
                for _ in range(random.randrange(1, 4)):
                    with store.transaction() as tx:
                        number = int(tx.get(b"last") or 0) + 1
                        tx.put(b"last", b"%d" % number)
                        tx.put(b"key %d" % (number % KEYS), value_of(number))
                say("archived", archiver.step().end.txid)


def value_of(number: int) -> bytes:
    return Random(number).randbytes(500)


def shows_a_life(content: Mapping[bytes, bytes]) -> int:
    """A state that `live` left at some transaction. Its last number."""
    last = int(content.get(b"last", 0))
    assert dict(content) == ({b"last": b"%d" % last} if last else {}) | {
        b"key %d" % (number % KEYS): value_of(number) for number in range(max(1, last - KEYS + 1), last + 1)}
    return last


# --- in memory ----------------------------------------------------------------------------------------------------


_seeds = itertools.count()


def in_memory(store: ObjectStore, *, now_us: int = BEGUN_US) -> Repository:
    """A repository in storage, as a new process opens it."""
    seed = store.next_seed() if isinstance(store, Turns) else next(_seeds)
    env = quiet_env(SimDisk(), clock=SetClock(now_us), seed=seed)
    return Repository(store, _ID, None, env)


def objects_at(clock_us: int = BEGUN_US) -> Objects:
    return Objects(SetClock(clock_us))
