"""Bulk loads: many nodes and edges as one transaction, written straight into LMDB.

A `BulkLoad` says what to load. `encode` checks it against the newest state and writes it as a file of columns beside
the log; the record that names the file holds the new tokens and the marks after it. `apply` reads the file and writes
LMDB: node and edge blocks whole, and both adjacency lists of all edges by one sort, sliced into blocks. Where the lists
of the load lie above all that are there, as in an empty store, they are appended; otherwise merged.

The file, little-endian: magic `HFGBULK\\0`, version u32, uniform label-set token u32 (0: one for each node follows),
edge type u32, reserved u32, then u64: first node, number of nodes, first edge, number of edges, bytes of node
properties, bytes of edge properties. Then the columns: label-set tokens u32 (unless uniform), sources u64, targets u64,
node properties and edge properties: id u64, length u32, property map, and so on, by id.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgpack
import numpy as np
import numpy.typing as npt

from ...env import Files
from ...env.shown import shown, type_name
from ...errors import Damaged, InvalidInput, UnsupportedFormat
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
from .tokens import LABELS, TYPE, Tokens
from .values import check_id, check_labels, check_name, check_properties, decode_map, value_digest
from .walk import labels_of

if TYPE_CHECKING:
    from .transaction import GraphTransaction

_MAGIC, _VERSION = b"HFGBULK\0", 1
_HEAD = struct.Struct("<8sIIII6Q")
_MAP = struct.Struct("<QI")
_BATCH = 256
MAX_ITEMS = 1 << 40
"""Of nodes, and of edges, in one load."""

Properties = Mapping[str, Any]
NodeItem = tuple[str | Sequence[str], Properties]
EdgeItem = tuple[int, int] | tuple[int, int, Properties]


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The ids a load gave out: nodes `first_node`, `first_node + 1`, … in the order they were given; edges likewise."""

    first_node: int
    nodes: int
    first_edge: int
    edges: int


@dataclass(slots=True)
class BulkLoad:
    """What to load, as one transaction.

    Attributes:
        nodes: how many nodes to add, all with `labels`; or an iterable of property mappings, all with `labels`; or one
            of (labels, properties).
        labels: a label or several.
        edges: an integer array of shape (n, 2); a pair of arrays of n, sources and targets; or an iterable of
            (source, target) or (source, target, properties). A pair of lists, which could be either, is refused.
        edge_type: of all edges.
        relative: whether the node ids in `edges` count from this load's first node, which is 0 then. Otherwise they
            are ids of nodes, there already or of this load (whose first id is known where nobody else writes).
        result: the ids that were given out; set when the load has been logged.
    """

    nodes: int | Iterable[Properties | NodeItem] = 0
    labels: str | Sequence[str] = ()
    edges: npt.NDArray[Any] | Iterable[Any] = ()
    edge_type: str | None = None
    relative: bool = False
    result: BulkResult | None = field(default=None, init=False)


def encode(load: object, tx: GraphTransaction, out: BinaryIO, reserve: Callable[[Loaded], None]) -> bytes:
    """Check a load, write its file, and return its record's payload.

    Args:
        load: a `BulkLoad`.
        tx: one without changes, on the newest state; it is used for looking up and for allocating tokens.
        out: where to write the file.
        reserve: called with the load in columns before anything is written; raises where there is no room for it.

    Raises:
        InvalidInput: nothing was written.
        As `reserve`.
    """
    if not isinstance(load, BulkLoad):
        raise InvalidInput(f"a bulk load must be a BulkLoad, not {type_name(load)}")
    before = tx.marks()
    shared = check_labels(_several(load.labels))
    count, sets, node_props = _nodes(load, shared, tx, before.next_node)
    sources, targets, maps = _edges(load.edges)
    _check_ends(load, sources, targets, count, tx, before)
    if load.relative:
        sources, targets = sources + before.next_node, targets + before.next_node
    kind = 0
    if len(sources):
        if load.edge_type is None:
            raise InvalidInput("a load with edges needs an edge_type")
        kind = tx.token(TYPE, check_name(load.edge_type, "edge type"))
    edge_props = b"".join(_maps(maps, before.next_edge, tx))
    uniform = 0
    if sets is None and count:
        uniform = tx.label_set(shared)
    tokens = [change[1:] for change in tx.changes.tokens]
    marks = Marks(before.next_node + count, before.next_edge + len(sources), tx.marks().next_token,
                  before.nodes + count, before.edges + len(sources))
    all_sets = np.broadcast_to(np.uint32(uniform), count) if sets is None else sets
    loaded = Loaded(marks, tokens, before.next_node, uniform, all_sets, before.next_edge, kind, sources, targets,
                    node_props, edge_props)
    reserve(loaded)
    out.write(_HEAD.pack(_MAGIC, _VERSION, uniform, kind, 0, before.next_node, count, before.next_edge, len(sources),
                         len(node_props), len(edge_props)))
    for column in (*([] if sets is None else [sets.astype("<u4")]), sources.astype("<u8"), targets.astype("<u8")):
        for at in range(0, len(column), 1 << 18):
            out.write(column[at : at + (1 << 18)].tobytes())
    out.write(node_props)
    out.write(edge_props)
    load.result = BulkResult(before.next_node, count, before.next_edge, len(sources))
    packed: bytes = msgpack.packb([list(marks), tokens])
    return packed


