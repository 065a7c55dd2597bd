"""Ours: the graph store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...engine import GraphStore
from ...engine.builtin.graph import BulkLoad, GraphView
from ..graphs import EDGE_TYPE
from .adapter import DurablePeer, GraphData

_LABEL = "Person"


def _decade(year: int) -> str:
    return f"Born in the {year // 10}0s"


class HoldfastGraph(DurablePeer):
    """A graph store, read through a view."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._store = self._open()
        self._view: GraphView | None = None

    def _open(self) -> GraphStore:
        return GraphStore.open(self.place / "store", online_backup_enabled=False)

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        nodes = [data.properties(node) for node in range(1, len(data) + 1)] if properties else len(data)
        self._born = data.born
        self._load = BulkLoad(nodes=nodes, labels=_LABEL, edges=data.edges, edge_type=EDGE_TYPE)

    def load(self) -> None:
        self._store.bulk(self._load)

    def index(self) -> None:
        with self._store.transaction() as tx:
            tx.create_index(_LABEL, "name")
            for node, born in enumerate(self._born, 1):
                tx.add_label(node, _decade(born))
        self._store.checkpoint()

    def begin_reading(self) -> None:
        self._view = self._store.snapshot()
        self._neighbours, self._properties = self._view.neighbors, self._view.properties

    def end_reading(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None

    def neighbours(self, node: int) -> Sequence[int]:
        return self._neighbours(node, EDGE_TYPE)

    def two_hops(self, node: int) -> Sequence[int]:
        neighbours = self._neighbours
        reached: set[int] = set()
        for middle in neighbours(node, EDGE_TYPE):
            reached.update(neighbours(middle, EDGE_TYPE))
        return list(reached)

    def three_hops(self, node: int) -> Sequence[int]:
        assert self._view is not None
        reached = np.array(self.two_hops(node), dtype=np.int64)
        targets: list[int] = np.unique(self._view.expand(reached, EDGE_TYPE)[1]).tolist()
        return targets

    def search(self, node: int) -> int:
        """A walk over the whole graph: its edges are taken as arrays first."""
        assert self._view is not None
        ids, offsets, targets, _ = self._view.csr(EDGE_TYPE)
        frontier = np.searchsorted(ids, [node])
        seen = np.zeros(len(ids), dtype=bool)
        seen[frontier] = True
        while len(frontier):
            ends = offsets[frontier + 1]
            counts = ends - offsets[frontier]
            places = np.repeat(ends - np.cumsum(counts), counts) + np.arange(int(counts.sum()))
            reached = targets[places]
            frontier = np.unique(reached[~seen[reached]])
            seen[frontier] = True
        return int(seen.sum())

    def properties(self, node: int) -> dict[str, Any]:
        return self._properties(node)

    def find(self, name: str) -> Sequence[int]:
        assert self._view is not None
        return list(self._view.nodes(_LABEL, name=name))

    def of_decade(self, first: int) -> Sequence[int]:
        assert self._view is not None
        return list(self._view.nodes(_decade(first)))

    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._store.transaction() as tx:
            for source, target in pairs:
                tx.add_edge(source, EDGE_TYPE, target)

    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._store.transaction() as tx:
            for source, target in pairs:
                tx.delete_edge(next(edge.id for edge in tx.edges(source, EDGE_TYPE) if edge.target == target))

    def reopen(self) -> None:
        self.close()
        self._store = self._open()

    def close(self) -> None:
        self.end_reading()
        self._store.close()

    def bytes(self) -> int:
        state = [path for path in self.place.rglob("*") if path.is_file() and path.parent.name == "state"]
        return sum(path.stat().st_blocks * 512 for path in state)
