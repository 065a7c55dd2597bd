"""The bad days of a cluster, one test each: what an operator is told, that nothing acknowledged is lost, and that the
cluster goes on when the cause has passed. `docs/cluster.md` has a row for each.
"""

from __future__ import annotations

import datetime
import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import cluster_rig
import fault_rig
import histories
import pytest
import trustme
from member_cluster import PATIENCE, Cluster, put
from store_kinds import RECORDS
from wires import Links

from holdfast import backup
from holdfast.engine import MemoryEngine
from holdfast.engine.env import REAL, Clock, Env
from holdfast.engine.errors import (
    ConditionNotMet,
    DiskFull,
    HoldfastError,
    OutcomeUnknown,
    StoreLocked,
    UnsupportedFormat,
    WrongEngine,
)
from holdfast.engine.model import document
from holdfast.engine.model.positions import Position
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log
from holdfast.replay.ha import recreate
from holdfast.replay.ha.admin import Admin
from holdfast.replay.ha.coordinator import Version
from holdfast.replay.ha.coordinators.memory import Fault as Outage
from holdfast.replay.ha.coordinators.memory import MemoryCell, MemoryCoordinator
from holdfast.replay.ha.errors import MemberRefused, NotPrimary
from holdfast.replay.ha.peer.transport import HttpTransport
from holdfast.replay.ha.service import Member
from holdfast.replay.ha.state import kept_document
from holdfast.replay.simulation.faults import Fault
from holdfast.replay.simulation.run import run
from holdfast.replay.testing.members import LinkedPeer, until


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
        assert set(dict(c.snapshot().items())) <= set(writer.acknowledged)
        disk.full = False
        until(lambda: not trouble(c) and c.status()["connected"])
        writer.goes_on()
    writer.check()
    c.check()
    assert c.status()["votes"]
    cluster.stop("c")
    disk.full = True
    with pytest.raises(DiskFull, match=r"no room to write .*IDENTITY|bytes left"):
        cluster.start("c", env=Env(files=disk), keep=False)


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


def test_a_transaction_that_is_open_when_a_primary_without_room_is_deposed(cluster: Cluster) -> None:
    """Its store cannot be opened anew before there is room. The commit does not wait for that: its outcome is not
    known."""
    disk = Disk()
    a = cluster.start("a", create=True, env=Env(files=disk))
    cluster.start("b")
    cluster.start("c")
    cluster.voting("a", "b", "c")
    put(a, b"1")
    began, goes_on, ended = threading.Event(), threading.Event(), []

    def write() -> None:
        try:
            with a.transaction() as tx:
                tx.put(b"open", b"x")
                began.set()
                goes_on.wait(PATIENCE)
        except HoldfastError as error:
            ended.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert began.wait(PATIENCE)
    disk.full = True
    a._running().driver.tell(lambda m: m.asked("b", 100, Future(), a._env.clock.monotonic()))  # it is deposed
    until(lambda: "store" in a._running().driver.hindered)
    goes_on.set()
    writer.join(PATIENCE)
    assert [type(error) for error in ended] == [OutcomeUnknown]
    disk.full = False


