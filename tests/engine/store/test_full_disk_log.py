"""A disk that is full of log which is kept for somebody: who that is, is said, and the store opens again.

A dated backup was deleted, and its registration kept the log until the volume was full: the error said only to free
some room, no command dropped the slot, and the store could not even be opened with smaller bounds."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from holdfast import backup
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import DiskFull, NotFound, Unsupported
from holdfast.engine.model.records import SegmentInfo
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles

SMALL: dict[str, Any] = {"segment_bytes": 128 << 10, "keep_logs": "1 transactions", "heartbeat_s": 0}


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
    """A store with a slot whose target is gone, and ten segments of log that are kept for it."""
    with Store.open(tmp_path / "store", MemoryEngine, settings=Settings(**SMALL)) as store:
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
    settings = Settings(**SMALL)
    with Store.open(root, MemoryEngine, settings=settings, env=Env(files=files)) as store:
        with pytest.raises(DiskFull, match="no room") as told:
            write(store, 25)
        [slot] = backup.slots(store)
        assert slot.held_bytes > 1_000_000
        for text in (slot.name, slot.id, "2026-11-27", "drop_slot"):
            assert text in told.value.hint
        backup.drop_slot(store, slot.id)
        with pytest.raises(NotFound):
            backup.drop_slot(store, slot.id)
        assert len(list(root.rglob("*.seg"))) < segments - 5
        write(store, 4)


def test_a_slot_is_dropped_where_no_byte_is_left_to_note_it(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What makes room must not need room: the drop failed with the very `DiskFull` whose hint had named it, and the
    log stayed. It counts at once, and is written as soon as pruning has made room."""
    document = next(root.rglob("CONSUMERS"))
    before = document.read_bytes()

    class Full(Volume):
        def _full(self, kind: str, path: Path) -> None:
            if kind == "pwrite" and path.name.endswith(".new") and self._segments() > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = Full(root, len(list(root.rglob("*.seg"))) - 2)
    files.free = lambda path: 1 << 30  # type: ignore[method-assign]
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL), env=Env(files=files)) as store:
        [slot] = backup.slots(store)
        backup.drop_slot(store, slot.id)
        assert "written to disk when there is room" in caplog.text
        assert backup.slots(store) == []
        assert store.log.base.txid > 10
        assert document.read_bytes() != before
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL)) as store:
        assert backup.slots(store) == []


def test_half_of_a_small_disk_is_all_that_slots_hold(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The bounds for slots were 16 GiB and 14 days on any disk: on a smaller one a target that was gone stopped
    all commits."""
    class Small(Files):
        def capacity(self, path: Path) -> int:
            return 40 * (128 << 10)

    with Store.open(root, MemoryEngine, settings=Settings(**SMALL),
                    env=Env(files=Small())) as store:
        for _ in range(40):
            store.checkpoint()
            store.prune()
            if not backup.slots(store):
                break
            assert store.log.base.txid == 0
            write(store, 2)
        assert 40 < store.published.txid < 60
        assert "lags too far behind" in caplog.text
        assert len(list(root.rglob("*.seg"))) < 6


def test_log_that_is_only_wished_for_takes_half_of_a_small_disk(tmp_path: Path) -> None:
    """7 days or 4 GiB of log are kept without being told to, which on a disk of 2 GiB is all of it."""
    class Small(Files):
        def capacity(self, path: Path) -> int:
            return 8 * (128 << 10)

    for keep, first in (("7 days, 4 GiB", 10), ("for ever", 0)):
        settings = Settings(segment_bytes=128 << 10, heartbeat_s=0, keep_logs=keep)
        with Store.open(tmp_path / keep, MemoryEngine, settings=settings, env=Env(files=Small())) as store:
            write(store, 25)
            store.checkpoint()
            store.prune()
            assert first <= store.log.base.txid <= 2 * first


def test_a_store_that_is_open_read_only_drops_no_slot(root: Path) -> None:
    """It would have written into a directory of which no byte was to change."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with Store.open(root, MemoryEngine, read_only=True) as store:
        [slot] = backup.slots(store)
        with pytest.raises(Unsupported, match="read-only"):
            backup.drop_slot(store, slot.id)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_slots_are_listed_and_dropped_across_a_network(root: Path) -> None:
    token = "a-token-for-one-test"
    service, connection = BackupService(online_backup_server="127.0.0.1:0", token=token), backup.Connection(token=token)
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL), plugins=[service]) as store:
        [slot] = backup.slots(store.backup_uri or "", connection=connection)
        assert slot == backup.slots(store)[0]
        backup.drop_slot(store.backup_uri or "", slot.id, connection=connection)
        assert backup.slots(store) == []
        assert store.log.base.txid > 10


def test_a_store_opens_on_a_full_disk_if_log_may_go(root: Path) -> None:
    """With smaller bounds, that is before anything is written."""
    env = Env(files=Volume(root, 3))
    with pytest.raises(DiskFull, match="1,000 bytes left") as told:
        Store.open(root, MemoryEngine, settings=Settings(**SMALL), env=env)
    assert "2026-11-27" in told.value.hint
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL, slot_bytes=1 << 16),
                    env=env) as store:
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
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL),
                    env=Env(files=Tight())) as store:
        assert store.log.base.txid == 0
    assert len(list(root.rglob("0*.seg"))) >= before


def test_a_plugin_that_keeps_log_is_not_passed_over(root: Path) -> None:
    class Keeper(Plugin):
        def pruning(self, segments: Iterable[SegmentInfo]) -> str | None:
            return "mine"

    with pytest.raises(DiskFull):
        Store.open(root, MemoryEngine, settings=Settings(**SMALL, slot_bytes=1 << 16),
                   plugins=[Keeper()], env=Env(files=Volume(root, 3)))
    with Store.open(root, MemoryEngine, settings=Settings(**SMALL)) as store:
        assert store.log.base.txid == 0
