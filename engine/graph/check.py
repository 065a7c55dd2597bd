"""The check: walk a whole state and say what does not agree.

What is in LMDB is checked as it stands there: blocks well-formed and in order, adjacency against the edge table in
both directions, label bitmaps and index rows against the nodes, counts and marks. Each adjacency entry is looked up in
the edge table, in batches sorted by edge id; since the edges of a list ascend strictly, and each entry matches its
edge, no edge can be in two lists of one direction, and so equal numbers mean that none is missing. Then what the view
shows (the overlay over it) is checked by the same rules, reading through the view, for all that the overlay touches.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import lmdb
import msgpack
import numpy as np

from ..errors import HoldfastError, StoreClosed
from . import adjacency
from .lmdbstate import (
    EDGE_BLOCK,
    EDGE_DTYPE,
    HAS_PROPS,
    LABEL_KEY,
    LABEL_WINDOW,
    NODE_BLOCK,
    PRESENT,
    ROW_KEY,
    Base,
    closed,
    id_key,
    id_of,
)
from .overlay import IN, OUT, Event, Marks, newest
from .tokens import KEY, TYPE, Tokens
from .values import decode_map, value_digest
from .walk import edge_blocks, node_blocks, overlay_lists

if TYPE_CHECKING:
    from .view import GraphView

_BATCH = 1 << 18


def check(view: GraphView) -> Iterator[str]:
    """Every inconsistency, in words."""
    base = view._base
    stored = _Stored(base, view._tokens)
    for part in (stored.nodes, stored.edges, stored.adjacency, stored.properties, stored.labels, stored.index,
                 stored.counts):
        yield from _guarded(part(), "the state on disk", base)
    if view._bound > base.txid:
        yield from _guarded(_overlay(view), "the state in memory", base)


def _guarded(findings: Iterator[str], what: str, base: Base) -> Iterator[str]:
    """A part that cannot go on is a finding too."""
    try:
        yield from findings
    except StoreClosed:
        raise
    except lmdb.Error as error:
        if base.state.closed:
            raise closed(error) from error
        yield f"{what} cannot be read on: LMDB says {error}"
    except (ValueError, KeyError, IndexError, TypeError, struct.error, msgpack.UnpackException,
            HoldfastError) as error:
        yield f"{what} cannot be read on: {type(error).__name__}: {error}"


class _Stored:
    """The checks of one base. What is counted in passing is compared at the end."""

    def __init__(self, base: Base, tokens: Tokens) -> None:
        self.base = base
        self.marks = base.marks
        self.tokens = tokens
        self.node_count = 0
        self.edge_count = 0
        self.sides = [0, 0]
        self.label_sets = {token for token, (kind, _) in list(tokens.values.items()) if kind == "s"}

    def rows(self, db: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.base.txn.cursor(self.base.dbs[db]))

    def get(self, db: str, key: bytes) -> bytes | None:
        return self.base.get(key, None, self.base.dbs[db])

    def node_labels(self, node: int) -> int:
        number, at = divmod(node, NODE_BLOCK)
        block = self.get("nodes", id_key(number))
        return 0 if block is None else int.from_bytes(block[4 * at : 4 * at + 4], "little")

    def nodes(self) -> Iterator[str]:
        for token in self.tokens.values:
            if token >= self.marks.next_token and self._stored_token(token):
                yield f"token {token} is in use, but the next to be given out is {self.marks.next_token}"
        for key, value in self.rows("nodes"):
            if len(key) != 8 or len(value) != 4 * NODE_BLOCK:
                yield f"node block {key.hex()} has the wrong size"
                continue
            first = id_of(key)[0] * NODE_BLOCK
            block = np.frombuffer(value, "<u4")
            there = np.flatnonzero(block)
            self.node_count += len(there)
            if len(there) and first + int(there[-1]) >= self.marks.next_node:
                yield f"node {first + int(there[-1])} exists, but the next to be given out is {self.marks.next_node}"
            if first == 0 and block[0]:
                yield "node 0 exists"
            for token in set(block[there].tolist()) - self.label_sets:
                yield f"a node in the block from {first} has the label set {token}, which does not exist"

    def _stored_token(self, token: int) -> bool:
        return self.get("tokens", token.to_bytes(4, "big")) is not None

    def edges(self) -> Iterator[str]:
        ends: set[int] = set()
        for key, value in self.rows("edges"):
            if len(key) != 8 or len(value) != EDGE_BLOCK * EDGE_DTYPE.itemsize:
                yield f"edge block {key.hex()} has the wrong size"
                continue
            first = id_of(key)[0] * EDGE_BLOCK
            block = np.frombuffer(value, EDGE_DTYPE)
            flags = block["flags"]
            there = np.flatnonzero(flags & PRESENT)
            self.edge_count += len(there)
            if np.any(flags & ~np.uint32(PRESENT | HAS_PROPS)) or np.any((flags & PRESENT == 0) & (flags != 0)):
                yield f"an edge in the block from {first} has flags that mean nothing"
            if len(there) and first + int(there[-1]) >= self.marks.next_edge:
                yield f"edge {first + int(there[-1])} exists, but the next to be given out is {self.marks.next_edge}"
            for kind in np.unique(block["type"][there]).tolist():
                if self.tokens.values.get(kind, ("",))[0] != TYPE:
                    yield f"an edge in the block from {first} has the type {kind}, which does not exist"
            for name in ("source", "target"):
                ends.update(block[name][there].tolist())
            if len(ends) > _BATCH:
                yield from self._exist(ends)
                ends.clear()
        yield from self._exist(ends)

    def _exist(self, ends: set[int]) -> Iterator[str]:
        """That these nodes exist."""
        ids = np.array(sorted(ends), dtype=np.int64)
        numbers = ids // NODE_BLOCK
        for number in np.unique(numbers).tolist():
            block = self.get("nodes", id_key(number))
            wanted = ids[numbers == number] if len(ids) < 4096 else ids[slice(*np.searchsorted(
                numbers, [number, number + 1]))]
            there = np.frombuffer(block or bytes(4 * NODE_BLOCK), "<u4")[wanted - number * NODE_BLOCK]
            for node in wanted[there == 0].tolist():
                yield f"node {node} does not exist, but has edges"

    def adjacency(self) -> Iterator[str]:
        batch: list[tuple[int, int, int, bytes]] = []
        pending = 0
        tail: tuple[bytes, int, int] | None = None  # key of a tail, entries that must come before it, its first edge
        seen, last = 0, -1
        for key, value in self.rows("adjacency"):
            if tail is not None and not key.startswith(tail[0]):
                yield from self._closed_list(tail, seen, last)
                tail = None
            if len(key) not in (adjacency.KEY_BYTES, adjacency.KEY_BYTES + 8) or len(value) % 8:
                yield f"adjacency block {key.hex()} has the wrong size"
                continue
            node, lane = adjacency.unpack_key(key)
            n = adjacency.entries(value)
            if n > adjacency.BLOCK:
                yield f"{_list_name(node, lane)}: {n} edges in one block"
                continue
            if len(key) > adjacency.KEY_BYTES:
                edges = adjacency.edges_of(value)
                first = int.from_bytes(key[adjacency.KEY_BYTES :], "big")
                if tail is None:
                    yield f"{_list_name(node, lane)}: a block that no tail tells of"
                elif not n or edges[0] < first or first <= last:
                    yield f"{_list_name(node, lane)}: the block from edge {first} is empty or out of order"
                last = edges[-1] if n else last
                seen += n
            elif len(value) & 8:
                before = adjacency.earlier(value)
                if not before:
                    yield f"{_list_name(node, lane)}: a tail that follows nothing"
                tail = (key, before, adjacency.edges_of(value)[0] if n else 1 << 63)
                seen, last = 0, -1
            elif not n:
                yield f"{_list_name(node, lane)}: an empty block"
            self.sides[lane & 1] += n
            batch.append((node, lane, n, value[: 16 * n]))
            pending += n
            if pending >= _BATCH:
                yield from self._match(batch)
                batch, pending = [], 0
        if tail is not None:
            yield from self._closed_list(tail, seen, last)
        yield from self._match(batch)

    def _closed_list(self, tail: tuple[bytes, int, int], seen: int, last: int) -> Iterator[str]:
        key, before, first = tail
        if seen != before or last >= first:
            yield f"{_list_name(*adjacency.unpack_key(key))}: {before} entries should come before its tail, {seen} " \
                  f"do, or they are out of order"

    def _match(self, batch: list[tuple[int, int, int, bytes]]) -> Iterator[str]:
        """That the entries of blocks, (node, lane, number, bytes), are in order and agree with the edge table."""
        counts = np.array([n for _, _, n, _ in batch], np.int64)
        total = int(counts.sum())
        if not total:
            return
        data = np.frombuffer(b"".join([value for *_, value in batch]), "<i8")
        at = np.arange(total) + np.repeat(np.cumsum(counts) - counts, counts)
        neighbours, edges = data[at], data[at + np.repeat(counts, counts)]
        owner = np.repeat(np.arange(len(batch)), counts)
        for i in np.unique(owner[1:][(np.diff(edges) <= 0) & (np.diff(owner) == 0)]).tolist():
            yield f"{_list_name(*batch[i][:2])}: edges in a block are out of order"
        nodes = np.array([node for node, *_ in batch], np.int64)[owner]
        lanes = np.array([lane for _, lane, _, _ in batch], np.int64)[owner]
        order = np.argsort(edges, kind="stable")
        nodes, lanes, neighbours, edges = nodes[order], lanes[order], neighbours[order], edges[order]
        numbers = edges // EDGE_BLOCK
        starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))).tolist()
        for begin, end in pairwise([*starts, total]):
            number = int(numbers[begin])
            stored = self.get("edges", id_key(number)) if number >= 0 else None
            block = np.frombuffer(stored or bytes(EDGE_BLOCK * EDGE_DTYPE.itemsize), EDGE_DTYPE)
            found = block[edges[begin:end] - number * EDGE_BLOCK]
            inward = (lanes[begin:end] & 1) == IN
            own, other = nodes[begin:end], neighbours[begin:end]
            good = ((found["flags"] & PRESENT != 0) & (found["type"] == lanes[begin:end] >> 1)
                    & (np.where(inward, found["target"], found["source"]) == own)
                    & (np.where(inward, found["source"], found["target"]) == other))
            for i in np.flatnonzero(~good).tolist():
                yield f"{_list_name(int(own[i]), int(lanes[begin + i]))} has edge {edges[begin + i]} with node " \
                      f"{other[i]}; the edge table says otherwise"

    def properties(self) -> Iterator[str]:
        keys = {token for token, (kind, _) in list(self.tokens.values.items()) if kind == KEY}
        for key, value in self.rows("node_props"):
            node = id_of(key)[0]
            if not self.node_labels(node):
                yield f"node {node} does not exist, but has properties"
            yield from self._map(f"node {node}", value, keys)
        flagged = sum(int(np.count_nonzero(np.frombuffer(value, EDGE_DTYPE)["flags"] & HAS_PROPS))
                      for _, value in self.rows("edges") if len(value) == EDGE_BLOCK * EDGE_DTYPE.itemsize)
        held = 0
        for key, value in self.rows("edge_props"):
            edge = id_of(key)[0]
            held += 1
            number, at = divmod(edge, EDGE_BLOCK)
            data = self.get("edges", id_key(number))
            if data is None or np.frombuffer(data, EDGE_DTYPE)["flags"][at] != PRESENT | HAS_PROPS:
                yield f"edge {edge} has properties that the edge table does not tell of"
            yield from self._map(f"edge {edge}", value, keys)
        if flagged != held:
            yield f"{flagged} edges are said to have properties, and {held} have"

    def _map(self, what: str, packed: bytes, keys: set[int]) -> Iterator[str]:
        try:
            strange = set(decode_map(packed)) - keys
        except (ValueError, TypeError, msgpack.UnpackException):
            yield f"{what}: its properties cannot be decoded"
            return
        if strange or not packed:
            yield f"{what}: its properties have keys that do not exist, or are empty"

    def labels(self) -> Iterator[str]:
        expected = 0
        window: dict[int, Any] = {}
        current = -1
        for key, value in self.rows("nodes"):
            first = id_of(key)[0] * NODE_BLOCK
            block = np.frombuffer(value, "<u4")
            for token in set(block.tolist()) - {0}:
                if token not in self.label_sets:
                    continue
                ids = np.flatnonzero(block == token) + first
                for number in np.unique(ids // LABEL_WINDOW).tolist():
                    if number > current:
                        # A block may reach into the next window; all of an earlier one has been seen by then.
                        done = [old for old in window if old < number - 1]
                        for old in done:
                            expected += len(window[old])
                            yield from self._bitmaps(old, window.pop(old))
                        current = number
                    part = ids[ids // LABEL_WINDOW == number] - number * LABEL_WINDOW
                    for label in self.tokens.label_tokens(token):
                        bits = window.setdefault(number, {}).setdefault(label, np.zeros(LABEL_WINDOW, bool))
                        bits[part] = True
        for number, bitmaps in window.items():
            expected += len(bitmaps)
            yield from self._bitmaps(number, bitmaps)
        there = self.base.txn.stat(self.base.dbs["labels"])["entries"]
        if there != expected:
            yield f"{there} label bitmaps are there, where {expected} should be"

    def _bitmaps(self, number: int, bitmaps: dict[int, Any]) -> Iterator[str]:
        for label, bits in bitmaps.items():
            stored = self.get("labels", LABEL_KEY.pack(label, number))
            if stored != np.packbits(bits, bitorder="little").tobytes():
                yield f"label {self.tokens.name(label)!r}: the bitmap from node {number * LABEL_WINDOW} " \
                      f"does not agree with the nodes"

    def index(self) -> Iterator[str]:
        by_id = {index: key for key, index in self.base.indexes.items()}
        found: dict[int, int] = dict.fromkeys(by_id, 0)
        for key, _ in self.rows("index"):
            index, digest, node = ROW_KEY.unpack(key)
            if index not in by_id:
                yield f"an index row of index {index}, which does not exist"
                continue
            found[index] += 1
            label, prop = by_id[index]
            labels = self.node_labels(node)
            properties = decode_map(self.get("node_props", id_key(node)) or b"")
            if not labels or label not in self.tokens.label_tokens(labels) or prop not in properties or (
                    value_digest(properties[prop]) != digest):
                yield f"index on {self._index_name(label, prop)}: node {node} does not have the value it stands under"
        if not by_id:
            return
        expected: dict[int, int] = dict.fromkeys(by_id, 0)
        for key, value in self.rows("node_props"):
            labels = self.node_labels(id_of(key)[0])
            if labels:
                carried = self.tokens.label_tokens(labels)
                properties = decode_map(value)
                for index, (label, prop) in by_id.items():
                    expected[index] += label in carried and prop in properties
        for index, (label, prop) in by_id.items():
            if expected[index] != found[index]:
                yield f"index on {self._index_name(label, prop)} has {found[index]} rows, where {expected[index]} " \
                      f"should be"

    def _index_name(self, label: int, prop: int) -> str:
        return f"{self.tokens.name(label)}.{self.tokens.name(prop)}"

    def counts(self) -> Iterator[str]:
        marks = self.marks
        if self.node_count != marks.nodes:
            yield f"{self.node_count} nodes are there, {marks.nodes} are counted"
        if self.edge_count != marks.edges:
            yield f"{self.edge_count} edges are there, {marks.edges} are counted"
        for side, name in ((OUT, "outgoing"), (IN, "incoming")):
            if self.sides[side] != self.edge_count:
                yield f"{self.edge_count} edges are there, the {name} lists hold {self.sides[side]}"


def _list_name(node: int, lane: int) -> str:
    return f"the list of node {node}, type {lane >> 1}, {'in' if lane & IN else 'out'},"


def _overlay(view: GraphView) -> Iterator[str]:
    marks: Marks = view._marks()
    tokens = view._tokens
    nodes = edges = highest = 0
    for first, block in node_blocks(view):
        there = np.flatnonzero(block)
        nodes += len(there)
        highest = max(highest, first + int(there[-1])) if len(there) else highest
        for token in set(block[there].tolist()):
            tokens.label_tokens(token)
    if nodes != marks.nodes or highest >= marks.next_node:
        yield f"{nodes} nodes up to {highest} are shown; counted are {marks.nodes}, the next is {marks.next_node}"
    highest = 0
    for first, entries in edge_blocks(view):
        there = np.flatnonzero(entries["flags"] & PRESENT)
        edges += len(there)
        highest = max(highest, first + int(there[-1])) if len(there) else highest
    if edges != marks.edges or highest >= marks.next_edge:
        yield f"{edges} edges up to {highest} are shown; counted are {marks.edges}, the next is {marks.next_edge}"
    listed: set[tuple[int, int]] = set()
    for lane, owners in overlay_lists(view).items():
        for node in owners:
            neighbours, ids = view._list(node, lane)
            if ids and (not view.has_node(node) or ids != sorted(set(ids))):
                yield f"{_list_name(node, lane)} is out of order, or the node does not exist"
            for neighbour, edge in zip(neighbours, ids, strict=True):
                listed.add((lane & 1, edge))
                ends = (neighbour, node) if lane & IN else (node, neighbour)
                if view._edge(edge) != (*ends, lane >> 1):
                    yield f"{_list_name(node, lane)} has edge {edge}; the edge table says otherwise"
    for layer in view._layers:
        for edge in _seen(view, layer.edges):
            found = view._edge(edge)
            if found is not None and not {(OUT, edge), (IN, edge)} <= listed:
                yield f"edge {edge} is not in both of its lists"
        for edge in _seen(view, layer.edge_props):
            if view._edge(edge) is None and view._edge_props(edge):
                yield f"edge {edge} does not exist, but has properties"
        for node in {*_seen(view, layer.nodes), *_seen(view, layer.props)}:
            labels = view._labels(node)
            properties = decode_map(view._props(node))
            if not labels:
                if properties or any(view._list(node, lane)[1] for lane in view._lanes(node)):
                    yield f"node {node} does not exist, but has properties or edges"
                continue
            carried = tokens.label_tokens(labels)
            for label in carried:
                if not _findable(view, label, node):
                    yield f"node {node} is not found by its label {tokens.name(label)!r}"
            for (label, key), index in view._indexes().items():
                if index in view._base.indexes.values() and label in carried and key in properties and (
                        node not in view._candidates(index, value_digest(properties[key]))):
                    yield f"node {node} is not found by the index on {tokens.name(label)}.{tokens.name(key)}"


def _seen(view: GraphView, cells: dict[int, Event]) -> list[int]:
    """The cells that a layer changes in what the view shows."""
    return [cell for cell, event in list(cells.items()) if newest(event, view._bound) is not None]


def _findable(view: GraphView, label: int, node: int) -> bool:
    if any(node in layer.labels.get(label, ()) for layer in view._layers):
        return True
    number, at = divmod(node, LABEL_WINDOW)
    bitmap = view._stored("labels", LABEL_KEY.pack(label, number))
    return bitmap is not None and bool(bitmap[at >> 3] >> (at & 7) & 1)


