"""The contract suite for backups, to be run on your own engine: see `docs/writing-an-engine.md`."""

from .contract import BackupContract

__all__ = ["BackupContract"]
