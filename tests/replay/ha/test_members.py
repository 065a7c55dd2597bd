"""Members of a cluster in one process: real stores, a coordinator in memory, links that can be cut.

Each test begins with the stores of three members and follows one story. What the state machine does in all orders of
events is shown by the simulation; what processes and sockets add, by the tests of the real cluster.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from member_cluster import PATIENCE, TTL, Cluster, put
from store_kinds import KINDS, MEMORY, Kind

from holdfast.engine import MemoryEngine
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.errors import (
    ConditionNotMet,
    DiskFull,
    ForeignStore,
    HoldfastError,
    InvalidInput,
    LeaseExpired,
    LogPruned,
    OutcomeUnknown,
    SourceUnavailable,
    StoreClosed,
    StoreLocked,
    TooManyLeases,
)
from holdfast.engine.model.records import Record
from holdfast.engine.store.store import Store
from holdfast.replay.ha import joining
from holdfast.replay.ha.admin import Admin
from holdfast.replay.ha.coordinator import Version
from holdfast.replay.ha.coordinators.memory import Fault, MemoryCoordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, MemberRefused, NotPrimary, PeerUnavailable
from holdfast.replay.ha.member import State
from holdfast.replay.ha.node import Node
from holdfast.replay.ha.plugin import LogToBranch, MemberPlugin
from holdfast.replay.ha.seed import seed
from holdfast.replay.ha.service import Member
from holdfast.replay.testing.members import LinkedPeer, until


def test_a_commit_returns_when_a_quorum_has_it(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    txid = put(a, b"k")
    held = sum(m.store.durable.txid >= txid for m in (a, b, c))
    assert held >= 2
    assert a.snapshot().get(b"k") == b"value"
    assert b.snapshot(at_least=txid).get(b"k") == b"value"
    assert c.snapshot(at_least=txid).get(b"k") == b"value"
    with pytest.raises(NotPrimary) as refused:
        b.transaction().__enter__()
    assert refused.value.primary == "a"
    cluster.agree()


def test_a_primary_that_is_cut_off_acknowledges_nothing_and_its_tail_is_cut(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    put(a, b"before")
    cluster.isolate("a")
    outcome: list[BaseException] = []

    def write() -> None:
        try:
            put(a, b"lost")
        except HoldfastError as error:
            outcome.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    successor = cluster.primary(but="a")
    assert successor in (b, c)
    put(successor, b"after")
    cluster.mend()
    writer.join(PATIENCE)
    assert [type(error).__name__ for error in outcome] == ["OutcomeUnknown"]
    cluster.agree()
    shown = dict(a.snapshot().items())
    assert set(shown) == {b"before", b"after"}
    aside = list((cluster.root / "a" / "member" / "branched").iterdir())
    assert len(aside) == 1
    assert '"payload"' in (aside[0] / "records.jsonl").read_text()


def test_switch_over_and_back_loses_nothing(cluster: Cluster) -> None:
    a, b, _ = cluster.three()
    put(a, b"1")
    a.switch_over("b")
    until(lambda: b.role == "primary")
    put(b, b"2")
    until(lambda: a.role == "follower" and a.status()["connected"])
    b.switch_over("a")
    until(lambda: a.role == "primary")
    put(a, b"3")
    cluster.agree()
    assert [f.leader for f in cluster.document().failovers] == ["a", "b", "a"]
    with pytest.raises(InvalidInput, match="not another voter"):
        a.switch_over("nobody")


def test_slots_of_the_primary_are_kept_by_all(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    put(a, b"1")
    here = a.position()
    for number in range(120):  # more than one heartbeat tells of
        a.store.log.slots.register(f"slot{number}", "a target", here)
    b.store.log.slots.register("only here", "a target that could not reach a", here)

    def ids(member: Member[Any, Any]) -> set[str]:
        return {slot.id for slot in member.store.log.slots.list()}

    until(lambda: len(ids(b)) == 121 and len(ids(c)) == 120)
    put(a, b"2")
    a.store.log.slots.register("slot7", "a target", a.position())
    until(lambda: {slot.position for slot in c.store.log.slots.list() if slot.id == "slot7"} == {a.position()})
    a.store.log.slots.register("slot8", "a target", here)  # a run that found nothing new

    def seen(member: Member[Any, Any]) -> int:
        [slot] = [slot for slot in member.store.log.slots.list() if slot.id == "slot8"]
        return slot.seen_us

    until(lambda: seen(a) == seen(c) == seen(b))
    a.store.log.slots.drop("slot9")
    until(lambda: "slot9" not in ids(b) | ids(c))
    assert "only here" in ids(b)
    cluster.stop("a")
    successor = cluster.primary()
    put(successor, b"3")
    a = cluster.start("a")
    until(lambda: ids(a) >= ids(successor))


def test_a_slot_that_is_dropped_while_a_member_is_away_stays_dropped(cluster: Cluster) -> None:
    """The member kept log for it, and had all others do so when it led."""
    a, b, c = cluster.three()
    put(a, b"1")

    def ids(member: Member[Any, Any]) -> set[str]:
        return {slot.id for slot in member.store.log.slots.list()}

    for slot in ("old", "kept"):
        a.store.log.slots.register(slot, "a target", a.position())
    until(lambda: ids(b) == ids(c) == {"old", "kept"})
    c.store.log.slots.register("only here", "a target that could not reach a", c.position())
    cluster.stop("c")
    a.store.log.slots.drop("old")
    c = cluster.start("c")
    until(lambda: ids(c) == {"kept", "only here"})
    until(lambda: ids(b) == {"kept"})
    a.switch_over("c")
    until(lambda: c.role == "primary" and ids(a) == ids(b) == {"kept", "only here"})
    cluster.network.isolate("b")
    b.store.log.slots.register("kept", "a target", b.position())  # its owner finds b alone
    c.store.log.slots.drop("kept")
    cluster.network.mend()
    until(lambda: b._running()._state.slots.keys() == {"only here"})
    assert ids(b) == {"kept", "only here"}


def test_a_read_of_the_document_that_fails_is_made_again(cluster: Cluster) -> None:
    """A paused cluster that handed over had no primary: the next one had been told that the document had changed, could
    not read it at that moment, and waited for another change."""
    a, b, _ = cluster.three()
    put(a, b"1")
    failed: list[int] = []
    coordinator = cluster.coordinators["b"]
    real = coordinator.read

    def read(timeout: float) -> tuple[bytes | None, Version]:
        found = real(timeout)
        if not failed and b'"leader":"b"' in (found[0] or b"") and "coordinator" in threading.current_thread().name:
            failed.append(1)
            raise CoordinatorUnavailable("no answer, this once")
        return found

    end = cluster.network.ends["b"]
    with Admin(MemoryCoordinator(cluster.cell), lambda address, token: LinkedPeer(end, address)) as admin:
        admin.set_paused(True)
    until(lambda: all(m._running().machine._document().paused for m in cluster.members.values()))
    coordinator.read = read  # type: ignore[method-assign]  # of this one alone
    a.switch_over("b")
    until(lambda: b.role == "primary")
    assert failed


def test_a_copy_that_ends_late_leaves_the_next_stream_alone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that had been stopped said that the member followed nobody, and a load balancer believed it."""
    a, b, c = cluster.three()
    put(a, b"1")
    copying, ends, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(*args: Any, **more: Any) -> Callable[[], None]:
        copying.set()
        ends.wait(PATIENCE)
        raise SourceUnavailable("the source has gone")

    real = c._running().seed_from

    def seed_from(*args: Any) -> None:
        try:
            real(*args)
        finally:
            ended.set()

    monkeypatch.setattr(joining, "seed", slow)
    monkeypatch.setattr(c._running(), "seed_from", seed_from)
    c._answers().command("reinit", {})
    assert copying.wait(PATIENCE)
    a.switch_over("b")
    until(lambda: b.role == "primary" and c.status()["following"] == ("b", 2) and c.status()["connected"])
    ends.set()
    assert ended.wait(PATIENCE)
    time.sleep(0.2)
    assert c.status()["connected"]
    assert c._answers().health("replica", {})[0]


