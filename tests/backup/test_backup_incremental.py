"""Incremental backups: what they append, what they refuse, falling back to a full, compaction, and dying half-way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import COMPACTING, ENGINES, NOT_COMPACTING, SMALL, digest, digest_at, open_store, tree, write

from holdfast import backup
from holdfast.backup.manifest import Manifest
from holdfast.backup.testing.fault_injection import DyingDisk, Killed, Nth, WatchedSource, full_disk
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Engine
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import (
    AheadOfSource,
    Damaged,
    DiskFull,
    Diverged,
    ForeignStore,
    Inconsistent,
    LogPruned,
    OtherBranch,
    RestorePointOutOfRange,
    SourceUnavailable,
    WrongEngine,
)
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.layout import Generation, Layout
from holdfast.engine.store.store import Store
from holdfast.engine.wal.log import Log


@pytest.fixture(params=ENGINES, ids=lambda e: e.name)
def engine(request: pytest.FixtureRequest) -> type[Engine[Any, Any]]:
    kind: type[Engine[Any, Any]] = request.param
    return kind


@pytest.fixture
def store(tmp_path: Path, engine: type[Engine[Any, Any]]) -> Iterator[Store[Any, Any]]:
    with open_store(tmp_path / "store", engine) as opened:
        write(opened, 1, 20)
        opened.checkpoint()
        backup.run(opened, tmp_path / "target")
        write(opened, 2, 15)
        yield opened


def assert_whole(target: Path, store: Store[Any, Any]) -> None:
    assert backup.verify(target).digest == digest(store).hex()
    assert digest_at(target, type(store.engine)) == digest(store)


def pruned(store: Store[Any, Any]) -> None:
    """Make the store forget log that the target still needs."""
    for slot in store.log.slots.list():
        store.log.slots.drop(slot.id)
    store.checkpoint()
    write(store, 9, 2, size=90_000)
    store.checkpoint()
    store.log.prune([s for s in store.log.segments()[:-1] if s.last <= store.positions().checkpointed])
    assert store.log.base.txid > 20


def test_appends_what_is_new(store: Store[Any, Any], tmp_path: Path) -> None:
    image = tree(tmp_path / "target" / "gen-000001" / "state")
    report = backup.run(store, tmp_path / "target")
    assert (report.kind, report.from_txid, report.to_txid, report.transactions) == ("incremental", 20, 35, 15)
    assert report.image_bytes == 0
    assert tree(tmp_path / "target" / "gen-000001" / "state") == image
    assert_whole(tmp_path / "target", store)
    again = backup.run(store, tmp_path / "target")
    assert (again.from_txid, again.to_txid, again.transactions) == (35, 35, 0)
    assert again.bounds.complete_until_us >= report.bounds.complete_until_us
    slot = next(c for c in store.log.slots.list() if c.id == report.target_id)
    assert slot.position.txid == 35
    assert LocalSource(store).leases() == []
    runs = backup.info(tmp_path / "target").runs
    assert [(r["kind"], r["from"], r["to"]) for r in runs] == [
        ("full", 0, 20), ("incremental", 20, 35), ("incremental", 35, 35)]


def test_many_incrementals_across_restarts(tmp_path: Path, engine: type[Engine[Any, Any]]) -> None:
    for n in range(5):
        with open_store(tmp_path / "store", engine) as store:
            write(store, n, 7)
            report = backup.run(store, tmp_path / "target")
            assert report.kind == ("incremental" if n else "full")
            assert report.to_txid == 7 * (n + 1)
            assert_whole(tmp_path / "target", store)


def test_source_dies_at_every_answer(store: Store[Any, Any], tmp_path: Path) -> None:
    for n in count(1):
        target = tmp_path / f"target{n}"
        shutil.copytree(tmp_path / "target", target)
        dying = Nth(n, lambda: SourceUnavailable("the source died"))
        try:
            report = backup.run(WatchedSource(LocalSource(store), dying), target)
        except SourceUnavailable:
            assert backup.verify(target).bounds.last >= 20, "what was there is still a backup"
            report = backup.run(store, target)
        assert report.to_txid == 35
        assert_whole(target, store)
        if dying.count < n:
            break
    assert n > 15


def test_a_run_that_died_is_gone_on_with(store: Store[Any, Any], tmp_path: Path) -> None:
    policy = backup.Policy(limits=backup.Limits(batch_records=1))
    with pytest.raises(SourceUnavailable):
        backup.run(WatchedSource(LocalSource(store), Nth(8, lambda: SourceUnavailable("gone"), "record")),
                   tmp_path / "target", policy=policy)
    came = backup.info(tmp_path / "target").bounds
    assert 20 < came.last < 35
    assert came.last_time_us is not None
    assert came.complete_until_us >= came.last_time_us
    report = backup.run(store, tmp_path / "target")
    assert (report.from_txid, report.to_txid) == (came.last, 35)
    assert_whole(tmp_path / "target", store)


def test_registration_that_fails_is_told_and_no_more(store: Store[Any, Any], tmp_path: Path) -> None:
    deaf = Nth(1, lambda: SourceUnavailable("gone"), "register")
    report = backup.run(WatchedSource(LocalSource(store), deaf), tmp_path / "target")
    assert report.to_txid == 35
    assert "was not told to keep its log" in str(report)


def test_killed_at_every_step(store: Store[Any, Any], tmp_path: Path) -> None:
    for n in count(1):
        target = tmp_path / f"target{n}"
        shutil.copytree(tmp_path / "target", target)
        try:
            backup.run(store, target, env=Env(files=DyingDisk(fail_at=n)))
        except Killed:
            assert backup.verify(target).bounds.last in range(20, 36)
            assert backup.run(store, target).to_txid == 35
            assert_whole(target, store)
        else:
            break
    assert n > 10


def test_disk_full_at_every_write(store: Store[Any, Any], tmp_path: Path) -> None:
    for n in count(1):
        target = tmp_path / f"target{n}"
        shutil.copytree(tmp_path / "target", target)
        try:
            backup.run(store, target, env=Env(files=full_disk(n)))
        except DiskFull:
            assert backup.verify(target).bounds.last in range(20, 36)
            assert backup.run(store, target).to_txid == 35
            assert_whole(target, store)
        else:
            break
    assert n > 4


# --- histories -------------------------------------------------------------------------------------------------------


def refused(error: type[Exception], store: Store[Any, Any], target: Path, **options: Any) -> str:
    before = tree(target)
    with pytest.raises(error) as caught:
        backup.run(store, target, **options)
    after = tree(target)
    before.pop("LOCK")
    after.pop("LOCK")
    assert after == before, "a refusal changes nothing"
    return str(caught.value)


def test_foreign_store(store: Store[Any, Any], tmp_path: Path) -> None:
    with open_store(tmp_path / "foreign", type(store.engine)) as foreign:
        write(foreign, 1, 40)
        told = refused(ForeignStore, foreign, tmp_path / "target")
        assert store.history.store_id.hex() in told
        assert foreign.history.store_id.hex() in told
    assert backup.run(store, tmp_path / "target").to_txid == 35


def test_restored_twin_is_another_branch(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "target")
    backup.restore(tmp_path / "target", tmp_path / "twin")
    with open_store(tmp_path / "twin", type(store.engine)) as twin:
        write(twin, 7, 5)
        told = refused(OtherBranch, twin, tmp_path / "target")
        assert store.history.branch.id.hex() in told
        assert twin.history.branch.id.hex() in told
        refused(OtherBranch, twin, tmp_path / "target", accept_branch=store.history.branch.id)
        report = backup.run(twin, tmp_path / "target", accept_branch=twin.history.branch.id.hex())
        assert (report.kind, report.to_txid) == ("incremental", 40)
        assert report.branch == twin.history.branch.id.hex()
        assert_whole(tmp_path / "target", twin)
        assert len(backup.info(tmp_path / "target").branches) == 2
        write(twin, 8, 5)
        assert backup.run(twin, tmp_path / "target").to_txid == 45, "once accepted, it is the target's branch"
        assert_whole(tmp_path / "target", twin)
    refused(OtherBranch, store, tmp_path / "target")


def test_twin_that_left_before_the_targets_end(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "target")
    backup.restore(tmp_path / "target", tmp_path / "twin", to_txid=30)
    with open_store(tmp_path / "twin", type(store.engine)) as twin:
        write(twin, 7, 20)
        refused(Diverged, twin, tmp_path / "target", accept_branch=twin.history.branch.id)


def test_full_backup_of_a_store_with_branches(store: Store[Any, Any], tmp_path: Path) -> None:
    """Its image may be older than its last branch: the target's log continues on that branch where it began."""
    with Store.open(tmp_path / "target", type(store.engine), settings=SMALL) as twin:
        write(twin, 5, 3)
        backup.run(twin, tmp_path / "second")
        assert_whole(tmp_path / "second", twin)
        write(twin, 6, 3)
        assert backup.run(twin, tmp_path / "second").transactions == 3
        assert_whole(tmp_path / "second", twin)
    with Store.open(tmp_path / "second", type(store.engine), settings=SMALL) as third:
        assert third.history.branches[:2] == twin.history.branches


