"""The kit's own engines as plain maps, for checks that are not about the engine: the memory engine, which does not
stage, and the graph engine, which does and checkpoints in the background."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...builtin.graph.bulk import BulkLoad
from ...builtin.graph.engine import GraphEngine
from ...builtin.graph.transaction import GraphTransaction
from ...builtin.graph.view import GraphView
from ...builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from ..support.workload import KeyValues, Workload


def memory_map() -> Workload:
    return KeyValues(MemoryEngine, put=MemoryTransaction.put, items=MemoryView.items, get=MemoryTransaction.get,
                     delete=MemoryTransaction.delete)


def graph_map() -> Workload:
    """Keys are nodes."""
    return KeyValues(GraphEngine, put=_put, items=_items, get=_get, delete=_delete, bulk=_load, above_env=False)


def _node(tx: GraphTransaction, key: bytes) -> int | None:
    return next(tx.nodes("Key", key=key), None)


def _put(tx: GraphTransaction, key: bytes, value: bytes) -> None:
    node = _node(tx, key)
    if node is None:
        tx.add_node("Key", key=key, value=value)
    else:
        tx.set_properties(node, value=value)


def _get(tx: GraphTransaction, key: bytes) -> Any:
    node = _node(tx, key)
    return None if node is None else tx.node(node).properties["value"]


def _delete(tx: GraphTransaction, key: bytes) -> None:
    node = _node(tx, key)
    assert node is not None
    tx.delete_node(node)


def _load(new: dict[bytes, bytes]) -> BulkLoad:
    return BulkLoad(nodes=[{"key": key, "value": value} for key, value in new.items()], labels="Key")


def _items(view: GraphView) -> Iterable[tuple[bytes, bytes]]:
    for node in view.nodes("Key"):
        held = view.node(node).properties
        yield held["key"], held["value"]
