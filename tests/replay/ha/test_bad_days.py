"""The bad days of a cluster, one test each: what an operator is told, that nothing acknowledged is lost, and that the
cluster goes on when the cause has passed. `docs/cluster.md` has a row for each.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from linked import LinkedPeer, until
from member_cluster import PATIENCE, Cluster

from holdfast.engine.env import Env
from holdfast.engine.errors import DiskFull, HoldfastError, OutcomeUnknown
from holdfast.engine.testing.disks.faulty import FaultyFiles
from holdfast.replay.ha.admin import Admin
from holdfast.replay.ha.coordinators.memory import MemoryCoordinator
from holdfast.replay.ha.service import Member


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for member in made.members.values():
        member.close()


class Disk(FaultyFiles):
    """A disk that can be full. `strict`: it does not even take what replaces a file's own bytes."""

    GROWING = frozenset({"create", "reserve", "make_directory"})

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()
        self.full = False
        self.refused = 0
        self._strict = strict
        self.before = self._before

    def _before(self, kind: str, path: Path) -> None:
        if self.full and (kind in self.GROWING or (kind in ("pwrite", "datasync") and (
                self._strict or path.suffix in (".new", ".part")))):
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def free(self, path: Path) -> int:
        return 1000 if self.full else super().free(path)


class Writer:
    """Writes key after key to whoever is primary. `acknowledged`: those that were."""

    def __init__(self, cluster: Cluster, size: int = 5_000) -> None:
        self.cluster = cluster
        self.acknowledged: list[bytes] = []
        self.errors: list[HoldfastError] = []
        self._size = size
        self._number = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._done.wait(0.002):
            for member in list(self.cluster.members.values()):
                if member.role != "primary":
                    continue
                self._number += 1
                key = b"%06d" % self._number
                try:
                    with member.transaction() as tx:
                        tx.put(key, bytes(self._size))
                except HoldfastError as error:
                    self.errors.append(error)
                else:
                    self.acknowledged.append(key)

    def goes_on(self, count: int = 20) -> None:
        """Wait until so many more are acknowledged."""
        upto = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= upto)

    def check(self) -> None:
        """All members agree, and have all that was acknowledged."""
        self.cluster.agree()
        for member in self.cluster.members.values():
            with member.snapshot() as view:
                assert set(self.acknowledged) <= {key for key, _ in view.items()}


def admin_of(cluster: Cluster) -> Admin:
    end = next(iter(cluster.network.ends.values()))
    return Admin(MemoryCoordinator(cluster.cell), lambda address, token: LinkedPeer(end, address))


def trouble(member: Member[Any, Any]) -> str:
    return str(member.status()["trouble"] or "")


@pytest.mark.parametrize("strict", [False, True])
def test_the_disk_of_a_follower_is_full(cluster: Cluster, strict: bool) -> None:
    """The others go on. It says so, serves reads, and follows again by itself when there is room."""
    disk = Disk(strict=strict)
    cluster.start("a", create=True)
    cluster.start("b")
    c = cluster.start("c", env=Env(files=disk))
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    with Writer(cluster) as writer:
        writer.goes_on()
        disk.full = True
        until(lambda: "room" in trouble(c) or "bytes left" in trouble(c))
        assert "goes on by itself" in trouble(c)
        writer.goes_on()
        assert cluster.members["a"].role == "primary"
        assert {m.name for m in admin_of(cluster).status().members if m.trouble} == {"c"}
        disk.full = False
        until(lambda: not trouble(c) and c.status()["connected"])
        writer.goes_on()
    writer.check()
    c.check()
    assert c.status()["votes"]


@pytest.mark.parametrize("strict", [False, True])
def test_the_disk_of_the_primary_is_full(cluster: Cluster, strict: bool) -> None:
    """Another voter takes over, and writes go on. The old one says why, and follows by itself when there is room."""
    disk = Disk(strict=strict)
    a = cluster.start("a", create=True, env=Env(files=disk))
    cluster.start("b")
    cluster.start("c")
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    with Writer(cluster) as writer:
        writer.goes_on()
        disk.full = True
        successor = cluster.primary(but="a")
        writer.goes_on()
        assert successor.role == "primary"
        until(lambda: "room" in trouble(a) or "bytes left" in trouble(a))
        assert any(isinstance(error, DiskFull | OutcomeUnknown) for error in writer.errors)
        disk.full = False
        until(lambda: not trouble(a) and a.status()["connected"])
        writer.goes_on()
    writer.check()
    a.check()


def test_the_disks_of_all_members_are_full(cluster: Cluster) -> None:
    """Nobody takes writes, each says so, and when there is room they go on without a hand."""
    disks = [Disk() for _ in "abc"]
    for name, disk in zip("abc", disks, strict=True):
        cluster.start(name, create=name == "a", env=Env(files=disk))
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    with Writer(cluster) as writer:
        writer.goes_on()
        for disk in disks:
            disk.full = True
        until(lambda: sum(bool(trouble(m)) for m in cluster.members.values()) >= 2)
        for disk in disks:
            disk.full = False
        writer.goes_on()
        until(lambda: not any(trouble(m) for m in cluster.members.values()))
    writer.check()
