"""Animals that are right alone, and wrong in a cluster: as followers, or after a fail-over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo import animal

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.toolkit import changes_of


@animal(caught_by="ClusterContract.test_followers_show_each_transaction_as_the_primary_does")
class RefreshedByWriters(MemoryEngine):
    """The newest view is kept for the next reader, until a transaction that began here is applied. On a follower none
    begins, and it shows its first view for ever."""

    _newest: MemoryView | None = None
    _began = False

    def begin(self) -> MemoryTransaction:
        self._began = True
        return super().begin()

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        if self._began:
            self._newest = None

    def view(self) -> MemoryView:
        self._newest = self._newest or super().view()
        return MemoryView(self._newest._state, self._newest.txid)


@animal(caught_by="ClusterContract.test_a_failover_loses_nothing_that_was_acknowledged")
class WritesOnItsOwn(MemoryEngine):
    """Transactions read from a working copy, which is made when the store is opened, and gets what is committed here.
    A follower that becomes primary goes on from the day on which it was opened."""

    _copy: dict[bytes, Any] | None = None
    _began = False

    def begin(self) -> MemoryTransaction:
        self._began = True
        return MemoryTransaction(self._copy or self._state)

    def view(self) -> MemoryView:
        self._copy = dict(self._state) if self._copy is None else self._copy
        return super().view()

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        if self._began and self._copy is not None:
            for record in records:
                self._copy.update(changes_of(record))


@animal(caught_by="ClusterContract.test_killed_members_come_back")
class SavesWhatItWrote(MemoryEngine):
    """A checkpoint writes the state only if a transaction began here since the last one: nothing else can have changed
    it. The position moves on all the same, and what a follower has replayed is nowhere."""

    _saved: dict[bytes, bytes] | None = None
    _began = False

    def begin(self) -> MemoryTransaction:
        self._began = True
        return super().begin()

    def view(self) -> MemoryView:
        self._saved = dict(self._state) if self._saved is None else self._saved
        return super().view()

    def checkpoint(self, upto: Position) -> Position:
        newest = self._state
        if not self._began and self._saved is not None:
            self._state = self._saved
        reached = super().checkpoint(upto)
        self._state, self._saved, self._began = newest, dict(self._state), False
        return reached
