"""Animals that answer wrongly, late, or for ever: to a value that equals another, to a reader that stops half-way, to
whoever asked before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
from hypothesis import strategies as st
from staging_memory import StagingMemory
from workloads import keyed
from zoo import animal

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.errors import InvalidInput
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.testing import Workload
from holdfast.engine.toolkit.digest import unordered_digest
from holdfast.engine.toolkit.keyed_transaction import changes_of


class Numbers(MemoryEngine):
    """Values are truth values, whole numbers of 64 bits, floats, and lists of them."""

    class Tx(MemoryTransaction):
        def put(self, key: bytes, value: Any) -> None:
            parts = value if type(value) is list else [value]
            kinds = {type(part) for part in parts}
            if type(key) is not bytes or not key or not kinds <= {bool, int, float} or not all(
                    part in range(-1 << 63, 1 << 63) for part in parts if type(part) is int):
                raise InvalidInput("a key is bytes, and a value a number, or a list of them")
            self.changes[key] = _own(value)

        def get(self, key: bytes) -> Any:
            return _own(super().get(key))

    class View(MemoryView):
        def get(self, key: bytes) -> Any:
            return _own(super().get(key))

        def items(self) -> Iterator[Any]:
            return ((key, _own(value)) for key, value in self._state.items())

        def digest(self) -> bytes:
            return unordered_digest(msgpack.packb(pair) for pair in self._state.items())

        def check(self) -> Iterator[str]:
            return iter(())

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        state: Any = self._state
        state.update({key: list(value) for key, value in state.items() if type(value) is tuple})

    def view(self) -> MemoryView:
        view = super().view()
        return self.View(view._state, view.txid)


def _own(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def truths() -> Workload:
    return keyed(Numbers, values=st.booleans() | st.integers(0, 9), number=lambda n: (b"number %d" % n, n))


def floats() -> Workload:
    return keyed(Numbers, values=st.floats(allow_nan=False), number=lambda n: (b"number %d" % n, float(n)))


def lists() -> Workload:
    return keyed(Numbers, values=st.lists(st.integers(0, 9), max_size=4), number=lambda n: (b"number %d" % n, [n]))


@animal(caught_by="EngineContract.test_awkward_keys_and_values_are_what_they_were", on=truths)
class CountsTrue(Numbers):
    """Every value is a number to its author, and True is one too, so it comes back as 1. The user's `is True` is false
    from then on, and JSON made of it says something else."""

    class Tx(Numbers.Tx):
        def put(self, key: bytes, value: Any) -> None:
            super().put(key, int(value) if type(value) is bool else value)


@animal(caught_by="EngineContract.test_awkward_keys_and_values_are_what_they_were", on=floats)
class KeepsItsZero(Numbers):
    """A value that equals the one that is there is not written, which saves a record. -0.0 equals 0.0, and True equals
    1, so these never come. Whoever divides by the zero gets the other infinity."""

    class Tx(Numbers.Tx):
        def put(self, key: bytes, value: Any) -> None:
            held = self.get(key)
            super().put(key, held if held == value else value)


@animal(caught_by="EngineContract.test_what_was_given_is_not_changed_from_outside", on=lists)
class HandsOutItsList(Numbers):
    """Views copy the lists that they give, and a transaction those that it was given. What it has not changed itself,
    it gives as it is in the state. A program that sorts it, and then rolls back, has sorted it for everybody."""

    class Tx(Numbers.Tx):
        def get(self, key: bytes) -> Any:
            return super().get(key) if key in self.changes else self._base.get(key)


@animal(caught_by="EngineContract.test_keys_and_values_of_other_types")
class TakesAnyKey(MemoryEngine):
    """A put() takes every key that msgpack packs. A tuple is one, and it is a list when the state is read, which cannot
    be a key. The commit that brought it was acknowledged, and the store never opens again."""

    class Tx(MemoryTransaction):
        def put(self, key: Any, value: bytes) -> None:
            if key in (b"", None):
                raise InvalidInput("a key is not empty")
            msgpack.packb((key, value))
            self.changes[key] = value

    def begin(self) -> MemoryTransaction:
        return self.Tx(self._state)


@animal(caught_by="EngineContract.test_every_way_of_reading_shows_one_content")
class RefillsTheAbsent(MemoryEngine):
    """Keys that were looked for and are not there are kept in a set, and a commit takes what it puts out of it. An
    older view, to which the key is rightly absent, puts it in again, for all views that come after."""

    class View(MemoryView):
        absent: set[bytes]

        def get(self, key: bytes) -> bytes | None:
            if key not in self.absent and key not in self._state:
                self.absent.add(key)
            return None if key in self.absent else self._state[key]

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        self._absent: set[bytes] = getattr(self, "_absent", set())
        self._absent.difference_update(key for record in records for key, _ in changes_of(record))

    def view(self) -> MemoryView:
        view = self.View(super().view()._state, self._applied.txid)
        view.absent = self._absent = getattr(self, "_absent", set())
        return view


@animal(caught_by="EngineContract.test_a_walk_that_is_dropped_holds_nothing")
class LetsGoAtTheEnd(MemoryEngine):
    """A walk holds the state's file open, and closes it behind its last pair. A program that looks for the first pair
    and leaves the loop never comes there: some hundred searches later the process has no descriptors left."""

    class View(MemoryView):
        path: Any

        def items(self) -> Iterator[tuple[bytes, bytes]]:
            held = os.open(self.path, os.O_RDONLY)
            yield from self._state.items()
            os.close(held)

    def view(self) -> MemoryView:
        view = self.View(super().view()._state, self._applied.txid)
        view.path = self._directory / "state"
        return view


@animal(caught_by="EngineContract.test_a_walk_goes_on_while_others_write")
class WalksUnderALock(MemoryEngine):
    """A walk holds the lock that guards the state from its first pair to its last. The lock may be taken again by the
    thread that has it, so its author's test, which is one thread, passes. Every commit waits for the report."""

    class View(MemoryView):
        lock: Any

        def items(self) -> Iterator[tuple[bytes, bytes]]:
            with self.lock:
                yield from self._state.items()

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._lock: Any = threading.RLock()

    def view(self) -> MemoryView:
        view = self.View(super().view()._state, self._applied.txid)
        view.lock = self._lock
        return view


@animal(caught_by="EngineContract.test_what_is_staged_shows_only_to_writers")
class DropsWhatIsTheSame(StagingMemory):
    """When a state is checkpointed, staged changes that are in it need not be kept in memory any more. Which these are
    is asked with `is`: two values of a megabyte are never the same, and two empty ones always are. So a later change
    to an empty value goes with an earlier one."""

    _dropped: frozenset[bytes] = frozenset()

    def stage(self, record: Record, tx: MemoryTransaction) -> None:
        super().stage(record, tx)
        self._dropped -= tx.changes.keys()

    def checkpoint(self, upto: Position) -> Position:
        reached = super().checkpoint(upto)
        written, (newest, position) = self._published[0], self._newest
        self._newest = {**newest, **{key: written[key] for key in self._dropped & written.keys()}}, position
        self._dropped = frozenset(key for key, value in newest.items() if value is written.get(key))
        return reached
