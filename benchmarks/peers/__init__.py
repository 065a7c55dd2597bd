"""The contestants of the graph workloads, by name: ours, and what users would take instead.

Each runs in a process of its own (`peer_child`). So none has another's memory, caches or threads, and libraries that
cannot be loaded together can be compared. A peer that is not installed is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .adapter import GraphPeer

OURS = "Holdfast"


@dataclass(frozen=True, slots=True)
class Known:
    """A contestant: its module here, its class, the library that it needs, and whether its commits are durable, or
    kept at all."""

    module: str
    kind: str
    library: str
    durable: bool = True


PEERS = {
    OURS: Known("holdfast_graph", "HoldfastGraph", "lmdb"),
    "LMDB + msgpack": Known("lmdb_graph", "LmdbGraph", "lmdb"),
    "RocksDB": Known("rocksdb_graph", "RocksdbGraph", "rocksdict"),
    "SQLite": Known("sqlite_graph", "SqliteFull", "sqlite3"),
    "SQLite NORMAL": Known("sqlite_graph", "SqliteNormal", "sqlite3"),
    "Kùzu": Known("kuzu_graph", "KuzuGraph", "kuzu"),
    "LadybugDB": Known("kuzu_graph", "LadybugGraph", "ladybug"),
    "DuckDB": Known("duckdb_graph", "DuckdbGraph", "duckdb"),
    "NetworkX": Known("memory_graphs", "NetworkxGraph", "networkx", durable=False),
    "igraph": Known("memory_graphs", "IgraphGraph", "igraph", durable=False),
}


def installed() -> list[str]:
    """The names of the contestants whose library is there, ours first."""
    return [name for name, known in PEERS.items() if find_spec(known.library) is not None]


def peer_named(name: str, place: Path) -> GraphPeer:
    """A contestant in this process, over an empty directory. Raises `KeyError`, `ImportError`."""
    known = PEERS[name]
    made: GraphPeer = getattr(import_module(f".{known.module}", __package__), known.kind)(place)
    return made
