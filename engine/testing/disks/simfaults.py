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

Kind = Literal["EIO", "ENOSPC", "short write", "lost sync"]
KINDS: tuple[Kind, ...] = ("EIO", "ENOSPC", "short write", "lost sync")


def may_fail(op: Op, kind: Kind) -> bool:
    """Whether an operation can end so: what only removes needs no room, and only a write can be short."""
    if kind == "ENOSPC":
        return op.kind in ("write", "truncate", "make", "sync") or any(inode is not None for _, _, inode in op.names)
    if kind == "short write":
        return op.kind == "write" and len(op.data) > 1
    return kind == "EIO" or op.kind == "sync"


@dataclass(frozen=True, slots=True)
class DiskFault:
    """An error to come.

    Attributes:
        at: how many operations go well before it.
        kind: `EIO`; `ENOSPC`; a `short write` of the first half, and then ENOSPC; a `lost sync`, which says EIO, and
            what was to be synced is called clean and is not on the disk.
        lasting: every later operation that can end so does, too.
    """

    at: int
    kind: Kind
    lasting: bool

    def __str__(self) -> str:
        return f"{self.kind} at operation {self.at}{' and from then on' if self.lasting else ''}"


class Injected:
    """Makes a disk fail, from now on, until `heal`. `struck`: the operations that did."""

    def __init__(self, disk: SimDisk, fault: DiskFault) -> None:
        self.struck: list[Op] = []
        self.lasting = fault.lasting
        self._disk, self._fault = disk, fault
        self._count = 0
        disk.before = self._before

    def heal(self) -> None:
        self._disk.before = lambda op: None

    def _before(self, op: Op) -> None:
        fault, count = self._fault, self._count
        self._count += 1
        if count < fault.at or (count > fault.at and not fault.lasting) or not may_fail(op, fault.kind):
            return
        self.struck.append(op)
        if fault.kind == "short write":
            part = op._replace(data=op.data[: len(op.data) // 2])
            self._disk.ops.append(part)
            self._disk.apply(part)
        elif fault.kind == "lost sync":
            self._disk.fail_sync(op.inode)
        code = errno.EIO if fault.kind in ("EIO", "lost sync") else errno.ENOSPC
        raise OSError(code, os.strerror(code), op.label)


def faults_of(ops: list[Op]) -> Iterator[DiskFault]:
    """Every fault of a run that did these operations."""
    for at, op in enumerate(ops):
        for kind in KINDS:
            if may_fail(op, kind):
                yield DiskFault(at, kind, False)
                yield DiskFault(at, kind, True)
