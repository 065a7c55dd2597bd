"""Replay: copies that follow a store, and members of a cluster.

`Member` is a store that belongs to a cluster, `Cluster` a client that finds its members. Each is imported when it is
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ha.cluster import Cluster
    from .ha.service import Member

__all__ = ["Cluster", "Member"]

_WHERE = {"Cluster": ".ha.cluster", "Member": ".ha.service"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)
