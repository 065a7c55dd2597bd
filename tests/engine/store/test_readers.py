"""Leases across processes: who reads a store that another process writes keeps the log that it needs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import store_kinds
from store_kinds import STAGING

from holdfast.engine.contract.plugin import Plugin, StoreHandle
from holdfast.engine.env import REAL, Clock, DirectoryLock, Env, Files
from holdfast.engine.errors import LogPruned, StoreClosed, StoreLocked
from holdfast.engine.model.positions import origin
from holdfast.engine.model.records import Record, SegmentInfo
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.reader_leases import PATIENCE_S, ReaderLease, readers_in
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

Kit = Store[Any, Any]
SETTINGS = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Kit]:
    with STAGING.open(tmp_path / "store", settings=SETTINGS) as store:
        yield store


def write(store: Kit, count: int) -> None:
    """So much that segments are sealed, and may be pruned but for who needs them."""
    for n in range(count):
        with store.transaction() as tx:
            tx.put(b"%d" % (n % 5), bytes(50_000))
    store.checkpoint()
    store.prune()


def names(store: Kit) -> list[str]:
    directory = store.directory / "readers"
    return [n for n in sorted(os.listdir(directory)) if n != "LOCK"] if directory.exists() else []


def test_a_reader_can_follow_however_much_is_pruned(store: Kit) -> None:
    write(store, 10)
    assert store.log.base.txid > 0
    with STAGING.open(store.directory, read_only=True) as reader:
        seen = reader.published.txid
        for _ in range(3):
            write(store, 10)
            assert store.log.base.txid <= seen, "the log went that a reader needs"
            reader.refresh()
            assert reader.published.txid > seen
            seen = reader.published.txid
            store.prune()
        assert store.log.base.txid > 10, "a reader that has followed holds the log no longer"
        assert len(names(store)) == 1
    assert names(store) == []
    base = store.log.base.txid
    write(store, 10)
    assert store.log.base.txid > base


def test_without_a_lease_it_could_not(store: Kit) -> None:
    """What the lease is for: the same with it taken away."""
    write(store, 10)
    with STAGING.open(store.directory, read_only=True) as reader:
        (name,) = names(store)
        (store.directory / "readers" / name).unlink()
        write(store, 30)
        with pytest.raises(LogPruned):
            reader.refresh()


READER = """
    import sys
    from pathlib import Path
    from store_kinds import STAGING

    with STAGING.open(Path(sys.argv[1]), read_only=True) as reader:
        print(reader.published.txid, flush=True)
        sys.stdin.read()
"""


def _reader(directory: Path) -> subprocess.Popen[str]:
    """A process that reads a store until its standard input ends."""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(READER), str(directory)], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(store_kinds.__file__).parent)


def _shown(process: subprocess.Popen[str]) -> int:
    """The transaction that it shows, once it does."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_reader_that_was_killed_holds_nothing(store: Kit) -> None:
    write(store, 10)
    with _reader(store.directory) as process:
        shown = _shown(process)
        write(store, 20)
        assert store.log.base.txid <= shown
        process.send_signal(signal.SIGKILL)
        process.wait()
    write(store, 1)
    assert store.log.base.txid > shown
    assert names(store) == []


def test_a_reader_that_lags_too_far_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions", slot_bytes=1 << 20)
    with STAGING.open(tmp_path / "store", settings=settings) as store:
        write(store, 10)
        with STAGING.open(store.directory, read_only=True) as reader, caplog.at_level(logging.WARNING, "holdfast"):
            write(store, 40)
            assert "lags too far behind" in caplog.text
            assert store.log.base.txid > reader.published.txid
            assert names(store) == [], "it would hold log that it can no longer use"


def test_a_plan_to_prune_drops_nobody(tmp_path: Path) -> None:
    """A plugin said no, all of the log stayed, and the reader for whom too much of it was kept had lost its place."""
    class Keeps(Plugin):
        def pruning(self, segments: Sequence[SegmentInfo]) -> str:
            return "not yet archived"

    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions", slot_bytes=1 << 20)
    with STAGING.open(tmp_path / "store", settings=settings, plugins=[Keeps()]) as store:
        write(store, 10)
        with STAGING.open(store.directory, read_only=True) as reader:
            write(store, 40)
            assert len(names(store)) == 1
            assert store.log.base.txid == 0
            reader.refresh()


