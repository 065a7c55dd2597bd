"""Where backups and restores are put, whom they wait for, and what they are taken of: links, mount points, long names,
locks, a store that is open read-only, a source that lost its log."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from backup_worlds import SMALL, digest, digest_at, open_store, tree, write
from target_rig import DEST, TARGET, World
from workloads import WORKLOADS

from holdfast import backup
from holdfast.backup.directories import held_for_reading
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.env import REAL, Env, Files
from holdfast.engine.errors import RestorePointOutOfRange, SettingError, StoreLocked, TargetInvalid, Unsupported
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.layout import Layout
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.simfates import Dropped


class Mounted(Files):
    """A disk on which one directory is a mount point."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def can_be_swapped(self, path: Path) -> bool:
        return path != self.place

    def exchange(self, one: Path, other: Path) -> None:
        raise AssertionError("a mount point was to be swapped")


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_link_that_leads_nowhere_is_made_where_it_leads(tmp_path: Path) -> None:
    """A disk was not mounted yet, and the bare `FileExistsError` said of the link that it was there."""
    for name in ("store", "target", "dest"):
        os.symlink(tmp_path / "elsewhere" / name, tmp_path / name)
    with open_store(tmp_path / "store", MemoryEngine) as store:
        write(store, 1, 3)
        assert backup.run(store, tmp_path / "target").to_txid == 3
    backup.verify(tmp_path / "target")
    backup.restore(tmp_path / "target", tmp_path / "dest")
    assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == {"store", "target", "dest"}
    assert all((tmp_path / name).is_symlink() for name in ("store", "target", "dest"))


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    os.symlink(tmp_path / "two", tmp_path / "one")
    os.symlink(tmp_path / "one", tmp_path / "two")
    with open_store(tmp_path / "store", MemoryEngine) as store:
        with pytest.raises(TargetInvalid, match="in a circle"):
            backup.run(store, tmp_path / "one")
        backup.run(store, tmp_path / "target")
    with pytest.raises(TargetInvalid, match="in a circle"):
        backup.restore(tmp_path / "target", tmp_path / "one")


# --- forced restores --------------------------------------------------------------------------------------------------


def test_a_forced_restore_at_a_mount_point_is_made_in_it(tmp_path: Path) -> None:
    """All of it was written to the file system above first, where it may not fit, and refused after that."""
    dest = tmp_path / "volume"
    with open_store(dest, MemoryEngine) as store:
        write(store, 1, 5)
        backup.run(store, tmp_path / "target")
        expected = digest(store)
        write(store, 1, 2)
    names = sorted(os.listdir(tmp_path))
    env = Env(files=Mounted(dest))
    for _ in range(2):
        report = backup.restore(tmp_path / "target", dest, force=True, env=env)
        assert report.txid == 5
        assert digest_at(dest, MemoryEngine) == expected
        assert len([p for p in dest.iterdir() if p.name.startswith("gen-")]) == 1
    assert sorted(os.listdir(tmp_path)) == names
    with open_store(dest, MemoryEngine) as store:
        assert store.history.branch.id.hex() == report.branch
        write(store, 1, 1)


def test_another_store_at_a_mount_point_is_not_replaced(tmp_path: Path) -> None:
    """Whose store it is and which generation counts are two documents, which no crash may find half replaced."""
    dest = tmp_path / "volume"
    open_store(dest, MemoryEngine).close()
    with open_store(tmp_path / "store", MemoryEngine) as store:
        write(store, 1, 5)
        backup.run(store, tmp_path / "target")
    before = tree(dest)
    with pytest.raises(Unsupported, match="holds another store"):
        backup.restore(tmp_path / "target", dest, force=True, env=Env(files=Mounted(dest)))
    assert {**tree(dest), "LOCK": before["LOCK"]} == before


def test_a_forced_restore_at_a_mount_point_is_cut_off() -> None:
    """At each point between two operations: the store there is the old one or the new one, and a rerun succeeds."""
    world = World(WORKLOADS["memory"]())
    world.write(3)
    world.source.do(("checkpoint",))
    world.write(2)
    world.back_up()
    end = world.source.last
    world.restore(world.disk, to_txid=end - 1)
    world.disk.mounts.add(DEST)
    found = set()
    for left, done in world.crashes(lambda disk: world.restore(disk, force=True), 4):
        left.mounts.add(DEST)
        with Store.open(DEST, world.work.engine, create=False, read_only=True, env=world.env(left)) as store:
            found.add(store.published.txid)
            assert store.published.txid in ((end,) if done else (end - 1, end))
        world.shows(left, DEST, store.published.txid, read_only=True).close()
        assert world.restore(left, force=True).txid == end
        left = left.crashed(Dropped())
        world.shows(left, DEST, end).close()
        assert [n for n in left.list(DEST) if n.startswith("gen-")] == [left.read(DEST / "CURRENT").decode().strip()]
    assert found == {end - 1, end}
    assert world.is_whole(world.disk, end) == end, TARGET


