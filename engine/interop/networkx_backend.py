"""The NetworkX backend: functions of NetworkX that are computed from arrays, with SciPy.

Each has the arguments, result and errors of the function of its name in NetworkX. NetworkX calls them, for a view and
for a `NetworkXGraph`. A function that is not here is refused, unless `networkx.config.fallback_to_nx` is set: then the
graph is first converted to one of NetworkX's, at a microsecond or more for each node and edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .libraries import library
from .networkx_graph import NetworkXGraph, graph_of

# --- conversion ------------------------------------------------------------------------------------------------------


def convert_from_nx(graph: Any, *, edge_attrs: Mapping[str, Any] | None = None, **others: Any) -> NetworkXGraph:
    """A graph of NetworkX's for the functions here, with the one attribute of edges that some of them use."""
    [(weight, default)] = edge_attrs.items() if edge_attrs else [(None, 1)]
    return NetworkXGraph.of_networkx(graph, weight, default)


def convert_to_nx(result: Any, *, name: str | None = None) -> Any:
    """A graph as one of NetworkX's. Any other result is as NetworkX has it."""
    return graph_of(result).original() if hasattr(result, "__networkx_backend__") else result


# --- link analysis and degrees ---------------------------------------------------------------------------------------


def pagerank(G: Any, alpha: float = 0.85, personalization: Mapping[Any, float] | None = None, max_iter: int = 100,
             tol: float = 1.0e-6, nstart: Mapping[Any, float] | None = None, weight: str | None = "weight",
             dangling: Mapping[Any, float] | None = None) -> dict[Any, float]:
    graph = graph_of(G)
    n = len(graph.nodes)
    if n == 0:
        return {}
    sparse, matrix = library("scipy.sparse"), graph.matrix(weight)
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    shares = np.divide(1.0, sums, out=np.zeros(n), where=sums != 0)
    step = (sparse.diags_array(shares, format="csr") @ matrix).T.tocsr()
    ranks = np.full(n, 1 / n) if nstart is None else _spread(graph, nstart)
    towards = np.full(n, 1 / n) if personalization is None else _spread(graph, personalization)
    from_dangling = towards if dangling is None else _spread(graph, dangling)
    dead = np.flatnonzero(sums == 0)
    for _ in range(max_iter):
        before = ranks
        ranks = alpha * (step @ before + before[dead].sum() * from_dangling) + (1 - alpha) * towards
        if np.abs(ranks - before).sum() < n * tol:
            return dict(zip(graph.nodes, ranks.tolist(), strict=True))
    raise library("networkx").PowerIterationFailedConvergence(max_iter)


def _spread(graph: NetworkXGraph, given: Mapping[Any, float]) -> Any:
    """Values by node as shares of 1."""
    values = np.array([given.get(node, 0) for node in graph.nodes], np.float64)
    if (total := values.sum()) == 0:
        raise ZeroDivisionError
    return values / total


def degree_centrality(G: Any) -> dict[Any, float]:
    return _centrality(graph_of(G), True, True)


def in_degree_centrality(G: Any) -> dict[Any, float]:
    return _centrality(graph_of(G), False, True)


def out_degree_centrality(G: Any) -> dict[Any, float]:
    return _centrality(graph_of(G), True, False)


def _centrality(graph: NetworkXGraph, out: bool, into: bool) -> dict[Any, float]:
    n = len(graph.nodes)
    if n <= 1:
        return dict.fromkeys(graph.nodes, 1)
    return dict(zip(graph.nodes, (graph.degrees(out, into) * (1.0 / (n - 1.0))).tolist(), strict=True))


# --- reachability ----------------------------------------------------------------------------------------------------


def single_source_shortest_path_length(G: Any, source: Any, cutoff: float | None = None) -> dict[Any, int]:
    graph = graph_of(G)
    if graph.place(source) is None:
        raise library("networkx").NodeNotFound(f"Source {source} is not in G")
    order, depths = _breadth_first(graph, source)
    nodes = graph.nodes
    if cutoff is not None:
        order = order[depths <= cutoff]
    return {nodes[place]: depth for place, depth in zip(order.tolist(), depths.tolist(), strict=False)}


