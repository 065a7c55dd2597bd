"""The contract suite for copying and replaying, to be run on your own engine: see `docs/writing-an-engine.md`."""

from .contract import ReplayContract

__all__ = ["ReplayContract"]
