"""Animals that are wrong about their files: when they write them, what they name them, what they leave and what they
take damage for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
from zoo import animal

from holdfast.engine.builtin import memory
from holdfast.engine.builtin.inplace import records
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.image import Image
from holdfast.engine.errors import Damaged, DiskFull
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.toolkit.file_image import FileImage
from holdfast.engine.toolkit.keyed_transaction import changes_of
from holdfast.engine.toolkit.state_file import read_state, write_state

# --- checkpoints ---------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_a_checkpoint_without_room_can_be_made_later")
class SaysItTooEarly(RecordsEngine):
    """A checkpoint moves the position, and then writes the file that says it. If the disk is full at just that moment,
    after several writes that went well, the engine takes itself for checkpointed. It tries no more, and the log
    is pruned."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            self._position = self._cells.write_back()
            path = self._directory / records._POSITION
            write_state(self._context, path, records._POSITION_MAGIC, self.state_format, self._position, b"")
        return self._position


@animal(caught_by="EngineContract.test_a_kill_in_a_checkpoint_tears_nothing")
class RowsBeforeTheirPosition(SqliteEngine):
    """Rows are written in one transaction of the library, and the position in the next. The time between is so short
    that no test that kills by the clock ever hits it. Whoever replays from that position applies twice."""

    def _write(self, changes: Any, position: Position) -> None:
        super()._write(changes, self._position)
        super()._write({}, position)


@animal(caught_by="EngineContract.test_a_checkpoint_without_room_leaves_nothing_open")
class KeepsWhatFailed(MemoryEngine):
    """A checkpoint tries whether there is room before it begins. If there is none, it says so, and the file that it
    tried with stays open. After a night with a full disk the process has no descriptor left, and nobody can log in."""

    def checkpoint(self, upto: Position) -> Position:
        room = self._directory / "room"
        self._env.files.unlink(room, missing_ok=True)
        file = self._env.files.open(room, "create")
        try:
            file.pwrite(bytes(4096), 0)
        except OSError as error:
            raise DiskFull("no room for a checkpoint") from error
        file.close()
        return super().checkpoint(upto)


@animal(caught_by="EngineContract.test_a_clock_that_is_set_back_hides_nothing")
class NewestByTheClock(MemoryEngine):
    """Each checkpoint writes a file that is named by the time, and an opening takes the last one. Then the machine's
    clock, which was a minute ahead, is set right, and what the next checkpoints write is not looked at."""

    @classmethod
    def open(cls, directory: Path, context: Context, *, at: Position | None = None, **how: Any) -> Any:
        newest = max(context.env.files.list(directory))
        position, body = read_state(context, directory / newest, memory._MAGIC, cls.state_format)
        return cls(directory, context, msgpack.unpackb(body), at or position)

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            path = self._directory / f"state-{self._env.clock.now_us():020}"
            packed = msgpack.packb(self._state)
            write_state(self._context, path, memory._MAGIC, self.state_format, self._applied, packed)
            self._position, self._pending = self._applied, 0
        return self._position


@animal(caught_by="EngineContract.test_the_files_stay_as_large_as_the_state")
class MovesItsLogWhenClosed(SqliteEngine):
    """The log that SQLite keeps is moved into its file when the engine is closed, as SQLite does by itself. A test
    closes an engine every second, and a server once a year: until then the log has each value that there ever was."""

    def _tidy(self) -> None: ...


# --- openings ------------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_a_read_only_opening_changes_no_byte",
        also=["EngineContract.test_a_read_only_opening_replays_in_memory"])
class OpensAllToWrite(MemoryEngine):
    """It opens its file to write to it, whatever it is opened for, and only reads then. All goes well for root, and not
    on a disk that is mounted read-only, which is where one looks at what is left of a store."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        context.env.files.open(directory / "state", "write").close()
        return super().open(directory, context, **how)


@animal(caught_by="EngineContract.test_a_state_of_another_format_is_refused")
class TidiesFirst(MemoryEngine):
    """An opening first removes the files that it does not know, and then reads the format. A release is tried, does not
    please, and the one before is started once more: it says that it cannot read this, and has removed half of it."""

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, **how: Any) -> Any:
        for name in () if read_only else context.env.files.list(directory):
            if name != "state":
                context.env.files.unlink(directory / name)
        return super().open(directory, context, read_only=read_only, **how)


# --- images --------------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_an_image_outlives_its_files")
class NamedByItsTransaction(MemoryEngine):
    """What an image has of its own stands in a directory that is named by the transaction. If two backups begin at one
    transaction, the second fails, and takes the files of the first one with it."""

    def image(self) -> Image:
        return FileImage.copied(self._env, self._directory / f"image-{self._position.txid}", self._linked)

    def _linked(self, place: Path) -> Position:
        self._env.files.make_directory(place)
        self._env.files.link(self._directory / "state", place / "state")
        return self._position


@animal(caught_by="EngineContract.test_a_checkpoint_without_room_can_be_made_later")
class HoldsWhatGrows(MemoryEngine):
    """An image holds a file that is only appended to, so what is there does not change. But what a checkpoint without
    room has appended is written over by the next one, and an image that was made between the two has it."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            packed = msgpack.packb(self._state)
            self._grown().pwrite(packed, self._end)
            super().checkpoint(upto)
            self._end += len(packed)
        return self._position

    _end = 0

    def _grown(self) -> Any:
        path = self._directory / "grown"
        return self._env.files.open(path, "write" if self._env.files.exists(path) else "create")

    def image(self) -> Image:
        return FileImage(self._env, self._directory, self._env.files.list(self._directory), self._position)


