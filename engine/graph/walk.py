"""Full walks: whole nodes and edges, block by block, with the overlay laid over each; and the digest made by them.

The digest is the sum, modulo 2^128, of one xxh3-128 per item: allocation marks, each index, each node with its labels
and properties, each edge with its properties. A sum does not depend on order, and items are told in names, so neither
how a state came about nor which tokens it uses shows.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest, xxh3_128_intdigest

from .lmdbstate import EDGE_BLOCK, EDGE_DTYPE, HAS_PROPS, NODE_BLOCK, PRESENT, id_key
from .overlay import newest
from .reads import Edge, Reads
from .tokens import TYPE
from .values import encode_value

_ROW = np.dtype([("tag", "S1"), ("edge", "<u8"), ("source", "<u8"), ("target", "<u8"), ("type", "V16")])
_NODE = struct.Struct("<cQ")
_MARKS = struct.Struct("<cQQ")


def node_blocks(reads: Reads) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """Blocks of nodes as (first id, label-set token of each, 0 where there is none), ascending."""
    changed: dict[int, set[int]] = defaultdict(set)
    for layer in reads._layers:
        for node in list(layer.nodes):
            changed[node // NODE_BLOCK].add(node)
    for number, data in _merged(reads._blocks("nodes"), NODE_BLOCK, changed):
        first = number * NODE_BLOCK
        block = np.zeros(NODE_BLOCK, "<u4") if data is None else data.view("<u4")
        if number in changed:
            block = block.copy()
            for node in changed[number]:
                block[node - first] = reads._labels(node)
        yield first, block


def labels_of(reads: Reads, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The label-set tokens of many nodes, whose ids ascend; 0 where there is none."""
    found = np.zeros(len(ids), np.uint32)
    numbers = ids // NODE_BLOCK
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))).tolist() if len(ids) else []
    for at, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        number = int(numbers[at])
        data = reads._stored("nodes", id_key(number))
        if data is not None:
            found[at:end] = np.frombuffer(data, "<u4")[ids[at:end] - number * NODE_BLOCK]
    if any(layer.nodes for layer in reads._layers):
        for at, node in enumerate(ids.tolist()):
            if any(node in layer.nodes for layer in reads._layers):
                found[at] = reads._labels(node)
    return found


def edge_blocks(reads: Reads) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Blocks of edges as (first id, entries of `EDGE_DTYPE`), ascending."""
    changed: dict[int, set[int]] = defaultdict(set)
    for layer in reads._layers:
        for edge in (*list(layer.edges), *list(layer.edge_props)):
            changed[edge // EDGE_BLOCK].add(edge)
    for number, data in _merged(reads._blocks("edges"), EDGE_BLOCK, changed):
        first = number * EDGE_BLOCK
        block = np.zeros(EDGE_BLOCK, EDGE_DTYPE) if data is None else data.view(EDGE_DTYPE)
        if number in changed:
            block = block.copy()
            for edge in changed[number]:
                found = reads._edge(edge)
                flags = 0 if found is None else PRESENT | (HAS_PROPS if reads._edge_props(edge) else 0)
                block[edge - first] = (*(found or (0, 0, 0)), flags)
        yield first, block


def _merged(stored: Iterator[tuple[int, Any]], per: int, changed: dict[int, set[int]]) -> Iterator[tuple[int, Any]]:
    """The numbers of all blocks, stored or changed, ascending, with what is stored of each."""
    fresh = deque(sorted(changed))
    for first, data in stored:
        number = first // per
        while fresh and fresh[0] <= number:
            if (before := fresh.popleft()) < number:
                yield before, None
        yield number, data
    for number in fresh:
        yield number, None


def all_edges(reads: Reads, kind: int) -> Iterator[Edge]:
    """Every edge (of one type, by token; 0: of all), by id."""
    for first, block in edge_blocks(reads):
        there = (block["flags"] & PRESENT) != 0
        if kind:
            there &= block["type"] == kind
        for at in np.flatnonzero(there).tolist():
            source, target, token, flags = block[at].item()
            props = reads._named(reads._edge_props(first + at)) if flags & HAS_PROPS else {}
            yield Edge(first + at, source, reads._tokens.name(token), target, props)


def edge_arrays(reads: Reads, kind: int) -> tuple[Any, Any, Any]:
    """Every edge (of one type, or 0), by id, as arrays: sources, targets, ids."""
    parts: list[tuple[Any, Any, Any]] = []
    for first, block in edge_blocks(reads):
        there = (block["flags"] & PRESENT) != 0
        if kind:
            there &= block["type"] == kind
        at = np.flatnonzero(there)
        parts.append((block["source"][at].astype(np.int64), block["target"][at].astype(np.int64), at + first))
    if not parts:
        return tuple(np.empty(0, np.int64) for _ in range(3))  # type: ignore[return-value]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def digest(reads: Reads) -> bytes:
    """16 bytes over the whole content."""
    tokens = reads._tokens
    marks = reads._marks()
    total = xxh3_128_intdigest(_MARKS.pack(b"M", marks.next_node, marks.next_edge))
    for index in reads.indexes():
        total += xxh3_128_intdigest(b"I" + msgpack.packb(index))
    labels: dict[int, bytes] = {}
    has_props = reads._base.node_props or any(layer.props for layer in reads._layers)
    for first, labelled in node_blocks(reads):
        for at in np.flatnonzero(labelled).tolist():
            token = int(labelled[at])
            if token not in labels:
                labels[token] = msgpack.packb(tokens.label_names(token))
            packed = reads._props(first + at) if has_props else b""
            total += xxh3_128_intdigest(_NODE.pack(b"N", first + at) + labels[token] + _canonical(reads, packed))
    types = np.zeros(max(tokens.values, default=0) + 1, "V16")
    for token in tokens.of_kind(TYPE):
        types[token] = np.void(xxh3_128_digest(tokens.name(token).encode()))
    width = _ROW.itemsize
    for first, entries in edge_blocks(reads):
        there = np.flatnonzero(entries["flags"] & PRESENT)
        block: Any = entries[there]
        rows = np.empty(len(block), _ROW)
        rows["tag"] = b"E"
        rows["edge"] = there + first
        rows["source"] = block["source"]
        rows["target"] = block["target"]
        rows["type"] = types[block["type"]]
        raw = rows.tobytes()
        items = [raw[i : i + width] for i in range(0, len(raw), width)]
        for i in np.flatnonzero(block["flags"] & HAS_PROPS).tolist():
            items[i] += _canonical(reads, reads._edge_props(int(there[i]) + first))
        total += sum(map(xxh3_128_intdigest, items))
    return (total % (1 << 128)).to_bytes(16, "big")


def _canonical(reads: Reads, packed: bytes) -> bytes:
    """A property map in names, ordered."""
    return b"".join(encode_value(name) + encode_value(value)
                    for name, value in sorted(reads._named(packed).items())) if packed else b""


def overlay_lists(reads: Reads) -> dict[int, set[int]]:
    """The adjacency lists that the overlay touches: lane to nodes."""
    found: dict[int, set[int]] = defaultdict(set)
    for layer in reads._layers:
        for lane, lists in list(layer.adjacency.items()):
            for node, event in list(lists.items()):
                if newest(event, reads._bound) is not None:
                    found[lane].add(node)
    return found
