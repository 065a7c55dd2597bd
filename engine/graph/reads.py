"""Reading a graph: what views and drafts have in common.

A reader is a base, layers over it, newest first, and a bound (see `overlay.py`). For views the bound is what was
published when they were made; a draft reads everything, its own changes as the newest layer.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import lmdb
import numpy as np
import numpy.typing as npt

from ..errors import InvalidInput, NotFound, StoreClosed
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
    KeptLists,
    closed,
    id_key,
)
from .overlay import IN, OUT, Indexes, Layer, Marks, newest
from .tokens import KEY, LABEL, TYPE, Tokens
from .values import check_properties, decode_map, encode_value, value_digest

Direction = Literal["out", "in", "both"]
Int64 = npt.NDArray[np.int64]
_SIDES: dict[str, tuple[int, ...]] = {"out": (OUT,), "in": (IN,), "both": (OUT, IN)}
_COLUMN = tuple(column.unpack for column in adjacency.COLUMN)
_COLUMNS = len(_COLUMN)
_first = struct.Struct("<q").unpack_from
_pack_key = adjacency.pack_key
_label_u32 = struct.Struct("<I").unpack_from
_by_edge = itemgetter(0)
Plan = tuple[int, KeptLists]
_SEVERAL = -1
_FEW = 4
"""With so many edge types or fewer, asking for the list of each is quicker than looking which a node has."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node: its id, its labels, sorted, and its properties (a copy)."""

    id: int
    labels: tuple[str, ...]
    properties: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge: its id, from where, of what type, to where, and its properties (a copy)."""

    id: int
    source: int
    type: str
    target: int
    properties: dict[str, Any]


class Reads:
    """The reading calls. A node or edge that is not there raises `NotFound`, except where the call says otherwise.

    A `direction` is `"out"`, `"in"` or `"both"`; `type=None` means edges of every type. Lists of neighbours have one
    entry an edge, in the order of edge ids, which is the order in which the edges were added; with `"both"`, an edge
    from a node to itself counts twice.
    """

    __slots__ = ()

    _base: Base
    _layers: Sequence[Layer]
    _bound: int
    _tokens: Tokens
    _get: Callable[..., bytes | None]
    _plans: dict[tuple[str | None, str], Plan]
    _keeps: bool
    """Whether what was read stays right: a draft changes."""

    # --- one node, one edge ------------------------------------------------------------------------------------------

    def node(self, node: int) -> Node:
        """The node with this id."""
        labels = self._labels(node)
        if not labels:
            raise NotFound(f"no node {node!r}")
        return Node(node, self._tokens.label_names(labels), self._named(self._props(node)))

    def has_node(self, node: int) -> bool:
        return self._labels(node) != 0

    def edge(self, edge: int) -> Edge:
        """The edge with this id."""
        found = self._edge(edge)
        if found is None:
            raise NotFound(f"no edge {edge!r}")
        source, target, kind = found
        return Edge(edge, source, self._tokens.name(kind), target, self._named(self._edge_props(edge)))

    def has_edge(self, edge: int) -> bool:
        return self._edge(edge) is not None

    # --- adjacency ---------------------------------------------------------------------------------------------------

    def neighbors(self, node: int, type: str | None = None, direction: Direction = "out") -> list[int]:
        """The ids of the nodes at the other ends of a node's edges."""
        plan = self._plans.get((type, direction))
        lane, kept = plan if plan is not None else self._plan(type, direction)
        if lane > 0:
            column = kept.get(node)
            if column is None:
                column = self._column(node, lane, kept)
            elif not column and not self._labels(node):
                raise NotFound(f"no node {node!r}")
            n = len(column) >> 3
            return [*_COLUMN[n](column)] if n < _COLUMNS else adjacency.unpack(column)
        lists = self._lists(node, type, direction)
        if len(lists) == 1:
            return lists[0][0]
        pairs = [pair for neighbours, edges, _ in lists for pair in zip(edges, neighbours, strict=True)]
        pairs.sort(key=_by_edge)
        return [neighbour for _, neighbour in pairs]

    def neighbors_array(self, node: int, type: str | None = None, direction: Direction = "out") -> Int64:
        """As `neighbors`, as an array of the caller's own."""
        lists = self._lists(node, type, direction)
        neighbours = np.array([n for part, _, _ in lists for n in part], dtype=np.int64)
        if len(lists) < 2:
            return neighbours
        edges = np.array([e for _, part, _ in lists for e in part], dtype=np.int64)
        return neighbours[np.argsort(edges, kind="stable")]

    def edges(self, node: int, type: str | None = None, direction: Direction = "out") -> list[Edge]:
        """A node's edges."""
        found: list[Edge] = []
        with_props = self._base.edge_props or any(layer.edge_props for layer in self._layers)
        for neighbours, edges, lane in self._lists(node, type, direction):
            name = self._tokens.name(lane >> 1)
            for neighbour, edge in zip(neighbours, edges, strict=True):
                props = self._named(self._edge_props(edge)) if with_props else {}
                found.append(Edge(edge, neighbour, name, node, props) if lane & IN else
                             Edge(edge, node, name, neighbour, props))
        found.sort(key=lambda edge: edge.id)
        return found

    def degree(self, node: int, type: str | None = None, direction: Direction = "out") -> int:
        """How many edges a node has."""
        lane, kept = self._plans.get((type, direction)) or self._plan(type, direction)
        if lane > 0:
            column = kept.get(node)
            if column:
                return len(column) >> 3
            if not any(node in layer.adjacency.get(lane, ()) for layer in self._layers):
                block = self._read(_pack_key, node, lane)
                if block is not None:
                    return adjacency.entries(block) + adjacency.earlier(block)
        return sum(len(edges) for _, edges, _ in self._lists(node, type, direction))

    def expand(self, nodes: npt.ArrayLike, type: str | None = None,
               direction: Direction = "out") -> tuple[Int64, Int64]:
        """The neighbours of many nodes at once.

        Returns:
            (offsets, targets): those of `nodes[i]` are `targets[offsets[i]:offsets[i + 1]]`, as `neighbors` gives
            them. `len(offsets) == len(nodes) + 1`.
        """
        wanted = np.asarray(nodes)
        if wanted.ndim != 1 or not (np.issubdtype(wanted.dtype, np.integer) or not wanted.size):
            raise InvalidInput("expand takes a one-dimensional array of node ids")
        ids: list[int] = wanted.tolist()
        lane, kept = self._plans.get((type, direction)) or self._plan(type, direction)
        parts: list[bytes] = []
        for node in ids:
            if lane > 0:
                column = kept.get(node)
                if column is None:
                    column = self._column(node, lane, kept)
                elif not column and not self._labels(node):
                    raise NotFound(f"no node {node!r}")
            else:
                column = self.neighbors_array(node, type, direction).astype("<i8").tobytes()
            parts.append(column)
        counts = [len(part) >> 3 for part in parts]
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(np.array(counts, dtype=np.int64), out=offsets[1:])
        return offsets, np.frombuffer(b"".join(parts), dtype="<i8").astype(np.int64)

    # --- finding nodes -----------------------------------------------------------------------------------------------

    def nodes(self, label: str | None = None, properties: Mapping[str, Any] | None = None,
              **more: Any) -> Iterator[int]:
        """The ids of the nodes with this label, and with these properties, each equal in type and value; ascending.

        Uses a property index on the label and one of the keys, if there is one (and it has been through a checkpoint
        since it was made). Properties named `label` and `properties` go into the mapping.
        """
        wanted = dict(check_properties({**(properties or {}), **more}))
        tokens = self._tokens.ids
        token = 0
        if label is not None:
            token = tokens.get((LABEL, label), -1)
        filters = {tokens.get((KEY, key), -1): encode_value(value) for key, value in wanted.items()}
        if token < 0 or -1 in filters:
            return iter(())
        indexes = self._indexes()
        for key, value in wanted.items():
            index = indexes.get((token, tokens[KEY, key])) if token else None
            if index is not None and index in self._base.indexes.values():
                found = self._candidates(index, value_digest(value))
                return iter([node for node in sorted(found) if self._matches(node, token, filters)])
        if filters:
            return (node for node in self._scan(token) if self._matches(node, 0, filters))
        return self._scan(token)

    @property
    def node_count(self) -> int:
        return self._marks().nodes

    @property
    def edge_count(self) -> int:
        return self._marks().edges

    def labels(self) -> list[str]:
        """The labels that some node has, sorted."""
        names = self._tokens
        return sorted(names.name(token) for token in names.of_kind(LABEL) if next(self._scan(token), None) is not None)

    def indexes(self) -> list[tuple[str, str]]:
        """The property indexes, as (label, key), sorted."""
        name = self._tokens.name
        return sorted((name(label), name(key)) for label, key in self._indexes())

    # --- below the public face ---------------------------------------------------------------------------------------

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
        return closed(error) if isinstance(error, lmdb.Error) else NotFound(f"no node {node!r}")

    def _read(self, pack: Callable[..., bytes], *key: int) -> bytes | None:
        try:
            return self._get(pack(*key))
        except (struct.error, lmdb.Error) as error:
            raise self._failed(key[0], error) from error

    def _stored(self, db: str, key: bytes) -> bytes | None:
        try:
            return self._get(key, None, self._base.dbs[db])
        except lmdb.Error as error:
            raise closed(error) from error

    def _labels(self, node: int) -> int:
        """The token of a node's label set; 0 where there is no node."""
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
        except (struct.error, TypeError):
            return 0
        except lmdb.Error as error:
            raise closed(error) from error
        return 0 if block is None else int(_label_u32(block, 4 * at)[0])

    def _props(self, node: int) -> bytes:
        for layer in self._layers:
            event = newest(layer.props.get(node), self._bound)
            if event is not None:
                packed: bytes = event[1]
                return packed
        return self._stored("node_props", id_key(node)) or b"" if self._base.node_props else b""

    def _edge(self, edge: int) -> tuple[int, int, int] | None:
        """(source, target, type token), or None."""
        for layer in self._layers:
            event = newest(layer.edges.get(edge), self._bound)
            if event is not None:
                return (event[1], event[2], event[3]) if event[4] else None
        try:
            number, at = divmod(edge, EDGE_BLOCK)
            block = self._stored("edges", id_key(number))
        except (struct.error, TypeError):
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
        name = self._tokens.name
        return {name(token): value for token, value in decode_map(packed).items()} if packed else {}

    def _column(self, node: int, lane: int, kept: KeptLists) -> bytes:
        """The neighbours in one list, packed; a view keeps it. Raises `NotFound`."""
        events = [layer.adjacency[lane][node] for layer in self._layers
                  if lane in layer.adjacency and node in layer.adjacency[lane]]
        block = self._read(_pack_key, node, lane) or b""
        # The usual cases: as it stands in LMDB, and with some edges added since, which are summed up.
        if not events and not len(block) & 8:
            column = block[: len(block) >> 1]
        elif len(events) == 1 and not len(block) & 8 and type(events[0][3]) is bytes and (
                events[0][0] <= self._bound and _first(events[0][3])[0] > self._base.txid):
            column = block[: len(block) >> 1] + events[0][3][8:]
        else:
            column = adjacency.pack(self._list(node, lane)[0])
        if not column and not self._labels(node):
            raise NotFound(f"no node {node!r}")
        if self._keeps:
            kept.keep(node, column)
        return column

    def _plan(self, type: str | None, direction: Direction) -> Plan:
        """For one type and direction: its lane, and the lists that are kept. The lane is `_SEVERAL` where that is no
        one lane; 0 where nothing has the type.

        With an overlay, a view keeps lists of its own; without, all views of a base share theirs.
        """
        sides = _SIDES.get(direction)
        if sides is None:
            raise InvalidInput(f"direction={direction!r}", hint='"out", "in" or "both"')
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
            raise InvalidInput(f"direction={direction!r}", hint='"out", "in" or "both"')
        kinds = self._kinds(type)
        if len(kinds) <= _FEW:
            lanes = [kind << 1 | side for kind in kinds for side in sides]
        else:
            lanes = [lane for lane in self._lanes(node) if lane & 1 in sides]
        lists = [(*self._list(node, lane), lane) for lane in lanes]
        if not any(edges for _, edges, _ in lists):
            if not self._labels(node):
                raise NotFound(f"no node {node!r}")
            return []
        return lists

    def _lanes(self, node: int) -> list[int]:
        """The lanes in which a node may have edges, ascending."""
        lanes = {lane for layer in self._layers for lane, lists in list(layer.adjacency.items()) if node in lists}
        try:
            cursor = self._base.cursor()
            more = cursor.set_range(_pack_key(node, 0))
            while more:
                found, lane = adjacency.unpack_key(cursor.key())
                if found != node:
                    break
                lanes.add(lane)
                more = cursor.set_range(_pack_key(node, lane + 1))
        except (struct.error, lmdb.Error) as error:
            raise self._failed(node, error) from error
        return sorted(lanes)

    def _list(self, node: int, lane: int) -> tuple[list[int], list[int]]:
        """One adjacency list: neighbours and edge ids."""
        bound, base = self._bound, self._base.txid
        changes: dict[int, int | None] = {}
        for layer in self._layers:
            lists = layer.adjacency.get(lane)
            event = None if lists is None else lists.get(node)
            while event is not None:
                txid, edge, neighbour, present, event = event
                if base < txid <= bound and edge not in changes:
                    changes[edge] = neighbour if present else None
        key = self._key(node, lane)
        try:
            neighbours, edges = adjacency.read(self._get(key), key, self._base.cursor)
        except lmdb.Error as error:
            raise closed(error) from error
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
            raise NotFound(f"no node {node!r}") from error

    def _matches(self, node: int, label: int, filters: dict[int, bytes]) -> bool:
        labels = self._labels(node)
        if not labels or (label and label not in self._tokens.label_tokens(labels)):
            return False
        properties = decode_map(self._props(node))
        return all(key in properties and encode_value(properties[key]) == value for key, value in filters.items())

    def _candidates(self, index: int, digest: bytes) -> set[int]:
        """Nodes that an index names for a value; some may not match (any more)."""
        found: set[int] = set()
        for layer in self._layers:
            found.update(list(layer.rows.get((index, digest), ())))
        try:
            cursor = self._base.txn.cursor(self._base.dbs["index"])
            more = cursor.set_range(ROW_KEY.pack(index, digest, 0))
            while more:
                row, value, node = ROW_KEY.unpack(cursor.key())
                if row != index or value != digest:
                    break
                found.add(node)
                more = cursor.next()
        except lmdb.Error as error:
            raise closed(error) from error
        return found

    def _scan(self, label: int) -> Iterator[int]:
        """The nodes with a label (token), or all (0), ascending."""
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
                # What some layer has changed is in `fresh`, or was there already and is looked up.
                ids = [node for node in ids if node not in changed and (
                    not any(node in nodes for nodes in overlays) or self._has_label(node, label))]
            split = bisect_left(fresh, first + (LABEL_WINDOW if label else NODE_BLOCK), done)
            yield from sorted(ids + fresh[done:split]) if split > done else ids
            done = split
        yield from fresh[done:]

    def _has_label(self, node: int, label: int) -> bool:
        labels = self._labels(node)
        return labels != 0 and (not label or label in self._tokens.label_tokens(labels))

    def _blocks(self, db: str, label: int = 0) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """The blocks of one database of the base: the first id that stands in each, and its bytes."""
        per = {"nodes": NODE_BLOCK, "edges": EDGE_BLOCK, "labels": LABEL_WINDOW}[db]
        try:
            cursor = self._base.txn.cursor(self._base.dbs[db])
            prefix = LABEL_KEY.pack(label, 0)[:4] if label else b""
            more = cursor.set_range(prefix) if prefix else cursor.first()
            while more:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                number = int.from_bytes(key[len(prefix):], "big")
                yield number * per, np.frombuffer(cursor.value(), np.uint8)
                more = cursor.next()
        except lmdb.Error as error:
            raise closed(error) from error


class Closed:
    """What stands in the place of a closed reader's parts: every use raises `StoreClosed`."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what tools ask of any object
            raise AttributeError(name)
        return self._raise()

    def _raise(self, *args: Any, **kwargs: Any) -> Any:
        raise StoreClosed(f"this {self._what} is closed", hint="take another one")

    __call__ = __iter__ = __len__ = __getitem__ = __setitem__ = _raise
