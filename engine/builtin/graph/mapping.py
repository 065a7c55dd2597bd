"""Keeping LMDB's map of its file small in memory, for those who read all of a state.

LMDB reads its file through a map, and every page read through it counts as this process's memory until the map goes,
although the page cache could drop it at any time. A walk over a whole state would so come to hold the whole file. So
whoever walks tells what it has read, and each time the process has come to map a certain amount more, the kernel is
asked to take the state's pages out of the map (`MADV_DONTNEED`). For a shared map of a file that loses nothing: a page
that is needed again is mapped again, from the page cache, with the bytes of the file. So readers in other threads do
not notice, and no transaction, cursor or view has to end for it.

Where the map stands, and how much is mapped, the kernel says under `/proc`. Where it does not (elsewhere than on Linux,
in a sandbox without `/proc`), nothing is done. LMDB maps real files only, so it is the real ones that are asked about.
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
"""Mapped bytes beyond which pages are let go."""
_AROUND = 64 << 10
"""The kernel maps so much around each page that is read."""
_DONTNEED = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Mapping:
    """The map of one open environment's data file.

    Args:
        path: the file's.
        lock: held while the kernel is asked, and while the map goes, so that an address is never one of something else.
    """

    def __init__(self, path: Path, lock: Any) -> None:
        self._path = path
        self._lock = lock
        self._read = 0
        self._least = 1 << 62
        self._found: list[tuple[int, int]] | None = None
        self._ended = not sys.platform.startswith("linux")

    def passed(self, size: int) -> None:
        """Something of `size` bytes was read by one who walks over all, and will hardly be read again soon."""
        self._read += size + _AROUND
        if self._read >= ROOM:
            self._read = 0
            with self._lock:
                if not self._ended:
                    try:
                        self._bound()
                    except (OSError, ValueError, IndexError):  # it only saves memory; what is read is right without it
                        self._ended = True

    def end(self) -> None:
        """The map is about to go."""
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
