"""Full walks: all nodes and edges, some blocks at a time, with the overlay laid over them; and the digest made by them.

The digest is the sum, each half modulo 2^64, of one 128-bit checksum per item: allocation marks, each index, each node
with its labels and properties, each edge with its properties. A sum does not depend on order, and items are written
with names. So the digest depends neither on a state's past nor on its tokens. Names and properties are hashed by xxh3.
The parts of an item are mixed over whole arrays, since a call for each of a hundred million edges would take minutes.

A walk holds only some blocks at a time, and reports what it has read to the map of LMDB's file.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_intdigest

from ...errors import Damaged
from .lmdbstate import EDGE_BLOCK, EDGE_DTYPE, HAS_PROPS, NODE_BLOCK, PRESENT, id_key
from .overlay import newest
from .reads import Edge, Reads
from .tokens import LABELS, TYPE
from .values import encode_value

Ids = npt.NDArray[np.int64]
BLOCKS_AT_ONCE = 128
_MARKS = struct.Struct("<cQQ")
_NODE, _EDGE = 2, 4
_SEED = 0x6C8E7B1D93F2A45E
_ODD = tuple(np.uint64(odd) for odd in (0xD6A7C3E95B1F8247, 0xA1E4D72B6F93C50D, 0xC95F3B8E21D7A64B))


def mixed(*columns: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each row of some integer columns; every bit of the row affects it. Sums of hashes, modulo 2^64,
    are equal for equal rows in any order, and almost never for others."""
    h = np.full(len(columns[0]), seed ^ _SEED, np.uint64)
    for column in columns:
        h ^= column.astype(np.uint64, copy=False)
        h *= _ODD[0]
        h ^= h >> np.uint64(32)
    h *= _ODD[1]
    h ^= h >> np.uint64(29)
    h *= _ODD[2]
    h ^= h >> np.uint64(32)
    return h


