"""Restore: to every point, into every kind of destination, refused or dying half-way."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backup_worlds import ENGINES, SMALL, digest, digest_at, open_store, tree, write

from holdfast import backup
from holdfast.backup.manifest import Manifest
from holdfast.backup.testing.fault_injection import DyingDisk, Killed, Nth, WatchedSource, full_disk
from holdfast.backup.testing.world import moment
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Engine
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import (
    Damaged,
    DeviceFailed,
    DiskFull,
    InvalidInput,
    OtherBranch,
    RestorePointOutOfRange,
    SourceUnavailable,
    StoreExists,
    StoreLocked,
    TargetInvalid,
    Unsupported,
    WrongEngine,
)
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.layout import Generation, Layout
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles
from holdfast.engine.testing.disks.quiet import SetClock
from holdfast.engine.wal.log import Log

HOUR = 3600 * 1_000_000


class World(NamedTuple):
    """A target whose image is of transaction 10 (at least), whose log goes on to 25; a digest and a time for each."""

    target: Path
    engine: type[Engine[Any, Any]]
    digests: dict[int, bytes]
    times: dict[int, int]


def build(path: Path, engine: type[Engine[Any, Any]]) -> World:
    """Transaction n is committed at about n hours; the backup is taken at 26 hours."""
    clock = SetClock()
    start = clock.time_us
    digests, times = {}, {}
    with open_store(path / "store", engine, Env(clock=clock)) as store:
        for n in range(1, 26):
            clock.time_us = start + n * HOUR
            write(store, n)
            digests[n] = digest(store)
            times[n] = store.log.time_of(n)
            if n == 10:
                store.checkpoint()
                backup.run(store, path / "target", env=Env(clock=clock))
        clock.time_us = start + 26 * HOUR
        backup.run(store, path / "target", env=Env(clock=clock))
    return World(path / "target", engine, digests, times)


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: e.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"), request.param)


@pytest.fixture
def world(built: World, tmp_path: Path) -> Iterator[World]:
    """A copy of it, which must stay as it is."""
    shutil.copytree(built.target, tmp_path / "target")
    before = tree(tmp_path / "target")
    yield built._replace(target=tmp_path / "target")
    assert tree(tmp_path / "target") == before, "not a byte of a backup changes"


def test_to_the_end(world: World, tmp_path: Path) -> None:
    report = backup.restore(world.target, tmp_path / "dest")
    assert (report.txid, report.transactions, report.time_us) == (25, 15, world.times[25])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dest", "target"]
    with open_store(tmp_path / "dest", world.engine) as store:
        assert digest(store) == world.digests[25]
        assert store.published.txid == store.log.base.txid == 25
        assert store.history.branch.id.hex() == report.branch
        assert store.history.branch.start == store.published
        assert len(store.history.branches) == 2
        write(store, 99)
        assert store.published.txid == 26
        assert store.log.time_of(26) >= world.times[25], "commit times never run backwards"
    assert "transaction 25" in str(report)


def test_every_txid_within_bounds(world: World, tmp_path: Path) -> None:
    bounds = backup.info(world.target).bounds
    assert (bounds.first, bounds.last) == (10, 25)
    for n in range(bounds.first, bounds.last + 1):
        report = backup.restore(world.target, tmp_path / f"to{n}", to_txid=n)
        assert (report.txid, report.time_us) == (n, world.times[n])
        assert digest_at(tmp_path / f"to{n}", world.engine) == world.digests[n]


@pytest.mark.parametrize("txid", [-1, 0, 9, 26, 10**12])
def test_no_txid_outside_bounds(world: World, tmp_path: Path, txid: int) -> None:
    with pytest.raises(RestorePointOutOfRange, match=r"transaction 10 \(20.* to 25"):
        backup.restore(world.target, tmp_path / "dest", to_txid=txid)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["target"]


def test_every_time_within_bounds(world: World, tmp_path: Path) -> None:
    for n in range(10, 26, 5):
        for offset, expected in ((0, n), (HOUR // 2, n), (-1, n - 1)):
            dest = tmp_path / f"at{n}.{offset}"
            if expected < 10:
                with pytest.raises(RestorePointOutOfRange, match="before this backup begins"):
                    backup.restore(world.target, dest, at=moment(world.times[n] + offset))
                continue
            zone = timezone(timedelta(hours=5, minutes=30))
            report = backup.restore(world.target, dest, at=moment(world.times[n] + offset).astimezone(zone))
            assert report.txid == expected
            assert digest_at(dest, world.engine) == world.digests[expected]


def test_times_that_cannot_be_meant(world: World, tmp_path: Path) -> None:
    bounds = backup.info(world.target).bounds
    with pytest.raises(RestorePointOutOfRange, match="after the end of this backup"):
        backup.restore(world.target, tmp_path / "dest", at=moment(bounds.complete_until_us + 1))
    assert backup.restore(world.target, tmp_path / "dest", at=moment(bounds.complete_until_us)).txid == 25
    with pytest.raises(RestorePointOutOfRange, match="before this backup begins"):
        backup.restore(world.target, tmp_path / "another", at=datetime(1969, 7, 20, tzinfo=UTC))
    for wrong in ({"to_txid": "3"}, {"to_txid": 3.0}, {"at": "2026-01-01T00:00:00Z"}, {"at": moment(0).date()}):
        with pytest.raises(InvalidInput, match=r"is not a (whole number|datetime)"):
            backup.restore(world.target, tmp_path / "another", **wrong)
    for at, east in ((datetime.max, -5), (datetime.min, 5)):  # years that UTC does not have any more
        with pytest.raises(RestorePointOutOfRange):
            zone = timezone(timedelta(hours=east))
            backup.restore(world.target, tmp_path / "another", at=at.replace(tzinfo=zone))
    with pytest.raises(InvalidInput, match="no time zone"):
        backup.restore(world.target, tmp_path / "another", at=datetime(2030, 1, 1))
    with pytest.raises(InvalidInput, match="both"):
        backup.restore(world.target, tmp_path / "another", at=moment(0), to_txid=12)


def test_restored_store_is_backed_up_as_another_branch(world: World, tmp_path: Path) -> None:
    backup.restore(world.target, tmp_path / "dest", to_txid=20)
    with open_store(tmp_path / "dest", world.engine) as store:
        write(store, 77, 3)
        assert backup.run(store, tmp_path / "its-own").to_txid == 23
        with pytest.raises(OtherBranch):
            backup.run(store, world.target)
    assert backup.verify(tmp_path / "its-own").bounds.last == 23


def test_refuses_a_destination_that_is_taken(world: World, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(StoreExists):
        backup.restore(world.target, tmp_path / "photos")
    with pytest.raises(TargetInvalid):
        backup.restore(world.target, tmp_path / "photos", force=True)
    assert tree(tmp_path / "photos") == {"cat.jpg": b"meow"}
    (tmp_path / "empty").mkdir()
    assert backup.restore(world.target, tmp_path / "empty").txid == 25
    with pytest.raises(StoreExists):
        backup.restore(world.target, tmp_path / "empty")
    for inside in (world.target, world.target / "sub", tmp_path):
        with pytest.raises(InvalidInput, match="within one another"):
            backup.restore(world.target, inside, force=True)


def test_force_replaces_a_store_that_is_closed(world: World, tmp_path: Path) -> None:
    with open_store(tmp_path / "dest") as old:
        write(old, 1)
        with pytest.raises(StoreLocked):
            backup.restore(world.target, tmp_path / "dest", force=True)
        write(old, 2)
        kept = digest(old)
    with pytest.raises(RestorePointOutOfRange):
        backup.restore(world.target, tmp_path / "dest", force=True, to_txid=1000)
    assert digest_at(tmp_path / "dest", MemoryEngine) == kept
    backup.restore(world.target, tmp_path / "dest", force=True)
    assert digest_at(tmp_path / "dest", world.engine) == world.digests[25]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dest", "target"]


def test_force_where_directories_cannot_be_swapped(world: World, tmp_path: Path) -> None:
    class Old(Files):
        def exchange(self, one: Path, other: Path) -> None:
            raise Unsupported("cannot")

    with open_store(tmp_path / "dest") as old:
        kept = digest(old)
    with pytest.raises(Unsupported):
        backup.restore(world.target, tmp_path / "dest", force=True, env=Env(files=Old()))
    assert digest_at(tmp_path / "dest", MemoryEngine) == kept


@pytest.mark.parametrize("force", [False, True])
def test_killed_at_every_step(world: World, tmp_path: Path, force: bool) -> None:
    old = b""
    for n in count(1):
        dest = tmp_path / f"dest{n}"
        if force:
            with open_store(dest, world.engine) as store:
                write(store, 1)
                old = digest(store)
        try:
            backup.restore(world.target, dest, force=force, env=Env(files=DyingDisk(fail_at=n)))
        except Killed:
            whole = Layout(dest, Files()).is_store()
            if force:
                assert digest_at(dest, world.engine) in (old, world.digests[25]), "the one or the other"
            elif whole:
                assert digest_at(dest, world.engine) == world.digests[25]
            if force or not whole:
                backup.restore(world.target, dest, force=force)
                assert sorted(p.name for p in tmp_path.iterdir()) == [dest.name, "target"]
            assert digest_at(dest, world.engine) == world.digests[25]
            shutil.rmtree(dest)
        else:
            break
    assert n > 15


def test_disk_full_at_every_write(world: World, tmp_path: Path) -> None:
    for n in count(1):
        dest = tmp_path / f"dest{n}"
        try:
            backup.restore(world.target, dest, env=Env(files=full_disk(n)))
        except DiskFull:
            assert not dest.exists() or {p.name for p in dest.iterdir()} <= {"LOCK"}
            assert backup.restore(world.target, dest).txid == 25
        else:
            break
    assert n > 5


def test_damaged_image_is_not_restored(built: World, tmp_path: Path) -> None:
    target = tmp_path / "target"
    shutil.copytree(built.target, target)
    victim = max((Layout(target, Files()).current().state).iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(Damaged, match=victim.name):
        backup.restore(target, tmp_path / "dest")
    assert [p.name for p in (tmp_path / "dest").iterdir()] == ["LOCK"]


def test_only_backups_are_restored(world: World, tmp_path: Path) -> None:
    with open_store(tmp_path / "store"):
        pass
    for nothing in ("store", "nowhere"):
        with pytest.raises(TargetInvalid):
            backup.restore(tmp_path / nothing, tmp_path / "dest")
    other = MemoryEngine if world.engine is RecordsEngine else RecordsEngine
    with pytest.raises(WrongEngine):
        backup.restore(world.target, tmp_path / "dest", engine=other)


def test_empty_store_is_restored(tmp_path: Path) -> None:
    for kind in ENGINES:
        with open_store(tmp_path / kind.name, kind) as store:
            backup.run(store, tmp_path / f"{kind.name}.bak")
        report = backup.restore(tmp_path / f"{kind.name}.bak", tmp_path / f"{kind.name}.new")
        assert (report.txid, report.time_us) == (0, None)
        with Store.open(tmp_path / f"{kind.name}.new", kind, settings=SMALL) as again:
            write(again, 1)
            assert again.published.txid == 1


def test_what_a_killed_restore_left_beside_is_swept(world: World, tmp_path: Path) -> None:
    """And nothing that is called much like it: a store of somebody's own was deleted that was named `live.partial`."""
    backup.restore(world.target, tmp_path / "live")
    mine = ["live.partial", ".live.restore-of-monday"]
    for name in (".live.restore-0123456789abcdef", *mine):
        shutil.copytree(tmp_path / "live", tmp_path / name)
    backup.restore(world.target, tmp_path / "live", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["live", "target", *mine])


