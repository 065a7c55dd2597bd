"""SQLite: the tables and tuning of `sqlite_peer`, with a table of nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..sqlite_peer import SqliteGraph
from .adapter import DurablePeer, GraphData

_NODE = "SELECT name, born, score FROM node WHERE id=?"
_NAME = "SELECT id FROM node WHERE name=?"
_DECADE = "SELECT id FROM node WHERE born BETWEEN ? AND ?"
_DELETE = "DELETE FROM edge WHERE id=(SELECT id FROM edge WHERE src=? AND type=1 AND dst=? LIMIT 1)"
_SEARCH = ("WITH RECURSIVE reached(node) AS (VALUES(?) UNION SELECT dst FROM reached CROSS JOIN edge "
           "ON src=node AND type=1) SELECT count(*) FROM reached")


class SqliteFull(DurablePeer):
    """With `synchronous=FULL`, so a commit that returned survives a power cut, as ours does."""

    synchronous = "FULL"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._lock = threading.Lock()
        self._reads: SqliteGraph | None = None
        self._open()

    def _open(self) -> None:
        self._graph = SqliteGraph(self.place / "peer.sqlite", synchronous=self.synchronous)
        self._execute = self._graph.execute

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        self._edges = data.edges.tolist()
        self._nodes = list(zip(range(1, len(data) + 1), data.names, data.born, data.scores,
                               strict=True)) if properties else []

    def load(self) -> None:
        self._graph.load(self._edges, self._nodes)

    def index(self) -> None:
        self._execute("CREATE INDEX node_name ON node(name)")
        self._execute("CREATE INDEX node_born ON node(born)")
        self._graph.tune()

    def begin_reading(self) -> None:
        self._graph.begin()

    def end_reading(self) -> None:
        self._graph.end()

    def neighbours(self, node: int) -> Sequence[int]:
        return self._graph.hops((node,))

    def two_hops(self, node: int) -> Sequence[int]:
        return self._graph.two_hops((node,))

    def search(self, node: int) -> int:
        found: int = self._execute(_SEARCH, (node,)).fetchone()[0]
        return found

    def properties(self, node: int) -> dict[str, Any]:
        name, born, score = self._execute(_NODE, (node,)).fetchone()
        return {"name": name, "born": born, "score": score}

    def find(self, name: str) -> Sequence[int]:
        return [row[0] for row in self._execute(_NAME, (name,)).fetchall()]

    def of_decade(self, first: int) -> Sequence[int]:
        return [row[0] for row in self._execute(_DECADE, (first, first + 9)).fetchall()]

    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            if len(pairs) == 1:
                self._graph.add(*pairs[0])
            else:
                self._graph.add_many(pairs)

    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            self._execute("BEGIN IMMEDIATE")
            for pair in pairs:
                self._execute(_DELETE, pair)
            self._execute("COMMIT")

    def reader(self) -> Callable[[int], Sequence[int]]:
        reads = self._reads = SqliteGraph(self.place / "peer.sqlite", synchronous=self.synchronous)
        return lambda node: reads.hops((node,))

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._graph.close()
        if self._reads is not None:
            self._reads.close()
            self._reads = None

    def bytes(self) -> int:
        pages, free, size = (self._execute(f"PRAGMA {what}").fetchone()[0]
                             for what in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size)


class SqliteNormal(SqliteFull):
    """With `synchronous=NORMAL`: a power cut may take the last commits back."""

    synchronous = "NORMAL"
