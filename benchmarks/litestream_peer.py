"""Litestream as the peer: the same graph in SQLite, replicated into a directory, and restored from there.

It is a command, so what is timed is a process of its own, from its start to its end.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from .graphs import Edges, node_count
from .sqlite_peer import SqliteGraph
from .traffic import Pairs


def is_there() -> bool:
    return shutil.which("litestream") is not None


class Litestream:
    """A graph in SQLite, and its replica, which `replicate` makes or brings up to date."""

    def __init__(self, place: Path, edges: Edges) -> None:
        place.mkdir()
        self.replica, self._database, self._restored = place / "replica", place / "graph.db", place / "restored.db"
        self._graph = SqliteGraph(self._database)
        self._graph.load(edges.tolist())
        self._graph.execute("PRAGMA wal_autocheckpoint=0")  # else what it has not read is gone, and it begins anew
        self._pairs = Pairs(node_count(edges), 1)
        self.replicate()

    def commit(self, count: int) -> None:
        """Add so many edges, one a transaction."""
        for _ in range(count):
            self._graph.add(*self._pairs.next())

    def replicate(self) -> None:
        """Bring the replica up to date, with one run of the command."""
        self._run("replicate", "-once", str(self._database), self.replica.as_uri())

    def forget(self) -> None:
        """Remove the replica and what Litestream knows of it, so that the next one begins anew."""
        shutil.rmtree(self.replica)
        shutil.rmtree(self._database.with_name(f".{self._database.name}-litestream"))

    def make_room(self) -> None:
        """Remove what was restored."""
        self._restored.unlink(missing_ok=True)

    def restore(self) -> None:
        self._run("restore", "-o", str(self._restored), self.replica.as_uri())

    def _run(self, *arguments: str) -> None:
        subprocess.run(["litestream", *arguments], check=True, capture_output=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._graph.close()
