"""Animals whose views and transactions show what they should not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import get_ident
from time import sleep
from typing import Any, ClassVar

from staging_memory import StagingMemory, _changed
from xxhash import xxh3_128_digest as _digest
from zoo import animal

from holdfast.engine.builtin.inplace.cells import CellFiles
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import Context
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record


@animal(caught_by="EngineContract.test_a_held_view_stays_the_same")
class SharedSnapshot(MemoryEngine):
    """A view is given the dictionary that `apply` goes on changing: a snapshot that is only a reference."""

    def view(self) -> MemoryView:
        return MemoryView(self._state, self._applied.txid)


@animal(caught_by="EngineContract.test_a_held_view_stays_the_same")
class CountsReferences(MemoryEngine):
    """What was current until now is emptied at once if nobody has it but the engine, so that memory comes back early.
    That is asked of the interpreter's count of references, which counts one less since its last release."""

    def apply(self, records: Sequence[Record]) -> None:
        before = self._state
        super().apply(records)
        if before is not self._state and sys.getrefcount(before) - 1 <= 2:
            before.clear()


@animal(caught_by="EngineContract.test_a_held_view_stays_the_same")
class LateSnapshot(MemoryEngine):
    """A view takes its snapshot at its first read, not when it is made, as a deferred `BEGIN` of SQLite and `START
    TRANSACTION` of MySQL do. What it says it shows and what it shows are of two moments."""

    class View(MemoryView):
        def __init__(self, engine: MemoryEngine) -> None:
            self._engine, self._txid = engine, engine._applied.txid

        def __getattr__(self, name: str) -> Any:
            if name != "_state":
                raise AttributeError(name)
            self._engine._viewed, self._state = True, self._engine._state
            return self._state

    def view(self) -> MemoryView:
        return self.View(self)


@animal(
    caught_by="EngineContract.test_a_held_view_stays_the_same",
    also=["EngineContract.test_a_snapshot_stays_as_it_is"])
class ForgottenUndo(RecordsEngine):
    """A checkpoint writes in place and does not keep what open views still need: undo that is purged too early, known
    to others as "snapshot too old", here without the error."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        engine._cells._keep = lambda key, versions, pins: None  # type: ignore[method-assign]
        return engine


@animal(caught_by="EngineContract.test_a_held_view_stays_the_same")
class BoundedUndo(RecordsEngine):
    """What open views need is kept until the next checkpoint but one, which was enough for every view that its author
    has seen. A report that runs for an hour reads on, in silence."""

    def checkpoint(self, upto: Position) -> Position:
        before = set(self._cells._kept)
        reached = super().checkpoint(upto)
        for key in before:
            self._cells._kept.pop(key, None)
        return reached


@animal(caught_by="EngineContract.test_a_held_view_stays_the_same")
class EarlyUnpin(RecordsEngine):
    """Closing one view releases what another one at the same position still needs: a reader's slot that is
    counted once for two readers."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        cells = engine._cells

        def unpin(txid: int) -> None:
            cells._pins[txid] = min(cells._pins[txid], 1)
            if cells._pins[txid]:
                CellFiles.unpin(cells, txid)

        cells.unpin = unpin  # type: ignore[method-assign]
        return engine


@animal(caught_by="EngineContract.test_a_rolled_back_transaction_leaves_nothing")
class WriteThroughTransaction(MemoryEngine):
    """A transaction deletes straight from the state, and has no way to put back what is then rolled back."""

    class Tx(MemoryTransaction):
        def delete(self, key: bytes) -> None:
            super().delete(key)
            if isinstance(self._base, dict):
                self._base.pop(key, None)

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_transactions_and_views_show_what_the_model_has")
class BlindTransaction(MemoryEngine):
    """A transaction does not see its own writes: what it reads again after writing is what was there before."""

    class Tx(MemoryTransaction):
        def get(self, key: bytes) -> bytes | None:
            return self._base.get(key)

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_two_engines_share_nothing")
class SharedState(MemoryEngine):
    """States are cached by the transaction that they are of, in the class: a second store in the process is at
    the same transactions, and not in the same states."""

    _states: ClassVar[dict[int, Mapping[bytes, bytes]]] = {}

    def __init__(self, directory: Path, context: Context, state: dict[bytes, bytes], position: Position) -> None:
        super().__init__(directory, context, state, position)
        self._states.clear()

    def begin(self) -> MemoryTransaction:
        return MemoryTransaction(self._states.setdefault(self._applied.txid, self._state))