def test_a_follower_shows_only_what_its_state_machine_has_it_show(cluster: Cluster) -> None:
    """Two threads publish, and one of them may have been told of a log that was here before."""
    a, b, _ = cluster.three(floor=3)
    put(a, b"1")
    cluster.agree()
    shown = b.position()
    cluster.stop("c")
    writer = threading.Thread(target=put, args=(a, b"two of three hold this"))
    writer.start()
    until(lambda: b.store.durable.txid > shown.txid)
    node, durable = b._running(), b.store.durable.txid
    node.publish(durable)
    assert b.position() == shown
    cluster.start("c")
    writer.join(PATIENCE)
    until(lambda: b.position().txid >= durable)


def test_closing_ends_the_wait_for_the_coordinators_news(cluster: Cluster) -> None:
    """Each restart took up to a third of the ttl longer."""
    class Slow(MemoryCoordinator):
        ends = threading.Event()
        ended: ClassVar[list[bool]] = []

        def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
            self.ended.append(self.ends.wait(PATIENCE))
            raise CoordinatorUnavailable("this coordinator was closed")

        def close(self) -> None:
            self.ends.set()
            super().close()

    cluster.start("a", create=True, coordinator=Slow(cluster.cell))
    cluster.stop("a")
    assert Slow.ended == [True]