def _nodes(load: BulkLoad, shared: tuple[str, ...], tx: GraphTransaction,
           first: int) -> tuple[int, npt.NDArray[np.uint32] | None, bytes]:
    """How many nodes, their label sets (None where all have the load's labels), and their property maps."""
    if isinstance(load.nodes, (int, np.integer)) and not isinstance(load.nodes, bool):
        if not 0 <= load.nodes <= MAX_ITEMS:
            raise InvalidInput(f"nodes={shown(load.nodes)}")
        return int(load.nodes), None, b""
    if isinstance(load.nodes, (str, bytes, bool, Mapping)) or not isinstance(load.nodes, Iterable):
        raise InvalidInput(f"nodes must be a number or an iterable, not {type_name(load.nodes)}")
    sets: list[int] = []
    maps: list[tuple[int, Properties]] = []
    known: dict[Any, int] = {}
    uniform = True
    for at, item in enumerate(load.nodes):
        if isinstance(item, Mapping):
            labels: Any = shared
            properties = item
        elif isinstance(item, tuple) and len(item) == 2:
            labels, properties = item
            labels = _several(labels)
            uniform = False
        else:
            raise InvalidInput(f"node {at} of the load is neither a mapping nor (labels, properties)")
        token = known.get(labels)
        if token is None:
            token = known[labels] = tx.label_set(check_labels(labels))
        sets.append(token)
        if properties:
            maps.append((at, properties))
    return len(sets), None if uniform else np.array(sets, np.uint32), b"".join(_maps(maps, first, tx))


def _several(labels: Any) -> tuple[Any, ...]:
    """Labels, one or several, as a tuple to look up. Raises `InvalidInput`."""
    if isinstance(labels, str):
        return (labels,)
    try:
        several = tuple(labels)
        hash(several)
    except TypeError as error:
        raise InvalidInput("labels are a str, or several", hint="leave out labels=, or give () for none") from error
    return several


def _maps(maps: list[tuple[int, Properties]], first: int, tx: GraphTransaction) -> Iterator[bytes]:
    for at, properties in maps:
        packed = tx.property_map(check_properties(properties))
        yield _MAP.pack(first + at, len(packed))
        yield packed


def _edges(edges: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[tuple[int, Properties]]]:
    """Sources, targets, and (place, properties) of the edges that have some."""
    if isinstance(edges, np.ndarray):
        if edges.ndim != 2 or edges.shape[1] != 2:
            raise InvalidInput(f"an array of edges has the shape (n, 2), not {edges.shape}")
        return _ids(edges[:, 0]), _ids(edges[:, 1]), []
    if isinstance(edges, tuple) and len(edges) == 2 and all(isinstance(part, np.ndarray) for part in edges):
        if edges[0].ndim != 1 or edges[0].shape != edges[1].shape:
            raise InvalidInput("sources and targets are two arrays of the same length")
        return _ids(edges[0]), _ids(edges[1]), []
    if isinstance(edges, tuple) and len(edges) == 2 and any(isinstance(part, (list, np.ndarray)) for part in edges):
        raise InvalidInput(f"edges is a pair of {type_name(edges[0])} and {type_name(edges[1])}, which may be "
                           "sources and targets, or two edges",
                           hint="give sources and targets as two numpy arrays, or edges as a list of (source, target)")
    if isinstance(edges, (str, bytes, Mapping)) or not isinstance(edges, Iterable):
        raise InvalidInput(f"edges must be arrays or an iterable, not {type_name(edges)}")
    ends: list[int] = []
    maps: list[tuple[int, Properties]] = []
    for at, item in enumerate(edges):
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            raise InvalidInput(f"edge {at} of the load is not (source, target) or (source, target, properties)")
        ends += [check_id(end, "a node") for end in item[:2]]
        if len(item) == 3 and item[2]:
            maps.append((at, item[2]))
    try:
        array = np.array(ends, np.int64)
    except OverflowError as error:
        raise InvalidInput("a node id does not fit in 63 bits") from error
    return array[::2], array[1::2], maps


