"""A store that is large enough to measure backups: a generated graph, loaded in bulk, and closed.

Making it takes longer than most measurements, so each run makes one, which all workloads that copy share.
"""

from __future__ import annotations

import math
from pathlib import Path

from ..engine import GraphStore
from . import graphs
from .harness import Bench

_EDGES_PER_NODE = 16


def large_store(bench: Bench) -> Path:
    """The directory of the run's large store. The first call makes it. It is not open."""
    place = bench.directory / "large-store"
    if not place.exists():
        generate(bench, place, bench.scale.large_edges)
    return place


def generate(bench: Bench, place: Path, count: int) -> None:
    """Make a store of a generated graph of so many edges."""
    bench.say(f"generating and loading a graph of {count:,} edges for the backups")
    edges = graphs.rmat(max(1, math.ceil(math.log2(count / _EDGES_PER_NODE))), count)
    with GraphStore.open(place, online_backup_enabled=False) as store:
        graphs.load(store, edges)


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