def test_a_follower_that_cannot_keep_up_is_dropped_by_name(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The primary does not keep log for it for ever, and no commit waits for it. It copies the state anew."""
    disk = Disk()
    a = cluster.start("a", create=True)
    b = cluster.start("b")
    c = cluster.start("c", env=Env(files=disk))
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    held = disk.hold("datasync", "sync", only=is_log)
    for number in range(3_000):  # more than the stream takes, so the rest must be read from the log
        with a.transaction(durability="pipelined") as tx:
            tx.put(b"%06d" % number, bytes(500))
    put(a, b"acknowledged while it lags")
    assert held.reached.wait(PATIENCE)
    until(lambda: b.store.durable == a.store.durable)
    a.store.checkpoint()
    a.store.log.prune(a.store.log.segments()[:-1])
    assert a.store.log.base.txid > c.store.durable.txid
    before = c._running().local.reopened
    held.go.set()
    disk.before = disk._before
    until(lambda: "c cannot keep up, and is dropped" in caplog.text)
    until(lambda: c._running().local.reopened > before and c.status()["connected"])
    assert "c is seeded anew from a" in caplog.text
    put(cluster.primary(), b"after")
    cluster.agree()
    assert c.snapshot().get(b"acknowledged while it lags") == b"value"
    until(lambda: c.status()["votes"] and not trouble(c))


@pytest.mark.fault("small tmpfs")
def test_a_real_disk_is_full_under_the_primary_and_then_under_a_follower(cluster: Cluster) -> None:
    """As above, by a file system that has no room."""
    with fault_rig.tmpfs(cluster.root / "disk", 24 << 20) as disk:
        a = cluster.start("a", directory="disk/a", create=True)
        try:
            cluster.start("b")
            cluster.start("c")
            until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
            with Writer(cluster) as writer:
                writer.goes_on()
                for _ in ("primary", "follower"):
                    fill(disk / "ballast")
                    until(lambda: a.role != "primary" and bool(trouble(a)))
                    writer.goes_on()
                    (disk / "ballast").unlink()
                    until(lambda: not trouble(a) and bool(a.status()["connected"]))
                    writer.goes_on()
            writer.check()
        finally:
            cluster.stop("a")  # the disk can only be taken away when nothing is open there


def fill(path: Path) -> None:
    """Write a file until there is no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(64 << 10)):
            pass


class Flaky(MemoryEngine):
    """An engine that raises while `broken` is set."""

    broken = False

    def apply(self, records: Any) -> None:
        if self.broken:
            raise RuntimeError("the engine is broken")
        super().apply(records)


