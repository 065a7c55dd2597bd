"""A cluster that archives by itself: whichever member is primary does, and the archive is the cluster's history."""

from __future__ import annotations

import contextlib
import shutil
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_rig import TTL as PROCESSES_TTL
from cluster_rig import Cluster as Processes
from histories import check
from member_cluster import PATIENCE, Cluster, put
from wires import Links

from holdfast.backup import ArchivePlugin, Repository
from holdfast.backup.connection import Connection
from holdfast.backup.repository import member_archiving
from holdfast.backup.repository.archiver import Archiver
from holdfast.backup.repository.archiving import archive_source
from holdfast.backup.repository.errors import Fenced, StorageUnavailable
from holdfast.backup.repository.member_archiving import MemberArchiveAckPlugin, MemberArchivePlugin
from holdfast.backup.repository.storage.local import LocalObjectStore
from holdfast.engine import MemoryEngine, Store
from holdfast.engine.errors import ConditionNotMet, ForeignStore, HoldfastError, OutcomeUnknown, SettingError
from holdfast.engine.source.interface import SourceInfo
from holdfast.engine.source.local import LocalSource
from holdfast.replay.ha.node import _LogToBranch
from holdfast.replay.ha.service import Member
from holdfast.replay.testing.members import until

Content = dict[bytes, bytes]


class Archived:
    """Members of a cluster, each with the plugin, and the repository.

    Attributes:
        cluster, place: of the members; where the repository is.
    """

    def __init__(self, root: Path, kind: type[MemberArchivePlugin] = MemberArchivePlugin, **how: Any) -> None:
        self.cluster, self.place = Cluster(root), root / "repo"
        self._kind, self._how, self._restored = kind, {"interval": 0.02, **how}, 0
        Repository.init(self.place).close()

    def plugin(self) -> MemberArchivePlugin:
        return self._kind(str(self.place), **self._how)

    def start(self, name: str, **more: Any) -> Member[Any, Any]:
        return self.cluster.start(name, plugins=[self.plugin()], **more)

    def three(self) -> list[Member[Any, Any]]:
        """Begin a cluster of a, b and c, whose first image is in the repository."""
        members = [self.start("a", create=True), self.start("b"), self.start("c")]
        self.cluster.voting("a", "b", "c")
        with Repository.open(self.place) as repository:
            repository.backup(members[0].store)
        return members

    def reached(self) -> int | None:
        """Up to where the newest branch is archived."""
        with Repository.open(self.place) as repository:
            return next((branch.archived_to for branch in repository.info().branches if branch.current), None)

    def ranges(self) -> int:
        """How many ranges without a gap the repository restores to."""
        with Repository.open(self.place) as repository:
            return sum(len(branch.restores_to) for branch in repository.info().branches)

    def wait(self, member: Member[Any, Any]) -> None:
        """Wait until all that a member shows is archived."""
        until(lambda: (self.reached() or 0) >= member.position().txid)

    def restored(self, **point: Any) -> Content:
        self._restored += 1
        dest = self.cluster.root / f"restored {self._restored}"
        with Repository.open(self.place) as repository:
            repository.restore(dest, engine=MemoryEngine, **point)
        with Store.open(dest, MemoryEngine, read_only=True) as store, store.snapshot() as view:
            assert list(view.check()) == []
            return dict(view.items())

    def slots(self) -> dict[str, set[str]]:
        """The slots of each member."""
        return {name: {slot.id for slot in member.store.log.slots.list()}
                for name, member in self.cluster.members.items()}


def content(member: Member[Any, Any]) -> Content:
    with member.snapshot() as view:
        return dict(view.items())


@pytest.fixture
def archived(tmp_path: Path) -> Iterator[Archived]:
    made = Archived(tmp_path)
    with made.cluster:
        yield made


