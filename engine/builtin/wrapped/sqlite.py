"""The SQLite engine: keys and values in a table of the standard library's sqlite3. How a foreign database is wrapped.

SQLite holds what is checkpointed (`overlay.py` has the rest). A checkpoint is one synced SQLite transaction that also
stores the position. So after a power cut, SQLite's own recovery finds the table exactly at the position.

- *Write-ahead mode* (WAL), because then a view's read transaction neither waits for a checkpoint nor delays one. After
  each of our checkpoints follows what SQLite calls one: its log is moved into the database file. SQLite restarts its
  log only if nothing reads from it, so after that the newest snapshot is taken again. Views that stay open for long
  make the log grow.
- *The image* is a file of its own, made by `VACUUM INTO`. The database file alone is not a state while there is a log
  beside it, and its free pages still hold deleted data. The image needs as much room as the live data.
- *Damage.* SQLite's pages have no checksums. So each value is sealed, and the document of the state has their tally
  (`toolkit/checksums.py`). A changed row is found when it is read, a missing one when all rows are read. If SQLite's
  tree says that a key is *not* there, a read believes it; `check` walks the whole tree.
- *Read-only openings* leave no trace: with `immutable`, SQLite reads a file without locks and side files. But then it
  ignores a log that a killed process left, so in that case a private copy is opened.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ...contract.engine import Abilities, Context
from ...env import REAL
from ...env.scratch import ScratchDirectory
from ...env.system import system_errors
from ...errors import Damaged, DiskFull, StoreClosed, StoreLocked, Unsupported
from ...model.positions import Position
from ...toolkit.checksums import Sealer, Tally
from .overlay import RUN_BYTES, Overlay, PairsEngine, Snapshot, checked_position, decode_state, encode_state, sweep

logger = logging.getLogger("holdfast.sqlite")

_FILE, _MAGIC = "state.db", b"HFSQLITE"
_SIDE_FILES = ("-wal", "-journal")
_SCHEMA = """
    CREATE TABLE pairs (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE state (document BLOB NOT NULL);
"""
_PRAGMAS = """
    PRAGMA synchronous = FULL;
    PRAGMA fullfsync = ON;
    PRAGMA checkpoint_fullfsync = ON;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA cell_size_check = ON;
"""
_UNREADABLE = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL})
_FILES = 4
"""The most files that SQLite has open at a time: the database, its log, its shared memory, the directory."""


def _uri(path: Path) -> str:
    """SQLite's URI for a file. Its name need not be valid text."""
    return f"file:{quote(os.fsencode(path.absolute()))}"


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time."""
    uri = f"{_uri(path)}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the kit's: `DiskFull`, `StoreClosed`, `Damaged`, or one for what the system refused."""
    with system_errors(f"cannot use {path}"), _named(path):
        yield


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """As `_told`, with `OSError` for what the system refuses."""
    try:
        yield
    except sqlite3.Error as error:
        code, name = getattr(error, "sqlite_errorcode", 0), getattr(error, "sqlite_errorname", "")
        if code == sqlite3.SQLITE_FULL or name == "SQLITE_IOERR_SHMSIZE":
            raise DiskFull(f"no room for {path}") from error
        if isinstance(error, sqlite3.ProgrammingError):
            raise StoreClosed(f"{path} is closed") from error
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreLocked(f"{path} is in use by something else: SQLite says {error}") from error
        if code & 0xFF == sqlite3.SQLITE_NOMEM or name == "SQLITE_IOERR_NOMEM":
            raise OSError(errno.ENOMEM, f"{error} ({name})", str(path)) from error
        if code & 0xFF in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY):
            raise OSError(errno.EACCES, f"{error} ({name})", str(path)) from error
        if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
            _find_why(path)
        if code & 0xFF in _UNREADABLE:
            raise OSError(errno.EIO, f"{error} ({name})", str(path)) from error
        raise Damaged(f"SQLite says: {error}", path=str(path)) from error
    except UnicodeDecodeError as error:  # of a message that quotes what is damaged
        raise Damaged(f"SQLite says: {error.object!r}", path=str(path)) from error


