"""A restore into a store's own directory that writes only what differs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import backup
from holdfast.backup import Repository
from holdfast.backup.repository import names
from holdfast.backup.repository.errors import StorageUnavailable
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.engine import GraphEngine, GraphStore, MemoryEngine, Store
from holdfast.engine.env import REAL
from holdfast.engine.errors import InvalidInput, StoreExists, StoreLocked, StoreNotFound, TargetInvalid
from holdfast.engine.store.reader_leases import ReaderLease

NODES = 20_000


def add(store: Any, first: int, count: int) -> None:
    with store.transaction() as tx:
        for n in range(first, first + count):
            tx.add_node("Person", name=f"{n:032x}")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Repository, Path, bytes]]:
    """A repository, the store's directory, which has gone on since, and the digest of what the repository has."""
    place = tmp_path / "store"
    with GraphStore.open(place, online_backup_enabled=False) as store, Repository.init(tmp_path / "repo") as made:
        add(store, 0, NODES)
        store.checkpoint()
        made.backup(store)
        with store.snapshot() as view:
            digest = view.digest()
        add(store, NODES, 100)
        store.checkpoint()
        store.close()
        yield made, place, digest


def digest_of(place: Path) -> bytes:
    with GraphStore.open(place, online_backup_enabled=False) as store, store.snapshot() as view:
        found: bytes = view.digest()
    return found


def test_only_what_differs_is_written(kept: tuple[Repository, Path, bytes]) -> None:
    repository, place, digest = kept
    (place / "gen-000001" / "state" / "extra").mkdir()
    (place / "gen-000001" / "state" / "extra" / "file").write_text("not the image's")
    report = repository.restore(place, delta=True)
    assert report.written_bytes is not None
    assert 0 < report.written_bytes < report.image_bytes / 5
    assert digest_of(place) == digest
    assert not list(place.glob("gen-*/state/extra"))
    assert len(list(place.glob("gen-*"))) == 1
    assert backup.info(place).branches[-1]["id"] == report.branch
    again = repository.restore(place, delta=True)
    assert again.written_bytes is not None
    assert again.written_bytes < report.image_bytes / 5


@pytest.mark.parametrize("how", [{"delta": True}, {"force": True}], ids=["delta", "force"])
@pytest.mark.parametrize("at", [1, 2])
def test_one_that_dies_leaves_no_store_and_the_next_goes_on(kept: tuple[Repository, Path, bytes], at: int, how: Any,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    repository, place, digest = kept
    for path in place.glob("gen-*/state/data.mdb"):
        data = bytearray(path.read_bytes())
        for start in range(0, len(data), 1 << 20):  # so that there is something to write in many places
            data[start : start + 4096] = os.urandom(4096)
        path.write_bytes(data)
    real, count = LocalObjectStore.get, 0

    def get(self: LocalObjectStore, name: str, offset: int = 0, length: int | None = None) -> bytes:
        nonlocal count
        count += name.startswith(names.PACKS)
        if count >= at:
            raise StorageUnavailable("the network is down")
        return real(self, name, offset, length)

    monkeypatch.setattr(LocalObjectStore, "get", get)
    with pytest.raises(StorageUnavailable):
        repository.restore(place, delta=True)
    monkeypatch.undo()
    for create in (False, True):
        with pytest.raises(StoreNotFound, match="has not ended"):
            Store.open(place, GraphEngine, create=create)
    with pytest.raises(StoreExists):
        repository.restore(place)
    repository.restore(place, **how)
    assert not (place / "RESTORING").exists()
    assert digest_of(place) == digest


def test_what_is_not_the_store_is_not_written_over(kept: tuple[Repository, Path, bytes], tmp_path: Path) -> None:
    repository, place, _ = kept
    with Store.open(tmp_path / "other", MemoryEngine, create=True):
        pass
    with GraphStore.open(place, online_backup_enabled=False) as store:
        backup.run(store, tmp_path / "target")
        with pytest.raises(StoreLocked):
            repository.restore(place, delta=True)
    (tmp_path / "member" / "member").mkdir(parents=True)
    (tmp_path / "member" / "STORE").write_bytes((place / "STORE").read_bytes())
    for wrong, why in (("other", "holds store"), ("target", "is a backup"), ("nothing", "is not a directory"),
                       ("member", "member of a cluster"), ("repo", "holds no store")):
        before = sorted(str(path) for path in (tmp_path / wrong).rglob("*"))
        with pytest.raises(TargetInvalid, match=why):
            repository.restore(tmp_path / wrong, delta=True)
        assert {*before} >= {str(path) for path in (tmp_path / wrong).rglob("*") if "catalog" not in str(path)} - {
            str(tmp_path / wrong / "LOCK")}
    with pytest.raises(InvalidInput, match="both given"):
        repository.restore(place, delta=True, force=True)


def test_a_reader_keeps_it_away(kept: tuple[Repository, Path, bytes]) -> None:
    """It opened the store beside a writer that has gone since."""
    repository, place, digest = kept
    reader = ReaderLease(place, "a reader", REAL)
    with pytest.raises(StoreLocked, match="open for reading"):
        repository.restore(place, delta=True)
    reader.release()
    repository.restore(place, delta=True)
    assert digest_of(place) == digest
