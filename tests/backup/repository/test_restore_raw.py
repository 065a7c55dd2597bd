"""A restore without the engine: files and log as they are, of which a store is made where the engine is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_rig import holdfast, told
from repository_rig import SMALL, Rig, World, content_of, world
from staging_memory import StagingMemory
from store_kinds import RECORDS, commit

from holdfast.backup import info, restore, run, verify
from holdfast.backup.manifest import Manifest
from holdfast.backup.repository.repository import Repository
from holdfast.backup.testing.world import moment
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import REAL
from holdfast.engine.errors import Damaged, InvalidInput, RestorePointOutOfRange, SettingError, StoreExists
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.layout import Generation
from holdfast.engine.store.store import Store
from holdfast.engine.wal.log import Log


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def here(tmp_path: Path, rig: Rig) -> Iterator[World]:
    """An image and archived log, with bulk loads in both. No engine of this name is installed."""
    with world(tmp_path / "store", rig.env) as made:
        made.write(3)
        made.store.checkpoint()
        made.write(1)
        rig.repository.backup(made.source)
        archiver = made.archiver(rig.repository)
        for _ in range(2):
            rig.clock.sleep(60)
            made.write(2)
            made.bulk()
            archiver.step()
        yield made


def test_no_engine_is_needed_until_a_store_is_made(rig: Rig, here: World, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="staging-memory"):
        rig.repository.restore(tmp_path / "never")
    report = rig.repository.restore_raw(tmp_path / "raw")
    assert (report.engine, report.state_format, report.bounds.last) == ("staging-memory", 1, here.txid)
    assert "holdfast restore" in str(report)
    for txid in range(report.bounds.first, report.bounds.last + 1):
        restore(tmp_path / "raw", tmp_path / f"r{txid}", to_txid=txid, engine=StagingMemory)
        assert content_of(tmp_path / f"r{txid}") == here.content(txid)
    restore(tmp_path / "raw", tmp_path / "t", at=moment(here.time_us(6)), engine=StagingMemory)
    assert content_of(tmp_path / "t") == here.content(6)


def test_the_files_are_where_the_page_says(rig: Rig, here: World, tmp_path: Path) -> None:
    """The engine's as it wrote them, the log in segments that are read without it, and its attachments."""
    lease = here.source.lease("test", image=True)
    state = here.source.read_image(lease.id, "state", 0, lease.files[0].size)
    rig.repository.backup(here.source)
    here.write(2)
    archiver = here.archiver(rig.repository)
    archiver.step()
    rig.repository.restore_raw(tmp_path / "raw", to_txid=here.txid - 1)
    made = tmp_path / "raw" / "gen-000001"
    assert {path.name for path in made.iterdir()} == {"MANIFEST", "state", "log"}
    assert (made / "state" / "state").read_bytes() == state
    log = Log.open(made / "log", read_only=True, env=REAL)
    log.verify()
    assert log.end.txid == here.txid - 1
    assert [r.payload for r in log.read(log.base.txid)] == [
        r.payload for r in here.store.log.read(log.base.txid, here.txid - 1)]

    rig.repository.restore_raw(tmp_path / "early", to_txid=8)
    assert len(list((tmp_path / "early" / "gen-000001" / "log" / "attachments").iterdir())) == 1


def test_it_is_a_backup_like_any_other(rig: Rig, here: World, tmp_path: Path) -> None:
    """It is verified, shown, opened as a store, and goes on."""
    rig.repository.restore_raw(tmp_path / "raw")
    shown = info(tmp_path / "raw")
    assert (shown.kind, shown.bounds.last) == ("backup", here.txid)
    assert verify(tmp_path / "raw", engine=StagingMemory).transactions
    here.write(2)
    assert run(here.source, tmp_path / "raw", engine=StagingMemory).kind == "incremental"
    assert content_of(tmp_path / "raw") == here.content(here.txid)


def test_points_and_places_are_refused_as_by_a_restore(rig: Rig, here: World, tmp_path: Path) -> None:
    with pytest.raises(RestorePointOutOfRange):
        rig.repository.restore_raw(tmp_path / "never", to_txid=99)
    rig.repository.mark("here", to_txid=5)
    assert rig.repository.restore_raw(tmp_path / "raw", mark="here").bounds.last == 5
    assert rig.repository.restore_raw(tmp_path / "at", at=moment(here.time_us(6))).bounds.last == 6
    with pytest.raises(StoreExists):
        rig.repository.restore_raw(tmp_path / "raw")
    rig.repository.restore_raw(tmp_path / "raw", to_txid=6, force=True)
    assert info(tmp_path / "raw").bounds.last == 6
    name = next(name for name in rig.objects if name.startswith("packs/"))
    data, put_us = rig.objects[name]
    rig.objects[name] = bytes([*data[:100], data[100] ^ 1, *data[101:]]), put_us
    with pytest.raises(Damaged, match="packs/"):
        rig.repository.restore_raw(tmp_path / "damaged")
    with pytest.raises(Damaged):
        rig.repository.restore_raw(tmp_path / "raw", force=True)
    assert info(tmp_path / "raw").bounds.last == 6


