"""Libraries that map keys to values, used plainly: the peers of an author's engine."""

from __future__ import annotations

import sqlite3
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol


class KeyValuePeer(Protocol):
    """Maps bytes to bytes. Many threads may use it."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set one key; durable when it returns."""

    def fill(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Set many as one transaction, durable when it returns."""

    def get(self, key: bytes) -> bytes | None:
        """The value now."""

    def close(self) -> None: ...


class PlainSqlite:
    """One table without row numbers, WAL, `synchronous=FULL`. Threads share a connection under a lock."""

    def __init__(self, place: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(place / "peer.sqlite", isolation_level=None, check_same_thread=False)
        self._execute = self._connection.execute
        for setting in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-262144"):
            self._execute(f"PRAGMA {setting}")
        self._execute("CREATE TABLE pairs(key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def put(self, key: bytes, value: bytes) -> None:
        with self._lock:
            self._execute("INSERT OR REPLACE INTO pairs VALUES(?, ?)", (key, value))

    def fill(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT OR REPLACE INTO pairs VALUES(?, ?)", pairs)
        self._execute("COMMIT")

    def get(self, key: bytes) -> bytes | None:
        found = self._execute("SELECT value FROM pairs WHERE key=?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

    def close(self) -> None:
        self._connection.close()


class PlainLmdb:
    """One environment, one database. Each commit syncs."""

    def __init__(self, place: Path) -> None:
        import lmdb

        self._env = lmdb.open(str(place / "lmdb"), map_size=1 << 34)

    def put(self, key: bytes, value: bytes) -> None:
        with self._env.begin(write=True) as txn:
            txn.put(key, value)

    def fill(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self._env.begin(write=True) as txn:
            txn.cursor().putmulti(pairs)

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin() as txn:
            return txn.get(key)

    def close(self) -> None:
        self._env.close()


class PlainRocksdb:
    """One database. Each write syncs the log of writes."""

    def __init__(self, place: Path) -> None:
        from rocksdict import Options, Rdict, WriteBatch, WriteOptions

        self._batch = WriteBatch
        self._durable = WriteOptions()
        self._durable.sync = True
        self._db = Rdict(str(place / "rocksdb"), Options(raw_mode=True))

    def put(self, key: bytes, value: bytes) -> None:
        self._db.put(key, value, self._durable)

    def fill(self, pairs: list[tuple[bytes, bytes]]) -> None:
        batch = self._batch(raw_mode=True)
        for key, value in pairs:
            batch.put(key, value)
        self._db.write(batch, self._durable)

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._db.get(key)
        return found

    def close(self) -> None:
        self._db.close()


def key_value_peers(place: Path) -> dict[str, KeyValuePeer]:
    """Those whose library is installed, by name, each open in a directory of its own."""
    made: dict[str, KeyValuePeer] = {}
    for name, kind, library in (("plain SQLite", PlainSqlite, "sqlite3"), ("plain LMDB", PlainLmdb, "lmdb"),
                                ("plain RocksDB", PlainRocksdb, "rocksdict")):
        if find_spec(library) is not None:
            (place / name).mkdir()
            made[name] = kind(place / name)
    return made
