"""A graph's edges as arrays that other libraries take: compressed sparse rows.

They are made from the edge table, and not from the adjacency lists. The table holds 169 edges in a block, so it is read
at nearly the speed of memory, with two orders of magnitude fewer look-ups than one for each list. One sort of numbers
then groups the edges by node, as a bulk load does (`bulk_columns.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...env.shown import shown
from ...errors import Damaged, InvalidInput
from .lookups import Direction, Int64
from .reads import Reads
from .walk import edges_at_once, nodes_at_once

_SPARSE = 8
"""A table of places by id takes at most so many entries for each node and edge. Ids that are further apart are found by
bisection."""


class Csr(NamedTuple):
    """Edges grouped by node. A node's *place* is its index in `ids`. The nodes at the other ends of the edges of the
    node at place `i` are at the places `targets[offsets[i]:offsets[i + 1]]`, in the order of edge ids.

    Attributes:
        ids: of all nodes of the graph, ascending.
        offsets: one more than there are nodes.
        targets: one for each edge; with direction "both", two.
        edges: the ids of the edges, in the order of `targets`; None if they were not asked for.
    """

    ids: Int64
    offsets: Int64
    targets: Int64
    edges: Int64 | None


class Ends(NamedTuple):
    """All nodes, ascending, and all edges, by id: the places of their sources and targets in `ids`, their ids, and the
    tokens of their types."""

    ids: Int64
    sources: Int64
    targets: Int64
    edges: Int64
    kinds: npt.NDArray[np.uint32]


def ends(reads: Reads, kind: int) -> Ends:
    """The nodes, and the edges of one type (by token; 0: of all, -1: none). New arrays. O(nodes + edges)."""
    ids = _joined([part for part, _ in nodes_at_once(reads)])
    sources, targets, edges = (np.empty(reads.edge_count if kind >= 0 else 0, np.int64) for _ in range(3))
    kinds = np.empty(len(edges), np.uint32)
    end = 0
    for part, entries in edges_at_once(reads, kind) if kind >= 0 else ():
        begin, end = end, end + len(part)
        if end > len(edges):
            raise Damaged(f"has more than the {len(edges):,} edges that it counts", path=str(reads._base.state.path))
        sources[begin:end] = entries["source"]
        targets[begin:end] = entries["target"]
        edges[begin:end] = part
        kinds[begin:end] = entries["type"]
    try:
        return Ends(ids, _places(ids, sources[:end]), _places(ids, targets[:end]), edges[:end], kinds[:end])
    except IndexError as error:
        raise Damaged("has an edge whose nodes are not there", path=str(reads._base.state.path)) from error


def csr(reads: Reads, kind: int, direction: Direction, with_edges: bool) -> Csr:
    """As `GraphView.csr`; the type by token."""
    if direction not in ("out", "in", "both"):
        raise InvalidInput(f"direction={shown(direction)}", hint='"out", "in" or "both"')
    ids, sources, targets, edges, _ = ends(reads, kind)
    if direction == "in":
        sources, targets = targets, sources
    elif direction == "both":
        # Edge by edge, so that the sort below keeps the order of edges.
        sources, targets = (np.stack(pair, axis=1).ravel() for pair in ((sources, targets), (targets, sources)))
        edges = np.repeat(edges, 2)
    return Csr(ids, *grouped(len(ids), sources, targets, edges if with_edges else None))


def grouped(nodes: int, sources: Int64, targets: Int64, edges: Int64 | None) -> tuple[Int64, Int64, Int64 | None]:
    """Edges between so many nodes, given by places, grouped by source: offsets, targets and edges. Edges of one source
    keep their order. O(edges log edges), and O(edges) if the sources ascend already, as after many bulk loads."""
    offsets = np.zeros(nodes + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=nodes), out=offsets[1:])
    if len(sources) and (sources[1:] < sources[:-1]).any():
        order = _order(nodes, sources)
        targets = targets[order]
        edges = edges[order] if edges is not None else None
    return offsets, targets, edges


def _order(nodes: int, sources: Int64) -> Any:
    bits = (len(sources) - 1).bit_length()
    if nodes.bit_length() + bits > 63:
        return np.argsort(sources, kind="stable")
    # Source and place in one number: one sort of numbers is several times as fast as sorting indirectly.
    packed = sources << bits
    packed |= np.arange(len(sources))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


def _places(ids: Int64, wanted: Int64) -> Int64:
    """The places in `ids`, which ascend, of ids that are there. Raises `IndexError` if one is not."""
    if not len(wanted):
        return wanted
    if not len(ids):
        raise IndexError("there are no ids")
    first, last = int(ids[0]), int(ids[-1])
    if int(wanted.min()) < first or int(wanted.max()) > last:
        raise IndexError("an id lies outside")
    if last - first + 1 == len(ids):
        return wanted - first
    if last - first < _SPARSE * (len(ids) + len(wanted)):
        table = np.full(last - first + 1, -1, np.int64)
        table[ids - first] = np.arange(len(ids))
        found: Int64 = table[wanted - first]
        if (found < 0).any():
            raise IndexError("an id is missing")
        return found
    found = np.searchsorted(ids, wanted)
    if (ids[found] != wanted).any():
        raise IndexError("an id is missing")
    return found


def _joined(parts: list[npt.NDArray[np.int64]]) -> Int64:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