def descendants(G: Any, source: Any) -> set[Any]:
    return _reached(graph_of(G), source)


def ancestors(G: Any, source: Any) -> set[Any]:
    return _reached(graph_of(G), source, backwards=True)


def _reached(graph: NetworkXGraph, source: Any, backwards: bool = False) -> set[Any]:
    if graph.place(source) is None:
        raise library("networkx").NetworkXError(f"The node {source} is not in the graph.")
    order, _ = _breadth_first(graph, source, backwards)
    return {graph.nodes[place] for place in order[1:].tolist()}


def _breadth_first(graph: NetworkXGraph, source: Any, backwards: bool = False) -> tuple[Any, Any]:
    """The places of the nodes that can be reached, by distance, and their distances."""
    matrix = graph.matrix()
    order, parents = library("scipy.sparse.csgraph").breadth_first_order(
        matrix.T.tocsr() if backwards else matrix, graph.place(source), directed=True, return_predecessors=True)
    # Nodes are in the order of their parents. So those of one distance follow those whose parents end there.
    at = np.empty(len(graph.nodes), np.int64)
    at[order] = np.arange(len(order))
    parents = at[parents[order[1:]]]
    depths = np.zeros(len(order), np.int64)
    begin, end, depth = 0, 1, 0
    while end < len(order):
        begin, end, depth = end, 1 + int(np.searchsorted(parents, end)), depth + 1
        depths[begin:end] = depth
    return order, depths


# --- components ------------------------------------------------------------------------------------------------------


def connected_components(G: Any) -> Iterator[set[Any]]:
    return _components(graph_of(G), "weak")


def weakly_connected_components(G: Any) -> Iterator[set[Any]]:
    return _components(graph_of(G), "weak")


def strongly_connected_components(G: Any) -> Iterator[set[Any]]:
    return _components(graph_of(G), "strong")


def number_connected_components(G: Any) -> int:
    return _labelled(graph_of(G), "weak")[0]


def number_weakly_connected_components(G: Any) -> int:
    return _labelled(graph_of(G), "weak")[0]


def number_strongly_connected_components(G: Any) -> int:
    return _labelled(graph_of(G), "strong")[0]


def is_connected(G: Any) -> bool:
    return _is_one(graph_of(G), "weak", "Connectivity is undefined for the null graph.")


def is_weakly_connected(G: Any) -> bool:
    return _is_one(graph_of(G), "weak", "Connectivity is undefined for the null graph.")


def is_strongly_connected(G: Any) -> bool:
    return _is_one(graph_of(G), "strong", "Connectivity is undefined for the null graph.")


def node_connected_component(G: Any, n: Any) -> set[Any]:
    graph = graph_of(G)
    if graph.place(n) is None:
        raise KeyError(n)
    return {n} | _reached(graph, n)


def _labelled(graph: NetworkXGraph, connection: str) -> tuple[int, Any]:
    """How many components there are, and the number of each node's."""
    if not graph.nodes:
        return 0, np.empty(0, np.int32)
    count, labels = library("scipy.sparse.csgraph").connected_components(graph.matrix(), True, connection)
    return int(count), labels


def _components(graph: NetworkXGraph, connection: str) -> Iterator[set[Any]]:
    count, labels = _labelled(graph, connection)
    order = np.argsort(labels, kind="stable").tolist()
    ends = np.cumsum(np.bincount(labels, minlength=count)).tolist()
    begin, nodes = 0, graph.nodes
    for end in ends:
        yield {nodes[place] for place in order[begin:end]}
        begin = end


def _is_one(graph: NetworkXGraph, connection: str, undefined: str) -> bool:
    if not graph.nodes:
        raise library("networkx").NetworkXPointlessConcept(undefined)
    return _labelled(graph, connection)[0] == 1
