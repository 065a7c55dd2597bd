"""Versions of state and payloads are compared when a copy, an incremental, a verification or a restore begins.

They were told and stored, and nobody compared them: an incremental took what the release here cannot read, with exit 0,
and only the restore said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backup_worlds import open_store, tree, write

from holdfast import backup
from holdfast.backup import engines
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.errors import UnsupportedFormat, UpgradeRequired
from holdfast.engine.source.local import LocalSource


def other(**versions: Any) -> type[MemoryEngine]:
    """The memory engine of another release."""
    return type("Other", (MemoryEngine,), versions)


OLDER = other(state_format=0)
NEWER = other(state_format=2)
NEW_PAYLOADS = other(payload_version=2, reads_payloads=frozenset({1, 2}))
NO_OLD_PAYLOADS = other(payload_version=2, reads_payloads=frozenset({2}))


@pytest.mark.parametrize(("engine", "error"), [(OLDER, UnsupportedFormat), (NEWER, UpgradeRequired),
                                               (NO_OLD_PAYLOADS, UnsupportedFormat)])
def test_a_backup_begins_only_with_an_engine_that_reads_it(tmp_path: Path, engine: type[MemoryEngine],
                                                           error: type[Exception]) -> None:
    target = tmp_path / "target"
    with open_store(tmp_path / "store", MemoryEngine) as store:
        write(store, 1, 3)
        with pytest.raises(error, match="the source has"):
            backup.run(store, target, engine=engine)
        assert list(tree(target)) == ["LOCK"]
        assert not store.leases.list()
        backup.run(store, target)
        write(store, 1, 3)
        before = tree(target)
        with pytest.raises(error):
            backup.run(store, target, engine=engine)
        backup.run(store, target)
    before = tree(target)
    for act in (lambda: backup.verify(target, engine=engine),
                lambda: backup.restore(target, tmp_path / "dest", engine=engine)):
        with pytest.raises(error, match="the backup in"):
            act()
    assert tree(target) == before
    assert not (tmp_path / "dest").exists()


def test_what_a_store_is_was_decided_when_it_was_opened(tmp_path: Path) -> None:
    """A class that changed since says nothing of the state on disk."""
    engine = other()
    with open_store(tmp_path / "store", engine) as store:
        engine.state_format = 9
        assert LocalSource(store).info().state_format == 1
        with pytest.raises(UpgradeRequired):
            backup.run(store, tmp_path / "target")


def test_a_transaction_that_cannot_be_read_is_not_taken(tmp_path: Path) -> None:
    """A source whose release changed its payloads: what came before is kept, what cannot be read is not appended."""
    target = tmp_path / "target"
    with open_store(tmp_path / "store", NEW_PAYLOADS) as store:
        store.engine.payload_version = 1  # type: ignore[misc]
        write(store, 1, 2)
        backup.run(store, target, engine=NEW_PAYLOADS)
        write(store, 1, 1)
        store.engine.payload_version = 2  # type: ignore[misc]
        write(store, 1, 1)
        store.payload_version = 1  # a source that does not say so
        with pytest.raises(UnsupportedFormat, match="transaction 4 of the source has payload version 2"):
            backup.run(store, target, engine=MemoryEngine)
        assert backup.verify(target, engine=MemoryEngine).bounds.last == 3
        assert backup.run(store, target, engine=NEW_PAYLOADS).to_txid == 4
    for act in (lambda: backup.verify(target, engine=MemoryEngine),
                lambda: backup.restore(target, tmp_path / "dest", engine=MemoryEngine)):
        with pytest.raises(UnsupportedFormat, match="transactions of payload version 2"):
            act()


def test_an_incremental_looks_for_its_engine_only_if_something_is_new(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """To load one takes longer than a small incremental. What an engine here has read needs no other look."""
    looked = list[str]()

    def find(name: str) -> type[MemoryEngine]:
        looked.append(name)
        return MemoryEngine

    monkeypatch.setattr(engines, "find_engine", find)
    target, unchecked = tmp_path / "target", tmp_path / "unchecked"
    with open_store(tmp_path / "store", NEW_PAYLOADS) as store, LocalSource(store) as source:
        store.engine.payload_version = store.payload_version = 1  # type: ignore[misc]
        write(store, 1, 2)
        backup.run(source, target)
        backup.run(source, unchecked, policy=backup.Policy(verify=False))
        looked.clear()
        write(store, 1, 1)
        assert backup.run(source, target).transactions == 1
        assert not looked
        backup.run(source, unchecked)
        assert looked, "no engine here has read it"
        store.engine.payload_version = 2  # type: ignore[misc]
        write(store, 1, 1)
        looked.clear()
        with pytest.raises(UnsupportedFormat, match="transaction 4 of the source has payload version 2"):
            backup.run(source, target)
        assert looked, "the source did not say so, its transaction did"
        store.payload_version = 2
        with pytest.raises(UnsupportedFormat, match="the source has"):
            backup.run(source, target)
    assert backup.verify(target, engine=MemoryEngine).bounds.last == 3


def test_the_versions_that_came_are_remembered_longer_than_the_runs(tmp_path: Path) -> None:
    target, policy = tmp_path / "target", backup.Policy(limits=backup.Limits(runs=2))
    with open_store(tmp_path / "store", NEW_PAYLOADS) as store:
        backup.run(store, target, engine=NEW_PAYLOADS)
        write(store, 1, 1)
        for _ in range(5):
            backup.run(store, target, engine=NEW_PAYLOADS, policy=policy)
    with pytest.raises(UnsupportedFormat):
        backup.verify(target, engine=MemoryEngine)


def test_an_engine_that_is_not_installed_is_not_compared_and_said(tmp_path: Path) -> None:
    engine = type("Mine", (MemoryEngine,), {"name": "mine"})
    with open_store(tmp_path / "store", engine) as store:
        with LocalSource(store) as source:
            report = backup.run(source, tmp_path / "target", policy=backup.Policy(verify=False))
            assert "the mine engine is not installed here" in str(report)
            assert "not installed" in str(backup.run(source, tmp_path / "target"))
        assert "not installed" not in str(backup.run(store, tmp_path / "target"))
