"""The overlay: the changes that are not in the state on disk yet, kept so that every view finds its own version.

A layer maps keys to chains of events, newest first. An event is a tuple `(txid, value…, older event or None)` and never
changes. A new event is put in front of its chain by one dict assignment. Values are absolute: a cell's event holds the
whole cell, and an adjacency event says whether one edge is in one list. Each view has a bound, and takes from every
chain the newest event at or below it. So to stage a transaction is to add events whose txid is above every view's
bound, and to publish it is to raise the bound of new views.

The layers of a state are ordered newest first. Only the first, the active layer, grows. A checkpoint freezes it and
begins another, writes what it may, and drops the layers that hold nothing newer. An event that is in the base as well
says the same as the base, so reading it from either is right. For adjacency, only events above the base count.

Locking: the engine's lock lets one writer at a time add to the active layer. Readers take no lock. They rely on the
interpreter lock, which makes a single dict get, assignment, update and `list(dict)` atomic.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, NamedTuple

Event = tuple[Any, ...]
OUT, IN = 0, 1


class Marks(NamedTuple):
    """Allocation marks and counts after a transaction."""

    next_node: int
    next_edge: int
    next_token: int
    nodes: int
    edges: int


EMPTY = Marks(1, 1, 1, 0, 0)
"""Of a store without anything."""


Indexes = dict[tuple[int, int], int]
"""Property indexes: (label token, key token) to the index's id, a number from the counter of tokens."""


def newest(event: Event | None, bound: int) -> Event | None:
    """Of a chain, the newest event at or below `bound`."""
    while event is not None and event[0] > bound:
        event = event[-1]
    return event


class Layer:
    """One layer. Directions and edge types share a number: `type << 1 | direction`, the *lane* of an adjacency list.

    Attributes:
        nodes: node id to events (txid, label-set token or 0, older).
        props: node id to events (txid, property map or b"", older).
        edges: edge id to events (txid, source, target, type, present, older).
        edge_props: edge id to events (txid, property map or b"", older).
        adjacency: lane to node id to events (txid, edge id, neighbour, present, older). `present` is False if the edge
            was removed from the list. Otherwise it is true. If the chain so far is only a few additions, it is their
            sum, packed: txid of the first, neighbour, neighbour, …, so that a reader need not walk the chain.
        labels: label token to the nodes (as keys) that got it in this layer. They are candidates: look them up.
        rows: (index id, value digest) to the nodes (as keys) that began to match in this layer. Candidates too.
        marks: txid to the marks after it; an entry for every transaction in the layer.
        indexes: events (txid, all indexes, older), or None.
        tokens: (txid, token, kind, value) in order.
        last: the highest txid in the layer, 0 if it is empty.
        payload_bytes: payload bytes of all its transactions.
        size: about how many bytes of memory the layer takes.
    """

    __slots__ = ("__weakref__", "adjacency", "edge_props", "edges", "indexes", "labels", "last", "marks", "nodes",
                 "payload_bytes", "props", "rows", "size", "tokens")

    def __init__(self) -> None:
        self.nodes: dict[int, Event] = {}
        self.props: dict[int, Event] = {}
        self.edges: dict[int, Event] = {}
        self.edge_props: dict[int, Event] = {}
        self.adjacency: dict[int, dict[int, Event]] = {}
        self.labels: dict[int, dict[int, None]] = {}
        self.rows: dict[tuple[int, bytes], dict[int, None]] = {}
        self.marks: dict[int, Marks] = {}
        self.indexes: Event | None = None
        self.tokens: list[tuple[int, int, str, Any]] = []
        self.last = 0
        self.payload_bytes = 0
        self.size = 0

    def parts(self) -> list[dict[int, Any]]:
        """The dicts that hold most of the layer. A caller that keeps them, and only a weak reference to the layer, sees
        by that reference when nothing else uses the layer. Reference counts would not tell reliably."""
        return [self.nodes, self.props, self.edges, self.edge_props, *self.adjacency.values(), self.marks,
                *self.labels.values(), *self.rows.values()]

    def add(self, changes: Changes, marks: Marks, payload_bytes: int) -> None:
        """Add the changes of one transaction."""
        txid = changes.txid
        self.last = txid
        self.marks[txid] = marks
        cells = 1
        if changes.nodes:
            self.nodes.update(changes.nodes)
            cells += len(changes.nodes)
        if changes.props:
            self.props.update(changes.props)
            cells += len(changes.props)
        if changes.edges:
            self.edges.update(changes.edges)
            cells += 3 * len(changes.edges)
            mine = self.adjacency
            for lane, lists in changes.adjacency.items():
                if lane in mine:
                    mine[lane].update(lists)
                else:
                    mine[lane] = lists
        if changes.edge_props:
            self.edge_props.update(changes.edge_props)
            cells += len(changes.edge_props)
        if changes.labels:
            for label, nodes in changes.labels.items():
                self.labels.setdefault(label, {}).update(nodes)
                cells += len(nodes)
        if changes.rows:
            for row, nodes in changes.rows.items():
                self.rows.setdefault(row, {}).update(nodes)
                cells += 2
        if changes.indexes is not None:
            self.indexes = changes.indexes
        if changes.tokens:
            self.tokens += changes.tokens
        self.payload_bytes += payload_bytes
        self.size += CELL_BYTES * cells + payload_bytes


def list_changes(layers: Iterable[Layer], node: int, lane: int, above: int, upto: int) -> dict[int, int | None]:
    """What the transactions after `above` up to `upto` did to one adjacency list: for each edge that they touched, the
    neighbour, or None if the edge was removed."""
    changes: dict[int, int | None] = {}
    for layer in layers:
        lists = layer.adjacency.get(lane)
        event = None if lists is None else lists.get(node)
        while event is not None:
            txid, edge, neighbour, present, event = event
            if above < txid <= upto and edge not in changes:
                changes[edge] = neighbour if present else None
    return changes


CELL_BYTES = 128
"""About how many bytes one cell takes in dicts, tuples and numbers. Measured with tracemalloc: 290 for a transaction
that sets one property map, 550 for one that adds an edge."""


_SUMMED = 128
"""The most bytes of a sum of additions. It is bounded because each event of a chain holds a sum of its own."""
_tuple = tuple.__new__  # costs a third of calling the named tuple, and every commit does it
_pack_one = struct.Struct("<q").pack
_pack_two = struct.Struct("<qq").pack
_EMPTY: Any = MappingProxyType({})
_NO_EVENTS: dict[int, Event] = _EMPTY
_NO_LISTS: dict[int, dict[int, Event]] = _EMPTY
_NO_LABELS: dict[int, dict[int, None]] = _EMPTY
_NO_ROWS: dict[tuple[int, bytes], dict[int, None]] = _EMPTY
_NONE: Any = ()
_NO_TOKENS: list[tuple[int, int, str, Any]] = _NONE


class Changes(Layer):
    """One transaction's changes, as a layer. The transaction reads through it. Replay builds the same from a payload.

    Its chains continue into the layer below, so adding it to that layer takes one assignment per key. If that layer was
    frozen meanwhile, its events will be in two layers. Readers see no difference.
    """

    __slots__ = ("below", "next_edge", "next_node", "next_token", "number_of_edges", "number_of_nodes", "txid")

    def __init__(self, txid: int, below: Layer, marks: Marks) -> None:
        """`marks`: before the transaction."""
        self.next_node, self.next_edge, self.next_token, self.number_of_nodes, self.number_of_edges = marks
        # A transaction touches few of these. The others are one empty dict that all transactions share and none can
        # write to. To make them anew would cost as much as everything else that a small transaction does.
        self.nodes = self.props = self.edges = self.edge_props = _NO_EVENTS
        self.adjacency = _NO_LISTS
        self.labels = _NO_LABELS
        self.rows = _NO_ROWS
        self.tokens = _NO_TOKENS
        self.indexes = None
        self.txid = txid
        self.below = below

    def after(self) -> Marks:
        """The marks after the transaction."""
        return _tuple(Marks, (self.next_node, self.next_edge, self.next_token, self.number_of_nodes,
                              self.number_of_edges))

    def set_node(self, node: int, labels: int, tokens: tuple[int, ...]) -> None:
        """Give `node` the label set `labels`, which consists of `tokens`. 0: the node does not exist."""
        if self.nodes is _NO_EVENTS:
            self.nodes = {}
        if tokens and self.labels is _NO_LABELS:
            self.labels = {}
        event = self.nodes.get(node)
        self.nodes[node] = (self.txid, labels, self.below.nodes.get(node) if event is None else event[-1])
        for token in tokens:
            mine = self.labels.get(token)
            if mine is None:
                self.labels[token] = {node: None}
            else:
                mine[node] = None

    def set_props(self, node: int, packed: bytes) -> None:
        if self.props is _NO_EVENTS:
            self.props = {}
        event = self.props.get(node)
        self.props[node] = (self.txid, packed, self.below.props.get(node) if event is None else event[-1])

    def set_edge_props(self, edge: int, packed: bytes) -> None:
        if self.edge_props is _NO_EVENTS:
            self.edge_props = {}
        event = self.edge_props.get(edge)
        self.edge_props[edge] = (self.txid, packed, self.below.edge_props.get(edge) if event is None else event[-1])

    def set_edge(self, edge: int, source: int, target: int, kind: int, present: bool) -> bool:
        """Add or remove an edge, in the edge table and in both lists. Returns whether a lane is new in the layer."""
        txid, below = self.txid, self.below
        if self.edges is _NO_EVENTS:
            self.edges, self.adjacency = {}, {}
        event = self.edges.get(edge)
        self.edges[edge] = (txid, source, target, kind, present,
                            below.edges.get(edge) if event is None else event[-1])
        new = False
        adjacency, under = self.adjacency, below.adjacency
        for lane, node, neighbour in ((kind << 1, source, target), (kind << 1 | IN, target, source)):
            if lane in adjacency:
                lists = adjacency[lane]
                older = lists.get(node)
            else:
                lists, older, new = {}, None, True
                adjacency[lane] = lists
            if older is None and lane in under:
                older = under[lane].get(node)
            there: Any = present
            if present:
                if older is None:
                    there = _pack_two(txid, neighbour)
                elif type(older[3]) is bytes and len(older[3]) <= _SUMMED:
                    there = older[3] + _pack_one(neighbour)
            lists[node] = (txid, edge, neighbour, there, older)
        return new

    def set_row(self, index: int, digest: bytes, node: int) -> None:
        if self.rows is _NO_ROWS:
            self.rows = {}
        self.rows.setdefault((index, digest), {})[node] = None

    def set_indexes(self, indexes: Indexes) -> None:
        event = self.indexes
        self.indexes = (self.txid, indexes, self.below.indexes if event is None else event[-1])

    def add_token(self, token: int, kind: str, value: Any) -> None:
        if self.tokens is _NO_TOKENS:
            self.tokens = []
        self.tokens.append((self.txid, token, kind, value))
