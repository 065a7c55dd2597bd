"""The check: walk a whole state and report every inconsistency.

First LMDB's content is checked: blocks must be well-formed and in order; adjacency, in both directions, must agree with
the edge table; label bitmaps and index rows with the nodes; counts and marks with all of it. Then everything that the
overlay touches is checked by the same rules, as the view shows it.

Only some blocks are held at a time, and what was read is reported to LMDB's map (see `mapping.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any

import lmdb
import msgpack
import numpy as np

from ...errors import Damaged, HoldfastError, LimitReached, StoreClosed
from ...toolkit.checksums import SEAL
from . import adjacency
from .check_lists import SIDES, Lists, list_name
from .lmdbstate import (
    EDGE_BLOCK,
    EDGE_DTYPE,
    EDGE_ENTRY,
    HAS_PROPS,
    LABEL_KEY,
    LABEL_WINDOW,
    NODE_BLOCK,
    PRESENT,
    ROW_KEY,
    Base,
    id_key,
    id_of,
)
from .overlay import IN, OUT, Event, Marks, newest
from .reads import Reads
from .tokens import KEY, TYPE, Tokens
from .values import decode_map, value_digest
from .walk import BLOCKS_AT_ONCE, edges_at_once, mixed, nodes_at_once, overlay_lists

_ENTRIES, _TOLD = 1 << 15, 4 << 10


def check(view: Reads, bound: int) -> Iterator[str]:
    """Every inconsistency of what `view` shows, in words: its state on disk, and the overlay up to transaction `bound`.
    """
    base = view._base
    try:
        base.verify()
    except Damaged as error:
        yield f"the state on disk is damaged: {error.message}"
        return
    stored = _Stored(base, view._tokens)
    for part in (stored.nodes, stored.edges, stored.adjacency, stored.properties, stored.labels, stored.index,
                 stored.counts):
        yield from _guarded(part(), "the state on disk", base)
    if bound > base.txid:
        yield from _guarded(_overlay(view, stored), "the state in memory", base)


def _guarded(findings: Iterator[str], what: str, base: Base) -> Iterator[str]:
    """The findings of one part of the check. If the part fails, that is a finding too."""
    try:
        yield from findings
    except (StoreClosed, LimitReached, OSError):  # these say nothing about the bytes
        raise
    except lmdb.Error as error:
        raise base.failed(error) from error
    except (ValueError, KeyError, IndexError, TypeError, struct.error, msgpack.UnpackException,
            HoldfastError) as error:
        yield f"{what} cannot be read on: {type(error).__name__}: {error}"


class _Stored:
    """The checks of one base. Counts made on the way are compared at the end."""

    def __init__(self, base: Base, tokens: Tokens) -> None:
        self.base = base
        self.marks = base.marks
        self.tokens = tokens
        self.node_count = 0
        self.edge_count = 0
        self.flagged = 0
        self.table = 0
        self.lists = Lists(self.rows, self.block)
        self._last: tuple[tuple[str, int], bytes] = (("", 0), b"")
        self._types = np.zeros(tokens.highest + 2, bool)
        self._types[tokens.of_kind(TYPE)] = True
        self.label_sets = {token for token, (kind, _) in list(tokens.values.items()) if kind == "s"}

    def rows(self, db: str) -> Iterator[tuple[bytes, bytes]]:
        passed, size = self.base.state.mapping.passed, 0
        for key, sealed in self.base.txn.cursor(self.base.dbs[db]):  # the seals were opened a moment ago
            size += len(sealed)
            if size >= _TOLD:
                passed(size)
                size = 0
            yield key, sealed[:-SEAL]

    def get(self, db: str, key: bytes) -> bytes | None:
        value = self.base.stored(db, key)
        self.base.state.mapping.passed(len(value or b""))
        return value

    def block(self, db: str, number: int) -> bytes:
        """A block of nodes or edges; zeros if there is none. The last one is kept, as most calls ask for it again."""
        if self._last[0] != (db, number):
            size = 4 * NODE_BLOCK if db == "nodes" else EDGE_BLOCK * EDGE_DTYPE.itemsize
            self._last = (db, number), self.get(db, id_key(number)) or bytes(size)
        return self._last[1]

    def node_labels(self, node: int) -> int:
        number, at = divmod(node, NODE_BLOCK)
        return int.from_bytes(self.block("nodes", number)[4 * at : 4 * at + 4], "little")

    def nodes(self) -> Iterator[str]:
        for token in list(self.tokens.values):
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
        keys: list[bytes] = []
        blocks: list[bytes] = []
        for key, value in self.rows("edges"):
            if len(key) != 8 or len(value) != EDGE_BLOCK * EDGE_DTYPE.itemsize:
                yield f"edge block {key.hex()} has the wrong size"
                continue
            keys.append(key)
            blocks.append(value)
            if len(blocks) == BLOCKS_AT_ONCE:
                yield from self._edges(keys, blocks)
                keys, blocks = [], []
        if blocks:
            yield from self._edges(keys, blocks)

    def _edges(self, keys: list[bytes], blocks: list[bytes]) -> Iterator[str]:
        entries = np.frombuffer(b"".join(blocks), EDGE_DTYPE)
        numbers = np.frombuffer(b"".join(keys), ">u8").astype(np.int64)
        ids = (numbers[:, None] * EDGE_BLOCK + np.arange(EDGE_BLOCK)).ravel()
        flags = entries["flags"]
        for edge in ids[(flags > PRESENT | HAS_PROPS) | (flags == HAS_PROPS)].tolist():
            yield f"edge {edge} has flags that mean nothing"
        there = (flags & PRESENT) != 0
        if not there.all():
            ids, entries = ids[there], entries[there]
        if not len(ids):
            return
        if int(ids[-1]) >= self.marks.next_edge:
            yield f"edge {ids[-1]} exists, but the next to be given out is {self.marks.next_edge}"
        kinds = entries["type"]
        known = self._types[np.minimum(kinds, len(self._types) - 1)]
        if not known.all():
            for kind in np.unique(kinds[~known]).tolist():
                yield f"an edge from {ids[0]} to {ids[-1]} has the type {kind}, which does not exist"
        self.edge_count += len(ids)
        self.flagged += int(np.count_nonzero(entries["flags"] & HAS_PROPS))
        self.table = (self.table + int(mixed(ids, entries["source"], entries["target"], kinds).sum())) % (1 << 64)

    def adjacency(self) -> Iterator[str]:
        lists = self.lists
        yield from lists.walk()
        wrong = [name for side, name in SIDES if lists.sums[side] != self.table]
        if wrong:
            yield f"the edge table does not hold the same edges as the {' and the '.join(wrong)} lists"
            yield from lists.differing()

    def properties(self) -> Iterator[str]:
        keys = {token for token, (kind, _) in list(self.tokens.values.items()) if kind == KEY}
        for key, value in self.rows("node_props"):
            node = id_of(key)[0]
            if not self.node_labels(node):
                yield f"node {node} does not exist, but has properties"
            yield from self._map(f"node {node}", value, keys)
        held = 0
        for key, value in self.rows("edge_props"):
            edge = id_of(key)[0]
            held += 1
            number, at = divmod(edge, EDGE_BLOCK)
            if EDGE_ENTRY.unpack_from(self.block("edges", number), at * EDGE_ENTRY.size)[3] != PRESENT | HAS_PROPS:
                yield f"edge {edge} has properties that the edge table does not tell of"
            yield from self._map(f"edge {edge}", value, keys)
        if self.flagged != held:
            yield f"{self.flagged} edges are said to have properties, and {held} have"

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
                        # A block may reach into the next window. All blocks of earlier windows have been seen.
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
        there = self.base.tallies["labels"].count
        if there != expected:
            yield f"{there} label bitmaps are there, and {expected} should be"

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
        for side, name in SIDES:
            if self.lists.counts[side] != self.edge_count:
                yield f"{self.edge_count} edges are there, the {name} lists hold {self.lists.counts[side]}"


def _overlay(view: Reads, stored: _Stored) -> Iterator[str]:
    marks: Marks = view._marks()
    tokens = view._tokens
    nodes = edges = table = highest = 0
    for shown, sets in nodes_at_once(view):
        nodes += len(shown)
        highest = int(shown[-1]) if len(shown) else highest
        for token in np.unique(sets).tolist():
            tokens.label_tokens(token)
    if nodes != marks.nodes or highest >= marks.next_node:
        yield f"{nodes} nodes up to {highest} are shown; counted are {marks.nodes}, the next is {marks.next_node}"
    highest = 0
    for shown, entries in edges_at_once(view):
        edges += len(shown)
        table = (table + int(mixed(shown, entries["source"], entries["target"], entries["type"]).sum())) % (1 << 64)
        highest = int(shown[-1]) if len(shown) else highest
    if edges != marks.edges or highest >= marks.next_edge:
        yield f"{edges} edges up to {highest} are shown; counted are {marks.edges}, the next is {marks.next_edge}"
    sums = list(stored.lists.sums)
    for lane, owners in overlay_lists(view).items():
        yield from _lists(view, lane, sorted(owners), sums)
    for side, name in SIDES:
        if sums[side] != table:
            yield f"the edges that are shown are not those in the {name} lists that are shown"
    if sums != [table, table]:
        yield from _differing(view)
    for layer in view._layers:
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


def _lists(view: Reads, lane: int, owners: list[int], sums: list[int]) -> Iterator[str]:
    """Check some lists as the view shows them. Update the sums (by direction, over all stored lists) accordingly."""
    base = view._base
    at = 0
    while at < len(owners):
        begin, size = at, 0
        shown: list[tuple[list[int], list[int]]] = []
        held: list[tuple[list[int], list[int]]] = []
        while at < len(owners) and size < _ENTRIES:
            node = owners[at]
            key = adjacency.pack_key(node, lane)
            shown.append(view._list(node, lane))
            held.append(adjacency.read(base.get(key), key, base.earlier_blocks))
            ids = shown[-1][1]
            if ids and (not view.has_node(node) or ids != sorted(set(ids))):
                yield f"{list_name(node, lane)} is out of order, or the node does not exist"
            base.state.mapping.passed(16 * len(held[-1][1]))
            size += len(ids) + len(held[-1][1])
            at += 1
        change = _sum_of(owners[begin:at], lane, shown) - _sum_of(owners[begin:at], lane, held)
        sums[lane & 1] = (sums[lane & 1] + change) % (1 << 64)


def _sum_of(owners: list[int], lane: int, lists: list[tuple[list[int], list[int]]]) -> int:
    """The sum of the checksums of all edges in lists, as they are summed for the edge table."""
    own = np.repeat(np.array(owners, np.int64), [len(edges) for _, edges in lists])
    other, edges = (np.array([*chain.from_iterable(column)], np.int64) for column in zip(*lists, strict=True))
    source, target = (other, own) if lane & IN else (own, other)
    return int(mixed(edges, source, target, np.full(len(edges), lane >> 1)).sum())


def _differing(view: Reads) -> Iterator[str]:
    """Which entries of the lists that the overlay touches, and which of its edges, do not agree."""
    for lane, owners in overlay_lists(view).items():
        for node in sorted(owners):
            for neighbour, edge in zip(*view._list(node, lane), strict=True):
                way = (neighbour, node) if lane & IN else (node, neighbour)
                if view._edge(edge) != (*way, lane >> 1):
                    yield f"{list_name(node, lane)} has edge {edge}; the edge table says otherwise"
    for layer in view._layers:
        for edge in _seen(view, layer.edges):
            found = view._edge(edge)
            if found is not None:
                source, target, kind = found
                ends = (source, kind << 1 | OUT), (target, kind << 1 | IN)
                if any(edge not in view._list(*end)[1] for end in ends):
                    yield f"edge {edge} is not in both of its lists"


def _seen(view: Reads, cells: dict[int, Event]) -> list[int]:
    """The cells that a layer changes in what the view shows."""
    return [cell for cell, event in list(cells.items()) if newest(event, view._bound) is not None]


def _findable(view: Reads, label: int, node: int) -> bool:
    if any(node in layer.labels.get(label, ()) for layer in view._layers):
        return True
    number, at = divmod(node, LABEL_WINDOW)
    bitmap = view._stored("labels", LABEL_KEY.pack(label, number))
    return bitmap is not None and bool(bitmap[at >> 3] >> (at & 7) & 1)