def test_force_replaces_nothing_that_is_not_a_stores(world: World, tmp_path: Path) -> None:
    """Whoever kept backups of a store in its directory lost them with it."""
    with open_store(tmp_path / "dest", world.engine) as store:
        with pytest.raises(TargetInvalid, match="dest, which is a store or backup itself"):
            backup.run(store, tmp_path / "dest" / "backups" / "nightly")
        with pytest.raises(TargetInvalid, match="dest, which is a store or backup itself"):
            backup.restore(world.target, tmp_path / "dest" / "old")
    shutil.copytree(world.target, tmp_path / "dest" / "backups" / "nightly")
    (tmp_path / "dest" / "notes.txt").write_text("mine")
    before = tree(tmp_path / "dest")
    with pytest.raises(TargetInvalid, match=r"not replaced: backups, notes\.txt"):
        backup.restore(world.target, tmp_path / "dest", force=True)
    assert tree(tmp_path / "dest") == before


def test_a_first_backup_that_died_is_not_cleared_away(world: World, tmp_path: Path) -> None:
    """It is not a backup yet, and the next run goes on with it."""
    with open_store(tmp_path / "store", world.engine) as store:
        write(store, 1)
        dying = WatchedSource(LocalSource(store), Nth(1, lambda: SourceUnavailable("gone"), "confirm"))
        with pytest.raises(SourceUnavailable):
            backup.run(dying, tmp_path / "half", engine=world.engine)
        with pytest.raises(StoreExists):
            backup.restore(world.target, tmp_path / "half")
        assert backup.run(store, tmp_path / "half").resumed_bytes


