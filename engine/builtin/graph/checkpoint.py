"""A checkpoint: what the layers hold up to a transaction is written to LMDB, in one synced LMDB transaction.

Of each cell, the newest event at or below the transaction is written; of each adjacency list, the newest of each edge.
Label bitmaps and index rows are derived here by comparing each cell with its former value. Writes go in key order,
block by block, in small batches. Between batches the checkpointer sleeps for a moment now and then, so that other
threads get the interpreter lock at once. Otherwise they would wait for a whole switch interval.

`StateWriter` writes into an open LMDB transaction. A bulk load uses it too, for the changes that are pending before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from ...env import Clock
from ...env.pace import Pace
from ...errors import Damaged
from ...model.positions import Position
from ...toolkit.checksums import Tally
from . import adjacency
from .lmdbstate import (
    EDGE_BLOCK,
    EDGE_ENTRY,
    HAS_PROPS,
    LABEL_KEY,
    LABEL_WINDOW,
    NODE_BLOCK,
    PRESENT,
    ROW_KEY,
    Base,
    LmdbState,
    encode_meta,
    id_key,
    token_entry,
)
from .overlay import Event, Indexes, Layer, Marks, list_changes, newest
from .tokens import Tokens
from .values import decode_map, value_digest

_BATCH, _APPENDED = 64, 256
_LOAD_SECONDS = 2e-3
"""How long a bulk load works at a time: somebody waits for that, and nobody for a checkpoint."""
_NODE_BYTES, _EDGE_BYTES, _LABEL_BYTES = 4 * NODE_BLOCK, EDGE_BLOCK * EDGE_ENTRY.size, LABEL_WINDOW // 8
Cells = Callable[[Layer], dict[int, Event]]


def sorted_keys(dicts: Iterable[dict[int, Any]], pace: Pace) -> Any:
    """All keys, once each, ascending: an array, made without holding the interpreter lock for long."""
    parts = []
    for cells in dicts:
        keys = iter(cells)
        for at in range(0, len(cells), 4096):
            parts.append(np.fromiter(keys, np.int64, min(4096, len(cells) - at)))
            pace()
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


class StateWriter:
    """Writes the events in (`above`, `upto`] of frozen layers.

    Args:
        state: the environment.
        txn: an LMDB write transaction.
        layers: frozen, newest first.
        above: the last transaction that the state already holds.
        upto: the last transaction to write.
        tokens: the table.
        pace: called between batches.
        tallies: of the state before. The attribute of that name is updated by each write.
    """

    def __init__(self, state: LmdbState, txn: Any, layers: Sequence[Layer], above: int, upto: int, tokens: Tokens,
                 pace: Pace, tallies: Mapping[str, Tally]) -> None:
        self.dbs = state.dbs
        self.txn = txn
        self.layers = layers
        self.above = above
        self.upto = upto
        self.tokens = tokens
        self.pace = pace
        self.sealers = state.sealers
        self.tallies = {name: tally.copy() for name, tally in tallies.items()}
        self._read: dict[tuple[str, bytes], bytes | None] = {}  # read since the last write; most are replaced next
        self._bits: dict[tuple[int, int], dict[int, bool]] = defaultdict(dict)
        self._rows: dict[bytes, bool] = {}

    # --- reading and writing -----------------------------------------------------------------------------------------

    def get(self, db: str, key: bytes) -> bytes | None:
        sealed = self.txn.get(key, None, self.dbs[db])
        value = None if sealed is None else self.sealers[db].opened(key, sealed)
        self._read[db, key] = sealed
        return value

    def write(self, db: str, writes: Iterable[tuple[bytes, bytes | None]] | Iterable[tuple[bytes, bytes]]) -> None:
        """Put values, or delete if the value is None; in order, in batches."""
        handle = self.dbs[db]
        cursor = self.txn.cursor(handle)
        get, sealed, tally = self.txn.get, self.sealers[db].sealed, self.tallies[db]
        puts: list[tuple[bytes, bytes]] = []
        read, opened = self._read, self.sealers[db].opened
        for key, value in writes:
            if (db, key) in read:
                before = read.pop((db, key))
            elif (before := get(key, None, handle)) is not None:
                opened(key, before)  # with a wrong seal, the tally would become wrong
            if before is not None:
                tally.remove(before)
            if value is None:
                self.txn.delete(key, db=handle)
            else:
                stored = sealed(key, value)
                tally.add(stored)
                puts.append((key, stored))
                if len(puts) >= _BATCH:
                    cursor.putmulti(puts)
                    puts.clear()
                    self.pace()
        cursor.putmulti(puts)
        cursor.close()
        read.clear()

    def append(self, db: str, writes: Iterable[tuple[bytes, bytes]]) -> None:
        """Put values after all that the database has; in key order, in batches. Nothing is looked up, and pages are
        filled. Raises `Damaged` if the database has a key that does not come before."""
        cursor = self.txn.cursor(self.dbs[db])
        sealer, tally = self.sealers[db], self.tallies[db]
        tag, digest, seed, items = sealer.tag, xxh3_64_digest, xxh3_64_intdigest, iter(writes)
        while puts := list(islice(items, _APPENDED)):
            # `Sealer.sealed` inlined: most of a bulk load's entries pass here.
            seals = [digest(value, seed(key, tag)) for key, value in puts]
            tally.add_seals(seals)
            _, added = cursor.putmulti([(key, value + seal) for (key, value), seal in zip(puts, seals, strict=True)],
                                       append=True)
            if added < len(puts):
                raise Damaged(f"{db} has an entry that nothing wrote", path=str(sealer.path))
            self.pace()

    def newest(self, cells: Cells, key: int) -> Event | None:
        """The event of a cell that must be written, or None."""
        for layer in self.layers:
            event = newest(cells(layer).get(key), self.upto)
            if event is not None:
                return event if event[0] > self.above else None
        return None

    def events(self, cells: Cells) -> Iterator[tuple[int, Event]]:
        """The events that must be written of one kind of cell, in the order of ids."""
        keys = sorted_keys([cells(layer) for layer in self.layers], self.pace)
        for at in range(0, len(keys), _BATCH):
            for key in keys[at : at + _BATCH].tolist():
                event = self.newest(cells, key)
                if event is not None:
                    yield key, event
            self.pace()

    # --- what is written ---------------------------------------------------------------------------------------------

    def write_all(self, base: Indexes) -> Indexes:
        """Write everything except the position. `base`: the indexes of the state before. Returns those it has now."""
        self.write("tokens", (token_entry(token, kind, value) for layer in reversed(self.layers)
                              for txid, token, kind, value in layer.tokens if self.above < txid <= self.upto))
        indexes = self.indexes(base)
        kept = {key: index for key, index in base.items() if indexes.get(key) == index}
        self.write_nodes(kept)
        self.write("node_props", ((id_key(node), event[1] or None) for node, event in self.events(lambda y: y.props)))
        self.write_edges()
        self.write("edge_props",
                   ((id_key(edge), event[1] or None) for edge, event in self.events(lambda y: y.edge_props)))
        self.write_adjacency()
        self.write_labels()
        self.write_rows()
        for key, index in base.items():
            if key not in kept:
                self.drop_rows(index)
        for key, index in indexes.items():
            if key not in kept:
                self.build_rows(key, index)
        return indexes

    def indexes(self, base: Indexes) -> Indexes:
        for layer in self.layers:
            event = newest(layer.indexes, self.upto)
            if event is not None:
                found: Indexes = event[1]
                return found if event[0] > self.above else base
        return base

    def marks(self, base: Marks) -> Marks:
        for layer in self.layers:
            if self.upto in layer.marks:
                return layer.marks[self.upto]
        return base

    def write_nodes(self, indexes: Indexes) -> None:
        """Write the node blocks. Collect the changes of label bitmaps and of the rows of `indexes`."""
        number, block, first = -1, bytearray(), 0
        writes: list[tuple[bytes, bytes | None]] = []
        for node, event in self.events(lambda layer: layer.nodes):
            if node // NODE_BLOCK != number:
                self._finish(writes, number, block)
                number = node // NODE_BLOCK
                first = number * NODE_BLOCK
                block = bytearray(self.get("nodes", id_key(number)) or bytes(_NODE_BYTES))
            at = 4 * (node - first)
            before = int.from_bytes(block[at : at + 4], "little")
            labels = event[1]
            block[at : at + 4] = labels.to_bytes(4, "little")
            if before != labels:
                window, bit = divmod(node, LABEL_WINDOW)
                old = set(self.tokens.label_tokens(before)) if before else set()
                new = set(self.tokens.label_tokens(labels)) if labels else set()
                for label in old - new:
                    self._bits[label, window][bit] = False
                for label in new - old:
                    self._bits[label, window][bit] = True
            if indexes:
                self.note_rows(indexes, node, before, labels)
        self._finish(writes, number, block)
        if indexes:
            for node, _ in self.events(lambda layer: layer.props):
                if self.newest(lambda layer: layer.nodes, node) is None:
                    labels = self.labels(node)
                    self.note_rows(indexes, node, labels, labels)
        self.write("nodes", writes)

    def labels(self, node: int) -> int:
        """A node's label set in the state."""
        number, at = divmod(node, NODE_BLOCK)
        block = self.get("nodes", id_key(number))
        return 0 if block is None else int.from_bytes(block[4 * at : 4 * at + 4], "little")

    def _finish(self, writes: list[tuple[bytes, bytes | None]], number: int, block: bytearray) -> None:
        if number >= 0:
            writes.append((id_key(number), bytes(block) if any(block) else None))

    def note_rows(self, indexes: Indexes, node: int, before: int, labels: int) -> None:
        """Collect the index rows to delete and to put for a node, given its label sets. Its old properties must be in
        LMDB still."""
        stored = self.get("node_props", id_key(node)) or b""
        event = self.newest(lambda layer: layer.props, node)
        for put, label_set, packed in ((False, before, stored), (True, labels, stored if event is None else event[1])):
            if label_set and packed:
                carried = self.tokens.label_tokens(label_set)
                cells = decode_map(packed)
                for (label, key), index in indexes.items():
                    if label in carried and key in cells:
                        self._rows[ROW_KEY.pack(index, value_digest(cells[key]), node)] = put

    def write_rows(self) -> None:
        self.write("index", ((key, b"" if put else None) for key, put in sorted(self._rows.items())))

    def drop_rows(self, index: int) -> None:
        cursor = self.txn.cursor(self.dbs["index"])
        prefix = index.to_bytes(4, "big")
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            key, sealed = cursor.item()
            self.sealers["index"].opened(key, sealed)
            self.tallies["index"].remove(sealed)
            more = cursor.delete()
            self.pace()

    def build_rows(self, key: tuple[int, int], index: int) -> None:
        """Build the rows of a new index, for all nodes that exist now. O(nodes of the label)."""
        label, prop = key
        rows = []
        cursor = self.txn.cursor(self.dbs["labels"])
        prefix = label.to_bytes(4, "big")
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            first = LABEL_KEY.unpack(cursor.key())[1] * LABEL_WINDOW
            bitmap = self.sealers["labels"].opened(*cursor.item())
            bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
            for node in (np.flatnonzero(bits) + first).tolist():
                cells = decode_map(self.get("node_props", id_key(node)) or b"")
                if prop in cells:
                    rows.append(ROW_KEY.pack(index, value_digest(cells[prop]), node))
                self.pace()
            more = cursor.next()
        rows.sort()
        self.write("index", ((row, b"") for row in rows))

    def write_labels(self) -> None:
        writes: list[tuple[bytes, bytes | None]] = []
        for (label, window), bits in sorted(self._bits.items()):
            key = LABEL_KEY.pack(label, window)
            bitmap = bytearray(self.get("labels", key) or bytes(_LABEL_BYTES))
            for bit, present in bits.items():
                if present:
                    bitmap[bit >> 3] |= 1 << (bit & 7)
                else:
                    bitmap[bit >> 3] &= ~(1 << (bit & 7))
            writes.append((key, bytes(bitmap) if any(bitmap) else None))
        self.write("labels", writes)

    def write_edges(self) -> None:
        keys = sorted_keys([cells for layer in self.layers for cells in (layer.edges, layer.edge_props)], self.pace)
        self.write("edges", self._edge_blocks(keys))

    def _edge_blocks(self, keys: Any) -> Iterator[tuple[bytes, bytes | None]]:
        number, block, first = -1, bytearray(), 0
        pack, unpack, size = EDGE_ENTRY.pack_into, EDGE_ENTRY.unpack_from, EDGE_ENTRY.size
        for at in range(0, len(keys), _BATCH):
            for edge in keys[at : at + _BATCH].tolist():
                event = self.newest(lambda layer: layer.edges, edge)
                props = self.newest(lambda layer: layer.edge_props, edge)
                if event is None and props is None:
                    continue
                if edge // EDGE_BLOCK != number:
                    if number >= 0:
                        yield id_key(number), bytes(block) if any(block) else None
                    number = edge // EDGE_BLOCK
                    first = number * EDGE_BLOCK
                    block = bytearray(self.get("edges", id_key(number)) or bytes(_EDGE_BYTES))
                place = (edge - first) * size
                source, target, kind, flags = unpack(block, place)
                if event is not None:
                    _, source, target, kind, present, _ = event
                    flags = flags | PRESENT if present else 0
                if props is not None and flags:
                    flags = flags | HAS_PROPS if props[1] else flags & ~HAS_PROPS
                pack(block, place, *((source, target, kind, flags) if flags else (0, 0, 0, 0)))
            self.pace()
        if number >= 0:
            yield id_key(number), bytes(block) if any(block) else None

    def write_adjacency(self) -> None:
        nodes, lanes = [], []
        for lane in sorted({lane for layer in self.layers for lane in layer.adjacency}):
            keys = sorted_keys([layer.adjacency[lane] for layer in self.layers if lane in layer.adjacency], self.pace)
            nodes.append(keys)
            lanes.append(np.full(len(keys), lane, np.int64))
        if not nodes:
            return
        owners, owned = np.concatenate(nodes), np.concatenate(lanes)
        order = np.lexsort((owned, owners))
        self.write_lists(self._changed_lists(owners[order], owned[order]))

    def _changed_lists(self, nodes: Any, lanes: Any) -> Iterator[tuple[bytes, list[tuple[int, int | None]]]]:
        pack_key = adjacency.pack_key
        for at in range(0, len(nodes), _BATCH):
            for node, lane in zip(nodes[at : at + _BATCH].tolist(), lanes[at : at + _BATCH].tolist(), strict=True):
                changes = self._list_changes(node, lane)
                if changes:
                    yield pack_key(node, lane), changes
            self.pace()

    def write_lists(self, lists: Iterable[tuple[bytes, Sequence[tuple[int, int | None]]]]) -> None:
        """Change adjacency lists: (key, changes by edge id), each list once, in key order."""
        get = partial(self.get, "adjacency")
        cursor = partial(self.txn.cursor, self.dbs["adjacency"])
        opened = self.sealers["adjacency"].opened
        self.write("adjacency", (put for key, changes in lists
                                 for put in adjacency.change(key, changes, get, cursor, opened)))

    def _list_changes(self, node: int, lane: int) -> list[tuple[int, int | None]]:
        changes = list_changes(self.layers, node, lane, self.above, self.upto)
        return sorted(changes.items()) if len(changes) > 1 else list(changes.items())