def test_the_engine_of_a_follower_raises(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on. It opens its store again until that helps, and its status says what was raised."""
    cluster.start("a", create=True)
    cluster.start("b")
    cluster.engine = Flaky
    c = cluster.start("c")
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    with Writer(cluster) as writer:
        writer.goes_on()
        with monkeypatch.context() as patch:
            patch.setattr(Flaky, "broken", True)
            until(lambda: "the engine is broken" in trouble(c))
            writer.goes_on()
            assert cluster.members["a"].role == "primary"
        until(lambda: not trouble(c) and c.status()["connected"])
        writer.goes_on()
    writer.check()
    c.check()
    assert c.status()["votes"]


# --- directories that lie --------------------------------------------------------------------------------------------


def test_a_backup_takes_the_place_of_a_members_directory(cluster: Cluster) -> None:
    """It is refused, because it may lack what the member has acknowledged, and the cluster goes on without it. With an
    empty directory, the member copies its state."""
    a, b, _ = cluster.three()
    put(a, b"1")
    backup.run(b.store, cluster.root / "backup")
    put(a, b"acknowledged after the backup")
    cluster.stop("c")
    shutil.rmtree(cluster.root / "c")
    shutil.copytree(cluster.root / "backup", cluster.root / "c")
    with pytest.raises(HoldfastError, match=r"is a backup, not the store of a member.*join with an empty directory"):
        cluster.start("c", keep=False)
    put(a, b"2")
    shutil.rmtree(cluster.root / "c")
    c = cluster.start("c")
    cluster.agree()
    assert c.snapshot().get(b"acknowledged after the backup") == b"value"
    until(lambda: c.status()["votes"])


def test_a_restored_store_takes_the_place_of_a_members_directory(cluster: Cluster, caplog: pytest.LogCaptureFixture,
                                                                 ) -> None:
    """It is the same store on a branch of its own. What only that branch has is set aside, and said; then the member
    copies the cluster's state, and votes only after that."""
    a, b, _ = cluster.three()
    put(a, b"1")
    backup.run(b.store, cluster.root / "backup")
    put(a, b"acknowledged after the backup")
    cluster.stop("c")
    shutil.rmtree(cluster.root / "c")
    backup.restore(cluster.root / "backup", cluster.root / "c")
    with Store.open(cluster.root / "c", MemoryEngine) as restored, restored.transaction() as tx:
        tx.put(b"only here", b"value")
    c = cluster.start("c")
    put(a, b"2")
    cluster.agree()
    assert set(dict(c.snapshot().items())) == {b"1", b"acknowledged after the backup", b"2"}
    [aside] = c.status()["set_aside"]
    assert aside["published"]
    assert "c has branched" in caplog.text
    until(lambda: c.status()["votes"])


def test_a_members_directory_is_set_back_to_an_old_copy_of_itself(cluster: Cluster) -> None:
    """It has forgotten what it acknowledged, so it neither votes nor follows. Its status says what to do."""
    a, _, _ = cluster.three()
    put(a, b"1")
    cluster.stop("c")
    shutil.copytree(cluster.root / "c", cluster.root / "old")
    cluster.start("c")
    put(a, b"acknowledged after the copy", ack="all")
    cluster.stop("c")
    shutil.rmtree(cluster.root / "c")
    shutil.copytree(cluster.root / "old", cluster.root / "c")
    c = cluster.start("c", ready=False)
    until(lambda: "was set back" in trouble(c))
    assert "begin with an empty directory" in trouble(c)
    assert not c.status()["votes"]
    put(a, b"2")
    cluster.stop("c")
    shutil.rmtree(cluster.root / "c")
    c = cluster.start("c")
    cluster.agree()
    assert c.snapshot().get(b"acknowledged after the copy") == b"value"
    until(lambda: c.status()["votes"])


# --- what does not belong together -----------------------------------------------------------------------------------


def test_two_clusters_have_one_name(tmp_path: Path) -> None:
    """A member that is led to the other cluster's coordinator is refused by the ids of both stores; one that runs when
    its coordinator gets the other's document takes no part. Neither cluster is touched."""
    one, other = Cluster(tmp_path / "one"), Cluster(tmp_path / "other")
    try:
        a, b, _ = one.three()
        put(a, b"of one")
        x = other.start("a", create=True)
        put(x, b"of the other")
        ids = f"cluster social has store {x.store_id[:8]} now.*one of that name with store {a.store_id[:8]}"
        one.stop("c")
        mine, one.cell = one.cell, other.cell
        for create in (False, True):
            with pytest.raises(MemberRefused, match=ids):
                one.start("c", create=create, keep=False)
        one.cell = mine
        with mine.changed:
            data, mine.data, mine.swaps = mine.data, other.cell.data, mine.swaps + 1
            mine.version = Version(mine.version.number + 1, b"another cluster's")
            mine.changed.notify_all()
        until(lambda: all(x.store_id[:8] in trouble(m) and a.store_id[:8] in trouble(m) for m in (a, b)))
        assert b.snapshot().get(b"of one") == b"value"
        with mine.changed:
            mine.data, mine.swaps, mine.version = data, mine.swaps + 1, Version(mine.version.number + 1, b"mine again")
            mine.changed.notify_all()
        one.start("c")
        put(one.primary(), b"goes on")
        one.agree()
        assert dict(x.snapshot().items()) == {b"of the other": b"value"}
        put(x, b"goes on, too")
    finally:
        for member in (*one.members.values(), *other.members.values()):
            member.close()


class Older(MemoryEngine):
    """The release before: it does not read what `Newer` writes."""


class Newer(MemoryEngine):
    """The release after."""

    payload_version = 2
    reads_payloads = frozenset({1, 2})


def test_a_follower_does_not_read_the_records_of_a_newer_primary(cluster: Cluster) -> None:
    """It says so, holds the log, acknowledges, shows what it can read, and does not become primary. With the newer
    release it shows all."""
    cluster.engine = Newer
    a = cluster.start("a", create=True)
    b = cluster.start("b")
    cluster.engine = Older
    c = cluster.start("c")
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    before = c.position().txid
    put(a, b"1")
    txid = put(a, b"2", ack="all")
    until(lambda: "payload version 2" in trouble(c))
    assert "install the primary's release of the engine" in trouble(c)
    assert c.position().txid == before
    assert c.store.durable.txid >= txid
    c.snapshot().close()
    c.check()
    cluster.stop("a")
    assert cluster.primary() is b
    c._answers().command("failover", {})  # an operator errs
    until(lambda: cluster.document().leader == "c")
    until(lambda: b.role == "primary" and cluster.document().leader == "b")
    assert c.role == "follower"
    cluster.stop("c")
    cluster.engine = Newer
    c = cluster.start("c")
    cluster.start("a")
    put(cluster.primary(), b"3")
    cluster.agree()
    assert set(dict(c.snapshot().items())) == {b"1", b"2", b"3"}
    assert not trouble(c)


# --- who may talk to whom: on real sockets ---------------------------------------------------------------------------


def served(root: Path, name: str, **more: Any) -> Member[Any, Any]:
    return Member.open(root / name, MemoryEngine, cluster="social", name=name, listen=more.pop("listen", "127.0.0.1:0"),
                       ttl=2.0, coordinator=f"file:{root / 'co'}", settings=Settings(wait_s=5), **more)


def write(members: dict[str, Member[Any, Any]], key: bytes, patience: float = PATIENCE) -> None:
    """Write through whoever is primary, again and again until it is acknowledged."""
    def acknowledged() -> bool:
        for member in members.values():
            with suppress(NotPrimary, OutcomeUnknown, ConditionNotMet):
                put(member, key)
                return True
        return False

    until(acknowledged, patience)


def voters_are(members: dict[str, Member[Any, Any]], names: str) -> bool:
    return all(set(m.status()["voters"]) == set(names) and m.status()["votes"] for m in members.values())


@contextmanager
def serving(root: Path, **more: Any) -> Iterator[dict[str, Member[Any, Any]]]:
    """Three members by name; whoever is in the mapping at the end is closed."""
    members: dict[str, Member[Any, Any]] = {}
    try:
        for name in "abc":
            members[name] = served(root, name, create=name == "a", **more)
            members[name].wait_ready(PATIENCE)
        until(lambda: voters_are(members, "abc"))
        yield members
    finally:
        for member in members.values():
            member.close()


def again(members: dict[str, Member[Any, Any]], root: Path, name: str, **more: Any) -> Member[Any, Any]:
    """Stop a member, and start it otherwise."""
    members.pop(name).close()
    members[name] = member = served(root, name, **more)
    return member


@pytest.mark.timeout(180)
def test_a_members_token_differs(tmp_path: Path) -> None:
    """It follows nobody, and its status says that the token is wrong. The others go on. With the right token it
    follows."""
    token = {"token": "the-token-of-all-members"}
    with serving(tmp_path, **token) as members:
        write(members, b"1")
        c = again(members, tmp_path, "c", token="a-token-of-its-very-own")
        until(lambda: "token is wrong" in trouble(c))
        assert "give all members the same cluster token" in trouble(c)
        write(members, b"2")
        c = again(members, tmp_path, "c", **token)
        c.wait_ready(PATIENCE)
        until(lambda: dict(c.snapshot().items()).keys() == {b"1", b"2"})
        assert not trouble(c)


@pytest.mark.timeout(180)
def test_a_members_certificate_has_expired(tmp_path: Path) -> None:
    """Nobody follows it, so it does not become primary, although an operator asks it to. The others say why, and go on.
    With a new certificate all is as before."""
    authority, now = trustme.CA(), datetime.datetime.now(datetime.UTC)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def certificate(name: str, **dates: Any) -> dict[str, Any]:
        authority.issue_cert("127.0.0.1", **dates).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / name))
        return {"ca": tmp_path / "ca.pem", "tls_certificate": tmp_path / name}

    good = certificate("good.pem")
    day = datetime.timedelta(days=1)
    old = certificate("old.pem", not_before=now - 3 * day, not_after=now - day)
    with serving(tmp_path, **good) as members:
        write(members, b"1")
        again(members, tmp_path, "a", **old)
        others = {name: members[name] for name in "bc"}
        write(others, b"2")  # one of them leads, and the other follows it
        a = members["a"]
        a.wait_ready(PATIENCE)
        until(lambda: a.status()["votes"])
        a._answers().command("failover", {})
        until(lambda: any("certificate has expired" in trouble(m) for m in others.values()))
        write(others, b"3")
        again(members, tmp_path, "a", **good).wait_ready(PATIENCE)
        until(lambda: voters_are(members, "abc"))
        write(members, b"4")
        until(lambda: all(set(dict(m.snapshot().items())) == {b"1", b"2", b"3", b"4"} for m in members.values()))
        assert not any(trouble(m) for m in members.values())