def test_readers_and_leases_do_not_wait_for_plugins(tmp_path: Path) -> None:
    """A plugin that thinks about a pruning kept everybody out meanwhile. Who came in is heard all the same."""
    came: list[Any] = []

    class Thinks(Plugin):
        def pruning(self, segments: Sequence[SegmentInfo]) -> None:
            if not came:
                came.append(STAGING.open(tmp_path / "store", read_only=True))

    with STAGING.open(tmp_path / "store", settings=SETTINGS, plugins=[Thinks()]) as store:
        write(store, 20)
        (reader,) = came
        with reader:
            write(store, 20)
            assert store.log.base.txid <= reader.published.txid
            reader.refresh()


def test_who_comes_while_plugins_think_is_heard(tmp_path: Path) -> None:
    """A lease on the very log that they were asked about."""
    granted: list[Any] = []

    class Thinks(Plugin):
        def opened(self, store: StoreHandle) -> None:
            assert isinstance(store, Store)
            self.store = store

        def pruning(self, segments: Sequence[SegmentInfo]) -> None:
            if not granted and segments[-1].last > 3:  # not the first one, which is empty
                source = LocalSource(self.store)
                granted.append((source, source.lease("late", image=False, after=self.store.log.base)))

    with STAGING.open(tmp_path / "store", settings=SETTINGS, plugins=[Thinks()]) as store:
        write(store, 20)
        ((source, grant),) = granted
        assert [record.txid for record in source.read_log(grant.id, origin(store.history.store_id), 3)] == [1, 2, 3]
        source.release(grant.id)
        store.prune()
        assert store.log.base.txid > 0


def test_a_reader_that_may_not_write_reads_all_the_same(store: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "not yours", str(path))

    write(store, 10)
    monkeypatch.setattr(REAL.files, "make_directory", refused)
    with STAGING.open(store.directory, read_only=True) as reader:
        assert names(store) == []
        assert reader.published.txid > 0


class _Hurried(Clock):
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 1.0 + seconds


def test_who_hangs_in_the_door_is_named(tmp_path: Path) -> None:
    """Bounded: a process that was stopped in the middle of registering."""
    clock = _Hurried()
    env = Env(clock=clock)
    lease = ReaderLease(tmp_path, "process 1", REAL)
    with (tmp_path / "readers" / "LOCK").open("w") as door:  # not through the kit, which would know it for its own
        fcntl.flock(door, fcntl.LOCK_EX)
        door.write("process 2\n")
        door.flush()
        with pytest.raises(StoreLocked, match="in use by process 2"), readers_in(tmp_path, "process 3", env):
            raise AssertionError("it came in")
        assert clock.now >= PATIENCE_S
    lease.advance(7)
    with readers_in(tmp_path, "process 3", env) as readers:
        assert [reader.after for reader in readers] == [7]
    lease.release()
    with readers_in(tmp_path, "process 3", env) as readers:
        assert readers == []


def test_one_that_lags_too_far_takes_no_other_with_it(store: Kit) -> None:
    write(store, 10)
    with STAGING.open(store.directory, read_only=True) as far:
        write(store, 15)
        with STAGING.open(store.directory, read_only=True) as near:
            write(store, 10)
            # Only now, so that one and the same pruning is about both.
            store.settings = replace(SETTINGS, slot_bytes=1 << 20)
            store.prune()
            assert near.refresh() > 30
            with pytest.raises(LogPruned):
                far.refresh()