def test_nothing_is_opened_or_begun_after_a_member_was_closed(cluster: Cluster) -> None:
    """Work that was in a queue when the member was closed came to its turn, and held the store open for ever."""
    _, _, c = cluster.three()
    node = c._running()
    cluster.stop("c")
    with pytest.raises(StoreClosed):
        node.local.reopen()
    assert node.local.store.closed
    before = threading.active_count()
    node.follow("a", "a", 1)
    assert threading.active_count() == before


def test_a_primary_is_closed_while_a_commit_becomes_durable(cluster: Cluster) -> None:
    """A primary that is the only voter publishes in a thread of its store. That waited for the lock of whoever closed
    the store, who waited for the thread."""
    a = cluster.start("a", create=True)
    local = a._running().local
    durable, tell = threading.Event(), local.shipping._on_durable

    def tell_late() -> None:
        durable.set()
        until(lambda: not local.accepting)
        tell()

    local.shipping._on_durable = tell_late

    def write() -> None:
        with contextlib.suppress(HoldfastError):
            put(a, b"k")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert durable.wait(PATIENCE)
    closer = threading.Thread(target=a.close, daemon=True)
    closer.start()
    for thread in (closer, writer):
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_forced_primary_lets_plugins_append_before_it_begins_its_branch(cluster: Cluster) -> None:
    asked: list[tuple[int, bytes]] = []

    class Late(MemberPlugin):
        def branching(self, log: LogToBranch) -> None:
            asked.append((log.end().txid, log.store.history.branch.id))
            if len(asked) == 1:
                raise SourceUnavailable("what it looks at is away")
            end = log.end()
            log.append([Record.make(end.chain, end.txid + 1, c.status()["end"][0],
                                    log.store.env.clock.now_us(), 0, b"")])

    cluster.start("a", create=True)
    cluster.start("b")
    c = cluster.start("c", plugins=[Late()])
    cluster.voting("a", "b", "c")
    old = c.store.history.branch.id
    for name in "ab":
        cluster.stop(name)
    c._running().driver.tell(lambda m: m.take_over(time.monotonic(), force=True))
    until(lambda: "is away" in (c.status()["trouble"] or ""))
    until(lambda: c.role == "primary")
    end = asked[0][0]
    assert asked == [(end, old)] * 2
    assert c.store.history.branch.start.txid == end + 1
    assert c.status()["trouble"] is None


