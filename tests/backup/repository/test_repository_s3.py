"""A repository in a bucket, by the real client: its life, and each request of it going wrong in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import FAULTS, Fault, proxy
from s3_rig import BUCKET, moto, use, versitygw

from holdfast.backup import Keep, Repository
from holdfast.backup.repository.copying import copy
from holdfast.backup.repository.errors import StorageUnavailable
from holdfast.engine import MemoryEngine, Store
from holdfast.engine.env import REAL, Clock
from holdfast.engine.source.local import LocalSource

pytest.importorskip("obstore")

_numbers = count()


class Hurried(Clock):
    """Nobody waits for the pauses between tries."""

    def sleep(self, seconds: float) -> None:
        del seconds


VERSITYGW = pytest.param("versitygw", marks=pytest.mark.fault("versitygw"))
CASES = [*(pytest.param("versitygw", fault, marks=pytest.mark.fault("versitygw")) for fault in FAULTS),
         ("moto", "answer lost"), ("moto", "cut body")]


@pytest.fixture(scope="module")
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if request.param == "moto":
        pytest.importorskip("moto")
    with (moto if request.param == "moto" else versitygw)(tmp_path_factory.mktemp(request.param)) as port:
        yield port


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store[Any, Any]]:
    with Store.open(tmp_path / "store", MemoryEngine, create=True) as store:
        yield store


def put(store: Store[Any, Any], count: int = 1) -> None:
    for _ in range(count):
        with store.transaction() as tx:
            tx.put(b"%d" % store.published.txid, b"x" * 100)


def shows(place: Path, txid: int) -> None:
    with Store.open(place, MemoryEngine) as restored, restored.snapshot() as view:
        assert len(dict(view.items())) == txid


def live(url: str, store: Store[Any, Any], place: Path, env: Any) -> None:
    """Everything once. Each step may have to be done again."""
    def again(step: Any) -> Any:
        for _ in range(20):
            try:
                return step()
            except StorageUnavailable:
                continue
        raise AssertionError("it never ends")

    def opened(work: Any) -> Any:
        def step() -> Any:
            with Repository.open(url, env=env) as repository:
                return work(repository)

        return again(step)

    def archived(repository: Repository) -> None:
        archiver = repository.archiver(LocalSource(store))
        try:
            archiver.step()
        finally:
            archiver.close()

    put(store, 2)
    opened(lambda r: r.backup(store))
    put(store, 2)
    opened(archived)
    opened(lambda r: r.backup(store))
    put(store)
    opened(archived)
    last = store.published.txid
    assert opened(lambda r: r.rehearse()).txid == last
    report = opened(lambda r: r.restore(place, to_txid=last - 1, force=place.exists()))
    assert report.txid == last - 1
    shows(place, last - 1)
    opened(lambda r: r.expire(Keep(last=1, points="none")))
    verified = opened(lambda r: r.verify())
    assert verified.damaged == ()
    info = opened(lambda r: r.info())
    assert [bounds.last for bounds in info.branches[0].restores_to] == [last]


@pytest.mark.parametrize("port", ["moto", VERSITYGW], indirect=True)
def test_a_life_in_a_bucket(port: int, store: Store[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, port)
    url = f"s3://{BUCKET}/life/{next(_numbers)}"
    Repository.init(url).close()
    live(url, store, tmp_path / "restored", REAL)
    copy(url, tmp_path / "copy")
    copy(tmp_path / "copy", f"{url}-back")
    with Repository.open(f"{url}-back") as repository:
        assert repository.restore(tmp_path / "back").txid == store.published.txid


@pytest.mark.parametrize(("port", "fault"), CASES, indirect=["port"])
def test_requests_of_a_life_go_wrong(port: int, fault: Fault, store: Store[Any, Any], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh request, beginning at another one for each fault: nothing is lost, and a rerun finishes."""
    env = replace(REAL, clock=Hurried())
    with proxy(port) as faults:
        use(monkeypatch, faults.port)
        url = f"s3://{BUCKET}/faults/{next(_numbers)}"
        Repository.init(url, env=env).close()
        faults.begin(dict.fromkeys(range(1 + FAULTS.index(fault), 1000, 7), fault))
        live(url, store, tmp_path / "restored", env)
        assert faults.struck > 5
        faults.begin()
