"""Animals whose durable state is not where they say, or not durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgpack
from staging_memory import StagingMemory
from workloads import keyed
from zoo import animal

from holdfast.engine.builtin import memory
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.image import Image
from holdfast.engine.contract.options import Option
from holdfast.engine.env import Env, File, Files
from holdfast.engine.errors import Damaged
from holdfast.engine.model.positions import Position, origin
from holdfast.engine.model.records import Record
from holdfast.engine.testing import Workload
from holdfast.engine.toolkit import state_file
from holdfast.engine.toolkit.file_image import FileImage
from holdfast.engine.toolkit.state_file import read_state, write_state


class Scratch(Files):
    """Collects a file's bytes, so that an animal can write them its own way."""

    def write_durably(self, path: Path, data: bytes) -> None:
        self.data = data


def encoded(engine: Any, position: Position, state: Mapping[bytes, bytes]) -> bytes:
    """The bytes of a memory engine's state file."""
    files = Scratch()
    context = replace(engine._context, env=Env(files=files))
    write_state(context, Path("state"), memory._MAGIC, engine.state_format, position, msgpack.packb(state))
    return files.data


# --- positions -----------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_the_position_is_true")
class StalePosition(MemoryEngine):
    """A checkpoint writes the newest state beside the position of the one before. It calls itself atomic, so nobody
    would replay what it does not tell of; whoever does applies twice."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            data = encoded(self, self._position, self._state)
            self._env.files.write_durably(self._directory / "state", data)
            self._position, self._pending = self._applied, 0
        return self._position


@animal(caught_by="EngineContract.test_a_state_says_whose_it_is")
class Anyones(MemoryEngine):
    """It makes contexts of its own, from what it needs of the kit's, and so its state does not say of which store it
    is. The image of another store, under right checksums, would be taken for its own."""

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        super().create(directory, position, Context(context.env, context.options))

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        return super().open(directory, Context(context.env, context.options), **how)


@animal(caught_by="EngineContract.test_a_state_of_another_format_is_refused")
class ReadsAnyFormat(MemoryEngine):
    """It writes the version of its format, and reads whatever stands there. As long as there is only one, nobody
    notices; the second takes the first for damage, or for content that it never was."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        data = context.env.files.read(directory / "state")
        found = state_file._HEAD.unpack_from(data)[1]
        as_found: Any = type("AsFound", (MemoryEngine,), {"state_format": found})
        engine = as_found.open(directory, context, **how)
        engine.__class__ = cls
        return engine


@animal(caught_by="EngineContract.test_a_store_stays_where_it_was_opened")
class KeepsARelativePath(MemoryEngine):
    """It keeps its directory relative to that of the process, so that messages are short. A daemon changes its own, and
    the next checkpoint goes into the store to which the same path leads there: both are lost."""

    def __init__(self, directory: Path, *more: Any) -> None:
        super().__init__(Path(os.path.relpath(directory)), *more)


@animal(caught_by="EngineContract.test_the_position_is_true")
class ClaimsMore(MemoryEngine):
    """A checkpoint writes what it began to collect one transaction ago, and claims what has been applied since."""

    _before: Mapping[bytes, bytes] = {}

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records[:-1])
        self._before = dict(self._state)
        super().apply(records[-1:])

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            newest, self._state = self._state, dict(self._before)
            super().checkpoint(upto)
            self._state = newest
        return self._position


@animal(caught_by="EngineContract.test_the_position_is_true")
class ShortCheckpoint(MemoryEngine):
    """A checkpoint returns before it has reached what it was asked for, because much else is to do: it makes one in
    two. The kit would prune log that is still needed."""

    _asked = 0

    def checkpoint(self, upto: Position) -> Position:
        self._asked += 1
        return super().checkpoint(upto) if self._asked % 2 else self._position


