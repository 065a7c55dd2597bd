"""Clusters of real processes whose coordinator is a bucket, under faults of members and of the bucket; and one whose
bucket holds its repository, too."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_rig import Cluster, torture
from member_worker import LIST
from porcupine_check import Porcupine
from s3_proxy import Fault, Faults, proxy
from s3_rig import BUCKET, use, versitygw
from wires import NAMES, Link, Links
from wires import Faults as Kinds

from holdfast.backup.bucket_coordinator import BucketCoordinator
from holdfast.backup.repository.repository import Repository
from holdfast.engine import MemoryEngine
from holdfast.engine.store.store import Store
from holdfast.engine.testing.support.profiles import current_profile, current_seed
from holdfast.replay.ha.document import ClusterDocument

pytest.importorskip("obstore")
pytestmark = pytest.mark.fault("versitygw")

FAULTS = {"default": 4, "ci": 15, "nightly": 200}
URL = f"s3://{BUCKET}/social"


class InABucket(Links):
    """A proxy in front of each member, one for each in front of the bucket, and one that spoils requests."""

    def __init__(self, root: Path, bucket: Faults) -> None:
        super().__init__(root, with_etcd=False)
        self._bucket = bucket
        self._ways = {name: Link(bucket.port) for name in NAMES}

    def __exit__(self, *_: object) -> None:
        for way in self._ways.values():
            way.close()
        super().__exit__()

    def inside(self, name: str, command: list[str]) -> list[str]:
        return ["env", f"AWS_ENDPOINT_URL=http://127.0.0.1:{self._ways[name].port}", *command]

    def coordinator(self, name: str) -> str:
        return URL

    def faults(self) -> Kinds:
        return super().faults() | {
            "isolate": (3, self._isolate), "cut from the bucket": (2, self._cut_from_bucket),
            "bucket slows down": (2, lambda _: self._spoiled("slow down")),
            "bucket loses answers": (3, lambda _: self._spoiled("answer lost"))}

    @contextlib.contextmanager
    def _isolate(self, name: str) -> Iterator[None]:
        """The others take it for dead at once, and it does not hear of its successor."""
        with self._cut_from_bucket(name), self.dead(name):
            yield

    @contextlib.contextmanager
    def _cut_from_bucket(self, name: str) -> Iterator[None]:
        self._ways[name].hold_back()
        try:
            yield
        finally:
            self._ways[name].mend()

    @contextlib.contextmanager
    def _spoiled(self, fault: Fault) -> Iterator[None]:
        """Every other request or so, of all members."""
        self._bucket.begin(dict.fromkeys(range(1, 2000, 2), fault))
        try:
            yield
        finally:
            self._bucket.begin()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """One that nobody else uses, behind a proxy."""
    with versitygw(tmp_path) as port, proxy(port) as faults:
        use(monkeypatch, port)
        yield faults


@pytest.mark.timeout(1200 if current_profile().name != "nightly" else 0)
def test_cluster_faults_over_a_bucket_lose_nothing_that_was_acknowledged(tmp_path: Path, bucket: Faults,
                                                                        porcupine: Porcupine,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    given, faults = current_seed(), FAULTS[current_profile().name]
    with capsys.disabled():
        figures = torture(tmp_path, "memory", faults, 5 if given is None else given, InABucket(tmp_path, bucket),
                          porcupine)
        print(f"\nmemory, bucket: {figures}")


@pytest.mark.timeout(180)
def test_a_bucket_runs_a_cluster_and_keeps_its_repository(tmp_path: Path, bucket: Faults) -> None:
    """The primary is killed, and another member leads. The repository, which has the same URL, restores what was
    acknowledged before and after."""
    with InABucket(tmp_path, bucket) as wires, Cluster(tmp_path, "memory", wires) as cluster:
        Repository.init(URL).close()
        members = "ha://" + ",".join(wires.listens(name) for name in NAMES)

        def write(number: int) -> None:
            cluster.until(lambda: "txid" in cluster.members[leader()].ask("append", number=number), "a commit")

        def leader() -> str:
            with BucketCoordinator(URL, "faults") as coordinator:
                data, _ = coordinator.read(10)
            assert data is not None
            return ClusterDocument.decode(data).leader or "a"

        write(1)
        first = leader()
        with Repository.open(URL) as repository:
            repository.backup(members)
        cluster.members[first].kill()
        begun = time.monotonic()
        cluster.until(lambda: leader() != first, "another primary")
        assert time.monotonic() - begun < 10
        write(2)
        cluster.start(first)
        assert cluster.members[first].ready.wait(40)
        cluster.agree()
        with Repository.open(URL) as repository:
            repository.backup(members)
            repository.restore(tmp_path / "restored", engine=MemoryEngine)
            names = {name.partition("/")[0] for name, _, _ in repository.ls()}
            repository.verify()
        assert {"coordinator", "catalog"} <= names
        with Store.open(tmp_path / "restored", MemoryEngine) as store, store.snapshot() as view:
            (key, numbers), = view.items()
        assert key == b"%06d" % (1 // LIST)
        assert {number for number, in struct.iter_unpack("<I", numbers)} == {1, 2}
        with BucketCoordinator(URL, "faults") as coordinator:
            data, _ = coordinator.read(10)
        assert data is not None
        document = ClusterDocument.decode(data)
        assert document.failovers[0].leader == "a"
        assert document.epoch >= 2
