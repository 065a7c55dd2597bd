"""Storage in a bucket behind a proxy that spoils single requests: what is put is there in the end, once, and nothing
half is taken for whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
from s3_proxy import FAULTS, Fault, Faults, proxy
from s3_rig import BUCKET, use, versitygw

from holdfast.backup.repository.errors import ObjectExists, ObjectMissing, StorageUnavailable
from holdfast.backup.repository.storage.interface import ObjectStore
from holdfast.backup.repository.storage.probe import probe
from holdfast.backup.repository.storage.putting import TRIES, put_own
from holdfast.backup.repository.storage.url import open_storage
from holdfast.engine.env import REAL, Env
from holdfast.engine.testing.disks.quiet import SetClock

pytest.importorskip("obstore")
pytestmark = pytest.mark.fault("versitygw")

NO_TIME = replace(REAL, clock=SetClock())
DATA = os.urandom(300_000)
_prefixes = count()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    with versitygw(tmp_path_factory.mktemp("versitygw")) as port, proxy(port) as faults:
        yield faults


@pytest.fixture
def store(faulty: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Storage that is empty, behind the proxy. It makes pauses of its own, by a clock that is set."""
    faulty.begin()
    use(monkeypatch, faulty.port)
    with _opened(NO_TIME) as store:
        yield store
    faulty.begin()


def _opened(env: Env) -> ObjectStore:
    return open_storage(f"s3://{BUCKET}/faults/{next(_prefixes)}", env)


def _everything(store: ObjectStore) -> None:
    """One request for each kind of call, or so."""
    put_own(store, "a/b", DATA, NO_TIME)
    assert store.get("a/b") == DATA
    assert store.get("a/b", 1000, 250_000) == DATA[1000:251_000]
    assert [(found.name, found.size) for found in store.list("a/")] == [("a/b", len(DATA))]
    with pytest.raises(ObjectExists):
        put_own(store, "a/b", DATA[:-1], NO_TIME)
    store.delete("a/b")
    with pytest.raises(ObjectMissing):
        store.get("a/b")


def test_the_proxy_spoils_nothing_by_itself(faulty: Faults, store: ObjectStore) -> None:
    _everything(store)
    assert faulty.requests == ["PUT", "GET", "GET", "GET", "PUT", "GET", "POST", "GET"]
    assert not faulty.struck


@pytest.mark.parametrize("fault", FAULTS)
def test_any_request_may_be_spoiled(faulty: Faults, store: ObjectStore, fault: Fault) -> None:
    for number in range(1, 9):
        with _opened(NO_TIME) as fresh:
            faulty.begin({number: fault})
            _everything(fresh)
            assert faulty.struck == 1, number


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoiled_put_is_whole_or_not_there(faulty: Faults, store: ObjectStore, fault: Fault) -> None:
    """And is not sent again by itself, unless the server said that it did not do it."""
    faulty.begin({1: fault})
    done = True
    try:
        store.put("a", DATA)
    except StorageUnavailable:
        done = False
    assert faulty.requests == (["PUT", "HEAD", "PUT"] if fault == "conflict" else ["PUT"])
    assert done == (fault in ("conflict", "cut body"))  # the answer to a put has no body
    if done or fault in ("answer lost", "failed after it"):
        assert store.get("a") == DATA
        with pytest.raises(ObjectExists):
            store.put("a", b"other")
    else:
        with pytest.raises(ObjectMissing):
            store.get("a")
        store.put("a", b"other")
    put_own(store, "b", DATA, NO_TIME)
    assert store.get("b") == DATA


def test_a_conflict_over_a_name_that_is_taken_is_a_refusal(faulty: Faults, store: ObjectStore) -> None:
    """As Azure says it."""
    store.put("a", b"first")
    faulty.begin({1: "conflict"})
    with pytest.raises(ObjectExists):
        store.put("a", b"second")


def test_tries_come_to_an_end(faulty: Faults, store: ObjectStore) -> None:
    store.put("a", DATA)
    faulty.begin(always="slow down")
    with pytest.raises(StorageUnavailable, match="SlowDown"):
        put_own(store, "b", DATA, NO_TIME)
    assert faulty.requests == ["PUT"] * TRIES
    faulty.begin(always="slow down")
    with pytest.raises(StorageUnavailable, match="SlowDown"):
        store.get("a")
    assert faulty.requests == ["GET"] * TRIES
    faulty.begin(dict.fromkeys(range(1, 2 * TRIES, 2), "conflict"))
    with pytest.raises(StorageUnavailable, match="ConditionalRequestConflict"):
        store.put("b", DATA)
    assert faulty.requests == ["PUT", "HEAD"] * TRIES
    faulty.begin()
    with pytest.raises(ObjectMissing):
        store.get("b")


def test_a_body_that_is_always_cut_is_never_an_object(faulty: Faults, store: ObjectStore) -> None:
    store.put("a", DATA)
    faulty.begin(always="cut body")
    for offset, length in ((0, None), (7, 100_000), (7, None)):
        with pytest.raises(StorageUnavailable):
            store.get("a", offset, length)


def test_a_probe_gets_over_a_lost_answer(faulty: Faults, store: ObjectStore) -> None:
    faulty.begin({1: "answer lost"})
    assert probe(store, NO_TIME).removed
    assert list(store.list("")) == []
