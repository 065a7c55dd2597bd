"""The graph that the NetworkX backend computes on: nodes, and edges as arrays of places.

NetworkX calls a backend for any object whose `__networkx_backend__` names it. A view is one, and so is a
`NetworkXGraph`, which is made of a view and keeps its arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..builtin.graph import GraphView
from ..builtin.graph.csr import ends
from ..builtin.graph.lookups import Int64
from .convert import edge_weights, to_networkx
from .libraries import library

Floats = npt.NDArray[np.float64]


class NetworkXGraph:
    """A view for NetworkX: its edges of one type or of all, with or without their direction.

    Give the view itself to a function of NetworkX for all edges with their direction. Make one of these to choose, or
    to call several functions: the edges are read from the store once. It needs the view to be open as long as
    properties are read, for weights, or if NetworkX converts it to a graph of its own.

    Args:
        view: a view of a graph.
        type: only edges of this type.
        directed: whether edges have a direction.
    """

    __networkx_backend__ = "holdfast"

    def __init__(self, view: GraphView, type: str | None = None, *, directed: bool = True) -> None:
        found = ends(view, view._type(type))
        self.__networkx_cache__: dict[str, Any] = {}
        self._of(found.ids.tolist(), found.sources, found.targets, directed,
                 lambda name, default: edge_weights(view, found.edges, name, default),
                 lambda: to_networkx(view, type, directed=directed))
        self._multigraph = True

    def _of(self, nodes: list[Any], sources: Int64, targets: Int64, directed: bool,
            weights: Callable[[str, float], Floats], original: Callable[[], Any]) -> None:
        self.nodes = nodes
        self._sources, self._targets, self._directed = sources, targets, directed
        self._weights, self._original = weights, original
        self._places: dict[Any, int] = {}
        self._matrices: dict[str | None, Any] = {}

    @classmethod
    def of_networkx(cls, graph: Any, weight: str | None, default: float) -> NetworkXGraph:
        """A graph of NetworkX's, with one attribute of its edges. O(nodes + edges)."""
        made = cls.__new__(cls)
        nodes = list(graph)
        places = {node: place for place, node in enumerate(nodes)}
        edges = list(graph.edges(data=weight, default=default) if weight is not None else graph.edges())
        sources, targets = (np.array([places[edge[end]] for edge in edges], np.int64) for end in (0, 1))
        values = np.array([edge[2] for edge in edges], np.float64) if weight is not None else np.ones(len(edges))
        made._of(nodes, sources, targets, graph.is_directed(),
                 lambda name, _: values if name == weight else np.ones(len(edges)), lambda: graph)
        made._multigraph = graph.is_multigraph()
        return made

    def is_directed(self) -> bool:
        return self._directed

    def is_multigraph(self) -> bool:
        return self._multigraph

    def original(self) -> Any:
        """The same graph as one of NetworkX's."""
        return self._original()

    def place(self, node: Any) -> int | None:
        """The row of a node, or None if it is not there."""
        if not self._places:
            self._places = {other: place for place, other in enumerate(self.nodes)}
        return self._places.get(node)

    def degrees(self, out: bool = True, into: bool = True) -> Int64:
        """How many edges each node has. Without direction, both kinds are the same, and a loop counts twice."""
        n = len(self.nodes)
        found = np.zeros(n, np.int64)
        if out or not self._directed:
            found += np.bincount(self._sources, minlength=n)
        if into or not self._directed:
            found += np.bincount(self._targets, minlength=n)
        return found

    def matrix(self, weight: str | None = None, default: float = 1.0) -> Any:
        """The adjacency matrix, as NetworkX has it: weights of parallel edges are added up, and without direction, a
        loop counts once. Kept for further calls."""
        if weight not in self._matrices:
            sparse = library("scipy.sparse")
            n, values = len(self.nodes), self._weights(weight, default) if weight else np.ones(len(self._sources))
            rows, columns = self._sources, self._targets
            if not self._directed:
                apart = rows != columns
                rows, columns = (np.concatenate((a, b[apart])) for a, b in ((rows, columns), (columns, rows)))
                values = np.concatenate((values, values[apart]))
            matrix = sparse.coo_array((values, (rows, columns)), shape=(n, n)).tocsr()
            self._matrices[weight] = matrix
        return self._matrices[weight]


def graph_of(graph: GraphView | NetworkXGraph) -> NetworkXGraph:
    return graph if isinstance(graph, NetworkXGraph) else NetworkXGraph(graph)
