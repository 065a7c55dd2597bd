"""Animals that do not survive a crash, or a disk that fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from zoo import animal
from zoo_states import encoded, put_beside

from holdfast.engine.builtin import memory
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.env import File
from holdfast.engine.errors import Damaged, DiskFull
from holdfast.engine.model.positions import Position
from holdfast.engine.toolkit.state_file import read_state, write_state


def take_its_place(engine: Any) -> None:
    """Give the new file the state file's name, which is not durable yet."""
    engine._env.files.rename(engine._directory / "state.new", engine._directory / "state")
    engine._position, engine._pending = engine._applied, 0


@animal(caught_by="EngineContract.test_a_killed_process_loses_nothing_acknowledged")
class MarkedAsCrashed(MemoryEngine):
    """While the state is open a mark stands beside it, and with the mark there it does not open: "marked as crashed and
    should be repaired", as MyISAM said. Nothing is lost, and nothing can be had."""

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, **how: Any) -> Any:
        files, mark = context.env.files, directory / "open"
        if files.exists(mark):
            raise Damaged("is marked as crashed and should be repaired", path=str(mark))
        engine = super().open(directory, context, read_only=read_only, **how)
        if not read_only:
            files.write_durably(mark, b"")
        return engine

    def close(self) -> None:
        self._env.files.unlink(self._directory / "open", missing_ok=True)


@animal(caught_by="EngineContract.test_a_power_cut_anywhere_leaves_a_prefix")
class UnsyncedState(MemoryEngine):
    """The new state takes the place of the old one and was never synced. After a power cut the file has its name, and
    any part of its bytes: empty files on XFS and ext4, for many a program."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            put_beside(self).close()
            take_its_place(self)
            self._env.files.sync_directory(self._directory)
        return self._position


@animal(caught_by="EngineContract.test_a_power_cut_anywhere_leaves_a_prefix")
class SyncedTooLate(MemoryEngine):
    """The new state takes the place of the old one and is synced then. For a moment neither is safe."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            file = put_beside(self)
            take_its_place(self)
            self._env.files.sync_directory(self._directory)
            file.sync()
            file.close()
        return self._position


@animal(caught_by="EngineContract.test_a_power_cut_anywhere_leaves_a_prefix")
class UnsyncedName(MemoryEngine):
    """The state file is synced, and the directory that names it is not. After a power cut the old state is back, and
    the log that led from it to the new one is pruned."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            file = put_beside(self)
            file.sync()
            file.close()
            take_its_place(self)
        return self._position


@animal(caught_by="EngineContract.test_a_power_cut_anywhere_leaves_a_prefix")
class WrittenInPlace(MemoryEngine):
    """The state file is overwritten in place. It calls itself atomic, and after a power cut in between it holds half of
    each."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            data = encoded(self, self._applied, self._state)
            file = self._env.files.open(self._directory / "state", "write")
            file.pwrite(data, 0)
            file.truncate(len(data))
            file.sync()
            file.close()
            self._position, self._pending = self._applied, 0
        return self._position


@animal(caught_by="ReplayContract.test_redo_converges_after_every_power_cut")
class AtomicByHalves(MemoryEngine):
    """The state is in one file and its position in another. Each is replaced at one stroke, so it calls itself atomic,
    and the two are not: a crash in between leaves a state that is ahead of what it says it is. Redo would mend it, and
    who opens an atomic state need not redo."""

    @classmethod
    def open(cls, directory: Path, context: Context, *, at: Position | None = None, **how: Any) -> Any:
        path = directory / "position"
        if at is None and context.env.files.exists(path):
            at, _ = read_state(context, path, memory._MAGIC, 1)
        return super().open(directory, context, at=at, **how)

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            data = encoded(self, self._applied, self._state)
            self._env.files.write_durably(self._directory / "state", data)
            write_state(self._context, self._directory / "position", memory._MAGIC, 1, self._applied, b"")
            self._position, self._pending = self._applied, 0
        return self._position


@animal(caught_by="EngineContract.test_a_power_cut_in_recovery_takes_nothing_back")
class PositionFirst(RecordsEngine):
    """A checkpoint notes the position, then writes the records that it stands for. A crash in between leaves a position
    ahead of its state, and redo begins too late."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            write_state(self._context, self._directory / "position", b"HFRECPOS", 1, self._cells.head, b"")
        return super().checkpoint(upto)


@animal(
    caught_by="EngineContract.test_a_kill_and_then_a_power_cut",
    also=["EngineContract.test_power_cuts_in_any_history", "ReplayContract.test_redo_converges_after_every_power_cut"])
class UnsyncedRecords(RecordsEngine):
    """The records are written and not synced before the position is: the page cache has them, a power cut does
    not."""

    class Unsynced:
        def __init__(self, file: File) -> None:
            self._file = file

        def datasync(self) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        engine = super().open(directory, context, **how)
        engine._cells._files = [cls.Unsynced(file) for file in engine._cells._files]  # type: ignore[misc]
        return engine


@animal(caught_by="EngineContract.test_a_checkpoint_without_room_can_be_made_later")
class ForgottenRoom(MemoryEngine):
    """The position moves before the state is written. When there is no room the caller is told so, tries again later,
    and is then told that there is nothing to do."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            self._position = self._applied
            data = encoded(self, self._applied, self._state)
            self._env.files.write_durably(self._directory / "state", data)
            self._pending = 0
        return self._position


@animal(caught_by="EngineContract.test_a_checkpoint_without_room_can_be_made_later")
class SwallowsErrors(MemoryEngine):
    """A checkpoint that fails counts as made: its error is caught where nobody knows what to do about it. The log that
    would mend it is pruned."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            with contextlib.suppress(OSError, DiskFull):
                super().checkpoint(upto)
            self._position, self._pending = self._applied, 0
        return self._position


@animal(caught_by="EngineContract.test_a_failing_disk",
        also=["EngineContract.test_running_out_of_descriptors_or_memory"])
class SyncsAgain(RecordsEngine):
    """A sync that failed is tried again and then succeeds, because the kernel has marked the pages clean. They never
    reached the disk: PostgreSQL and others did this for twenty years."""

    def checkpoint(self, upto: Position) -> Position:
        try:
            return super().checkpoint(upto)
        except DiskFull:
            raise
        except OSError:
            for file in self._cells._files:
                file.datasync()
            self._cells._dirty.clear()
            return super().checkpoint(upto)