class Release(HttpTransport):
    """The transport of a member of some release."""

    def __init__(self, newest: int, **more: Any) -> None:
        super().__init__("127.0.0.1:0", silence=2.0, **more)
        self.versions = newest, newest - 1  # each release also speaks the version before


@pytest.mark.timeout(180)
def test_releases_one_apart_work_together_and_two_apart_do_not(tmp_path: Path) -> None:
    """So a cluster is upgraded member by member, followers first. A member that is two releases ahead is refused by
    name, and the others go on without it."""
    numbers = iter(range(100))
    members: dict[str, Member[Any, Any]] = {}
    try:
        for name in "abc":
            members[name] = served(tmp_path, name, create=name == "a", transport=Release(2))
            members[name].wait_ready(PATIENCE)
        until(lambda: voters_are(members, "abc"))
        for name in "bca":
            again(members, tmp_path, name, transport=Release(3)).wait_ready(PATIENCE)
            until(lambda: voters_are(members, "abc"))
            write(members, b"%d" % next(numbers))
        c = again(members, tmp_path, "c", transport=Release(5))
        until(lambda: "speaks versions" in trouble(c))
        assert "4 to 5" in trouble(c)
        assert "2 to 3" in trouble(c)
        assert "upgrade the older member; versions may be one apart" in trouble(c)
        write({name: members[name] for name in "ab"}, b"%d" % next(numbers))
        c = again(members, tmp_path, "c", transport=Release(4))
        c.wait_ready(PATIENCE)
        write(members, b"%d" % next(numbers))
        until(lambda: len(dict(c.snapshot().items())) == 5 and not trouble(c))
    finally:
        for member in members.values():
            member.close()


