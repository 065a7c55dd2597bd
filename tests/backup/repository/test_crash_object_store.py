"""Storage in a directory against every crash and every error of its disk, on a simulated disk.

An object is whole or not there. One whose put returned is there. So is one that somebody was told of: by a refusal of
his own put, or by reading it, even if the process that put it was killed before its put returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from holdfast.backup.repository.errors import ObjectExists, ObjectMissing
from holdfast.backup.repository.storage.local import TEMPORARY, LocalObjectStore
from holdfast.backup.repository.storage.putting import put_own
from holdfast.engine.env import Env
from holdfast.engine.errors import HoldfastError
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.quiet import quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import Dropped, power_cuts
from holdfast.engine.testing.disks.simfaults import Injected, faults_of, lacks_of
from holdfast.engine.testing.support import counters

ROOT = Path("/backups/repository")
NAME, OTHER = "log/a/0001", "log/a/0002"
MINE, THEIRS = b"mine" * 400, b"theirs" * 300
TRIES = current_profile().crash_states

Step = Callable[[LocalObjectStore], object]


_processes = count()


def env(disk: SimDisk) -> Env:
    """Of a new process. No two draw the same names for temporary files."""
    return quiet_env(disk, seed=next(_processes))


def opened(disk: SimDisk) -> LocalObjectStore:
    """As a new process opens it."""
    return LocalObjectStore(ROOT, env=env(disk))


def crashes(before: SimDisk, step: Step, tries: int = TRIES) -> Iterator[tuple[SimDisk, bool]]:
    """Every disk that a kill or a power cut may leave while `step` is done, once, and whether it had been done."""
    recording = before.copy()
    step(opened(recording))
    seen: set[tuple[bytes, bool]] = set()
    for ops, at in enumerate(before.points(recording.ops)):
        done = ops == len(recording.ops)
        for left in (at.killed(), *power_cuts(at, tries=tries, salt=ops)):
            key = left.digest(), done
            if key not in seen:
                seen.add(key)
                yield left, done
    counters.count("crash states", "object store", len(seen))


def content(disk: SimDisk, name: str = NAME) -> bytes | None:
    """What is at a name for a new process; None if nothing is. The list agrees."""
    store = opened(disk.copy())
    listed = {found.name: found.size for found in store.list("")}
    try:
        data = store.get(name)
    except ObjectMissing:
        assert name not in listed
        return None
    assert listed[name] == len(data)
    return data


def with_other() -> SimDisk:
    """Some objects are there already, durably."""
    disk = SimDisk()
    opened(disk).put(OTHER, THEIRS)
    return disk


def put(store: LocalObjectStore) -> None:
    store.put(NAME, MINE)


def put_once_removed(store: LocalObjectStore) -> None:
    """The name had other content, whose removal need not be durable yet."""
    store.delete(NAME)
    store.put(NAME, MINE)


def removed() -> SimDisk:
    disk = with_other()
    opened(disk).put(NAME, THEIRS)
    return disk


def refused(store: LocalObjectStore) -> None:
    with pytest.raises(ObjectExists):
        store.put(NAME, MINE)


@pytest.mark.parametrize(("before", "step", "allowed"), [
    (SimDisk, put, (None, MINE)), (with_other, put, (None, MINE)), (removed, put_once_removed, (None, THEIRS, MINE)),
    (removed, refused, (THEIRS,))])
def test_a_put_is_cut_off(before: Callable[[], SimDisk], step: Step, allowed: tuple[bytes | None, ...]) -> None:
    """At every point: the object is whole or not there, and there if its put had returned. It can be put again, and is
    then there for good."""
    last = allowed[-1]
    tried = 0
    for left, done in crashes(before(), step):
        found = content(left)
        assert found in allowed
        assert found == last or not done
        store = opened(left)
        if found != last:
            store.delete(NAME)
        assert last is not None
        put_own(store, NAME, last, env(left))
        assert left.list(ROOT / TEMPORARY) == [], "a leftover stays"
        assert content(left.crashed(Dropped())) == last
        tried += 1
    assert tried >= 3


def told(store: LocalObjectStore) -> bytes:
    """Put the name, and be told what is there."""
    try:
        store.put(NAME, THEIRS)
    except ObjectExists:
        return store.get(NAME)
    return THEIRS


@pytest.mark.parametrize("before", [SimDisk, with_other])
def test_two_put_one_name_and_the_first_is_cut_off(before: Callable[[], SimDisk]) -> None:
    """What the second one was told is what is there, whatever a power cut after that takes. Either may win."""
    won = set()
    for left, done in crashes(before(), put, tries=3):
        winner = told(opened(left))
        assert winner == MINE or not done
        won.add(winner)
        for cut in power_cuts(left, tries=TRIES, salt=0):
            assert content(cut) == winner
    assert won == {MINE, THEIRS}


@pytest.mark.parametrize("before", [SimDisk, with_other])
def test_two_put_one_name_and_both_are_cut_off(before: Callable[[], SimDisk]) -> None:
    """At every point of the second: it is whole, and one of the two."""
    for half, _ in crashes(before(), put, tries=2):
        held = content(half.crashed(Dropped())) is not None
        for left, done in crashes(half, told, tries=2):
            found = content(left)
            assert found in (MINE, THEIRS, None)
            assert found is not None or not (done or held)


def test_a_refusal_alone_says_what_is_durable() -> None:
    """The first is killed after its link, the second refused, and then the power goes."""
    refusals = 0
    for left, _ in crashes(with_other(), put, tries=1):
        try:
            opened(left).put(NAME, THEIRS)
        except ObjectExists:
            refusals += 1
            assert content(left.crashed(Dropped())) == MINE
    assert refusals >= 2


def test_what_was_read_stays() -> None:
    """The one who put it was killed before its put returned. A reader that was open before sees to it, too."""
    read = 0
    for left, _ in crashes(with_other(), put, tries=1):
        for earlier in (False, True):
            disk = left.copy()
            store = opened(disk)
            if earlier:
                store.get(OTHER)
            try:
                assert store.get(NAME) == MINE
            except ObjectMissing:
                continue
            read += 1
            assert content(disk.crashed(Dropped())) == MINE
    assert read >= 4


def test_what_was_listed_stays() -> None:
    """As what was read."""
    listed = 0
    for left, _ in crashes(with_other(), put, tries=1):
        if NAME in [found.name for found in opened(left).list("")]:
            listed += 1
            assert content(left.crashed(Dropped())) == MINE
    assert listed >= 2


def test_a_reader_that_is_open_sees_to_what_comes_later() -> None:
    """It has read in this folder before. Then somebody links an object, and is killed."""
    disk = with_other()
    clean = disk.copy()
    put(opened(clean))
    linked = next(at for at, op in enumerate(clean.ops) if op.says == "link")
    reader = opened(disk)
    assert reader.get(OTHER) == THEIRS
    for op in clean.ops[: linked + 1]:
        disk.apply(op)
    assert reader.get(NAME) == MINE
    assert content(disk.crashed(Dropped())) == MINE


@pytest.mark.parametrize("before", [SimDisk, with_other, removed])
def test_a_put_whose_disk_fails(before: Callable[[], SimDisk]) -> None:
    """Each operation fails in each way, once and from then on. A put that returns has put; one that raises has left a
    whole object or none. Put again once the disk works, it is there for good."""
    clean = before()
    clean.ops.clear()
    openings: list[str] = []
    clean.opening = openings.append
    put_once_removed(opened(clean))
    tried = 0
    for fault in (*faults_of(clean.ops), *lacks_of(clean.ops, len(openings))):
        disk = before()
        injected = Injected(disk, fault)
        done = True
        try:
            put_once_removed(opened(disk))
        except HoldfastError:
            done = False
        injected.heal()
        if not injected.struck:
            continue
        tried += 1
        for left in (disk.crashed(Dropped()), disk.killed()):
            found = content(left)
            assert found == MINE if done else found in (None, MINE, THEIRS), str(fault)
            store = opened(left)
            if found == THEIRS:
                store.delete(NAME)
            put_own(store, NAME, MINE, env(left))
            assert content(left.crashed(Dropped())) == MINE, str(fault)
    assert tried >= 20
