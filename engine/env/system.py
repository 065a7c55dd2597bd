"""Errors of the system, turned into errors of the kit. Every call that users make runs within `system_errors`.

A file that cannot be opened may have perfect bytes, so nothing here becomes `Damaged`. A missing file is left to the
caller, which knows whether it has to be there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AccessDenied, DeviceFailed, DiskFull, HoldfastError, InvalidInput, LimitReached
from . import is_disk_full

_LIMITS = {
    errno.EMFILE: ("this process cannot open any more files",
                   "raise its limit on open files (ulimit -n), and try again"),
    errno.ENFILE: ("this machine cannot open any more files",
                   "raise its limit on open files (fs.file-max on Linux), and try again"),
    errno.ENOMEM: ("there is no more memory or address space",
                   "raise the limit (ulimit -v, or the container's), and try again"),
    errno.EAGAIN: ("the system has no more threads, processes or locks to give",
                   "raise the limit (ulimit -u, or the container's), and try again"),
    errno.EFBIG: ("a file may not grow so large here",
                  "raise the limit (ulimit -f), or use a file system that holds larger files, and try again"),
}
_RIGHTS = {
    errno.EACCES: "this user has no permission",
    errno.EPERM: "this user has no permission",
    errno.EROFS: "the file system is read-only",
}
_NAMES = {
    errno.ENAMETOOLONG: "a name, or the whole path, is too long",
    errno.ELOOP: "its links form a loop",
}
_DEVICE = frozenset({errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN,
                     errno.ENOTCONN})
_NO_THREAD = "can't start new thread"


def is_limit(error: BaseException) -> bool:
    """Whether an error says that the system is out of memory, open files or threads, or that a file may not grow."""
    return (isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and str(error) == _NO_THREAD)
            or (isinstance(error, OSError) and error.errno in _LIMITS))


def told(error: BaseException, doing: str) -> HoldfastError | None:
    """An error of the system as one of the kit's, or None if it is of another kind. `doing` begins the message.

    >>> told(OSError(errno.EMFILE, "Too many open files", "/data/CURRENT"), "cannot open /data").message
    'cannot open /data: this process cannot open any more files (/data/CURRENT)'
    """
    if isinstance(error, HoldfastError):
        return None
    if isinstance(error, MemoryError):
        what, hint = _LIMITS[errno.ENOMEM]
        return LimitReached(f"{doing}: {what}", hint=hint)
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        what, hint = _LIMITS[errno.EAGAIN]
        return LimitReached(f"{doing}: {what}", hint=hint)
    if not isinstance(error, OSError):
        return None
    where = f" ({error.filename})" if error.filename is not None else ""
    if is_disk_full(error):
        return DiskFull(f"{doing}: no room{where}")
    if error.errno in _LIMITS:
        what, hint = _LIMITS[error.errno]
        return LimitReached(f"{doing}: {what}{where}", hint=hint)
    if error.errno in _RIGHTS:
        return AccessDenied(f"{doing}: {_RIGHTS[error.errno]}{where}",
                            hint="mount it writable, or open it read-only" if error.errno == errno.EROFS else None)
    if error.errno in _NAMES:
        return InvalidInput(f"{doing}: {_NAMES[error.errno]}{where}", hint="choose another path")
    if error.errno in _DEVICE:
        return DeviceFailed(f"{doing}: {error.strerror}{where}")
    return None


@contextmanager
def system_errors(doing: str) -> Iterator[None]:
    """Within the block, turn errors of the system into errors of the kit. `doing` begins the message, such as "cannot
    open X"."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if (mine := told(error, doing)) is None:
            raise
        raise mine from error
