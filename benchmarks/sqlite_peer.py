"""SQLite as the peer: a graph in one table with the two indexes that a graph needs, tuned as its own experts would.

It uses WAL with synchronous=FULL, so that a commit that returned survives a power cut, as ours does. Statements are
prepared once (the module caches them by their text). The page cache holds everything, and the file is memory-mapped
too. The write-ahead log has grown before anything is timed, so that a commit's sync touches no metadata. Both indexes
are covering: a hop never reads the table. A commit is one autocommitted statement, which saves BEGIN and COMMIT. Many
threads share one connection under a lock; with one each, they would compete for SQLite's own lock and be slower. A bulk
load is one transaction under a rollback journal, which stays empty for a new file; WAL would write everything twice.
Two threads build the indexes afterwards. Then the database is switched to WAL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TYPE = 1
_INSERT = "INSERT INTO edge(src, type, dst) VALUES(?, 1, ?)"
_HOP = "SELECT dst FROM edge WHERE src=? AND type=?"
_TWO_HOPS = ("SELECT DISTINCT b.dst FROM edge a CROSS JOIN edge b ON b.src=a.dst AND b.type=a.type "
             "WHERE a.src=? AND a.type=?")  # CROSS keeps its planner from going through all edges, ordered by target


class SqliteGraph:
    """A directed graph in a SQLite database. Any thread may use it, one at a time. `execute` runs a statement."""

    def __init__(self, path: Path, *, synchronous: str = "FULL") -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        execute = self._connection.execute
        execute("PRAGMA page_size=4096")
        execute("PRAGMA cache_size=-1048576")
        execute("PRAGMA mmap_size=4294967296")
        execute("PRAGMA temp_store=MEMORY")
        execute("PRAGMA threads=2")
        execute(f"PRAGMA synchronous={synchronous}")
        self.execute = execute

    def load(self, edges: Sequence[Sequence[int]], nodes: Sequence[Sequence[Any]] = ()) -> None:
        """Load rows of (src, dst), and of nodes (id, name, born, score), into a new database; durable when it
        returns."""
        execute = self.execute
        execute("PRAGMA journal_mode=DELETE")
        execute("BEGIN IMMEDIATE")
        execute("CREATE TABLE edge(id INTEGER PRIMARY KEY, src INTEGER NOT NULL, type INTEGER NOT NULL, "
                "dst INTEGER NOT NULL)")
        self._connection.executemany(_INSERT, edges)
        if nodes:
            execute("CREATE TABLE node(id INTEGER PRIMARY KEY, name TEXT, born INTEGER, score REAL)")
            self._connection.executemany("INSERT INTO node VALUES(?, ?, ?, ?)", nodes)
        execute("CREATE INDEX edge_out ON edge(src, type, dst)")
        execute("CREATE INDEX edge_in ON edge(dst, type, src)")
        execute("COMMIT")
        if execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise RuntimeError("SQLite did not switch to WAL")

    def tune(self) -> None:
        """Once, after loading: statistics for its planner, and a write-ahead log that need not grow any more."""
        execute = self.execute
        execute("ANALYZE")
        execute("PRAGMA wal_autocheckpoint=4000")
        execute("BEGIN IMMEDIATE")
        execute("CREATE TABLE filler(bytes BLOB)")
        for _ in range(20):
            execute("INSERT INTO filler VALUES(zeroblob(1048576))")
        execute("COMMIT")
        execute("DROP TABLE filler")
        execute("PRAGMA wal_checkpoint(RESTART)")

    def add(self, source: int, target: int) -> None:
        """One edge, durable when it returns."""
        self.execute(_INSERT, (source, target))

    def add_many(self, edges: Sequence[Sequence[int]]) -> None:
        """Many edges in one transaction."""
        self.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_INSERT, edges)
        self.execute("COMMIT")

    def begin(self) -> None:
        """Begin a transaction that holds one snapshot for later reads, which then need no locks of their own."""
        self.execute("BEGIN")
        self.execute("SELECT 1 FROM edge LIMIT 1").fetchone()

    def end(self) -> None:
        self.execute("COMMIT")

    def hops(self, nodes: Sequence[int]) -> list[int]:
        """The targets of each node's edges, as a list; returns the last one."""
        execute, found = self.execute, []
        for node in nodes:
            found = [row[0] for row in execute(_HOP, (node, _TYPE)).fetchall()]
        return found

    def two_hops(self, nodes: Sequence[int]) -> list[int]:
        """The distinct targets of the edges of each node's targets, as a list; returns the last one."""
        execute, found = self.execute, []
        for node in nodes:
            found = [row[0] for row in execute(_TWO_HOPS, (node, _TYPE)).fetchall()]
        return found

    def close(self) -> None:
        self._connection.close()
