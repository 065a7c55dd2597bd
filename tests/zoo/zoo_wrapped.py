"""Animals around a database of somebody else: SQLite, RocksDB, LMDB."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from zoo import animal, part

from holdfast.engine.builtin.graph.checkpoint import dismantle
from holdfast.engine.builtin.graph.engine import GraphEngine
from holdfast.engine.builtin.graph.image import LmdbImage
from holdfast.engine.builtin.graph.overlay import Layer
from holdfast.engine.builtin.wrapped.overlay import Overlay, encode_state
from holdfast.engine.builtin.wrapped.rocksdb import _MAGIC, _POSITION, RocksEngine, _rocksdict
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine, SqliteSnapshot
from holdfast.engine.env.pace import Pace
from holdfast.engine.model.positions import Position
from holdfast.engine.toolkit.checksums import SEAL, Sealer


@animal(caught_by="EngineContract.test_a_held_view_stays_the_same")
class ReadsWithoutTransaction(SqliteEngine):
    """A view's reads are each a transaction of their own. Between two of them a checkpoint moves the rows under
    what the view lays over them."""

    def _snapshot(self) -> SqliteSnapshot:
        snapshot = super()._snapshot()
        snapshot._connection.execute("COMMIT")
        return snapshot


class Unsealed(Sealer):
    """Opens anything."""

    def opened(self, key: bytes, sealed: bytes) -> bytes:
        return sealed[:-SEAL]


@animal(caught_by="EngineContract.test_a_mutated_store_shows_nothing_else")
class TrustsItsLibrary(SqliteEngine):
    """What the library reads is taken for what was written. It has no checksums of its own, so a bit that has flipped
    on the disk is a balance that was never written, and each backup of it is said to be verified."""

    def _snapshot(self) -> SqliteSnapshot:
        snapshot = super()._snapshot()
        snapshot._sealer = Unsealed("pairs", 0, self._path)
        return snapshot


@animal(caught_by="EngineContract.test_an_image_is_what_it_is_declared_to_be",
        also=["BackupContract.test_a_whole_life_with_backups"])
class CopiesTheFileAlone(SqliteEngine):
    """The image is the database file, without the log that SQLite keeps beside it. Most of the time that log is empty,
    and then a copy is right."""

    def _copy(self, place: Path) -> Position:
        self._env.files.make_directory(place)
        shutil.copy(self._path, place)
        return self._position

    def _tidy(self) -> None: ...


@animal(caught_by="EngineContract.test_the_position_is_true", also=["EngineContract.test_what_is_closed_is_clean"])
class PositionOutside(SqliteEngine):
    """The position is in a file of its own beside the database, because another tool reads it, and a copy of the
    database says what it said when it was made."""

    def _write(self, changes: Overlay, position: Position) -> None:
        super()._write(changes, self._position)
        (self._directory / "position").write_text(f"{position.txid} {position.chain.hex()}")


@animal(caught_by="EngineContract.test_what_a_checkpoint_writes_is_synced")
class LeavesItToTheSystem(SqliteEngine):
    """The library is told not to sync, which makes it ten times as fast. Nothing is ever lost, whatever is killed,
    until the power fails."""

    def _write(self, changes: Overlay, position: Position) -> None:
        assert self._writer is not None
        self._writer.execute("PRAGMA synchronous = OFF")
        super()._write(changes, position)


@animal(caught_by="EngineContract.test_closing_lets_go")
class KeepsItsConnection(SqliteEngine):
    """Closing leaves the connection that writes to the garbage collector, which comes when it likes."""

    kept: list[sqlite3.Connection | None] = []

    def _close(self) -> None:
        self.kept.append(self._writer)


@animal(caught_by="EngineContract.test_the_position_is_true")
class WrittenToMemory(RocksEngine):
    """A checkpoint writes to RocksDB without its log and does not flush: what it calls written is in its memory
    table."""

    def _write(self, changes: Overlay, position: Position) -> None:
        batch, unlogged = _rocksdict().WriteBatch(raw_mode=True), _rocksdict().WriteOptions()
        unlogged.disable_wal = True
        for key, value in changes.items():
            batch.delete(key) if value is None else batch.put(key, value)
        batch.put(_POSITION, encode_state(self._context, _MAGIC, self.state_format, position))
        self._database.write(batch, unlogged)


@part("holdfast.engine.builtin.graph.engine.let_go", caught_by="EngineContract.test_a_held_view_stays_the_same",
      on="graph")
def takes_apart_what_is_held(layers: list[Layer], pace: Pace) -> None:
    """What a checkpoint has written is taken apart at once, to give its memory back early, although views still read
    from it. So it comes where a count of references decides, on an interpreter that does not count all of them."""
    for layer in layers:
        dismantle(layer.parts(), pace)


@animal(caught_by="EngineContract.test_an_image_is_what_it_is_declared_to_be")
class ImageWithoutReader(GraphEngine):
    """An image of an LMDB file that holds no read transaction: the pages that it is made of are free to be written, and
    are."""

    def image(self) -> LmdbImage:
        image = super().image()
        image._txn.abort()
        return image
