"""DuckDB: tables in columns, loaded from arrays. It is made for questions about much at once, not for single hops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from .adapter import DurablePeer, GraphData

_HOP = "SELECT dst FROM edge WHERE src=?"
_SEARCH = ("WITH RECURSIVE reached(node) AS (SELECT ?::BIGINT UNION SELECT dst FROM edge JOIN reached ON src=node) "
           "SELECT count(*) FROM reached")


class DuckdbGraph(DurablePeer):
    """One database with two tables. Its edges have an index in each direction."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._connection = duckdb.connect(str(self.place / "peer.duckdb"))
        self._execute = self._connection.execute

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        columns: dict[str, Any] = {"id": pa.array(range(1, len(data) + 1), pa.int64())}
        if properties:
            columns |= {"name": data.names, "born": data.born, "score": data.scores}
        self._nodes, self._edges = pa.table(columns), pa.table({"src": data.edges[:, 0], "dst": data.edges[:, 1]})

    def load(self) -> None:
        nodes, edges = self._nodes, self._edges  # DuckDB finds them by these names
        self._execute("CREATE TABLE node AS SELECT * FROM nodes")
        self._execute("CREATE TABLE edge AS SELECT * FROM edges")
        self._execute("CREATE INDEX edge_out ON edge(src)")
        self._execute("CREATE INDEX edge_in ON edge(dst)")
        self._execute("CREATE UNIQUE INDEX node_id ON node(id)")
        self._execute("CHECKPOINT")
        del nodes, edges

    def index(self) -> None:
        self._execute("CREATE INDEX node_name ON node(name)")

    def neighbours(self, node: int) -> Sequence[int]:
        return [row[0] for row in self._execute(_HOP, (node,)).fetchall()]

    def two_hops(self, node: int) -> Sequence[int]:
        return [row[0] for row in self._execute("SELECT DISTINCT b.dst FROM edge a JOIN edge b ON b.src=a.dst "
                                                "WHERE a.src=?", (node,)).fetchall()]

    def search(self, node: int) -> int:
        [[found]] = self._execute(_SEARCH, (node,)).fetchall()
        return int(found)

    def properties(self, node: int) -> dict[str, Any]:
        [[name, born, score]] = self._execute("SELECT name, born, score FROM node WHERE id=?", (node,)).fetchall()
        return {"name": name, "born": born, "score": score}

    def find(self, name: str) -> Sequence[int]:
        return [row[0] for row in self._execute("SELECT id FROM node WHERE name=?", (name,)).fetchall()]

    def of_decade(self, first: int) -> Sequence[int]:
        return [row[0] for row in self._execute("SELECT id FROM node WHERE born BETWEEN ? AND ?",
                                                (first, first + 9)).fetchall()]

    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            if len(pairs) == 1:
                self._execute("INSERT INTO edge VALUES(?, ?)", pairs[0])
            else:
                self._with(pairs, "INSERT INTO edge SELECT * FROM given")

    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            self._with(pairs, "DELETE FROM edge WHERE (src, dst) IN (SELECT src, dst FROM given)")

    def _with(self, pairs: Sequence[tuple[int, int]], statement: str) -> None:
        """A statement about `given`, a table of these pairs."""
        self._connection.register("given", pa.table({"src": [a for a, _ in pairs], "dst": [b for _, b in pairs]}))
        self._execute(statement)
        self._connection.unregister("given")

    def reader(self) -> Callable[[int], Sequence[int]]:
        execute = self._connection.cursor().execute
        return lambda node: [row[0] for row in execute(_HOP, (node,)).fetchall()]

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._connection.close()
