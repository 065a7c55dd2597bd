"""Durable commits from many asyncio tasks in one loop, beside one thread that pipelines the same commits.

Each task waits for its own commit before it makes the next one. So as many commits are under way as there are tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import perf_counter

from ..engine import GraphStore, GraphTransaction, GraphView
from ..engine.aio import AsyncStore
from . import graphs
from .harness import Bench, Line
from .traffic import Pairs
from .workload_commits import IN_FLIGHT, ours_pipelined

TASKS = 1000


def ours_aio(store: GraphStore, nodes: range, seconds: float) -> float:
    """Commits per second of `TASKS` tasks, each of which waits for its commit."""
    return asyncio.run(_commits(store, nodes, seconds))


async def _commits(store: GraphStore, nodes: range, seconds: float) -> float:
    pairs, first, count = Pairs(len(nodes), 2), nodes.start, 0
    began = perf_counter()
    end = began + seconds

    async def commit(face: AsyncStore[GraphTransaction, GraphView]) -> None:
        nonlocal count
        while perf_counter() < end:
            source, target = pairs.next()
            async with face.transaction() as tx:
                tx.add_edge(first + source, graphs.EDGE_TYPE, first + target)
            count += 1

    async with AsyncStore(store) as face, asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(commit(face))
    return count / (perf_counter() - began)


def run(bench: Bench) -> Iterator[Line]:
    edges = graphs.real(bench.scale.graph)[: bench.scale.graph_edges]
    seconds = bench.scale.seconds
    with bench.scratch("aio") as place:
        bench.say("aio: loading the graph")
        with GraphStore.open(place / "store", online_backup_enabled=False) as store:
            nodes = graphs.load(store, edges)
            flowing = bench.interleave("commits, asyncio", {
                "ours": lambda: ours_aio(store, nodes, seconds),
                "pipelined": lambda: ours_pipelined(store, nodes, seconds),
            })
    yield Line(workload=f"durable commits, asyncio, {TASKS:,} tasks", figure=flowing["ours"], unit="commits/s",
               peer=f"Holdfast, pipelined, 1 thread, {IN_FLIGHT} in flight", peer_figure=flowing["pipelined"],
               target=0.8)