def test_changes_of_role_are_told_in_their_order(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that was told last that it is primary, and is not, archived beside the one that is."""
    role, told, begun, go = ["primary"], list[str](), threading.Event(), threading.Event()

    class Listens(Plugin):
        def role_changed(self, role: str, epoch: int) -> None:
            told.append(role)

    def on_role(role: str, epoch: int) -> None:
        if role == "earlier":
            begun.set()
            go.wait(PATIENCE)

    monkeypatch.setattr(Node, "role", property(lambda self: role[0]))
    a = cluster.start("a", create=True, plugins=[Listens()], on_role=on_role)
    role[0] = "earlier"
    assert begun.wait(PATIENCE)
    role[0] = "later"
    teller = threading.Thread(target=a._running()._tell_role)
    teller.start()
    teller.join(0.2)
    go.set()
    teller.join(PATIENCE)
    assert told[-2:] == ["earlier", "later"]


def test_a_change_of_role_is_told_to_plugins_and_to_the_caller(cluster: Cluster) -> None:
    told: list[tuple[str, str]] = []

    class Listens(Plugin):
        def role_changed(self, role: str, epoch: int) -> None:
            told.append(("plugin", role))
            assert epoch > 0

    how: dict[str, Any] = {"plugins": [Listens()], "on_role": lambda role, epoch: told.append(("caller", role))}
    a = cluster.start("a", create=True, **how)
    until(lambda: told[-2:] == [("caller", "primary"), ("plugin", "primary")])
    b = cluster.start("b")
    until(lambda: cluster.document().voters == ("a", "b") and cluster.document().joint is None)
    a.switch_over("b")
    until(lambda: b.role == "primary")
    until(lambda: told[-2:] == [("caller", "follower"), ("plugin", "follower")])


def test_writes_stop_without_a_quorum_and_resume_with_it(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    put(a, b"1")
    cluster.stop("b")
    cluster.stop("c")
    done: list[int] = []
    writer = threading.Thread(target=lambda: done.append(put(a, b"2")))
    writer.start()
    time.sleep(3 * TTL)
    assert not done
    assert dict(a.snapshot().items()) == {b"1": b"value"}
    assert a.role == "primary"
    cluster.start("b")
    writer.join(PATIENCE)
    assert done
    cluster.agree()


def test_a_local_commit_returns_before_a_quorum_and_is_not_shown(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    with pytest.raises(InvalidInput, match="publishes nothing that fewer than 2"):
        put(a, b"0", ack=1)
    put(a, b"1", ack="all")
    assert all(m.store.durable == a.store.durable for m in cluster.members.values())


def test_all_members_stop_and_start_in_any_order(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    put(a, b"1")
    for name in "abc":
        cluster.stop(name)
    for name in "cab":
        cluster.start(name, ready=False)
    put(cluster.primary(), b"2")
    cluster.agree()
    assert set(dict(cluster.primary().snapshot().items())) == {b"1", b"2"}


def test_a_member_with_no_failover_is_only_promoted_when_asked(cluster: Cluster) -> None:
    cluster.start("a", create=True)
    cluster.start("b", no_failover=True)
    cluster.start("c")
    until(lambda: cluster.document().voters == ("a", "b", "c") and cluster.document().joint is None)
    cluster.stop("a")
    assert cluster.primary().name == "c"
    until(lambda: cluster.members["b"].status()["connected"])
    put(cluster.primary(), b"1")
    cluster.members["c"].switch_over("b")
    until(lambda: cluster.members["b"].role == "primary")
    put(cluster.members["b"], b"2")


def test_no_sync_members_hold_the_data_and_do_not_count(cluster: Cluster) -> None:
    a = cluster.start("a", create=True)
    b = cluster.start("b", no_sync=True)
    put(a, b"1")
    cluster.agree()
    assert cluster.document().voters == ("a",)
    cluster.stop("a")
    time.sleep(4 * TTL)
    assert b.role == "follower"


def test_a_directory_is_refused_that_holds_another_store(cluster: Cluster) -> None:
    with Store.open(cluster.root / "b", MemoryEngine) as store, store.transaction() as tx:
        tx.put(b"mine", b"1")
    cluster.start("a", create=True)
    with pytest.raises(ForeignStore, match="join with an empty directory"):
        cluster.start("b")


def test_a_member_is_not_started_twice(cluster: Cluster) -> None:
    cluster.three()
    with pytest.raises(StoreLocked):
        cluster.start("a", address="a2", keep=False)
    with pytest.raises(MemberRefused, match="a member a runs at a"):
        cluster.start("a", directory="empty", address="a2", keep=False)
    with pytest.raises(MemberRefused, match="belongs to member b"):
        cluster.stop("b")
        cluster.start("x", directory="b", keep=False)


def test_a_copy_of_a_directory_does_not_vote(cluster: Cluster) -> None:
    import shutil

    cluster.three()
    cluster.stop("c")
    shutil.copytree(cluster.root / "c", cluster.root / "copy")
    cluster.start("c")
    copy = cluster.start("c", directory="copy", address="c2", ready=False, keep=False)
    try:
        until(lambda: "copy" in (copy.status()["trouble"] or ""))
        assert not copy.status()["votes"]
        put(cluster.primary(), b"1")
        assert cluster.members["c"].status()["votes"]
    finally:
        copy.close()


def test_nobody_is_promoted_while_the_cluster_is_paused(cluster: Cluster) -> None:
    from dataclasses import replace

    cluster.three()
    put(cluster.members["a"], b"1")
    until(lambda: len(cluster.document().failovers) == 1)
    while True:
        try:
            MemoryCoordinator(cluster.cell).swap(cluster.cell.version,
                                                 replace(cluster.document(), paused=True).encode(), 1)
            break
        except HoldfastError:
            continue
    cluster.stop("a")
    time.sleep(4 * TTL)
    assert {m.role for m in cluster.members.values()} == {"follower"}
    cluster.start("a")
    assert cluster.members["a"].role == "primary"


def test_the_coordinator_goes_away_and_comes_back(cluster: Cluster) -> None:
    a, b, _ = cluster.three()
    put(a, b"1")
    for coordinator in cluster.coordinators.values():
        coordinator.fault = Fault.OUTAGE
    until(lambda: a.role != "primary")
    assert b.snapshot().get(b"1") == b"value"
    with pytest.raises((NotPrimary, OutcomeUnknown)):
        put(a, b"2")
    cluster.mend()
    put(cluster.primary(), b"3")
    cluster.agree()


def test_fail_safe_mode_keeps_the_primary_without_a_coordinator(cluster: Cluster) -> None:
    a, _, _ = cluster.three(failsafe=True)
    for coordinator in cluster.coordinators.values():
        coordinator.fault = Fault.OUTAGE
    until(lambda: a.status()["failsafe"])
    time.sleep(2 * TTL)
    put(a, b"1")
    cluster.mend()
    until(lambda: not a.status()["failsafe"])
    assert a.role == "primary"


def test_a_coordinator_that_lost_its_data_gets_no_new_cluster(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    put(a, b"1")
    cluster.cell.lose()
    until(lambda: all("lost" in (m.status()["trouble"] or "") for m in cluster.members.values()))
    assert cluster.cell.data is None
    assert a.snapshot().get(b"1") == b"value"


def test_a_removed_member_leaves_and_stays_away(cluster: Cluster) -> None:
    a, _, c = cluster.three()
    a._answers().command("remove", {"member": "c"})
    until(lambda: cluster.document().voters == ("a", "b") and "c" not in cluster.document().members)
    until(lambda: "removed" in (c.status()["trouble"] or ""))
    put(a, b"1")


def test_a_linearizable_read_on_a_deposed_primary_is_refused(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    put(a, b"1")
    for member in (a, b, c):
        assert member.snapshot(linearizable=True).get(b"1") == b"value"
    cluster.isolate("a")
    with pytest.raises((NotPrimary, ConditionNotMet)):
        a.snapshot(linearizable=True)
    cluster.mend()


def test_a_store_that_steps_down_does_not_wait_for_a_commit_that_waits_for_others(cluster: Cluster) -> None:
    """Refusing and reopening are done by two threads. If the second was first, closing the store waited for the commit
    as for any open transaction, by default a minute, and the member was missing for so long."""
    a, _, _ = cluster.three()
    put(a, b"1")
    cluster.isolate("a")
    ended: list[BaseException] = []

    def commit() -> None:
        try:
            put(a, b"in vain", ack="local")
        except HoldfastError as error:
            ended.append(error)

    local = a._running().local
    store = local.store
    store._patience_s = 10 * PATIENCE
    writer = threading.Thread(target=commit)
    writer.start()
    until(lambda: store.positions().appended > store.positions().published)
    reopened = threading.Thread(target=local.reopen)
    reopened.start()
    for thread in (writer, reopened):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert ended
    assert store.closed
    cluster.mend()


def test_a_new_primary_confirms_nothing_before_it_has_published_what_it_inherited(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    node = a._running()
    with node.driver.lock:
        node.machine.state = State.INHERITING  # the next commit stands for the first record of the epoch
    confirmed: list[int] = []
    reader = threading.Thread(target=lambda: confirmed.append(node.confirmed_position(PATIENCE)))
    reader.start()
    time.sleep(0.05)
    txid = put(a, b"inherited")
    reader.join(PATIENCE)
    assert confirmed
    assert confirmed[0] >= txid


def test_a_member_does_not_vote_while_its_state_is_replaced(cluster: Cluster) -> None:
    a, _, c = cluster.three()
    put(a, b"1")
    node, stored = c._running(), []
    copy = node._seed

    def seed(address: str) -> Callable[[], None]:
        make = copy(address)

        def checked() -> None:
            stored.append(node._state.identity.whole)
            make()

        return checked

    node._seed = seed
    c._answers().command("reinit", {})
    until(lambda: bool(stored) and node.machine.whole and node._state.identity.whole)
    assert stored == [False]
    cluster.agree()


def test_acknowledgements_that_break_off_alone_are_begun_again(cluster: Cluster) -> None:
    a, b, _ = cluster.three()
    cluster.stop("c")
    stream = b._running()._following
    assert stream is not None

    class Broken:
        def send(self, ack: object) -> None:
            raise PeerUnavailable("no answer")

    stream._acks = Broken()
    done: list[int] = []
    writer = threading.Thread(target=lambda: done.append(put(a, b"1")), daemon=True)
    writer.start()
    writer.join(PATIENCE)
    assert done


def test_a_member_whose_log_was_pruned_away_is_seeded_anew(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    cluster.stop("c")
    for n in range(40):
        with a.transaction() as tx:
            tx.put(b"%d" % n, bytes(20_000))
    a.store.checkpoint()
    log = a.store.log
    log.prune(log.segments()[:-1])
    c = cluster.start("c", ready=False)
    until(lambda: c.status()["role"] == "follower" and c.status()["connected"])
    cluster.agree()
    put(a, b"after")
    cluster.agree()


def test_a_member_is_closed_while_it_is_seeded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = cluster.three()
    put(a, b"1")
    begun, closed, asked, forced = (threading.Event() for _ in range(4))

    def slow(*args: Any, progress: Callable[[str, int, int], None], **more: Any) -> Callable[[], None]:
        begun.set()
        while True:
            progress("copy", 1, 2)
            time.sleep(0.001)

    def stubborn(*args: Any, **more: Any) -> Callable[[], None]:
        begun.set()
        closed.wait(PATIENCE)
        asked.set()
        return forced.set

    monkeypatch.setattr(joining, "seed", slow)
    d = cluster.start("d", ready=False)
    assert begun.wait(PATIENCE)
    cluster.stop("d")
    assert d.role == "joining"
    begun.clear()
    monkeypatch.setattr(joining, "seed", stubborn)
    b._answers().command("reinit", {})
    assert begun.wait(PATIENCE)
    cluster.stop("b")
    closed.set()
    assert asked.wait(PATIENCE)
    time.sleep(0.1)
    assert not forced.is_set()
    with Store.open(cluster.root / "b", MemoryEngine, read_only=True) as store:
        assert store.snapshot().get(b"1") == b"value"


def test_a_member_keeps_its_store_if_the_new_one_does_not_come_into_force(cluster: Cluster,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = cluster.three()
    put(a, b"1")
    tried: list[str] = []

    def failing(*args: Any, **more: Any) -> Callable[[], None]:
        def into_force() -> None:
            tried.append("")
            raise DiskFull("no room left")
        return into_force

    with monkeypatch.context() as patch:
        patch.setattr(joining, "seed", failing)
        b._answers().command("reinit", {})
        until(lambda: bool(tried))
    put(a, b"2")
    cluster.agree()
    assert b.snapshot().get(b"2") == b"value"


def test_a_member_is_seeded_although_the_first_attempt_fails(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start("a", create=True)
    errors: list[HoldfastError] = [TooManyLeases("16 leases"), LeaseExpired("it expired"), LogPruned("it is gone")]

    def unlucky(*args: Any, **more: Any) -> Callable[[], None]:
        if errors:
            raise errors.pop()
        return seed(*args, **more)

    monkeypatch.setattr(joining, "seed", unlucky)
    cluster.start("b")
    assert not errors


def test_a_member_with_somebody_elses_files_is_refused(cluster: Cluster) -> None:
    cluster.start("a", create=True)
    (cluster.root / "b").mkdir()
    (cluster.root / "b" / "photo.jpg").write_text("mine")
    with pytest.raises(MemberRefused, match=r"photo.jpg.*not a member's"):
        cluster.start("b")


def test_a_member_whose_disk_failed_opens_its_store_again(cluster: Cluster) -> None:
    a, b, _ = cluster.three()
    put(a, b"1")
    b.store.group_commit.fail(OSError("a failed sync"))
    put(a, b"2")
    until(lambda: not b.store.poisoned)
    cluster.agree()
    a.store.group_commit.fail(OSError("a failed sync"))
    until(lambda: not a.store.poisoned)
    put(cluster.primary(), b"3")
    cluster.agree()
    assert set(dict(b.snapshot().items())) == {b"1", b"2", b"3"}


ALL = {**KINDS, "sqlite": Kind(SqliteEngine, MEMORY.write, MEMORY.shown),
       "rocksdb": Kind(RocksEngine, MEMORY.write, MEMORY.shown)}


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_every_engine_is_a_member(tmp_path: Path, kind: Kind) -> None:
    """Seeded, handed over, cut off with commits under way, cut and caught up: on each way to keep a state."""
    cluster = Cluster(tmp_path, kind)
    try:
        a, b, _ = cluster.three()

        def write(member: Member[Any, Any], *numbers: int) -> None:
            for number in numbers:
                with member.transaction() as tx:
                    kind.write(tx, number)

        write(a, *range(1, 20))
        a.store.checkpoint()
        a.switch_over("b")
        until(lambda: b.role == "primary")
        write(b, *range(20, 30))
        cluster.isolate("b")
        lost: list[str] = []

        def lose(number: int) -> None:
            try:
                write(b, number)
            except HoldfastError as error:
                lost.append(type(error).__name__)

        writers = [threading.Thread(target=lose, args=(number,)) for number in (100, 101)]
        for writer in writers:
            writer.start()
        successor = cluster.primary(but="b")
        write(successor, *range(30, 40))
        cluster.mend()
        for writer in writers:
            writer.join(PATIENCE)
        assert len(lost) == 2
        assert set(lost) <= {"OutcomeUnknown", "NotPrimary"}
        cluster.agree()
        with b.snapshot() as view:
            assert kind.of(view) == set(range(1, 40))
    finally:
        for member in cluster.members.values():
            member.close()
