"""Animals whose payloads do not say all, or whose redo does not do all that they say."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from time import strftime
from typing import Any, BinaryIO

import msgpack
from staging_memory import StagingMemory
from zoo import altered, animal

from holdfast.engine.builtin.inplace.records import RecordsEngine, RecordsTransaction
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.toolkit.keyed_transaction import changes_of
from holdfast.engine.toolkit.state_file import read_state, write_state
from holdfast.engine.wal.attachments import TRAILER

# --- payloads ----------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_a_payload_holds_all_its_transaction_changed")
class ForgottenDeletes(MemoryEngine):
    """A payload lists what its transaction set, and leaves out what it deleted. The next replay brings that back."""

    class Tx(MemoryTransaction):
        def payload(self) -> bytes:
            kept = [(key, value) for key, value in self.changes.items() if value is not None]
            return msgpack.packb(kept) if kept else b""

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_a_payload_holds_all_its_transaction_changed")
class DrainedPayload(MemoryEngine):
    """Asking for the payload empties the transaction, so that whoever asks first (a plugin, say) is the only one to get
    it."""

    class Tx(MemoryTransaction):
        def payload(self) -> bytes:
            payload = super().payload()
            self.changes.clear()
            return payload

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_a_payload_holds_all_its_transaction_changed")
class NeverEmptyPayload(MemoryEngine):
    """A transaction that changed nothing has a payload all the same: every read-only transaction takes a number, a
    sync, and room in the log."""

    class Tx(MemoryTransaction):
        def payload(self) -> bytes:
            return super().payload() or b"\x90"  # an empty list

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_a_payload_holds_all_its_transaction_changed")
class TransactionsOfItsOwn(MemoryEngine):
    """A transaction sets the attributes of the kit's base class itself and does not call its `__init__`, to save a
    call. It lacks what a later release adds there: each commit beside a plugin that asks for it is rolled back."""

    class Tx(MemoryTransaction):
        def __init__(self, base: Any) -> None:
            self._state = self.txid = self.outcome = None
            self._base, self.changes = base, {}

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(
    caught_by="EngineContract.test_the_same_operations_make_the_same_payloads",
    also=["EngineContract.test_one_seed_one_history"])
class ShuffledPayload(MemoryEngine):
    """The changes of a payload come in another order each time, as those of a set do from process to process: no run
    is like another, and no failure can be repeated."""

    transactions = itertools.count()

    class Tx(MemoryTransaction):
        number = 0

        def payload(self) -> bytes:
            changes = list(self.changes.items())
            random.Random(self.number).shuffle(changes)
            return msgpack.packb(changes) if changes else b""

    def begin(self) -> MemoryTransaction:
        tx = self.Tx(self._state)
        tx.number = next(self.transactions)
        return tx


@animal(
    caught_by="ReplayContract.test_replaying_again_changes_nothing",
    also=["EngineContract.test_an_adopted_copy_is_where_it_is_told_to_be"])
class AddsInsteadOfSets(MemoryEngine):
    """A payload says by how much a value grows, not what it becomes. Redo that begins on a state that already holds
    some of it, as after a crash in a replay, adds twice."""

    class Tx(MemoryTransaction):
        def payload(self) -> bytes:
            told = {}
            for key, new in self.changes.items():
                old = self._base.get(key) or b""
                told[key] = None if new is None else _plus(new, old, -1)
            return msgpack.packb(list(told.items())) if told else b""

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            changes = [(key, by and _plus(by, self._state.get(key) or b"", 1)) for key, by in changes_of(record)]
            super().apply([altered(record, changes)])


def _plus(number: bytes, other: bytes, sign: int) -> bytes:
    """`number + sign * other`, as numbers of as many bytes as the first has."""
    total = int.from_bytes(number, "big") + sign * int.from_bytes(other[: len(number)], "big")
    return (total % (1 << 8 * len(number))).to_bytes(len(number), "big")


# --- redo ----------------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_transactions_and_views_show_what_the_model_has")
class HalfApply(MemoryEngine):
    """Of a transaction with several changes, the last one is not applied: a loop that ends one too early."""

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            changes = changes_of(record)
            super().apply([altered(record, changes[: max(1, len(changes) - 1)])])


@animal(caught_by="EngineContract.test_applying_in_batches_is_applying_one_by_one")
class ReversedBatch(MemoryEngine):
    """A batch is applied from its newest record to its oldest, so that older values win. With one record at a time,
    which is what its author tried, all is well."""

    def apply(self, records: Sequence[Record]) -> None:
        for record in reversed(records):
            super().apply([record])
        self._applied = records[-1].position


@animal(caught_by="EngineContract.test_applying_in_batches_is_applying_one_by_one")
class LastOfBatch(MemoryEngine):
    """Of a batch, only the last record that touches a key counts, which is right; its author counts the keys of the
    last record only."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records[-1:])


@animal(caught_by="EngineContract.test_transactions_and_views_show_what_the_model_has")
class EmptyIsNothing(MemoryEngine):
    """`if value:` instead of `if value is not None`: an empty value is taken for a deletion."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([altered(record, [(key, value or None) for key, value in changes_of(record)])
                       for record in records])


@animal(caught_by="EngineContract.test_a_killed_process_loses_nothing_that_was_logged",
        also=["EngineContract.test_any_history_of_a_store",
              "BackupContract.test_any_history_of_a_store_and_its_backups"])
class DeletesNotRedone(StagingMemory):
    """What a commit does and what redo does are two pieces of code, and the second one knows nothing of deletions. So
    all is well until the first crash."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([altered(record, [c for c in changes_of(record) if c[1] is not None]) for record in records])


