"""Attachments: immutable files beside the segments, for bulk loads. Each is named by a record.

A file is the engine's content and then a 48-byte trailer: magic HFATTACH, version (u32), 0 (u32), content length (u64),
0 (u64), xxh3-128 of content and trailer so far. The file and its directory are synced before the record that names it
is logged. The record has the name, size and xxh3-128 of the whole file. A file that no record names is left from a load
that was not logged, and is removed. A file that a record names and that is missing is damage.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from xxhash import xxh3_128

from ..env import Files, is_disk_full
from ..errors import Damaged, DiskFull, InvalidInput
from ..model.records import Attachment

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ATTACHMENT_MAGIC, ATTACHMENT_VERSION = b"HFATTACH", 1
TRAILER = struct.Struct("<8sIIQQ16s")
NAME = re.compile(r"[0-9a-f]{32}\.att")
_READ_BYTES = 4 << 20


class AttachmentWriter(io.RawIOBase):
    """A file being written: a raw stream, written from start to end.

    `write` and `finish` raise `DiskFull`; the file is then removed.
    """

    def __init__(self, files: Files, directory: Path, name: str, expected: Attachment | None = None) -> None:
        super().__init__()
        if not NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} is not an attachment name", hint="attachment names are made by the kit")
        self._open = False
        self._files = files
        self._final = directory / name
        self._path = directory / (name + ".new")
        try:
            files.make_directory(directory)
            files.unlink(self._path, missing_ok=True)
            self._file = files.open(self._path, "create")
        except OSError as error:
            self._fail(error)
        self._digest = xxh3_128()
        self._size = 0
        self._expected = expected
        self._open = True

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        if len(view):
            try:
                self._file.pwrite(view, self._size)
            except OSError as error:
                self._fail(error)
            self._digest.update(view)
            self._size += len(view)
        return len(view)

    def tell(self) -> int:
        return self._size

    def finish(self) -> Attachment:
        """Add the trailer, and make the file durable under its name. A copy (`expected`) already has its trailer.

        Raises:
            Damaged: the copy is not what was expected; the file is removed.
        """
        if self._expected is None:
            head = TRAILER.pack(ATTACHMENT_MAGIC, ATTACHMENT_VERSION, 0, self._size, 0, bytes(16))[:-16]
            self._digest.update(head)
            tail = head + self._digest.digest()
            try:
                self._file.pwrite(tail, self._size)
            except OSError as error:
                self._fail(error)
            self._digest.update(tail[-16:])
            self._size += len(tail)
        made = Attachment(self._final.name, self._size, self._digest.digest())
        if self._expected is not None and made != self._expected:
            self.abandon()
            raise Damaged(f"attachment {made.name} arrived with {made.size} bytes that do not match the size and "
                          "checksum in its record")
        try:
            self._file.sync()
            self._files.rename(self._path, self._final)
            self._files.sync_directory(self._final.parent)
        except OSError as error:
            self._fail(error)
        self._open = False
        self._file.close()
        return made

    def _fail(self, error: OSError) -> NoReturn:
        self.abandon()
        if is_disk_full(error):
            raise DiskFull(f"no room for a bulk load in {self._final.parent}") from error
        raise error

    def abandon(self) -> None:
        """Remove the file, unless it is finished."""
        if self._open:
            self._open = False
            self._file.close()
            self._files.unlink(self._path, missing_ok=True)


def verify_attachment(files: Files, path: Path, attachment: Attachment) -> None:
    """Read every byte of an attachment and check it. Raises `Damaged`."""
    try:
        file = files.open(path)
    except FileNotFoundError as error:
        raise Damaged(f"attachment of a bulk load is missing ({attachment.size:,} bytes)", path=str(path)) from error
    try:
        digest = xxh3_128()
        for offset in range(0, file.size(), _READ_BYTES):
            digest.update(file.pread(_READ_BYTES, offset))
        if file.size() != attachment.size or digest.digest() != attachment.digest:
            raise Damaged("attachment does not match its record's checksum", path=str(path))
    finally:
        file.close()
