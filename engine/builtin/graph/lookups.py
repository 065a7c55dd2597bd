"""Finding things through the layers of the overlay and the state below them.

A reader is a base, layers over it, newest first, and a bound (see `overlay.py`). A view's bound is what was published
when it was made. A transaction sees everything, with its own changes as the newest layer.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

import lmdb
import numpy as np
import numpy.typing as npt

from ...env.shown import shown
from ...errors import InvalidInput, NotFound, StoreClosed
from . import adjacency
from .lmdbstate import (
    EDGE_BLOCK,
    EDGE_ENTRY,
    LABEL_KEY,
    LABEL_WINDOW,
    NODE_BLOCK,
    PRESENT,
    ROW_KEY,
    Base,
    Kept,
    KeptFound,
    KeptLists,
    KeptProperties,
    id_key,
)
from .overlay import IN, OUT, Indexes, Layer, Marks, list_changes, newest
from .tokens import TYPE, Tokens
from .values import decode_map, encode_value, encoded_digest

Direction = Literal["out", "in", "both"]
Int64 = npt.NDArray[np.int64]
_SIDES: dict[str, tuple[int, ...]] = {"out": (OUT,), "in": (IN,), "both": (OUT, IN)}
_first = struct.Struct("<q").unpack_from
_pack_key = adjacency.pack_key
_label_u32 = struct.Struct("<I").unpack_from
Plan = tuple[int, KeptLists]
NOTHING: Any = MappingProxyType({})
"""The cache of a reader that has none, or has not read any properties yet."""
_UNCHANGING = frozenset((bool, int, float, str, bytes, datetime))
"""Types of values that nobody can change. A dict of these can be kept, and copies of it handed out."""
_ENTRY_BYTES = 100
"""About how many bytes of memory a key and a value take besides the value's own."""
_ID_BYTES = 40
_SEVERAL = -1
_FEW = 4
"""With at most so many edge types, reading the list of each is faster than finding out which ones a node has."""


