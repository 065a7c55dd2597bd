"""A repository in a bucket, by the real client: its life, and each request of each of its verbs going wrong in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from s3_proxy import FAULTS, Fault, proxy
from s3_rig import BUCKET, moto, use, versitygw

from holdfast.backup import Keep, Repository
from holdfast.backup.repository.copying import copy, promote
from holdfast.backup.repository.errors import RepositoryExists, StorageUnavailable
from holdfast.engine import MemoryEngine, Store
from holdfast.engine.env import REAL, Clock, Env
from holdfast.engine.errors import InvalidInput
from holdfast.engine.source.local import LocalSource
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.support import counters

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


# --- verb by verb -------------------------------------------------------------------------------------------------


@dataclass
class Bucket:
    """A repository of `store` in a bucket. `place`: for what is restored."""

    url: str
    store: Store[Any, Any]
    place: Path
    env: Env

    def opened(self, url: str | None = None) -> Repository:
        return Repository.open(url or self.url, env=self.env)

    @contextmanager
    def repository(self) -> Iterator[Repository]:
        with self.opened() as repository:
            yield repository

    @property
    def last(self) -> int:
        return self.store.published.txid

    def reached(self) -> int:
        """The last transaction that it restores to."""
        with self.repository() as repository:
            return max(bounds.last for bounds in repository.info().branches[0].restores_to)

    def again(self) -> str:
        """Another place in the bucket."""
        return f"{self.url}-{next(_numbers)}"

    def init(self) -> None:
        url = self.again()
        made = ""
        try:
            with Repository.init(url, env=self.env) as repository:
                made = repository.id
        except StorageUnavailable:
            with suppress(RepositoryExists):
                Repository.init(url, env=self.env).close()
        with self.opened(url) as repository:
            assert repository.id == made or not made

    def backup(self) -> None:
        put(self.store)
        self.store.checkpoint()
        with self.repository() as repository:
            report = repository.backup(self.store, block_bytes=4096)
            assert report.image in [image.id for image in repository.info().images]

    def archive(self) -> None:
        """And merge."""
        with self.repository() as repository, closing(repository.archiver(LocalSource(self.store))) as archiver:
            for _ in range(3):
                put(self.store)
                archiver.step()
            assert archiver.end.txid == self.last

    def mark(self) -> None:
        name = f"mark {next(_numbers)}"
        with self.repository() as repository:
            assert repository.mark(name)["name"] == name
            repository.unmark(name)
            assert name not in [mark["name"] for mark in repository.info().marks]

    def expire(self) -> None:
        with self.repository() as repository:
            repository.expire(Keep(points="none"))
            assert len(repository.info().images) == 1

    def restore(self) -> None:
        with self.repository() as repository:
            txid = self.reached()
            place = self.place / str(next(_numbers))
            assert repository.restore(place, to_txid=txid).txid == txid
        shows(place, txid)

    def rehearse(self) -> None:
        with self.repository() as repository:
            assert repository.rehearse(scratch=self.place).txid == self.reached()

    def verify(self) -> None:
        with self.repository() as repository:
            assert repository.verify().damaged == ()

    def info(self) -> None:
        with self.repository() as repository:
            assert repository.info().images
            assert list(repository.ls())

    def synthesize(self) -> None:
        with self.repository() as repository:
            report = repository.synthesize(scratch=self.place)
            assert report.image in [image.id for image in repository.info().images]

    def view(self) -> None:
        with self.repository() as repository, repository.view(scratch=self.place) as view:
            assert len(dict(view.items())) == view.txid

    def copied(self) -> None:
        """Copy, bring the copy up to date, and have it take the place of what it is a copy of."""
        to = self.again()
        for remove in (False, True):
            self.until_done(partial(copy, self.url, to, remove=remove, env=self.env))
        self.until_done(lambda: promote(to, env=self.env))
        with self.opened(to) as found, self.repository() as repository:
            assert found.id == repository.id
            assert found.verify().damaged == ()

    def until_done(self, call: Callable[[], Any]) -> None:
        """Promoted already, an earlier call whose answer was lost had done it."""
        for _ in range(5):
            try:
                call()
            except StorageUnavailable:
                continue
            except InvalidInput:
                assert _
            return
        raise AssertionError("it never ends")


VERBS = [Bucket.init, Bucket.backup, Bucket.archive, Bucket.mark, Bucket.restore, Bucket.rehearse, Bucket.verify,
         Bucket.info, Bucket.synthesize, Bucket.view, Bucket.copied, Bucket.expire]
IN_A_ROW = 6
"""More than a call is tried, so that some verbs fail."""
PROFILE = current_profile()
MOST = {"default": 4, "ci": 15, "nightly": 100_000}[PROFILE.name]
"""For each verb."""


@pytest.mark.parametrize("port", [VERSITYGW], indirect=True)
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_each_request_of_a_verb_goes_wrong(port: int, verb: Callable[[Bucket], None], store: Store[Any, Any],
                                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in turn, in each way, alone and with those after it. Whatever it says, nothing is lost, and the rerun is
    done."""
    monkeypatch.setattr("holdfast.backup.repository.archiver.FAN_IN", 2)
    env = replace(REAL, clock=Hurried())
    with proxy(port) as faults:
        use(monkeypatch, faults.port)
        url = f"s3://{BUCKET}/verbs/{next(_numbers)}"
        Repository.init(url, env=env).close()
        bucket = Bucket(url, store, tmp_path, env)
        put(store, 2)
        bucket.backup()
        bucket.archive()
        expires = verb is Bucket.expire
        bucket.backup()
        faults.begin()
        verb(bucket)
        cases = list(itertools.product(range(1, len(faults.requests) + 1), FAULTS, (1, IN_A_ROW)))
        struck, too_few, had = 0, 0, bucket.reached()
        tried = list(replace(PROFILE, stride=max(1, len(cases) // MOST)).some(cases))
        for first, fault, count in tried:
            if expires:  # there must be something to drop
                faults.begin()
                bucket.backup()
            faults.begin(dict.fromkeys(range(first, first + count), fault))
            with suppress(StorageUnavailable):
                verb(bucket)
            struck += faults.struck > 0
            too_few += len(faults.requests) < first  # what there is to do differs from run to run, by a request or two
            faults.begin()
            verb(bucket)
            had, before = bucket.reached(), had
            assert had >= before
        bucket.verify()
        bucket.restore()
        assert struck == len(tried) - too_few
        assert too_few < len(tried) / 5
        counters.count("spoiled requests", "repository", struck)
