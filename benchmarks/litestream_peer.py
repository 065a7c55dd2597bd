"""Litestream as the peer: the same graph in SQLite, replicated into a directory, and restored from there.

It is a command, so what is timed is a process of its own, from its start to its end.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .graphs import Edges
from .sqlite_peer import SqliteGraph


def is_there() -> bool:
    return shutil.which("litestream") is not None


class Litestream:
    """A replica of a graph. Made by one run of `litestream replicate -once`."""

    def __init__(self, place: Path, edges: Edges) -> None:
        self.replica, self._restored = place / "replica", place / "restored.db"
        place.mkdir()
        graph = SqliteGraph(place / "graph.db")
        graph.load(edges.tolist())
        graph.close()
        self._run("replicate", "-once", str(place / "graph.db"), self.replica.as_uri())

    def restore(self) -> None:
        self._restored.unlink(missing_ok=True)
        self._run("restore", "-o", str(self._restored), self.replica.as_uri())

    def _run(self, *arguments: str) -> None:
        subprocess.run(["litestream", *arguments], check=True, capture_output=True)
