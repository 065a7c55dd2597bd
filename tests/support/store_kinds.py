"""The engines that tests of the store run on: how to write the number n into each, and which numbers a view shows; and
what those tests have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staging_memory import StagingMemory

from holdfast.engine.builtin.graph import GraphEngine
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.engine import Engine, StagingEngine
from holdfast.engine.contract.plugin import StoreHandle
from holdfast.engine.contract.view import View
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

QUIET = Settings(heartbeat_s=0)


@dataclass(frozen=True)
class Kind:
    engine: type[Engine[Any, Any]]
    write: Callable[[Any, int], Any]
    shown: Callable[[Any], set[int]]

    @property
    def watermarks(self) -> bool:
        return issubclass(self.engine, StagingEngine)

    def open(self, directory: Path, **kwargs: Any) -> Store[Any, Any]:
        return Store.open(directory, self.engine, **kwargs)

    def numbers(self, store: Store[Any, Any], **kwargs: Any) -> set[int]:
        with store.snapshot(**kwargs) as view:
            return self.of(view)

    def of(self, view: View) -> set[int]:
        assert list(view.check()) == []
        return self.shown(view)


def _put(tx: Any, n: int) -> None:
    tx.put(b"%d" % n, b"x" * (n % 50))


def _keys(view: Any) -> set[int]:
    return {int(key) for key, _ in view.items()}


MEMORY = Kind(MemoryEngine, _put, _keys)
STAGING = Kind(StagingMemory, _put, _keys)
RECORDS = Kind(RecordsEngine, lambda tx, n: tx.insert(b"%d" % n), lambda view: {int(v) for _, v in view.items()})
GRAPH = Kind(GraphEngine, lambda tx, n: tx.add_node("N", n=n),
             lambda view: {view.node(i).properties["n"] for i in view.nodes("N")})
KINDS = {"memory": MEMORY, "staging": STAGING, "records": RECORDS, "graph": GRAPH}


def commit(kind: Kind, store: StoreHandle, *numbers: int) -> None:
    with store.transaction() as tx:
        for n in numbers:
            kind.write(tx, n)


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)
