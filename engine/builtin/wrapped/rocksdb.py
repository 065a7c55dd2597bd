"""The RocksDB engine: keys and values in RocksDB, through rocksdict (`pip install 'holdfast[rocksdb]'`).

RocksDB holds what is checkpointed (`overlay.py` has the rest). The kit has a log, so RocksDB's own is off. A checkpoint
is one write batch, with the document of the position under the empty key, and a flush. A flush writes whole batches to
a table file, syncs it, and then names it in RocksDB's manifest. So after a crash RocksDB always has a whole state, at
the position that it holds.

- *The image* is what RocksDB calls a checkpoint: hard links to its table files, which never change, and a manifest of
  its own. So table files take no room twice. If RocksDB merges and deletes them, the image still has them.
- *Snapshots* are iterators. An iterator shows the state at the moment it was made, in tables and in memory. (The
  snapshot objects of rocksdict 0.3 do so only for single keys; their iterators show later writes.)
- *Damage.* Every block of a table file and every record of the manifest has RocksDB's checksum, which reads verify. The
  manifest names each table file with its size. An iterator stops at damage as it does at the end, so ask its status.
  A manifest that was cut off is simply an earlier one. Its document is as old, and the log is replayed from there.
  On some damaged manifests RocksDB never returns from opening, and this engine cannot stop it.
- *Read-only openings* leave no trace. RocksDB and rocksdict write into a directory that they open. So a private one is
  opened, with links to the table files and copies of the small ones. (RocksDB's own read-only mode kills the process by
  a signal on some damaged files, and rocksdict writes even then.)
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ...contract.engine import Abilities, Context
from ...env.scratch import ScratchDirectory
from ...env.system import system_errors
from ...errors import Damaged, DiskFull, HoldfastError, InvalidInput, StoreClosed, StoreLocked, Unsupported
from ...model.positions import Position
from .overlay import RUN_BYTES, Overlay, PairsEngine, Snapshot, checked_position, decode_state, encode_state, sweep

if TYPE_CHECKING:
    from rocksdict import Rdict

logger = logging.getLogger("holdfast.rocksdb")

_MAGIC = b"HFROCKS\0"
_POSITION = b""
"""The key of the document. Keys of pairs have at least one byte."""
_FIRST = b"\0"
_NOTES = "rocksdict-config.json"
"""The file in which rocksdict remembers its options. It is rewritten at each opening, without a sync, and a torn one
prevents the next opening. We pass all options each time, and do not need it."""
_TABLE = ".sst"
_SPARE_ROOM = 1 << 20
_OPEN_FILES = 512
"""The most table files that are open at a time. By default RocksDB opens all of them at once, with 16 threads."""


def _rocksdict() -> Any:
    """The module rocksdict. Raises `Unsupported` if it is not installed."""
    try:
        import rocksdict
    except ImportError as error:
        raise Unsupported("the rocksdb engine needs rocksdict, which is not installed",
                          hint="pip install 'holdfast[rocksdb]'") from error
    return rocksdict


_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EACCES,
             errno.EPERM, errno.EROFS, errno.ESTALE, errno.EFBIG)
"""Errors with which the system may have refused RocksDB something. RocksDB reports only their text."""


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    """Turn RocksDB's errors into the kit's. rocksdict raises them as plain exceptions with a text."""
    with system_errors(f"cannot use {directory}"), _named(directory):
        yield


@contextmanager
def _named(directory: Path) -> Iterator[None]:
    """As `_told`, with `OSError` for what the system refuses."""
    try:
        yield
    except (HoldfastError, OSError, MemoryError):
        raise
    except UnicodeEncodeError as error:
        raise InvalidInput(f"RocksDB takes a path only if it is text, and {directory} is not",
                           hint="choose another directory") from error
    except Exception as error:
        text = str(error)
        if "instance already closed" in text:
            raise StoreClosed(f"{directory} is closed") from error
        if "lock hold by current process" in text or "While lock file" in text:
            raise StoreLocked(f"RocksDB says: {text}") from error
        for number in _REFUSALS:
            if os.strerror(number) in text:
                raise OSError(number, text, str(directory)) from error
        if text.startswith("IO error") and "No such file" not in text:
            raise OSError(errno.EIO, text, str(directory)) from error
        raise Damaged(f"RocksDB says: {text}", path=str(directory)) from error


def _open(directory: Path, *, create: bool = False, private: bool = False) -> Rdict:
    rocksdict = _rocksdict()
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_error_if_exists(create)
    options.set_keep_log_file_num(1)
    options.set_max_open_files(_OPEN_FILES)
    options.set_max_file_opening_threads(1)
    options.set_paranoid_checks(True)
    options.set_disable_auto_compactions(private)  # a reader must not rewrite the whole state
    with _told(directory):
        made: Rdict = rocksdict.Rdict(str(directory), options)
    return made


def _write(database: Rdict, directory: Path, context: Context, changes: Overlay, document: bytes) -> None:
    """Write one batch and flush it. Checks for room first, and raises `DiskFull`: once RocksDB has run out of room, it
    writes nothing more until it is reopened."""
    rocksdict = _rocksdict()
    batch = rocksdict.WriteBatch(raw_mode=True)
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    batch.put(_POSITION, document)
    if (free := context.env.files.free(directory)) < (needed := batch.size_in_bytes() + _SPARE_ROOM):
        raise DiskFull(f"{directory} has {free:,} bytes left, a checkpoint needs {needed:,}")
    unlogged = rocksdict.WriteOptions()
    unlogged.disable_wal = True
    with _named(directory):  # not as `DiskFull`, which means that nothing has changed
        database.write(batch, unlogged)
        database.flush()


class RocksSnapshot(Snapshot):
    """A snapshot by an iterator, which every read moves."""

    def __init__(self, database: Rdict, directory: Path, context: Context) -> None:
        self._directory = directory
        self._lock = context.env.scheduler.lock()
        with _told(directory):
            self._iterator: Any = database.iter()

    def get(self, key: bytes) -> bytes | None:
        return None if key == _POSITION else self._value(key)

    def document(self) -> bytes | None:
        """The document of the position, which no pair is."""
        return self._value(_POSITION)

    def _value(self, key: bytes) -> bytes | None:
        with self._lock, self._told():
            found = self._run(key, 1)
        return found[0][1] if found and found[0][0] == key else None

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        start = _FIRST
        while True:
            with self._lock, self._told():
                run = self._run(start, RUN_BYTES)
            if not run:
                return
            yield from run
            start = run[-1][0] + b"\0"

    def _run(self, start: bytes, room: int) -> list[tuple[bytes, bytes]]:
        """Pairs from `start` on, until they fill the room. Empty only at the end."""
        iterator, run = self._iterator, []
        iterator.seek(start)
        while room > 0:
            if not iterator.valid():
                iterator.status()  # raises if it stopped for another reason than the end
                break
            key, value = iterator.key(), iterator.value()
            run.append((key, value))
            room -= len(key) + len(value) + 1  # the document's key is empty
            iterator.next()
        return run

    @contextmanager
    def _told(self) -> Iterator[None]:
        if self._iterator is None:
            raise StoreClosed(f"{self._directory} is closed")
        with _told(self._directory):
            yield

    def check(self) -> Iterator[str]:
        yield from ()  # reading all pairs reads, and verifies, every block

    def close(self) -> None:
        with self._lock:
            self._iterator = None  # RocksDB stays open until the last iterator is gone


class RocksEngine(PairsEngine):
    """See the module's text. It takes no options."""

    name = "rocksdb"
    state_format = 2
    payload_version = 1
    abilities = Abilities(atomic=True, image="stable", background_checkpoint=True, replays_in_memory=True)

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        database = _open(directory, create=True)
        try:
            _write(database, directory, context, {}, encode_state(context, _MAGIC, cls.state_format, position))
        finally:
            with _told(directory):
                database.close()
        context.env.files.sync_directory(directory)

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        if not read_only:
            sweep(context.env.files, directory)
            context.env.files.unlink(directory / _NOTES, missing_ok=True)
            return cls(directory, context, directory, at)
        files, private = context.env.files, ScratchDirectory(context.env.files)
        try:
            for name in files.list(directory):
                path = directory / name
                if path.suffix == _TABLE:
                    files.symlink(files.absolute(path), private.path / name)
                elif name != _NOTES and not files.is_directory(path):
                    files.copy_file(path, private.path / name)
            return cls(directory, context, private.path, at, private=private)
        except BaseException:
            private.cleanup()
            raise

    def __init__(self, directory: Path, context: Context, opened: Path, at: Position | None, *,
                 private: ScratchDirectory | None = None) -> None:
        self._context = context
        self._opened = opened
        self._private = private
        self._read_only = private is not None
        self._database = _open(opened, private=private is not None)
        try:
            super().__init__(directory, context, checked_position(self._held(directory), at, directory))
        except BaseException:
            self._close_database()
            raise

    def _held(self, directory: Path) -> Position:
        """The position of what RocksDB holds now, in its memory too."""
        snapshot = self._snapshot()
        try:
            document = snapshot.document()
        finally:
            snapshot.close()
        if document is None:
            raise Damaged("holds no document of its state", path=str(directory))
        return decode_state(self._context, document, _MAGIC, self.state_format, directory)[0]

    def _snapshot(self) -> RocksSnapshot:
        return RocksSnapshot(self._database, self._opened, self._context)

    def _write(self, changes: Overlay, position: Position) -> None:
        document = encode_state(self._context, _MAGIC, self.state_format, position)
        _write(self._database, self._directory, self._context, changes, document)

    def _copy(self, place: Path) -> Position:
        with self._checkpointing:
            position = self._held(self._directory)  # RocksDB's: the image has what a failed write left in memory
            with _told(self._directory):
                _rocksdict().Checkpoint(self._database).create_checkpoint(str(place))
        self._env.files.unlink(place / _NOTES, missing_ok=True)
        return position

    def _close(self) -> None:
        self._close_database()
        if self._private is not None:
            self._private.cleanup()

    def _close_database(self) -> None:
        """Close, and raise nothing. RocksDB may raise here what its own threads found earlier, such as a bad block. It
        also flushes what a failed write left, which does no harm: that is in the log."""
        try:
            self._database.close()
        except Exception as error:
            logger.warning("closing %s failed: %s", self._opened, error)
