"""Keeping LMDB's map of its file small in memory while a whole state is read.

LMDB reads its file through a memory map. Every page that was read counts as this process's memory until the map is
closed, although the page cache could drop it at any time. A walk over a whole state would thus occupy memory for the
whole file. So a walk reports what it has read. Whenever the process maps a certain amount more, the kernel is asked to
take the state's pages out of the map (`MADV_DONTNEED`). With a shared map of a file this loses nothing: a page that is
needed again is mapped again, with the bytes of the file. So readers in other threads do not notice, and transactions,
cursors and views can stay open.

The address of the map and the mapped bytes are read from `/proc`. Without it (not on Linux, or in a sandbox), nothing
is done. LMDB maps only real files, so this module reads real ones, past `Env`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ...env import REAL

ROOM = 16 << 20
"""Mapped bytes beyond which pages are taken out of the map."""
_AROUND = 64 << 10
"""Bytes that the kernel maps around each page that is read."""
_DONTNEED = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Mapping:
    """The map of one open environment's data file.

    Args:
        path: of the data file.
        lock: held while pages are taken out and while the map is closed. Otherwise an address could by then belong to
            something else.
    """

    def __init__(self, path: Path, lock: Any) -> None:
        self._path = path
        self._lock = lock
        self._read = 0
        self._least = 1 << 62
        self._found: list[tuple[int, int]] | None = None
        self._ended = not sys.platform.startswith("linux")

    def passed(self, size: int) -> None:
        """A walk has read `size` bytes, which will probably not be read again soon."""
        self._read += size + _AROUND
        if self._read >= ROOM:
            self._read = 0
            with self._lock:
                if not self._ended:
                    try:
                        self._bound()
                    except (OSError, ValueError, IndexError):  # ignored: this only saves memory
                        self._ended = True

    def end(self) -> None:
        """Must be called before the map is closed."""
        with self._lock:
            self._ended = True

    def _bound(self) -> None:
        self._least = min(self._least, mapped := _mapped())
        if mapped - self._least < ROOM:
            return
        if self._found is None:
            self._found = _maps_of(self._path)
        size = REAL.files.size(self._path)
        for start, length in self._found:
            _libc().madvise(start, min(length, -(-size // _PAGE) * _PAGE), _DONTNEED)
        self._least = _mapped()


def _mapped() -> int:
    """Bytes of files that this process has mapped in memory."""
    return int(REAL.files.read(Path("/proc/self/statm")).split()[2]) * _PAGE


def _maps_of(path: Path) -> list[tuple[int, int]]:
    """Address and length of every shared map of a file. (A private one may hold bytes of its own.)"""
    wanted = [os.fsencode(REAL.files.resolve(path))]
    found = []
    for line in REAL.files.read(Path("/proc/self/maps")).split(b"\n")[:-1]:
        bounds, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights[3:] == b"s" and name == wanted:
            start, end = (int(part, 16) for part in bounds.split(b"-"))
            found.append((start, end - start))
    return found


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
