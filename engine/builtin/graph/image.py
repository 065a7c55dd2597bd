"""The image of an LMDB environment: its data file as one read transaction sees it.

LMDB is copy-on-write: while a read transaction is open, no page that it sees is overwritten. So its state is the file's
pages up to its last one, with its meta page in both meta slots. These can be read by byte range while writers work.
Pages that are free in that state are different: later writers use them. The image gives zeros for them, so that its
bytes never change, and nothing that was deleted gets into a backup. The list of free pages is a tree in the same file
(`pages.py`).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Any

import numpy as np

from ...contract.image import Image, ImageFile
from ...env import File
from ...errors import Damaged, InvalidInput
from ...model.positions import Position
from .pages import free_pages, read_metas

DATA = "data.mdb"


class LmdbImage(Image):
    """See the module's text. It holds a read transaction and the open file until it is closed."""

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
        # The file may end before the state's last pages, if they are free. Joined from parts: nothing is copied twice.
        whole, reached = memoryview(data), offset
        parts: list[bytes | memoryview] = []
        if offset < len(self._head):
            parts.append(self._head[offset:end])
            reached = min(len(self._head), end)
        while at < len(self._starts) and self._starts[at] < end:
            first, last = max(self._starts[at], offset), min(self._ends[at], end)
            parts += (whole[reached - offset : first - offset], bytes(last - first))
            reached = last
            at += 1
        parts.append(whole[reached - offset :])
        joined = b"".join(parts)
        return joined + bytes(length - len(joined))

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
