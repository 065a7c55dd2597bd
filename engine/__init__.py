"""Holdfast's engine layer: the contract, the log, the store that joins them, the engines, and the source.

    from holdfast.engine import GraphStore              # the reference engine, ready to use
    from holdfast.engine import Engine, Transaction, View, Store, MemoryEngine
    from holdfast.engine import errors                   # every error, each with what to do about it
"""

from . import errors
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
from .history import Branch, History, Position, Record
from .memory import MemoryEngine
from .plugins import Condition, LogRange, Plugin
from .records import RecordsEngine
from .settings import Settings
from .source.service import BackupService
from .store import Positions, Recovery, Store

__all__ = [
    "Abilities", "BackupService", "Branch", "BulkEngine", "BulkLoad", "Condition", "ConditionNotMet", "Context",
    "DiskFull", "Edge", "Engine", "GraphEngine", "GraphStore", "GraphTransaction", "GraphView", "History",
    "HoldfastError", "Image", "ImageFile", "LogRange", "MemoryEngine", "Node", "OutcomeUnknown", "Plugin", "Position",
    "Positions", "Record", "RecordsEngine", "Recovery", "RolledBack", "Settings", "StagingEngine", "Store",
    "Transaction", "View", "errors",
]
