"""The contract suites for backups and for their storage, to be run on your own: see `docs/writing-an-engine.md`."""

from .contract import BackupContract
from .object_store import ObjectStoreContract

__all__ = ["BackupContract", "ObjectStoreContract"]