def nodes_at_once(reads: Reads) -> Iterator[tuple[Ids, npt.NDArray[np.uint32]]]:
    """All nodes, ascending, many at a time: ids, and the token of each one's label set."""
    changed: dict[int, set[int]] = defaultdict(set)
    for layer in reads._layers:
        for node in list(layer.nodes):
            changed[node // NODE_BLOCK].add(node)
    for numbers, data in _merged(reads, "nodes", NODE_BLOCK, np.dtype("<u4"), changed):
        for at in _touched(numbers, changed):
            first = (numbers[at] - at) * NODE_BLOCK
            for node in changed[numbers[at]]:
                data[node - first] = reads._labels(node)
        there = np.flatnonzero(data)
        yield _ids(numbers, NODE_BLOCK)[there], data[there]


def labels_of(reads: Reads, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The label-set tokens of many nodes, whose ids ascend; 0 for those that do not exist."""
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


def edges_at_once(reads: Reads, kind: int = 0) -> Iterator[tuple[Ids, npt.NDArray[Any]]]:
    """All edges (of one type, by token; 0: of all), ascending, many at a time: ids, and entries of `EDGE_DTYPE`."""
    changed: dict[int, set[int]] = defaultdict(set)
    for layer in reads._layers:
        for edge in (*list(layer.edges), *list(layer.edge_props)):
            changed[edge // EDGE_BLOCK].add(edge)
    for numbers, data in _merged(reads, "edges", EDGE_BLOCK, EDGE_DTYPE, changed):
        for at in _touched(numbers, changed):
            first = (numbers[at] - at) * EDGE_BLOCK
            for edge in changed[numbers[at]]:
                found = reads._edge(edge)
                flags = 0 if found is None else PRESENT | (HAS_PROPS if reads._edge_props(edge) else 0)
                data[edge - first] = (*(found or (0, 0, 0)), flags)
        there = (data["flags"] & PRESENT) != 0
        if kind:
            there &= data["type"] == kind
        ids = _ids(numbers, EDGE_BLOCK)
        yield (ids, data) if there.all() else (ids[there], data[there])


def _ids(numbers: list[int], per: int) -> Ids:
    """The ids in the blocks with these numbers."""
    return (np.array(numbers, np.int64)[:, None] * per + np.arange(per)).ravel()


def _touched(numbers: list[int], changed: dict[int, set[int]]) -> list[int]:
    return [at for at, number in enumerate(numbers) if number in changed] if changed else []


def _merged(reads: Reads, db: str, per: int, dtype: np.dtype[Any],
            changed: dict[int, set[int]]) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
    """All blocks, stored or changed, ascending, some at a time: their numbers, and what is stored of them as one new
    array, with zeros for what is not stored. Raises `Damaged`."""
    fresh = deque(sorted(changed))
    size = per * dtype.itemsize
    passed = reads._base.state.mapping.passed
    numbers: list[int] = []
    parts: list[Any] = []

    def taken() -> tuple[list[int], npt.NDArray[Any]]:
        try:
            return numbers[:], np.frombuffer(bytearray().join(parts), dtype)
        finally:
            numbers.clear()
            parts.clear()

    for first, data in reads._blocks(db):
        passed(len(data))
        if len(data) != size:
            raise Damaged(f"the block of {db} from {first} has {len(data)} bytes", path=str(reads._base.state.path))
        number = first // per
        while fresh and fresh[0] <= number:
            if (before := fresh.popleft()) < number:
                numbers.append(before)
                parts.append(bytes(size))
        numbers.append(number)
        parts.append(data)
        if len(numbers) >= BLOCKS_AT_ONCE:
            yield taken()
    while fresh:
        numbers.append(fresh.popleft())
        parts.append(bytes(size))
        if len(numbers) >= BLOCKS_AT_ONCE:
            yield taken()
    if numbers:
        yield taken()


def all_edges(reads: Reads, kind: int) -> Iterator[Edge]:
    """Every edge (of one type, by token; 0: of all), by id."""
    for ids, entries in edges_at_once(reads, kind):
        for edge, (source, target, token, flags) in zip(ids.tolist(), entries.tolist(), strict=True):
            props = reads._named(reads._edge_props(edge)) if flags & HAS_PROPS else {}
            yield Edge(edge, source, reads._tokens.name(token), target, props)


def edge_arrays(reads: Reads, kind: int) -> tuple[Ids, Ids, Ids]:
    """Every edge (of one type, or 0), by id, as arrays: sources, targets, ids."""
    parts = [(entries["source"].astype(np.int64), entries["target"].astype(np.int64), ids)
             for ids, entries in edges_at_once(reads, kind)]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    sources, targets, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sources, targets, ids


def digest(reads: Reads) -> bytes:
    """16 bytes over the whole content. O(state)."""
    tokens = reads._tokens
    marks = reads._marks()
    if not reads._base.sound:
        reads._base.verify()  # a walk would not notice missing entries
    passed = reads._base.state.mapping.passed
    total = np.array(_halves(_MARKS.pack(b"M", marks.next_node, marks.next_edge)), np.uint64)
    for index in reads.indexes():
        total += np.array(_halves(b"I" + msgpack.packb(index)), np.uint64)
    # Tokens from the view's mark on may belong to a transaction that is rolled back later.
    names = np.zeros((2, min(tokens.highest + 1, marks.next_token)), np.uint64)
    for token, (kind, value) in list(tokens.values.items()):
        if kind in (TYPE, LABELS) and token < marks.next_token:
            name = value if kind == TYPE else tokens.label_names(token)
            names[:, token] = _halves(msgpack.packb([kind, name]))
    has_props = reads._base.node_props or any(layer.props for layer in reads._layers)
    for nodes, labels in nodes_at_once(reads):
        props = np.zeros((2, len(nodes)), np.uint64)
        for at, node in enumerate(nodes.tolist() if has_props else ()):
            packed = reads._props(node)
            if packed:
                props[:, at] = _halves(_canonical(reads, packed))
                passed(len(packed))
        total += _summed(_NODE, nodes, names[:, labels], props)
    for edges, entries in edges_at_once(reads):
        props = np.zeros((2, len(edges)), np.uint64)
        for at in np.flatnonzero(entries["flags"] & HAS_PROPS).tolist():
            packed = reads._edge_props(int(edges[at]))
            props[:, at] = _halves(_canonical(reads, packed))
            passed(len(packed))
        total += _summed(_EDGE, edges, entries["source"], entries["target"], names[:, entries["type"]], props)
    return total.astype(">u8").tobytes()


def _halves(item: bytes) -> tuple[int, int]:
    """The two halves of a checksum."""
    return divmod(xxh3_128_intdigest(item), 1 << 64)


def _summed(seed: int, *columns: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The sums of a checksum's halves over rows: each half is mixed from the columns, and from its own half of columns
    that come in two."""
    return np.array([mixed(*(c if c.ndim == 1 else c[half] for c in columns), seed=seed + half).sum()
                     for half in (0, 1)], np.uint64)


def _canonical(reads: Reads, packed: bytes) -> bytes:
    """A property map with names for tokens, in order."""
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