def test_a_forced_restore_to_a_long_name(tmp_path: Path) -> None:
    """The name beside it was longer by 26 bytes than a name may be."""
    dest = tmp_path / ("n" * 240)
    with open_store(tmp_path / "store", MemoryEngine) as store:
        write(store, 1, 3)
        backup.run(store, tmp_path / "target")
    for _ in range(2):
        backup.restore(tmp_path / "target", dest, force=True)
    assert sorted(os.listdir(tmp_path)) == [dest.name, "store", "target"]


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_a_verify_if_told(tmp_path: Path) -> None:
    """A nightly run met the weekly `verify`, and there was no backup that night."""
    target = tmp_path / "target"
    with open_store(tmp_path / "store", MemoryEngine) as store:
        backup.run(store, target)
        write(store, 1, 1)
        with held_for_reading(Layout(target, REAL.files)):
            for wait in (0, 0.2):
                with pytest.raises(StoreLocked, match="in use by") as told:
                    backup.run(store, target, wait=wait)
            assert "wait longer" in told.value.hint
            ended = threading.Event()

            def run() -> None:
                backup.run(store, target, wait=60)
                ended.set()

            runs = threading.Thread(target=run)
            runs.start()
            assert not ended.wait(0.3)
        runs.join(60)
        assert ended.is_set()
        assert backup.info(target).bounds.last == 1
        for wrong in (-1, float("inf"), "1"):
            with pytest.raises(SettingError, match="wait is"):
                backup.run(store, target, wait=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["verify", "restore"])
def test_who_reads_a_backup_waits_for_a_run_if_told(tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    with open_store(tmp_path / "store", MemoryEngine) as store:
        backup.run(store, target)

    def read(wait: float) -> object:
        if what == "verify":
            return backup.verify(target, wait=wait)
        return backup.restore(target, tmp_path / "dest", wait=wait)

    lock = REAL.files.lock(target / "LOCK", "a long run")
    with pytest.raises(StoreLocked, match="in use by"):
        read(0.2)
    threading.Timer(0.3, lock.release).start()
    read(60)


# --- what a backup is taken of ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [MemoryEngine, RecordsEngine])
def test_a_store_that_is_open_read_only_can_be_backed_up(tmp_path: Path, engine: type[MemoryEngine]) -> None:
    """It was refused, although nobody writes there meanwhile. Not a byte of it changes."""
    with open_store(tmp_path / "store", engine) as store:
        write(store, 1, 5)
        store.checkpoint()
        write(store, 1, 3)
        expected = digest(store)
    before = tree(tmp_path / "store")
    with Store.open(tmp_path / "store", engine, read_only=True, settings=SMALL) as store:
        report = backup.run(store, tmp_path / "target")
        assert (report.kind, report.to_txid) == ("full", 8)
        assert "not told to keep its log" in str(report)
        assert "not told" not in str(backup.run(store, tmp_path / "target", policy=backup.Policy(register=False)))
    assert tree(tmp_path / "store") == before
    backup.verify(tmp_path / "target")
    assert digest_at(tmp_path / "target", engine) == expected


def test_an_engine_that_makes_its_image_beside_its_files_does_not_when_open_read_only(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", SqliteEngine) as store, store.transaction() as tx:
        tx.put(b"a", b"b")
    before = tree(tmp_path / "store")
    with Store.open(tmp_path / "store", SqliteEngine, read_only=True) as store:
        with pytest.raises(Unsupported, match="open read-only"):
            backup.run(store, tmp_path / "target")
        assert not store.leases.list()
    assert tree(tmp_path / "store") == before


def test_a_source_whose_log_was_deleted_gives_a_full_backup(tmp_path: Path) -> None:
    """It was `Damaged`, whatever the fallback, at every run into this target."""
    with open_store(tmp_path / "store", MemoryEngine) as store:
        backup.run(store, tmp_path / "target")
        for _ in range(3):
            write(store, 1, 3)
            store.log.writer.extend_history(store.history, store.log.epoch + 1)  # a segment ends here
        write(store, 1, 1)
        store.checkpoint()
        for segment in store.log.segments()[:-1]:
            segment.path.unlink()
        report = backup.run(store, tmp_path / "target")
        assert (report.kind, report.to_txid) == ("full", 10)
        assert "no longer has the log" in report.why
        expected = digest(store)
    assert digest_at(tmp_path / "target", MemoryEngine) == expected


def test_a_full_backup_can_be_asked_for(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", MemoryEngine) as store:
        first = backup.run(store, tmp_path / "target")
        write(store, 1, 3)
        report = backup.run(store, tmp_path / "target", full=True)
        assert (report.kind, report.why, report.target_id) == ("full", "it was asked for", first.target_id)
        write(store, 1, 1)
        assert backup.run(store, tmp_path / "target").kind == "incremental"


def test_a_target_need_not_be_registered(tmp_path: Path) -> None:
    """Dated backups that are deleted later held the log, each for two weeks."""
    with open_store(tmp_path / "store", MemoryEngine) as store:
        backup.run(store, tmp_path / "target", policy=backup.Policy(register=False))
        write(store, 1, 1)
        assert backup.run(store, tmp_path / "target", policy=backup.Policy(register=False)).kind == "incremental"
        assert not store.log.slots.list()
        with LocalSource(store) as source:
            backup.run(source, tmp_path / "target")
        assert len(store.log.slots.list()) == 1


def test_a_time_before_the_store_was_made_is_refused(tmp_path: Path) -> None:
    """It was restored to an empty store, which with `force` replaced what was there."""
    made = datetime.now(UTC)
    with open_store(tmp_path / "store", MemoryEngine) as store:
        backup.run(store, tmp_path / "target")
        born = store.log.time_of(0)
        write(store, 1, 1)
        backup.run(store, tmp_path / "target")
    for at in (datetime(1999, 1, 1, tzinfo=UTC), made):
        with pytest.raises(RestorePointOutOfRange, match="before this backup begins"):
            backup.restore(tmp_path / "target", tmp_path / "dest", at=at)
    moment = datetime.fromtimestamp(born // 1_000_000, UTC).replace(microsecond=born % 1_000_000)
    assert backup.restore(tmp_path / "target", tmp_path / "dest", at=moment).txid == 0
