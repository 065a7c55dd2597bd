"""Bulk load: a whole graph into an empty store, durable at the end, so that it can be walked in both directions.

Ours takes the edges as one array, SQLite as rows of a list, which is what each likes best; both are made outside of the
timing, as are the empty database and the open store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from time import perf_counter

from ..engine import GraphStore
from . import graphs
from .harness import Bench, Line
from .sqlite_peer import SqliteGraph


def run(bench: Bench) -> Iterator[Line]:
    for name in bench.scale.bulk:
        edges = graphs.real(name)[: bench.scale.graph_edges]
        rows = edges.tolist()

        def ours(edges: graphs.Edges = edges) -> float:
            with (bench.scratch("bulk") as place,
                  GraphStore.open(place / "store", online_backup_enabled=False) as store):
                os.sync()
                began = perf_counter()
                graphs.load(store, edges)
                return len(edges) / (perf_counter() - began)

        def theirs(rows: list[list[int]] = rows) -> float:
            with bench.scratch("bulk") as place, closing(SqliteGraph(place / "peer.sqlite")) as peer:
                os.sync()
                began = perf_counter()
                peer.load(rows)
                return len(rows) / (perf_counter() - began)

        figures = bench.interleave(f"bulk load of {name}", {"ours": ours, "sqlite": theirs},
                                   rounds=bench.scale.load_rounds)
        yield Line(workload=f"bulk load of {name}, {len(edges):,} edges", figure=figures["ours"], unit="edges/s",
                   peer="SQLite, one transaction, indexes after", peer_figure=figures["sqlite"], target=2.0)
