"""Kit records in backups: they are copied, and points at them restore, verify and compact as any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backup_worlds import COMPACTING, ENGINES, NOT_COMPACTING, SMALL, digest, open_store, write
from cli_rig import holdfast

from holdfast import backup
from holdfast.engine.contract.engine import Engine
from holdfast.engine.store.store import Store


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("policy", [NOT_COMPACTING, COMPACTING], ids=["kept", "compacted"])
def test_backups_hold_kit_records(tmp_path: Path, engine: type[Engine[Any, Any]], policy: backup.Policy) -> None:
    target, digests = tmp_path / "target", {}
    with open_store(tmp_path / "store", engine) as store:
        write(store, 1, 5)
        store.write_path.mark()
        store.checkpoint()
        backup.run(store, target, policy=policy)
        write(store, 2, 5)
        store.write_path.mark()
        store.write_path.mark()
        digests[store.published.txid] = digest(store)
        backup.run(store, target, policy=policy)
        write(store, 3)
        store.write_path.mark()
        digests[store.published.txid] = digest(store)
        backup.run(store, target, policy=policy)
        assert backup.verify(target).digest == digest(store).hex()
        end = store.published
    for txid, known in digests.items():
        if policy is COMPACTING and txid != end.txid:
            continue
        report = backup.restore(target, tmp_path / f"at{txid}", to_txid=txid)
        assert report.txid == txid
        with Store.open(tmp_path / f"at{txid}", engine, settings=SMALL) as restored:
            assert digest(restored) == known
            assert restored.published.txid == txid
            write(restored, 4)
            changed = digest(restored)
        with Store.open(tmp_path / f"at{txid}", engine, settings=SMALL) as restored:
            assert digest(restored) == changed
            assert restored.history.branch.start.txid == txid
            restored.write_path.mark()
            assert backup.run(restored, tmp_path / f"again{txid}").kind == "full"
        assert backup.verify(tmp_path / f"again{txid}").digest == changed.hex()
    with Store.open(target, engine, settings=SMALL) as promoted:
        assert promoted.published == end
        write(promoted, 5)


def test_a_store_that_has_only_kit_records_is_backed_up(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        store.write_path.mark()
        backup.run(store, tmp_path / "target")
        store.write_path.mark()
        backup.run(store, tmp_path / "target", policy=COMPACTING)
    backup.restore(tmp_path / "target", tmp_path / "restored")
    with open_store(tmp_path / "restored") as restored:
        assert restored.published.txid == 2
        write(restored, 1)


def test_the_log_command_says_what_they_are(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        write(store, 1)
        store.write_path.mark()
        store.log.writer.epoch = 3
        store.write_path.mark()
    lines = holdfast("log", tmp_path / "store").stdout.splitlines()
    assert lines[1].endswith("  mark")
    assert lines[2].endswith("  epoch 3 begins")