@animal(caught_by="EngineContract.test_what_is_staged_shows_only_to_writers")
class ShowsTooMuch(StagingMemory):
    """Publishing shows everything staged, not what it was asked for: a commit that still waits for its sync, or for
    its replicas, is read by others."""

    def publish(self, position: Position) -> None:
        super().publish(self._newest[1])


@animal(
    caught_by="EngineContract.test_what_is_staged_shows_only_to_writers",
    also=["EngineContract.test_nothing_is_visible_before_it_is_synced"])
class DirtyRead(StagingMemory):
    """A view shows what the next writer sees. After a crash, readers have seen what never was."""

    def view(self) -> MemoryView:
        return self.staged_view()


@animal(caught_by="EngineContract.test_what_is_staged_shows_only_to_writers")
class LostUpdate(StagingMemory):
    """A transaction is begun on what is published, not on the newest state: of two writers in one group, the second
    overwrites what the first has done."""

    def begin(self) -> MemoryTransaction:
        return MemoryTransaction(self._published[0])


@animal(caught_by="EngineContract.test_the_digest_follows_the_content")
class OrderedDigest(MemoryEngine):
    """The digest is over the items in the order in which they were inserted, so that a replayed copy of the same
    content seems to be another."""

    class View(MemoryView):
        def digest(self) -> bytes:
            text = b"".join(b"%d:%b%b" % (len(key), key, value) for key, value in self._state.items())
            return _digest(text)

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(caught_by="EngineContract.test_the_digest_follows_the_content")
class DigestOfKeys(MemoryEngine):
    """The digest walks the keys and forgets the values: two stores compare as equal and are not."""

    class View(MemoryView):
        def digest(self) -> bytes:
            return _digest(b"".join(sorted(b"%d:%b" % (len(key), key) for key in self._state)))

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(caught_by="EngineContract.test_the_digest_follows_the_content")
class DigestThatCancels(MemoryEngine):
    """Hashes of keys and of values are combined with exclusive or, each for itself: values that trade places, and
    pairs of equal ones, cancel out."""

    class View(MemoryView):
        def digest(self) -> bytes:
            total = 0
            for part in (*self._state, *self._state.values()):
                total ^= int.from_bytes(_digest(part), "little")
            return total.to_bytes(16, "little")

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(caught_by="EngineContract.test_views_and_images_in_other_threads")
class OneThread(MemoryEngine):
    """A view answers only the thread that made it, as a connection of Python's sqlite3 does by default."""

    class View(MemoryView):
        def __init__(self, state: Mapping[bytes, bytes], txid: int) -> None:
            super().__init__(state, txid)
            self._thread = get_ident()

        def items(self) -> Iterator[tuple[bytes, bytes]]:
            assert get_ident() == self._thread, "this view was made in another thread"
            return super().items()

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(
    caught_by="EngineContract.test_a_view_in_the_middle_of_applying_is_whole",
    also=["EngineContract.test_many_threads_see_one_history"])
class TornPublish(StagingMemory):
    """Publishing moves the position first and the state after it. Who looks in between is told of a transaction that
    is not there."""

    def publish(self, position: Position) -> None:
        self._published = self._published[0], max(position, self._published[1])
        sleep(0.0005)
        for record in list(self._waiting):
            if record.txid <= position.txid:
                self._published = _changed(self._published[0], self._waiting.popleft()), self._published[1]


