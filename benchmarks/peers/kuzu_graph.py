"""Kùzu, and LadybugDB, which goes on from it: graph databases in a library, with Cypher.

Nodes and edges are loaded by COPY from Parquet files, the form that their manuals advise, written outside of the
timing. Statements are prepared once. Commits are autocommitted statements.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .adapter import DurablePeer, GraphData

_STATEMENTS = {
    "hop": "MATCH (a:Person {id: $node})-[:TO]->(b) RETURN b.id",
    "two": "MATCH (a:Person {id: $node})-[:TO]->()-[:TO]->(b) RETURN DISTINCT b.id",
    "three": "MATCH (a:Person {id: $node})-[:TO]->()-[:TO]->()-[:TO]->(b) RETURN DISTINCT b.id",
    "search": "MATCH (a:Person {id: $node})-[:TO* SHORTEST 1..30]->(b:Person) WHERE b.id <> $node RETURN count(*)",
    "node": "MATCH (a:Person {id: $node}) RETURN a.name, a.born, a.score",
    "name": "MATCH (a:Person) WHERE a.name = $name RETURN a.id",
    "decade": "MATCH (a:Person) WHERE a.born >= $first AND a.born < $first + 10 RETURN a.id",
    "add": "MATCH (a:Person {id: $source}), (b:Person {id: $target}) CREATE (a)-[:TO]->(b)",
    "delete": "MATCH (a:Person {id: $source})-[e:TO]->(b:Person {id: $target}) DELETE e",
}


class KuzuGraph(DurablePeer):
    """One database, one connection."""

    library = "kuzu"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._module = import_module(self.library)
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._db = self._module.Database(str(self.place / "database"))
        self._connection = self._module.Connection(self._db)
        self._prepared: dict[str, Any] = {}

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        numbers = pa.array(range(1, len(data) + 1), pa.int64())
        columns = {"id": numbers}
        if properties:
            columns |= {"name": pa.array(data.names), "born": pa.array(data.born, pa.int64()),
                        "score": pa.array(data.scores, pa.float64())}
        pq.write_table(pa.table(columns), self.place / "nodes.parquet")
        pq.write_table(pa.table({"from": data.edges[:, 0], "to": data.edges[:, 1]}), self.place / "edges.parquet")
        more = ", name STRING, born INT64, score DOUBLE" if properties else ""
        self._connection.execute(f"CREATE NODE TABLE Person(id INT64{more}, PRIMARY KEY(id))")
        self._connection.execute("CREATE REL TABLE TO(FROM Person TO Person)")

    def load(self) -> None:
        self._connection.execute(f"COPY Person FROM '{self.place / 'nodes.parquet'}'")
        self._connection.execute(f"COPY TO FROM '{self.place / 'edges.parquet'}'")
        self._connection.execute("CHECKPOINT")

    def _rows(self, statement: str, **given: Any) -> list[list[Any]]:
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = self._connection.prepare(_STATEMENTS[statement])
        rows: list[list[Any]] = self._connection.execute(prepared, given).get_all()
        return rows

    def neighbours(self, node: int) -> Sequence[int]:
        return [row[0] for row in self._rows("hop", node=node)]

    def two_hops(self, node: int) -> Sequence[int]:
        return [row[0] for row in self._rows("two", node=node)]

    def three_hops(self, node: int) -> Sequence[int]:
        return [row[0] for row in self._rows("three", node=node)]

    def search(self, node: int) -> int:
        """Up to 30 edges away, which is the most that its queries may ask for, and more than these graphs are wide."""
        [[others]] = self._rows("search", node=node)
        return 1 + int(others)

    def properties(self, node: int) -> dict[str, Any]:
        [[name, born, score]] = self._rows("node", node=node)
        return {"name": name, "born": born, "score": score}

    def find(self, name: str) -> Sequence[int]:
        return [row[0] for row in self._rows("name", name=name)]

    def of_decade(self, first: int) -> Sequence[int]:
        return [row[0] for row in self._rows("decade", first=first)]

    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._each("add", pairs)

    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._each("delete", pairs)

    def _each(self, statement: str, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            if len(pairs) > 1:
                self._connection.execute("BEGIN TRANSACTION")
            for source, target in pairs:
                self._rows(statement, source=source, target=target)
            if len(pairs) > 1:
                self._connection.execute("COMMIT")

    def reader(self) -> Callable[[int], Sequence[int]]:
        connection = self._module.Connection(self._db)
        hop = connection.prepare(_STATEMENTS["hop"])
        return lambda node: [row[0] for row in connection.execute(hop, {"node": node}).get_all()]

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._prepared.clear()
        self._connection.close()
        self._db.close()

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.place.rglob("*") if path.is_file()
                   and path.suffix not in (".parquet", ".wal"))


class LadybugGraph(KuzuGraph):
    """The same of LadybugDB."""

    library = "ladybug"
