"""When too much is lost: forced promotions, branched members, a coordinator without its data; and a late follower."""

from __future__ import annotations

import json
from typing import Any

import pytest
from member_cluster import TTL, Cluster, put

from holdfast.engine.errors import DiskFull, Diverged, InvalidInput, OtherBranch, SettingError
from holdfast.engine.source.interface import compare
from holdfast.engine.source.local import LocalSource
from holdfast.replay.ha import recreate
from holdfast.replay.ha.admin import Admin
from holdfast.replay.ha.coordinator import ABSENT, Version
from holdfast.replay.ha.coordinators.memory import Fault, MemoryCoordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapUnknown
from holdfast.replay.ha.service import Member
from holdfast.replay.ha.state import kept_document
from holdfast.replay.testing.members import LinkedPeer, until


def admin_of(cluster: Cluster) -> Admin:
    end = next(iter(cluster.network.ends.values()))
    return Admin(MemoryCoordinator(cluster.cell), lambda address, token: LinkedPeer(end, address))


def lines(member: Member[Any, Any]) -> list[dict[str, Any]]:
    (place,) = (member.directory / "member" / "branched").iterdir()
    return [json.loads(line) for line in (place / "records.jsonl").read_text().splitlines()]


def test_a_forced_promotion_begins_a_branch_and_what_it_lost_is_set_aside(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    before = put(a, b"kept")
    until(lambda: b.position().txid >= before)
    history, early = b.store.history, b.position()
    cluster.isolate("b")
    put(a, b"acknowledged and lost")
    lost = a.position()
    until(lambda: c.position() == lost)
    cluster.stop("a")
    cluster.stop("c")
    cluster.mend()
    admin = admin_of(cluster)
    until(lambda: admin.status().primary is None)
    with pytest.raises(InvalidInput, match="no member x"):
        admin.force_failover("x")
    with pytest.raises(InvalidInput, match="c does not answer"):
        admin.force_failover("c")
    admin.force_failover("b")
    until(lambda: b.role == "primary")
    put(b, b"written by b alone")
    with pytest.raises(InvalidInput, match="b is primary, and answers"):
        admin.force_failover("b")
    assert len(b.store.history.branches) == len(history.branches) + 1
    assert b.store.history.branch.id.hex() == cluster.document().branch
    with pytest.raises(OtherBranch):
        compare(LocalSource(b.store).info(), history, early)  # what a backup of the lost history is told
    a, c = cluster.start("a"), cluster.start("c")
    until(lambda: cluster.document().voters == ("b", "a", "c") and cluster.document().joint is None)
    cluster.agree()
    for member in (a, b, c):
        assert set(dict(member.snapshot().items())) == {b"kept", b"written by b alone"}
        assert member.store.history == b.store.history
        with pytest.raises(Diverged, match="was lost"):
            member.snapshot(at_least=lost)
    assert [line["txid"] for line in lines(a)] == [lost.txid] == [line["txid"] for line in lines(c)]
    assert [m.set_aside for m in admin.status().members] == [1, 0, 1]
    assert "forced" in cluster.document().failovers[-1].reason
    assert 'set_aside_transactions 1\n' in a._answers().metrics()


def test_a_member_with_more_is_preferred_to_the_one_that_is_forced(cluster: Cluster) -> None:
    a, _, c = cluster.three()
    cluster.isolate("b")
    txid = put(a, b"1")
    until(lambda: c.position().txid >= txid)
    cluster.stop("a")
    cluster.network.mend()  # b still lacks the coordinator, so neither is promoted: the other voter is needed
    cluster.network.cut |= {("b", "c"), ("c", "b")}
    admin = admin_of(cluster)
    until(lambda: admin.status().primary is None)
    with pytest.raises(InvalidInput, match="c holds transactions up to") as refused:
        admin.force_failover("b")
    assert "--to c" in str(refused.value)


def test_a_coordinator_gets_its_document_again(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    put(a, b"1")
    admin, known = admin_of(cluster), kept_document(cluster.root / "c", a._env)
    with pytest.raises(InvalidInput, match="the coordinator has the document"):
        recreate.plan(admin, known)
    epoch = cluster.document().epoch
    cluster.cell.lose()
    until(lambda: all("recreate" in (m.status()["trouble"] or "") for m in cluster.members.values()))
    cluster.stop("a")
    cluster.stop("b")
    with pytest.raises(InvalidInput, match="those that did not may hold what these lack"):
        recreate.plan(admin, known)
    b = cluster.start("b", ready=False)  # it starts without the document, and answers
    until(lambda: b.role == "follower")
    planned = recreate.plan(admin, known)
    assert planned.answered == ("b", "c")
    assert planned.document.epoch > epoch
    assert cluster.cell.data is None
    recreate.write(admin, planned)
    primary = cluster.primary()
    put(primary, b"2")
    cluster.start("a")
    cluster.agree()
    assert set(dict(cluster.members["a"].snapshot().items())) == {b"1", b"2"}


def test_a_coordinator_that_was_set_back_gets_the_later_document(cluster: Cluster) -> None:
    cluster.start("a", create=True)
    cluster.start("b")
    until(lambda: cluster.document().voters == ("a", "b") and cluster.document().joint is None)
    old = cluster.cell.data
    cluster.start("c")
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    put(cluster.primary(), b"1")
    with cluster.cell.changed:
        cluster.cell.data = old
        cluster.cell.swaps += 1
        cluster.cell.version = type(cluster.cell.version)(cluster.cell.version.number + 1, b"restored")
        cluster.cell.changed.notify_all()
    until(lambda: all("set back" in (m.status()["trouble"] or "") for m in cluster.members.values()))
    admin = admin_of(cluster)
    recreate.write(admin, recreate.plan(admin, kept_document(cluster.root / "a", cluster.members["a"]._env)))
    put(cluster.primary(), b"2")
    assert cluster.document().voters == ("a", "b", "c")
    cluster.agree()


def test_a_follower_that_lags_on_purpose_shows_late_and_holds_at_once(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    late = cluster.start("d", delay=2.5)
    until(lambda: "d" in cluster.document().voters and cluster.document().joint is None)
    shown = late.position().txid
    first = put(a, b"1")
    began = a._env.clock.monotonic()
    until(lambda: late.store.durable.txid >= first)
    assert late.position().txid < first
    second = put(a, b"2")
    until(lambda: late.position().txid >= first)
    assert a._env.clock.monotonic() - began > 1.5
    until(lambda: late.position().txid >= second)
    assert shown < second
    assert late._running().lag_s() >= 2.5
    assert cluster.document().members["d"].no_failover
    third = put(a, b"3")
    until(lambda: late.store.durable.txid >= third)
    cluster.stop("d")
    late = cluster.start("d", delay=2.5)  # what waits is read from the log
    until(lambda: late.position().txid >= third)
    assert late.snapshot().get(b"3") == b"value"
    with pytest.raises(SettingError, match="delay"):
        cluster.start("e", delay=-1.0)
    assert TTL < 2.5


def test_a_forced_promotion_is_not_made_later_over_a_healthy_primary(cluster: Cluster) -> None:
    a, b, _ = cluster.three()
    put(a, b"before")
    cluster.agree()
    cluster.coordinators["b"].fault = Fault.OUTAGE
    cluster.kill("a")
    assert b._running().driver.tell(lambda m: m.take_over(b._env.clock.monotonic(), force=True)) is None
    cluster.start("a", ready=False)
    put(cluster.primary(but="b"), b"acknowledged")
    cluster.coordinators["b"].fault = None
    put(cluster.primary(but="b"), b"and more")
    cluster.agree()
    with b.snapshot() as view:
        assert view.get(b"acknowledged") == b"value"


def test_a_store_that_cannot_be_opened_after_a_seeding_is_opened_later(cluster: Cluster,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tried again, and the member had no store for ever."""
    a, b, _ = cluster.three()
    put(a, b"1")
    opened: list[int] = []
    local = b._running().local
    really = local._open

    def unlucky() -> None:
        opened.append(b._running()._state.watermark)
        if len(opened) == 1:
            raise DiskFull("no room left")
        really()

    monkeypatch.setattr(local, "_open", unlucky)
    b._answers().command("reinit", {})
    until(lambda: len(opened) >= 2 and b.status()["connected"])
    assert opened[:2] == [0, 0]  # what the old store had published says nothing of the new one
    put(cluster.primary(), b"2")
    cluster.agree()


def test_who_has_begun_a_cluster_without_being_told_leads_it(cluster: Cluster) -> None:
    """The swap was made, its answer was lost, and the coordinator did not answer the next read. The member took its own
    cluster for somebody else's, and never voted."""
    class Lossy(MemoryCoordinator):
        silent = 0

        def swap(self, version: Version, data: bytes, timeout: float) -> Version:
            made = super().swap(version, data, timeout)
            if version == ABSENT:
                self.silent = 1
                raise SwapUnknown("the answer was lost")
            return made

        def read(self, timeout: float) -> tuple[bytes | None, Version]:
            if self.silent:
                self.silent -= 1
                raise CoordinatorUnavailable("no answer")
            return super().read(timeout)

    put(cluster.start("a", create=True, coordinator=Lossy(cluster.cell)), b"1")