def test_a_link_leads_to_the_destination(world: World, tmp_path: Path) -> None:
    (tmp_path / "disk" / "store").mkdir(parents=True)
    (tmp_path / "live").symlink_to(tmp_path / "disk" / "store")
    for force in (False, True, True):
        backup.restore(world.target, tmp_path / "live", force=force)
        assert (tmp_path / "live").is_symlink()
        assert [p.name for p in (tmp_path / "disk").iterdir()] == ["store"]
        assert digest_at(tmp_path / "disk" / "store", world.engine) == world.digests[25]


def test_paths_are_what_they_lead_to(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for inside in ("../target", "../here/../target/sub", ".."):
        with pytest.raises(InvalidInput, match="within one another"):
            backup.restore("../target", inside)
    for at in ("../target/../new", ".", "../here/../other"):
        assert backup.restore("../target", at).txid == 25
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "new", "other", "target"]


def test_two_restores_to_one_directory(world: World, tmp_path: Path) -> None:
    """One of them comes first. The other finds it locked, or a store there, whenever it looks."""
    dest = tmp_path / "dest"
    made: list[Path] = []

    class Meanwhile(Files):
        """Something is made somewhere: another process begins, too."""

        def make_directory(self, path: Path) -> None:
            super().make_directory(path)
            with pytest.raises((StoreLocked, StoreExists)) if made else contextlib.nullcontext():
                made.append(path)
                backup.restore(world.target, dest, to_txid=12)

    with pytest.raises(StoreExists):
        backup.restore(world.target, dest, env=Env(files=Meanwhile()))
    assert digest_at(dest, world.engine) == world.digests[12]


