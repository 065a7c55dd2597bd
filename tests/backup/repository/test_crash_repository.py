"""A repository on a local disk against every crash, on a simulated disk; and one in storage that loses answers.

Each thing that is done to a repository is recorded once, and cut off at some of the points between two operations of
the disk, at each one at night. What a crash leaves is a repository, or none if it was being made. Everything is there
whose call had returned, all of it is right, and the rerun finishes. The same holds if a question to the storage, or
three in a row, has no answer, whether what was asked was done or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from orders import BEGUN_US
from repository_crashes import (
    BLOCK_BYTES,
    DEST,
    archived,
    begun,
    garbage,
    in_memory,
    in_one_thread,
    is_right,
    objects_at,
    restorable,
)
from repository_rig import Objects

from holdfast.backup.repository.copying import copy
from holdfast.backup.repository.errors import RepositoryExists, RepositoryMissing, StorageUnavailable
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.keys import Key
from holdfast.backup.repository.reports import RepositoryInfo
from holdfast.backup.repository.repository import Repository
from holdfast.engine.env import Env
from holdfast.engine.errors import InvalidInput, RestorePointOutOfRange, StoreNotFound
from holdfast.engine.store.store import Store
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.quiet import SetClock, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import Dropped, power_cuts
from holdfast.engine.testing.support import counters

ROOT, COPY = Path("/backups/repository"), Path("/elsewhere/copy")
PROFILE = current_profile()
FEW = 40
"""Of a run with fewer operations, each is tried."""
KEY = Key(b"the secret of the operator")

_processes = count(1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_thread(monkeypatch)
    monkeypatch.setattr("holdfast.backup.repository.keys._SCRYPT", {"n": 2, "r": 8, "p": 1, "dklen": 32})


Where = SimDisk | Objects


class Cuts:
    """A repository on a simulated disk, or in memory, of a store that was written to.

    Attributes:
        where: it is, before what is tried.
        key: None: it is not encrypted.
        told: what was returned: (operations or questions by then, name, value).
        recorded: where what returns is noted.
    """

    def __init__(self, where: Where, key: Key | None = None) -> None:
        self.past, self.key, self.where = begun(), key, where
        self.told: list[tuple[int, str, Any]] = []
        self.recorded: Where | None = None

    def env(self, disk: SimDisk) -> Env:
        """Of a new process."""
        return quiet_env(disk, clock=SetClock(BEGUN_US), seed=next(_processes))

    def init(self, where: Where) -> None:
        if isinstance(where, SimDisk):
            with suppress(RepositoryExists):
                Repository.init(ROOT, key=self.key, env=self.env(where)).close()

    def opened(self, where: Where) -> Repository:
        if isinstance(where, Objects):
            return in_memory(where)
        return Repository.open(ROOT, key=self.key, env=self.env(where))

    def returned(self, where: Where, name: str, value: Any) -> None:
        if where is self.recorded:
            self.told.append((len(where.ops if isinstance(where, SimDisk) else where.asked), name, value))

    # --- what is done ----------------------------------------------------------------------------------------------

    def back_up(self, where: Where) -> None:
        with self.opened(where) as repository:
            report = repository.backup(self.past.source, block_bytes=BLOCK_BYTES)
        self.returned(where, "image", report.image)
        self.returned(where, "restorable", report.to_txid)

    def archive(self, where: Where) -> None:
        """Begin, and archive transaction by transaction."""
        source = self.past.upto(6)
        with self.opened(where) as repository, closing(repository.archiver(source)) as archiver:
            for limit in range(archiver.end.txid, self.past.last + 1):
                source.limit = limit
                self.returned(where, "archived", archiver.step().end.txid)

    def synthesize(self, where: Where) -> None:
        """The scratch place is not part of what is cut off."""
        with self.opened(where) as repository:
            env = replace(repository._env, files=SimDisk())
            report = Repository(repository._store, bytes.fromhex(repository.id), repository._keyring, env).synthesize(
                scratch=Path("/scratch"), engine=self.past.run.work.engine)
        self.returned(where, "image", report.image)
        self.returned(where, "restorable", report.to_txid)

    def mark(self, where: Where) -> None:
        with self.opened(where) as repository, suppress(InvalidInput):  # it is there already
            repository.mark("release", to_txid=5, keep=True)
        self.returned(where, "mark", "release")

    def restore(self, where: Where) -> None:
        with self.opened(where) as repository:
            assert self.past.restores(repository, to_txid=8) == 8

    def expire(self, where: Where) -> None:
        with self.opened(where) as repository:
            repository.expire(Keep(points="none"))

    def verify(self, where: Where) -> None:
        with self.opened(where) as repository:
            assert not repository.verify().damaged

    def copy(self, where: SimDisk) -> None:
        copy(ROOT, COPY, env=self.env(where))

    def goes_on(self, verb: str) -> set[int]:
        """The store goes on, also with a bulk load, whose content is an attachment. Returns the transactions to which
        the repository restores still, whatever is done to it: an expiry that keeps no points keeps the last one."""
        with self.opened(self.where) as repository:
            had = restorable(repository.info())
        self.past.write(1)
        self.past.load()
        self.past.write(1)
        self.past.checkpoint()
        return {max(had)} if verb == "an expiry" else had

    # --- what must be there ----------------------------------------------------------------------------------------

    def is_right(self, where: Where, ops: int, *, rerun: bool = False, restore: bool = True) -> RepositoryInfo:
        """What was returned by then is there; after a rerun, as much as after the recorded run."""
        with self.opened(where) as repository:
            info = is_right(repository, self.past, restore=restore)
        promised = [(name, value) for at, name, value in self.told if at <= ops or (rerun and name != "image")]
        for name, value in promised:
            if name == "image":
                assert value in {image.id for image in info.images}
            elif name == "mark":
                assert value in {mark["name"] for mark in info.marks}
            elif name == "archived":
                assert archived(info) >= value, f"the archive ends at {archived(info)}, and {value} had been returned"
            else:
                assert value in restorable(info)
        return info

    def crashes(self, what: Callable[[SimDisk], object]) -> Iterator[tuple[SimDisk, int, bool]]:
        """Disks that a kill or a power cut may leave while `what` is done, each once, how many operations had been
        done, and whether these were all."""
        assert isinstance(self.where, SimDisk)
        recording = self.recorded = self.where.copy()
        what(recording)
        self.recorded = None
        seen: set[tuple[bytes, int]] = set()
        points = [(ops, at.copy()) for ops, at in enumerate(self.where.points(recording.ops))]
        thinned = replace(PROFILE, stride=min(PROFILE.stride, 1 + len(points) // FEW))
        for ops, at in (*thinned.some(points[:-1]), points[-1]):
            for left in (at.killed(), *power_cuts(at, tries=max(1, PROFILE.crash_states // 6), salt=ops)):
                key = left.digest(), sum(told <= ops for told, _, _ in self.told)
                if key not in seen:
                    seen.add(key)
                    yield left, ops, ops == len(recording.ops)
        counters.count("crash states", "repository", len(seen))


def image(cuts: Cuts) -> None:
    cuts.init(cuts.where)
    cuts.back_up(cuts.where)


def log(cuts: Cuts) -> None:
    image(cuts)
    cuts.past.write(4)
    cuts.archive(cuts.where)


def two_images(cuts: Cuts) -> None:
    log(cuts)
    cuts.past.checkpoint()
    cuts.back_up(cuts.where)


def nothing(cuts: Cuts) -> None:
    cuts.init(cuts.where)


VERBS: dict[str, tuple[Callable[[Cuts], None], Callable[[Cuts, Where], None]]] = {
    "the first backup": (nothing, Cuts.back_up),
    "the second backup": (log, Cuts.back_up),
    "archiving": (image, Cuts.archive),
    "archiving again": (log, Cuts.archive),
    "a synthetic image": (log, Cuts.synthesize),
    "a mark": (log, Cuts.mark),
    "a restore": (log, Cuts.restore),
    "an expiry": (two_images, Cuts.expire),
    "a verify": (two_images, Cuts.verify),
}


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_the_making_of_a_repository_is_cut_off(key: Key | None) -> None:
    cuts = Cuts(SimDisk(), key)
    missing = 0
    for left, _, done in cuts.crashes(cuts.init):
        try:
            cuts.opened(left).close()
        except RepositoryMissing:
            missing += 1
            assert not done
        except Exception:
            assert key is not None  # its keys are not there yet
            assert not done
        cuts.init(left)
        cuts.back_up(left)
        after = left.crashed(Dropped())
        cuts.is_right(after, 0)
        with pytest.raises(Exception, match="key"):
            Repository.open(ROOT, key=KEY if key is None else None, env=cuts.env(after))
    assert missing


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_done_is_cut_off(verb: str) -> None:
    before, do = VERBS[verb]
    cuts = Cuts(SimDisk())
    before(cuts)
    had = cuts.goes_on(verb)
    restored = 0
    for left, ops, _ in cuts.crashes(partial(do, cuts)):
        info = cuts.is_right(left.copy(), ops, restore=restored % 4 == 0)
        restored += 1
        assert had <= restorable(info)
        do(cuts, left)
        if verb == "an expiry":
            with cuts.opened(left.copy()) as repository:
                assert not garbage(repository)
        after = left.crashed(Dropped())
        info = cuts.is_right(after, ops, rerun=True, restore=False)
        assert had <= restorable(info)
    assert restored >= (7 if PROFILE.name == "default" else 8)  # a mark has few operations, and not all are tried


@pytest.mark.parametrize("again", [False, True], ids=["the first", "the next"])
def test_a_copy_is_cut_off(again: bool) -> None:
    """What is left is the repository as it was at some moment, or no copy yet. The rerun brings the rest."""
    cuts = Cuts(SimDisk())
    assert isinstance(cuts.where, SimDisk)
    log(cuts)
    had: set[int] = set()
    if again:
        cuts.copy(cuts.where)
        with cuts.opened(cuts.where) as repository:
            had = restorable(repository.info())
    cuts.past.load()
    cuts.past.checkpoint()
    cuts.back_up(cuts.where)
    cuts.archive(cuts.where)
    with cuts.opened(cuts.where.copy()) as repository:
        wanted = restorable(repository.info())
    assert had < wanted
    missing = 0
    for left, ops, done in cuts.crashes(cuts.copy):
        disk = left.copy()
        try:
            found = Repository.open(COPY, env=cuts.env(disk))
        except RepositoryMissing:
            assert not done
            assert not again
            missing += 1
        else:
            shown = restorable(is_right(found, cuts.past, restore=ops % 4 == 0))
            assert had <= shown <= wanted
            assert shown == wanted or not done
        cuts.copy(left)
        after = left.crashed(Dropped())
        assert restorable(is_right(Repository.open(COPY, env=cuts.env(after)), cuts.past, restore=False)) == wanted
    assert missing or again


def test_the_rerun_is_cut_off_too() -> None:
    """A backup, and an expiry that finds what an earlier one has left."""
    for before, do in (VERBS["the second backup"], VERBS["an expiry"]):
        cuts = Cuts(SimDisk())
        before(cuts)
        cuts.past.write(2)
        cuts.past.checkpoint()
        halves = [left for left, _, done in cuts.crashes(partial(do, cuts)) if not done]
        for half in halves[:: 1 + len(halves) // (3 * PROFILE.times)]:
            cuts.where, cuts.told = half, []
            for left, ops, _ in list(cuts.crashes(partial(do, cuts)))[::5]:
                cuts.is_right(left, ops, restore=False)
                do(cuts, left)
                cuts.is_right(left, ops, rerun=True)


def test_a_backup_that_died_is_gone_on_with() -> None:
    """Its packs are used by the next run, and go once nobody needs them: after an expiry bars it."""
    cuts = Cuts(SimDisk())
    two_images(cuts)
    cuts.past.write(4)
    cuts.past.checkpoint()
    for left, _, done in cuts.crashes(cuts.back_up):
        if done:
            continue
        cuts.back_up(left)
        env = quiet_env(left, clock=SetClock(BEGUN_US + 2 * 24 * 3600 * 1_000_000), seed=next(_processes))
        with Repository.open(ROOT, env=env) as repository:
            repository.expire(Keep(last=1, points="none"))
            info = is_right(repository, cuts.past)
            assert not info.running
            packs = {name for name, _, _ in repository.ls("packs/")}
            with suppress(RestorePointOutOfRange):
                repository.expire(Keep(last=1, points="none"))
            assert packs == {name for name, _, _ in repository.ls("packs/")}


# --- answers that do not come -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["lost", "gone"])
@pytest.mark.parametrize("in_a_row", [1, 3])
@pytest.mark.parametrize("verb", VERBS)
def test_answers_of_the_storage_do_not_come(verb: str, fate: str, in_a_row: int) -> None:
    """What is asked was done, and the answer is lost; or it was not done. The call returns, and then it is done; or it
    says that the storage is not available, and a rerun finishes."""
    before, do = VERBS[verb]
    start = objects_at()
    cuts = Cuts(start)
    before(cuts)
    had = cuts.goes_on(verb)
    straight = Objects(start.clock, dict(start.objects))
    do(cuts, straight)
    ends = Counter[str]()
    for first in PROFILE.some(range(len(straight.asked))):
        here = Objects(start.clock, dict(start.objects))
        here.fate = lambda what, name, here=here, first=first: (  # type: ignore[misc]
            fate if first < len(here.asked) <= first + in_a_row else None)
        cuts.told, cuts.recorded = [], here
        try:
            do(cuts, here)
            ends["done"] += 1
        except StorageUnavailable:
            ends["not available"] += 1
        cuts.recorded = None
        left = Objects(start.clock, here.objects)
        assert had <= restorable(cuts.is_right(left, 1 << 40, restore=False))
        do(cuts, left)
        assert had <= restorable(cuts.is_right(left, 1 << 40, restore=first % 4 == 0))
    assert ends["not available"]


@pytest.mark.parametrize("fate", ["lost", "gone"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_answers_do_not_come_while_a_repository_is_made(key: Key | None, fate: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that has an answer to its rerun says that it made one; what was made opens."""
    storage: list[Objects] = []
    monkeypatch.setattr("holdfast.backup.repository.repository.open_storage", lambda url, env: storage[-1])
    env = quiet_env(SimDisk(), clock=SetClock(BEGUN_US))
    made = 0
    for first in range(10):
        storage.append(objects_at())
        storage[-1].fate = lambda what, name, here=storage[-1], first=first: (  # type: ignore[misc]
            fate if len(here.asked) == first + 1 else None)
        try:
            Repository.init("memory:", key=key, env=env)
            made += 1
        except StorageUnavailable:
            storage[-1].fate = lambda what, name: None
            with suppress(RepositoryExists):
                Repository.init("memory:", key=key, env=env)
        storage[-1].fate = lambda what, name: None
        assert Repository.open("memory:", key=key, env=env).encrypted == (key is not None)
    assert made >= 3