def pages_needed(state: LmdbState, base: Base, layers: Sequence[Layer]) -> int:
    """An upper bound of the pages that writing these layers takes: copies of all pages touched, and the new data."""
    touched = {
        "tokens": sum(len(layer.tokens) for layer in layers),
        "nodes": sum(len(layer.nodes) for layer in layers),
        "node_props": sum(len(layer.props) for layer in layers),
        "edges": sum(len(layer.edges) + len(layer.edge_props) for layer in layers),
        "edge_props": sum(len(layer.edge_props) for layer in layers),
        "adjacency": sum(len(lists) for layer in layers for lists in list(layer.adjacency.values())),
        "labels": sum(len(nodes) for layer in layers for nodes in list(layer.labels.values())),
        "index": sum(len(layer.props) + len(layer.nodes) for layer in layers),
    }
    pages = 0
    for name, keys in touched.items():
        stat = base.txn.stat(state.dbs[name])
        pages += min(4 * keys, stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) + 8
    if any(layer.indexes is not None for layer in layers):
        # An index may be built, of 20 bytes a node with properties, or dropped.
        pages += base.txn.stat(state.dbs["node_props"])["entries"] // 32
        pages += base.txn.stat(state.dbs["index"])["leaf_pages"]
    # New data, in pages that may be half full: a list with one entry, or a row, takes 48 bytes; a block its whole size.
    marks = next((layer.marks[layer.last] for layer in layers if layer.last), base.marks)
    size = 96 * sum(touched.values()) + 2 * sum(layer.payload_bytes for layer in layers)
    size += 2 * EDGE_BLOCK * EDGE_ENTRY.size * min(touched["edges"], marks.next_edge // EDGE_BLOCK + 1)
    size += 2 * _NODE_BYTES * min(touched["nodes"], marks.next_node // NODE_BLOCK + 1)
    size += 2 * (_LABEL_BYTES + 40) * sum(min(len(nodes), marks.next_node // LABEL_WINDOW + 1)
                                          for layer in layers for nodes in list(layer.labels.values()))
    pages += size // state.page_size
    # The pages that become free are listed, 8 bytes each.
    return pages + pages // 128 + 64


def write_state(state: LmdbState, base: Base, layers: Sequence[Layer], upto: Position, tokens: Tokens, clock: Clock,
                more: Callable[[StateWriter, Indexes], Marks] | None = None) -> None:
    """Make the durable state hold everything up to `upto`. Room for it must have been reserved.

    Args:
        layers: frozen, newest first.
        more: what else to write in the same transaction, given the writer and the indexes; returns the marks after it.

    Raises:
        lmdb.MapFullError: nothing was changed.
        lmdb.Error: LMDB failed; the environment must not be written again.
    """
    with state.environment.begin(write=True) as txn:
        pace = Pace(clock) if more is None else Pace(clock, _LOAD_SECONDS)
        writer = StateWriter(state, txn, layers, base.txid, upto.txid, tokens, pace, base.tallies)
        indexes = writer.write_all(base.indexes)
        marks = writer.marks(base.marks) if more is None else more(writer, indexes)
        document = encode_meta(state.context.store_id, upto, marks, indexes, writer.tallies)
        txn.put(b"state", document, db=state.dbs["meta"])


def dismantle(parts: list[dict[int, Any]], pace: Pace) -> None:
    """Free the parts of a dropped layer bit by bit. All at once, that would hold the interpreter lock for long."""
    for cells in parts:
        while cells:
            for _ in range(min(256, len(cells))):
                cells.popitem()
            pace()


