"""The contract suites for copying, replaying and clusters, to be run on your own engine: see
`docs/writing-an-engine.md`."""

from .cluster import ClusterContract
from .contract import ReplayContract

__all__ = ["ClusterContract", "ReplayContract"]
