"""The file system, as the kit uses it: whole reads and writes by position, names, and what makes them durable.

Paths are `pathlib.Path`; offsets and sizes are bytes. A `File` knows only whole reads and writes: short ones are
finished here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
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
    """An open file, read and written by position. Not a stream: it has no cursor."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to `length` bytes; shorter only at the end of the file. What it raises names the file."""
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
        os.ftruncate(self._fd, size)

    def reserve(self, size: int) -> None:
        """Make room for the file to be `size` bytes long, so that writes below it do not lack room. A file system that
        cannot reserve any is left to say so when it is written to.

        Raises:
            DiskFull: there is none.
        """
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(self._fd, 0, size)
            except OSError as error:
                if is_disk_full(error):
                    raise DiskFull(f"no room for {size:,} bytes in {self.path}") from error
                if error.errno not in _NO_RESERVING:
                    raise

    def close(self) -> None:
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
    """A directory that is held open: giving a name in it and making names durable needs no descriptor at the moment it
    matters, and what its path leads to can be compared with it."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def sync(self) -> None:
        """Make creations, renames and removals in it durable."""
        _sync(self._fd)

    def rename(self, old: str, new: str) -> None:
        """As `Files.rename`, of two names in it, whatever its path leads to now."""
        os.replace(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def is_at_path(self) -> bool:
        """Whether its path still leads to it. Nobody else gets its number while it is held."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:  # gone, or behind what this user may not enter
            return False

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Files:
    """The file system. Methods raise `OSError` as the system does, unless they say otherwise."""

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        """`read` an existing file, `write` an existing one, or `create` one that must not exist (mode 0600)."""
        flags = {"read": os.O_RDONLY, "write": os.O_RDWR, "create": os.O_RDWR | os.O_CREAT | os.O_EXCL}[mode]
        return File(path, os.open(path, flags | os.O_CLOEXEC, 0o600))

    def read(self, path: Path) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write_durably(self, path: Path, data: bytes) -> None:
        """Put `data` at `path`, all or nothing: a new file beside it, synced, renamed over it, directory synced.

        Raises:
            DiskFull: no room; what was at `path` is unchanged.
        """
        beside = path.with_name(path.name + ".new")
        directory = self.open_directory(path.parent)  # first: from the rename on, no descriptor may be lacking
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
        """See that names below `path` may be used. Only files that are anchored (`AnchoredFiles`) object."""

    def exists(self, path: Path) -> bool:
        """Whether something is there. What cannot be known, for want of rights say, is an `OSError`, and no answer."""
        return _mode(path) is not None

    def is_ours(self, path: Path) -> bool:
        """Whether it belongs to the user that this process runs as."""
        return os.stat(path).st_uid == os.geteuid()

    def is_directory(self, path: Path) -> bool:
        return stat.S_ISDIR(_mode(path) or 0)

    def absolute(self, path: str | os.PathLike[str]) -> Path:
        """`path`, as it is meant in the directory that the process is in now. It changes its directory when it likes,
        so every path goes through here when it is given. Links are left as they are.

        Raises:
            InvalidInput: `path` is not a text that can be a path; or it is relative, and that directory is gone.
        """
        text = path if isinstance(path, str) else str(path) if isinstance(path, os.PathLike) else ""
        if not text or "\0" in text:
            raise InvalidInput(f"{shown(path)} is not a path", hint="give a text, or a pathlib.Path")
        try:
            return Path(text).absolute()
        except FileNotFoundError as error:
            raise InvalidInput(f"the directory that {path} is relative to does not exist any more",
                               hint="give a path that begins with /") from error

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        """The absolute path of what `path` leads to, without links and `..`; it need not exist."""
        return Path(os.path.realpath(self.absolute(path)))

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def list(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(path))

    def make_directory(self, path: Path) -> None:
        """Make `path` and its parents (mode 0700), each made durable; fine if it exists.

        One that exists is made durable too: whoever made it may have died, or failed, before it was.
        """
        if not self.is_directory(path):
            path = self.resolve(path)  # a link that leads nowhere yet is made where it leads to
            self.make_directory(path.parent)
            self._make_directory(path)
            self.sync_directory(path.parent)
        else:
            with contextlib.suppress(PermissionError):  # a parent that we may not read is not of our making
                self.sync_directory(path.parent)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def _make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)

    def make_private_directory(self, path: Path) -> None:
        """Make `path` (its parent exists) a directory that nobody else can enter; fine if it is one.

        Raises:
            OSError: something else is there: no directory, another's, or one that is open to others.
        """
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "not a private directory of this user", str(path))

    def make_scratch_directory(self) -> Path:
        """Make a new directory that only this user can enter, in the one for temporary files."""
        return Path(tempfile.mkdtemp(prefix="holdfast-scratch-"))

    def rename(self, old: Path, new: Path) -> None:
        """Atomically give `old` the name `new`, replacing what was there. Durable after `sync_directory`."""
        os.replace(old, new)

    def can_be_swapped(self, path: Path) -> bool:
        """Whether another directory can take the name of this one: it is not a mount point, as far as can be seen, and
        its parent may be written to."""
        if os.path.ismount(path) or not os.access(path.parent, os.W_OK | os.X_OK):
            return False
        here = os.fsencode(os.path.realpath(path))
        try:
            mounts = self.read(Path("/proc/self/mountinfo")).splitlines()
        except OSError:
            return True
        # A directory of the same file system may be mounted here, which `ismount` does not see.
        places = (re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in mounts)
        return here not in places

    def exchange(self, one: Path, other: Path) -> None:
        """Atomically swap two names, directories too. Durable after `sync_directory`.

        Raises:
            Unsupported: this platform or file system cannot.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        a, b = os.fsencode(one), os.fsencode(other)
        if hasattr(libc, "renameat2"):
            failed = libc.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE)
        elif hasattr(libc, "renamex_np"):
            failed = libc.renamex_np(a, b, _RENAME_EXCHANGE)
        else:
            raise Unsupported("this platform cannot swap two directories", hint="use a name that is not taken")
        if failed:
            code = ctypes.get_errno()
            if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise Unsupported(f"the file system of {one} cannot swap two directories",
                                  hint="use a name that is not taken")
            if code in (errno.EXDEV, errno.EBUSY):
                raise Unsupported(f"{one} and {other} cannot be swapped: one of them is a mount point",
                                  hint="use a name that is not taken")
            raise OSError(code, os.strerror(code), str(one), None, str(other))

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new)

    def symlink(self, old: Path, new: Path) -> None:
        """Let `new` lead to `old`, which may be on another file system."""
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
        path.unlink(missing_ok=missing_ok)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all in it; fine if it is not there."""
        if path.exists():
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
        """Bytes this user may still write on the file system of `path`."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def capacity(self, path: Path) -> int:
        """Bytes that the file system of `path` can hold in all; one that does not say can hold any number."""
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize or sys.maxsize

    def lock(self, path: Path, owner: str) -> DirectoryLock:
        """Take the lock file at `path`, and write into it who holds it.

        Raises:
            StoreLocked: somebody has it; the message names whom.
            LocksUnsupported: the file system has none.
        """
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                for _ in range(2):
                    if locks.try_lock(fd, path, locks.EXCLUSIVE):
                        break
                    time.sleep(0.01)  # it may be only somebody who looked whether it is locked
                else:
                    if not locks.try_lock(fd, path, locks.EXCLUSIVE):
                        locks.refuse(fd, path)
                if locks.is_at(fd, path):
                    try:
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"{owner}\n".encode(), 0)
                    except OSError as error:
                        if not is_disk_full(error):  # the name is for people; without room for it the lock holds too
                            raise
                    return DirectoryLock(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def write_held(self, path: Path, data: bytes) -> DirectoryLock:
        """Put `data` at `path`, all or nothing, in a file (0600) that is locked from before it has its name until the
        lock is let go. It need not outlast a power cut. On a file system without locks it is not locked."""
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
        """Whether somebody holds the lock file at `path` now. Changes nothing. Raises `LocksUnsupported` where that
        cannot be known."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not locks.try_lock(fd, path, locks.SHARED)
        finally:
            os.close(fd)

    def lock_shared(self, path: Path) -> DirectoryLock | None:
        """Keep writers out while others read too, without changing a byte. None where there is no lock file, or none
        that this user may open: nobody could write there through it. None too where the file system has no locks:
        nobody can open it for writing then.

        Raises:
            StoreLocked: a writer has it.
        """
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
    """What is at the end of `path`, or None where nothing is."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
