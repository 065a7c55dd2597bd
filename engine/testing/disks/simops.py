"""What is done to a simulated disk, and the files it is done to: see `simdisk`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .simfates import Fate

SECTOR = 512


class Op(NamedTuple):
    """One change. `inode` is the file or directory concerned; `names` are (directory, name, inode or None); `label` and
    `says` are for people."""

    kind: Literal["make", "write", "truncate", "sync", "names", "sync names"]
    inode: int
    offset: int = 0
    data: bytes = b""
    names: tuple[tuple[int, str, int | None], ...] = ()
    label: str = ""
    says: str = ""

    def __str__(self) -> str:
        if self.kind == "write":
            return f"write of {len(self.data):,} bytes at {self.offset:,} of {self.label}"
        return f"{self.says or self.kind} of {self.label}"


@dataclass
class Inode:
    """A file: bytes, or a directory: names. `pending` came after the last sync. `synced` is what a power cut leaves of
    the bytes; None if that is all of them. After a sync that failed it stays `behind`.
    `changes`: how many there were."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytearray | None = None
    behind: bool = False
    pending: list[Op] = field(default_factory=list)
    names: dict[str, int] | None = None
    synced_names: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    def copy(self) -> Inode:
        return Inode(bytearray(self.data), None if self.synced is None else bytearray(self.synced), self.behind,
                      list(self.pending), copy.copy(self.names), dict(self.synced_names), self.changes)

    def change(self, op: Op) -> None:
        if self.synced is None:
            self.synced = bytearray(self.data)
        change(self.data, op)
        self.changes += 1
        self.pending.append(op)

    def sync(self) -> None:
        if not self.behind:
            self.synced = None
        elif self.synced is not None:
            for op in self.pending:
                change(self.synced, op)
        self.pending.clear()

    def fail_sync(self) -> None:
        self.behind = self.behind or bool(self.pending)
        self.pending.clear()

    @property
    def left(self) -> bytearray:
        """A copy of the bytes that no power cut takes."""
        return bytearray(self.data if self.synced is None else self.synced)


def change(data: bytearray, op: Op) -> None:
    if op.kind == "truncate":
        resize(data, op.offset)
    else:
        resize(data, max(len(data), op.offset))
        data[op.offset : op.offset + len(op.data)] = op.data


def sectors_of(op: Op) -> int:
    """How many sectors a write touches."""
    return -(-(op.offset + len(op.data)) // SECTOR) - op.offset // SECTOR if op.data else 0


def fated_change(data: bytearray, op: Op, fate: Fate, lost: list[str]) -> None:
    if op.kind == "truncate":
        if fate.truncate():
            resize(data, op.offset)
        else:
            lost.append(str(op))
        return
    kept = fate.write(sectors_of(op))
    if kept is None:
        lost.append(str(op))
        return
    if not all(kept):
        lost.append(f"sectors {[i for i, keep in enumerate(kept) if not keep]} of the {op}")
    end, first = op.offset + len(op.data), op.offset // SECTOR
    resize(data, max(len(data), end))
    for i, keep in enumerate(kept):
        if keep:
            start, stop = max(op.offset, (first + i) * SECTOR), min(end, (first + i + 1) * SECTOR)
            data[start:stop] = op.data[start - op.offset : stop - op.offset]


def resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def rename(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode
