"""Room for the next segment: made without the lock that commits need, by whoever needs it, and lost by nobody."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from log_world import HERE, World
from store_kinds import MEMORY, STAGING, Kind, commit, until

from holdfast.engine.env import Env, File
from holdfast.engine.errors import DiskFull, RolledBack
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles
from holdfast.engine.wal.preallocation import RoomNeeded
from holdfast.engine.wal.writer import LogOptions, LogWriter

SETTINGS = Settings(heartbeat_s=0, segment_bytes=128 << 10)
LARGE = 300_000


def is_room(path: Path) -> bool:
    """Whether it is a segment that is being prepared."""
    return path.suffix == ".new" and path.parent.name == "log"


@pytest.fixture
def nobody_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The background thread lags: whoever needs a segment makes its room himself."""
    monkeypatch.setattr(LogWriter, "prepare_spare", lambda self: None)


def fill(store: Store[Any, Any], n: int, size: int = 20_000) -> None:
    with store.transaction() as tx:
        tx.put(b"%d" % n, bytes(size))


class Asking(FaultyFiles):
    """Notes each use of the disk by a thread that holds the commit mutex."""

    def __init__(self) -> None:
        super().__init__()
        self.store: Store[Any, Any] | None = None
        self.rooms = 0
        self.under_the_mutex: list[str] = []

    def about_to(self, kind: str, path: Path) -> None:
        super().about_to(kind, path)
        self.rooms += kind == "create" and is_room(path)
        if self.store is not None and not self.under_the_mutex:
            mutex = self.store.group_commit.mutex
            if mutex.acquire(timeout=2):  # another thread has it for a moment only
                mutex.release()
            else:
                self.under_the_mutex.append(f"{kind} {path.name}")

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        self.about_to("open", path)
        return super().open(path, mode)


@pytest.mark.usefixtures("nobody_prepares")
@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
def test_nothing_is_done_at_the_disk_under_the_commit_mutex(kind: Kind, tmp_path: Path) -> None:
    """If no segment was prepared, whoever needed one filled it with zeros, 16 MiB and a sync, under the mutex: every
    commit, everybody who waited for one, and each status call waited too."""
    files = Asking()
    for last in (80_000, 100, 100):  # so the second opening begins behind the last segment, and the third goes on in it
        with kind.open(tmp_path / "store", settings=SETTINGS, env=Env(files)) as store:
            files.store = store
            store.complete_until_us()  # a promise takes a segment, too
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda n, store=store: fill(store, n), range(24)))
            fill(store, 24, LARGE)
            fill(store, 25, last)
            store.checkpoint()
            files.store = None
    assert files.under_the_mutex == []
    assert files.rooms >= 3 * 5


@pytest.mark.usefixtures("nobody_prepares")
def test_who_waits_for_a_sync_waits_for_no_segment(tmp_path: Path) -> None:
    """The same, seen by the others: an earlier commit is synced, and is acknowledged, while a segment is filled."""
    files = FaultyFiles()
    with (STAGING.open(tmp_path / "store", settings=SETTINGS, env=Env(files)) as store,
          ThreadPoolExecutor(2) as pool):
        with store.transaction("relaxed") as tx:
            tx.put(b"1", b"")
        held = files.hold("create", only=is_room)
        try:
            filling = pool.submit(fill, store, 2, LARGE)
            assert held.reached.wait(10)
            pool.submit(store.wait, 1).result(10)
            assert store.positions().durable == 1
            assert not filling.done()
        finally:
            held.go.set()
        filling.result(10)
        assert store.positions().durable == 2


@pytest.mark.usefixtures("nobody_prepares")
def test_room_that_somebody_else_took_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making room and appending nobody holds the mutex: a heartbeat may begin the segment."""
    with STAGING.open(tmp_path / "store", settings=SETTINGS) as store:
        log, make, made = store.log, store.log.writer.make_room, list[int]()

        def robbed(capacity: int = 0) -> None:
            make(capacity)
            made.append(capacity)
            if len(made) < 4:
                room = log.writer.rooms.take(capacity)
                assert room is not None
                room.file.close()

        monkeypatch.setattr(log.writer, "make_room", robbed)
        fill(store, 1, LARGE)
        assert len(made) == 4
        fill(store, 2)
    with STAGING.open(tmp_path / "store", settings=SETTINGS) as store:
        assert STAGING.numbers(store) == {1, 2}


@pytest.mark.usefixtures("nobody_prepares")
@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
@pytest.mark.parametrize(("what", "code"), [("pwrite", errno.ENOSPC), ("sync", errno.ENOSPC), ("create", errno.EMFILE),
                                            ("pwrite", errno.EIO), ("rename", errno.ENOMEM)])
def test_without_room_nothing_is_numbered(kind: Kind, what: str, code: int, tmp_path: Path) -> None:
    files = FaultyFiles()
    with kind.open(tmp_path / "store", settings=SETTINGS, env=Env(files)) as store:
        commit(kind, store, 1)
        files.fail(what, code=code, only=lambda path: path.parent.name == "log")
        for _ in range(2):
            with pytest.raises(DiskFull if code == errno.ENOSPC else RolledBack):
                fill(store, 2, LARGE)
        files.heal()
        assert not store.poisoned
        assert store.positions().appended == 1
        assert not [name for name in files.list(store.log.directory) if name.endswith(".new")]
        fill(store, 2, LARGE)
        assert kind.numbers(store) == {1, 2}
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == {1, 2}


@pytest.mark.usefixtures("nobody_prepares")
def test_a_store_that_closes_waits_for_who_makes_room(tmp_path: Path) -> None:
    """Another process may have the directory next: a file that came into it later could take a name of its."""
    files = FaultyFiles()
    store = STAGING.open(tmp_path / "store", settings=SETTINGS, env=Env(files))
    store._patience_s = 0.05
    commit(STAGING, store, 1)
    held = files.hold("create", only=is_room)
    with ThreadPoolExecutor(2) as pool:
        filling = pool.submit(fill, store, 2, LARGE)
        assert held.reached.wait(10)
        closing = pool.submit(store.close)
        try:
            until(lambda: store.closed)
            threading.Event().wait(0.2)
            assert not closing.done()
        finally:
            held.go.set()
        closing.result(10)
        left = sorted(files.list(store.log.directory))
        with pytest.raises(RolledBack, match="closed meanwhile"):
            filling.result(10)
    assert sorted(files.list(store.log.directory)) == left
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == {1}


# --- in the log alone ------------------------------------------------------------------------------------------------


def test_the_room_of_a_record_that_was_refused_is_used_or_removed() -> None:
    """It fits a record as large, and a larger one gets other room in its place. What an opening finds is removed,
    since it is of no segment's size."""
    world = World()
    world.commit(b"one")
    world.log.writer.make_room(LARGE)
    (first,) = [n for n in world.names() if n.startswith("spare")]
    world.log.writer.make_room(LARGE - 1)
    assert first in world.names()
    world.log.writer.make_room(2 * LARGE)
    (second,) = [n for n in world.names() if n.startswith("spare")]
    assert second != first
    world.log.writer.append(bytes(LARGE), 1, at_once=True)
    world.log.writer.sync()
    assert not [n for n in world.names() if n.startswith("spare")]
    world.log.writer.make_room(LARGE)
    world.reopen()
    assert not [n for n in world.names() if n.startswith("spare")]
    assert [r.txid for r in world.log.read(0)] == [1, 2]


def test_several_threads_make_the_room_once() -> None:
    world = World()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: world.log.writer.make_room(), range(8)))
    assert len([op for op in world.disk.ops if op.kind == "write" and op.label.endswith(".new")]) <= 2, "filled again"
    assert len([n for n in world.names() if n.startswith("spare")]) == 1


def test_at_once_means_without_the_disk() -> None:
    """What a next segment needs is asked for, and until it is there nothing is numbered."""
    world = World()
    world.commit(b"one")
    world.reopen()
    for payload, fits in ((b"two", False), (b"three", True), (bytes(LARGE), False)):
        before, done = world.log.writer.appended, len(world.disk.ops)
        if not fits:
            with pytest.raises(RoomNeeded) as needed:
                world.log.writer.append(payload, 1, at_once=True)
            assert (world.log.writer.appended, len(world.disk.ops)) == (before, done)
            assert needed.value.capacity >= len(payload)
            world.log.writer.make_room(needed.value.capacity)
            done = len(world.disk.ops)
        world.log.writer.append(payload, 1, at_once=True)
        assert len(world.disk.ops) == done
        world.log.writer.sync()
    world.reopen()
    with pytest.raises(RoomNeeded):
        world.log.writer.heartbeat(start=True, at_once=True)
    assert [len(r.payload) for r in world.log.read(0)] == [3, 3, 5, LARGE]


def test_a_log_that_is_seldom_written_to_stays_small_and_a_busy_one_does_not() -> None:
    """An idle store took 32 MiB: a segment, and a spare one."""
    world = World(LogOptions(segment_bytes=4 << 20))
    world.commit(b"one")
    world.log.writer.prepare_spare()
    assert sum(len(world.disk.read(HERE / name)) for name in world.names()) <= 1600 << 10
    for _ in range(1200):
        world.commit(bytes(10_000))
    sizes = [segment.size for segment in world.log.segments() if segment.sealed]
    assert all(later > earlier for earlier, later in pairwise(sizes) if later < 3 << 20)
    assert max(sizes) > 3 << 20
    assert len(sizes) < 8
    world.reopen().verify()


def test_a_record_that_is_larger_than_the_segment_now_is_gets_room_of_its_own() -> None:
    """What is written must lie in what was zero-filled and synced, or a sync would touch metadata, too."""
    world = World(LogOptions(segment_bytes=4 << 20))
    world.commit(b"one")
    world.log.writer.prepare_spare()
    for payload in (bytes(1 << 20), b"three"):  # the spare is half as large
        world.commit(payload)
        segment = world.log.writer._writer
        assert segment is not None
        assert segment.reserved <= segment.limit
    assert [len(r.payload) for r in world.reopen().read(0)] == [3, 1 << 20, 5]


def test_a_log_that_goes_on_in_its_last_segment_has_room_for_more_than_a_record() -> None:
    world = World(LogOptions(segment_bytes=4 << 20))
    world.commit(bytes(700_000))
    world.reopen()
    before = len(world.log.segments())
    for _ in range(7):
        world.commit(bytes(10_000))
    assert len(world.log.segments()) == before
    assert len(list(world.reopen().read(0))) == 8
