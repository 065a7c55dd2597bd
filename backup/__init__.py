"""Backup: full and incremental, restore to any point, verify.

>>> from holdfast import backup
>>> backup.parse("single://localhost").addresses[0].port
6362

`run` takes a backup of a running store: full the first time, incremental afterwards. `restore` makes a store from it,
as of its end, a transaction or a time. `verify` proves that it is whole. `info` tells what a directory is. `Policy`
says what a run checks and keeps, `Connection` how a source is reached. `Repository` keeps a store's whole past; `Keep`
says what its expiry keeps, `Key` opens an encrypted one, `ArchivePlugin` archives a store into it,
`MemberArchivePlugin` a cluster, and a `RepositoryPlugin` is told what was done and may veto an expiry. `slots` lists
the slots that a store keeps log for; `drop_slot` drops one. `import_files` makes a graph store of CSV and Parquet
files.

A name is imported when it is first used. `run`, `restore`, `verify`, `info` and `slots` are functions here, and their
modules have the same names. Importing such a module does not hide the function.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connection import Connection
    from .importing import ImportReport, import_files
    from .info import info, transactions
    from .limits import Limits
    from .policy import Policy
    from .report import Bounds, Info, Report, RestoreReport, VerifyReport
    from .repository.archiving import ArchiveAckPlugin, ArchivePlugin
    from .repository.expiring import Keep
    from .repository.hooks import RepositoryPlugin
    from .repository.keys import Key
    from .repository.member_archiving import MemberArchiveAckPlugin, MemberArchivePlugin
    from .repository.repository import Repository
    from .restore import restore
    from .run import run
    from .slots import drop_slot, slots
    from .uri import BackupUri, parse
    from .verify import verify

__all__ = [
    "ArchiveAckPlugin",
    "ArchivePlugin",
    "BackupUri",
    "Bounds",
    "Connection",
    "ImportReport",
    "Info",
    "Keep",
    "Key",
    "Limits",
    "MemberArchiveAckPlugin",
    "MemberArchivePlugin",
    "Policy",
    "Report",
    "Repository",
    "RepositoryPlugin",
    "RestoreReport",
    "VerifyReport",
    "drop_slot",
    "import_files",
    "info",
    "parse",
    "restore",
    "run",
    "slots",
    "transactions",
    "verify",
]

_MODULES = {
    ".connection": ("Connection",),
    ".importing": ("ImportReport", "import_files"),
    ".slots": ("slots", "drop_slot"),
    ".info": ("info", "transactions"),
    ".limits": ("Limits",),
    ".policy": ("Policy",),
    ".report": ("Bounds", "Info", "Report", "RestoreReport", "VerifyReport"),
    ".repository.archiving": ("ArchiveAckPlugin", "ArchivePlugin"),
    ".repository.expiring": ("Keep",),
    ".repository.hooks": ("RepositoryPlugin",),
    ".repository.keys": ("Key",),
    ".repository.member_archiving": ("MemberArchiveAckPlugin", "MemberArchivePlugin"),
    ".repository.repository": ("Repository",),
    ".restore": ("restore",),
    ".run": ("run",),
    ".uri": ("BackupUri", "parse"),
    ".verify": ("verify",),
}
_OLD = {"consumers": "slots", "drop_consumer": "drop_slot"}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name in _OLD:
            from ..engine.renamed import warn

            warn(f"{__name__}.{name}", new := _OLD[name])
            return getattr(self, new)
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_WHERE[name], __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
