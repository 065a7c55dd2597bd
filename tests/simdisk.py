"""A simulated disk behind the `Files` seam: a file system in memory that knows what is synced and what is not.

Every change is an operation, noted in `ops`, so that a run is recorded once and each point between two of its
operations can be looked at afterwards (`points`). Changes of contents (writes, truncations) are pending until their
file is synced, changes of names until their directory is. A power cut (`crashed`) keeps what is synced, and of what is
pending whatever a `Fate` decides:

- a write is kept, dropped, or torn at sectors of 512 bytes, any of which may be there; writes to one file reach the
  disk in any order, so a later one may be there without an earlier one; a file may have grown without its bytes;
- a change of names is there or not as a whole (a rename is one change); changes that touch the same name keep their
  order, others need not. What is in a directory whose own entry is lost is lost.

A `killed` process leaves everything, with what is pending still pending. A sync that failed (`fail_sync`) leaves what
was pending readable and not on the disk, and later syncs do not help: so Linux does it.
"""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from random import Random
from typing import Literal, NamedTuple

from holdfast.engine.errors import StoreLocked
from holdfast.engine.seams import Clock, DirectoryLock, File, Files, Randomness, Scheduler, Seams, Task

SECTOR = 512
ROOT = 1
_EMPTY = b""


class Op(NamedTuple):
    """One change. `inode` is the file or directory concerned; `names` are (directory, name, inode or None)."""

    kind: Literal["make", "write", "truncate", "sync", "names", "sync names"]
    inode: int
    offset: int = 0
    data: bytes = b""
    names: tuple[tuple[int, str, int | None], ...] = ()
    label: str = ""


class Fate:
    """What becomes of pending changes in a power cut. The base keeps everything."""

    def file(self, changes: int) -> None:
        """A file with so many pending changes of contents comes next."""

    def write(self, sectors: int) -> list[bool] | None:
        """Which sectors of a write are kept; None: none of them, and the file has not grown either."""
        return [True] * sectors

    def truncate(self) -> bool:
        return True

    def names(self) -> bool:
        return True


class Dropped(Fate):
    """Nothing pending is kept, but names where `names_kept`, and contents where `data_kept`."""

    def __init__(self, *, data_kept: bool = False, names_kept: bool = False) -> None:
        self._data, self._names = data_kept, names_kept

    def write(self, sectors: int) -> list[bool] | None:
        return [True] * sectors if self._data else None

    def truncate(self) -> bool:
        return self._data

    def names(self) -> bool:
        return self._names


class Torn(Fate):
    """Of each write the sectors that `keep(index, count)` chooses; sizes and names are kept."""

    def __init__(self, keep: Callable[[int, int], bool]) -> None:
        self._keep = keep

    def write(self, sectors: int) -> list[bool] | None:
        return [self._keep(i, sectors) for i in range(sectors)]


class Reordered(Fate):
    """Of the changes of one file those that `keep(index, count)` chooses, whole; all names."""

    def __init__(self, keep: Callable[[int, int], bool]) -> None:
        self._keep = keep
        self._count = self._index = 0

    def file(self, changes: int) -> None:
        self._count, self._index = changes, -1

    def truncate(self) -> bool:
        self._index += 1
        return self._keep(self._index, self._count)

    def write(self, sectors: int) -> list[bool] | None:
        return [True] * sectors if self.truncate() else None


