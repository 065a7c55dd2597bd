"""The image of an LMDB environment: its data file as one read transaction sees it.

LMDB is copy-on-write: while a read transaction is open, no page that it sees is overwritten. So the file's pages up to
that reader's last one, with that reader's meta page in both meta slots, are its state, readable by byte range while
writers go on. Pages that are free in that state are another matter: later writers use them. They are served as zeros,
so that the image's bytes are the same however often they are read, and nothing deleted leaves the store in a backup.
The list of free pages is a tree in the same file, which this module walks.

LMDB 0.9's layout, native byte order, 64 bits: a page starts with its number (8), 2 bytes of padding, flags (2), and
then `lower` and `upper` (2 + 2: bounds of the free space) or the number of overflow pages (4). A leaf or branch page
goes on with 2-byte offsets of its nodes. A node: two low halves of a size or child page (2 + 2), flags or the child's
third part (2), key size (2), key, data. The meta structure is behind a page's header: magic, version (4 + 4), address,
map size (8 + 8), two trees of 48 bytes, of which the first is the free list's (its first 4 bytes are the page size) and
the root is at 40, last page (8), transaction id (8).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np

from ..contract import Image, ImageFile
from ..errors import Damaged, InvalidInput
from ..history import Position
from ..seams import File

DATA = "data.mdb"
_HEADER = 16
_META = struct.Struct("=II8xQI36xQ48xQQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_P_BRANCH, _P_LEAF, _P_META = 1, 2, 8
_F_BIGDATA = 1
_NO_PAGE = 0xFFFFFFFFFFFFFFFF


class Meta(NamedTuple):
    """What a meta page says."""

    page_size: int
    free_root: int
    last_page: int
    txn: int
    raw: bytes

    @property
    def size(self) -> int:
        return (self.last_page + 1) * self.page_size


def read_metas(file: File) -> list[Meta]:
    """The two meta pages. Raises `Damaged`."""
    path = str(file.path)
    head = file.pread(_HEADER + _META.size, 0)
    if len(head) < _HEADER + _META.size:
        raise Damaged("is too short for an LMDB file", path=path, offset=len(head))
    found = []
    page_size = _META.unpack_from(head, _HEADER)[3]
    if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
        raise Damaged("has no LMDB page size", path=path, offset=_HEADER + 24)
    for slot in (0, 1):
        page = file.pread(page_size, slot * page_size)
        if len(page) < page_size:
            raise Damaged("is too short for an LMDB file", path=path, offset=len(page))
        magic, version, _, size, root, last, txn = _META.unpack_from(page, _HEADER)
        if magic != _MAGIC or version != _VERSION or size != page_size or last < 1:
            raise Damaged("is no LMDB file of a known version", path=path, offset=slot * page_size + _HEADER)
        found.append(Meta(page_size, root, last, txn, page))
    return found


class LmdbImage(Image):
    """See the module's text. Holds a read transaction and the open file until closed."""

    def __init__(self, txn: Any, file: File, position: Position) -> None:
        self._txn = txn
        self._file = file
        self.position = position
        try:
            wanted = txn.id()
            metas = [meta for meta in read_metas(file) if meta.txn == wanted]
            if not metas:
                raise Damaged(f"has no meta page of its transaction {wanted}", path=str(file.path))
            meta = metas[0]
            self._head = b"".join(struct.pack("=Q", slot) + meta.raw[8:] for slot in (0, 1))
            self._starts, self._ends = _runs(free_pages(file, meta), meta.page_size)
            self._size = meta.size
            self.files = (ImageFile(DATA, self._size),)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, offset: int, length: int) -> bytes:
        if name != DATA:
            raise InvalidInput(f"the image has no file {name!r}")
        if offset < 0 or length < 0 or offset + length > self._size:
            raise InvalidInput(f"bytes {offset} to {offset + length} are not in an image of {self._size}")
        data = self._file.pread(length, offset)
        end = offset + length
        at = bisect_right(self._ends, offset)
        touched = at < len(self._starts) and self._starts[at] < end
        if offset >= len(self._head) and not touched and len(data) == length:
            return data
        # The file may end before its last page, where that one is free.
        out = bytearray(data) + bytes(length - len(data))
        if offset < len(self._head):
            head = self._head[offset:end]
            out[: len(head)] = head
        while at < len(self._starts) and self._starts[at] < end:
            first, last = max(self._starts[at], offset), min(self._ends[at], end)
            out[first - offset : last - offset] = bytes(last - first)
            at += 1
        return bytes(out)

    def close(self) -> None:
        self._txn.abort()
        self._file.close()


def _runs(numbers: Any, page_size: int) -> tuple[list[int], list[int]]:
    """Sorted page numbers as byte ranges: their starts and ends."""
    if not len(numbers):
        return [], []
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate(([0], breaks + 1))]
    lasts = numbers[np.concatenate((breaks, [len(numbers) - 1]))]
    return (firsts * page_size).tolist(), ((lasts + 1) * page_size).tolist()


def free_pages(file: File, meta: Meta) -> Any:
    """The numbers of the pages that are free in a state: a sorted array. Raises `Damaged`."""
    found: list[Any] = []
    size = meta.page_size
    stack = [] if meta.free_root == _NO_PAGE else [meta.free_root]
    while stack:
        number = stack.pop()
        page = file.pread(size, number * size)
        if len(page) < size:
            raise Damaged(f"lacks page {number} of the free list", path=str(file.path), offset=number * size)
        own, flags, lower = struct.unpack_from("=Q2xHH", page)
        if own != number or not flags & (_P_BRANCH | _P_LEAF):
            raise Damaged(f"page {number} of the free list is not what it should be", path=str(file.path),
                          offset=number * size)
        for at in struct.unpack_from(f"={(lower - _HEADER) // 2}H", page, _HEADER):
            low, high, third, key = struct.unpack_from("=HHHH", page, at)
            if flags & _P_BRANCH:
                stack.append(low | high << 16 | third << 32)
                continue
            length, data = low | high << 16, at + 8 + key
            if third & _F_BIGDATA:
                first = struct.unpack_from("=Q", page, data)[0]
                value = file.pread(length, first * size + _HEADER)
            else:
                value = page[data : data + length]
            ids = np.frombuffer(value, dtype=np.uint64)
            found.append(ids[1 : int(ids[0]) + 1].astype(np.int64))
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
