"""What the graph workloads ask of a contestant, written once for all of them.

The graph has nodes 1 … n, each with three properties (`name`, a text; `born`, a whole number; `score`, a float), and
directed edges of one type. The first node of an empty graph store is 1, so nobody needs to translate numbers.
A contestant keeps the graph as its own experts would. An edge has an identity, so there may be several between the same
two nodes. What every contestant must do with an array of edges, such as sorting it, is part of the load.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..graphs import Edges, node_count


@dataclass(frozen=True, slots=True)
class GraphData:
    """A graph to load: `edges` of shape (m, 2), and the properties of node n as item n - 1 of each list."""

    edges: Edges
    names: list[str]
    born: list[int]
    scores: list[float]

    @classmethod
    def of(cls, edges: Edges, *, seed: int = 5) -> GraphData:
        """From edges between nodes 0 … n-1; the same properties for the same seed."""
        count, random = node_count(edges), np.random.default_rng(seed)
        return cls(edges + 1, [f"person number {n + 1}" for n in range(count)],
                   random.integers(1900, 2020, count).tolist(), random.random(count).tolist())

    def __len__(self) -> int:
        """How many nodes."""
        return len(self.names)

    def properties(self, node: int) -> dict[str, Any]:
        return {"name": self.names[node - 1], "born": self.born[node - 1], "score": self.scores[node - 1]}


class GraphPeer(ABC):
    """A contestant. Its directory is empty at first. One thread uses it, but for `add_edges` of a durable one."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @abstractmethod
    def prepare(self, data: GraphData, *, properties: bool) -> None:
        """Bring the graph into the form that this contestant loads best. It is not timed. With `properties`, the nodes
        get theirs."""

    @abstractmethod
    def load(self) -> None:
        """Load what was prepared; it is durable at the end, and can be walked in both directions."""

    def index(self) -> None:
        """Index the nodes by name and by decade of birth, as far as this contestant has indexes and loading did not."""
        return

    @abstractmethod
    def neighbours(self, node: int) -> Sequence[int]:
        """The targets of a node's edges, in any order, as a list of ints."""

    def two_hops(self, node: int) -> Sequence[int]:
        """The distinct targets of the edges of a node's targets."""
        reached: set[int] = set()
        for middle in self.neighbours(node):
            reached.update(self.neighbours(middle))
        return list(reached)

    def three_hops(self, node: int) -> Sequence[int]:
        """The distinct nodes at the end of three edges."""
        reached: set[int] = set()
        for middle in self.two_hops(node):
            reached.update(self.neighbours(middle))
        return list(reached)

    def search(self, node: int) -> int:
        """How many nodes can be reached from one, breadth first, itself included."""
        seen, frontier = {node}, [node]
        while frontier:
            following = []
            for one in frontier:
                for target in self.neighbours(one):
                    if target not in seen:
                        seen.add(target)
                        following.append(target)
            frontier = following
        return len(seen)

    @abstractmethod
    def properties(self, node: int) -> dict[str, Any]:
        """The properties of a node, as a dict."""

    @abstractmethod
    def find(self, name: str) -> Sequence[int]:
        """The nodes with this name, by an index."""

    @abstractmethod
    def of_decade(self, first: int) -> Sequence[int]:
        """The nodes born in ten years, the first of which is given. Ours has a label for each decade."""

    def begin_reading(self) -> None:
        """Begin a snapshot that the reads from now on see."""
        return

    def end_reading(self) -> None:
        """End the snapshot."""
        return

    def close(self) -> None:
        """Let go of everything. What is in memory needs nothing for that."""
        return


class DurablePeer(GraphPeer):
    """A contestant that keeps the graph on disk, and commits changes of it."""

    @abstractmethod
    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Add edges as one transaction, which is durable when it returns. Many threads may call it."""

    @abstractmethod
    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Remove the edge between each of these, as one transaction, which is durable when it returns."""

    def reader(self) -> Callable[[int], Sequence[int]]:
        """What gives a node's neighbours as they are now, in a thread that does nothing else, while others commit."""
        def newest(node: int) -> Sequence[int]:
            self.begin_reading()
            found = self.neighbours(node)
            self.end_reading()
            return found

        return newest

    @abstractmethod
    def reopen(self) -> None:
        """Close, and open again, so that nothing of its own is warm."""

    def bytes(self) -> int:
        """What it holds on disk, its log apart."""
        return sum(path.stat().st_size for path in self.place.rglob("*") if path.is_file())
