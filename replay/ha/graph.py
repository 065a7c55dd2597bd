"""A member of a cluster of graphs: `Member` with the graph engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ...engine.builtin.graph.engine import GraphEngine
from ...engine.builtin.graph.transaction import GraphTransaction
from ...engine.builtin.graph.view import GraphView
from .coordinator import Coordinator
from .service import Member


class GraphMember(Member[GraphTransaction, GraphView]):
    """A property graph that belongs to a cluster. `GraphTransaction` has the calls that write, `GraphView` those that
    read."""

    @classmethod
    def open(cls, directory: str | Path, *, cluster: str, name: str, listen: str,  # type: ignore[override]
             coordinator: str | Coordinator, **more: Any) -> Self:
        """Open a member with a graph in `directory`, and let it join its cluster. `more` and errors: as
        `Member.open`."""
        return super().open(directory, GraphEngine, cluster=cluster, name=name, listen=listen, coordinator=coordinator,
                            **more)
