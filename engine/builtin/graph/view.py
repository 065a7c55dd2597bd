"""`GraphView`: a consistent read view of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...contract.view import View
from . import check, walk
from .csr import Csr, csr
from .lmdbstate import Base
from .lookups import NOTHING, Closed, Direction, Int64
from .overlay import Layer
from .reads import Edge, Reads
from .tokens import TYPE, Tokens

_CLOSED: Any = Closed("view")


class GraphView(Reads, View):
    """The graph as of one transaction. For any thread. Close it, or use it in a `with`: while it is open, the room of
    what was deleted since is not reused. If open views hold the states of some 2,000 checkpoints, no further checkpoint
    is possible. `Reads` has the calls."""

    __slots__ = ("_base", "_bound", "_found", "_get", "_kept", "_layers", "_plans", "_tokens")
    __networkx_backend__ = "holdfast"
    _keeps = True

    def __init__(self, base: Base, layers: tuple[Layer, ...], bound: int, tokens: Tokens) -> None:
        self._base = base
        self._get = base.get
        self._layers = layers
        self._bound = bound
        self._tokens = tokens
        self._plans = {}
        self._kept = self._found = NOTHING

    @property
    def txid(self) -> int:
        return self._bound

    def all_edges(self, type: str | None = None) -> Iterator[Edge]:
        """Every edge, or every one of a type, by id."""
        kind = self._type(type)
        return iter(()) if kind < 0 else walk.all_edges(self, kind)

    def edge_arrays(self, type: str | None = None) -> tuple[Int64, Int64, Int64]:
        """Every edge, or every one of a type, by id: new arrays of sources, targets and edge ids. O(edges)."""
        return walk.edge_arrays(self, self._type(type))

    def csr(self, type: str | None = None, direction: Direction = "out", *, edges: bool = False) -> Csr:
        """All nodes, and every edge or every one of a type, in compressed sparse rows: new arrays. `edges`: with the
        ids of the edges. O(nodes + edges log edges), at nearly the speed of memory."""
        return csr(self, self._type(type), direction, edges)

    def is_directed(self) -> bool:
        """NetworkX asks this of every graph."""
        return True

    def is_multigraph(self) -> bool:
        """NetworkX asks this of every graph."""
        return True

    def _type(self, type: str | None) -> int:
        return 0 if type is None else self._tokens.ids.get((TYPE, type), -1)

    def digest(self) -> bytes:
        return walk.digest(self)

    def check(self) -> Iterator[str]:
        return check.check(self, self._bound)

    def close(self) -> None:
        self._base = self._get = self._kept = self._found = self._layers = self._plans = _CLOSED
