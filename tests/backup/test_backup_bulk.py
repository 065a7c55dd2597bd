"""Bulk loads in backups: the attachment is copied before the record that names it, checked, replayed, and compacted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import pytest
from backup_worlds import COMPACTING, SMALL, digest, open_store, write

from holdfast import backup
from holdfast.backup.testing.fault_injection import DyingDisk, Killed, Nth, WatchedSource, full_disk
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import BulkEngine
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import Damaged, DiskFull, SettingError, SourceUnavailable
from holdfast.engine.model.records import Record
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store


class BulkMemory(MemoryEngine, BulkEngine[MemoryTransaction, MemoryView]):
    """The memory engine with bulk loads: a dictionary, packed, in the attachment."""

    name = "bulkmemory"

    def write_bulk(self, load: Mapping[bytes, bytes], out: BinaryIO) -> bytes:
        data = msgpack.packb(dict(load))
        out.write(len(data).to_bytes(8, "little"))
        out.write(data)
        return b"bulk"

    def apply_bulk(self, record: Record, path: Path) -> None:
        content = path.read_bytes()
        data = content[8 : 8 + int.from_bytes(content[:8], "little")]
        changes = msgpack.packb([[k, v] for k, v in msgpack.unpackb(data).items()])
        self.apply([Record(record.txid, record.epoch, record.time_us, record.payload_version, changes, None,
                           record.header, record.chain)])
        self.checkpoint(record.position)


LOAD = {b"bulk %d" % n: b"%d" % n * 20 for n in range(500)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store[Any, Any]]:
    with open_store(tmp_path / "store", BulkMemory) as opened:
        write(opened, 1, 5)
        backup.run(opened, tmp_path / "target")
        write(opened, 2, 5)
        opened.bulk(LOAD)
        write(opened, 3, 5)
        yield opened


def assert_whole(target: Path, store: Store[Any, Any]) -> None:
    assert backup.verify(target, engine=BulkMemory).digest == digest(store).hex()
    with Store.open(target, BulkMemory, read_only=True, settings=SMALL) as booted:
        assert digest(booted) == digest(store)


def test_incremental_and_restore(store: Store[Any, Any], tmp_path: Path) -> None:
    report = backup.run(store, tmp_path / "target")
    assert (report.transactions, report.to_txid) == (11, 16)
    assert report.log_bytes > sum(len(k) + len(v) for k, v in LOAD.items())
    assert_whole(tmp_path / "target", store)
    for txid in (10, 11, 16):
        backup.restore(tmp_path / "target", tmp_path / f"r{txid}", to_txid=txid, engine=BulkMemory)
        with Store.open(tmp_path / f"r{txid}", BulkMemory, settings=SMALL) as restored, restored.snapshot() as view:
            assert sum(key.startswith(b"bulk") for key, _ in view.items()) == (0 if txid == 10 else len(LOAD))


def test_full(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "second")
    assert_whole(tmp_path / "second", store)


def test_a_bulk_load_during_the_copy(store: Store[Any, Any], tmp_path: Path) -> None:
    once = count()

    def load(what: str) -> None:
        if what == "confirm" and next(once) == 0:
            store.bulk({b"late": b"one"})

    backup.run(WatchedSource(LocalSource(store), load), tmp_path / "second", engine=BulkMemory)
    assert_whole(tmp_path / "second", store)


def test_source_or_disk_fails_at_every_point(store: Store[Any, Any], tmp_path: Path) -> None:
    policy = backup.Policy(compact=None, limits=backup.Limits(chunk_bytes=2048))

    def attempt(n: int, kind: str) -> bool:
        """Whether there was an n-th point to fail at."""
        target = tmp_path / f"{kind}{n}"
        shutil.copytree(tmp_path / "target", target)
        dying = Nth(n, lambda: SourceUnavailable("gone")) if kind == "source" else Nth(0, Killed)
        files = {"source": Files(), "kill": DyingDisk(fail_at=n), "full": full_disk(n)}[kind]
        try:
            backup.run(WatchedSource(LocalSource(store), dying), target, env=Env(files=files),
                       policy=policy)
        except (SourceUnavailable, Killed, DiskFull):
            assert backup.verify(target, engine=BulkMemory).bounds.last in range(5, 17)
            backup.run(store, target, policy=policy)
            assert_whole(target, store)
            return True
        assert_whole(target, store)
        return kind == "source" and dying.count >= n  # it was only the registration or the release

    for kind in ("source", "kill", "full"):
        tried = next(n for n in count(1) if not attempt(n, kind))
        assert tried > 7


def test_compacts(store: Store[Any, Any], tmp_path: Path) -> None:
    assert backup.run(store, tmp_path / "target", policy=COMPACTING).compacted
    assert not list((tmp_path / "target").glob("gen-*/log/attachments/*"))
    assert_whole(tmp_path / "target", store)


def test_flipped_or_missing_attachment(store: Store[Any, Any], tmp_path: Path) -> None:
    backup.run(store, tmp_path / "target")
    attachment = next((tmp_path / "target").glob("gen-*/log/attachments/*"))
    content = attachment.read_bytes()
    for at in range(0, len(content), 997):
        attachment.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Damaged, match=attachment.name):
            backup.verify(tmp_path / "target", engine=BulkMemory)
    attachment.unlink()
    with pytest.raises(Damaged, match=attachment.name):
        backup.verify(tmp_path / "target", engine=BulkMemory)
    with pytest.raises(Damaged):
        backup.run(store, tmp_path / "target")


def test_engine_that_is_not_installed(store: Store[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="bulkmemory"):
        backup.verify(tmp_path / "target")
    with pytest.raises(SettingError, match="bulkmemory"):
        backup.run(LocalSource(store), tmp_path / "second")
    assert not backup.run(LocalSource(store), tmp_path / "second", policy=backup.Policy(verify=False)).verified
