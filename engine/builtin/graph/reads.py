"""Reading a graph: the calls that views and transactions have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from ...env.shown import shown
from ...errors import InvalidInput, NotFound
from . import adjacency
from .lookups import Direction, Int64, Lookups
from .overlay import IN
from .tokens import KEY, LABEL
from .values import check_id, check_properties, encode_value

_COLUMN = tuple(column.unpack for column in adjacency.COLUMN)
_COLUMNS = len(_COLUMN)
_by_edge = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Node:
    """A node: its id, its labels, sorted, and its properties (a copy)."""

    id: int
    labels: tuple[str, ...]
    properties: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge: its id, source, type, target, and its properties (a copy)."""

    id: int
    source: int
    type: str
    target: int
    properties: dict[str, Any]


class Reads(Lookups):
    """The reading calls. For a node or edge that does not exist they raise `NotFound`, unless they say otherwise.

    A `direction` is `"out"`, `"in"` or `"both"`. `type=None` means edges of every type. Lists of neighbours have one
    entry per edge, in the order of edge ids, which is the order in which the edges were added. With `"both"`, an edge
    from a node to itself counts twice. An id is any integer, NumPy's included; others raise `InvalidInput`.
    """

    __slots__ = ()

    # --- one node, one edge ------------------------------------------------------------------------------------------

    def node(self, node: int) -> Node:
        """The node with this id."""
        node = check_id(node, "a node")
        labels = self._labels(node)
        if not labels:
            raise NotFound(f"no node {shown(node)}")
        return Node(node, self._tokens.label_names(labels), self.properties(node))

    def properties(self, node: int) -> dict[str, Any]:
        """The properties of the node with this id: a new dict. Faster than `node`, which also finds its labels."""
        if node.__class__ is not int:
            node = check_id(node, "a node")
        kept = self._kept.get(node)
        return self._properties(node) if kept is None else kept.copy()

    def has_node(self, node: int) -> bool:
        if node.__class__ is not int:
            node = check_id(node, "a node")
        return self._labels(node) != 0

    def edge(self, edge: int) -> Edge:
        """The edge with this id."""
        edge = check_id(edge, "an edge")
        found = self._edge(edge)
        if found is None:
            raise NotFound(f"no edge {shown(edge)}")
        source, target, kind = found
        return Edge(edge, source, self._tokens.name(kind), target, self._named(self._edge_props(edge)))

    def has_edge(self, edge: int) -> bool:
        return self._edge(check_id(edge, "an edge")) is not None

    # --- adjacency ---------------------------------------------------------------------------------------------------

    def neighbors(self, node: int, type: str | None = None, direction: Direction = "out") -> list[int]:
        """The ids of the nodes at the other ends of a node's edges."""
        if node.__class__ is not int:
            node = check_id(node, "a node")
        plan = self._plans.get((type, direction))
        lane, kept = plan if plan is not None else self._plan(type, direction)
        if lane > 0:
            column = kept.get(node)
            if column is None:
                column = self._column(node, lane, kept)
            elif not column and not self._labels(node):
                raise NotFound(f"no node {shown(node)}")
            n = len(column) >> 3
            return [*_COLUMN[n](column)] if n < _COLUMNS else adjacency.unpack(column)
        lists = self._lists(node, type, direction)
        if len(lists) == 1:
            return lists[0][0]
        pairs = [pair for neighbours, edges, _ in lists for pair in zip(edges, neighbours, strict=True)]
        pairs.sort(key=_by_edge)
        return [neighbour for _, neighbour in pairs]

    def neighbors_array(self, node: int, type: str | None = None, direction: Direction = "out") -> Int64:
        """As `neighbors`, but as a new array."""
        node = check_id(node, "a node")
        lists = self._lists(node, type, direction)
        neighbours = np.array([n for part, _, _ in lists for n in part], dtype=np.int64)
        if len(lists) < 2:
            return neighbours
        edges = np.array([e for _, part, _ in lists for e in part], dtype=np.int64)
        return neighbours[np.argsort(edges, kind="stable")]

    def edges(self, node: int, type: str | None = None, direction: Direction = "out") -> list[Edge]:
        """A node's edges."""
        node = check_id(node, "a node")
        found: list[Edge] = []
        with_props = self._base.edge_props or any(layer.edge_props for layer in self._layers)
        for neighbours, edges, lane in self._lists(node, type, direction):
            name = self._tokens.name(lane >> 1)
            for neighbour, edge in zip(neighbours, edges, strict=True):
                props = self._named(self._edge_props(edge)) if with_props else {}
                found.append(Edge(edge, neighbour, name, node, props) if lane & IN else
                             Edge(edge, node, name, neighbour, props))
        found.sort(key=lambda edge: edge.id)
        return found

    def degree(self, node: int, type: str | None = None, direction: Direction = "out") -> int:
        """How many edges a node has."""
        if node.__class__ is not int:
            node = check_id(node, "a node")
        lane, kept = self._plans.get((type, direction)) or self._plan(type, direction)
        if lane > 0:
            column = kept.get(node)
            if column:
                return len(column) >> 3
            if not any(node in layer.adjacency.get(lane, ()) for layer in self._layers):
                block = self._read(adjacency.pack_key, node, lane)
                if block is not None:
                    return adjacency.entries(block) + adjacency.earlier(block)
        return sum(len(edges) for _, edges, _ in self._lists(node, type, direction))

    def expand(self, nodes: npt.ArrayLike, type: str | None = None,
               direction: Direction = "out") -> tuple[Int64, Int64]:
        """The neighbours of many nodes at once.

        Returns:
            (offsets, targets): the neighbours of `nodes[i]` are `targets[offsets[i]:offsets[i + 1]]`, as `neighbors`
            gives them. `len(offsets) == len(nodes) + 1`.
        """
        wanted = np.asarray(nodes)
        if wanted.ndim != 1 or not (np.issubdtype(wanted.dtype, np.integer) or not wanted.size):
            raise InvalidInput("expand takes a one-dimensional array of node ids")
        ids: list[int] = wanted.tolist()
        lane, kept = self._plans.get((type, direction)) or self._plan(type, direction)
        parts: list[bytes] = []
        for node in ids:
            if lane > 0:
                column = kept.get(node)
                if column is None:
                    column = self._column(node, lane, kept)
                elif not column and not self._labels(node):
                    raise NotFound(f"no node {shown(node)}")
            else:
                column = self.neighbors_array(node, type, direction).astype("<i8").tobytes()
            parts.append(column)
        counts = [len(part) >> 3 for part in parts]
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(np.array(counts, dtype=np.int64), out=offsets[1:])
        return offsets, np.frombuffer(b"".join(parts), dtype="<i8").astype(np.int64)

    # --- finding nodes -----------------------------------------------------------------------------------------------

    def nodes(self, label: str | None = None, properties: Mapping[str, Any] | None = None,
              **more: Any) -> Iterator[int]:
        """The ids of the nodes with this label, and with these properties, each equal in type and value; ascending.

        Uses a property index on the label and one of the keys, if there is one that a checkpoint has built. Otherwise
        O(nodes of the label). Put properties named `label` or `properties` into the mapping.
        """
        wanted = check_properties(more)
        if properties is not None:
            wanted = {**check_properties(properties), **wanted}
        tokens = self._tokens.ids
        token = 0 if label is None else tokens.get((LABEL, label), -1)
        filters = {tokens.get((KEY, key), -1): encode_value(value) for key, value in wanted.items()}
        if token < 0 or -1 in filters:
            return iter(())
        for key, encoded in filters.items():
            found = self._with(token, key, encoded) if token else None
            if found is not None:
                return iter(found) if len(filters) == 1 else iter([n for n in found if self._matches(n, 0, filters)])
        if filters:
            return (node for node in self._scan(token) if self._matches(node, 0, filters))
        return self._scan(token)

    @property
    def node_count(self) -> int:
        return self._marks().nodes

    @property
    def edge_count(self) -> int:
        return self._marks().edges

    def labels(self) -> list[str]:
        """The labels that some node has, sorted."""
        names = self._tokens
        return sorted(names.name(token) for token in names.of_kind(LABEL) if next(self._scan(token), None) is not None)

    def indexes(self) -> list[tuple[str, str]]:
        """The property indexes, as (label, key), sorted."""
        name = self._tokens.name
        return sorted((name(label), name(key)) for label, key in self._indexes())
