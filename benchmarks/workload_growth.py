"""What must not grow: the cost of calls against the size of the graph, and against the length of its log.

A store of each size is made and measured alone. Each figure is the median of some calls in this process: a commit, one
hop, a fresh view, an incremental backup of a hundred transactions, a status call over HTTP, and an opening after a
clean close. Flat means that the last size costs at most one and a half times the first.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from .. import backup
from ..backup.connection import Connection
from ..engine import GraphStore
from ..engine.store.settings import Settings
from . import graphs
from .harness import Bench, Curve, Samples
from .traffic import Pairs, edge_commits

_FLAT = 1.5
_CALLS, _FEW = 200, 7
_TOGETHER = 100
"""Transactions of an incremental backup."""
_SEGMENT = 128 << 10
_EDGES_PER_NODE = 16


def run(bench: Bench) -> Iterator[Curve]:
    yield from _curves(bench, "edges", bench.scale.growing_edges, _with_edges, "")
    yield from _curves(bench, "log segments", bench.scale.growing_segments, _with_segments,
                       f"segments of {_SEGMENT >> 10} KiB; the state stays as it is")


def _curves(bench: Bench, along: str, sizes: tuple[int, ...], make: Callable[[Path, int], None],
            note: str) -> Iterator[Curve]:
    costs: dict[str, list[Samples]] = {}
    for size in sizes:
        with bench.scratch("growth") as place:
            bench.say(f"growth: a store of {size:,} {along}")
            make(place / "store", size)
            os.sync()
            for name, found in _measured(place).items():
                costs.setdefault(name, []).append(found)
    for name, several in costs.items():
        yield Curve(workload=name, along=along, sizes=sizes, unit="ms", costs={"Holdfast": tuple(several)}, flat=_FLAT,
                    note=note)


def _with_edges(place: Path, size: int) -> None:
    edges = graphs.rmat(max(1, math.ceil(math.log2(size / _EDGES_PER_NODE))), size)
    with GraphStore.open(place, online_backup_enabled=False) as store:
        graphs.load(store, edges)


def _with_segments(place: Path, size: int) -> None:
    """Each transaction replaces a value that fills most of a segment."""
    settings = Settings(segment_bytes=_SEGMENT, keep_logs="for ever")
    with GraphStore.open(place, settings=settings, online_backup_enabled=False) as store:
        graphs.load(store, graphs.rmat(8, 4096))
        value = os.urandom(_SEGMENT * 3 // 4)
        with store.transaction() as tx:
            node = tx.add_node(filler=value)
        while len(store.log.segments()) < size:
            for _ in range(min(1000, max(1, size - len(store.log.segments())))):
                with store.transaction("relaxed") as tx:
                    tx.set_properties(node, filler=os.urandom(8) + value)
            assert tx.txid is not None
            store.wait(tx.txid)


def _measured(place: Path) -> dict[str, Samples]:
    """Milliseconds of each call, by its name."""
    settings = Settings(segment_bytes=_SEGMENT, keep_logs="for ever")
    found = {}
    with GraphStore.open(place / "store", settings=settings) as store:
        with store.snapshot() as view:
            nodes = range(1, view.node_count + 1)
        commit, pairs = edge_commits(store, nodes, 1), Pairs(len(nodes), 2)
        found["a durable commit of an edge"] = _each(commit, _CALLS)
        with store.snapshot() as view:
            found["one hop of a random node"] = _each(lambda: view.neighbors(pairs.next()[0] + 1), _CALLS * 5)

        def refresh() -> None:
            store.snapshot().close()

        found["a fresh view"] = _each(refresh, _CALLS)
        uri, target = store.backup_uri, place / "target"
        assert uri is not None
        backup.run(uri, target, policy=backup.Policy(verify=False))

        def incremental() -> None:
            backup.run(uri, target)

        found[f"an incremental backup of {_TOGETHER} transactions"] = _each(
            incremental, _FEW, before=lambda: [commit() for _ in range(_TOGETHER)])
        with Connection().opened(uri) as source:
            found["a status call over HTTP"] = _each(source.info, _CALLS)
        store.checkpoint()

    def reopen() -> None:
        opened.append(GraphStore.open(place / "store", settings=settings, online_backup_enabled=False))

    opened: list[GraphStore] = []
    found["an opening after a clean close"] = _each(reopen, _FEW, after=lambda: opened.pop().close())
    return found


def _each(call: Callable[[], object], count: int, *, before: Callable[[], object] = lambda: None,
          after: Callable[[], object] = lambda: None) -> Samples:
    """The median of `count` calls, three times, in milliseconds. What comes `before` and `after` each is not timed."""
    medians = []
    for _ in range(3):
        taken = []
        for _ in itertools.repeat(None, max(1, count // 3)):
            before()
            began = perf_counter()
            call()
            taken.append((perf_counter() - began) * 1000)
            after()
        taken.sort()
        medians.append(taken[len(taken) // 2])
    return Samples(tuple(medians))