def test_a_store_that_lost_its_current_is_left_alone(world: World, tmp_path: Path) -> None:
    """It was taken for the rests of one that was never finished: opening it, restoring into it or backing up into it,
    as an error advised, wiped it."""
    with open_store(tmp_path / "lost", world.engine) as store:
        write(store, 1, 5)
        expected = digest(store)
    current = tmp_path / "lost" / "CURRENT"
    named = current.read_bytes()
    current.unlink()
    before = tree(tmp_path / "lost")
    with pytest.raises(StoreExists):
        open_store(tmp_path / "lost", world.engine)
    for force in (False, True):
        with pytest.raises((StoreExists, TargetInvalid)):
            backup.restore(world.target, tmp_path / "lost", force=force)
    with open_store(tmp_path / "another", world.engine) as store, pytest.raises(TargetInvalid):
        backup.run(store, tmp_path / "lost")
    assert tree(tmp_path / "lost") == before
    current.write_bytes(named)
    assert digest_at(tmp_path / "lost", world.engine) == expected


def test_a_backup_that_lost_its_current_is_left_alone(world: World, tmp_path: Path) -> None:
    """As above."""
    target = tmp_path / "lost"
    shutil.copytree(world.target, target)
    (target / "CURRENT").unlink()
    before = tree(target)
    with pytest.raises(StoreExists):
        open_store(target, world.engine)
    with pytest.raises(StoreExists):
        backup.restore(world.target, target)
    assert tree(target) == before