def _ids(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "iu" and array.size:
        raise InvalidInput(f"node ids are integers, not {array.dtype}")
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 1 << 63:
        raise InvalidInput("a node id does not fit in 63 bits")
    return array.astype(np.int64)


def _check_ends(load: BulkLoad, sources: Any, targets: Any, count: int, tx: GraphTransaction,
                before: Marks) -> None:
    """That every edge's nodes are there, or in the load."""
    if not len(sources):
        return
    low, high = int(min(sources.min(), targets.min())), int(max(sources.max(), targets.max()))
    if load.relative:
        if low < 0 or high >= count:
            raise InvalidInput(f"edges name the nodes {low} to {high} of a load that has {count}")
        return
    if low < 0 or high >= before.next_node + count:
        raise InvalidInput(f"edges name node {low if low < 0 else high}, which is neither there nor in the load")
    if low < before.next_node:
        ids = np.concatenate((sources, targets))
        ids = np.unique(ids[ids < before.next_node])
        missing = ids[labels_of(tx, ids) == 0]
        if len(missing):
            raise InvalidInput(f"edges name node {missing[0]}, which is not there")


# --- applying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load in columns, as its payload and its file have it. `uniform` is the label set of all nodes, or 0; where it
    is given, `label_sets` takes no memory, however many nodes there are."""

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

    def sets(self) -> list[int]:
        """The label sets, each once."""
        found: list[int] = [self.uniform] if self.uniform else np.unique(self.label_sets).tolist()
        return found

    def pages(self, reads: Lookups) -> int:
        """At most how many pages it takes: new data, in pages that may be half full, and copies of what it is merged
        with. `reads` is the state before it, with its tokens."""
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
        sources = np.frombuffer(data, "<i8", edges, at).astype(np.int64)
        targets = np.frombuffer(data, "<i8", edges, at + 8 * edges).astype(np.int64)
        at += 16 * edges
        if len(data) < at + node_bytes + edge_bytes:  # the kit's trailer follows
            raise Damaged("has the wrong length", path=str(path), offset=len(data))
        return Loaded(Marks(*marks), [(t, k, tuple(v) if k == LABELS else v) for t, k, v in tokens], first_node,
                      uniform, sets, first_edge, kind, sources, targets, data[at : at + node_bytes],
                      data[at + node_bytes : at + node_bytes + edge_bytes])
    except (ValueError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise Damaged(f"is not a bulk load: {error}", path=str(path)) from error


def apply(loaded: Loaded, writer: StateWriter, indexes: Indexes, tokens: Tokens) -> Marks:
    """Write a load into the transaction of `writer`, whose overlay has been written; returns the marks after it."""
    writer.write("tokens", (token_entry(*token) for token in loaded.tokens))
    if len(loaded.label_sets):
        _write_nodes(loaded, writer, tokens)
    rows: list[bytes] = []
    writer.write("node_props", _props(loaded.node_props, loaded, indexes, tokens, rows))
    writer.write("index", ((row, b"") for row in sorted(rows)))
    edge_ids = np.array([edge for edge, _ in _read_maps(loaded.edge_props)], np.int64)
    writer.write("edge_props", ((id_key(edge), packed) for edge, packed in _read_maps(loaded.edge_props)))
    if len(loaded.sources):
        _write_edges(loaded, writer, edge_ids)
        _write_adjacency(loaded, writer)
    return loaded.marks


def _read_maps(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        item, length = _MAP.unpack_from(data, at)
        at += _MAP.size
        yield item, data[at : at + length]
        at += length


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
    """Consecutive items, numbered from `first`, in blocks of `per`: each block's number, and from which place in it on
    it has which of them."""
    number, skip = divmod(first, per)
    for at in range(-skip, len(column), per):
        yield number, max(-at, 0), column[max(at, 0) : at + per]
        number += 1


def _blocks(writer: StateWriter, db: str, per: int, first: int, column: Any) -> Iterator[tuple[bytes, bytes]]:
    """Consecutive items as blocks of `per`, the first over what is there."""
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
    writer.write("nodes", _blocks(writer, "nodes", NODE_BLOCK, first, sets.astype("<u4", copy=False)))
    by_label: dict[int, list[int]] = {}
    for label_set in loaded.sets():
        for label in tokens.label_tokens(label_set):
            by_label.setdefault(label, []).append(label_set)
    for label, having in sorted(by_label.items()):
        writer.write("labels", _bitmaps(writer, label, first, sets, having))


def _bitmaps(writer: StateWriter, label: int, first: int, sets: Any,
             having: list[int]) -> Iterator[tuple[bytes, bytes]]:
    """The bitmaps of a label, which the sets `having` have, the first over what is there."""
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
    writer.write("edges", _blocks(writer, "edges", EDGE_BLOCK, loaded.first_edge, table))


def _write_adjacency(loaded: Loaded, writer: StateWriter) -> None:
    """Both lists of every edge. Each edge is an entry (node, direction, edge, neighbour), twice; sorting them by all
    but the last makes the lists."""
    n = len(loaded.sources)
    order = _order(loaded.sources, loaded.targets)
    place = order % n
    inward = order >= n
    owner = np.where(inward, loaded.targets[place], loaded.sources[place])
    neighbours = np.where(inward, loaded.sources[place], loaded.targets[place])
    starts = np.flatnonzero(np.concatenate(([True], (owner[1:] != owner[:-1]) | (inward[1:] != inward[:-1]))))
    counts = np.diff(np.concatenate((starts, [2 * n])))
    # All lists one after the other, each as it is stored: its neighbours, then its edges.
    data = np.empty(4 * n, "<i8")
    at = np.arange(2 * n) + np.repeat(starts, counts)
    data[at] = neighbours
    data[at + np.repeat(counts, counts)] = place + loaded.first_edge
    keys = np.empty(len(starts), np.dtype([("node", ">u8"), ("lane", ">u4")]))
    keys["node"] = owner[starts]
    keys["lane"] = loaded.kind << 1 | np.where(inward[starts], IN, 0)
    cursor = writer.txn.cursor(writer.dbs["adjacency"])
    if not cursor.last() or cursor.key() < keys[0].tobytes():
        _append(cursor, writer, keys, starts, counts, data)
        return
    lists = []
    raw, packed = keys.tobytes(), data.tobytes()
    for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        column = np.frombuffer(packed, "<i8", 2 * count, 16 * start).tolist()
        lists.append((raw[12 * i : 12 * i + 12], list(zip(column[count:], column[:count], strict=True))))
    writer.write_lists(lists)


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


def _append(cursor: Any, writer: StateWriter, keys: Any, starts: Any, counts: Any, data: Any) -> None:
    """Write lists that come after all that are there."""
    raw, packed = keys.tobytes(), data.tobytes()
    puts: list[tuple[bytes, bytes]] = []
    block = adjacency.BLOCK
    sealed, tally = writer.sealers["adjacency"].sealed, writer.tallies["adjacency"]

    def put_all() -> None:
        stored = [(key, sealed(key, value)) for key, value in puts]
        for _, value in stored:
            tally.add(value)
        cursor.putmulti(stored, append=True)
        puts.clear()

    for i, (start, count) in enumerate(zip((16 * starts).tolist(), counts.tolist(), strict=True)):
        key = raw[12 * i : 12 * i + 12]
        value = packed[start : start + 16 * count]
        if count <= block:
            puts.append((key, value))
        else:
            puts += adjacency.long_list(key, value)
        if len(puts) >= _BATCH:
            put_all()
            writer.pace()
    put_all()