@animal(caught_by="EngineContract.test_what_is_staged_shows_only_to_writers")
class WritesStaged(StagingMemory):
    """A checkpoint writes the newest state, staged transactions included: if their sync fails, the state on disk is
    ahead of the log for ever."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            state, reached = self._newest[0], self._published[1]
            write_state(self._context, self._directory / "state", b"TESTSTAG", 1, reached, msgpack.packb(state))
            self._position, self._pending = reached, 0
        return self._position


@animal(caught_by="EngineContract.test_the_position_is_true")
class CutsLargeValues(MemoryEngine):
    """The field for a value's length on disk has eleven bits. In memory the value is whole, until the store is
    opened the next time."""

    def checkpoint(self, upto: Position) -> Position:
        whole = self._state
        self._state = {key: value[: len(value) % 2048] for key, value in whole.items()}
        try:
            return super().checkpoint(upto)
        finally:
            self._state = whole


@animal(caught_by="EngineContract.test_only_a_checkpoint_moves_the_position")
class PositionInMemory(MemoryEngine):
    """The position is that of what is applied, not of what is durable: log is pruned that the next opening needs."""

    @property
    def position(self) -> Position:
        return self._applied


@animal(caught_by="EngineContract.test_a_checkpoint_frees_what_waits_for_it")
class NeverFreed(MemoryEngine):
    """What a checkpoint has written is not taken off what waits for one: the kit checkpoints without end, and at last
    lets no commit through."""

    def checkpoint(self, upto: Position) -> Position:
        pending = self._pending
        reached = super().checkpoint(upto)
        self._pending = pending
        return reached


@animal(caught_by="EngineContract.test_a_checkpoint_frees_what_waits_for_it")
class NeverWaits(MemoryEngine):
    """How much waits for a checkpoint was to be counted later. The kit is told that nothing does, starts none, and
    memory and log grow until the process ends."""

    def pending_bytes(self) -> int:
        return 0


@animal(caught_by="EngineContract.test_a_read_only_opening_replays_in_memory")
class CheckpointsByItself(MemoryEngine):
    """A replay of many records checkpoints by itself, to save memory, also where it is open read-only."""

    def apply(self, records: Sequence[Record]) -> None:
        super().apply(records)
        if len(records) > 1:
            self.checkpoint(self._applied)


@animal(caught_by="EngineContract.test_writers_and_readers_beside_a_checkpoint")
class ForgetsWhatCameMeanwhile(RecordsEngine):
    """When a checkpoint has written what it had collected, it drops all that waited, with what came while it wrote. The
    log's own retention then loses it for good."""

    def checkpoint(self, upto: Position) -> Position:
        moved = upto.txid > self._position.txid
        reached = super().checkpoint(upto)
        if moved:
            self._cells._dirty.clear()
        return reached


@animal(caught_by="EngineContract.test_closing_lets_go")
class LeakedDescriptor(MemoryEngine):
    """An opening keeps the state file open and a closing forgets it: after some thousand reopenings nothing can be
    opened any more."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        engine._held = context.env.files.open(directory / "state")  # type: ignore[attr-defined]
        return engine


@animal(caught_by="EngineContract.test_the_engine_says_what_it_is")
class BareOption(MemoryEngine):
    """It declares its option by the default alone. Whoever opens it without options meets no error; whoever sets the
    option gets an `AttributeError`."""

    options: ClassVar[Any] = {"encryption": False}


@animal(caught_by="EngineContract.test_a_read_only_opening_changes_no_byte")
class WritesWhenReadOnly(MemoryEngine):
    """A read-only opening notes when it was: a backup that was only looked at is not the same any more, and one on
    a read-only medium cannot be looked at."""

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, **how: Any) -> Any:
        if read_only:
            now = b"%d" % context.env.clock.now_us()
            context.env.files.write_durably(directory / "last-read", now)
        return super().open(directory, context, read_only=read_only, **how)


@animal(caught_by="EngineContract.test_a_read_only_opening_changes_no_byte")
class ReadsWhatWasClosed(MemoryEngine):
    """A checkpoint goes into a second file, which closing, or the next opening for writing, merges: a library's log of
    its own. A read-only opening merges nothing, and after a kill shows the state of long ago."""

    def checkpoint(self, upto: Position) -> Position:
        write_state(self._context, self._directory / "state.log", memory._MAGIC, 1, self._applied,
                    memory._pack(self._state))
        self._position = self._applied
        return self._position

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, **how: Any) -> Any:
        if not read_only:
            merge(directory, context)
        return super().open(directory, context, read_only=read_only, **how)

    def image(self) -> Image:
        merge(self._directory, self._context)
        return super().image()

    def close(self) -> None:
        merge(self._directory, self._context)


def merge(directory: Path, context: Context) -> None:
    if context.env.files.exists(directory / "state.log"):
        context.env.files.rename(directory / "state.log", directory / "state")
        context.env.files.sync_directory(directory)


@animal(caught_by="EngineContract.test_what_the_disk_refuses_is_no_damage")
class CallsItDamage(MemoryEngine):
    """Whatever keeps it from reading its state is damage to it: a limit of the process, a cable that was pulled. The
    operator restores last night's backup over a state that is whole."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        try:
            return super().open(directory, context, **how)
        except OSError as error:
            raise Damaged(f"cannot be read: {error}", path=str(directory)) from error


def put_beside(engine: Any, name: str = "state.new") -> File:
    """The newest state in a new file beside the state file, not synced."""
    files, path = engine._env.files, engine._directory / name
    files.unlink(path, missing_ok=True)
    file: File = files.open(path, "create")
    file.pwrite(encoded(engine, engine._applied, engine._state), 0)
    return file