def test_what_was_replaced_stays_until_the_swap_is_durable(world: World, tmp_path: Path) -> None:
    """The disk failed when the directory was synced: the old store was removed although a power cut could bring its
    name back. The next forced restore clears it away."""
    backup.restore(world.target, tmp_path / "live", to_txid=12)

    class Failing(Files):
        def exchange(self, one: Path, other: Path) -> None:
            super().exchange(one, other)
            failing.append(one)

        def sync_directory(self, path: Path) -> None:
            if failing and path == tmp_path:
                raise OSError(5, "injected")
            super().sync_directory(path)

    failing: list[Path] = []
    with pytest.raises(OSError, match="injected"):
        backup.restore(world.target, tmp_path / "live", force=True, env=Env(files=Failing()))
    assert digest_at(failing[0], world.engine) == world.digests[12]
    assert digest_at(tmp_path / "live", world.engine) == world.digests[25]
    backup.restore(world.target, tmp_path / "live", force=True)
    assert not failing[0].exists()


def test_a_restore_that_fails_at_its_end_leaves_all_or_nothing(world: World, tmp_path: Path) -> None:
    """The last sync failed, and so whether the store is one was not certain; it was cleared away without that being
    made certain first, and a power cut could bring back a `CURRENT` that named nothing."""
    failed: list[Path] = []
    gone: list[bool] = []

    def before(kind: str, path: Path) -> None:
        if (kind, path) != ("sync_directory", tmp_path / "dest"):
            return
        if (path / "CURRENT").exists():
            failed.append(path)
            raise OSError(5, "injected")
        if failed:
            gone.append(not (path / "gen-000001").exists())

    files = FaultyFiles()
    files.before = before
    with pytest.raises((OSError, DeviceFailed)):
        backup.restore(world.target, tmp_path / "dest", env=Env(files=files))
    assert failed
    assert gone[:1] == [False], "the name is gone, durably, before anything else goes"


def test_nobody_comes_in_while_what_was_replaced_is_removed(world: World, tmp_path: Path) -> None:
    """A second forced restore took it for what a dead one had left, and both removed it."""
    backup.restore(world.target, tmp_path / "live", to_txid=12)

    class Meanwhile(Files):
        def remove_tree(self, path: Path) -> None:
            if ".restore-" in path.name:
                with pytest.raises(StoreLocked):
                    backup.restore(world.target, tmp_path / "live", force=True)
                tried.append(path)
            super().remove_tree(path)

    tried: list[Path] = []
    backup.restore(world.target, tmp_path / "live", force=True, env=Env(files=Meanwhile()))
    assert len(tried) == 1
    assert digest_at(tmp_path / "live", world.engine) == world.digests[25]


def test_info_looks_again_where_another_generation_came(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read of the old one, half removed, and called a backup a store."""
    current, asked = Layout.current, count()

    def first_another(self: Layout) -> Generation:
        return current(self) if next(asked) else Generation(self.root / "gen-000000")

    manifest = Manifest.read

    def old_one(files: Files, generation: Generation) -> Manifest | None:
        return manifest(files, current(Layout(world.target, files))) if generation.name != "gen-000000" else None

    opened = Log.open
    monkeypatch.setattr(Layout, "current", first_another)
    monkeypatch.setattr(Manifest, "read", old_one)
    monkeypatch.setattr(Log, "open", lambda directory, **how: opened(current(Layout(world.target, Files())).log, **how))
    assert backup.info(world.target).kind == "backup"
