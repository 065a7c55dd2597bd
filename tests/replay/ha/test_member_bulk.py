"""Bulk loads in a cluster: the file reaches a quorum before its record is logged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from member_cluster import PATIENCE, Cluster
from store_kinds import KINDS

from holdfast.engine import BulkLoad
from holdfast.engine.errors import HoldfastError, RolledBack
from holdfast.replay.ha.service import Member
from holdfast.replay.testing.members import LinkedPeer, until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, KINDS["graph"])
    yield made
    for member in made.members.values():
        member.close()


def files(member: Member[Any, Any]) -> list[str]:
    place = member.store.log.directory / "attachments"
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def in_background(member: Member[Any, Any], load: BulkLoad) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(member.bulk(load))
        except HoldfastError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def test_a_bulk_load_reaches_all_members(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    txid = a.bulk(BulkLoad(nodes=[{"n": number} for number in range(1000)]))
    for member in (a, b, c):
        assert len(list(member.snapshot(at_least=txid).nodes())) == 1000
    assert files(a) == files(b) == files(c)
    cluster.agree()


def test_a_bulk_load_waits_for_a_quorum_and_nothing_is_logged_before(cluster: Cluster) -> None:
    a, b, c = cluster.three()
    end = a.store.durable.txid
    cluster.network.cut |= {("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")}
    loading, outcome = in_background(a, BulkLoad(nodes=3))
    until(lambda: files(a) != [])
    assert a.store.log.end.txid == end
    assert files(b) == files(c) == []
    beats = a._running().local.shipping.beat(a.status()["epoch"], 0)
    until(lambda: a._running().local.shipping.beat(a.status()["epoch"], 0) > beats)  # they do not wait for the lock
    cluster.network.mend()
    loading.join(PATIENCE)
    assert outcome == [a.store.durable.txid]
    cluster.agree()


def test_a_primary_that_is_deposed_meanwhile_rolls_the_load_back(cluster: Cluster) -> None:
    a, _, _ = cluster.three()
    cluster.isolate("a")
    loading, outcome = in_background(a, BulkLoad(nodes=3))
    successor = cluster.primary(but="a")
    loading.join(PATIENCE)
    assert [type(error) for error in outcome] == [RolledBack]
    assert "not the primary" in str(outcome[0])
    cluster.mend()
    until(lambda: a.role == "follower" and a.status()["connected"])
    assert successor.bulk(BulkLoad(nodes=2)) > 0
    cluster.agree()
    assert files(a) == files(successor)


def test_a_copy_that_breaks_off_is_made_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, _ = cluster.three()
    broken: list[str] = []
    read = LinkedPeer.read_attachment

    def breaks(self: LinkedPeer, name: str, offset: int, length: int) -> bytes:
        if len(broken) < 4:
            broken.append(name)
            self._here.reach("nowhere")
        return read(self, name, offset, length)

    monkeypatch.setattr(LinkedPeer, "read_attachment", breaks)
    txid = a.bulk(BulkLoad(nodes=3))
    assert len(broken) == 4
    assert len(list(a.snapshot(at_least=txid).nodes())) == 3
    cluster.agree()
