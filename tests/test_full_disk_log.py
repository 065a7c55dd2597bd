"""A disk that is full of log which is kept for somebody: who that is, is said, and the store opens again.

A dated backup was deleted, and its registration kept the log until the volume was full: the error said only to free
some room, no command dropped the consumer, and the store could not even be opened with smaller bounds."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from holdfast import backup
from holdfast.engine.errors import DiskFull, NotFound
from holdfast.engine.log.segment import SegmentInfo
from holdfast.engine.memory import MemoryEngine
from holdfast.engine.plugins import Plugin
from holdfast.engine.seams import Files, Seams
from holdfast.engine.settings import Settings
from holdfast.engine.source.service import BackupService
from holdfast.engine.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles

SMALL = {"segment_bytes": 128 << 10, "keep_logs": "1 transactions", "heartbeat_s": 0}


class Volume(FaultyFiles):
    """One that has room for so many segments of log. When there are more, no new file can be filled."""

    def __init__(self, root: Path, room: int) -> None:
        super().__init__()
        self.root, self.room = root, room
        self.before = self._full

    def _segments(self) -> int:
        return len(list(self.root.rglob("*.seg")))

    def _full(self, kind: str, path: Path) -> None:
        if kind == "pwrite" and path.suffix == ".new" and self._segments() > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def free(self, path: Path) -> int:
        return 1000 if self._segments() > self.room else 1 << 30


def write(store: Store, count: int) -> None:  # type: ignore[type-arg]
    for n in range(count):
        with store.transaction() as tx:
            tx.put(b"key", bytes([n % 256]) * 50_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a consumer whose target is gone, and ten segments of log that are kept for it."""
    with Store.open(tmp_path / "store", MemoryEngine, settings=Settings(**SMALL)) as store:  # type: ignore[arg-type]
        backup.run(store, tmp_path / "2026-11-27")
        shutil.rmtree(tmp_path / "2026-11-27")
        write(store, 25)
        store.checkpoint()
        store.prune()
        assert store.log.base.txid == 0
    return tmp_path / "store"


def test_a_full_disk_names_who_holds_the_log(root: Path) -> None:
    segments = len(list(root.rglob("*.seg")))
    files = Volume(root, segments)
    settings = Settings(**SMALL)  # type: ignore[arg-type]
    with Store.open(root, MemoryEngine, settings=settings, seams=Seams(files=files)) as store:
        with pytest.raises(DiskFull, match="no room") as told:
            write(store, 25)
        [consumer] = backup.consumers(store)
        assert consumer.held_bytes > 1_000_000
        for text in (consumer.name, consumer.id, "2026-11-27", "drop_consumer"):
            assert text in told.value.hint
        files.before = lambda kind, path: None  # the few bytes for the list of consumers are there
        backup.drop_consumer(store, consumer.id)
        with pytest.raises(NotFound):
            backup.drop_consumer(store, consumer.id)
        assert store.prune() > 5
        write(store, 25)


def test_consumers_are_listed_and_dropped_across_a_network(root: Path) -> None:
    service = BackupService(online_backup_server="127.0.0.1:0", token="a-token-for-one-test")
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL), plugins=[service]) as store:  # type: ignore[arg-type]
        [consumer] = backup.consumers(store.backup_uri or "", token="a-token-for-one-test")
        assert consumer == backup.consumers(store)[0]
        backup.drop_consumer(store.backup_uri or "", consumer.id, token="a-token-for-one-test")
        assert backup.consumers(store) == []
        assert store.prune() > 5


def test_a_store_opens_on_a_full_disk_if_log_may_go(root: Path) -> None:
    """With smaller bounds, that is before anything is written."""
    seams = Seams(files=Volume(root, 3))
    with pytest.raises(DiskFull, match="1,000 bytes left") as told:
        Store.open(root, MemoryEngine, settings=Settings(**SMALL), seams=seams)  # type: ignore[arg-type]
    assert "2026-11-27" in told.value.hint
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL, consumer_bytes=1 << 16),  # type: ignore[arg-type]
                    seams=seams) as store:
        assert store.published.txid == 25
        with store.snapshot() as view:
            assert view.get(b"key") == bytes([24]) * 50_000
        write(store, 1)


def test_files_made_in_advance_go_first(root: Path) -> None:
    spare = next(root.rglob("gen-*/log")) / "spare-7.seg"
    spare.write_bytes(bytes(128 << 10))

    class Tight(Files):
        def free(self, path: Path) -> int:
            return 1000 if spare.exists() else 1 << 30

    before = len(list(root.rglob("0*.seg")))
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL),  # type: ignore[arg-type]
                    seams=Seams(files=Tight())) as store:
        assert store.log.base.txid == 0
    assert len(list(root.rglob("0*.seg"))) >= before


def test_a_plugin_that_keeps_log_is_not_passed_over(root: Path) -> None:
    class Keeper(Plugin):
        def pruning(self, segments: Iterable[SegmentInfo]) -> str | None:
            return "mine"

    with pytest.raises(DiskFull):
        Store.open(root, MemoryEngine, settings=Settings(**SMALL, consumer_bytes=1 << 16),  # type: ignore[arg-type]
                   plugins=[Keeper()], seams=Seams(files=Volume(root, 3)))
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL)) as store:  # type: ignore[arg-type]
        assert store.log.base.txid == 0
