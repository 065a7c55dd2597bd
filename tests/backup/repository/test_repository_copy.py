"""A repository's copy is the repository, and stays it until somebody promotes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.backup import Key, Repository
from holdfast.backup.repository import names
from holdfast.backup.repository.copying import copy, promote
from holdfast.backup.repository.errors import CopyReadOnly, RepositoryMissing
from holdfast.backup.repository.expiring import Keep
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.backup.repository.storage.url import open_storage
from holdfast.engine import MemoryEngine, Store
from holdfast.engine.errors import Diverged, ForeignStore, InvalidInput
from holdfast.engine.source.local import LocalSource

KEY = Key(b"a key of sixteen bytes or more")


def put(store: Store[Any, Any], key: bytes, value: bytes = b"") -> None:
    with store.transaction() as tx:
        tx.put(key, value)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "store", MemoryEngine, create=True) as store:
        put(store, b"first")
        yield store


def content(path: Path) -> dict[bytes, bytes]:
    with Store.open(path, MemoryEngine) as store, store.snapshot() as view:
        return dict(view.items())


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_copy_restores_what_the_repository_does(key: Key | None, store: Store[Any, Any], tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo", key=key) as repository:
        repository.backup(store)
        assert copy(tmp_path / "repo", tmp_path / "copy").objects > 2
        assert copy(tmp_path / "repo", tmp_path / "copy").objects == 0
        archiver = repository.archiver(LocalSource(store))
        for n in range(40):
            put(store, b"%d" % n)
            archiver.step()
        archiver.close()
        report = copy(tmp_path / "repo", tmp_path / "copy")
        assert report.objects > 40
        bounds = repository.info().branches
    with Repository.open(tmp_path / "copy", key=key) as copied:
        assert copied.info().branches == bounds
        assert copied.restore(tmp_path / "restored", to_txid=21).txid == 21
        assert len(content(tmp_path / "restored")) == 21
        assert not copied.verify().damaged
        assert copied.rehearse().txid == 41
        for change in (lambda: copied.backup(store), lambda: copied.mark("here"), lambda: copied.expire(Keep(last=1))):
            with pytest.raises(CopyReadOnly, match="is a copy of"):
                change()
    assert copy(tmp_path / "repo", tmp_path / "copy").objects == 0  # none of it has changed the copy


def test_a_copy_takes_the_place_of_a_repository_that_is_lost(store: Store[Any, Any], tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo") as repository:
        repository.backup(store)
    copy(tmp_path / "repo", tmp_path / "copy")
    with pytest.raises(InvalidInput, match="is not a copy"):
        promote(tmp_path / "repo")
    promote(tmp_path / "copy")
    put(store, b"second")
    with Repository.open(tmp_path / "copy") as copied:
        copied.backup(store)
    with pytest.raises(Diverged, match="was promoted"):
        copy(tmp_path / "repo", tmp_path / "copy")
    with pytest.raises(RepositoryMissing):
        promote(tmp_path / "nothing")


def test_what_was_dropped_goes_from_the_copy_when_asked(store: Store[Any, Any], tmp_path: Path) -> None:
    with Repository.init(tmp_path / "repo") as repository:
        for n in range(3):
            put(store, b"%d" % n, b"x" * 100)
            repository.backup(store)
        copy(tmp_path / "repo", tmp_path / "copy")
        gone = repository.expire(Keep(last=1, points="none"))
        assert len(gone.images) == 2
        assert copy(tmp_path / "repo", tmp_path / "copy").removed == 0
        assert copy(tmp_path / "repo", tmp_path / "copy", remove=True).removed == gone.objects
        with Repository.open(tmp_path / "copy") as copied:
            assert not copied.verify().damaged
            assert copied.restore(tmp_path / "restored").txid == 4
        with open_storage(tmp_path / "repo") as one, open_storage(tmp_path / "copy") as other:
            there = {listed.name for listed in other.list("")} - {names.COPY_OF}
            assert {n for n in there if not n.startswith("probes/")} == {
                listed.name for listed in one.list("") if not listed.name.startswith("probes/")}


def test_an_expiry_beside_a_copy_has_it_begin_again(store: Store[Any, Any], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy listed an image's objects, and an expiry deleted them before they were read."""
    with Repository.init(tmp_path / "repo") as repository:
        for n in range(2):
            put(store, b"%d" % n, b"x" * 100)
            repository.backup(store)
        real, expired, first = LocalObjectStore.get, False, repository.info().images[0].id

        def get(self: LocalObjectStore, name: str, offset: int = 0, length: int | None = None) -> bytes:
            nonlocal expired
            if name.startswith(f"{names.IMAGES}/{first}") and not expired:
                expired = True
                repository.expire(Keep(last=1, points="none"))
            return real(self, name, offset, length)

        monkeypatch.setattr(LocalObjectStore, "get", get)
        copy(tmp_path / "repo", tmp_path / "copy")
        monkeypatch.undo()
    assert expired
    with Repository.open(tmp_path / "copy") as copied:
        assert not copied.verify().damaged
        assert len(copied.info().images) == 1
        assert copied.restore(tmp_path / "restored").txid == 3


def test_a_copy_is_refused_where_something_else_is(store: Store[Any, Any], tmp_path: Path) -> None:
    Repository.init(tmp_path / "repo").close()
    Repository.init(tmp_path / "other").close()
    with pytest.raises(ForeignStore, match="is another repository"):
        copy(tmp_path / "repo", tmp_path / "other")
    with pytest.raises(InvalidInput, match="into itself"):
        copy(tmp_path / "repo", tmp_path / "repo")
    with pytest.raises(RepositoryMissing):
        copy(tmp_path / "nothing", tmp_path / "copy")


def test_a_copy_in_which_somebody_wrote_is_refused(store: Store[Any, Any], tmp_path: Path) -> None:
    """It has lost the object that says that it is a copy for a while."""
    with Repository.init(tmp_path / "repo") as repository:
        copy(tmp_path / "repo", tmp_path / "copy")
        with open_storage(tmp_path / "copy") as other:
            said = other.get(names.COPY_OF)
            other.delete(names.COPY_OF)
            with Repository.open(tmp_path / "copy") as copied:
                copied.backup(store)
            other.put(names.COPY_OF, said)
        with pytest.raises(Diverged, match="which of the two"):
            copy(tmp_path / "repo", tmp_path / "copy")
        for _ in range(3):
            repository.backup(store)
        with pytest.raises(Diverged, match="somebody wrote"):
            copy(tmp_path / "repo", tmp_path / "copy")
