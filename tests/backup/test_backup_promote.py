"""A backup that is opened for writing becomes a store, or stays the backup that it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from backup_worlds import SMALL, open_store, write

from holdfast import backup
from holdfast.backup.testing.fault_injection import full_disk
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.env import Env
from holdfast.engine.errors import Damaged, DiskFull, InvalidInput
from holdfast.engine.store.store import Store


def test_an_opening_for_writing_that_fails_leaves_the_backup(tmp_path: Path) -> None:
    """SQLite writes to its file as soon as it opens it, before a manifest could say that this is no longer a backup."""
    with Store.open(tmp_path / "store", SqliteEngine, settings=SMALL) as store:
        for n in range(5):
            with store.transaction() as tx:
                tx.put(b"%d" % n, b"value")
        backup.run(store, tmp_path / "target")
    with pytest.raises(DiskFull):
        Store.open(tmp_path / "target", SqliteEngine, settings=SMALL, env=Env(files=full_disk(1)))
    with pytest.raises(InvalidInput, match="unknown engine option"):
        Store.open(tmp_path / "target", SqliteEngine, settings=SMALL, options={"cache": 1})
    assert backup.verify(tmp_path / "target").bounds.last == 5


def test_a_backup_that_became_a_store_outlives_its_first_log(tmp_path: Path) -> None:
    """Its manifest stays, to say what it once was. The log that it went on from may be pruned like any other, and the
    next opening then looked for it."""
    settings = replace(SMALL, keep_logs="1 transactions")
    with open_store(tmp_path / "store") as store:
        backup.run(store, tmp_path / "target")
    for n in range(3):
        with open_store(tmp_path / "target", settings=settings) as twin:
            write(twin, n, 2)
            twin.log.writer.extend_history(twin.history, twin.log.epoch + 1)  # in a segment of its own
            twin.checkpoint()
            twin.prune()
    with open_store(tmp_path / "target", settings=settings) as twin:
        twin.prune()
        assert twin.log.base.txid > 0
        assert twin.published.txid == 6


def test_a_backup_whose_log_is_damaged_stays_a_backup(tmp_path: Path) -> None:
    """The replay found the damage after the promotion, and nobody could restore to the points before it any more."""
    target = tmp_path / "target"
    with open_store(tmp_path / "store") as store:
        write(store, 0, 2)
        backup.run(store, target)
        write(store, 2, 8)
        store.log.writer.extend_history(store.history, store.log.epoch + 1)  # in a segment of its own
        write(store, 10, 2)
        backup.run(store, target)
    first = backup.info(target).bounds.first
    segment, *others = sorted((target / "gen-000001" / "log").glob("*.seg"))
    assert others
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with pytest.raises(Damaged):
        open_store(target).close()
    assert backup.info(target).kind == "backup"
    backup.restore(target, tmp_path / "restored", to_txid=first)