def test_a_restore_over_a_store_is_cut_off() -> None:
    """Whatever is left is the old store, the new one, or none that anybody opens or makes anew; and the rerun ends with
    the new one."""
    objects = objects_at()
    cuts = Cuts(objects)
    in_memory(objects).backup(cuts.past.source, block_bytes=BLOCK_BYTES)
    old = cuts.past.last
    cuts.past.write(4)
    cuts.past.checkpoint()
    in_memory(objects).backup(cuts.past.source, block_bytes=BLOCK_BYTES)
    new, engine = cuts.past.last, cuts.past.run.work.engine

    def restore(disk: SimDisk, txid: int, **how: Any) -> None:
        repository = in_memory(objects)
        Repository(repository._store, bytes.fromhex(repository.id), None, cuts.env(disk)).restore(
            DEST, to_txid=txid, engine=engine, **how)

    start = SimDisk()
    restore(start, old)
    recording = start.copy()
    restore(recording, new, delta=True)
    found: Counter[str] = Counter()
    seen: set[bytes] = set()
    for ops, at in enumerate(start.points(recording.ops)):
        for left in (at.killed(), *power_cuts(at, tries=4, salt=ops)):
            if left.digest() in seen:
                continue
            seen.add(left.digest())
            for create in (False, True):
                opened = left.copy()
                try:
                    Store.open(DEST, engine, create=create, env=cuts.env(opened)).close()
                except StoreNotFound as error:
                    found["none" if "has not ended" in error.message else "lost"] += 1
                else:
                    shown = new if ops > len(recording.ops) // 2 else old
                    cuts.past.shows(cuts.env(opened), DEST, shown)
                    found["old" if shown == old else "new"] += 1
            restore(left, new, delta=True)
            cuts.past.shows(cuts.env(left.crashed(Dropped())), DEST, new)
    assert found.keys() == {"old", "none", "new"}
    assert min(found.values()) > 2
    counters.count("crash states", "repository", len(seen))
