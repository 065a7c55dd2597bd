"""Errors of a simulated disk: at its n-th operation, once or from then on.

Which errors an operation may end with, see `docs/crashes.md`. A fault is a value, so that a run can be told and had
again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .simdisk import SimDisk
from .simops import Op

Kind = Literal["EIO", "ENOSPC", "short write", "lost sync", "ENOMEM", "EMFILE"]
KINDS: tuple[Kind, ...] = ("EIO", "ENOSPC", "short write", "lost sync")
LACKS: tuple[Kind, ...] = ("ENOMEM", "EMFILE")
"""Shortages that pass: nothing is lost by them, and no store is poisoned."""


def may_fail(op: Op, kind: Kind) -> bool:
    """Whether an operation can end so: what only removes needs no room, and only a write can be short."""
    if kind == "EMFILE":
        return False  # opening is not an operation
    if kind == "ENOMEM":
        return op.kind not in ("sync", "sync names")  # after a sync that failed nothing is known
    if kind == "ENOSPC":
        return op.kind in ("write", "truncate", "make", "sync") or any(inode is not None for _, _, inode in op.names)
    if kind == "short write":
        return op.kind == "write" and len(op.data) > 1
    return kind == "EIO" or op.kind == "sync"


@dataclass(frozen=True, slots=True)
class DiskFault:
    """An error to come.

    Attributes:
        at: how many operations go well before it; of EMFILE, how many openings of files and directories.
        kind: `EIO`; `ENOSPC`; a `short write` of the first half, and then ENOSPC; a `lost sync`, which says EIO, and
            what was to be synced is called clean and is not on the disk; `ENOMEM`; `EMFILE`.
        lasting: every later operation that can end so does, too.
    """

    at: int
    kind: Kind
    lasting: bool

    def __str__(self) -> str:
        what = "opening" if self.kind == "EMFILE" else "operation"
        return f"{self.kind} at {what} {self.at}{' and from then on' if self.lasting else ''}"


class Injected:
    """Makes a disk fail, from now on, until `heal`. `struck`: the operations that did, or the names that were not
    opened. `seen`: how many of either were begun, those included."""

    def __init__(self, disk: SimDisk, fault: DiskFault) -> None:
        self.struck: list[Op | str] = []
        self.lack = fault.kind in LACKS
        self.lasting = fault.lasting
        self._disk, self._fault = disk, fault
        self.seen = 0
        if fault.kind == "EMFILE":
            disk.opening = self._opening
        else:
            disk.before = self._before

    def heal(self) -> None:
        self._disk.before = lambda op: None
        self._disk.opening = lambda name: None

    def _opening(self, name: str) -> None:
        count, self.seen = self.seen, self.seen + 1
        if count == self._fault.at or (count > self._fault.at and self.lasting):
            self.struck.append(name)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    def _before(self, op: Op) -> None:
        fault, count = self._fault, self.seen
        self.seen += 1
        if count < fault.at or (count > fault.at and not fault.lasting) or not may_fail(op, fault.kind):
            return
        self.struck.append(op)
        if fault.kind == "short write":
            part = op._replace(data=op.data[: len(op.data) // 2])
            self._disk.ops.append(part)
            self._disk.apply(part)
        elif fault.kind == "lost sync":
            self._disk.fail_sync(op.inode)
        code = {"EIO": errno.EIO, "lost sync": errno.EIO, "ENOMEM": errno.ENOMEM}.get(fault.kind, errno.ENOSPC)
        raise OSError(code, os.strerror(code), op.label)


def faults_of(ops: list[Op]) -> Iterator[DiskFault]:
    """Every fault of a run that did these operations, each once and then lasting."""
    for at, op in enumerate(ops):
        for kind in KINDS:
            if may_fail(op, kind):
                yield DiskFault(at, kind, False)
                yield DiskFault(at, kind, True)


def lacks_of(ops: list[Op], openings: int) -> Iterator[DiskFault]:
    """Every lack of a run that did these operations, and opened this many files and directories."""
    for lasting in (False, True):
        yield from (DiskFault(at, "EMFILE", lasting) for at in range(openings))
        yield from (DiskFault(at, "ENOMEM", lasting) for at, op in enumerate(ops) if may_fail(op, "ENOMEM"))