# --- damage --------------------------------------------------------------------------------------------------------


class Unsealed:
    """Values under their checksums, each of which is looked at when it is read."""

    def __init__(self, engine: type[Sealed], sealed: Mapping[bytes, bytes]) -> None:
        self._seal, self._sealed = engine.sealed, sealed

    def get(self, key: bytes) -> bytes | None:
        sealed = self._sealed.get(key)
        if sealed is not None and self._seal(key, sealed[4:]) != sealed:
            raise Damaged(f"the value of {key!r:.80} does not match its checksum", path="values")
        return None if sealed is None else sealed[4:]

    def items(self) -> Iterator[tuple[bytes, bytes | None]]:
        return ((key, self.get(key)) for key in self._sealed)


class Sealed(MemoryEngine):
    """The memory engine, with its values one behind the other in a file, each with a checksum of its own. `state` has
    how long each is."""

    @staticmethod
    def sealed(key: bytes, value: bytes) -> bytes:
        return zlib.crc32(key + value).to_bytes(4, "big") + value

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        super().create(directory, position, context)
        context.env.files.open(directory / "values", "create").close()

    @classmethod
    def open(cls, directory: Path, context: Context, *, at: Position | None = None, **how: Any) -> Any:
        position, body = read_state(context, directory / "state", memory._MAGIC, cls.state_format)
        data, begins, state = context.env.files.read(directory / "values"), 0, {}
        for key, size in msgpack.unpackb(body).items():
            state[key] = data[begins : begins + size]
            begins += size
        return cls(directory, context, state, at or position)

    def begin(self) -> MemoryTransaction:
        return MemoryTransaction(Unsealed(type(self), self._state))

    def apply(self, records: Sequence[Record]) -> None:
        changes = {key: value for record in records for key, value in changes_of(record)}
        written = {key: self.sealed(key, value) for key, value in changes.items() if value is not None}
        kept = {key: sealed for key, sealed in self._state.items() if key not in changes}
        self._state, self._applied = kept | written, records[-1].position

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            self._env.files.write_durably(self._directory / "values", b"".join(self._state.values()))
            sizes = msgpack.packb({key: len(value) for key, value in self._state.items()})
            write_state(self._context, self._directory / "state", memory._MAGIC, 1, self._applied, sizes)
            self._position = self._applied
        return self._position

    def view(self) -> MemoryView:
        unsealed: Any = Unsealed(type(self), self._state)
        return MemoryView(unsealed, self._applied.txid)


class NotThere(MemoryView):
    def get(self, key: bytes) -> bytes | None:
        try:
            return super().get(key)
        except Damaged:
            return None


@animal(caught_by="EngineContract.test_a_flipped_byte_in_the_state_is_found",
        also=["EngineContract.test_a_mutated_store_shows_nothing_else"])
class DamagedIsNotThere(Sealed):
    """A look-up that finds a wrong checksum says that there is no such key: `check` tells of it, after all. The
    application takes the customer for a new one, and writes over what a backup could have given back."""

    def view(self) -> MemoryView:
        unsealed: Any = Unsealed(type(self), self._state)
        return NotThere(unsealed, self._applied.txid)


@animal(caught_by="EngineContract.test_a_record_in_the_place_of_another_is_found")
class SealsTheValueAlone(Sealed):
    """Each value has a checksum, and that covers the value and nothing else. A disk that writes it to the place of
    another, as some do, makes it the value of that other key, under a checksum that is right."""

    @staticmethod
    def sealed(key: bytes, value: bytes) -> bytes:
        return zlib.crc32(value).to_bytes(4, "big") + value
