"""The reference engine: a property graph on LMDB.

Nodes have labels and properties; edges are directed, have one type, a source, a target and properties, and there may be
several between the same two nodes. One transaction writes at a time. Any number of views can read meanwhile.
"""

from .bulk import BulkLoad, BulkResult
from .engine import GraphEngine
from .lookups import Direction
from .reads import Edge, Node
from .transaction import GraphTransaction
from .view import GraphView

__all__ = ["BulkLoad", "BulkResult", "Direction", "Edge", "GraphEngine", "GraphTransaction", "GraphView", "Node"]