def test_following_without_room_for_the_new_name_keeps_the_old_one(store: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives no record to the engine twice."""
    write(store, 10)
    with STAGING.open(store.directory, read_only=True) as reader:
        held = names(store)
        write(store, 3)
        given: list[int] = []
        apply, lock = reader.engine.apply, REAL.files.lock

        def noted(records: Any) -> None:
            given.extend(record.txid for record in records)
            apply(records)

        def full(path: Path, owner: str) -> DirectoryLock:
            if path.name.startswith("after-"):
                raise OSError(errno.ENOSPC, "no room", str(path))
            return lock(path, owner)

        monkeypatch.setattr(reader.engine, "apply", noted)
        monkeypatch.setattr(REAL.files, "lock", full)
        for _ in range(2):
            reader.refresh()
        assert given == sorted(set(given))
        assert given
        assert names(store) == held


def test_a_child_forked_in_the_door_does_not_keep_it_shut(tmp_path: Path) -> None:
    lock = REAL.files.lock(tmp_path / "LOCK", "process 1")
    go, gone = os.pipe()
    child = os.fork()
    if not child:
        os.read(go, 1)
        os._exit(0)
    try:
        lock.release()
        REAL.files.lock(tmp_path / "LOCK", "process 2").release()
    finally:
        os.write(gone, b"!")
        os.waitpid(child, 0)
        os.close(go)
        os.close(gone)


def test_who_reads_a_store_that_nobody_writes_keeps_writers_out(tmp_path: Path) -> None:
    """Libraries read it without locks then, and a writer would change it under them: a view would show other values
    than it did. Of other processes it is known that they read, of this one that it does."""
    STAGING.open(tmp_path / "store", settings=SETTINGS).close()
    before = sorted(tmp_path.rglob("*"))
    with STAGING.open(tmp_path / "store", read_only=True), _reader(tmp_path / "store") as one:
        assert _shown(one) == 0
        with pytest.raises(StoreLocked, match="this very process"):
            STAGING.open(tmp_path / "store", settings=SETTINGS)
        one.communicate()
    with _reader(tmp_path / "store") as one, _reader(tmp_path / "store") as other:
        assert _shown(one) == _shown(other) == 0
        for reader in (one, other):
            with pytest.raises(StoreLocked, match="a reader"):
                STAGING.open(tmp_path / "store", settings=SETTINGS)
            reader.communicate()
    assert sorted(tmp_path.rglob("*")) == before
    STAGING.open(tmp_path / "store", settings=SETTINGS).close()


def test_a_reader_promises_only_what_it_has_read(store: Kit) -> None:
    """It knows nothing of what the writer does, and said that it shows everything up to now."""
    write(store, 2)
    with STAGING.open(store.directory, read_only=True) as reader:
        write(store, 1)
        assert reader.complete_until_us() < store.log.writer.last_time_us
        reader.refresh()
        assert reader.complete_until_us() == store.log.time_of(reader.published.txid)


def test_a_refresh_is_one_at_a_time(store: Kit) -> None:
    """Two threads at once applied the same transactions twice."""
    write(store, 2)
    with STAGING.open(store.directory, read_only=True) as reader:
        applied: list[int] = []
        original = reader.engine.apply

        def noting(records: Sequence[Record]) -> None:
            time.sleep(0.01)
            applied.extend(record.txid for record in records)
            original(records)

        reader.engine.apply = noting  # type: ignore[method-assign]  # on this one object
        seen = reader.published.txid
        write(store, 5)
        with ThreadPoolExecutor(4) as pool:
            (last,) = {future.result(30) for future in [pool.submit(reader.refresh) for _ in range(4)]}
        assert applied == list(range(seen + 1, last + 1))


def test_a_refresh_that_failed_half_way_is_not_gone_on_with(store: Kit) -> None:
    """The next one applied again what this one had applied already."""
    write(store, 2)
    with STAGING.open(store.directory, read_only=True) as reader:
        original = reader.engine.apply

        def cut_off(records: Sequence[Record]) -> None:
            original(records[:1])
            raise MemoryError

        reader.engine.apply = cut_off  # type: ignore[method-assign]  # on this one object
        write(store, 5)
        with pytest.raises(MemoryError):
            reader.refresh()
        for call in (reader.refresh, reader.snapshot):
            with pytest.raises(StoreClosed, match="interrupted"):
                call()


class Foreign(Files):
    """As root sees another user's files, or the other way round."""

    def is_ours(self, path: Path) -> bool:
        return False


def test_another_user_s_reader_leaves_nothing_behind(store: Kit) -> None:
    """Root had a look at somebody's store, and left a directory and a lock in it that its owner could not open: that
    store never pruned its log again."""
    write(store, 10)
    with STAGING.open(store.directory, read_only=True, env=Env(files=Foreign())) as reader:
        assert reader.published.txid > 0
        assert not (store.directory / "readers").exists()


def test_a_directory_of_readers_that_another_user_made_stops_no_pruning(tmp_path: Path) -> None:
    """See above: as older versions left it."""
    with STAGING.open(tmp_path / "store", settings=SETTINGS, env=Env(files=Foreign())) as store:
        (tmp_path / "store" / "readers").mkdir()
        write(store, 10)
        assert store.log.base.txid > 0
