"""Holdfast's engine layer: the contract, the log, the store that joins them, the engines, and the source.

    from holdfast.engine import GraphStore              # the reference engine, ready to use
    from holdfast.engine import Engine, Transaction, View, Store, MemoryEngine
    from holdfast.engine import errors                   # every error, each with what to do about it

A name is imported when it is first used: a program that takes backups loads neither the graph engine nor NumPy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors, renamed

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("Holdfast does not run on a free-threaded Python yet: its reads without locks rest on the "
                      "interpreter lock. Use the ordinary build, or start this one with PYTHON_GIL=1.")

renamed.install()

if TYPE_CHECKING:
    from .builtin.graph import BulkLoad, Edge, GraphEngine, GraphTransaction, GraphView, Node
    from .builtin.graph.store import GraphStore
    from .builtin.inplace.records import RecordsEngine
    from .builtin.memory import MemoryEngine
    from .contract.engine import Abilities, BulkEngine, Context, Engine, StagingEngine
    from .contract.image import Image, ImageFile
    from .contract.options import Option
    from .contract.plugin import Condition, Fact, Obstacle, Plugin, StoreHandle
    from .contract.transaction import Transaction
    from .contract.view import View
    from .errors import ConditionNotMet, DiskFull, HoldfastError, OutcomeUnknown, RolledBack
    from .model.positions import Branch, History, Position
    from .model.records import LogRange, Record
    from .source.http.service import BackupService
    from .store.recovery_report import Recovery
    from .store.settings import Settings
    from .store.store import Store
    from .store.watermarks import Positions

__all__ = [
    "Abilities", "BackupService", "Branch", "BulkEngine", "BulkLoad", "Condition", "ConditionNotMet", "Context",
    "DiskFull", "Edge", "Engine", "Fact", "GraphEngine", "GraphStore", "GraphTransaction", "GraphView", "History",
    "HoldfastError", "Image", "ImageFile", "LogRange", "MemoryEngine", "Node", "Obstacle", "Option", "OutcomeUnknown",
    "Plugin", "Position", "Positions", "Record", "RecordsEngine", "Recovery", "RolledBack", "Settings",
    "StagingEngine", "Store", "StoreHandle", "Transaction", "View", "errors",
]

_MODULES = {
    ".builtin.graph": ("BulkLoad", "Edge", "GraphEngine", "GraphTransaction", "GraphView", "Node"),
    ".builtin.graph.store": ("GraphStore",),
    ".builtin.inplace.records": ("RecordsEngine",),
    ".builtin.memory": ("MemoryEngine",),
    ".contract": ("Abilities", "BulkEngine", "Condition", "Context", "Engine", "Fact", "Image", "ImageFile", "Obstacle",
                  "Option", "Plugin", "StagingEngine", "StoreHandle", "Transaction", "View"),
    ".errors": ("ConditionNotMet", "DiskFull", "HoldfastError", "OutcomeUnknown", "RolledBack"),
    ".model.positions": ("Branch", "History", "Position"),
    ".model.records": ("LogRange", "Record"),
    ".source.http.service": ("BackupService",),
    ".store.recovery_report": ("Recovery",),
    ".store.settings": ("Settings",),
    ".store.store": ("Store",),
    ".store.watermarks": ("Positions",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
