"""Locks on files, by `flock`: they go with the process, and keep nobody out who does not ask for them.

Whoever is refused is told who it is: this very process, somebody who reads, or who has written a name into the file.
A file system may have no locks (some network mounts): that is not "in use", and whoever only reads can go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections import Counter
from pathlib import Path
from typing import NoReturn

from ..errors import LocksUnsupported, StoreLocked

EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
_held: Counter[tuple[int, int, int]] = Counter()  # process, device, inode
_counting = threading.Lock()


class DirectoryLock:
    """A lock on a file, which stands for its directory, held by this process until `release`."""

    __slots__ = ("_fd", "_key", "path")

    def __init__(self, path: Path, fd: int) -> None:
        """`fd`: open, and locked; -1 for a lock that keeps nobody out, on a file system without locks."""
        self.path = path
        self._fd = fd
        self._key = _key(fd) if fd >= 0 else (0, 0, 0)
        with _counting:
            _held[self._key] += 1

    def tell(self, text: str) -> None:
        """Write into the locked file who holds it, on the first line, and whatever else is to be known of him."""
        if self._fd >= 0:
            data = text.encode()
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))

    def freshen(self) -> bool:
        """Give the locked file the time of now, so that nobody takes it for old; whether it is still at its path."""
        if not is_at(self._fd, self.path):
            return False
        os.utime(self._fd)
        return True

    def release(self) -> None:
        """Let go of it, also where a child that was forked meanwhile still has the descriptor."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # closing it releases it too
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: drop the descriptor. The parent's lock stands (flock belongs to the open file)."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with _counting:
                _held[self._key] -= 1
                if _held[self._key] <= 0:
                    del _held[self._key]
            os.close(fd)


def _key(fd: int) -> tuple[int, int, int]:
    status = os.fstat(fd)
    return os.getpid(), status.st_dev, status.st_ino


def try_lock(fd: int, path: Path, how: int) -> bool:
    """Whether the lock was free, and now is this open file's.

    Raises:
        LocksUnsupported: the file system has no locks.
    """
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise LocksUnsupported(f"the file system of {path.parent} has no locks ({error.strerror})") from error
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def refuse(fd: int, path: Path) -> NoReturn:
    """Raise `StoreLocked`, naming who holds the lock of this open file."""
    if _held[_key(fd)] > 0:
        raise StoreLocked(f"{path.parent} is in use by this very process (process {os.getpid()}), which has opened "
                          "it before and not closed it", hint="use what is open, or close it first")
    holder = os.pread(fd, 200, 0).decode("utf-8", "replace").partition("\n")[0].strip()
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder = "somebody who reads it"  # the name in the file is that of the last one who wrote
    raise StoreLocked(f"{path.parent} is in use by {holder or 'another process'}")


def is_at(fd: int, path: Path) -> bool:
    """Whether the file that was opened at `path` is still there. A restore may have replaced the directory before the
    file was locked: its lock is then of the directory that was there before, and keeps nobody out of this one."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
