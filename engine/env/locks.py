"""Locks on files, by `flock`. They end with the process, and are advisory: they stop only programs that ask for them.

An error names the holder: this very process, a reader, or the name that is written in the file. A file system may have
no locks (some network mounts). That is not the same as "in use", and reading works without a lock.
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
    """A lock on a file, which represents its directory, held by this process until `release`."""

    __slots__ = ("_fd", "_key", "path")

    def __init__(self, path: Path, fd: int) -> None:
        """`fd`: open and locked; -1 for a lock that stops nobody, on a file system without locks."""
        self.path = path
        self._fd = fd
        self._key = _key(fd) if fd >= 0 else (0, 0, 0)
        with _counting:
            _held[self._key] += 1

    def tell(self, text: str) -> None:
        """Replace the text of the locked file. Its first line must name the holder."""
        if self._fd >= 0:
            data = text.encode()
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))

    def freshen(self) -> bool:
        """Set the locked file's modification time to now, so that nobody takes it for stale. False, and nothing is
        done, if it is no longer at its path."""
        if not is_at(self._fd, self.path):
            return False
        os.utime(self._fd)
        return True

    def release(self) -> None:
        """Unlock, even if a forked child still has the descriptor. May be called twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # closing the file unlocks it too
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        self.abandon()

    def abandon(self) -> None:
        """In a forked child: close the descriptor without unlocking. The parent keeps the lock."""
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
    """Try to lock an open file, without waiting. Whether it worked. Raises `LocksUnsupported` if the file system has no
    locks."""
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
    """Raise `StoreLocked`, naming the holder of the lock on this open file."""
    if _held[_key(fd)] > 0:
        raise StoreLocked(f"{path.parent} is in use by this very process (process {os.getpid()}), which has opened "
                          "it before and not closed it", hint="use the one that is open, or close it first")
    holder = os.pread(fd, 200, 0).decode("utf-8", "replace").partition("\n")[0].strip()
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder = "a reader"  # the name in the file is that of the last writer
    raise StoreLocked(f"{path.parent} is in use by {holder or 'another process'}")


def is_at(fd: int, path: Path) -> bool:
    """Whether the file that was opened at `path` is still there. A restore may have replaced the directory between the
    opening and the lock: then we locked the old directory's file, which keeps nobody out of the new directory."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False
