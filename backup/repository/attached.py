"""Attachments in a repository: the files that records name, stored before the record is.

A file is cut into chunks, each an object. Chunks never change, so whoever finds one there compares it and goes on. Each
image and the archive of each branch have a folder of their own. So when one drops its files, nobody else needs them.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    put = 0
    for number, offset in enumerate(range(0, attachment.size, CHUNK_BYTES), 1):
        name = names.attachment(folder, attachment.name, number)
        content = source.read_attachment(lease_id, attachment.name, offset,
                                         min(CHUNK_BYTES, attachment.size - offset))
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
