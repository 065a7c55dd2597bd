"""Animals that grow: they take memory, files, descriptors or time, and do not give them back."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
from zoo import animal

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.image import Image
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.toolkit.file_image import FileImage

# --- time ----------------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_a_long_history_makes_nothing_dearer")
class CountsFromTheBeginning(MemoryEngine):
    """How much waits for a checkpoint is added up anew with each transaction, from all that there were. After a few
    thousand, a commit spends its time on that."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._sizes: list[int] = []

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        self._sizes += [len(record.payload) for record in records]
        self._pending = 0
        for size in self._sizes:
            self._pending += size


@animal(caught_by="EngineContract.test_a_long_history_makes_nothing_dearer")
class SummarisesItsHistory(MemoryEngine):
    """All changes are compressed anew after each transaction, by a library that is written in C. No line of Python more
    runs for it, and yet each commit takes longer than the one before."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._changes = bytearray()

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        for record in records:
            self._changes += record.payload
        self._summary = zlib.compress(self._changes)


@animal(caught_by="EngineContract.test_a_long_history_makes_nothing_dearer")
class RemembersEachOpening(MemoryEngine):
    """An opening looks through a file to which each transaction adds a line, for statistics that nobody reads. It takes
    a moment at first, and minutes after a year."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        with (self._directory.parent / "statistics").open("a") as file:
            file.writelines(f"{record.txid}\n" for record in records)

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        statistics = directory.parent / "statistics"
        for line in statistics.read_text().split() if statistics.exists() else ():
            int(line)
        return super().open(directory, context, **how)


@animal(caught_by="EngineContract.test_a_large_state_costs_at_most_in_proportion")
class ComparesEachWithEach(MemoryEngine):
    """Before a checkpoint writes a key, it looks for it in the list of those that it has written, since a key that
    stands there twice once did harm. With a million keys a checkpoint takes days."""

    def checkpoint(self, upto: Position) -> Position:
        written: list[bytes] = []
        for key in self._state:
            assert key not in written
            written.append(key)
        return super().checkpoint(upto)


@animal(caught_by="EngineContract.test_a_large_state_costs_at_most_in_proportion")
class SortsByHand(MemoryEngine):
    """A view puts the keys in order, by inserting each in its place behind those that are smaller."""

    def view(self) -> MemoryView:
        ordered: list[bytes] = []
        for key in self._state:
            at = len(ordered)
            while at and ordered[at - 1] > key:
                at -= 1
            ordered.insert(at, key)
        return MemoryView({key: self._state[key] for key in ordered}, self._applied.txid)


# --- files ---------------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_the_files_stay_as_large_as_the_state")
class KeepsEachCheckpoint(MemoryEngine):
    """Each checkpoint also goes to a file of its own, by which it can be found again. Nobody removes the older ones,
    and a disk that was bought for years is full in weeks."""

    def checkpoint(self, upto: Position) -> Position:
        reached = super().checkpoint(upto)
        data = self._env.files.read(self._directory / "state")
        self._env.files.write_durably(self._directory / f"state-{reached.txid}", data)
        return reached


@animal(caught_by="EngineContract.test_crashed_checkpoints_leave_no_files_behind")
class LeavesWhatItBegan(MemoryEngine):
    """A checkpoint writes beside the state, under the transaction's number, so that two never meet, and then renames.
    If it crashes in between, the next one has another number, and nobody knows of the file any more."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            super().checkpoint(upto)
            beside = self._directory / f"new-{self._applied.txid}"
            self._env.files.write_durably(beside, self._env.files.read(self._directory / "state"))
            self._env.files.rename(beside, self._directory / "state")
            self._env.files.sync_directory(self._directory)
        return self._position


@animal(caught_by="EngineContract.test_a_read_only_opening_changes_no_byte")
class TriesWhetherItMayWrite(SqliteEngine):
    """Every opening makes a file and removes it, to find out whether the directory can be written. A read-only one does
    so too: it fails on a read-only file system, and whoever watches the directory sees changes."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        (directory / "probe").touch()
        (directory / "probe").unlink()
        return super().open(directory, context, **how)


@animal(caught_by="EngineContract.test_an_image_names_all_that_a_copy_needs")
class ForgetsItsCatalog(MemoryEngine):
    """A second file, without which it does not open, was added in a later version. The image names the first one only,
    so that no backup can be restored."""

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        super().create(directory, position, context)
        context.env.files.write_durably(directory / "catalog", msgpack.packb({}))

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        context.env.files.read(directory / "catalog")
        return super().open(directory, context, **how)


# --- memory and descriptors ----------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_what_is_closed_gives_its_memory_back")
class KnowsAllItsViews(MemoryEngine):
    """It keeps a list of its views, to close them when it is closed, and a view that was closed stays in the list. A
    service that reads a thousand times a second is ended by the system after a day."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._views: list[MemoryView] = []

    def view(self) -> MemoryView:
        self._views.append(super().view())
        return self._views[-1]


@animal(caught_by="EngineContract.test_what_is_closed_gives_its_memory_back")
class KnowsAllItsTransactions(MemoryEngine):
    """Transactions are numbered in a dictionary when they begin, and taken out of it when they are applied. Those that
    are rolled back stay in it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._begun: dict[int, MemoryTransaction] = {}
        self._number = 0

    def begin(self) -> MemoryTransaction:
        self._number += 1
        self._begun[self._number] = super().begin()
        return self._begun[self._number]

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        self._begun.pop(self._number, None)


@animal(caught_by="EngineContract.test_a_refused_opening_leaves_nothing")
class OpensBeforeItLooks(MemoryEngine):
    """An opening takes a descriptor first, and then looks whether the state is one that it can read. If it is not, the
    descriptor is forgotten. A monitor that tries to open it every second runs out of descriptors in a quarter of an
    hour."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        held = os.open(directory, os.O_RDONLY)
        engine = super().open(directory, context, **how)
        os.close(held)
        return engine


class Holding(MemoryEngine):
    """Holds its directory open. Healthy, and what the animals below are made from."""

    _held = -1

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        if isinstance(context.env.files, type(Context().env.files)):  # and not a simulated disk
            engine._held = os.open(directory, os.O_RDONLY)
        return engine

    def close(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


@animal(caught_by="EngineContract.test_no_descriptor_goes_to_other_programs")
class LendsItsDescriptor(Holding):
    """It opens its directory by way of `dup2`, which makes a descriptor that programs inherit. A program that the
    application has started holds the directory open, days after the store was closed and moved away."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        if engine._held >= 0:
            os.set_inheritable(engine._held, True)
        return engine


@animal(caught_by="EngineContract.test_closing_again_closes_nothing_of_others")
class ClosesTwice(Holding):
    """Closing does not forget the number of the descriptor. An application that closes once in its own code and once at
    its exit closes a socket of another thread the second time."""

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._held)


@animal(caught_by="EngineContract.test_closing_again_closes_nothing_of_others")
class ImageClosesTwice(MemoryEngine):
    """An image that is closed by the lease, and then by whoever took it, closes a file of somebody else."""

    def image(self) -> Image:
        return BareImage(self._env, self._directory, ("state",), self._position)


class BareImage(FileImage):
    def close(self) -> None:
        for file in self._held.values():
            with suppress(OSError):
                os.close(file.fileno())
