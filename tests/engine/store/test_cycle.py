"""The Cycle workload of FoundationDB's testers: nodes in a ring, and transactions each of which moves one of them.

A transaction reads three successors and swaps two nodes in the ring, so before and after it there is one ring of all
nodes. A lost update, a half-applied transaction, a view of two moments: each leaves two rings, or a tail. So whatever
is looked at is asked one thing: is it one ring? Threads write all the while, by every durability; looked at are
snapshots, unsynced ones too, backups, restores to any transaction (which replay the log up to there), read-only
openings, crash images, and the store itself, reopened.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, ClassVar

import pytest
from staging_memory import StagingMemory

from holdfast import backup
from holdfast.engine.builtin.graph import GraphEngine
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Engine, StagingEngine
from holdfast.engine.contract.transaction import Durability
from holdfast.engine.contract.view import View
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.support.crash_images import copy_running, unlucky

NODES = 12
SWAPS = 25
SETTINGS = Settings(segment_bytes=128 << 10, keep_logs="for ever", heartbeat_s=0, relaxed_ms=5)
DURABILITIES: tuple[Durability, ...] = ("synced", "pipelined", "relaxed")


class Ring(ABC):
    """How one engine holds a ring: which node follows which."""

    engine: ClassVar[type[Engine[Any, Any]]]

    @abstractmethod
    def make(self, tx: Any) -> list[int]:
        """Make `NODES` nodes, without successors; their ids, in order."""

    @abstractmethod
    def successor(self, tx: Any, node: int) -> int: ...

    @abstractmethod
    def point(self, tx: Any, node: int, to: int) -> None: ...

    @abstractmethod
    def successors(self, view: Any) -> dict[int, list[int]]:
        """Of every node."""

    def swap(self, tx: Any, node: int) -> None:
        """From node → a → b → c to node → b → a → c."""
        a = self.successor(tx, node)
        b = self.successor(tx, a)
        c = self.successor(tx, b)
        self.point(tx, node, b)
        self.point(tx, b, a)
        self.point(tx, a, c)


class KeysRing(Ring):
    engine: ClassVar[type[Engine[Any, Any]]] = MemoryEngine

    def make(self, tx: Any) -> list[int]:
        return list(range(NODES))

    def successor(self, tx: Any, node: int) -> int:
        return int(tx.get(b"%d" % node))

    def point(self, tx: Any, node: int, to: int) -> None:
        tx.put(b"%d" % node, b"%d" % to)

    def successors(self, view: Any) -> dict[int, list[int]]:
        return {int(key): [int(value)] for key, value in view.items()}


class StagingRing(KeysRing):
    engine: ClassVar[type[Engine[Any, Any]]] = StagingMemory


class RecordsRing(Ring):
    """Values long enough to take several records each."""

    engine = RecordsEngine

    def make(self, tx: Any) -> list[int]:
        return [tx.insert(b"") for _ in range(NODES)]

    def successor(self, tx: Any, node: int) -> int:
        return int(tx.get(node))

    def point(self, tx: Any, node: int, to: int) -> None:
        tx.update(node, b"%0*d" % (20 + node * 15, to))

    def successors(self, view: Any) -> dict[int, list[int]]:
        return {number: [int(value)] for number, value in view.items()}


class GraphRing(Ring):
    engine = GraphEngine

    def make(self, tx: Any) -> list[int]:
        return [tx.add_node("N") for _ in range(NODES)]

    def successor(self, tx: Any, node: int) -> int:
        (found,) = tx.neighbors(node, "NEXT")
        return int(found)

    def point(self, tx: Any, node: int, to: int) -> None:
        for edge in tx.edges(node, "NEXT"):
            tx.delete_edge(edge.id)
        tx.add_edge(node, "NEXT", to)

    def successors(self, view: Any) -> dict[int, list[int]]:
        return {node: list(view.neighbors(node, "NEXT")) for node in view.nodes("N")}


RINGS = [pytest.param(ring, id=ring.engine.name) for ring in (KeysRing(), StagingRing(), RecordsRing(), GraphRing())]


def assert_one_ring(successors: dict[int, list[int]], what: str) -> None:
    node, seen = min(successors), []
    while node not in seen:
        seen.append(node)
        assert node in successors, f"{what}: node {node} is not there"
        assert len(successors[node]) == 1, f"{what}: after {node} come {successors[node]}"
        node = successors[node][0]
    assert (len(seen), node) == (NODES, seen[0]), f"{what}: {len(seen)} of {NODES} nodes on the way from {seen[0]}"


@pytest.mark.parametrize(("successors", "says"), [
    ({n: [(n + 1) % 6 + 6 * (n // 6)] for n in range(NODES)}, "6 of 12 nodes"),  # two rings
    ({n: [n + 1 if n + 1 < NODES else 3] for n in range(NODES)}, "12 of 12 nodes"),  # a tail
    ({n: [n + 1] for n in range(NODES)}, "node 12 is not there"),
    ({n: [(n + 1) % NODES] * (1 + (n == 7)) for n in range(NODES)}, "after 7 come"),
])
def test_what_is_not_one_ring_is_noticed(successors: dict[int, list[int]], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert_one_ring(successors, "it")


class Cycle:
    """A store with a ring in it, as of transaction 1."""

    def __init__(self, ring: Ring, root: Path) -> None:
        self.ring, self.root = ring, root
        self.store = self.open(root / "store")
        with self.store.transaction() as tx:
            self.nodes = ring.make(tx)
            for node, to in zip(self.nodes, [*self.nodes[1:], self.nodes[0]], strict=True):
                ring.point(tx, node, to)

    def open(self, path: Path, *, read_only: bool = False) -> Store[Any, Any]:
        return Store.open(path, self.ring.engine, settings=SETTINGS, read_only=read_only)

    def look(self, view: View, what: str) -> None:
        with view:
            assert list(view.check()) == []
            assert_one_ring(self.ring.successors(view), f"{what} at transaction {view.txid}")

    def look_into(self, path: Path, what: str, *, read_only: bool = True, txid: int | None = None) -> int:
        """Open what is at `path`; the transaction it shows."""
        with self.open(path, read_only=read_only) as store:
            view = store.snapshot()
            assert txid is None or view.txid == txid
            self.look(view, what)
            return int(view.txid)

    def write(self, seed: int, durability: Durability) -> None:
        random = Random(seed)
        for _ in range(SWAPS):
            with self.store.transaction(durability) as tx:
                self.ring.swap(tx, random.choice(self.nodes))

    def read(self, done: Event, unsynced: bool) -> None:
        while not done.is_set():
            self.look(self.store.snapshot(unsynced=unsynced), "an unsynced snapshot" if unsynced else "a snapshot")

    def checkpoint(self, done: Event) -> None:
        while not done.wait(0.005):
            self.store.checkpoint()

    def back_up(self, done: Event) -> None:
        """Incrementals of one target, and new full backups, over and over."""
        number = 0
        while not done.is_set():
            number += 1
            fresh = self.root / f"full-{number}"
            for target in (self.root / "target", fresh):
                report = backup.run(self.store, target, policy=backup.Policy(compact=None))
                self.look_into(target, f"a {report.kind} backup", txid=report.to_txid)
            backup.restore(fresh, self.root / "restored", engine=self.ring.engine)
            self.look_into(self.root / "restored", "a restored store", read_only=False)
            shutil.rmtree(fresh)
            shutil.rmtree(self.root / "restored")

    def run(self) -> None:
        """All threads, until the writers are done; raises what any of them raised."""
        done = Event()
        others: list[Callable[[], None]] = [lambda: self.read(done, False), lambda: self.checkpoint(done),
                                            lambda: self.back_up(done)]
        if issubclass(self.ring.engine, StagingEngine):
            others.append(lambda: self.read(done, True))
        with ThreadPoolExecutor(len(DURABILITIES) + len(others)) as threads:
            beside = [threads.submit(other) for other in others]
            try:
                for writer in [threads.submit(self.write, n, how) for n, how in enumerate(DURABILITIES)]:
                    writer.result()
            finally:
                done.set()
            for each in beside:
                each.result()


@pytest.mark.parametrize("ring", RINGS)
def test_one_ring_wherever_it_is_looked_at(ring: Ring, tmp_path: Path) -> None:
    cycle = Cycle(ring, tmp_path)
    target = tmp_path / "target"
    try:
        cycle.store.checkpoint()
        backup.run(cycle.store, target)
        cycle.run()
        last = len(DURABILITIES) * SWAPS + 1
        cycle.store.wait(last, 30)
        cycle.look(cycle.store.snapshot(at_least=last), "the store")
        for number, tail in enumerate(("as it is", "noise behind", "torn")):
            image = tmp_path / f"image-{number}"
            copy_running(tmp_path / "store", image)
            unlucky(image, tail, b"noise" * 20, 0.5, cycle.store.positions().checkpointed)
            assert cycle.look_into(image, f"a crash image, its log {tail},", read_only=False) <= last
        backup.run(cycle.store, target, policy=backup.Policy(compact=None))
    finally:
        cycle.store.close()
    assert cycle.look_into(tmp_path / "store", "the store, reopened,", read_only=False) == last
    assert cycle.look_into(target, "the backup") == backup.verify(target, engine=ring.engine).bounds.last == last
    bounds = backup.info(target).bounds
    assert bounds.first == 1, "every transaction can be restored"
    for txid in range(1, last + 1, 5):
        backup.restore(target, tmp_path / f"to-{txid}", to_txid=txid, engine=ring.engine)
        assert cycle.look_into(tmp_path / f"to-{txid}", "a restored store") == txid
