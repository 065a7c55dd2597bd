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

from . import errors

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("Holdfast does not run on a free-threaded Python yet: its reads without locks rest on the "
                      "interpreter lock. Use the ordinary build, or start this one with PYTHON_GIL=1.")

if TYPE_CHECKING:
    from .contract import (
        Abilities,
        BulkEngine,
        Context,
        Engine,
        Image,
        ImageFile,
        StagingEngine,
        Transaction,
        View,
    )
    from .errors import ConditionNotMet, DiskFull, HoldfastError, OutcomeUnknown, RolledBack
    from .graph import BulkLoad, Edge, GraphEngine, GraphTransaction, GraphView, Node
    from .graph.store import GraphStore
    from .history import Branch, History, LogRange, Position, Record
    from .memory import MemoryEngine
    from .plugins import Condition, Plugin, StoreHandle
    from .records import RecordsEngine
    from .settings import Settings
    from .source.service import BackupService
    from .store import Positions, Recovery, Store

__all__ = [
    "Abilities", "BackupService", "Branch", "BulkEngine", "BulkLoad", "Condition", "ConditionNotMet", "Context",
    "DiskFull", "Edge", "Engine", "GraphEngine", "GraphStore", "GraphTransaction", "GraphView", "History",
    "HoldfastError", "Image", "ImageFile", "LogRange", "MemoryEngine", "Node", "OutcomeUnknown", "Plugin", "Position",
    "Positions", "Record", "RecordsEngine", "Recovery", "RolledBack", "Settings", "StagingEngine", "Store",
    "StoreHandle", "Transaction", "View", "errors",
]

_MODULES = {
    ".contract": ("Abilities", "BulkEngine", "Context", "Engine",
                  "Image", "ImageFile", "StagingEngine", "Transaction", "View"),
    ".errors": ("ConditionNotMet", "DiskFull", "HoldfastError", "OutcomeUnknown", "RolledBack"),
    ".graph": ("BulkLoad", "Edge", "GraphEngine", "GraphTransaction", "GraphView", "Node"),
    ".graph.store": ("GraphStore",),
    ".history": ("Branch", "History", "LogRange", "Position", "Record"),
    ".memory": ("MemoryEngine",),
    ".plugins": ("Condition", "Plugin", "StoreHandle"),
    ".records": ("RecordsEngine",),
    ".settings": ("Settings",),
    ".source.service": ("BackupService",),
    ".store": ("Positions", "Recovery", "Store"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