def test_older_copy_of_the_source(tmp_path: Path, engine: type[Engine[Any, Any]]) -> None:
    with open_store(tmp_path / "store", engine) as store:
        write(store, 1, 10)
    shutil.copytree(tmp_path / "store", tmp_path / "older")
    with open_store(tmp_path / "store", engine) as store:
        write(store, 2, 10)
        backup.run(store, tmp_path / "target")
    with open_store(tmp_path / "older", engine) as older:
        refused(AheadOfSource, older, tmp_path / "target")
        write(older, 3, 20)
        told = refused(Diverged, older, tmp_path / "target")
        assert "20" in told


def test_log_is_pruned(store: Store[Any, Any], tmp_path: Path) -> None:
    pruned(store)
    refused(LogPruned, store, tmp_path / "target", policy=backup.Policy(fallback=False))
    before = backup.info(tmp_path / "target")
    report = backup.run(store, tmp_path / "target")
    assert report.kind == "full"
    assert "no longer" in report.why
    assert report.why in str(report)
    assert report.target_id == before.target_id
    assert_whole(tmp_path / "target", store)
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == ["CURRENT", "LOCK", "STORE", "gen-000001",
                                                                        "gen-000002"]
    assert [r["kind"] for r in backup.info(tmp_path / "target").runs] == ["full", "full"]


