"""`GraphTransaction`: a transaction that reads as a view does, its own changes included, and changes the graph.

Every call validates before it changes anything. So if it raises, the transaction is as before. Changes go into a layer
of the transaction (`Changes`). Its reads see that layer over the store's. At commit it becomes the payload, and once
that is logged, part of the store's active layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...contract.transaction import Transaction
from ...env.shown import shown
from ...errors import InvalidInput, NotFound
from . import payload
from .lmdbstate import Base
from .overlay import Changes, Layer, Marks
from .reads import Reads
from .tokens import KEY, LABEL, LABELS, TYPE, Tokens, Value
from .values import check_id, check_labels, check_name, check_properties, decode_map, encode_map, value_digest

_EVERYTHING = 1 << 63
_MAX_TOKEN = (1 << 31) - 1


class GraphTransaction(Reads, Transaction):
    """The calls that change the graph. `Reads` has those that read it. Give properties by name, or as a mapping if a
    key is not an identifier or is the name of an argument. If a key is given both ways, the one given by name counts.

    Raises (any of them):
        InvalidInput: an id is not an integer; a label, type, key or value cannot be stored (see `values.py` for the
            limits).
        NotFound: a node or edge does not exist.
        StoreClosed: the transaction has ended.
    """

    __slots__ = (
        "_base",
        "_bound",
        "_get",
        "_layers",
        "_plans",
        "_tokens",
        "changes",
    )
    _keeps = False

    def __init__(self, base: Base, layers: tuple[Layer, ...], txid: int, marks: Marks, tokens: Tokens) -> None:
        Transaction.__init__(self)
        self.changes = changes = Changes(txid, layers[0], marks)
        self._base = base
        self._get = base.get
        self._layers = (changes, *layers)
        self._bound = _EVERYTHING
        self._tokens = tokens
        self._plans = {}

    # --- nodes -------------------------------------------------------------------------------------------------------

    def add_node(self, *labels: str, properties: Mapping[str, Any] | None = None, **more: Any) -> int:
        """Add a node. Returns its id."""
        names = check_labels(labels)
        packed, cells = self._merged(b"", properties, more) if properties or more else (b"", {})
        changes = self.changes
        node = changes.next_node
        changes.next_node = node + 1
        changes.number_of_nodes += 1
        label_set, tokens = self._label_set(names)
        changes.set_node(node, label_set, tokens)
        if packed:
            changes.set_props(node, packed)
            self._note_rows(node, tokens, cells)
        return node

    def delete_node(self, node: int, detach: bool = False) -> None:
        """Delete a node. If it still has edges, raises `InvalidInput`; with `detach`, deletes the edges too."""
        node = check_id(node, "a node")
        if not self._labels(node):
            raise NotFound(f"no node {shown(node)}")
        edges = {edge for lane in self._lanes(node) for edge in self._list(node, lane)[1]}
        if edges and not detach:
            raise InvalidInput(f"node {node} still has {len(edges)} edges", hint="pass detach=True to delete them too")
        for edge in sorted(edges):
            self.delete_edge(edge)
        if self._props(node):
            self.changes.set_props(node, b"")
        self.changes.set_node(node, 0, ())
        self.changes.number_of_nodes -= 1

    def add_label(self, node: int, *labels: str) -> None:
        """Give a node these labels as well."""
        self._relabel(node, check_labels(labels), ())

    def remove_label(self, node: int, *labels: str) -> None:
        """Remove these labels from a node. Those that it does not have are ignored."""
        self._relabel(node, (), check_labels(labels))

    def _relabel(self, node: int, more: tuple[str, ...], fewer: tuple[str, ...]) -> None:
        node = check_id(node, "a node")
        before = self._label_names(node)
        names = check_labels((set(before) | set(more)) - set(fewer))
        if names == before:
            return
        label_set, tokens = self._label_set(names)
        self.changes.set_node(node, label_set, tokens)
        self._note_rows(node, tokens, self._props(node))

    def set_properties(self, node: int, properties: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Set some properties of a node. The others do not change."""
        node = check_id(node, "a node")
        labels = self._labels(node)
        if not labels:
            raise NotFound(f"no node {shown(node)}")
        if properties or more:
            packed, cells = self._merged(self._props(node), properties, more)
            self.changes.set_props(node, packed)
            self._note_rows(node, self._tokens.label_tokens(labels), cells)

    def remove_property(self, node: int, key: str) -> None:
        """Remove a property from a node. Ignored if the node does not have it."""
        node = check_id(node, "a node")
        check_name(key, "property key")
        if not self._labels(node):
            raise NotFound(f"no node {shown(node)}")
        cells = decode_map(self._props(node))
        if cells.pop(self._known(KEY, key), None) is not None:
            self.changes.set_props(node, encode_map(cells))

    # --- edges -------------------------------------------------------------------------------------------------------

    def add_edge(self, source: int, type: str, target: int, /, properties: Mapping[str, Any] | None = None,
                 **more: Any) -> int:
        """Add an edge of a type from `source` to `target`. Returns its id. Two nodes can have several equal edges."""
        if source.__class__ is not int or target.__class__ is not int:
            source, target = check_id(source, "a node"), check_id(target, "a node")
        kind = self._tokens.ids.get((TYPE, type))
        if kind is None:
            check_name(type, "edge type")
        if not self._labels(source):
            raise NotFound(f"no node {shown(source)}")
        if not self._labels(target):
            raise NotFound(f"no node {shown(target)}")
        packed = self._merged(b"", properties, more)[0] if properties or more else b""
        if kind is None:
            kind = self.token(TYPE, type)
        changes = self.changes
        edge = changes.next_edge
        changes.next_edge = edge + 1
        changes.number_of_edges += 1
        if changes.set_edge(edge, source, target, kind, True) and self._plans:
            self._plans.clear()
        if packed:
            changes.set_edge_props(edge, packed)
        return edge

    def delete_edge(self, edge: int) -> None:
        """Delete an edge."""
        edge = check_id(edge, "an edge")
        found = self._edge(edge)
        if found is None:
            raise NotFound(f"no edge {shown(edge)}")
        if self._edge_props(edge):
            self.changes.set_edge_props(edge, b"")
        if self.changes.set_edge(edge, *found, False):
            self._plans.clear()
        self.changes.number_of_edges -= 1

    def set_edge_properties(self, edge: int, properties: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Set some properties of an edge. The others do not change."""
        edge = check_id(edge, "an edge")
        if self._edge(edge) is None:
            raise NotFound(f"no edge {shown(edge)}")
        if properties or more:
            packed, _ = self._merged(self._edge_props(edge), properties, more)
            self.changes.set_edge_props(edge, packed)

    def remove_edge_property(self, edge: int, key: str) -> None:
        """Remove a property from an edge. Ignored if the edge does not have it."""
        edge = check_id(edge, "an edge")
        check_name(key, "property key")
        if self._edge(edge) is None:
            raise NotFound(f"no edge {shown(edge)}")
        cells = decode_map(self._edge_props(edge))
        if cells.pop(self._known(KEY, key), None) is not None:
            self.changes.set_edge_props(edge, encode_map(cells))

    # --- indexes -----------------------------------------------------------------------------------------------------

    def create_index(self, label: str, key: str) -> None:
        """Index the nodes with this label by this property, for `nodes(label, key=value)`. The next checkpoint builds
        the index. Until then that call reads every node of the label."""
        check_name(label, "label")
        check_name(key, "property key")
        indexes = dict(self._indexes())
        if (self._known(LABEL, label), self._known(KEY, key)) in indexes:
            raise InvalidInput(f"there is an index on {label}.{key} already", hint="use it, or drop it first")
        where = (self.token(LABEL, label), self.token(KEY, key))
        changes = self.changes
        indexes[where] = changes.next_token
        changes.next_token += 1
        changes.set_indexes(indexes)

    def drop_index(self, label: str, key: str) -> None:
        """Drop a property index."""
        check_name(label, "label")
        check_name(key, "property key")
        indexes = dict(self._indexes())
        if indexes.pop((self._known(LABEL, label), self._known(KEY, key)), None) is None:
            raise NotFound(f"no index on {label}.{key}")
        self.changes.set_indexes(indexes)

    def _note_rows(self, node: int, labels: tuple[int, ...], cells: dict[int, Any] | bytes) -> None:
        """Add a node with these labels and properties to the overlay's index rows."""
        indexes = self._indexes()
        if indexes:
            held = decode_map(cells) if isinstance(cells, bytes) else cells
            for (label, key), index in indexes.items():
                if label in labels and key in held:
                    self.changes.set_row(index, value_digest(held[key]), node)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _known(self, kind: str, value: Value) -> int:
        """The token of a value, or -1 if it has none."""
        return self._tokens.ids.get((kind, value), -1)

    def token(self, kind: str, value: Value) -> int:
        """The token of a value, a new one if it has none. A new token goes into the shared table at once; views do not
        see it, since nothing that they read uses it. After a rollback the next transaction removes it (see `cut`)."""
        token = self._tokens.ids.get((kind, value))
        if token is None:
            changes = self.changes
            token = changes.next_token
            if token > _MAX_TOKEN:
                raise InvalidInput("this store has used all of its 2,147,483,647 names")
            changes.next_token = token + 1
            self._tokens.add(token, kind, value)
            changes.add_token(token, kind, value)
            self._plans.clear()
        return token

    def label_set(self, names: tuple[str, ...]) -> int:
        """The token of a set of checked labels."""
        return self._label_set(names)[0]

    def _label_set(self, names: tuple[str, ...]) -> tuple[int, tuple[int, ...]]:
        """The token of a set of labels, and the tokens of the labels."""
        tokens = tuple(sorted([self.token(LABEL, name) for name in names]))
        return self.token(LABELS, tokens), tokens

    def _label_names(self, node: int) -> tuple[str, ...]:
        labels = self._labels(node)
        if not labels:
            raise NotFound(f"no node {shown(node)}")
        return self._tokens.label_names(labels)

    def _merged(self, packed: bytes, properties: Mapping[str, Any] | None,
                more: dict[str, Any]) -> tuple[bytes, dict[int, Any]]:
        """A property map with some properties set: its bytes, and its values by token. Raises before any change."""
        changed = {**check_properties(properties), **more} if properties is not None else more
        check_properties(more)
        cells = decode_map(packed)
        new: list[str] = []
        for key, value in changed.items():
            token = self._known(KEY, key)
            if token < 0:
                token = self.changes.next_token + len(new)
                new.append(key)
            cells[token] = value
        packed = encode_map(cells)
        for key in new:
            self.token(KEY, key)
        return packed, cells

    # --- the end -----------------------------------------------------------------------------------------------------

    def marks(self) -> Marks:
        """Allocation marks and counts after this transaction."""
        return self.changes.after()

    def _marks(self) -> Marks:
        return self.changes.after()

    def payload(self) -> bytes:
        changes = self.changes
        if changes.edges or changes.nodes or changes.props or changes.edge_props or changes.indexes is not None:
            return payload.encode(changes)
        return b""

    def close(self) -> None:
        _put_base(self, None)
        _put_get(self, None)
        _put_layers(self, None)
        _put_plans(self, None)


_put_base, _put_get, _put_layers, _put_plans = [GraphTransaction.__dict__[name].__set__
                                                for name in ("_base", "_get", "_layers", "_plans")]
"""The slots' own setters, past the check of who uses the transaction. Here nothing else can use it, and every commit
would pay for the check."""
