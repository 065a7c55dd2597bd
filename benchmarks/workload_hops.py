"""Hops: the neighbours of random nodes, and the distinct neighbours of those, as a Python list of ints on both sides.

First with an empty overlay, then with edges in it that were written through transactions and not checkpointed; SQLite
gets the same edges. Both hold one snapshot open, and both are warm: every run is preceded by one that is not counted.
Before anything is timed the two are compared, since a race between different answers has no winner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from time import perf_counter

import numpy as np

from ..engine import GraphStore
from ..engine.builtin.graph import GraphView
from . import graphs
from .harness import Bench, Line
from .sqlite_peer import SqliteGraph
from .store_child import NEVER_CHECKPOINT

_ONE_CHUNK, _TWO_CHUNK = 1000, 20
_DRAWN = 100_000


Hops = Callable[[Sequence[int]], list[int]]
"""Makes the list of each of these nodes, in a loop as a user would write it, and returns the last one."""


def our_hops(view: GraphView, nodes: Sequence[int]) -> list[int]:
    """The targets of each node's edges."""
    neighbors, kind, found = view.neighbors, graphs.EDGE_TYPE, []
    for node in nodes:
        found = neighbors(node, kind)
    return found


def our_two_hops(view: GraphView, nodes: Sequence[int]) -> list[int]:
    """The distinct targets of the edges of each node's targets."""
    neighbors, kind, found = view.neighbors, graphs.EDGE_TYPE, []
    for node in nodes:
        reached: set[int] = set()
        for middle in neighbors(node, kind):
            reached.update(neighbors(middle, kind))
        found = list(reached)
    return found


def per_second(hops: Hops, nodes: Sequence[int], chunk: int, seconds: float) -> float:
    """Nodes per second, over `nodes` round and round; the clock is looked at after each `chunk`."""
    done, first = 0, 0
    began = perf_counter()
    end = began + seconds
    while perf_counter() < end:
        hops(nodes[first : first + chunk])
        done += chunk
        first = (first + chunk) % len(nodes)
    return done / (perf_counter() - began)


def run(bench: Bench) -> Iterator[Line]:
    edges = graphs.real(bench.scale.graph)[: bench.scale.graph_edges]
    with bench.scratch("hops") as place, closing(SqliteGraph(place / "peer.sqlite")) as peer:
        bench.say("hops: loading both graphs")
        with GraphStore.open(place / "store", settings=NEVER_CHECKPOINT, online_backup_enabled=False) as store:
            ids = graphs.load(store, edges)
            peer.load((edges + ids.start).tolist())
            peer.tune()
            random = np.random.default_rng(7)
            nodes = random.integers(ids.start, ids.stop, _DRAWN).tolist()
            yield from _measure(bench, store, peer, nodes, "overlay empty")
            added = random.integers(ids.start, ids.stop, (bench.scale.overlay_edges, 2), dtype=np.int64)
            for part in np.array_split(added, max(1, len(added) // 1000)):
                with store.transaction() as tx:
                    for source, target in part.tolist():
                        tx.add_edge(source, graphs.EDGE_TYPE, target)
            peer.add_many(added)
            yield from _measure(bench, store, peer, nodes, f"{len(added):,} edges in the overlay")


def _measure(bench: Bench, store: GraphStore, peer: SqliteGraph, nodes: list[int], state: str) -> Iterator[Line]:
    peer.begin()
    with store.snapshot() as view:
        one, two = partial(our_hops, view), partial(our_two_hops, view)
        for node in nodes[:300]:
            for ours, theirs in ((one, peer.hops), (two, peer.two_hops)):
                if sorted(ours([node])) != sorted(theirs([node])):
                    raise RuntimeError(f"the two sides disagree about node {node}: the comparison is void")
        seconds = bench.scale.seconds
        for name, ours, theirs, chunk, target in (("one hop", one, peer.hops, _ONE_CHUNK, 4.0),
                                                  ("two hops, distinct", two, peer.two_hops, _TWO_CHUNK, None)):
            figures = bench.interleave(f"{name}, {state}", {
                "ours": partial(per_second, ours, nodes, chunk, seconds),
                "sqlite": partial(per_second, theirs, nodes, chunk, seconds),
            })
            yield Line(workload=f"{name}, {state}", figure=figures["ours"], unit="nodes/s", peer="SQLite, warm",
                       peer_figure=figures["sqlite"], target=target)
    peer.end()