class Drawn(Fate):
    """Everything by lot. `random` may be Hypothesis's, so that a failure shrinks."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def write(self, sectors: int) -> list[bool] | None:
        how = self._random.randrange(4)
        if how == 0:
            return None
        if how == 1:
            return [True] * sectors
        cut = self._random.randrange(sectors + 1)  # one place is enough: a drawn set of sectors shrinks badly
        return [(i < cut) == (how == 2) for i in range(sectors)]

    def truncate(self) -> bool:
        return self._random.randrange(2) == 0

    def names(self) -> bool:
        return self._random.randrange(2) == 0


FATES: dict[str, Callable[[], Fate]] = {
    "all kept": Fate,
    "all dropped": Dropped,
    "names only": lambda: Dropped(names_kept=True),
    "contents only": lambda: Dropped(data_kept=True),
    "first sectors": lambda: Torn(lambda i, n: i < n // 2),
    "last sectors": lambda: Torn(lambda i, n: i >= (n + 1) // 2),
    "later ones only": lambda: Reordered(lambda i, n: i >= n // 2),
    "every second": lambda: Reordered(lambda i, n: i % 2 == 1),
    "sizes only": lambda: Torn(lambda i, n: False),
}


@dataclass
class _Inode:
    """A file: bytes, or a directory: names. `synced` is what a power cut leaves; `pending` came later."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)
    names: dict[str, int] | None = None
    synced_names: dict[str, int] = field(default_factory=dict)

    def copy(self) -> _Inode:
        return _Inode(bytearray(self.data), bytearray(self.synced), list(self.pending), copy.copy(self.names),
                      dict(self.synced_names))


class SimFile(File):
    """An open file of a simulated disk."""

    __slots__ = ("_closed", "_disk", "_inode", "_writable")

    def __init__(self, disk: SimDisk, path: Path, inode: int, writable: bool) -> None:
        super().__init__(path, -1)
        self._disk = disk
        self._inode = inode
        self._writable = writable
        self._closed = False

    def fileno(self) -> int:
        raise AssertionError("code that needs a descriptor goes past the seam")

    def _data(self) -> bytearray:
        if self._closed:
            raise OSError(errno.EBADF, "closed", str(self.path))
        return self._disk.inodes[self._inode].data

    def size(self) -> int:
        return len(self._data())

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self._data()[offset : offset + length])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._data()
        if not self._writable:
            raise OSError(errno.EBADF, "opened to read", str(self.path))
        self._disk.do(Op("write", self._inode, offset, bytes(data), label=self.path.name))

    def truncate(self, size: int) -> None:
        self._data()
        self._disk.do(Op("truncate", self._inode, size, label=self.path.name))

    def reserve(self, size: int) -> None:
        if size > len(self._data()):
            self.truncate(size)

    def datasync(self) -> None:
        self._data()
        self._disk.do(Op("sync", self._inode, label=self.path.name))

    sync = datasync

    def close(self) -> None:
        self._closed = True


class SimLock(DirectoryLock):
    __slots__ = ("_held",)

    def __init__(self, held: set[str], path: Path) -> None:
        super().__init__(path, -1)
        self._held = held

    def release(self) -> None:
        self._held.discard(str(self.path))


