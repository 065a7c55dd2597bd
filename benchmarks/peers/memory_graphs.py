"""Libraries that keep a graph in memory: what reading costs if nothing needs to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import igraph
import networkx as nx
import numpy as np

from .adapter import GraphData, GraphPeer


class NetworkxGraph(GraphPeer):
    """A `DiGraph`: dicts of dicts."""

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        self._edges = data.edges.tolist()
        self._nodes = [(node, data.properties(node) if properties else {}) for node in range(1, len(data) + 1)]

    def load(self) -> None:
        self._graph = nx.DiGraph()
        self._graph.add_nodes_from(self._nodes)
        self._graph.add_edges_from(self._edges)

    def index(self) -> None:
        self._names: dict[str, list[int]] = {}
        self._decades: dict[int, list[int]] = {}
        for node, properties in self._graph.nodes(data=True):
            self._names.setdefault(properties["name"], []).append(node)
            self._decades.setdefault(properties["born"] // 10, []).append(node)

    def neighbours(self, node: int) -> Sequence[int]:
        return list(self._graph.successors(node))

    def search(self, node: int) -> int:
        return 1 + len(nx.descendants(self._graph, node))

    def properties(self, node: int) -> dict[str, Any]:
        return dict(self._graph.nodes[node])

    def find(self, name: str) -> Sequence[int]:
        return list(self._names.get(name, ()))

    def of_decade(self, first: int) -> Sequence[int]:
        return list(self._decades.get(first // 10, ()))


class IgraphGraph(GraphPeer):
    """A directed `Graph`: arrays in C. Vertex 0 is there and has no edges."""

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        self._edges, self._count = data.edges, len(data) + 1
        self._attributes = {"name": [None, *data.names], "born": [None, *data.born],
                            "score": [None, *data.scores]} if properties else {}

    def load(self) -> None:
        self._graph = igraph.Graph(n=self._count, edges=self._edges, directed=True, vertex_attrs=self._attributes)

    def neighbours(self, node: int) -> Sequence[int]:
        found: list[int] = self._graph.successors(node)
        return found

    def search(self, node: int) -> int:
        return len(self._graph.subcomponent(node, mode="out"))

    def properties(self, node: int) -> dict[str, Any]:
        found: dict[str, Any] = self._graph.vs[node].attributes()
        return found

    def find(self, name: str) -> Sequence[int]:
        return [self._graph.vs.find(name).index]

    def index(self) -> None:
        self._born = np.array([0, *self._graph.vs["born"][1:]])  # its own selection makes an object of each vertex

    def of_decade(self, first: int) -> Sequence[int]:
        found: list[int] = np.flatnonzero(self._born // 10 == first // 10).tolist()
        return found
