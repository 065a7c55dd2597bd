"""Verify and info: a changed byte in any file of a backup is found or harmless, never a silently different state."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from backup_worlds import ENGINES, SMALL, digest, open_store, tree, write
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import backup
from holdfast.backup.manifest import Manifest
from holdfast.backup.report import iso
from holdfast.backup.testing.fault_injection import Nth, WatchedSource
from holdfast.engine.builtin.memory import MemoryEngine, MemoryView
from holdfast.engine.contract.engine import Engine
from holdfast.engine.env import Env, File, Files
from holdfast.engine.errors import (
    Damaged,
    HoldfastError,
    Inconsistent,
    RestorePointOutOfRange,
    SourceUnavailable,
    StoreNotFound,
    TargetInvalid,
)
from holdfast.engine.model.positions import Position
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.layout import Generation
from holdfast.engine.testing.disks.quiet import SetClock


@dataclass
class World:
    """A target; the content's digest at each transaction, and the last one that a run has noted."""

    target: Path
    engine: type[Engine[Any, Any]]
    digests: dict[int, str] = field(repr=False)
    noted: int
    files: dict[str, bytes] = field(repr=False)


@pytest.fixture(scope="module", params=ENGINES, ids=lambda e: e.name)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("verify")
    with open_store(path / "store", request.param) as store:
        write(store, 1, 8)
        store.checkpoint()
        backup.run(store, path / "target")
        write(store, 2, 8)
        backup.run(store, path / "target")
        digests = {16: digest(store).hex()}
        for n in range(17, 21):
            write(store, n)
            digests[n] = digest(store).hex()
        # A run that died leaves a segment that is not noted in the manifest.
        with pytest.raises(SourceUnavailable):
            backup.run(WatchedSource(LocalSource(store), Nth(4, lambda: SourceUnavailable("gone"), "record")),
                       path / "target")
        return World(path / "target", request.param, digests, 16, tree(path / "target"))


def test_whole(world: World) -> None:
    report = backup.verify(world.target)
    assert report.bounds == backup.info(world.target).bounds
    assert report.transactions == report.bounds.last - 8
    assert report.bounds.last > world.noted == backup.info(world.target).runs[-1]["to"]
    assert tree(world.target) == world.files
    assert sorted(p.name for p in world.target.parent.iterdir()) == ["store", "target"]


def assert_found_or_harmless(world: World, name: str, content: bytes | None) -> None:
    """With other bytes in a file, or without the file: an error, or the content that belongs to the transaction that
    the report names, which is not before the last one that a run has noted. (What no run has noted was never promised:
    losing the end of it is a torn end like any other.)"""
    if content is None:
        (world.target / name).unlink()
    else:
        (world.target / name).write_bytes(content)
    try:
        report = backup.verify(world.target)
        assert report.bounds.last >= world.noted
        assert report.digest == world.digests[report.bounds.last]
    except HoldfastError as error:
        assert error.hint  # noqa: PT017
    finally:
        (world.target / name).write_bytes(world.files[name])


@settings(max_examples=150, deadline=None)
@given(which=st.integers(0, 2**16), where=st.integers(0, 2**32), flip=st.integers(1, 255))
def test_a_flipped_byte_is_found_or_harmless(world: World, which: int, where: int, flip: int) -> None:
    names = sorted(n for n, content in world.files.items() if content)
    name = names[which % len(names)]
    content = bytearray(world.files[name])
    content[where % len(content)] ^= flip
    assert_found_or_harmless(world, name, bytes(content))


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 2**16), size=st.one_of(st.none(), st.integers(0, 2**32)))
def test_a_cut_or_missing_file_is_found_or_harmless(world: World, which: int, size: int | None) -> None:
    name = sorted(world.files)[which % len(world.files)]
    content = world.files[name]
    assert_found_or_harmless(world, name, None if size is None else content[: size % (len(content) + 1)])