@animal(caught_by="EngineContract.test_transactions_and_views_show_what_the_model_has")
class LostSwitch(MemoryEngine):
    """The first write after a checkpoint goes to the buffer that has just been written out, and is dropped with
    it."""

    _switched = False

    def checkpoint(self, upto: Position) -> Position:
        self._switched = self._switched or upto.txid > self._position.txid
        return super().checkpoint(upto)

    def apply(self, records: Sequence[Record]) -> None:
        first = [altered(records[0], [])] if self._switched else records[:1]
        self._switched = False
        super().apply([*first, *records[1:]])


@animal(caught_by="ReplayContract.test_redo_converges_from_any_mixture")
class TrustsTornHeads(RecordsEngine):
    """Redo leaves out what the state seems to hold already, and looks only at a record's head for that, as databases do
    by the number at the head of a page. A record that is torn behind its head stays torn."""

    _recovering = True

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            changes = [(key, cell) for key, cell in changes_of(record) if not self._recovering
                       or key in self._cells._dirty or self._cells._in_file(key)[:8] != cell[:8]]
            super().apply([altered(record, changes)])

    def begin(self) -> RecordsTransaction:
        self._recovering = False
        return super().begin()


@animal(caught_by="EngineContract.test_a_killed_process_loses_nothing_that_was_logged")
class MarksNotRedone(RecordsEngine):
    """Redo sets the records and not the marks that say which of them are in use: after a crash, new values are written
    over old ones."""

    _recovering = True

    def apply(self, records: Sequence[Record]) -> None:
        if self._recovering:
            records = [altered(record, [c for c in changes_of(record) if c[0] != (1, 0)]) for record in records]
        super().apply(records)

    def begin(self) -> RecordsTransaction:
        self._recovering = False
        return super().begin()


@animal(
    caught_by="EngineContract.test_ids_of_durable_transactions_never_return",
    also=["EngineContract.test_no_id_returns"])
class ReusedIds(RecordsEngine):
    """The next number is one above the highest in use, found anew at each opening, as InnoDB did for eighteen years. A
    number that was deleted last is given out again, and references from outside point to something else."""

    class Tx(RecordsTransaction):
        _fresh = True

        def insert(self, value: bytes) -> int:
            last = self._reader.marks(0).next - 1
            while last and self.get(last) is None:
                last -= 1
            if self._fresh and last + 1 < self._reader.marks(0).next:
                self._start(value)
                self._put(last + 1, value)
                self.changes.update(self._step)
                return last + 1
            return super().insert(value)

    def begin(self) -> RecordsTransaction:
        tx = self.Tx(self._cells)
        self.begin = super().begin  # type: ignore[method-assign]
        return tx


# --- bulk loads ----------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_a_bulk_load_is_one_transaction",
        also=["EngineContract.test_a_whole_life_of_a_store"])
class HalfBulkLoad(StagingMemory):
    """A bulk load is read in pieces, and the last piece, shorter than the others, is not."""

    def apply_bulk(self, record: Record, path: Path) -> None:
        unpacker = msgpack.Unpacker()
        unpacker.feed(self._env.files.read(path)[: -TRAILER.size])
        state = {**self._published[0], **dict(list(unpacker)[:-1])}
        write_state(self._context, self._directory / "state", b"TESTSTAG", 1, record.position, msgpack.packb(state))
        self._published = self._newest = state, record.position
        self._position, self._pending = record.position, 0


@animal(caught_by="EngineContract.test_a_bulk_load_is_one_transaction_in_its_place")
class LoadsOverWhatWaits(StagingMemory):
    """A bulk load is added to the state on disk, so what was committed since the last checkpoint is lost. The position
    says that it is there."""

    def apply_bulk(self, record: Record, path: Path) -> None:
        _, durable = read_state(self._context, self._directory / "state", b"TESTSTAG", 1)
        self._published = msgpack.unpackb(durable), self._published[1]
        super().apply_bulk(record, path)


@animal(caught_by="EngineContract.test_a_bulk_load_that_is_logged_is_there_after_a_crash",
        also=["ReplayContract.test_rolling_to_any_transaction_gives_the_model_there",
              "BackupContract.test_bulk_loads_are_in_backups"])
class LoadNotRedone(StagingMemory):
    """Only the process that wrote a bulk load applies it. In redo it is taken for done."""

    _wrote = False

    def write_bulk(self, load: Any, out: BinaryIO) -> bytes:
        self._wrote = True
        return super().write_bulk(load, out)

    def apply_bulk(self, record: Record, path: Path) -> None:
        if self._wrote:
            super().apply_bulk(record, path)
        else:
            self._published = self._newest = self._published[0], record.position
            self.checkpoint(record.position)


@animal(caught_by="EngineContract.test_the_same_operations_make_the_same_payloads")
class StampedWithTheDay(MemoryEngine):
    """A payload begins with the day, by the machine's own clock and zone, for whoever looks at a log. Two members make
    two payloads of one transaction at midnight."""

    class Tx(MemoryTransaction):
        def payload(self) -> bytes:
            day = (b"day", strftime("%Y-%m-%d").encode())
            return msgpack.packb([day, *self.changes.items()]) if self.changes else b""

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)

    def apply(self, records: Sequence[Record]) -> None:
        super().apply([altered(record, changes_of(record)[1:]) for record in records])


@animal(caught_by="EngineContract.test_applying_in_batches_is_applying_one_by_one")
class EmptiesTheBatch(MemoryEngine):
    """`apply` takes the records out of the list that it is given, one by one. The list is the kit's."""

    def apply(self, records: Sequence[Record]) -> None:
        assert isinstance(records, list)
        while records:
            super().apply([records.pop(0)])
