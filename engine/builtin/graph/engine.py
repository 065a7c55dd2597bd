"""`GraphEngine`: the state behind a graph store.

It consists of the durable state in LMDB, the overlay of layers over it, and one tuple `(base, layers, bound)` that says
what views show. A new view reads that tuple in one step, without a lock. A change replaces the whole tuple under
`_lock`, which is never held for long. A checkpoint freezes the active layer, begins another, and writes the frozen ones
to LMDB; meanwhile only other checkpoints are locked out. Then it puts the new base under the layers that are left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from weakref import ref

import lmdb

from ...contract.engine import Abilities, BulkEngine, Context, StagingEngine
from ...contract.options import Option
from ...env.pace import Pace
from ...errors import DiskFull, StorePoisoned
from ...model.positions import Position
from ...model.records import Record
from ...toolkit.checksums import Tally
from . import bulk, bulk_columns, mapping, payload
from .checkpoint import StateWriter, dismantle, pages_needed, write_state
from .image import LmdbImage
from .lmdbstate import TALLIED, Base, LmdbState, encode_meta
from .overlay import EMPTY, Indexes, Layer, Marks
from .transaction import GraphTransaction
from .view import GraphView

State = tuple[Base, tuple[Layer, ...], int]


class GraphEngine(StagingEngine[GraphTransaction, GraphView], BulkEngine[GraphTransaction, GraphView]):
    """A property graph on LMDB. A bulk load that might not fit into `map_size` is refused, since it could not be undone
    once it is logged."""

    name: ClassVar[str] = "graph"
    state_format: ClassVar[int] = 2
    payload_version: ClassVar[int] = 1
    abilities: ClassVar[Abilities] = Abilities(atomic=True, image="stable", background_checkpoint=True,
                                               shared_readers=True, replays_in_memory=True)
    options: ClassVar[Mapping[str, Option]] = {
        "map_size": Option(1 << 40 if sys.maxsize > 1 << 32 else 1 << 30, "the most bytes that the state may ever take "
                           "(address space, not disk)", least=1 << 20, most=1 << 46),
        "cache_bytes": Option(64 << 20, "about how many bytes of memory may keep adjacency lists that were read, for "
                              "each edge type and direction, and as many properties of nodes; a view with an overlay "
                              "keeps a quarter as much of its own", least=0),
    }

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        state = LmdbState(directory, context, create=True, grows=True)
        try:
            with state.environment.begin(write=True) as txn:
                document = encode_meta(context.store_id, position, EMPTY, {}, {name: Tally() for name in TALLIED})
                txn.put(b"state", document, db=state.dbs["meta"])
        except lmdb.Error as error:
            raise state.at_open(error) from error
        finally:
            state.close()
        context.env.files.sync_directory(directory)

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False,
             at: Position | None = None) -> GraphEngine:
        state = LmdbState(directory, context, read_only=read_only, grows=not read_only and at is None)
        try:
            return cls(state, context, at)
        except BaseException:
            state.close()
            raise

    def __init__(self, state: LmdbState, context: Context, at: Position | None) -> None:
        self._lmdb = state
        self._context = context
        self._is_copy = at is not None
        self._clock = context.env.clock
        base = Base(state, at)
        self._tokens = state.read_tokens(base)
        self._lock = context.env.scheduler.lock()
        self._checkpointing = context.env.scheduler.lock()
        self._state: State = (base, (Layer(),), base.position.txid)
        self._staged = base.position.txid
        self._marks = base.marks
        self._position = base.position
        self._refused: Position | None = None
        self._broken: BaseException | None = None

    @property
    def position(self) -> Position:
        return self._position

    # --- the newest state --------------------------------------------------------------------------------------------

    def begin(self) -> GraphTransaction:
        marks = self._marks
        tokens = self._tokens
        if tokens.highest >= marks.next_token:
            tokens.cut(marks.next_token)
        state = self._state
        return GraphTransaction(state[0], state[1], self._staged + 1, marks, tokens)

    def stage(self, record: Record, tx: GraphTransaction) -> None:
        changes = tx.changes
        if changes.txid != self._staged + 1 or record.txid < changes.txid:
            raise ValueError(f"a transaction made for transaction {changes.txid} cannot be transaction {record.txid}")
        changes.txid = record.txid  # higher if there are kit records between; no view has a bound there
        marks = changes.after()
        with self._lock:
            self._state[1][0].add(changes, marks, len(record.payload))
        self._marks = marks
        self._staged = record.txid

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self._tokens.cut(self._marks.next_token)
            changes, marks = payload.decode(record.txid, record.payload, self._state[1][0], self._tokens)
            with self._lock:
                self._state[1][0].add(changes, marks, len(record.payload))
            self._marks = marks
            self._staged = record.txid
        if records:
            self.publish(records[-1].position)

    def publish(self, position: Position) -> None:
        with self._lock:
            base, layers, bound = self._state
            if position.txid > bound:
                self._state = (base, layers, position.txid)

    def view(self) -> GraphView:
        base, layers, bound = self._state
        return GraphView(base, layers, bound, self._tokens)

    def staged_view(self) -> GraphView:
        with self._lock:
            base, layers, _ = self._state
            return GraphView(base, layers, self._staged, self._tokens)

    def pending_bytes(self) -> int:
        layers = self._state[1]
        return layers[0].size if len(layers) == 1 else sum(layer.size for layer in layers)

    # --- the durable state -------------------------------------------------------------------------------------------

    def checkpoint(self, upto: Position) -> Position:
        with self._checkpointing:
            if upto.txid > self._position.txid:
                if upto.txid < self._state[0].txid:
                    self._position = upto  # opened at a position below what LMDB holds: that is durable already
                else:
                    # First retry what the map had no room for, as it was frozen: each attempt would add a layer.
                    if self._refused is not None and self._position.txid < self._refused.txid < upto.txid:
                        self._write(self._refused)
                    self._write(upto)
                    if self._is_copy:  # most of its pages are written once and never read
                        self._lmdb.mapping.passed(mapping.ROOM)
            return self._position

    def write_bulk(self, load: Any, out: BinaryIO) -> bytes:
        return bulk.encode(load, self.begin(), out, self._reserve)

    def _reserve(self, loaded: bulk_columns.Loaded) -> None:
        """Reserve room for a bulk load before it is logged: once logged, it must be applied. Raises `DiskFull`."""
        with self._checkpointing:
            # A new view, not that of the load's transaction: a checkpoint may have come since, and what it wrote is no
            # longer pending.
            with self.staged_view() as view:
                pages = loaded.pages(view)
            base, layers, _ = self._state
            # Pending changes count twice: a checkpoint may write them first, and the load then copies those pages.
            pages += 2 * pages_needed(self._lmdb, base, layers)
            if pages > (room := self._lmdb.room()):
                size = self._lmdb.page_size
                raise DiskFull(f"with what is pending the load may take {pages * size:,} bytes, and map_size leaves "
                               f"{room * size:,}",
                               hint="nothing was written; reopen with a larger map_size")
            self._lmdb.keep_place()
            self._lmdb.reserve(pages)

    def apply_bulk(self, record: Record, path: Path) -> None:
        with self._checkpointing:
            self._tokens.cut(self._marks.next_token)
            loaded = bulk_columns.read(self._context.env.files, path, record.payload)
            for token, kind, value in loaded.tokens:
                self._tokens.add(token, kind, value)

            def write(writer: StateWriter, indexes: Indexes) -> Marks:
                return bulk_columns.apply(loaded, writer, indexes, self._tokens)

            with self.staged_view() as view:
                pages = loaded.pages(view)
            self._write(record.position, write, pages)
            self._marks = loaded.marks
            self._staged = record.txid

    def _write(self, upto: Position, more: Callable[[StateWriter, Indexes], Marks] | None = None,
               more_pages: int = 0) -> None:
        """Write the pending changes up to a transaction, and `more`. The rest becomes the overlay over a new base."""
        if self._broken is not None:
            raise StorePoisoned("an earlier write to LMDB failed") from self._broken
        self._lmdb.keep_place()  # reserved first: after the write, the new base must be readable
        base, layers, _ = self._state
        self._lmdb.reserve(pages_needed(self._lmdb, base, layers) + more_pages)
        with self._lock:
            base, frozen, bound = self._state
            if next(iter(frozen[0].marks), upto.txid + 1) <= upto.txid:
                self._state = (base, (Layer(), *frozen), bound)
            else:  # the active layer holds nothing that must be written
                frozen = frozen[1:]
        try:
            write_state(self._lmdb, base, frozen, upto, self._tokens, self._clock, more)
        except lmdb.MapFullError as error:
            if more is None:
                self._refused = upto
            raise DiskFull(f"the state does not fit in map_size, {self._lmdb.environment.info()['map_size']:,} bytes",
                           hint="nothing was written; reopen with a larger map_size") from error
        except BaseException as error:
            # No retry: LMDB might accept later commits although this one's pages never reached the disk.
            self._broken = error
            raise
        self._lmdb.trim()
        fresh = Base(self._lmdb)
        with self._lock:
            _, layers, bound = self._state
            kept = tuple(layer for layer in layers[1:] if layer.last > upto.txid)
            self._state = (fresh, (layers[0], *kept), max(bound, upto.txid))
            self._position = upto
        done = [layer for layer in frozen if layer.last <= upto.txid]
        del base, frozen, layers, kept
        let_go(done, Pace(self._clock))

    def image(self) -> LmdbImage:
        with self._checkpointing:
            return self._lmdb.image(self._position)

    def close(self) -> None:
        with self._checkpointing:
            self._lmdb.close()


def let_go(layers: list[Layer], pace: Pace) -> None:
    """Drop layers. Those that nothing else uses are freed bit by bit. If a view or transaction still uses one, it is
    freed with that."""
    while layers:
        layer = layers.pop()
        there, parts = ref(layer), layer.parts()
        del layer
        if there() is None:
            dismantle(parts, pace)
