"""The check of adjacency: every list well-formed and in order, and all of them together the edges of the edge table.

The edge table, the outgoing and the incoming lists must hold the same edges. Each is walked once, in its own order, and
a 64-bit checksum of every edge (id, ends, type) is summed. Equal sums mean equal sets in any order, and take no memory.
If the owners of all lists exist, so do the ends of all edges. If sums differ, the lists are walked again, and each
entry is looked up in the edge table, to find the wrong ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from . import adjacency
from .lmdbstate import EDGE_BLOCK, EDGE_DTYPE, NODE_BLOCK, PRESENT
from .overlay import IN, OUT
from .walk import mixed

_BATCH_BYTES = 512 << 10
_i64 = struct.Struct("<q").unpack_from
_KEY = np.dtype([("node", ">u8"), ("lane", ">u4")])
SIDES = ((OUT, "outgoing"), (IN, "incoming"))


class _Entries(NamedTuple):
    """Entries of some blocks, and of each the number of its block, its owner and its lane."""

    blocks: Any
    nodes: Any
    lanes: Any
    neighbours: Any
    edges: Any


class Lists:
    """The lists of one base.

    Args:
        rows: gives keys and values of the adjacency database, in order.
        block: gives a block of nodes or edges by number; zeros if there is none.

    Attributes, after `walk` has ended:
        counts, sums: by direction, of entries, and of their checksums, modulo 2^64.
    """

    def __init__(self, rows: Callable[[str], Iterator[tuple[bytes, bytes]]],
                 block: Callable[[str, int], bytes]) -> None:
        self._rows = rows
        self._block = block
        self.counts = [0, 0]
        self.sums = [0, 0]
        # The list of several blocks that is being walked: its tail's key, how many entries must come before the tail's
        # and its first edge; and how many came, and the last of them.
        self._tail: tuple[bytes, int, int] | None = None
        self._seen, self._last = 0, -1

    def walk(self) -> Iterator[str]:
        for keys, values in self._batches():
            widths = np.fromiter(map(len, keys), np.int64, len(keys))
            sizes = np.fromiter(map(len, values), np.int64, len(values))
            usual = (widths == adjacency.KEY_BYTES) & (sizes & 15 == 0) & (sizes > 0) & (sizes <= 16 * adjacency.BLOCK)
            for i in np.flatnonzero(~usual).tolist():
                yield from self._unusual(keys[i], values[i])
            entries = _entries(keys, values, widths, sizes)
            yield from self._owners(entries)
            unordered = (np.diff(entries.edges) <= 0) & (np.diff(entries.blocks) == 0)
            for i in np.flatnonzero(unordered).tolist():
                yield f"{list_name(int(entries.nodes[i]), int(entries.lanes[i]))}: edges in a block are out of order"
            inward = (entries.lanes & 1) == IN
            sums = mixed(entries.edges, np.where(inward, entries.neighbours, entries.nodes),
                         np.where(inward, entries.nodes, entries.neighbours), entries.lanes >> 1)
            incoming, count = int(sums[inward].sum()), int(np.count_nonzero(inward))
            for side, total, n in ((IN, incoming, count), (OUT, int(sums.sum()) - incoming, len(inward) - count)):
                self.sums[side] = (self.sums[side] + total) % (1 << 64)
                self.counts[side] += n
        yield from self._end_of_list()

    def differing(self) -> Iterator[str]:
        """The entries that the edge table does not know of."""
        for keys, values in self._batches():
            yield from self._looked_up(_entries(keys, values, np.fromiter(map(len, keys), np.int64, len(keys)),
                                                np.fromiter(map(len, values), np.int64, len(values))))

    def _batches(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        keys: list[bytes] = []
        values: list[bytes] = []
        size = 0
        for key, value in self._rows("adjacency"):
            keys.append(key)
            values.append(value)
            size += len(value)
            if size >= _BATCH_BYTES:
                yield keys, values
                keys, values, size = [], [], 0
        if keys:
            yield keys, values

    def _unusual(self, key: bytes, value: bytes) -> Iterator[str]:
        """A block that is not a whole list in itself."""
        if self._tail is not None and not key.startswith(self._tail[0]):
            yield from self._end_of_list()
        if len(key) not in (adjacency.KEY_BYTES, adjacency.KEY_BYTES + 8) or len(value) % 8:
            yield f"adjacency block {key.hex()} has the wrong size"
            return
        name = list_name(*adjacency.unpack_key(key))
        n = adjacency.entries(value)
        first, last = (_i64(value, 8 * n)[0], _i64(value, 16 * n - 8)[0]) if n else (1 << 63, self._last)
        if n > adjacency.BLOCK:
            yield f"{name}: {n} edges in one block"
        elif len(key) > adjacency.KEY_BYTES:
            begin = int.from_bytes(key[adjacency.KEY_BYTES :], "big")
            if len(value) & 8:
                yield f"{name}: the block from edge {begin} has the wrong size"
            if self._tail is None:
                yield f"{name}: a block that no tail tells of"
            elif not n or first < begin or begin <= self._last:
                yield f"{name}: the block from edge {begin} is empty or out of order"
            self._last = last
            self._seen += n
        elif len(value) & 8:
            before = adjacency.earlier(value)
            if not before:
                yield f"{name}: a tail that follows nothing"
            self._tail = (key, before, first)
            self._seen, self._last = 0, -1
        else:
            yield f"{name}: an empty block"

    def _end_of_list(self) -> Iterator[str]:
        if self._tail is not None:
            key, before, first = self._tail
            if self._seen != before or self._last >= first:
                yield f"{list_name(*adjacency.unpack_key(key))}: {before} entries should come before its tail, " \
                      f"{self._seen} do, or they are out of order"
        self._tail = None

    def _owners(self, entries: _Entries) -> Iterator[str]:
        """Check that the nodes that own these lists exist."""
        if not len(entries.blocks):
            return
        nodes = entries.nodes[np.concatenate(([True], entries.nodes[1:] != entries.nodes[:-1]))]
        numbers = nodes // np.uint64(NODE_BLOCK)
        starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))).tolist()
        for begin, end in pairwise([*starts, len(nodes)]):
            number = int(numbers[begin])
            labels = np.frombuffer(self._block("nodes", number), "<u4")
            some = nodes[begin:end]
            for node in some[labels[some - np.uint64(number * NODE_BLOCK)] == 0].tolist():
                yield f"node {node} does not exist, but has edges"

    def _looked_up(self, entries: _Entries) -> Iterator[str]:
        order = np.argsort(entries.edges, kind="stable")
        _, nodes, lanes, neighbours, edges = (column[order] for column in entries)
        numbers = edges // EDGE_BLOCK
        starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))).tolist() if len(edges) else []
        for begin, end in pairwise([*starts, len(edges)]):
            number = int(numbers[begin])
            stored = self._block("edges", number) if number >= 0 else bytes(EDGE_BLOCK * EDGE_DTYPE.itemsize)
            found = np.frombuffer(stored, EDGE_DTYPE)[edges[begin:end] - number * EDGE_BLOCK]
            inward = (lanes[begin:end] & 1) == IN
            own, other = nodes[begin:end], neighbours[begin:end]
            good = ((found["flags"] & PRESENT != 0) & (found["type"] == lanes[begin:end] >> 1)
                    & (np.where(inward, found["target"], found["source"]) == own)
                    & (np.where(inward, found["source"], found["target"]) == other.view(np.uint64)))
            for i in np.flatnonzero(~good).tolist():
                yield f"{list_name(int(own[i]), int(lanes[begin + i]))} has edge {edges[begin + i]} with node " \
                      f"{other[i]}; the edge table says otherwise"


def _entries(keys: list[bytes], values: list[bytes], widths: Any, sizes: Any) -> _Entries:
    """The entries of the blocks that can be decoded."""
    good = ((widths == adjacency.KEY_BYTES) | (widths == adjacency.KEY_BYTES + 8)) & (sizes & 7 == 0) & (
        sizes < 16 * (adjacency.BLOCK + 1))
    if not good.all():
        keys, values = ([item for item, kept in zip(items, good.tolist(), strict=True) if kept]
                        for items in (keys, values))
        widths, sizes = widths[good], sizes[good]
    if (widths != adjacency.KEY_BYTES).any():
        keys = [key[: adjacency.KEY_BYTES] for key in keys]
    owners = np.frombuffer(b"".join(keys), _KEY)
    words, counts = sizes >> 3, sizes >> 4
    data = np.frombuffer(b"".join(values), "<i8")
    total = int(counts.sum())
    at = np.arange(total) + np.repeat(np.cumsum(words) - words - np.cumsum(counts) + counts, counts)
    blocks = np.repeat(np.arange(len(keys)), counts)
    return _Entries(blocks, owners["node"].astype(np.uint64)[blocks], owners["lane"].astype(np.int64)[blocks],
                    data[at], data[at + np.repeat(counts, counts)])


def list_name(node: int, lane: int) -> str:
    return f"the list of node {node}, type {lane >> 1}, {'in' if lane & IN else 'out'},"
