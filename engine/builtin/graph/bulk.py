"""Bulk loads: many nodes and edges as one transaction, written straight into LMDB.

A `BulkLoad` says what to load. `encode` checks it against the newest state and writes it as a file of columns beside
the log (`bulk_columns`); the record that names the file holds the new tokens and the marks after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...env.shown import shown, type_name
from ...errors import InvalidInput
from .bulk_columns import Loaded, packed_maps
from .overlay import Marks
from .tokens import KEY, TYPE
from .values import check_column, check_id, check_labels, check_mapping, check_name, encode_maps
from .walk import labels_of

if TYPE_CHECKING:
    from .transaction import GraphTransaction

MAX_ITEMS = 1 << 40
"""Of nodes, and of edges, in one load."""
_BATCH = 4096
"""So many nodes have their properties checked and encoded together."""

Properties = Mapping[str, Any]
NodeItem = tuple[str | Sequence[str], Properties]


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The ids that a load assigned: nodes `first_node`, `first_node + 1`, … in their given order; edges likewise."""

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
        relative: whether node ids in `edges` count from this load's first node, as 0. Otherwise they are ids of nodes
            that exist or of this load's (whose first id you can know only if nothing else writes).
        result: the ids that were assigned; set when the load has been logged.
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
        reserve: called in this thread with the load in columns before anything is written; raises if room is lacking.

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
    edge_props = _maps([before.next_edge + at for at, _ in maps], [properties for _, properties in maps], tx)
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
    payload = loaded.write(out)
    load.result = BulkResult(before.next_node, count, before.next_edge, len(sources))
    return payload


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
    parts: list[bytes] = []
    known: dict[Any, int] = {}
    items = iter(load.nodes)
    while batch := list(islice(items, _BATCH)):
        count = len(sets)
        maps: Sequence[Any] = batch
        having: Sequence[Any] = [shared] * len(batch)
        if set(map(type, batch)) != {dict}:
            having, maps = zip(*[_node(at, item, shared) for at, item in enumerate(batch, count)], strict=True)
        for labels in dict.fromkeys(having):
            if labels not in known:
                known[labels] = tx.label_set(check_labels(labels))
        sets += map(known.__getitem__, having)
        parts.append(_maps(range(first + count, first + len(sets)), maps, tx))
    return len(sets), None if {shared}.issuperset(known) else np.array(sets, np.uint32), b"".join(parts)


def _node(at: int, item: Any, shared: tuple[str, ...]) -> tuple[tuple[Any, ...], Properties]:
    """The labels and the properties of one node. Raises `InvalidInput`."""
    if isinstance(item, Mapping):
        return shared, item
    if isinstance(item, tuple) and len(item) == 2:
        return _several(item[0]), item[1]
    raise InvalidInput(f"node {at} of the load is neither a mapping nor (labels, properties)")


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


def _maps(items: Sequence[int], maps: Sequence[Properties], tx: GraphTransaction) -> bytes:
    """The property maps of some nodes or edges, as the load's file holds them. Those that have the same keys are
    checked and encoded together, column by column."""
    if set(map(type, maps)) != {dict}:
        maps = [dict(check_mapping(properties)) if properties else {} for properties in maps]
    if set(map(type, chain.from_iterable(maps))) != {str}:  # equal keys of another type would be taken for the same
        for key in chain.from_iterable(maps):
            check_name(key, "property key")
    by_keys: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, keys in enumerate(map(tuple, maps)):
        by_keys[keys].append(at)
    by_keys.pop((), None)
    found: list[tuple[int, bytes]] = []
    for keys, places in by_keys.items():
        rows = maps if len(places) == len(maps) else [maps[at] for at in places]
        columns = {}
        for key in keys:
            column = list(map(itemgetter(key), rows))
            check_column(check_name(key, "property key"), column)
            columns[tx.token(KEY, key)] = column
        found += zip([items[at] for at in places], encode_maps(columns), strict=True)
    if len(by_keys) > 1:
        found.sort()
    return packed_maps(found)


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
    """Check that the nodes of every edge exist or are in the load. Raises `InvalidInput`."""
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
