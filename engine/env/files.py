"""The file system, as the kit uses it: reads and writes at an offset, names, and syncs.

Paths are `pathlib.Path`; offsets and sizes are bytes. Reads and writes of a `File` are whole: if the system does only
part of one, the rest is done here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import Literal

from ..errors import DiskFull, InvalidInput, LocksUnsupported, Unsupported
from . import locks
from .locks import DirectoryLock as DirectoryLock
from .shown import shown

logger = logging.getLogger("holdfast.store")

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RESERVING = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_COPIED_AT_ONCE = 4 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def is_disk_full(error: BaseException) -> bool:
    """Whether an `OSError` says that there is no room (ENOSPC or EDQUOT)."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


class File:
    """An open file, read and written at an offset. It has no cursor."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        """Read `length` bytes, or fewer at the end of the file. An `OSError` names the file."""
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            error.filename = str(self.path)
            raise
        return data

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data`, or raise `OSError`."""
        done = os.pwrite(self._fd, data, offset)
        if done != len(data):
            view = memoryview(data)
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)

    def datasync(self) -> None:
        """Make the bytes durable, and the metadata needed to read them."""
        _datasync(self._fd)

    def sync(self) -> None:
        """Make bytes and metadata durable."""
        _sync(self._fd)

    def truncate(self, size: int) -> None:
        """Cut or extend the file to `size` bytes."""
        os.ftruncate(self._fd, size)

    def reserve(self, size: int) -> None:
        """Reserve room for `size` bytes, so that writes below that cannot run out of room. Does nothing on a file
        system that cannot reserve room; there, a write may still fail. Raises `DiskFull` if there is not enough
        room."""
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(self._fd, 0, size)
            except OSError as error:
                if is_disk_full(error):
                    raise DiskFull(f"no room for {size:,} bytes in {self.path}") from error
                if error.errno not in _NO_RESERVING:
                    raise

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


