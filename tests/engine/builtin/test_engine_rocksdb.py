"""What is particular to the RocksDB engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from workloads import WORKLOADS

from holdfast.engine.builtin.wrapped import rocksdb
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import Damaged, DiskFull, StoreClosed, StoreLocked, Unsupported
from holdfast.engine.store.store import Store
from holdfast.engine.testing.support.contract import scratch
from holdfast.engine.testing.support.driver import Driver


class Room(Files):
    """Files where there is as much room as `left` says."""

    left = 1 << 40

    def free(self, path: Path) -> int:
        return self.left


@pytest.fixture
def files() -> Room:
    return Room()


@pytest.fixture
def it(files: Room) -> Iterator[Driver]:
    with scratch() as place:
        driver = Driver(WORKLOADS["rocksdb"](), place / "state", Env(files=files))
        yield driver
        driver.close()


def test_without_rocksdict_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(Unsupported, match=r"pip install 'holdfast\[rocksdb\]'"):
        Store.open(tmp_path / "store", RocksEngine)


def test_a_checkpoint_without_room_changes_nothing_and_works_later(it: Driver, files: Room) -> None:
    it.commit([("put", b"a", b"1" * 1000)])
    files.left = 1000
    for _ in range(2):
        with pytest.raises(DiskFull):
            it.engine.checkpoint(it.end)
        assert it.engine.position.txid == 0
        assert it.engine.pending_bytes() == len(it.records[0].payload)
        it.compare_state()
    files.left = 1 << 40
    it.checkpoint()
    it.reopen()
    it.compare_state()


def test_rocksdb_out_of_room_is_no_matter_of_trying_again(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the batch in memory then, and writes nothing more until it is opened again."""
    engine: Any = it.engine
    database = engine._database

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(database, name)

        def flush(self) -> None:
            raise Exception("IO error: No space left on device: While appending to file: 000016.sst")

        def close(self) -> None:
            database.close()
            raise Exception("IO error: No space left on device: While appending to file: 000016.sst")

    it.commit([("put", b"a", b"1")])
    monkeypatch.setattr(engine, "_database", Full())
    with pytest.raises(OSError, match="No space left") as caught:
        engine.checkpoint(it.end)
    assert not isinstance(caught.value, DiskFull)
    it.compare_state()
    it.reopen()
    it.compare_state()


def test_it_is_open_once_in_a_process(it: Driver) -> None:
    with pytest.raises(StoreLocked):
        RocksEngine.open(it.directory, it.context)
    it.reopen()
    RocksEngine.open(it.directory, it.context, read_only=True).close()


def test_an_open_view_does_not_keep_the_database_open(it: Driver) -> None:
    it.commit([("put", b"a", b"1")])
    it.checkpoint()
    view = it.engine.view()
    begun = view.items()
    next(begun)
    it.reopen()
    it.compare_state()


def test_half_written_notes_of_rocksdict_do_no_harm(it: Driver) -> None:
    it.commit([("put", b"a", b"1")])
    it.checkpoint()
    it.close()
    notes = it.directory / "rocksdict-config.json"
    assert notes.exists()
    for left in (b"", b'{"raw_mo'):
        notes.write_bytes(left)
        RocksEngine.open(it.directory, it.context, read_only=True).close()
        it.reopen()
        it.compare_state()
        it.close()


def test_a_torn_manifest_is_an_older_state_that_says_so(it: Driver) -> None:
    """RocksDB takes the last record of its manifest, cut short, for one that was being written. The state is one that
    was whole, at the position that it holds; as a copy of a later one it is refused."""
    for value in (b"1", b"2"):
        it.commit([("put", b"a", value)])
        it.checkpoint()
    image = it.image()
    (manifest,) = (name for name in image if name.startswith("MANIFEST"))
    copy = it.copied(image)
    seen = set()
    for size in range(0, len(image[manifest]), 7):
        (copy / manifest).write_bytes(image[manifest][:size])
        try:
            engine = it.opened(copy, read_only=True)
        except Damaged:
            continue
        reached = engine.position.txid
        seen.add(reached)
        it.compare_state(engine, reached)
        engine.close()
        if reached < 2:
            with pytest.raises(Damaged, match="should be at"):
                it.opened(copy, read_only=True, at=it.end)
    assert seen & {0, 1}


def test_a_database_without_the_document_is_damage(it: Driver) -> None:
    engine: Any = it.engine
    engine._database.delete(b"")
    it.close()
    with pytest.raises(Damaged, match="no document"):
        RocksEngine.open(it.directory, it.context)


def test_missing_table_files_are_damage(it: Driver) -> None:
    it.commit([("put", b"a", b"1")])
    it.checkpoint()
    it.close()
    tables = [name for name in os.listdir(it.directory) if name.endswith(".sst")]
    assert tables
    os.unlink(it.directory / tables[0])
    for read_only in (False, True):
        with pytest.raises(Damaged):
            RocksEngine.open(it.directory, it.context, read_only=read_only)


class ClosesWithAnError:
    """A database that meets a bad block when it is closed, as one does whose own threads were at work on it."""

    def __init__(self, database: Any) -> None:
        self.database = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    def close(self) -> None:
        self.database.close()
        raise Exception("Corruption: block checksum mismatch")  # as rocksdict raises it


@pytest.mark.parametrize("read_only", [False, True])
def test_what_closing_meets_hides_nothing_of_what_was_found(
        it: Driver, monkeypatch: pytest.MonkeyPatch, read_only: bool) -> None:
    engine: Any = it.engine
    engine._database.delete(b"")
    it.close()
    opened = rocksdb._open
    monkeypatch.setattr(rocksdb, "_open", lambda *given, **how: ClosesWithAnError(opened(*given, **how)))
    with pytest.raises(Damaged, match="no document"):
        RocksEngine.open(it.directory, it.context, read_only=read_only)


def test_an_image_says_what_a_failed_checkpoint_left_in_it(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """RocksDB writes what it has in memory into the image, and so a transaction more than the engine vouches for."""
    engine: Any = it.engine
    it.commit([("put", b"a", b"1")])
    it.checkpoint()
    it.commit([("put", b"a", b"2")])
    database = engine._database

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(database, name)

        def flush(self) -> None:
            raise Exception("IO error: No space left on device: While appending to file: 000016.sst")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_database", Full())
        with pytest.raises(OSError, match="No space left"):
            engine.checkpoint(it.end)
    assert engine.position.txid == 1
    with closing(engine.image()) as image:
        assert image.position == it.end
        content = {file.name: image.read(file.name, 0, file.size) for file in image.files}
    with closing(it.opened(it.copied(content), read_only=True, at=it.end)) as copy:
        it.compare_state(copy, 2)


def test_an_image_of_a_closed_database_is_no_damage(it: Driver) -> None:
    it.close()
    with pytest.raises(StoreClosed):
        it.engine.image()
