"""Durable commits: one thread, many threads, and one thread that does not wait for each.

A commit adds one edge between two random nodes of an existing graph, which is the smallest change that a user of a
graph store makes. The limits write as many bytes as such a commit puts into the log, and do nothing else. SQLite adds
the same edge to the same graph. Larger commits set a property of so many bytes, beside libraries that put the same
bytes under a key.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from time import perf_counter

from ..engine import GraphStore
from ..engine.wal.format import FRAME, GROUP_HEADER
from . import graphs
from .harness import Bench, Line, Samples
from .limits import CommitLoop, LeaderLoop, PlainLoop, SyncerLoop, Waiter, pipelined
from .peers.key_values import KeyValuePeer, key_value_peers
from .sqlite_peer import SqliteGraph
from .traffic import Commit, Pairs, edge_commits, many_threads, one_thread

SIZES = (100, 1000, 100_000)
"""Bytes of the values of larger commits."""
_VALUES = 1000
IN_FLIGHT = 256
"""Commits that a pipelining thread has under way at most."""


def ours_pipelined(store: GraphStore, nodes: range, seconds: float) -> float:
    """Commits per second of one thread that waits for a commit only when `IN_FLIGHT` others came after it."""
    pairs, first, count = Pairs(len(nodes), 1), nodes.start, 0
    under_way: deque[Future[int]] = deque()
    began = perf_counter()
    end = began + seconds
    while perf_counter() < end:
        source, target = pairs.next()
        with store.transaction("pipelined") as tx:
            tx.add_edge(first + source, graphs.EDGE_TYPE, first + target)
        under_way.append(tx.outcome)
        if len(under_way) >= IN_FLIGHT:
            under_way.popleft().result()
        count += 1
    for outcome in under_way:
        outcome.result()
    return count / (perf_counter() - began)


def bare_commits(loop: CommitLoop) -> Commit:
    waiter = Waiter()
    return lambda: loop.commit(waiter)


def sqlite_commits(graph: SqliteGraph, nodes: range, seed: int, lock: threading.Lock | None = None) -> Commit:
    """SQLite's commit of the same edge; under `lock` where threads share it."""
    pairs, first, add = Pairs(len(nodes), seed), nodes.start, graph.add
    if lock is None:
        def alone() -> None:
            source, target = pairs.next()
            add(first + source, first + target)

        return alone

    def shared() -> None:
        source, target = pairs.next()
        with lock:
            add(first + source, first + target)

    return shared


def record_bytes(store: GraphStore, nodes: range) -> int:
    """What such a commit is in the log, without the header of its group."""
    before = store.positions().durable
    one_thread(edge_commits(store, nodes, 0), 0.1)
    sizes = [FRAME.size + len(r.header) + len(r.payload) for r in store.log.read(before)]
    return round(sum(sizes) / len(sizes))


def faster(*limits: Samples) -> Samples:
    """The limit that is higher in this run."""
    return max(limits, key=lambda samples: samples.median)


def run(bench: Bench) -> Iterator[Line]:
    edges = graphs.real(bench.scale.graph)[: bench.scale.graph_edges]
    with bench.scratch("commits") as place, closing(SqliteGraph(place / "peer.sqlite")) as peer:
        bench.say("commits: loading both graphs")
        with GraphStore.open(place / "store", online_backup_enabled=False) as store:
            nodes = graphs.load(store, edges)
            peer.load((edges + nodes.start).tolist())
            peer.tune()
            yield from _measure(bench, place, store, nodes, peer)
            yield from _sizes(bench, place, store, nodes)


