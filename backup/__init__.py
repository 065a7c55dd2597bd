"""Backup: full and incremental, restore to any point, verify.

>>> from holdfast import backup
>>> backup.parse("single://localhost").addresses[0].port
6362

`run` takes a backup of a running store, full the first time and incremental afterwards; `restore` makes a store of it,
as of its end, a transaction or a time; `verify` proves that it is whole; `info` tells what a directory is;
`consumers` and `drop_consumer` say for whom a store keeps log, and end it.
"""

from .consumers import consumers, drop_consumer
from .info import info, transactions
from .report import Bounds, Info, Report, RestoreReport, VerifyReport
from .restore import restore
from .run import run
from .uri import BackupUri, parse
from .verify import verify

__all__ = [
    "BackupUri",
    "Bounds",
    "Info",
    "Report",
    "RestoreReport",
    "VerifyReport",
    "consumers",
    "drop_consumer",
    "info",
    "parse",
    "restore",
    "run",
    "transactions",
    "verify",
]
