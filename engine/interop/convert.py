"""A view as a SciPy matrix, an igraph graph, and a NetworkX graph.

Nodes have their ids in ascending order in each of them, and edges theirs, so that place i is always the same node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..builtin.graph import Direction, GraphView
from ..builtin.graph.csr import Ends, ends
from ..builtin.graph.lookups import Int64
from ..builtin.graph.property_columns import label_sets, property_columns
from ..env.shown import type_name
from ..errors import InvalidInput
from .libraries import library

ID, LABELS, TYPE = "id", "labels", "type"
"""The attributes with the store's id, a node's labels and an edge's type. They hide properties of the same name."""


def to_scipy(view: GraphView, type: str | None = None, *, direction: Direction = "out",
             weight: str | None = None) -> tuple[Any, Int64]:
    """The adjacency matrix, and the ids of the nodes at its rows and columns.

    Args:
        view: a view of a graph.
        type: only edges of this type.
        direction: with "out", an edge's row is its source, with "in", its target. With "both" it counts in both places,
            and twice if it leads from a node to itself.
        weight: a property of edges. Its values are added up; an edge that does not have it counts as 1.

    Returns:
        (matrix, ids): a `scipy.sparse.csr_array` of float64, in canonical form. Without `weight`, its entries are
        numbers of edges.

    Raises:
        Unsupported: SciPy is not installed.
        InvalidInput: a weight is not a number.
    """
    sparse = library("scipy.sparse")
    rows = view.csr(type, direction, edges=weight is not None)
    data = np.ones(len(rows.targets)) if rows.edges is None else _weights_by_id(view, rows.edges, weight or "")
    matrix = sparse.csr_array((data, rows.targets, rows.offsets), shape=(len(rows.ids), len(rows.ids)))
    matrix.sum_duplicates()
    return matrix, rows.ids


def to_igraph(view: GraphView, type: str | None = None, *, properties: bool = True) -> Any:
    """A directed `igraph.Graph`. Its vertices have the attribute `id`, the store's id.

    Args:
        view: a view of a graph.
        type: only edges of this type.
        properties: also give edges their `id` and `type`, vertices their `labels`, and both every property as an
            attribute, with None if one does not have it.

    Raises:
        Unsupported: igraph is not installed.
    """
    igraph = library("igraph")
    found = ends(view, view._type(type))
    pairs = np.stack((found.sources, found.targets), axis=1)
    # igraph reads a memoryview at once, and any other array number by number.
    graph = igraph.Graph(n=len(found.ids), edges=pairs.data if len(pairs) else [], directed=True)
    nodes: dict[str, list[Any]] = {ID: found.ids.tolist()}
    edges: dict[str, list[Any]] = {}
    if properties:
        nodes = {**_node_columns(view, found), **nodes}
        edges = {**_edge_columns(view, found), ID: found.edges.tolist()}
    for attributes, columns in ((graph.vs, nodes), (graph.es, edges)):
        for name, column in columns.items():
            attributes[name] = column
    return graph


def to_networkx(view: GraphView, type: str | None = None, *, directed: bool = True, properties: bool = True) -> Any:
    """A `networkx.MultiDiGraph`, or a `MultiGraph` if not `directed`. Its nodes are the ids of nodes, its keys of edges
    are the ids of edges. It is made of Python objects, at a microsecond or more for each. What can be computed from
    arrays needs none of them: give the view itself to NetworkX.

    Args:
        view: a view of a graph.
        type: only edges of this type.
        directed: whether edges have a direction.
        properties: also give nodes and edges their properties as attributes; nodes `labels`, edges `type`.

    Raises:
        Unsupported: NetworkX is not installed.
    """
    networkx = library("networkx")
    graph = networkx.MultiDiGraph() if directed else networkx.MultiGraph()
    found = ends(view, view._type(type))
    ids = found.ids.tolist()
    edges = found.edges.tolist()
    nodes_with, edges_with = (_node_columns(view, found), _edge_columns(view, found)) if properties else ({}, {})
    graph.add_nodes_from(zip(ids, _rows(nodes_with, len(ids)), strict=True))
    graph.add_edges_from(zip(found.ids[found.sources].tolist(), found.ids[found.targets].tolist(), edges,
                             _rows(edges_with, len(edges)), strict=True))
    return graph


def edge_weights(view: GraphView, edges: Int64, weight: str, default: float = 1.0) -> npt.NDArray[np.float64]:
    """The values of a property of these edges, whose ids ascend. Raises `InvalidInput` if one is not a number."""
    column = property_columns(view, edges, of_edges=True, keys={weight}).get(weight)
    if column is None:
        return np.full(len(edges), default)
    for edge, value in zip(edges.tolist(), column, strict=True):
        if value.__class__ not in (int, float, bool, None.__class__):
            raise InvalidInput(f"the {weight} of edge {edge} is not a number but a {type_name(value)}",
                               hint="name another property, or pass weight=None")
    return np.array([default if value is None else value for value in column], np.float64)


def _weights_by_id(view: GraphView, edges: Int64, weight: str) -> npt.NDArray[np.float64]:
    """As `edge_weights`, for ids in any order, each once or more often."""
    ids, places = np.unique(edges, return_inverse=True)
    return edge_weights(view, ids, weight)[places]


def _node_columns(view: GraphView, found: Ends) -> dict[str, list[Any]]:
    sets, labels = label_sets(view)
    return {**property_columns(view, found.ids), LABELS: [labels[token] for token in sets.tolist()]}


def _edge_columns(view: GraphView, found: Ends) -> dict[str, list[Any]]:
    names = {kind: view._tokens.name(kind) for kind in np.unique(found.kinds).tolist()}
    return {**property_columns(view, found.edges, of_edges=True),
            TYPE: [names[kind] for kind in found.kinds.tolist()]}


def _rows(columns: dict[str, list[Any]], count: int) -> Iterable[dict[str, Any]]:
    """For each item the attributes that it has."""
    if not columns:
        return ({} for _ in range(count))
    names = list(columns)
    return ({name: value for name, value in zip(names, values, strict=True) if value is not None}
            for values in zip(*columns.values(), strict=True))