@pytest.fixture
def acked(tmp_path: Path) -> Iterator[Archived]:
    """As `archived`, and commits wait for the archive."""
    made = Archived(tmp_path, MemberArchiveAckPlugin, interval=60)
    with made.cluster:
        yield made


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What makes the storage unavailable while it has something in it."""
    off: list[bool] = []
    for name in ("put", "get"):
        real = getattr(LocalObjectStore, name)

        def call(self: Any, *given: Any, real: Any = real) -> Any:
            if off:
                raise StorageUnavailable("the network is down")
            return real(self, *given)

        monkeypatch.setattr(LocalObjectStore, name, call)
    monkeypatch.setattr("holdfast.backup.repository.archiving._PAUSE_S", 0.01)
    return off


def test_the_primary_archives_and_the_next_one_goes_on_in_the_same_slot(archived: Archived) -> None:
    a, b, c = archived.three()
    put(a, b"1")
    archived.wait(a)
    until(lambda: len(set.intersection(*archived.slots().values())) == 1)
    a.switch_over("b")
    until(lambda: b.role == "primary")
    put(b, b"2")
    archived.wait(b)
    assert archived.restored() == content(b) == {b"1": b"value", b"2": b"value"}
    assert archived.ranges() == 1
    end = b.position()
    assert [id for ids in archived.slots().values() for id in ids] == [Repository.open(archived.place).id] * 3
    until(lambda: all(slot.position.txid >= end.txid for m in (a, b, c) for slot in m.store.log.slots.list()))


def test_followers_put_nothing(archived: Archived, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = archived.three()
    began: list[str] = []
    real = Archiver.begin

    def begin(self: Archiver, info: SourceInfo) -> None:
        began.append(info.path)
        real(self, info)

    monkeypatch.setattr(Archiver, "begin", begin)
    put(a, b"1")
    archived.wait(a)
    a.switch_over("c")
    until(lambda: c.role == "primary")
    put(c, b"2")
    archived.wait(c)
    until(lambda: b.position() == c.position() == a.position())
    assert began == [str(c.store.directory)]


def test_what_only_a_cut_off_primary_has_on_disk_is_not_archived(archived: Archived) -> None:
    a, b, c = archived.three()
    put(a, b"before")
    archived.wait(a)
    archived.cluster.isolate("a")  # and not from the repository
    outcome: list[HoldfastError] = []

    def write() -> None:
        try:
            put(a, b"lost")
        except HoldfastError as error:
            outcome.append(error)

    published, durable = a.store.published.txid, a.store.durable.txid
    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: a.store.durable.txid > durable)
    time.sleep(0.2)  # ten times as long as a piece takes to come
    assert archived.reached() == published
    successor = archived.cluster.primary(but="a")
    assert successor in (b, c)
    put(successor, b"after")
    archived.cluster.mend()
    writer.join(PATIENCE)
    assert isinstance(outcome[0], OutcomeUnknown)
    archived.cluster.agree()
    archived.wait(successor)
    assert archived.restored() == content(a) == {b"before": b"value", b"after": b"value"}
    assert archived.ranges() == 1


def test_killed_and_paused_primaries_leave_no_gap(tmp_path: Path) -> None:
    """Real processes, killed by SIGKILL, and stopped for so long that they wake up deposed, while others write."""
    place = tmp_path / "repo"
    with Repository.init(place) as repository, Links(tmp_path, with_etcd=False) as links, Processes(
            tmp_path, "memory", links, str(place)) as cluster:
        repository.backup("ha://" + ",".join(links.listens(name) for name in "abc"))
        cluster.begin()
        cluster.wait_writing("the start")
        for number in range(8):
            victim = cluster.primary
            if number % 4 == 3:
                cluster.send(victim, signal.SIGSTOP)
                time.sleep(1.5 * PROCESSES_TTL)
                cluster.send(victim, signal.SIGCONT)
            else:
                with links.dead(victim):
                    cluster.members[victim].kill()
                    time.sleep(0.3)
                cluster.start(victim)
            cluster.wait_writing(f"a fault of {victim}")
        cluster.end()
        cluster.agree()
        final = cluster.history.finals["a"]
        until(lambda: (repository.info().branches[0].archived_to or 0) >= final.txid, 20)
        cluster.close()
        assert check(cluster.history) == []
        [branch] = repository.info().branches
        assert len(branch.restores_to) == 1
        repository.restore(tmp_path / "restored", engine=MemoryEngine)
    with Store.open(tmp_path / "restored", MemoryEngine, read_only=True) as store, store.snapshot() as view:
        assert view.digest().hex() == final.digest
        written = {n for value in dict(view.items()).values() for n, in struct.iter_unpack("<I", value)}
    acknowledged = {write.number for write in cluster.history.writes if write.outcome == "acknowledged"}
    assert len(acknowledged) > 8  # one at least after each fault: how many more is the machine's affair
    assert acknowledged <= written


def test_an_outage_passes_and_a_member_steps_down_meanwhile(archived: Archived, cut: list[bool]) -> None:
    a, b, _ = archived.three()
    put(a, b"1")
    archived.wait(a)
    cut.append(True)
    put(a, b"2")
    began = time.monotonic()
    a.switch_over("b")
    until(lambda: b.role == "primary")
    put(b, b"3")
    assert time.monotonic() - began < 10
    cut.clear()
    archived.wait(b)
    assert archived.restored() == content(b)
    assert archived.ranges() == 1


def test_a_repository_that_hangs_does_not_hold_up_a_switch_over(archived: Archived, cut: list[bool],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_archiving, "LAST_S", 30)
    monkeypatch.setattr(member_archiving, "PIECE_BYTES", 1)
    monkeypatch.setitem(Archiver.__init__.__kwdefaults__ or {}, "piece_bytes", 1)  # it hangs with log yet to be read
    a, b, _ = archived.three()
    hangs, asked = threading.Event(), threading.Event()
    real = LocalObjectStore.put

    def put_slowly(self: Any, name: str, data: bytes) -> None:
        if name.startswith("log/") and not hangs.is_set():
            asked.set()
            hangs.wait(30)
        real(self, name, data)

    archived.wait(a)
    cut.append(True)
    for number in range(5):
        put(a, b"%d" % number)
    until(lambda: any(fact.name == "archive_failing" and fact.value for fact in a.store.hooks.shown()))
    real_begin = Archiver.begin

    def begin(self: Archiver, info: SourceInfo) -> None:
        real_begin(self, info)
        monkeypatch.setattr(LocalObjectStore, "put", put_slowly)

    monkeypatch.setattr(Archiver, "begin", begin)
    cut.clear()
    try:
        assert asked.wait(30)
        monkeypatch.setattr(Archiver, "begin", real_begin)
        began = time.monotonic()
        a.switch_over("b")
        until(lambda: b.role == "primary" and a.status()["connected"])  # so its store was closed, and is open again
        assert time.monotonic() - began < 4
    finally:
        hangs.set()
    put(b, b"last")
    archived.wait(b)
    assert archived.restored() == content(b)


def test_a_member_steps_down_although_its_repository_has_gone(archived: Archived) -> None:
    a, b, _ = archived.three()
    away = archived.place.with_name("away")
    archived.place.rename(away)
    a.switch_over("b")
    until(lambda: b.role == "primary" and a.role == "follower" and a.status()["connected"])
    put(b, b"1")
    shutil.rmtree(archived.place, ignore_errors=True)  # what was put there meanwhile
    away.rename(archived.place)
    archived.wait(b)
    assert archived.restored() == content(b)


def test_a_primary_that_was_fenced_takes_over_again(archived: Archived, monkeypatch: pytest.MonkeyPatch,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(member_archiving, "TAKE_OVER_S", 0.1)
    a, b, _ = archived.three()
    put(a, b"1")
    archived.wait(a)
    with Repository.open(archived.place) as repository:  # as a primary before that wakes up
        repository.archiver(LocalSource(b.store)).close()
    put(a, b"2")
    archived.wait(a)
    assert "so it takes over again" in caplog.text
    assert archived.restored() == content(a)


def test_closing_the_primary_archives_the_rest(tmp_path: Path) -> None:
    archived = Archived(tmp_path, interval=60)
    with archived.cluster:
        a, *_ = archived.three()
        put(a, b"1")
        end = a.position().txid
        assert (archived.reached() or 0) < end
        archived.cluster.stop("a")
        assert archived.reached() == end


def test_members_open_without_the_repository_and_not_with_another_ones(archived: Archived, cut: list[bool],
                                                                       caplog: pytest.LogCaptureFixture) -> None:
    cut.append(True)
    a = archived.start("a", create=True)
    assert "The cluster is archived once it can" in caplog.text
    put(a, b"1")
    cut.clear()
    archived.wait(a)
    other = Cluster(archived.cluster.root / "other")
    with other, pytest.raises(ForeignStore):
        other.start("x", create=True, plugins=[archived.plugin()])
    with pytest.raises(SettingError, match="not the store of a member"):
        Store.open(archived.cluster.root / "single", MemoryEngine, create=True, plugins=[archived.plugin()])


def test_the_plugin_of_a_single_store_is_refused_by_a_member(archived: Archived) -> None:
    with pytest.raises(SettingError, match="MemberArchivePlugin"):
        archived.cluster.start("a", create=True, plugins=[ArchivePlugin(str(archived.place))])


def test_a_commit_returns_once_it_is_archived_by_whoever_is_primary(acked: Archived) -> None:
    a, b, _ = acked.three()
    for number in range(3):
        assert put(a, b"%d" % number) == acked.reached()
    a.switch_over("b")
    until(lambda: b.role == "primary")
    for number in range(3):
        assert put(b, b"b%d" % number) == acked.reached()
    assert acked.restored() == content(b)


def test_a_commit_that_is_not_archived_in_time_stands_and_is_archived_later(tmp_path: Path, cut: list[bool]) -> None:
    acked = Archived(tmp_path, MemberArchiveAckPlugin, interval=60, ack_timeout=0.2)
    with acked.cluster:
        a, *_ = acked.three()
        put(a, b"1")
        cut.append(True)
        with pytest.raises(ConditionNotMet, match="archived"):
            put(a, b"2")
        assert content(a).keys() == {b"1", b"2"}
        cut.clear()
        acked.wait(a)
        assert put(a, b"3") == acked.reached()


def test_a_forced_promotion_takes_what_only_the_archive_has(archived: Archived, cut: list[bool]) -> None:
    a, _, c = archived.three()
    put(a, b"all have it")
    until(lambda: c.position() == a.position())
    archived.cluster.isolate("c")
    for number in range(50):
        put(a, b"only a, b and the archive have %d" % number)
    wanted, end = content(a), a.position().txid
    archived.wait(a)
    cut.append(True)
    for name in "ab":  # for good
        archived.cluster.stop(name)
    archived.cluster.mend()
    assert c.position().txid < end
    c._running().driver.tell(lambda m: m.take_over(time.monotonic(), force=True))
    until(lambda: "the network is down" in (c.status()["trouble"] or ""))
    assert c.role != "primary"
    cut.clear()
    until(lambda: c.role == "primary")
    assert content(c) == wanted
    branch = c.store.history.branch
    assert branch.start.txid == end
    put(c, b"after", durability="relaxed")  # it is not archived before the branch is accepted
    until(lambda: any("is new to the repository" in str(fact.value) for fact in c.store.hooks.shown()))
    with Repository.open(archived.place) as repository, contextlib.suppress(Fenced):  # once accepted, c takes over
        archive_source(repository, c.store, Connection(), once=True, accept_branch=branch.id.hex())
    put(c, b"later")
    with Repository.open(archived.place) as repository:
        until(lambda: repository.info().branches[-1].archived_to == c.position().txid)
    assert archived.restored(branch=branch.id.hex()) == content(c) == {**wanted, b"after": b"value", b"later": b"value"}
    assert archived.restored(branch=branch.id.hex(), to_txid=end) == wanted


def test_what_is_put_while_the_archive_is_taken_over_is_taken_too_and_nothing_after(
        archived: Archived, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, c = archived.three()
    archived.cluster.isolate("c")
    put(a, b"1")
    archived.wait(a)
    real, late = Archiver.begin, [b"2", b"3"]

    def begin(self: Archiver, info: SourceInfo) -> None:
        if late:  # the primary before has not been fenced yet
            put(a, late.pop())
            archived.wait(a)
        real(self, info)

    monkeypatch.setattr(Archiver, "begin", begin)
    with Repository.open(archived.place) as repository:
        assert repository.extend(_LogToBranch(c._running(), lambda: True)) == 3
    assert c.store.durable == a.position()
    put(a, b"too late")
    until(lambda: any("is archived by writer" in str(fact.value) for fact in a.store.hooks.shown()))
    assert archived.reached() == c.store.durable.txid