def test_fallback_that_dies_keeps_the_old_backup(store: Store[Any, Any], tmp_path: Path) -> None:
    old = digest_at(tmp_path / "target", type(store.engine))
    pruned(store)
    for n in count(1, 3):
        target = tmp_path / f"target{n}"
        shutil.copytree(tmp_path / "target", target)
        try:
            backup.run(store, target, env=Env(files=DyingDisk(fail_at=n)))
        except Killed:
            assert backup.verify(target).digest in (old.hex(), digest(store).hex())
            assert backup.run(store, target).to_txid == store.published.txid
            assert_whole(target, store)
            for lease in LocalSource(store).leases():
                store.leases.release(lease.id)
        else:
            break
    assert n > 20


def test_inconsistent_fallback_keeps_the_old_backup(store: Store[Any, Any], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    pruned(store)

    def wrong(*args: Any) -> None:
        raise Inconsistent("all wrong", findings=("a", "b"))

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.backup.target.full.check", wrong)
        refused(Inconsistent, store, tmp_path / "target")
    assert backup.verify(tmp_path / "target").bounds.last == 20


def test_target_that_lost_log_is_damaged(store: Store[Any, Any], tmp_path: Path) -> None:
    """What the manifest tells of must be there, whatever a recovery would call a torn end."""
    backup.run(store, tmp_path / "target")
    segments = sorted((tmp_path / "target" / "gen-000001" / "log").glob("*.seg"))
    segments[-1].unlink()
    for use in (lambda: backup.run(store, tmp_path / "target"), lambda: backup.verify(tmp_path / "target"),
                lambda: backup.restore(tmp_path / "target", tmp_path / "r")):
        with pytest.raises(Damaged):
            use()


# --- compaction
# ---------------------------------------------------------------------------------------------------------


def test_compacts_a_log_that_has_outgrown_its_image(store: Store[Any, Any], tmp_path: Path) -> None:
    assert not backup.run(store, tmp_path / "target", policy=NOT_COMPACTING).compacted
    report = backup.run(store, tmp_path / "target", policy=COMPACTING)
    assert report.compacted
    assert (report.bounds.first, report.bounds.last) == (35, 35)
    assert "no longer restores to transaction" in str(report)
    assert_whole(tmp_path / "target", store)
    with pytest.raises(RestorePointOutOfRange):
        backup.restore(tmp_path / "target", tmp_path / "r", to_txid=34)
    write(store, 4, 5)
    report = backup.run(store, tmp_path / "target", policy=NOT_COMPACTING)
    assert (report.kind, report.from_txid, report.to_txid) == ("incremental", 35, 40)
    assert_whole(tmp_path / "target", store)
    backup.restore(tmp_path / "target", tmp_path / "r", to_txid=37)
    assert sum(1 for p in (tmp_path / "target").iterdir() if p.name.startswith("gen")) == 1
    assert [r["kind"] for r in backup.info(tmp_path / "target").runs] == ["full", *["incremental"] * 2, "compaction",
                                                                         "incremental"]


def test_a_compact_that_dies_keeps_the_backup(store: Store[Any, Any], tmp_path: Path) -> None:
    for n in count(1, 3):
        target = tmp_path / f"target{n}"
        shutil.copytree(tmp_path / "target", target)
        try:
            backup.run(store, target, policy=COMPACTING, env=Env(files=DyingDisk(fail_at=n)))
        except Killed:
            assert backup.verify(target).bounds.last in range(20, 36)
            assert backup.run(store, target, policy=COMPACTING).compacted
            assert_whole(target, store)
        else:
            break
    assert n > 30


def test_no_room_to_compact_is_told(store: Store[Any, Any], tmp_path: Path) -> None:

    class Small(Files):
        def free(self, path: Path) -> int:
            return 1000

    report = backup.run(store, tmp_path / "target", policy=COMPACTING, env=Env(files=Small()))
    assert not report.compacted
    assert "could not be compacted" in str(report)
    assert_whole(tmp_path / "target", store)


def test_an_inconsistent_compact_is_an_error_and_keeps_the_backup(store: Store[Any, Any], tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong(*args: Any) -> None:
        raise Inconsistent("all wrong")

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.backup.target.compact.check", wrong)
        with pytest.raises(Inconsistent):
            backup.run(store, tmp_path / "target", policy=COMPACTING)
    assert_whole(tmp_path / "target", store)
    assert backup.info(tmp_path / "target").bounds.first <= 20


def test_another_engine_does_not_compact(store: Store[Any, Any], tmp_path: Path) -> None:
    other = MemoryEngine if type(store.engine) is RecordsEngine else RecordsEngine
    with pytest.raises(WrongEngine):
        backup.run(store, tmp_path / "target", policy=COMPACTING, engine=other)


def test_manifest_remembers_a_bounded_number_of_runs(store: Store[Any, Any], tmp_path: Path) -> None:
    for _ in range(7):
        backup.run(store, tmp_path / "target", policy=backup.Policy(limits=backup.Limits(runs=4)))
    runs = backup.info(tmp_path / "target").runs
    assert [r["kind"] for r in runs] == ["full", *["incremental"] * 4]


def test_a_noted_end_beyond_the_log_is_damage(store: Store[Any, Any], tmp_path: Path) -> None:
    generation = Layout(tmp_path / "target", Files()).current()
    manifest = Manifest.read(Files(), generation)
    assert manifest is not None
    run = {**manifest.runs[-1], "end": [21, bytes(16)], "to": 21}
    replace(manifest, runs=(run,)).write(Files(), generation)
    with pytest.raises(Damaged):
        backup.run(store, tmp_path / "target")


def test_a_target_is_opened_once(store: Store[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest was read three times and its log recovered three times, four if it was compacted. What is left: a
    look before the lock and one under it, and a log that is looked at before anything is changed and then appended
    to."""
    target = tmp_path / "target"
    backup.run(store, target)
    write(store, 1, 10)
    read, opened = Manifest.read, Log.open
    seen: list[str] = []

    def reading(files: Files, generation: Generation) -> Manifest | None:
        seen.append("manifest")
        return read(files, generation)

    def opening(directory: Path, **how: Any) -> Log:
        seen.append("new log" if directory.parent.suffix else "log")
        return opened(directory, **how)

    monkeypatch.setattr(Manifest, "read", reading)
    monkeypatch.setattr(Log, "open", opening)
    assert backup.run(store, target, policy=COMPACTING).compacted
    assert seen == ["manifest", "manifest", "log", "log", "new log"]