def test_every_image_byte_counts(world: World, tmp_path: Path) -> None:
    state = next(world.target.glob("gen-*/state"))
    for file in sorted(state.iterdir()):
        for at in range(0, file.stat().st_size, max(1, file.stat().st_size // 20)):
            name = str(file.relative_to(world.target))
            content = bytearray(world.files[name])
            content[at] ^= 0x10
            file.write_bytes(content)
            with pytest.raises(Damaged, match=file.name):
                backup.verify(world.target)
            file.write_bytes(world.files[name])


class Suspicious(MemoryEngine):
    def view(self) -> MemoryView:
        view = super().view()
        view.check = lambda: iter(f"finding {n}" for n in range(1000))  # type: ignore[method-assign]
        return view


def test_inconsistent(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        write(store, 1)
        backup.run(store, tmp_path / "target")
    before = tree(tmp_path / "target")
    with pytest.raises(Inconsistent, match="100 or more places, the first: finding 0") as caught:
        backup.verify(tmp_path / "target", engine=Suspicious)
    assert len(caught.value.findings) == 100
    assert tree(tmp_path / "target") == before


def test_in_a_scratch_copy(world: World) -> None:
    in_memory = backup.verify(world.target).digest
    assert backup.verify(world.target, limits=backup.Limits(memory_log_bytes=0)).digest == in_memory
    assert tree(world.target) == world.files
    assert sorted(p.name for p in world.target.parent.iterdir()) == ["store", "target"]


def test_on_a_disk_that_can_only_be_read(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class ReadOnly(Files):
        def make_directory(self, path: Path) -> None:
            if path.is_relative_to(world.target):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            super().make_directory(path)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    limits = backup.Limits(memory_log_bytes=0)
    assert backup.verify(world.target, limits=limits, env=Env(files=ReadOnly())).transactions
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_swapped_generation_is_found(world: World, tmp_path: Path) -> None:
    """Two backups, each whole: the state of one under the manifest of the other."""
    with open_store(tmp_path / "store", world.engine) as store:
        write(store, 5, 3)
        backup.run(store, tmp_path / "other")
    shutil.copytree(world.target, tmp_path / "mixed")
    for part in ("state", "log", "MANIFEST"):
        mixed = tmp_path / f"mixed-{part}"
        shutil.copytree(world.target, mixed)
        generation = mixed / "gen-000001"
        if part == "MANIFEST":
            shutil.copy(tmp_path / "other" / "gen-000001" / part, generation / part)
        else:
            shutil.rmtree(generation / part)
            shutil.copytree(tmp_path / "other" / "gen-000001" / part, generation / part)
        with pytest.raises(Damaged):
            backup.verify(mixed)


def test_a_log_with_another_transaction_than_the_manifest(world: World, tmp_path: Path) -> None:
    """Of the same number, in a log of the same store that starts where the image ends: another branch's."""
    shutil.copytree(world.target, tmp_path / "target")
    generation = Generation(tmp_path / "target" / "gen-000001")
    manifest = Manifest.read(Files(), generation)
    assert manifest is not None
    last = Position(world.noted, bytes(16))
    replace(manifest, consistent_from=last).write(Files(), generation)
    for read in (backup.verify, lambda target: backup.restore(target, tmp_path / "restored")):
        with pytest.raises(Damaged, match=f"another transaction {last.txid} than the manifest"):
            read(tmp_path / "target")
    assert not (tmp_path / "restored").exists()


# --- info and log ----------------------------------------------------------------------------------------------------


def test_info_of_what_was_a_backup(tmp_path: Path) -> None:
    """Its log no longer goes back to what its manifest says that it restored to."""
    with open_store(tmp_path / "store") as store:
        backup.run(store, tmp_path / "target")
    with open_store(tmp_path / "target", settings=replace(SMALL, keep_logs="1 transactions")) as twin:
        write(twin, 1, 20, size=20_000)
        twin.checkpoint()
        twin.prune()
        base = twin.log.base.txid
    assert base > 0
    info = backup.info(tmp_path / "target")
    assert (info.kind, info.bounds.first, info.bounds.last) == ("promoted backup", base, 20)
    assert f"transaction {base + 1} to 20" in str(info)


def test_info_of_a_store_that_prunes_meanwhile(tmp_path: Path) -> None:
    """Between two looks of ours at its files one of them goes."""
    with open_store(tmp_path / "store") as store:
        write(store, 1, 5)

        class Busy(Files):
            gone = 2

            def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
                if path.suffix == ".seg" and self.gone:
                    self.gone -= 1
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
                return super().open(path, mode)

        last = backup.info(tmp_path / "store", env=Env(files=Busy())).bounds.last
        assert last >= 4, "of the last one it is not known that it is durable"
        assert len(list(backup.transactions(tmp_path / "store", env=Env(files=Busy())))) == last
    with pytest.raises(FileNotFoundError):  # nobody writes it any more
        backup.info(tmp_path / "store", env=Env(files=Busy()))


def test_the_last_time_is_the_last_transactions(tmp_path: Path) -> None:
    """And not that of a sign of life that came after it."""
    clock = SetClock()
    env = Env(clock=clock)
    with open_store(tmp_path / "store", env=env) as store:
        write(store, 1)
        committed = store.log.time_of(1)
        clock.time_us += 600_000_000
        store.group_commit.heartbeat()
        backup.run(store, tmp_path / "target", env=env)
    for path in ("store", "target"):
        bounds = backup.info(tmp_path / path).bounds
        assert bounds.last_time_us == committed
        assert bounds.complete_until_us >= committed + 600_000_000


def test_info_of_a_store_and_its_backup(tmp_path: Path) -> None:
    clock = SetClock()
    env = Env(clock=clock)
    with open_store(tmp_path / "store", env=env) as store:
        write(store, 1, 5)
        backup.run(store, tmp_path / "target", env=env)
        clock.time_us += 10_000_000
        write(store, 2, 5)
        report = backup.run(store, tmp_path / "target", env=env)
        open_info = backup.info(tmp_path / "store")
        assert open_info.kind == "store"
    info = backup.info(tmp_path / "target")
    assert (info.kind, info.engine, info.target_id) == ("backup", "memory", report.target_id)
    assert info.store_id == backup.info(tmp_path / "store").store_id == store.history.store_id.hex()
    assert info.bounds == report.bounds
    assert iso(info.bounds.complete_until_us) in str(info)
    assert info.bounds.last == backup.info(tmp_path / "store").bounds.last == 10
    assert info.to_dict()["bounds"]["complete_until"] == iso(info.bounds.complete_until_us)
    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreNotFound):
            backup.info(wrong)
    with pytest.raises(TargetInvalid):
        backup.verify(tmp_path / "store")


def test_transactions(world: World) -> None:
    records = list(backup.transactions(world.target))
    bounds = backup.info(world.target).bounds
    assert [r.txid for r in records] == list(range(9, bounds.last + 1))
    assert [r.txid for r in backup.transactions(world.target, first=10, last=12)] == [10, 11, 12]
    assert list(backup.transactions(world.target, first=12, last=11)) == []
    for first, last in ((8, None), (None, bounds.last + 1), (0, 3)):
        with pytest.raises(RestorePointOutOfRange, match="not all in this log"):
            list(backup.transactions(world.target, first=first, last=last))