class SimDisk(Files):
    """See the module's text. Paths are absolute; only `/` is there at first.

    Attributes:
        ops: what was done to it since it was made.
        before: called with each operation before it is done; it may raise `OSError`, which then was the disk's.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, _Inode] = {ROOT: _Inode(names={})}
        self.ops: list[Op] = []
        self.before: Callable[[Op], None] = lambda op: None
        self._pending_names: list[Op] = []
        self._next = ROOT + 1
        self._locks: set[str] = set()

    # --- operations ------------------------------------------------------------------------------------------------

    def do(self, op: Op) -> None:
        self.before(op)
        self.ops.append(op)
        self.apply(op)

    def apply(self, op: Op) -> None:
        """Do it, without a note."""
        if op.kind == "make":
            self.inodes[op.inode] = _Inode(names={} if op.offset else None)
            self._next = max(self._next, op.inode + 1)
        elif op.kind in ("write", "truncate"):
            inode = self.inodes[op.inode]
            _change(inode.data, op)
            inode.pending.append(op)
        elif op.kind == "sync":
            inode = self.inodes[op.inode]
            for pending in inode.pending:
                _change(inode.synced, pending)
            inode.pending.clear()
        elif op.kind == "names":
            for directory, name, inode_number in op.names:
                _rename(self._names_of(directory), name, inode_number)
            self._pending_names.append(op)
        else:
            durable = [p for p in self._pending_names if any(d == op.inode for d, _, _ in p.names)]
            self._pending_names = [p for p in self._pending_names if p not in durable]
            for pending in durable:
                for directory, name, inode_number in pending.names:
                    _rename(self.inodes[directory].synced_names, name, inode_number)

    def _names_of(self, directory: int) -> dict[str, int]:
        names = self.inodes[directory].names
        assert names is not None
        return names

    # --- what a crash leaves ---------------------------------------------------------------------------------------

    def copy(self) -> SimDisk:
        """The same disk, with what is pending, and no operation noted: what a killed process leaves."""
        other = SimDisk()
        other.inodes = {number: inode.copy() for number, inode in self.inodes.items()}
        other._pending_names = list(self._pending_names)
        other._next = self._next
        return other

    killed = copy

    def fail_sync(self, path: Path) -> None:
        """A sync of this file has failed. To be called instead of the sync (from `before`, say)."""
        self.inodes[self._walk(path)].pending.clear()

    def points(self, ops: list[Op]) -> Iterator[SimDisk]:
        """This disk (which is left alone) before each of `ops`, and after the last. Do not change what is yielded."""
        walker = self.copy()
        yield walker
        for op in ops:
            walker.apply(op)
            yield walker

    @property
    def settled(self) -> bool:
        """Whether nothing is pending: every power cut leaves the same."""
        return not self._pending_names and not any(inode.pending for inode in self.inodes.values())

    def crashed(self, fate: Fate) -> SimDisk:
        """A disk as a power cut now would leave this one."""
        other = SimDisk()
        other._next = self._next
        other.inodes = {number: _Inode(names=dict(inode.synced_names))
                        for number, inode in self.inodes.items() if inode.names is not None}
        lost: set[tuple[int, str]] = set()
        for op in self._pending_names:
            touched = {(directory, name) for directory, name, _ in op.names}
            if touched & lost or not fate.names():
                lost |= touched
                continue
            for directory, name, inode_number in op.names:
                _rename(other._names_of(directory), name, inode_number)
        found = {number for inode in other.inodes.values() for number in (inode.names or {}).values()}
        for inode in other.inodes.values():
            inode.synced_names = dict(inode.names or {})
        for number in sorted(found - other.inodes.keys()):
            inode = self.inodes[number]
            data = bytearray(inode.synced)
            fate.file(len(inode.pending))
            for op in inode.pending:
                _fated_change(data, op, fate)
            other.inodes[number] = _Inode(data, bytearray(data))
        return other

    # --- paths -----------------------------------------------------------------------------------------------------

    def _walk(self, path: PurePath) -> int:
        number = ROOT
        for part in path.parts[1:]:
            names = self.inodes[number].names
            if names is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            if part not in names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            number = names[part]
        return number

    def _find(self, path: Path) -> int | None:
        try:
            return self._walk(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _place(self, path: Path) -> tuple[int, str]:
        return self._walk(path.parent), path.name

    def _put(self, path: Path, *, directory: bool) -> int:
        parent, name = self._place(path)
        number = self._next
        self.do(Op("make", number, int(directory), label=name))
        self.do(Op("names", number, names=((parent, name, number),), label=name))
        return number

    # --- the seam --------------------------------------------------------------------------------------------------

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        number = self._find(path)
        if mode == "create":
            if number is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            number = self._put(path, directory=False)
        elif number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        elif self.inodes[number].names is not None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return SimFile(self, path, number, mode != "read")

    def read(self, path: Path) -> bytes:
        return bytes(self.inodes[self._walk(path)].data)

    def exists(self, path: Path) -> bool:
        return self._find(path) is not None

    def is_directory(self, path: Path) -> bool:
        number = self._find(path)
        return number is not None and self.inodes[number].names is not None

    def size(self, path: Path) -> int:
        return len(self.inodes[self._walk(path)].data)

    def list(self, path: Path) -> list[str]:
        return sorted(self._names_of(self._walk(path)))

    def make_directory(self, path: Path) -> None:
        if not self.is_directory(path):
            self.make_directory(path.parent)
            self._put(path, directory=True)
            self.sync_directory(path.parent)

    def make_private_directory(self, path: Path) -> None:
        raise AssertionError("not simulated")

    def rename(self, old: Path, new: Path) -> None:
        number, source, target = self._walk(old), self._place(old), self._place(new)
        self.do(Op("names", number, names=((*source, None), (*target, number)), label=new.name))

    def exchange(self, one: Path, other: Path) -> None:
        a, b = self._walk(one), self._walk(other)
        self.do(Op("names", a, names=((*self._place(one), b), (*self._place(other), a)), label=one.name))

    def link(self, old: Path, new: Path) -> None:
        number = self._walk(old)
        self.do(Op("names", number, names=((*self._place(new), number),), label=new.name))

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        number = self._find(path)
        if number is None and missing_ok:
            return
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.do(Op("names", number, names=((*self._place(path), None),), label=path.name))

    def remove_tree(self, path: Path) -> None:
        if self.exists(path):
            if self.is_directory(path):
                for name in self.list(path):
                    self.remove_tree(path / name)
            self.unlink(path)

    def sync_directory(self, path: Path) -> None:
        self.do(Op("sync names", self._walk(path), label=path.name))

    def free(self, path: Path) -> int:
        return 1 << 40

    def lock(self, path: Path, owner: str) -> DirectoryLock:
        if str(path) in self._locks:
            raise StoreLocked(f"{path.parent} is in use by {owner}")
        if not self.exists(path):
            self.open(path, "create").close()
        self._locks.add(str(path))
        return SimLock(self._locks, path)

    def is_locked(self, path: Path) -> bool:
        return str(path) in self._locks

    def lock_shared(self, path: Path) -> DirectoryLock | None:
        if str(path) in self._locks:
            raise StoreLocked(f"{path.parent} is in use")
        return SimLock(self._locks, path) if self.exists(path) else None


def _change(data: bytearray, op: Op) -> None:
    if op.kind == "truncate":
        _resize(data, op.offset)
    else:
        _resize(data, max(len(data), op.offset))
        data[op.offset : op.offset + len(op.data)] = op.data


def _fated_change(data: bytearray, op: Op, fate: Fate) -> None:
    if op.kind == "truncate":
        if fate.truncate():
            _resize(data, op.offset)
        return
    end = op.offset + len(op.data)
    first = op.offset // SECTOR
    kept = fate.write(max(0, -(-end // SECTOR) - first))
    if kept is None:
        return
    _resize(data, max(len(data), end))
    for i, keep in enumerate(kept):
        if keep:
            start, stop = max(op.offset, (first + i) * SECTOR), min(end, (first + i + 1) * SECTOR)
            data[start:stop] = op.data[start - op.offset : stop - op.offset]


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _rename(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


# --- the other seams, quiet ------------------------------------------------------------------------------------------


class _Ended(Task):
    __slots__ = ()

    def __init__(self) -> None:
        """A task that ended before it began."""

    def join(self, timeout: float | None = None) -> bool:
        return True


class QuietScheduler(Scheduler):
    """Spawns nothing: what runs in the background is the test's to call, so that a run is the same each time."""

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        return _Ended()


class SetClock(Clock):
    """A clock that is set: each reading of the wall clock is `step_us` later than the one before."""

    def __init__(self, now_us: int = 1_700_000_000_000_000, step_us: int = 1000) -> None:
        self.time_us = now_us
        self.step_us = step_us
        self.seconds = 0.0

    def now_us(self) -> int:
        self.time_us += self.step_us
        return self.time_us

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class SeededRandomness(Randomness):
    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)

    def token(self, length: int) -> bytes:
        return self._random.randbytes(length)


def quiet_seams(files: Files, *, clock: Clock | None = None, seed: int = 0) -> Seams:
    """Seams of a run that is the same each time."""
    return Seams(files, clock or SetClock(), SeededRandomness(seed), QuietScheduler())
