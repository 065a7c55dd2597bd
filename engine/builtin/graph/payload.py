"""Payloads: one transaction as the log holds it.

A msgpack array of absolute cell settings, in sections; `docs/formats.md` has it byte by byte:

    [marks, tokens, nodes, node properties, edges, edge properties, index rows, indexes]

- marks: [next node, next edge, next token, number of nodes, number of edges] after the transaction;
- tokens: [token, kind, value], those that are new;
- nodes: bytes, 12 a node: id u64, label-set token u32 (0: deleted), little-endian;
- node properties: [id, property map, id, property map, …], each map whole, as bytes (empty: none);
- edges: bytes, 32 an edge: id u64, source u64, target u64, type u32, present u32 (1 or 0). The two adjacency lists
  follow from it, and so does their order;
- edge properties: as for nodes;
- index rows: bytes, 20 a row: index u32, value digest (8), node u64. Nodes that came to match. Only the overlay needs
  them, to find candidates; a checkpoint derives the rows of LMDB from the cells;
- indexes: all property indexes as [label, key, id], or nil if they did not change.

Decoding builds the same `Changes` that the transaction had, so a replayed store is the live one.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from ...errors import Damaged
from .overlay import Changes, Layer, Marks
from .tokens import LABELS, Tokens, Value

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_NODE = struct.Struct("<QI")
_EDGE = struct.Struct("<QQQII")
_ROW = struct.Struct("<I8sQ")


def encode(changes: Changes) -> bytes:
    pack_edge = _EDGE.pack
    edges = changes.edges
    indexes = changes.indexes
    packed: bytes = _pack((
        changes.after(),
        [change[1:] for change in changes.tokens] if changes.tokens else (),
        b"".join([_NODE.pack(node, event[1]) for node, event in changes.nodes.items()]) if changes.nodes else b"",
        _cells(changes.props) if changes.props else (),
        b"".join([pack_edge(edge, event[1], event[2], event[3], event[4]) for edge, event in edges.items()])
        if edges else b"",
        _cells(changes.edge_props) if changes.edge_props else (),
        b"".join([_ROW.pack(*row, node) for row, nodes in changes.rows.items() for node in nodes])
        if changes.rows else b"",
        None if indexes is None else [(*key, index) for key, index in indexes[1].items()]))
    return packed


def _cells(events: dict[int, Any]) -> list[Any]:
    return [item for cell, event in events.items() for item in (cell, event[1])]


def decode(txid: int, payload: bytes, below: Layer, tokens: Tokens) -> tuple[Changes, Marks]:
    """The changes of transaction `txid`, over layer `below`. New tokens are added to `tokens` at once.

    Raises:
        Damaged: it is not a payload of this engine.
    """
    try:
        counts, new, nodes, props, edges, edge_props, rows, indexes = msgpack.unpackb(payload, use_list=True)
        marks = Marks(*counts)
        changes = Changes(txid, below, marks)
        for token, kind, value in new:
            add_token(changes, tokens, token, kind, value)
        for node, labels in _NODE.iter_unpack(nodes):
            changes.set_node(node, labels, tokens.label_tokens(labels) if labels else ())
        for node, packed in zip(props[::2], props[1::2], strict=True):
            changes.set_props(node, packed)
        for edge, source, target, kind, present in _EDGE.iter_unpack(edges):
            changes.set_edge(edge, source, target, kind, bool(present))
        for edge, packed in zip(edge_props[::2], edge_props[1::2], strict=True):
            changes.set_edge_props(edge, packed)
        for index, digest, node in _ROW.iter_unpack(rows):
            changes.set_row(index, digest, node)
        if indexes is not None:
            changes.set_indexes({(label, key): index for label, key, index in indexes})
        return changes, marks
    except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException) as error:
        raise Damaged(f"transaction {txid} holds no payload of the graph engine: {error!r}") from error


def add_token(changes: Changes, tokens: Tokens, token: int, kind: str, value: Any) -> None:
    """Add a token as msgpack decoded it."""
    decoded: Value = tuple(value) if kind == LABELS else value
    tokens.add(token, kind, decoded)
    changes.add_token(token, kind, decoded)