if sys.platform == "darwin":

    def _sync(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

    _datasync = _sync
else:
    _sync = os.fsync
    _datasync = os.fdatasync


class Directory:
    """A directory that is held open. So a rename or sync in it needs no new descriptor, which might be lacking then,
    and `is_at_path` can compare it with what its path leads to."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def sync(self) -> None:
        """Make creations, renames and removals in it durable."""
        _sync(self._fd)

    def rename(self, old: str, new: str) -> None:
        """As `Files.rename`, for two names in this directory, wherever its path leads now."""
        os.replace(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def is_at_path(self) -> bool:
        """Whether its path still leads to this directory. Its inode number is not reused while it is open."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:  # gone, or below a directory that this user may not enter
            return False

    def close(self) -> None:
        """Close the directory. May be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Files:
    """The file system. Methods raise the system's `OSError`, unless they say otherwise. From any thread."""

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        """`read` an existing file, `write` an existing one, or `create` one that must not exist (mode 0600)."""
        flags = {"read": os.O_RDONLY, "write": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT | os.O_EXCL}[mode]
        return File(path, os.open(path, flags | os.O_CLOEXEC, 0o600))

    def read(self, path: Path) -> bytes:
        """The content of a file."""
        with open(path, "rb") as file:
            return file.read()

    def write_durably(self, path: Path, data: bytes) -> None:
        """Replace the file at `path` with `data`, atomically and durably: write a new file beside it, sync it, rename
        it over `path`, sync the directory.

        Raises:
            DiskFull: no room; what was at `path` is unchanged.
        """
        beside = path.with_name(path.name + ".new")
        directory = self.open_directory(path.parent)  # first, so that after the rename no descriptor can be lacking
        try:
            self.unlink(beside, missing_ok=True)
            try:
                file = self.open(beside, "create")
                try:
                    file.pwrite(data, 0)
                    file.sync()
                finally:
                    file.close()
                self.rename(beside, path)
            except OSError as error:
                self.unlink(beside, missing_ok=True)
                if is_disk_full(error):
                    raise DiskFull(f"no room to write {path}") from error
                raise
            directory.sync()
        finally:
            directory.close()

    def look(self, path: Path) -> None:
        """Check that names below `path` may be used. Only `AnchoredFiles` ever raises: `DirectoryMoved`."""

    def exists(self, path: Path) -> bool:
        """Whether something is there. If that cannot be found out (no permission, say), raises `OSError`."""
        return _mode(path) is not None

    def is_ours(self, path: Path) -> bool:
        """Whether it belongs to the user that this process runs as."""
        return os.stat(path).st_uid == os.geteuid()

    def is_directory(self, path: Path) -> bool:
        """Whether a directory is at `path`, links followed."""
        return stat.S_ISDIR(_mode(path) or 0)

    def absolute(self, path: str | os.PathLike[str]) -> Path:
        """`path` made absolute from the current directory. The process may change its directory later, so every path
        that a user passes goes through here at once. Links are not resolved.

        Raises:
            InvalidInput: `path` is not a valid path; or it is relative, and the current directory is gone.
        """
        text = path if isinstance(path, str) else str(path) if isinstance(path, os.PathLike) else ""
        if not text or "\0" in text:
            raise InvalidInput(f"{shown(path)} is not a path", hint="give a string or a pathlib.Path")
        try:
            return Path(text).absolute()
        except FileNotFoundError as error:
            raise InvalidInput(f"the directory that {path} is relative to does not exist any more",
                               hint="give a path that begins with /") from error

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        """`path` made absolute, without links or `..`. It need not exist."""
        return Path(os.path.realpath(self.absolute(path)))

    def size(self, path: Path) -> int:
        """Bytes in the file at `path`."""
        return path.stat().st_size

    def modified_us(self, path: Path) -> int:
        """When the content of a file, or the names in a directory, last changed: microseconds since the Unix epoch, by
        the clock of the file system. Two changes that come close together may have the same time."""
        return path.stat().st_mtime_ns // 1000

    def list(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(path))

    def make_directory(self, path: Path) -> None:
        """Create `path` and its parents (mode 0700), if they do not exist, and make them durable.

        A directory that exists is made durable too, because its creator may have died or failed before the sync.
        """
        if not self.is_directory(path):
            path = self.resolve(path)  # if this is a dangling link, create what it points to
            self.make_directory(path.parent)
            self._make_directory(path)
            self.sync_directory(path.parent)
        else:
            with contextlib.suppress(PermissionError):  # we did not make a parent that we may not read
                self.sync_directory(path.parent)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def _make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)

    def make_private_directory(self, path: Path) -> None:
        """Create `path`, whose parent exists, as a directory that only this user can enter, unless it is one already.
        Raises `OSError` if what is there is not a directory, belongs to another user, or is open to others."""
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "not a private directory of this user", str(path))

    def make_scratch_directory(self) -> Path:
        """Create a directory that only this user can enter, in the system's directory for temporary files."""
        import tempfile

        return Path(tempfile.mkdtemp(prefix="holdfast-scratch-"))

    def rename(self, old: Path, new: Path) -> None:
        """Atomically give `old` the name `new`, replacing what was there. Durable after `sync_directory`."""
        os.replace(old, new)

    def can_be_swapped(self, path: Path) -> bool:
        """Whether another directory can take this one's name: it is not a mount point, as far as can be seen, and its
        parent is writable."""
        if os.path.ismount(path) or not os.access(path.parent, os.W_OK | os.X_OK):
            return False
        here = os.fsencode(os.path.realpath(path))
        try:
            mounts = self.read(Path("/proc/self/mountinfo")).splitlines()
        except OSError:
            return True
        # `ismount` does not see a bind mount of a directory of the same file system.
        places = (re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in mounts)
        return here not in places

    def exchange(self, one: Path, other: Path) -> None:
        """Atomically swap two names, directories too. Durable after `sync_directory`. Raises `Unsupported` if this
        platform or file system cannot."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        a, b = os.fsencode(one), os.fsencode(other)
        if hasattr(libc, "renameat2"):
            failed = libc.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE)
        elif hasattr(libc, "renamex_np"):
            failed = libc.renamex_np(a, b, _RENAME_EXCHANGE)
        else:
            raise Unsupported("this platform cannot swap two directories", hint="use a name that is free")
        if failed:
            code = ctypes.get_errno()
            if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise Unsupported(f"the file system of {one} cannot swap two directories",
                                  hint="use a name that is free")
            if code in (errno.EXDEV, errno.EBUSY):
                raise Unsupported(f"{one} and {other} cannot be swapped: one of them is a mount point",
                                  hint="use a name that is free")
            raise OSError(code, os.strerror(code), str(one), None, str(other))

    def link(self, old: Path, new: Path) -> None:
        """Make `new` a hard link to `old`."""
        os.link(old, new)

    def symlink(self, old: Path, new: Path) -> None:
        """Make `new` a symbolic link to `old`, which may be on another file system."""
        new.symlink_to(old)

    def copy_file(self, old: Path, new: Path, *, durable: bool = False) -> None:
        """Copy the bytes of a file to `new`, which must not exist. `durable`: sync them."""
        source = self.open(old)
        try:
            target = self.open(new, "create")
            try:
                for offset in range(0, source.size(), _COPIED_AT_ONCE):
                    target.pwrite(source.pread(_COPIED_AT_ONCE, offset), offset)
                if durable:
                    target.sync()
            finally:
                target.close()
        finally:
            source.close()

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        """Remove a file. Durable after `sync_directory`."""
        path.unlink(missing_ok=missing_ok)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and everything in it, if it exists."""
        if path.exists():
            import shutil

            shutil.rmtree(path)

    def sync_directory(self, path: Path) -> None:
        """Make creations, renames and removals in a directory durable."""
        directory = self.open_directory(path)
        try:
            directory.sync()
        finally:
            directory.close()

    def open_directory(self, path: Path) -> Directory:
        """Hold a directory open, to sync it later."""
        return Directory(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def free(self, path: Path) -> int:
        """Bytes that this user may still write on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def capacity(self, path: Path) -> int:
        """Total bytes that the file system of `path` can hold; `sys.maxsize` if it does not say."""
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize or sys.maxsize

    def lock(self, path: Path, owner: str) -> DirectoryLock:
        """Lock the file at `path`, creating it if need be, and write `owner` into it.

        Raises:
            StoreLocked: it is locked; the message names the holder.
            LocksUnsupported: the file system has no locks.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                for _ in range(2):
                    if locks.try_lock(fd, path, locks.EXCLUSIVE):
                        break
                    time.sleep(0.01)  # `is_locked` in another process may hold it for a moment
                else:
                    if not locks.try_lock(fd, path, locks.EXCLUSIVE):
                        locks.refuse(fd, path)
                if locks.is_at(fd, path):
                    try:
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"{owner}\n".encode(), 0)
                    except OSError as error:
                        if not is_disk_full(error):  # the name is only for people: without it, the lock holds too
                            raise
                    return DirectoryLock(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def write_held(self, path: Path, data: bytes) -> DirectoryLock:
        """Atomically replace the file at `path` with `data`, in a file (mode 0600) that is locked before it gets this
        name. It is not synced. On a file system without locks it is not locked."""
        beside = path.with_name(path.name + ".new")
        self.unlink(beside, missing_ok=True)
        file = self.open(beside, "create")
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.pwrite(data, 0)
            self.rename(beside, path)
        except BaseException:
            file.close()
            self.unlink(beside, missing_ok=True)
            raise
        return DirectoryLock(path, file.fileno())

    def is_locked(self, path: Path) -> bool:
        """Whether any process has locked the file at `path`. Changes nothing. Raises `LocksUnsupported` if that cannot
        be found out."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not locks.try_lock(fd, path, locks.SHARED)
        finally:
            os.close(fd)

    def lock_shared(self, path: Path) -> DirectoryLock | None:
        """Take a shared lock, which keeps writers out but not readers, without changing a byte. None if the lock file
        is missing, if this user may not open it, or if the file system has no locks: then nobody can open a store there
        for writing. Raises `StoreLocked` if a writer holds it."""
        while True:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                return None
            try:
                if not locks.try_lock(fd, path, locks.SHARED):
                    locks.refuse(fd, path)
                if locks.is_at(fd, path):
                    return DirectoryLock(path, fd)
            except LocksUnsupported as error:
                os.close(fd)
                logger.warning("%s is read without a lock: %s", path.parent, error.message)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def _mode(path: Path) -> int | None:
    """The mode of the file at `path`, links followed, or None if nothing is there."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
