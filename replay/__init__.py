"""Replay: copies that follow a store, and members of a cluster.

`Member` is a store that belongs to a cluster, `GraphMember` one with a graph, `Cluster` a client that finds its
members. Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ha.cluster import Cluster
    from .ha.graph import GraphMember
    from .ha.service import Member

__all__ = ["Cluster", "GraphMember", "Member"]

_WHERE = {"Cluster": ".ha.cluster", "GraphMember": ".ha.graph", "Member": ".ha.service"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)