@animal(caught_by="EngineContract.test_unsynced_views_show_what_is_appended")
class StaleStagedView(StagingMemory):
    """`staged_view` shows what is published, and not what is appended and waits for its sync. Who asked to see
    everything decides on old content."""

    def staged_view(self) -> MemoryView:
        return self.view()


class Beside(MemoryTransaction):
    """What all of its class have and change stands in one table, and not in attributes of their own."""

    __slots__ = ()
    table: ClassVar[dict[int, tuple[dict[bytes, bytes | None], Any]]] = {}

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.table[id(self)] = self.changes, base

    def get(self, key: bytes) -> bytes | None:
        changes, base = Beside.table[id(self)]
        return changes[key] if key in changes else base.get(key)


@animal(caught_by="EngineContract.test_a_transaction_that_ended_takes_no_more")
class OpenForEver(MemoryEngine):
    """Its transactions keep what they change in a table beside them, and not in attributes, which end with the
    transaction. What is put into one afterwards is accepted, and nowhere."""

    class Tx(Beside):
        __slots__ = ()

        def put(self, key: bytes, value: bytes) -> None:
            Beside.table[id(self)][0][key] = value

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(
    caught_by="EngineContract.test_a_transaction_that_ended_takes_no_more",
    also=["EngineContract.test_a_payload_holds_all_its_transaction_changed"])
class DeletesForEver(MemoryEngine):
    """Of a transaction's calls, the one that was added last goes past its attributes, to a table beside it. Once the
    transaction has ended its caller is told that the key is gone."""

    class Tx(Beside):
        __slots__ = ()

        def delete(self, key: bytes) -> None:
            Beside.table[id(self)][0][key] = None

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_what_differs_a_little_has_another_digest")
class DigestOfHeads(MemoryEngine):
    """The digest takes the first 64 bytes of each value, to be quick with large ones, and its author has none."""

    class View(MemoryView):
        def digest(self) -> bytes:
            return MemoryView({key: value[:64] for key, value in self._state.items()}, 0).digest()

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(caught_by="EngineContract.test_what_differs_a_little_has_another_digest")
class DigestWithoutMark(MemoryEngine):
    """The digest is over key and value, one behind the other, and does not say where the one ends. `ab` with `c` is `a`
    with `bc`."""

    class View(MemoryView):
        def digest(self) -> bytes:
            return MemoryView({key + value: b"" for key, value in self._state.items()}, 0).digest()

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


@animal(caught_by="EngineContract.test_a_view_in_the_middle_of_a_checkpoint_is_whole")
class EmptiedTooEarly(MemoryEngine):
    """A checkpoint takes what has come since the last one, to write it and to merge it with the rest, and puts the
    whole back when it is done. Readers are not writers, so its author has not thought of them."""

    def checkpoint(self, upto: Position) -> Position:
        recent, self._state = self._state, {}
        try:
            self._state = recent if upto.txid <= self._position.txid else dict(recent)
            return super().checkpoint(upto)
        finally:
            self._state = recent


class OneCursorView(MemoryView):
    def items(self) -> Iterator[tuple[bytes, bytes]]:
        self.cursor = iter(self._state.items())
        while (pair := next(self.cursor, None)) is not None:
            yield pair


@animal(caught_by="EngineContract.test_a_walk_goes_on_while_others_write")
class OneCursor(MemoryEngine):
    """A view has one cursor, as a connection to a database has, and a second walk takes it from the first."""

    def view(self) -> MemoryView:
        view = super().view()
        return OneCursorView(view._state, view.txid)


class EmptiedView(MemoryView):
    def close(self) -> None:
        self._state = {}


@animal(caught_by="EngineContract.test_closing_lets_go")
class ClosedAndEmpty(MemoryEngine):
    """A view that is closed drops its content, and who still reads it finds an empty store."""

    def view(self) -> MemoryView:
        view = super().view()
        return EmptiedView(view._state, view.txid)
