"""Whether credentials could overwrite and delete what is there: tried, and told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from repository_rig import Objects, Rig
from s3_rig import BUCKET, IgnoresConditions, moto, served, use

from holdfast.backup.repository.errors import StorageDenied, StorageUnavailable
from holdfast.backup.repository.reports import Rights
from holdfast.backup.repository.repository import Repository
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.backup.repository.storage.probe import probe
from holdfast.backup.repository.storage.url import open_storage
from holdfast.engine.env import REAL, Env
from holdfast.engine.testing.disks.faulty import FaultyFiles


class Judged(Objects):
    """Storage that lets one overwrite and delete, or not, or does not say."""

    overwrite: bool | None = True
    delete_as: bool | None = True

    def replaceable(self, name: str, data: bytes) -> bool | None:
        assert name.startswith("probes/")
        if self.overwrite:
            self.objects[name] = data, 0
        return self.overwrite

    def delete(self, name: str) -> None:
        if self.delete_as is None:
            raise StorageUnavailable("no answer")
        if not self.delete_as:
            raise StorageDenied("you may not delete")
        super().delete(name)


@pytest.mark.parametrize(("overwrite", "delete", "append_only", "words"), [
    (True, True, False, "can overwrite and delete what is there"),
    (True, False, False, "can overwrite what is there"),
    (False, True, False, "can delete what is there"),
    (None, True, False, "can delete what is there"),
    (False, False, True, "append-only"),
    (None, False, None, "not known"),
    (False, None, None, "not known"),
])
def test_init_and_info_say_whether_credentials_are_append_only(
        overwrite: bool | None, delete: bool | None, append_only: bool | None, words: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 16. A backup needs neither right, so to lack one is not an error."""
    rig = Rig()
    storage = Judged(rig.clock, rig.objects)
    storage.overwrite, storage.delete_as = overwrite, delete
    monkeypatch.setattr("holdfast.backup.repository.repository.open_storage", lambda place, env: storage)
    made = Repository.init(tmp_path, env=rig.env)
    assert made.rights == Rights(append_only=append_only, overwrite=overwrite, delete=delete)
    assert words in str(made.rights)
    opened = Repository.open(tmp_path, env=rig.env)
    assert opened.info().rights is None, "nothing is put by looking"
    info = opened.info(rights=True)
    assert info.rights == made.rights
    assert words in str(info)
    assert any(name.startswith("probes/") for name in rig.objects) == (not delete)


def test_storage_that_does_not_say_is_not_known_to_be_append_only() -> None:
    """Storage of your own need not have the method."""
    rig = Rig()
    assert probe(Objects(rig.clock), rig.env).replaced is None


class AppendOnly(FaultyFiles):
    """A file system on which names are never taken away."""

    def rename(self, old: Path, new: Path) -> None:
        raise PermissionError(1, os.strerror(1), str(old))

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        if path.parent.name != ".tmp":
            raise PermissionError(1, os.strerror(1), str(path))
        super().unlink(path, missing_ok=missing_ok)


def test_whoever_may_put_into_a_directory_may_overwrite_and_delete(tmp_path: Path) -> None:
    with LocalObjectStore(tmp_path / "one") as store:
        probed = probe(store, REAL)
        assert (probed.replaced, probed.removed) == (True, True)
        store.put("a", b"first")
        assert store.replaceable("a", b"second")
        assert store.get("a") == b"second", "it was really tried"
    with LocalObjectStore(tmp_path / "two", env=Env(AppendOnly())) as store:
        probed = probe(store, REAL)
        assert (probed.replaced, probed.removed) == (False, False)
        assert [found.name for found in store.list("")] == [probed.name]
    assert os.listdir(tmp_path / "two" / ".tmp") == []


class Denies(IgnoresConditions):
    """A bucket whose policy asks for If-None-Match, and lets nobody remove anything."""

    asked_to_delete = 0

    def do_PUT(self) -> None:
        if self.headers["If-None-Match"] is None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        else:
            super().do_PUT()

    def do_POST(self) -> None:
        """As S3 says it: the answer is 200, and has an error for each object."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Denies.asked_to_delete += 1
        failed = "".join(f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                         for key in re.findall("<Key>([^<]*)</Key>", asked))
        self._answer(200, f"<DeleteResult>{failed}</DeleteResult>".encode())


def test_a_bucket_that_denies_is_believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's way to refuse a removal was taken for an outage, and tried for 7.5 s."""
    pytest.importorskip("obstore")
    objects: dict[str, bytes] = {}
    with served(Denies, objects=objects) as server:
        use(monkeypatch, server.server_address[1])
        with open_storage(f"s3://{BUCKET}/rights") as store:
            store.put("a", b"first")
            assert store.replaceable("a", b"second") is False
            with pytest.raises(StorageDenied, match="AccessDenied: Access Denied"):
                store.delete("a")
            assert Denies.asked_to_delete == 1
    assert list(objects.values()) == [b"first"]


def test_a_bucket_is_tried_with_a_put_without_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with moto(tmp_path) as port:
        use(monkeypatch, port)
        with open_storage(f"s3://{BUCKET}/rights") as store:
            probed = probe(store, REAL)
            assert (probed.replaced, probed.removed) == (True, True)
            assert list(store.list("")) == []
            store.put("a", b"first")
            assert store.replaceable("a", b"second")
            assert store.get("a") == b"second", "it was really tried"
