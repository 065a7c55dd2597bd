"""Adjacency lists as LMDB stores them: packed blocks.

The edges of one node in one lane (edge type and direction) are one list, ordered by edge id, under the key
`node u64 ‖ lane u32`, big-endian. Up to `BLOCK` entries are one value: all neighbours, then all edge ids, each 64 bits,
little-endian. So one hop takes one lookup and one unpacking, except at the largest nodes.

In a longer list, this value is the tail. Its last 8 bytes say how many entries come before it, in blocks of up to
`BLOCK` under `node ‖ lane ‖ id of the block's first edge u64`. New edges have the highest ids, so adding one to a node
with millions of edges rewrites one small value. When the tail is full, its entries are moved to a new block.
The length of a value tells whether it is a tail: 16 n + 8, otherwise 16 n. (In LMDB, the seal follows.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

BLOCK = 254
"""Entries in a block. With its count, its seal and LMDB's header, a block fits one overflow page."""

pack_key = struct.Struct(">QI").pack
unpack_key = struct.Struct(">QI").unpack_from
KEY_BYTES = 12
COLUMN = tuple(struct.Struct(f"<{n}q") for n in range(BLOCK + 1))
"""Unpackers of n entries of one column."""
NEIGHBOURS = tuple(column.unpack_from for column in COLUMN)
_earlier = struct.Struct("<Q")
_first = struct.Struct(">Q")

Get = Callable[[bytes], bytes | None]


def pack(neighbours: list[int]) -> bytes:
    """One column of any length."""
    n = len(neighbours)
    return COLUMN[n].pack(*neighbours) if n <= BLOCK else np.array(neighbours, "<i8").tobytes()


def unpack(column: bytes) -> list[int]:
    """The reverse of `pack`."""
    n = len(column) >> 3
    return [*COLUMN[n].unpack(column)] if n <= BLOCK else np.frombuffer(column, "<i8").tolist()


def entries(block: bytes) -> int:
    """How many entries are in this block."""
    return len(block) >> 4


def earlier(block: bytes) -> int:
    """How many entries of the list come before a tail."""
    return int(_earlier.unpack_from(block, len(block) - 8)[0]) if len(block) & 8 else 0


def neighbours_of(block: bytes) -> tuple[int, ...]:
    return NEIGHBOURS[len(block) >> 4](block)


def edges_of(block: bytes) -> tuple[int, ...]:
    n = len(block) >> 4
    return COLUMN[n].unpack_from(block, 8 * n)


def encode(neighbours: list[int], edges: list[int], before: int = 0) -> bytes:
    column = COLUMN[len(edges)].pack
    block = column(*neighbours) + column(*edges)
    return block + _earlier.pack(before) if before else block


def read(block: bytes | None, key: bytes,
         earlier_blocks: Callable[[bytes], Iterator[tuple[bytes, bytes]]]) -> tuple[list[int], list[int]]:
    """A whole list, given its value under `key`: neighbours and edge ids. `earlier_blocks` gives the blocks before a
    tail, in order, as key and value."""
    if block is None:
        return [], []
    neighbours: list[int] = []
    edges: list[int] = []
    if len(block) & 8:
        for _, full in earlier_blocks(key):
            neighbours += neighbours_of(full)
            edges += edges_of(full)
    neighbours += neighbours_of(block)
    edges += edges_of(block)
    return neighbours, edges


def long_list(key: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    """A list of any length, given as one value, as it is written: tail first, in key order."""
    n = len(value) >> 4
    before = (n - 1) // BLOCK * BLOCK
    first = 8 * n
    tail = value[8 * before : first] + value[first + 8 * before :]
    puts = [(key, tail + _earlier.pack(before) if before else tail)]
    for at in range(0, before, BLOCK):
        edges = value[first + 8 * at : first + 8 * (at + BLOCK)]
        puts.append((key + int.from_bytes(edges[:8], "little").to_bytes(8, "big"),
                     value[8 * at : 8 * (at + BLOCK)] + edges))
    return puts


def change(key: bytes, changes: Sequence[tuple[int, int | None]], get: Get, cursor: Callable[[], Any],
           opened: Callable[[bytes, bytes], bytes]) -> list[tuple[bytes, bytes | None]]:
    """What to write so that a list holds some changes.

    Args:
        key: of the list.
        changes: (edge id, neighbour, or None to remove it), ordered by edge id, each id once.
        get, cursor: read the adjacency database.
        opened: opens the seal of a cursor's entry: key and stored value to value.

    Returns:
        (key, value, or None to delete), the list's own key first.
    """
    block = get(key)
    if block is None:
        neighbours: list[int] = []
        edges: list[int] = []
        before = 0
    else:
        neighbours, edges = list(neighbours_of(block)), list(edges_of(block))
        before = earlier(block)
    writes: list[tuple[bytes, bytes | None]] = []
    if all(neighbour is not None for _, neighbour in changes) and (
            changes[0][0] > edges[-1] if edges else before == 0):
        edges += [edge for edge, _ in changes]
        neighbours += [neighbour for _, neighbour in changes]  # type: ignore[misc]
    else:
        tail = dict(zip(edges, neighbours, strict=True))
        if before:
            rest: list[tuple[int, int | None]] = []
            blocks: dict[bytes, dict[int, int]] = {}
            find = cursor()
            for edge, neighbour in changes:
                if edge not in tail:
                    found = _block_with(find, key, edge, opened)
                    if found is not None:
                        held = blocks.setdefault(found[0], found[1])
                        before -= _set(held, edge, neighbour)
                        continue
                rest.append((edge, neighbour))
            for place, held in sorted(blocks.items()):
                ids = sorted(held)
                writes.append((place, encode([held[i] for i in ids], ids) if ids else None))
            changes = rest
        for edge, neighbour in changes:
            _set(tail, edge, neighbour)
        edges = sorted(tail)
        neighbours = [tail[edge] for edge in edges]
    while len(edges) > BLOCK:
        writes.append((key + _first.pack(edges[0]), encode(neighbours[:BLOCK], edges[:BLOCK])))
        before += BLOCK
        del neighbours[:BLOCK], edges[:BLOCK]
    own = (key, encode(neighbours, edges, before) if edges or before else None)
    return [own, *writes]


def _set(held: dict[int, int], edge: int, neighbour: int | None) -> int:
    """Returns how many entries fewer there are."""
    if neighbour is None:
        return 0 if held.pop(edge, None) is None else 1
    held[edge] = neighbour
    return 0


def _block_with(cursor: Any, key: bytes, edge: int,
                opened: Callable[[bytes, bytes], bytes]) -> tuple[bytes, dict[int, int]] | None:
    """The block before the tail that holds an edge: its key, and its entries as edge id to neighbour."""
    found = cursor.set_range(key + _first.pack(edge))
    if not (found and cursor.key() == key + _first.pack(edge)):
        found = cursor.prev() if found else cursor.last()
    if not found or len(cursor.key()) != KEY_BYTES + 8 or not cursor.key().startswith(key):
        return None
    block = opened(cursor.key(), cursor.value())
    held = dict(zip(edges_of(block), neighbours_of(block), strict=True))
    return (cursor.key(), held) if edge in held else None