class Lookups:
    """What views and transactions share below their public calls. `node` and `edge` are ids: any int."""

    __slots__ = ()

    _base: Base
    _layers: Sequence[Layer]
    _bound: int
    _tokens: Tokens
    _get: Callable[..., bytes | None]
    _plans: dict[tuple[str | None, str], Plan]
    _kept: Mapping[int, dict[str, Any]] = NOTHING
    """The properties that were read, by node; a view has its own from its first read on."""
    _found: Mapping[tuple[int, int, bytes], tuple[int, ...]] = NOTHING
    """The nodes that were found, by the tokens of a label and a property key, and a value."""
    _keeps: bool
    """Whether what was read can be cached: not in a transaction, which changes."""

    def _marks(self) -> Marks:
        for layer in self._layers:
            marks = layer.marks.get(self._bound)
            if marks is not None:
                return marks
        return self._base.marks

    def _indexes(self) -> Indexes:
        for layer in self._layers:
            event = newest(layer.indexes, self._bound)
            if event is not None:
                indexes: Indexes = event[1]
                return indexes
        return self._base.indexes

    def _failed(self, node: object, error: Exception) -> Exception:
        return self._base.failed(error) if isinstance(error, lmdb.Error) else NotFound(f"no node {shown(node)}")

    def _read(self, pack: Callable[..., bytes], *key: int) -> bytes | None:
        try:
            return self._get(pack(*key))
        except (struct.error, lmdb.Error) as error:
            raise self._failed(key[0], error) from error

    def _stored(self, db: str, key: bytes) -> bytes | None:
        return self._base.stored(db, key)

    def _labels(self, node: int) -> int:
        """The token of a node's label set; 0 if the node does not exist."""
        bound = self._bound
        for layer in self._layers:
            if node in layer.nodes:
                event = newest(layer.nodes[node], bound)
                if event is not None:
                    labels: int = event[1]
                    return labels
        base = self._base
        try:
            number, at = divmod(node, NODE_BLOCK)
            block = base.node_blocks.get(number) or base.node_block(number)
        except struct.error:
            return 0
        return 0 if block is None else int(_label_u32(block, 4 * at)[0])

    def _props(self, node: int) -> bytes:
        for layer in self._layers:
            if node in layer.props:
                event = newest(layer.props[node], self._bound)
                if event is not None:
                    packed: bytes = event[1]
                    return packed
        base = self._base
        if not base.node_props:
            return b""
        try:
            return base.get_props(id_key(node)) or b""
        except (struct.error, lmdb.Error) as error:
            raise self._failed(node, error) from error

    def _properties(self, node: int) -> dict[str, Any]:
        """A node's properties, as a new dict; a view caches them. Raises `NotFound`."""
        kept = self._kept
        if kept is NOTHING and self._keeps:
            # As for adjacency: with an overlay, a view has its own cache. A layer without properties gets none that
            # this view shows.
            base, overlaid = self._base, any(layer.props for layer in self._layers)
            kept = KeptProperties(base.state.cache_bytes // 4) if overlaid else base.properties
            self._kept = kept  # type: ignore[misc]  # a view has the slot
            if (known := kept.get(node)) is not None:
                return known.copy()
        packed = self._props(node)
        if not packed and not self._labels(node):  # a node that was deleted has no properties
            raise NotFound(f"no node {shown(node)}")
        found = self._named(packed)
        # An empty map is not kept: nodes without properties come and go without an event in `props`, and views of the
        # same base may disagree about them.
        if kept is NOTHING or not found:
            return found
        for value in found.values():
            if type(value) not in _UNCHANGING:
                return found
        assert isinstance(kept, Kept)
        kept.keep(node, found, len(packed) + _ENTRY_BYTES * len(found))
        return found.copy()

    def _edge(self, edge: int) -> tuple[int, int, int] | None:
        """(source, target, type token), or None."""
        for layer in self._layers:
            event = newest(layer.edges.get(edge), self._bound)
            if event is not None:
                return (event[1], event[2], event[3]) if event[4] else None
        try:
            number, at = divmod(edge, EDGE_BLOCK)
            block = self._base.edge_blocks.get(number) or self._base.edge_block(number)
        except struct.error:
            return None
        if block is None:
            return None
        source, target, kind, flags = EDGE_ENTRY.unpack_from(block, at * EDGE_ENTRY.size)
        return (source, target, kind) if flags & PRESENT else None

    def _edge_props(self, edge: int) -> bytes:
        for layer in self._layers:
            event = newest(layer.edge_props.get(edge), self._bound)
            if event is not None:
                packed: bytes = event[1]
                return packed
        return self._stored("edge_props", id_key(edge)) or b"" if self._base.edge_props else b""

    def _named(self, packed: bytes) -> dict[str, Any]:
        names = self._tokens.names
        return {names[token]: value for token, value in decode_map(packed).items()} if packed else {}

    def _column(self, node: int, lane: int, kept: KeptLists) -> bytes:
        """The neighbours in one list, packed; a view caches it. Raises `NotFound`."""
        events = [layer.adjacency[lane][node] for layer in self._layers
                  if lane in layer.adjacency and node in layer.adjacency[lane]]
        block = self._read(_pack_key, node, lane) or b""
        # The usual cases: the list as it is in LMDB, and that with some additions, whose sum the overlay has.
        if not events and not len(block) & 8:
            column = block[: len(block) >> 1]
        elif len(events) == 1 and not len(block) & 8 and type(events[0][3]) is bytes and (
                events[0][0] <= self._bound and _first(events[0][3])[0] > self._base.txid):
            column = block[: len(block) >> 1] + events[0][3][8:]
        else:
            column = adjacency.pack(self._list(node, lane)[0])
        if not column and not self._labels(node):
            raise NotFound(f"no node {shown(node)}")
        if self._keeps:
            kept.keep(node, column, len(column))
        return column

    def _plan(self, type: str | None, direction: Direction) -> Plan:
        """For one type and direction: its lane, and the cache of its lists. The lane is `_SEVERAL` if there is more
        than one, and 0 if no edge has the type.

        With an overlay, a view has its own cache. Without one, all views of a base share one.
        """
        sides = _SIDES.get(direction)
        if sides is None:
            raise InvalidInput(f"direction={shown(direction)}", hint='"out", "in" or "both"')
        kinds = self._kinds(type)
        lane = _SEVERAL if len(sides) > 1 or len(kinds) > 1 else kinds[0] << 1 | sides[0] if kinds else 0
        limit = self._base.state.cache_bytes
        if lane > 0 and not any(lane in layer.adjacency for layer in self._layers):
            kept = self._base.lists.setdefault(lane, KeptLists(limit))
        else:
            kept = KeptLists(limit // 4)
        plan = self._plans[type, direction] = (lane, kept)
        return plan

    def _kinds(self, type: str | None) -> list[int]:
        """The tokens of one edge type, or of all."""
        if type is None:
            return self._tokens.types
        kind = self._tokens.ids.get((TYPE, type))
        return [] if kind is None else [kind]

    def _lists(self, node: int, type: str | None, direction: Direction) -> list[tuple[list[int], list[int], int]]:
        """A node's adjacency lists: (neighbours, edge ids, lane) each. Raises `NotFound`."""
        sides = _SIDES.get(direction)
        if sides is None:
            raise InvalidInput(f"direction={shown(direction)}", hint='"out", "in" or "both"')
        kinds = self._kinds(type)
        if len(kinds) <= _FEW:
            lanes = [kind << 1 | side for kind in kinds for side in sides]
        else:
            lanes = [lane for lane in self._lanes(node) if lane & 1 in sides]
        lists = [(*self._list(node, lane), lane) for lane in lanes]
        if not any(edges for _, edges, _ in lists):
            if not self._labels(node):
                raise NotFound(f"no node {shown(node)}")
            return []
        return lists

    def _lanes(self, node: int) -> list[int]:
        """The lanes in which a node may have edges, ascending."""
        lanes = {lane for layer in self._layers for lane, lists in list(layer.adjacency.items()) if node in lists}
        try:
            cursor = self._base.txn.cursor(self._base.dbs["adjacency"])
            more = cursor.set_range(_pack_key(node, 0))
            opened = self._base.state.sealers["adjacency"].opened
            while more:
                key, sealed = cursor.item()
                opened(key, sealed)
                found, lane = adjacency.unpack_key(key)
                if found != node:
                    break
                lanes.add(lane)
                more = cursor.set_range(_pack_key(node, lane + 1))
        except (struct.error, lmdb.Error) as error:
            raise self._failed(node, error) from error
        return sorted(lanes)

    def _list(self, node: int, lane: int) -> tuple[list[int], list[int]]:
        """One adjacency list: neighbours and edge ids."""
        changes = list_changes(self._layers, node, lane, self._base.txid, self._bound)
        key = self._key(node, lane)
        try:
            neighbours, edges = adjacency.read(self._get(key), key, self._base.earlier_blocks)
        except lmdb.Error as error:
            raise self._base.failed(error) from error
        if not changes:
            return neighbours, edges
        added = sorted((edge, neighbour) for edge, neighbour in changes.items() if neighbour is not None)
        if len(added) < len(changes) or (edges and added[0][0] <= edges[-1]):
            kept = [(e, n) for e, n in zip(edges, neighbours, strict=True) if e not in changes]
            added = sorted(kept + added)
            edges, neighbours = [], []
        edges += [edge for edge, _ in added]
        neighbours += [neighbour for _, neighbour in added]
        return neighbours, edges

    def _key(self, node: int, lane: int) -> bytes:
        try:
            return _pack_key(node, lane)
        except struct.error as error:
            raise NotFound(f"no node {shown(node)}") from error

    def _with(self, label: int, key: int, value: bytes) -> tuple[int, ...] | None:
        """The nodes with a label and one property, ascending, by an index; a view caches them. None: there is no index
        that a checkpoint has built."""
        kept = self._found
        if kept is NOTHING and self._keeps:
            # As for properties: a layer that changes no node has nothing that this view shows of it.
            overlaid = any(layer.rows or layer.nodes or layer.props for layer in self._layers)
            kept = KeptFound(self._base.state.cache_bytes // 16) if overlaid else self._base.found
            self._found = kept  # type: ignore[misc]  # a view has the slot
        found = kept.get((label, key, value))
        if found is not None:
            return found
        index = self._indexes().get((label, key))
        if index is None or index not in self._base.indexes.values():
            return None
        wanted = {key: value}
        found = tuple([node for node in sorted(self._candidates(index, encoded_digest(value)))
                       if self._matches(node, label, wanted)])
        if kept is not NOTHING:
            assert isinstance(kept, Kept)
            kept.keep((label, key, value), found, len(value) + _ENTRY_BYTES + _ID_BYTES * len(found))
        return found

    def _matches(self, node: int, label: int, filters: dict[int, bytes]) -> bool:
        labels = self._labels(node)
        if not labels or (label and label not in self._tokens.label_tokens(labels)):
            return False
        properties = decode_map(self._props(node))
        return all(key in properties and encode_value(properties[key]) == value for key, value in filters.items())

    def _candidates(self, index: int, digest: bytes) -> set[int]:
        """Nodes that an index names for a value; some may not match (any more)."""
        prefix = ROW_KEY.pack(index, digest, 0)[:-8]
        found = {ROW_KEY.unpack(key)[2] for key, _ in self._base.rows("index", prefix=prefix)}
        for layer in self._layers:
            if layer.rows:
                found.update(list(layer.rows.get((index, digest), ())))
        return found

    def _scan(self, label: int) -> Iterator[int]:
        """The nodes with a label (token), or all (0), ascending. Whole lists are chained, since a generator's step for
        each node would cost more than finding it."""
        return chain.from_iterable(self._scanned(label))

    def _scanned(self, label: int) -> Iterator[list[int]]:
        """As `_scan`, some at a time."""
        changed: set[int] = set()
        for layer in self._layers:
            changed.update(list(layer.nodes if not label else layer.labels.get(label, ())))
        fresh = [node for node in sorted(changed) if self._has_label(node, label)]
        done = 0
        overlays = [layer.nodes for layer in self._layers if layer.nodes]
        for first, block in self._blocks("labels" if label else "nodes", label):
            if label:
                ids = (np.flatnonzero(np.unpackbits(block, bitorder="little")) + first).tolist()
            else:
                ids = (np.flatnonzero(block.view("<u4")) + first).tolist()
            if overlays:
                # A node that some layer changed is in `fresh`, or had the label already and is looked up.
                ids = [node for node in ids if node not in changed and (
                    not any(node in nodes for nodes in overlays) or self._has_label(node, label))]
            split = bisect_left(fresh, first + (LABEL_WINDOW if label else NODE_BLOCK), done)
            yield sorted(ids + fresh[done:split]) if split > done else ids
            done = split
        yield fresh[done:]

    def _has_label(self, node: int, label: int) -> bool:
        labels = self._labels(node)
        return labels != 0 and (not label or label in self._tokens.label_tokens(labels))

    def _blocks(self, db: str, label: int = 0) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """The blocks of one database of the base: the first id of each, and its bytes."""
        per = {"nodes": NODE_BLOCK, "edges": EDGE_BLOCK, "labels": LABEL_WINDOW}[db]
        prefix = LABEL_KEY.pack(label, 0)[:4] if label else b""
        for key, value in self._base.rows(db, prefix=prefix):
            yield int.from_bytes(key[len(prefix):], "big") * per, np.frombuffer(value, np.uint8)


class Closed:
    """Replaces the parts of a closed reader: every use raises `StoreClosed`."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # tools ask any object for these
            raise AttributeError(name)
        return self._raise()

    def _raise(self, *args: Any, **kwargs: Any) -> Any:
        raise StoreClosed(f"this {self._what} is closed", hint="take another one")

    __call__ = __iter__ = __len__ = __getitem__ = __setitem__ = _raise