def test_an_image_that_moved_counts_from_where_it_is_consistent(tmp_path: Path) -> None:
    with (Repository.init(tmp_path / "repository") as repository,
          RECORDS.open(tmp_path / "store", create=True, settings=SMALL) as store):
        for n in range(5):
            commit(RECORDS, store, n)
        store.checkpoint()
        commit(RECORDS, store, 5)

        class Moves(LocalSource):
            def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
                commit(RECORDS, store, 6)
                store.checkpoint()
                return super().read_image(lease_id, name, offset, length)

        image = repository.backup(Moves(store))
        assert repository.restore_raw(tmp_path / "raw").bounds.first == image.consistent_from
        manifest = Manifest.read(REAL.files, Generation(tmp_path / "raw" / "gen-000001"))
        assert manifest is not None
        assert manifest.image_position.txid < manifest.consistent_from.txid == image.consistent_from
        assert (manifest.moving, manifest.payloads) == (True, {RECORDS.engine.payload_version})
        restore(tmp_path / "raw", tmp_path / "r")
        with RECORDS.open(tmp_path / "r", settings=SMALL) as restored:
            assert RECORDS.numbers(restored) == RECORDS.numbers(store)


def test_a_branch_is_followed_over_where_it_left(rig: Rig, here: World, tmp_path: Path) -> None:
    rig.repository.restore(tmp_path / "branch", to_txid=6, engine=StagingMemory)
    other = here.branched(tmp_path / "branch", 6, rig.env)
    branch = other.store.history.branch.id.hex()
    archiver = other.archiver(rig.repository, accept_branch=branch)
    other.write(2)
    archiver.step()
    report = rig.repository.restore_raw(tmp_path / "raw", branch=branch)
    assert (report.branch, report.bounds.last) == (branch, 8)
    restore(tmp_path / "raw", tmp_path / "r", engine=StagingMemory)
    assert content_of(tmp_path / "r") == other.content(8)
    assert rig.repository.restore_raw(tmp_path / "raw6", branch=branch, to_txid=6).branch == branch
    assert rig.repository.restore_raw(tmp_path / "raw5", branch=branch, to_txid=5).branch != branch
    rig.repository.restore(tmp_path / "store of a store", branch=branch, engine=StagingMemory)
    with Store.open(tmp_path / "store of a store", StagingMemory, settings=SMALL) as store:
        assert store.history.branches[:-1] == other.store.history.branches
    other.close()


def test_the_process_loads_no_engine(tmp_path: Path) -> None:
    Repository.init(tmp_path / "repo").close()
    with world(tmp_path / "store", REAL, engine=MemoryEngine) as here, Repository.open(tmp_path / "repo") as repository:
        here.write(3)
        repository.backup(here.store)
    script = f"""if True:
        import sys
        from holdfast.backup import Repository
        with Repository.open({str(tmp_path / "repo")!r}) as repository:
            print(repository.restore_raw({str(tmp_path / "raw")!r}).engine)
        loaded = [name for name in sys.modules if name.startswith("holdfast.engine.builtin.")]
        assert not loaded, loaded
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "memory\n"), done.stderr


def test_on_the_command_line(tmp_path: Path) -> None:
    Repository.init(tmp_path / "repo").close()
    with world(tmp_path / "store", REAL, engine=MemoryEngine) as here, Repository.open(tmp_path / "repo") as repository:
        here.write(4)
        repository.backup(here.store)
        expected: Any = here.content(3)
    raw = told("repo", "restore", tmp_path / "repo", tmp_path / "raw", "--raw", "--txid", "3")
    assert (raw["engine"], raw["bounds"]["last"], raw["transactions"]) == ("memory", 3, 3)
    assert "restored" in holdfast("restore", tmp_path / "raw", tmp_path / "r").stdout
    assert content_of(tmp_path / "r", MemoryEngine) == expected
    for wrong in (["--delta"], ["--engine-option", "x=1"]):
        refused = told("repo", "restore", tmp_path / "repo", tmp_path / "other", "--raw", *wrong, code=2)
        assert (refused["error"], "--raw" in refused["message"]) == (InvalidInput.__name__, True)
    assert not (tmp_path / "other").exists()
