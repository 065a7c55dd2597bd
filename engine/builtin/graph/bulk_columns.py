"""A bulk load in columns: its file beside the log, and how it gets from there into LMDB.

Node and edge blocks are written whole. One sort of all edges gives both adjacency lists, which are cut into blocks. If
the load's lists come after all existing ones, as in an empty store, they are appended; otherwise they are merged.

The file, little-endian: magic `HFGBULK\\0`, version u32, uniform label-set token u32 (0: one for each node follows),
edge type u32, reserved u32, then u64: first node, number of nodes, first edge, number of edges, bytes of node
properties, bytes of edge properties. Then the columns: label-set tokens u32 (unless uniform), sources u64, targets u64,
node properties and edge properties: id u64, length u32, property map, and so on, by id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
import numpy.typing as npt

from ...env import Files
from ...errors import Damaged, UnsupportedFormat
from . import adjacency
from .checkpoint import StateWriter
from .lmdbstate import (
    EDGE_BLOCK,
    EDGE_DTYPE,
    HAS_PROPS,
    LABEL_KEY,
    LABEL_WINDOW,
    NODE_BLOCK,
    PRESENT,
    ROW_KEY,
    id_key,
    token_entry,
)
from .lookups import Lookups
from .overlay import IN, Indexes, Marks
from .tokens import LABELS, Tokens
from .values import decode_map, value_digest

_MAGIC, _VERSION = b"HFGBULK\0", 1
_HEAD = struct.Struct("<8sIIII6Q")
_MAP = struct.Struct("<QI")

def packed_maps(maps: Iterable[tuple[int, bytes]]) -> bytes:
    """Property maps, given with their ids, as the columns of nodes' and edges' properties hold them."""
    head = _MAP.pack
    return b"".join([part for item, packed in maps for part in (head(item, len(packed)), packed)])


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load in columns, as its payload and its file have it. `uniform` is the label set of all nodes, or 0. With it,
    `label_sets` takes no memory, however many nodes there are."""

    marks: Marks
    tokens: list[tuple[int, str, Any]]
    first_node: int
    uniform: int
    label_sets: npt.NDArray[np.uint32]
    first_edge: int
    kind: int
    sources: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    node_props: bytes
    edge_props: bytes

    def write(self, out: BinaryIO) -> bytes:
        """Write its file; the payload of its record."""
        nodes, edges = len(self.label_sets), len(self.sources)
        out.write(_HEAD.pack(_MAGIC, _VERSION, self.uniform, self.kind, 0, self.first_node, nodes, self.first_edge,
                             edges, len(self.node_props), len(self.edge_props)))
        sets = [] if self.uniform else [self.label_sets.astype("<u4")]
        for column in (*sets, self.sources.astype("<i8", copy=False), self.targets.astype("<i8", copy=False)):
            for at in range(0, len(column), 1 << 18):
                out.write(column[at : at + (1 << 18)].tobytes())
        out.write(self.node_props)
        out.write(self.edge_props)
        packed: bytes = msgpack.packb([list(self.marks), self.tokens])
        return packed

    def sets(self) -> list[int]:
        """The label sets, each once."""
        found: list[int] = [self.uniform] if self.uniform else np.unique(self.label_sets).tolist()
        return found

    def pages(self, reads: Lookups) -> int:
        """An upper bound of the pages that it takes: new data, in pages that may be half full, and copies of the pages
        it is merged into. `reads` is the state before it, with its tokens."""
        base, n, nodes = reads._base, len(self.sources), len(self.label_sets)
        labels = {label for label_set in self.sets() for label in reads._tokens.label_tokens(label_set)}
        rows = len(reads._indexes()) * min(nodes, len(self.node_props) // _MAP.size)
        # A node has its place in a block; an edge too, and an entry in two lists, which may be lists of their own.
        size = 12 * nodes + 208 * n + 4 * (len(self.node_props) + len(self.edge_props)) + 80 * rows
        bitmaps = len(labels) * (nodes // LABEL_WINDOW + 2)
        size += 2 * (LABEL_WINDOW // 8 + 40) * bitmaps
        size += sum(80 + 10 * len(value) for _, _, value in self.tokens)
        pages = size // base.state.page_size + 256
        if n and min(int(self.sources.min()), int(self.targets.min())) < self.first_node:
            stat = base.txn.stat(base.dbs["adjacency"])
            pages += min(4 * n, stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            pages += 2 * min(n, stat["leaf_pages"])  # a list of half a page may come to need a whole one
        for name, keys in (("labels", bitmaps), ("index", rows)):
            # Each may come into a leaf of its own, which is copied or split, as may be the branches above it.
            stat = base.txn.stat(base.dbs[name])
            pages += 2 * (min(keys, stat["leaf_pages"]) + min(stat["depth"] * keys, stat["branch_pages"]))
        return pages


def read(files: Files, path: Path, payload: bytes) -> Loaded:
    """Raises `Damaged` or `UnsupportedFormat`."""
    file = files.open(path)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    try:
        marks, tokens = msgpack.unpackb(payload)
        magic, version, uniform, kind, _, first_node, nodes, first_edge, edges, node_bytes, edge_bytes = (
            _HEAD.unpack_from(data))
        if magic != _MAGIC:
            raise Damaged("is not a bulk load", path=str(path), offset=0)
        if version != _VERSION:
            raise UnsupportedFormat(f"{path} has bulk format version {version}; this release reads {_VERSION}")
        at = _HEAD.size
        if uniform or not nodes:
            sets = np.broadcast_to(np.uint32(uniform), nodes)
        else:
            sets = np.frombuffer(data, "<u4", nodes, at).astype(np.uint32)
            at += 4 * nodes
        sources = np.frombuffer(data, "<i8", edges, at).astype(np.int64, copy=False)
        targets = np.frombuffer(data, "<i8", edges, at + 8 * edges).astype(np.int64, copy=False)
        at += 16 * edges
        if len(data) < at + node_bytes + edge_bytes:  # the kit's trailer follows
            raise Damaged("has the wrong length", path=str(path), offset=len(data))
        return Loaded(Marks(*marks), [(t, k, tuple(v) if k == LABELS else v) for t, k, v in tokens], first_node,
                      uniform, sets, first_edge, kind, sources, targets, data[at : at + node_bytes],
                      data[at + node_bytes : at + node_bytes + edge_bytes])
    except (ValueError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise Damaged(f"is not a bulk load: {error}", path=str(path)) from error


def apply(loaded: Loaded, writer: StateWriter, indexes: Indexes, tokens: Tokens) -> Marks:
    """Write a load into the transaction of `writer`, after its overlay. Returns the marks after the load."""
    writer.write("tokens", (token_entry(*token) for token in loaded.tokens))
    if len(loaded.label_sets):
        _write_nodes(loaded, writer, tokens)
    rows: list[bytes] = []
    writer.append("node_props", _props(loaded.node_props, loaded, indexes, tokens, rows))
    writer.write("index", ((row, b"") for row in sorted(rows)))
    edge_ids = np.array([edge for edge, _ in _read_maps(loaded.edge_props)], np.int64)
    writer.append("edge_props", ((id_key(edge), packed) for edge, packed in _read_maps(loaded.edge_props)))
    if len(loaded.sources):
        _write_edges(loaded, writer, edge_ids)
        _write_adjacency(loaded, writer)
    return loaded.marks


def _read_maps(data: bytes) -> Iterator[tuple[int, bytes]]:
    head, skipped, at, end = _MAP.unpack_from, _MAP.size, 0, len(data)
    while at < end:
        item, length = head(data, at)
        at += skipped + length
        yield item, data[at - length : at]


def _props(data: bytes, loaded: Loaded, indexes: Indexes, tokens: Tokens,
           rows: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The property maps to write; collects the index rows that follow from them."""
    for node, packed in _read_maps(data):
        if indexes:
            labels = tokens.label_tokens(int(loaded.label_sets[node - loaded.first_node]))
            cells = decode_map(packed)
            for (label, key), index in indexes.items():
                if label in labels and key in cells:
                    rows.append(ROW_KEY.pack(index, value_digest(cells[key]), node))
        yield id_key(node), packed


def _parts(per: int, first: int, column: Any) -> Iterator[tuple[int, int, Any]]:
    """Cut consecutive items, numbered from `first`, into blocks of `per`: for each block its number, the offset in it,
    and its items."""
    number, skip = divmod(first, per)
    for at in range(-skip, len(column), per):
        yield number, max(-at, 0), column[max(at, 0) : at + per]
        number += 1


def _write_blocks(writer: StateWriter, db: str, per: int, first: int, column: Any) -> None:
    """Consecutive items, which come after all others, as blocks of `per`. The first is merged into the last block."""
    blocks = _blocks(writer, db, per, first, column)
    if first % per:
        writer.write(db, islice(blocks, 1))
    writer.append(db, blocks)


def _blocks(writer: StateWriter, db: str, per: int, first: int, column: Any) -> Iterator[tuple[bytes, bytes]]:
    for number, skip, part in _parts(per, first, column):
        block = part
        if len(part) < per:
            block = np.zeros(per, column.dtype)
            stored = writer.get(db, id_key(number)) if skip else None
            if stored is not None:
                block[:skip] = np.frombuffer(stored, column.dtype)[:skip]
            block[skip : skip + len(part)] = part
        yield id_key(number), block.tobytes()


def _write_nodes(loaded: Loaded, writer: StateWriter, tokens: Tokens) -> None:
    first, sets = loaded.first_node, loaded.label_sets
    _write_blocks(writer, "nodes", NODE_BLOCK, first, sets.astype("<u4", copy=False))
    by_label: dict[int, list[int]] = {}
    for label_set in loaded.sets():
        for label in tokens.label_tokens(label_set):
            by_label.setdefault(label, []).append(label_set)
    for label, having in sorted(by_label.items()):
        writer.write("labels", _bitmaps(writer, label, first, sets, having))


def _bitmaps(writer: StateWriter, label: int, first: int, sets: Any,
             having: list[int]) -> Iterator[tuple[bytes, bytes]]:
    """The bitmaps of a label, which the sets `having` contain. The first is merged into the one that exists."""
    for number, skip, part in _parts(LABEL_WINDOW, first, sets):
        key = LABEL_KEY.pack(label, number)
        bits = np.zeros(LABEL_WINDOW, bool)
        stored = writer.get("labels", key) if skip else None
        if stored is not None:
            bits[:skip] = np.unpackbits(np.frombuffer(stored, np.uint8), bitorder="little")[:skip]
        bits[skip : skip + len(part)] = np.isin(part, having)
        if bits.any():
            yield key, np.packbits(bits, bitorder="little").tobytes()


def _write_edges(loaded: Loaded, writer: StateWriter, with_props: Any) -> None:
    table = np.empty(len(loaded.sources), EDGE_DTYPE)
    table["source"] = loaded.sources
    table["target"] = loaded.targets
    table["type"] = loaded.kind
    table["flags"] = PRESENT
    table["flags"][with_props - loaded.first_edge] |= HAS_PROPS
    _write_blocks(writer, "edges", EDGE_BLOCK, loaded.first_edge, table)


def _write_adjacency(loaded: Loaded, writer: StateWriter) -> None:
    """Both lists of every edge. Each edge is an entry (node, direction, edge, neighbour), twice; sorting them by all
    but the last makes the lists."""
    n = len(loaded.sources)
    order = _order(loaded.sources, loaded.targets)
    owner = np.concatenate((loaded.sources, loaded.targets))[order]
    neighbours = np.concatenate((loaded.targets, loaded.sources))[order]
    inward = order >= n
    edges = order + loaded.first_edge
    edges[inward] -= n
    starts = np.flatnonzero(np.concatenate(([True], (owner[1:] != owner[:-1]) | (inward[1:] != inward[:-1]))))
    counts = np.diff(np.concatenate((starts, [2 * n])))
    keys = np.empty(len(starts), np.dtype([("node", ">u8"), ("lane", ">u4")]))
    keys["node"] = owner[starts]
    keys["lane"] = loaded.kind << 1 | np.where(inward[starts], IN, 0)
    cursor = writer.txn.cursor(writer.dbs["adjacency"])
    if not cursor.last() or cursor.key() < keys[0].tobytes():
        writer.append("adjacency", _lists(keys, starts, counts, neighbours, edges))
        return
    raw, pairs = keys.tobytes(), list(zip(edges.tolist(), neighbours.tolist(), strict=True))
    writer.write_lists((raw[12 * i : 12 * i + 12], pairs[start : start + count])
                       for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)))


def _order(sources: Any, targets: Any) -> Any:
    """The order of the 2 n entries, those of the sources first, by node, direction and edge."""
    n = len(sources)
    nodes = np.concatenate((sources, targets))
    bits = (2 * n - 1).bit_length()
    if int(nodes.max()).bit_length() + bits + 1 < 63:
        # Node, direction and place in one number: the place ascends with direction and edge. One sort of numbers,
        # several times as fast as sorting indirectly.
        packed = nodes << bits | np.arange(2 * n)
        packed.sort()
        return packed & ((1 << bits) - 1)
    return np.argsort(nodes, kind="stable")


def _lists(keys: Any, starts: Any, counts: Any, neighbours: Any, edges: Any) -> Iterator[tuple[bytes, bytes]]:
    """The entries of new lists."""
    raw, near, far = (keys.tobytes(), *(column.astype("<i8", copy=False).tobytes() for column in (edges, neighbours)))
    block, at = adjacency.BLOCK, 0
    for start, count in zip((8 * starts).tolist(), counts.tolist(), strict=True):
        key, end = raw[at : at + 12], start + 8 * count
        at += 12
        value = far[start:end] + near[start:end]
        if count <= block:
            yield key, value
        else:
            yield from adjacency.long_list(key, value)