def _measure(bench: Bench, place: Path, store: GraphStore, nodes: range, peer: SqliteGraph) -> Iterator[Line]:
    seconds, threads, shared = bench.scale.seconds, bench.scale.threads, threading.Lock()
    record = record_bytes(store, nodes)
    alone, grouped = record + GROUP_HEADER.size, record + GROUP_HEADER.size // threads

    def bare(loop: CommitLoop) -> float:
        return many_threads(threads, lambda number: bare_commits(loop), seconds=seconds)

    with (closing(PlainLoop(place / "plain", alone)) as plain, closing(LeaderLoop(place / "leader", grouped)) as leader,
          closing(SyncerLoop(place / "syncer", grouped)) as syncer):
        one = bench.interleave("commits, 1 thread", {
            "ours": lambda: one_thread(edge_commits(store, nodes, 1), seconds),
            "plain": lambda: one_thread(bare_commits(plain), seconds),
            "sqlite": lambda: one_thread(sqlite_commits(peer, nodes, 1), seconds),
        })
        many = bench.interleave(f"commits, {threads} threads", {
            "ours": lambda: many_threads(threads, lambda n: edge_commits(store, nodes, n), seconds=seconds),
            "leader": lambda: bare(leader),
            "syncer": lambda: bare(syncer),
            "sqlite": lambda: many_threads(threads, lambda n: sqlite_commits(peer, nodes, n, shared), seconds=seconds),
        })
        flowing = bench.interleave("commits, pipelined", {
            "ours": lambda: ours_pipelined(store, nodes, seconds),
            "bare": lambda: pipelined(syncer, seconds, IN_FLIGHT),
            "sqlite": lambda: one_thread(sqlite_commits(peer, nodes, 2), seconds),
        })
    sqlite, unit = "SQLite WAL, synchronous=FULL", "commits/s"
    name = "durable commits, 1 thread"
    yield Line(workload=name, figure=one["ours"], unit=unit, peer="plain pwrite + fdatasync loop",
               peer_figure=one["plain"], target=0.8, note=f"{alone} bytes of log a commit")
    yield Line(workload=name, figure=one["ours"], unit=unit, peer=sqlite, peer_figure=one["sqlite"], target=1.0)
    name = f"durable commits, {threads} threads"
    yield Line(workload=name, figure=many["ours"], unit=unit, peer="bare group commit, no other work",
               peer_figure=faster(many["leader"], many["syncer"]), target=0.5, note=f"{grouped} bytes of log a commit")
    yield Line(workload=name, figure=many["ours"], unit=unit, peer=sqlite, peer_figure=many["sqlite"], target=1.0)
    name = f"durable commits, pipelined, 1 thread, {IN_FLIGHT} in flight"
    yield Line(workload=name, figure=flowing["ours"], unit=unit, peer="bare pipelined loop, no other work",
               peer_figure=flowing["bare"])
    yield Line(workload=name, figure=flowing["ours"], unit=unit, peer=f"{sqlite}, 1 thread, synced each",
               peer_figure=flowing["sqlite"], target=1.0)


def value_commits(store: GraphStore, nodes: range, size: int, seed: int) -> Commit:
    """Our commit of a value: a property of one of `_VALUES` nodes."""
    value, numbers = random.Random(seed).randbytes(size), itertools.cycle(nodes[:_VALUES])

    def commit() -> None:
        with store.transaction() as tx:
            tx.set_properties(next(numbers), value=value)

    return commit


def puts(peer: KeyValuePeer, size: int, seed: int) -> Commit:
    """A peer's commit of a value, under one of `_VALUES` keys."""
    value, numbers = random.Random(seed).randbytes(size), itertools.cycle(range(_VALUES))
    return lambda: peer.put(b"key %08d" % next(numbers), value)


def _sizes(bench: Bench, place: Path, store: GraphStore, nodes: range) -> Iterator[Line]:
    seconds, threads = bench.scale.seconds, bench.scale.threads
    with ExitStack() as closing:
        peers = key_value_peers(place)
        for peer in peers.values():
            closing.callback(peer.close)
        for size, count in itertools.product(SIZES, (1, threads)):
            def ours(size: int = size, count: int = count) -> float:
                found = many_threads(count, partial(value_commits, store, nodes, size), seconds=seconds)
                store.checkpoint()  # so that it is not done in the time of the next one
                return found

            what = f"durable commits of {size:,} bytes, {count} thread{'s' if count > 1 else ''}"
            figures = bench.interleave(what, {"ours": ours, **{
                name: partial(many_threads, count, partial(puts, peer, size), seconds=seconds)
                for name, peer in peers.items()}})
            for name in peers:
                yield Line(workload=what, figure=figures["ours"], unit="commits/s", peer=name,
                           peer_figure=figures[name])