def _find_why(path: Path) -> None:
    """For when SQLite cannot open a file and does not say why. Tries it, and raises the `OSError` if there is one."""
    with ExitStack() as opened:
        for _ in range(_FILES):
            opened.callback(REAL.files.open(path).close)


def _sealer(path: Path) -> Sealer:
    return Sealer("pairs", 0, path)


def _opened(sealer: Sealer, key: Any, sealed: Any) -> bytes:
    """The value of a row as it was read. Raises `Damaged`."""
    if type(key) is not bytes or type(sealed) is not bytes:
        raise Damaged(f"the row with key {key!r:.80} does not hold bytes", path=str(sealer.path))
    return sealer.opened(key, sealed)


def _size(cell: Any) -> int:
    """About how much memory a cell takes."""
    return len(cell) if isinstance(cell, bytes | str) else 8


class SqliteSnapshot(Snapshot):
    """A read transaction on a connection of its own.

    Attributes:
        position: of what it shows.
        tally: what its rows should be.
    """

    def __init__(self, path: Path, mode: str, context: Context) -> None:
        self._path = path
        self._mode = mode
        self._sealer = _sealer(path)
        self._lock = context.env.scheduler.lock()
        with _told(path):
            self._connection = _connect(path, mode)
        try:
            with _told(path):
                self._connection.execute("PRAGMA cell_size_check = ON")
                self._connection.execute("BEGIN")
                rows = self._connection.execute("SELECT document FROM state LIMIT 2").fetchall()
            if len(rows) != 1 or type(rows[0][0]) is not bytes:
                raise Damaged(f"holds {len(rows)} documents of its state", path=str(path))
            self.position, more = decode_state(context, rows[0][0], _MAGIC, SqliteEngine.state_format, path)
            self.tally = Tally(more["count"], more["total"])
        except BaseException:
            self._connection.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        with self._lock, _told(self._path):
            row = self._connection.execute("SELECT key, value FROM pairs WHERE key = ?", (key,)).fetchone()
        return None if row is None else _opened(self._sealer, *row)

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        tally = Tally()
        before = b""
        with self._lock, _told(self._path):
            cursor = self._connection.execute("SELECT key, value FROM pairs ORDER BY key")
        while True:
            rows: list[Any] = []
            room = RUN_BYTES
            with self._lock, _told(self._path):
                while room > 0 and (row := cursor.fetchone()) is not None:
                    rows.append(row)
                    room -= sum(map(_size, row))
            for key, sealed in rows:
                value = _opened(self._sealer, key, sealed)
                if key <= before:
                    raise Damaged(f"key {key!r:.80} comes after {before!r:.80}", path=str(self._path))
                yield key, value
                before = key
                tally.add(sealed)
            if not rows:
                break
        if tally != self.tally:
            raise Damaged(f"has {tally.count:,} rows that are not the {self.tally.count:,} that were written",
                          path=str(self._path))

    def check(self) -> Iterator[str]:
        # On a connection of its own, which sees SQLite's present state. The check may take minutes, and on this
        # snapshot's connection all its readers would wait for it, the next transaction too.
        with _told(self._path), closing(_connect(self._path, self._mode)) as connection:
            findings = connection.execute("PRAGMA integrity_check").fetchall()
        for (finding,) in findings:
            if finding != "ok":
                yield f"SQLite's integrity check: {finding}"

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class SqliteEngine(PairsEngine):
    """See the module's text. It takes no options."""

    name = "sqlite"
    state_format = 2
    payload_version = 1
    abilities = Abilities(atomic=True, image="stable", background_checkpoint=True, replays_in_memory=True)

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        path, files = directory / _FILE, context.env.files
        files.open(path, "create").close()  # made by us, so that only this user can read it
        with _told(path):
            connection = _connect(path, "rw")
            try:
                connection.executescript(_PRAGMAS + _SCHEMA)
                document = encode_state(context, _MAGIC, cls.state_format, position, count=0, total=0)
                connection.execute("INSERT INTO state VALUES (?)", (document,))
            finally:
                connection.close()
        files.sync_directory(directory)

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        files, path = context.env.files, directory / _FILE
        if not files.exists(path):
            raise Damaged("is missing", path=str(path))
        if not read_only:
            sweep(files, directory)
            return cls(directory, context, path, at, writer=cls._writer_on(path))
        left = [side for side in (f"{_FILE}{end}" for end in _SIDE_FILES) if files.exists(directory / side)]
        if not left:
            return cls(directory, context, path, at)
        private = ScratchDirectory(files)
        try:
            for name in (_FILE, *left):
                files.copy_file(directory / name, private.path / name)
            path = private.path / _FILE
            with closing(cls._writer_on(path)) as writer, _told(path):
                refused, *_ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if refused:
                raise OSError(errno.EIO, "SQLite did not move its log into the file", str(path))
            # Now the log is in the database file. (Closing would move it too, but would not report a failure.)
            return cls(directory, context, path, at, private=private)
        except BaseException:
            private.cleanup()
            raise

    @staticmethod
    def _writer_on(path: Path) -> sqlite3.Connection:
        with _told(path):
            writer = _connect(path, "rw")
            try:
                writer.executescript(_PRAGMAS)
                mode = writer.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != ("wal",):
                    raise Unsupported(f"SQLite has no write-ahead log on the file system of {path}")
            except BaseException:
                writer.close()
                raise
        return writer

    def __init__(self, directory: Path, context: Context, path: Path, at: Position | None, *,
                 writer: sqlite3.Connection | None = None, private: ScratchDirectory | None = None) -> None:
        self._context = context
        self._path = path
        self._writer = writer
        self._read_only = writer is None
        self._private = private
        try:
            held = self._snapshot()
            held.close()
            self._tally = held.tally
            super().__init__(directory, context, checked_position(held.position, at, path))
        except BaseException:
            if writer is not None:
                writer.close()
            raise

    def _snapshot(self) -> SqliteSnapshot:
        return SqliteSnapshot(self._path, "ro&immutable=1" if self._writer is None else "ro", self._context)

    def _write(self, changes: Overlay, position: Position) -> None:
        writer = self._writer
        assert writer is not None
        sealer, tally = _sealer(self._path), self._tally.copy()
        with _told(self._path):
            try:
                writer.execute("BEGIN IMMEDIATE")
                for key, value in sorted(changes.items()):
                    old = writer.execute("SELECT key, value FROM pairs WHERE key = ?", (key,)).fetchone()
                    if old is not None:
                        _opened(sealer, *old)  # with a wrong seal, the tally would become wrong
                        tally.remove(old[1])
                    if value is None:
                        writer.execute("DELETE FROM pairs WHERE key = ?", (key,))
                    else:
                        sealed = sealer.sealed(key, value)
                        tally.add(sealed)
                        writer.execute("REPLACE INTO pairs VALUES (?, ?)", (key, sealed))
                document = encode_state(self._context, _MAGIC, self.state_format, position, count=tally.count,
                                        total=tally.total)
                writer.execute("UPDATE state SET document = ?", (document,))
                writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    writer.execute("ROLLBACK")  # unless SQLite did
                raise
        self._tally = tally

    def _tidy(self) -> None:
        assert self._writer is not None
        try:
            with _told(self._path):
                _, logged, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if logged == moved:
                self._renew()  # a snapshot that does not read the log, so that the next write restarts it
        except DiskFull:  # not raised: it would say that nothing changed, but the checkpoint is made
            logger.warning("no room to move SQLite's log into %s, so the log keeps growing", self._path)

    def _copy(self, place: Path) -> Position:
        self._env.files.make_directory(place)
        copy = place / _FILE
        with _told(self._path):
            connection = _connect(self._path, "rw")
            try:
                connection.execute("VACUUM INTO ?", (_uri(copy),))
            finally:
                connection.close()
        made = SqliteSnapshot(copy, "ro&immutable=1", self._context)
        made.close()
        return made.position

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._private is not None:
            self._private.cleanup()