# --- time ------------------------------------------------------------------------------------------------------------


class SetClock(Clock):
    """A wall clock that somebody sets. `by_s`: how far it is off."""

    by_s = 0.0

    def now_us(self) -> int:
        return super().now_us() + int(self.by_s * 1e6)


def test_the_clock_is_put_forward_and_back(cluster: Cluster) -> None:
    """Leases are measured by clocks that nobody sets, so nobody is deposed. The times of commits only grow, on each
    primary and from one to the next, so what was "complete until" a time stays so."""
    clocks = {name: SetClock() for name in "abc"}
    for name, clock in clocks.items():
        cluster.start(name, create=name == "a", env=Env(clock=clock))
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    epoch = cluster.document().epoch
    with Writer(cluster) as writer:
        for name, by_s in (("a", 86_400.0), ("b", -86_400.0), ("c", 1e8), ("a", -1e8), ("b", 3.0), ("c", -3.0)):
            clocks[name].by_s = by_s
            renewals = cluster.document().renewals
            until(lambda past=renewals: cluster.document().renewals > past + 3)  # type: ignore[misc]
            writer.goes_on()
        assert cluster.document().epoch == epoch
        cluster.members["a"].switch_over("b")
        until(lambda: cluster.members["b"].role == "primary")
        writer.goes_on()
    writer.check()
    b = cluster.members["b"]
    times = [record.time_us for record in b.store.log.cursor(Position(0, b.store.log.chain_at(0))).read()]
    assert len(times) == b.position().txid
    assert all(one < other for one, other in pairwise(times))


