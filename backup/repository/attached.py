"""Attachments in a repository: the files that records name, and payloads that are too large for a piece. They are
stored before the piece with the record is.

A file is cut into chunks, each an object. Chunks never change, so whoever finds one there compares it and goes on. Each
image and the archive of each branch have a folder of their own. So when one drops its files, nobody else needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...engine.errors import Damaged
from ...engine.model.records import Attachment
from ...engine.source.interface import Source
from . import names
from .errors import ObjectExists
from .sealed import FRAME_BYTES, Kind, Seal
from .storage.interface import ObjectStore

CHUNK_BYTES = FRAME_BYTES


def store_attachment(store: ObjectStore, seal: Seal, source: Source, lease_id: str, attachment: Attachment, folder: str
                     ) -> int:
    """Store a file that a record of the leased log names. Returns the bytes that were put. O(file).

    Raises:
        Damaged: another file is there under this name.
        LeaseExpired, SourceUnavailable, StorageUnavailable.
    """
    return _store(store, seal, attachment, folder,
                  lambda offset, length: source.read_attachment(lease_id, attachment.name, offset, length))


def store_payload(store: ObjectStore, seal: Seal, file: Attachment, payload: bytes, folder: str) -> int:
    """Store a payload as such a file. Returns and raises as `store_attachment`."""
    return _store(store, seal, file, folder, lambda offset, length: payload[offset : offset + length])


def _store(store: ObjectStore, seal: Seal, file: Attachment, folder: str, read: Callable[[int, int], bytes]) -> int:
    put = 0
    for number, offset in enumerate(range(0, file.size, CHUNK_BYTES), 1):
        name = names.attachment(folder, file.name, number)
        content = read(offset, min(CHUNK_BYTES, file.size - offset))
        data = seal.seal(Kind.ATTACHMENT, name, content)
        try:
            store.put(name, data)
            put += len(data)
        except ObjectExists:
            if seal.open(Kind.ATTACHMENT, name, store.get(name)) != content:
                raise Damaged("is another file than the source's", path=f"{store.url}/{name}") from None
    return put


def read_attachment(store: ObjectStore, seal: Seal, attachment: Attachment, folder: str) -> Iterator[bytes]:
    """The content of a file, in pieces. The caller compares its digest. Raises `Damaged`, `ObjectMissing`."""
    for number in range(1, -(-attachment.size // CHUNK_BYTES) + 1):
        name = names.attachment(folder, attachment.name, number)
        yield seal.open(Kind.ATTACHMENT, name, store.get(name))
