"""Storage in buckets of real servers: the contract, what they refuse, and one that a probe refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from s3_rig import BUCKET, IgnoresConditions, free_port, moto, served, use, versitygw

from holdfast.backup.repository.errors import StorageDenied, StorageUnavailable, StorageUnsuitable
from holdfast.backup.repository.storage.interface import ObjectStore
from holdfast.backup.repository.storage.probe import probe
from holdfast.backup.repository.storage.url import open_storage
from holdfast.backup.testing import ObjectStoreContract
from holdfast.engine.env import REAL
from holdfast.engine.errors import AccessDenied
from holdfast.engine.testing.disks.quiet import SetClock

pytest.importorskip("obstore")

_prefixes = count()


@pytest.fixture(scope="module")
def of_moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("moto")
    with moto(tmp_path_factory.mktemp("moto")) as port:
        yield port


@pytest.fixture(scope="module")
def of_versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with versitygw(tmp_path_factory.mktemp("versitygw")) as port:
        yield port


class _InABucket(ObjectStoreContract):
    url = ""

    def begin(self, patch: pytest.MonkeyPatch, port: int) -> None:
        use(patch, port)
        self.url = f"s3://{BUCKET}/contract/{next(_prefixes)}"

    def open(self) -> ObjectStore:
        return open_storage(self.url)


class TestMoto(_InABucket):
    @pytest.fixture(autouse=True)
    def a_prefix(self, of_moto: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begin(monkeypatch, of_moto)


@pytest.mark.fault("versitygw")
class TestVersitygw(_InABucket):
    @pytest.fixture(autouse=True)
    def a_prefix(self, of_versitygw: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begin(monkeypatch, of_versitygw)


@pytest.mark.fault("versitygw")
def test_wrong_credentials_are_denied(of_versitygw: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, of_versitygw, secret="wrong")
    with open_storage(f"s3://{BUCKET}/denied") as store:
        for call in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list("")),
                     lambda: store.delete("a"), lambda: probe(store, REAL)):
            with pytest.raises(StorageDenied, match="SignatureDoesNotMatch") as caught:
                call()
            assert isinstance(caught.value, AccessDenied)
            assert "wrong" not in str(caught.value)


@pytest.mark.fault("versitygw")
def test_a_missing_bucket_is_not_a_missing_object(of_versitygw: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, of_versitygw)
    with open_storage("s3://another-bucket/prefix") as store:
        for call in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list(""))):
            with pytest.raises(StorageUnsuitable, match="NoSuchBucket"):
                call()


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, free_port())
    with open_storage(f"s3://{BUCKET}", replace(REAL, clock=SetClock())) as store:
        for call in (lambda: store.put("a", b""), lambda: store.get("a"), lambda: list(store.list(""))):
            with pytest.raises(StorageUnavailable):
                call()


def test_a_server_that_ignores_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the probe, which leaves nothing there."""
    objects: dict[str, bytes] = {}
    with served(IgnoresConditions, objects=objects) as server:
        use(monkeypatch, server.server_address[1])
        with open_storage(f"s3://{BUCKET}/prefix") as store:
            with pytest.raises(StorageUnsuitable, match="If-None-Match"):
                probe(store, REAL)
            assert objects == {}
            store.put("a", b"first")
            store.put("a", b"second")
            assert store.get("a") == b"second"


def test_conditions_that_the_environment_turns_off_are_missed(of_moto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, of_moto)
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with open_storage(f"s3://{BUCKET}/off") as store, pytest.raises(StorageUnsuitable):
        probe(store, REAL)


@pytest.mark.fault("versitygw")
def test_objects_of_the_gateway_are_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the server that we think it is."""
    with versitygw(tmp_path) as port:
        use(monkeypatch, port)
        with open_storage(f"s3://{BUCKET}/prefix") as store:
            store.put("a/b", b"content")
    assert (tmp_path / "objects" / BUCKET / "prefix" / "a" / "b").read_bytes() == b"content"
