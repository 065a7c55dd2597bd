"""A simulated disk behind `Env.files`: a file system in memory that knows what is synced and what is not.

Every change is an operation, noted in `ops`, so that a run is recorded once and each point between two of its
operations can be looked at afterwards (`points`). Changes of contents (writes, truncations) are pending until their
file is synced, changes of names until their directory is. A power cut (`crashed`) keeps what is synced, and of what is
pending whatever a `Fate` decides:

- a write is kept, dropped, or torn at sectors of 512 bytes, any of which may be there; writes to one file reach the
  disk in any order, so a later one may be there without an earlier one; a file may have grown without its bytes;
- a change of names is there or not as a whole (a rename is one change); changes that touch the same name keep their
  order, others need not. What is in a directory whose own entry is lost is lost.

A `killed` process leaves everything, with what is pending still pending. A sync that failed (`fail_sync`) leaves what
was pending readable and not on the disk, and later syncs do not help, as on Linux. `docs/crashes.md` says all this in
words.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Literal

from xxhash import xxh3_128

from ...env import Directory, DirectoryLock, File, Files
from ...errors import StoreLocked
from .simfates import Fate
from .simops import Inode, Op, fated_change, rename, sectors_of

ROOT = 1


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
        raise AssertionError("code that needs a descriptor goes past the environment")

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


class SimDirectory(Directory):
    __slots__ = ("_disk", "_inode")

    def __init__(self, disk: SimDisk, path: Path, inode: int) -> None:
        super().__init__(path, -1)
        self._disk = disk
        self._inode = inode

    def sync(self) -> None:
        self._disk.do(Op("sync names", self._inode, label=self.path.name))

    def rename(self, old: str, new: str) -> None:
        self._disk.rename_within(self._inode, old, new)

    def is_at_path(self) -> bool:
        return self._disk._find(self.path) == self._inode


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
        opening: called with the name of each file and directory before a descriptor is taken for it; it may raise
            `OSError` too.
        lost: what a power cut took, in words, if one made this disk.
        mounts: directories that are mount points, so that none can be swapped with them.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {ROOT: Inode(names={})}
        self.ops: list[Op] = []
        self.before: Callable[[Op], None] = lambda op: None
        self.opening: Callable[[str], None] = lambda name: None
        self.lost: list[str] = []
        self.mounts: set[Path] = set()
        self._pending_names: list[Op] = []
        self._next = ROOT + 1
        self._locks: set[str] = set()

    # --- operations ------------------------------------------------------------------------------------------------

    def do(self, op: Op) -> None:
        self.before(op)
        self.ops.append(op)
        self.apply(op)

    def apply(self, op: Op) -> None:
        """Do it, without recording it."""
        if op.kind == "make":
            self.inodes[op.inode] = Inode(names={} if op.offset else None)
            self._next = max(self._next, op.inode + 1)
        elif op.kind in ("write", "truncate"):
            self.inodes[op.inode].change(op)
        elif op.kind == "sync":
            self.inodes[op.inode].sync()
        elif op.kind == "names":
            for directory, name, inode_number in op.names:
                rename(self._names_of(directory), name, inode_number)
                self.inodes[directory].changes += 1
            self._pending_names.append(op)
        else:
            durable = [p for p in self._pending_names if any(d == op.inode for d, _, _ in p.names)]
            self._pending_names = [p for p in self._pending_names if p not in durable]
            for pending in durable:
                for directory, name, inode_number in pending.names:
                    rename(self.inodes[directory].synced_names, name, inode_number)

    def _names_of(self, directory: int) -> dict[str, int]:
        names = self.inodes[directory].names
        assert names is not None
        return names

    # --- what a crash leaves ---------------------------------------------------------------------------------------

    def copy(self) -> SimDisk:
        """The same disk, with what is pending, and no operation noted: what a killed process leaves."""
        other = SimDisk()
        other.mounts = set(self.mounts)
        other.inodes = {number: inode.copy() for number, inode in self.inodes.items()}
        other._pending_names = list(self._pending_names)
        other._next = self._next
        return other

    killed = copy

    def fail_sync(self, inode: int) -> None:
        """Make a sync of this file fail. Call this instead of the sync, from `before` for example."""
        self.inodes[inode].fail_sync()

    def points(self, ops: list[Op]) -> Iterator[SimDisk]:
        """This disk (which is left alone) before each of `ops`, and after the last. Do not change what is yielded."""
        walker = self.copy()
        yield walker
        for op in ops:
            walker.apply(op)
            yield walker

    @property
    def nothing_pending(self) -> bool:
        """Whether nothing is pending: every power cut leaves the same."""
        return not self._pending_names and not any(inode.pending for inode in self.inodes.values())

    def breadth(self, bound: int) -> int:
        """How many fates a power cut now may have, at most; counted no further than `bound`."""
        named = {inode for number in self.inodes for names in self._all_names(number) for inode in names.values()}
        named.update(inode for op in self._pending_names for _, _, inode in op.names if inode is not None)
        count = 1 << len(self._pending_names)
        for number in named:
            for op in self.inodes[number].pending:
                if count > bound:
                    return count
                count *= 2 if op.kind == "truncate" else 1 + (1 << sectors_of(op))
        return count

    def _all_names(self, number: int) -> tuple[dict[str, int], ...]:
        inode = self.inodes[number]
        return () if inode.names is None else (inode.names, inode.synced_names)

    def crashed(self, fate: Fate) -> SimDisk:
        """A disk as a power cut now would leave this one. Its `lost` says what it took."""
        other = SimDisk()
        other._next = self._next
        other.inodes = {number: Inode(names=dict(inode.synced_names))
                        for number, inode in self.inodes.items() if inode.names is not None}
        lost: set[tuple[int, str]] = set()
        for op in self._pending_names:
            touched = {(directory, name) for directory, name, _ in op.names}
            if touched & lost or not fate.names():
                lost |= touched
                other.lost.append(f"the {op.says or 'change of name'} of {op.label}")
                continue
            for directory, name, inode_number in op.names:
                rename(other._names_of(directory), name, inode_number)
        found = {number for inode in other.inodes.values() for number in (inode.names or {}).values()}
        for inode in other.inodes.values():
            inode.synced_names = dict(inode.names or {})
        for number in sorted(found - other.inodes.keys()):
            inode = self.inodes[number]
            data = inode.left
            fate.file(len(inode.pending))
            for op in inode.pending:
                fated_change(data, op, fate, other.lost)
            other.inodes[number] = Inode(data)
        return other

    def digest(self) -> bytes:
        """Over all names and contents, those that can be read and those that a power cut would leave: two crashes that
        leave the same need to be tried once."""
        summed = xxh3_128()
        todo = [(ROOT, "")]
        while todo:
            number, path = todo.pop()
            inode = self.inodes[number]
            summed.update(f"{path}\0{len(inode.data)}\0".encode())
            summed.update(inode.data)
            if inode.synced is not None:
                summed.update(b"\0synced\0" + inode.synced)
            if inode.names is not None and inode.names != inode.synced_names:
                summed.update(repr(inode.synced_names).encode())
            todo += [(below, f"{path}/{name}") for name, below in sorted((inode.names or {}).items())]
        return summed.digest()

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
        self.do(Op("names", number, names=((parent, name, number),), label=name, says="creation"))
        return number

    # --- as `Files` --------------------------------------------------------------------------------------------------

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        self.opening(path.name)
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
        self.opening(path.name)
        return bytes(self.inodes[self._walk(path)].data)

    def exists(self, path: Path) -> bool:
        return self._find(path) is not None

    def is_ours(self, path: Path) -> bool:
        return True

    def is_directory(self, path: Path) -> bool:
        number = self._find(path)
        return number is not None and self.inodes[number].names is not None

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        return Path(os.path.normpath(path))  # there are no links here, and every path is absolute

    def size(self, path: Path) -> int:
        return len(self.inodes[self._walk(path)].data)

    def modified_us(self, path: Path) -> int:
        """How often it was changed: no time passes here."""
        return self.inodes[self._walk(path)].changes

    def list(self, path: Path) -> list[str]:
        self.opening(path.name)
        return sorted(self._names_of(self._walk(path)))

    def _make_directory(self, path: Path) -> None:
        self._put(path, directory=True)

    def make_private_directory(self, path: Path) -> None:
        raise AssertionError("not simulated")

    def make_scratch_directory(self) -> Path:
        path = Path(f"/holdfast-scratch-{self._next}")
        self._put(path, directory=True)
        return path

    def rename(self, old: Path, new: Path) -> None:
        self._rename(self._walk(old), self._place(old), self._place(new))

    def rename_within(self, directory: int, old: str, new: str) -> None:
        """Of two names in a directory that is held open."""
        names = self._names_of(directory)
        if old not in names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        self._rename(names[old], (directory, old), (directory, new))

    def _rename(self, number: int, source: tuple[int, str], target: tuple[int, str]) -> None:
        self.do(Op("names", number, names=((*source, None), (*target, number)),
                   label=f"{source[1]} to {target[1]}", says="rename"))

    def can_be_swapped(self, path: Path) -> bool:
        return path not in self.mounts

    def exchange(self, one: Path, other: Path) -> None:
        a, b = self._walk(one), self._walk(other)
        self.do(Op("names", a, names=((*self._place(one), b), (*self._place(other), a)),
                   label=f"{one.name} and {other.name}", says="exchange"))

    def link(self, old: Path, new: Path) -> None:
        number = self._walk(old)
        self.do(Op("names", number, names=((*self._place(new), number),), label=new.name, says="link"))

    def symlink(self, old: Path, new: Path) -> None:
        raise AssertionError("not simulated")

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        number = self._find(path)
        if number is None and missing_ok:
            return
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.do(Op("names", number, names=((*self._place(path), None),), label=path.name, says="removal"))

    def remove_tree(self, path: Path) -> None:
        if self.exists(path):
            if self.is_directory(path):
                for name in self.list(path):
                    self.remove_tree(path / name)
            self.unlink(path)

    def remove_directory(self, path: Path) -> None:
        if self.list(path):
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        self.unlink(path)

    def open_directory(self, path: Path) -> Directory:
        self.opening(path.name)
        return SimDirectory(self, path, self._walk(path))

    def free(self, path: Path) -> int:
        return 1 << 40

    def capacity(self, path: Path) -> int:
        return 1 << 40

    def lock(self, path: Path, owner: str) -> DirectoryLock:
        self.opening(path.name)
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
        return SimLock(set(), path) if self.exists(path) else None  # it keeps nobody out
