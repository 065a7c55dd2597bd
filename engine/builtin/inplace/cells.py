"""Fixed-size cells in plain files, written in place, with views that do not change.

A file holds each cell's value as of the last write-back. Cells are overwritten in place, without a copy on disk. So two
lists of versions per cell, in memory, preserve what views see while transactions and write-backs change the cells:

- *dirty*, (txid, cell): versions that are applied and not yet written back, oldest first. Redo over the file.
- *kept*, (txid, cell): "views before `txid` see `cell`", oldest first: values that a write-back overwrote although an
  open view still needed them. Undo under the file.

A view at t finds a cell in the first kept entry after t, else in the last dirty version at or before t, else in the
file. A write-back has three steps. Under the lock, it picks the newest version of every dirty cell, and copies to kept
what open views would lose. Without the lock, it writes and syncs the files. No reader needs a cell that is being
written: older views find it in kept, newer ones in dirty. Under the lock again, it drops from dirty what the files now
hold. `apply` may run at any time meanwhile. After all this, the owner records the position.

A crash or a copy in the middle of a write-back leaves torn cells and cells of different times in the files. That is
repaired by applying every record from the recorded position on: this sets each such cell again, without reading it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from ...env import File, Files, Lock
from ...env.system import told
from ...errors import Damaged, StoreClosed, UnsupportedFormat
from ...model.positions import Position

CELL = 64
"""Bytes in a cell, and in the header of a file."""

Key: TypeAlias = tuple[int, int]
"""The index of a file in the list, and the number of a cell in it."""

_GROW = 64 << 10
_RUN = 1024
_COST = CELL + 192
"""About how many bytes one version takes in memory: the cell, its tuple, list and entry."""


class CellFiles:
    """Some files of cells. Cell 0 follows the file's header; cells never written read as zeros."""

    def __init__(self, files: Files, layout: Sequence[tuple[Path, bytes]], head: Position, lock: Lock, *,
                 read_only: bool) -> None:
        """Open files whose cells are as of `head`, or will be once the records after it are applied.

        Args:
            layout: each file's path and its header, `CELL` bytes that never change, magic first.

        Raises:
            Damaged, UnsupportedFormat: a file is missing or has a wrong header. Cells are not checked.
        """
        self.head = head
        """The position that is applied: the newest that a view can show."""
        self._lock = lock
        self._dirty: dict[Key, list[tuple[int, bytes]]] = {}
        self._kept: dict[Key, list[tuple[int, bytes]]] = {}
        self._pins: Counter[int] = Counter()
        self._newest_pin = -1
        self._pending = 0
        self._files: list[File] = []
        try:
            for path, header in layout:
                try:
                    file = files.open(path, "read" if read_only else "write")
                except FileNotFoundError as error:
                    raise Damaged("is missing", path=str(path)) from error
                self._files.append(file)
                found = file.pread(CELL, 0)
                if found[:8] != header[:8]:
                    raise Damaged(f"starts with {found[:8]!r}, not {header[:8]!r}", path=str(path), offset=0)
                if found != header:
                    raise UnsupportedFormat(f"{path} has a header that this release does not write")
        except BaseException:
            self.close()
            raise

    # --- reading ---------------------------------------------------------------------------------------------------

    def pin(self) -> int:
        """Preserve what a view at the head sees, until `unpin` of the returned txid."""
        with self._lock:
            self._check_open()
            txid = self.head.txid
            self._pins[txid] += 1
            self._newest_pin = txid
            return txid

    def unpin(self, txid: int) -> None:
        with self._lock:
            self._pins[txid] -= 1
            if self._pins[txid]:
                return
            del self._pins[txid]
            self._newest_pin = max(self._pins, default=-1)
            if not self._pins:
                self._kept.clear()
            elif txid < (oldest := min(self._pins)):
                kept = ((key, [e for e in entries if e[0] > oldest]) for key, entries in self._kept.items())
                self._kept = {key: entries for key, entries in kept if entries}

    def newest(self, key: Key) -> bytes:
        """The cell's newest version, for the writer."""
        with self._lock:
            return self._read(key, self.head.txid)

    def cell(self, key: Key, txid: int) -> bytes:
        """The cell as of `txid`, which is pinned."""
        with self._lock:
            return self._read(key, txid)

    def run(self, file: int, first: int, count: int, txid: int) -> list[bytes]:
        """`count` cells in a row from `first`, as of `txid`, which is pinned."""
        with self._lock:
            self._check_open()
            data = self._in_file((file, first), count)
            cells = []
            for i in range(count):
                held = self._held((file, first + i), txid)
                cells.append(data[i * CELL : (i + 1) * CELL] if held is None else held)
            return cells

    def reach(self, file: int) -> int:
        """A number above that of every cell of `file` that was ever written."""
        with self._lock:
            self._check_open()
            on_disk = self._files[file].size() // CELL
            return max([on_disk, *(n + 1 for f, n in self._dirty if f == file)])

    def _read(self, key: Key, txid: int) -> bytes:
        self._check_open()
        held = self._held(key, txid)
        return self._in_file(key) if held is None else held

    def _held(self, key: Key, txid: int) -> bytes | None:
        """The cell as of `txid` if it is in memory. None: it is in the file."""
        for replaced, cell in self._kept.get(key, ()):
            if txid < replaced:
                return cell
        for version, cell in reversed(self._dirty.get(key, ())):
            if version <= txid:
                return cell
        return None

    def _in_file(self, key: Key, count: int = 1) -> bytes:
        """`count` cells from `key` on. Raises `DeviceFailed` or what else the system refuses."""
        file = self._files[key[0]]
        try:
            return file.pread(count * CELL, _offset(key[1])).ljust(count * CELL, b"\0")
        except OSError as error:
            raise told(error, "cannot read the state") or error from error

    def _check_open(self) -> None:
        if not self._files:
            raise StoreClosed("the store is closed")

    # --- writing ---------------------------------------------------------------------------------------------------

    def apply(self, batch: Iterable[tuple[Position, Iterable[tuple[Key, bytes]]]]) -> None:
        """Set cells, transaction by transaction. A view sees either the whole batch or none of it."""
        with self._lock:
            head = self.head
            for position, changes in batch:
                head = position
                for key, cell in changes:
                    versions = self._dirty.setdefault(key, [])
                    if versions and versions[-1][0] > self._newest_pin:  # no open view can need it
                        versions[-1] = (position.txid, cell)
                    else:
                        versions.append((position.txid, cell))
                        self._pending += _COST
            self.head = head

    def pending_bytes(self) -> int:
        """About how many bytes of memory the dirty cells take."""
        return self._pending

    def write_back(self) -> Position:
        """Write everything that is applied to the files, durably. Returns the position that they now hold.

        Raises:
            DiskFull: no cell was changed.
            OSError: cells on disk may have changed. Readers still see the right values.
        """
        with self._lock:
            self._check_open()
            reached = self.head
            todo = sorted((key, versions[-1][1]) for key, versions in self._dirty.items())
            self._make_room(todo)
            if self._pins:
                pins = sorted(self._pins)
                for key, versions in self._dirty.items():
                    self._keep(key, versions, pins)
        for (file, first), data in _join(todo):
            self._files[file].pwrite(data, _offset(first))
        for file in sorted({file for (file, _), _ in todo}):
            self._files[file].datasync()
        with self._lock:
            left = ((key, [v for v in versions if v[0] > reached.txid]) for key, versions in self._dirty.items())
            self._dirty = {key: versions for key, versions in left if versions}
            self._pending = _COST * sum(map(len, self._dirty.values()))
        return reached

    def _keep(self, key: Key, versions: list[tuple[int, bytes]], pins: list[int]) -> None:
        """Put into kept what open views see of a cell that is about to be overwritten.

        A view between two versions, or between the last kept entry and the first version, needs the earlier one.
        """
        kept = self._kept.get(key, [])
        done = kept[-1][0] if kept else 0
        before: bytes | None = None  # None: the file's
        for txid, cell in versions:
            at = bisect_left(pins, done)
            if at < len(pins) and pins[at] < txid:
                kept.append((txid, self._in_file(key) if before is None else before))
                self._kept[key] = kept
            done, before = txid, cell

    def _make_room(self, todo: list[tuple[Key, bytes]]) -> None:
        """Grow the files first, so that writing in place cannot run out of room half-way."""
        for number, file in enumerate(self._files):
            last = max((n for (f, n), _ in todo if f == number), default=None)
            if last is not None and (size := _offset(last + 1)) > file.size():
                file.reserve(-(-size // _GROW) * _GROW)

    def close(self) -> None:
        with self._lock:
            for file in self._files:
                file.close()
            self._files = []


def _offset(cell: int) -> int:
    return CELL * (1 + cell)


def _join(cells: Iterable[tuple[Key, bytes]]) -> list[tuple[Key, bytes]]:
    """Join adjacent cells, which come in order, into one write of at most `_RUN` cells."""
    runs: list[tuple[Key, list[bytes]]] = []
    for (file, number), cell in cells:
        if runs:
            (last_file, first), run = runs[-1]
            if file == last_file and number == first + len(run) and len(run) < _RUN:
                run.append(cell)
                continue
        runs.append(((file, number), [cell]))
    return [(key, b"".join(run)) for key, run in runs]