class TwoFiles(MemoryEngine):
    """Healthy: a checkpoint takes the place of the older of two state files, and an opening takes the newer one."""

    _current = "a"

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        for name in ("a", "b"):
            write_state(context, directory / name, memory._MAGIC, 1, position, msgpack.packb({}))

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Any:
        found: list[tuple[int, str, Position, bytes]] = []
        for name in ("a", "b"):
            with contextlib.suppress(Damaged):
                position, body = read_state(context, directory / name, memory._MAGIC, 1)
                found.append((position.txid, name, position, body))
        if not found:
            raise Damaged("neither of the two files holds a state", path=str(directory))
        _, name, position, body = max(found)
        if not read_only:  # a killed process may have left it in the page cache only
            file = context.env.files.open(directory / name, "write")
            file.sync()
            file.close()
            context.env.files.sync_directory(directory)
        engine = cls(directory, context, msgpack.unpackb(body), at or position)
        engine._current = name
        return engine

    def next_file(self) -> str:
        return "b" if self._current == "a" else "a"

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            name = self.next_file()
            file = put_beside(self, name)
            file.sync()
            file.close()
            self._env.files.sync_directory(self._directory)
            self._current, self._position, self._pending = name, self._applied, 0
        return self._position

    def image(self) -> Image:
        return FileImage(self._env, self._directory, [self._current], self._position)


@animal(caught_by="ReplayContract.test_redo_converges_after_every_power_cut")
class FileByParity(TwoFiles):
    """Which of two state files a checkpoint replaces depends on whether the transaction's number is odd or even, so it
    may be the newer one. A power cut then takes back a checkpoint that had returned, and the log that led to it may be
    pruned."""

    def next_file(self) -> str:
        return "b" if self._applied.txid % 2 else "a"


@animal(caught_by="EngineContract.test_a_flipped_byte_in_the_state_is_found")
class TrustsItsFile(MemoryEngine):
    """The state file has a checksum, and an opening does not compare it: what the disk made of the bytes is what the
    store shows."""

    @classmethod
    def open(cls, directory: Path, context: Context, *, at: Position | None = None, **how: Any) -> Any:
        try:
            data = context.env.files.read(directory / "state")
            state = msgpack.unpackb(data[48:-16])
        except (OSError, ValueError) as error:
            raise Damaged(f"cannot be read: {error}") from error
        position = Position(int.from_bytes(data[16:24], "little"), data[24:40])
        return cls(directory, context, state, at or position)


# --- openings --------------------------------------------------------------------------------------------------------


@animal(caught_by="EngineContract.test_a_state_that_is_gone_does_not_open")
class EmptyIfGone(MemoryEngine):
    """A state that is not there is made, as `sqlite3.connect` makes a database. One day a disk is not mounted, and a
    service goes on with nothing."""

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        if not context.env.files.exists(directory / "state"):
            cls.create(directory, origin(context.store_id), context)
        return super().open(directory, context, **how)


@animal(caught_by="EngineContract.test_numbers_may_be_large")
class NumbersOf32Bits(MemoryEngine):
    """The number of a transaction has 32 bits in the file. At ten thousand a second, that is enough for five days."""

    def checkpoint(self, upto: Position) -> Position:
        applied = self._applied
        self._applied = Position(applied.txid & 0xFFFFFFFF, applied.chain)
        super().checkpoint(upto)
        self._applied = applied
        self._position = applied if upto.txid > self._position.txid else self._position
        return self._position

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        return super().open(directory, context, **how)


def chosen() -> Workload:
    return keyed(CipheredByOption, tiny={"key": 3})


@animal(caught_by="EngineContract.test_options_may_be_others_at_each_opening", on=chosen)
class CipheredByOption(MemoryEngine):
    """Values are written with what an option says, and read with what it says then. Nothing in the file remembers."""

    options: ClassVar[Mapping[str, Option]] = {"key": Option(0, "what bytes are changed with", least=0, most=255)}

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        engine._state = ciphered(engine._state, context)
        return engine

    def checkpoint(self, upto: Position) -> Position:
        kept, self._state = self._state, ciphered(self._state, self._context)
        reached = super().checkpoint(upto)
        self._state = kept
        return reached


def ciphered(state: Mapping[bytes, bytes], context: Context) -> dict[bytes, bytes]:
    return {key: bytes(byte ^ context.options["key"] for byte in value) for key, value in state.items()}


@animal(caught_by="EngineContract.test_many_transactions_lose_nothing")
class TwoDigits(MemoryEngine):
    """Each checkpoint has a file, by its number with two digits, and the one whose name is the last counts. The last
    two are kept, and the hundredth stands before the 99th."""

    made: int

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        names = [name for name in context.env.files.list(directory) if name.startswith("state-")]
        if names:
            context.env.files.write_durably(directory / "state", context.env.files.read(directory / names[-1]))
        engine = super().open(directory, context, **how)
        engine.made = int(names[-1][6:]) if names else 0
        return engine

    def checkpoint(self, upto: Position) -> Position:
        files, before = self._env.files, self._position
        if super().checkpoint(upto) != before:
            self.made += 1
            files.write_durably(self._directory / f"state-{self.made:02}", files.read(self._directory / "state"))
            files.unlink(self._directory / f"state-{self.made - 2:02}", missing_ok=True)
        return self._position