def test_the_coordinator_is_gone_for_an_hour() -> None:
    """Nobody is promoted meanwhile, and nobody spins. Afterwards there is a primary, and the logs are equal. The hour
    is simulated; the simulation checks the promises at each step."""
    report = run(7, seconds=3_660.0, faults=[Fault(30.0, "coordinator", 0, 3_600.0, 0)])
    assert report.seconds > 3_660
    assert report.failovers <= 2
    assert report.commits > 0
    assert report.ticks < 100 * report.seconds


def test_the_coordinator_is_gone_for_a_while(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The primary steps down and says why, reads go on, writes are refused with what to do. Afterwards one takes over
    without a hand."""
    a, b, c = cluster.three()
    put(a, b"1")
    epoch = cluster.document().epoch
    for coordinator in cluster.coordinators.values():
        coordinator.fault = Outage.OUTAGE
    until(lambda: a.role == "follower")
    with pytest.raises(NotPrimary, match="not the primary") as refused:
        put(a, b"2")
    assert "try again" in refused.value.hint
    assert "could not renew its lease at the coordinator" in caplog.text
    for member in (a, b, c):
        assert member.snapshot().get(b"1") == b"value"
    cluster.mend()
    put(cluster.primary(), b"3")
    assert cluster.document().epoch > epoch
    cluster.agree()


# --- too few are left ------------------------------------------------------------------------------------------------


def test_two_of_three_members_are_gone(cluster: Cluster) -> None:
    """Writes wait and are not shown, reads go on, and nobody else could lead. When one is back, the write returns."""
    a, _, _ = cluster.three()
    put(a, b"1")
    cluster.stop("b")
    cluster.stop("c")
    done: list[int] = []
    writer = threading.Thread(target=lambda: done.append(put(a, b"2")))
    writer.start()
    until(lambda: a.store.durable.txid > a.position().txid)
    renewals = cluster.document().renewals
    until(lambda: cluster.document().renewals > renewals + 3)  # a ttl goes by, and more
    assert not done
    assert dict(a.snapshot().items()) == {b"1": b"value"}
    found = {m.name: m for m in admin_of(cluster).status().members}
    assert {name: m.role for name, m in found.items()} == {"a": "primary", "b": "unreachable", "c": "unreachable"}
    assert "nothing listens at b" in (found["b"].trouble or "")
    cluster.start("b", ready=False)
    writer.join(PATIENCE)
    assert done
    cluster.start("c")
    cluster.agree()


def test_the_coordinators_data_are_lost(cluster: Cluster) -> None:
    """A member with less would lose what another one acknowledged. So nobody begins the cluster anew, not even one that
    is opened with `create`. Each says how to go on, and that works."""
    a, b, c = cluster.three()
    put(a, b"1")
    cluster.network.cut |= {("c", "a"), ("c", "b")}
    until(lambda: not c.status()["connected"])
    put(a, b"acknowledged while c is cut off")
    cluster.stop("c")
    cluster.cell.lose()
    cluster.network.mend()
    c = cluster.start("c", create=True, ready=False)
    for member in (a, b, c):
        until(lambda m=member: "lost the cluster's document" in trouble(m))  # type: ignore[misc]
        assert "To go on: holdfast cluster recreate" in trouble(member)
        assert member.role == "follower"
    assert cluster.cell.data is None
    admin = admin_of(cluster)
    recreate.write(admin, recreate.plan(admin, kept_document(cluster.root / "c", c._env)))
    put(cluster.primary(), b"2")
    cluster.agree()
    assert c.snapshot().get(b"acknowledged while c is cut off") == b"value"


def test_a_member_is_started_twice(cluster: Cluster) -> None:
    """The second one is refused, by who runs, and the first one does not notice."""
    a, _, c = cluster.three()
    with pytest.raises(StoreLocked, match=r"process \d+"):
        cluster.start("c", address="c2", keep=False)
    with pytest.raises(MemberRefused, match=r"a member c runs at c.*give this one another name, or stop that one"):
        cluster.start("c", directory="empty", address="c2", keep=False)
    put(a, b"1", ack="all")
    assert c.status()["votes"]
    assert not trouble(c)
    cluster.agree()


def test_the_coordinator_has_a_document_of_another_format(cluster: Cluster) -> None:
    """A member of this release does not join what a later one has begun, and says which formats they are."""
    cluster.three()
    cluster.stop("c")
    data = cluster.cell.data
    assert data is not None
    later = data.replace(b'"version":1', b'"version":9')
    assert later != data
    cell, cluster.cell = cluster.cell, MemoryCell()
    cluster.cell.data, cluster.cell.version = later, Version(1, b"later")
    with pytest.raises(UnsupportedFormat, match="has format version 9; this release reads 1"):
        cluster.start("c", keep=False)
    cluster.cell = cell
    cluster.start("c")
    put(cluster.primary(), b"1")
    cluster.agree()


def test_a_members_directory_is_of_another_format(cluster: Cluster) -> None:
    """What a later release, or another engine, has written is refused by name and left as it is."""
    cluster.three()
    cluster.stop("c")
    identity = cluster.root / "c" / "member" / "IDENTITY"
    before = identity.read_bytes()
    document.write(REAL.files, identity, b"HFMEMBER", 9, {})
    with pytest.raises(UnsupportedFormat, match="IDENTITY has format version 9; this release reads 1"):
        cluster.start("c", keep=False)
    identity.write_bytes(before)
    own, cluster.engine = cluster.engine, RECORDS.engine
    for directory in ("c", "empty"):
        with pytest.raises(WrongEngine, match=r"memory.*records|records.*memory"):
            cluster.start("c" if directory == "c" else "d", directory=directory, keep=False)
    cluster.engine = own
    cluster.start("c")
    put(cluster.primary(), b"1")
    cluster.agree()


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_primary_is_stopped_for_longer_than_its_lease(tmp_path: Path) -> None:
    """Another one takes over. The old one wakes up believing in itself; nothing that it then does is acknowledged."""
    with cluster_rig.Cluster(tmp_path, "memory", Links(tmp_path, with_etcd=False)) as cluster:
        cluster.begin()
        cluster.wait_writing("the start")
        stopped = next(name for name in "abc" if cluster.members[name].ask("status")["role"] == "primary")
        cluster.send(stopped, signal.SIGSTOP)
        try:
            others = [name for name in "abc" if name != stopped]
            cluster.until(lambda: any(cluster.members[name].ask("status")["role"] == "primary" for name in others),
                          "a successor")
            since = time.monotonic()
            for name in others:  # the clients may all wait for the one that is stopped
                cluster.write(name)
            assert any(write.began > since and write.outcome == "acknowledged" for write in cluster.history.writes)
        finally:
            cluster.send(stopped, signal.SIGCONT)
        cluster.until(lambda: cluster.members[stopped].ask("status")["role"] == "follower", "one primary")
        cluster.wait_writing("it woke up")
        cluster.end()
        cluster.agree()
        cluster.close()
    assert not histories.check(cluster.history)


@pytest.mark.timeout(300)
def test_each_member_is_restarted_in_turn_under_load(tmp_path: Path) -> None:
    """As in an upgrade. Nothing acknowledged is lost, and commits pause for as long as a fail-over takes."""
    with cluster_rig.Cluster(tmp_path, "memory", Links(tmp_path, with_etcd=False)) as cluster:
        cluster.begin()
        cluster.wait_writing("the start")
        for name in "bca":
            cluster.members[name].close()
            cluster.start(name)
            cluster.until(lambda n=name: cluster.members[n].ready.is_set()  # type: ignore[misc]
                          and bool(cluster.members[n].ask("status")["votes"]), f"the vote of {name}")
            cluster.wait_writing(f"{name} was restarted")
        cluster.end()
        cluster.agree()
        cluster.close()
    assert not histories.check(cluster.history)
    ended = sorted(write.ended for write in cluster.history.writes if write.outcome == "acknowledged")
    assert len(ended) > 100
    assert max(later - before for before, later in pairwise(ended)) < 10 * cluster_rig.TTL
