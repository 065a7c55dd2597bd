"""The bytes of an object: a header and frames, each compressed, checked, and encrypted if the repository is.

    header   magic `HFROBJ` (6), version (u8), kind (u8), flags (u8; 1: encrypted), data key (u16), salt (32)
    frame    length of the body (u32), flags (u8; 1: compressed with zstd, 2: the last), body, tag (16)
    end      number and length of the last frame (2 u32), so that it can be read alone, too

The tag covers the body and what the body belongs to: repository, kind, version, name of the object, number of the frame
and its flags. So a frame that was changed, moved to another place or put under another name is found. Without
encryption the tag is an xxh3-128, which finds damage and not forgery. With encryption it is the tag of AES-256-GCM.

Each object has a key of its own: HKDF-SHA256 of the data key and the object's random salt. The nonce is the number of
the frame. So no nonce is used twice with one key. A frame can be read alone, given header, number and flags: a pack is
read by ranges.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from xxhash import xxh3_128_digest

from ...engine.env import Env
from ...engine.errors import Damaged, SettingError, UnsupportedFormat
from .errors import KeyMissing

try:
    import zstandard
except ImportError as error:
    raise SettingError("a repository needs the extra packages of holdfast[repository]",
                       hint="install them: pip install 'holdfast[repository]'") from error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from .keys import Keyring

MAGIC, VERSION = b"HFROBJ", 1
HEADER = struct.Struct("<6sBBBH32s")
HEAD = struct.Struct("<IB")
END = struct.Struct("<II")
TAG_BYTES = 16
FRAME_BYTES = 4 << 20
"""The most bytes of content in one frame."""
OVERHEAD = HEAD.size + TAG_BYTES
"""Bytes of a frame beside its body."""
_ENCRYPTED = 1
_COMPRESSED, _LAST = 1, 2
_LEVEL = 1
"""zstd's level. Level 3 stores graphs in a tenth less, and takes twice the time."""


class Kind(IntEnum):
    """What an object is. The number is in its header."""

    CATALOG = 1
    CHECKPOINT = 2
    PACK = 3
    IMAGE = 4
    PIECE = 5
    WRITER = 6
    ATTACHMENT = 7


@dataclass(frozen=True, slots=True)
class Body:
    """The content of one frame as it is stored, before it is checked or encrypted."""

    data: bytes | memoryview
    compressed: bool


def compressed(pieces: list[bytes]) -> list[Body]:
    """Compress pieces, each by itself; one that would not shrink stays as it is. From any thread; the interpreter is
    free meanwhile. O(bytes)."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    found = []
    for piece in pieces:
        smaller = compressor.compress(piece) if len(piece) > 64 else piece
        found.append(Body(smaller, True) if len(smaller) < len(piece) else Body(piece, False))
    return found


class _Cipher:
    """Tags, and with a key encrypts, the frames of one object."""

    def __init__(self, repository_id: bytes, kind: Kind, name: str, key: bytes | None) -> None:
        text = name.encode()
        self._about = struct.pack("<16sBBH", repository_id, kind, VERSION, len(text)) + text
        self._aead: AESGCM | None = None
        if key is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._aead = AESGCM(key)

    def _bound_to(self, number: int, flags: int) -> bytes:
        return self._about + struct.pack("<IB", number, flags)

    def close(self, number: int, flags: int, body: bytes | memoryview) -> bytes:
        about = self._bound_to(number, flags)
        if self._aead is not None:
            return self._aead.encrypt(struct.pack("<12xI", number)[4:], body, about)
        return b"".join((body, xxh3_128_digest(b"".join((about, body)))))

    def open(self, number: int, flags: int, closed: memoryview) -> bytes | memoryview | None:
        """The body, or None if it does not match its tag."""
        about = self._bound_to(number, flags)
        if self._aead is not None:
            from cryptography.exceptions import InvalidTag

            try:
                return self._aead.decrypt(struct.pack("<12xI", number)[4:], closed, about)
            except InvalidTag:
                return None
        body = closed[:-TAG_BYTES]
        return body if xxh3_128_digest(b"".join((about, body))) == closed[-TAG_BYTES:] else None


class ObjectWriter:
    """An object that is being made, frame by frame. For one thread.

    Attributes:
        name: the object's.
        header: its first bytes; with it a frame can be read alone.
        size: bytes so far.
        frames: frames so far.
    """

    def __init__(self, name: str, header: bytes, cipher: _Cipher) -> None:
        self.name, self.header, self._cipher = name, header, cipher
        self._parts = [header]
        self.size, self.frames = len(header), 0

    def add(self, body: Body, *, last: bool = False) -> tuple[int, int]:
        """Append a frame. Returns where it lies: offset and length."""
        flags = body.compressed * _COMPRESSED | last * _LAST
        closed = self._cipher.close(self.frames, flags, body.data)
        offset, length = self.size, HEAD.size + len(closed)
        self._parts += (HEAD.pack(len(closed) - TAG_BYTES, flags), closed)
        self.size += length
        self.frames += 1
        return offset, length

    def finish(self, content: bytes) -> bytes:
        """Append the last frame. Returns the whole object."""
        [body] = compressed([content])
        _, length = self.add(body, last=True)
        return b"".join((*self._parts, END.pack(self.frames - 1, length)))


class ObjectReader:
    """Reads frames of one object, given its header. For one thread."""

    def __init__(self, name: str, url: str, cipher: _Cipher) -> None:
        self._name, self._url, self._cipher = name, url, cipher
        self._decompress = zstandard.ZstdDecompressor().decompress  # to make one takes as long as a small frame

    def _damaged(self, what: str, offset: int) -> Damaged:
        return Damaged(what, path=f"{self._url}/{self._name}", offset=offset)

    def frame(self, data: bytes | memoryview, number: int, offset: int, *, last: bool | None = None
              ) -> tuple[bytes, int]:
        """The content of frame `number`, which begins `data`, and its length there. `offset`: of `data` in the object,
        for messages. `last`: whether it must be the last one. Raises `Damaged`."""
        view = memoryview(data)
        if len(view) < OVERHEAD:
            raise self._damaged("ends within a frame", offset + len(view))
        length, flags = HEAD.unpack_from(view)
        end = HEAD.size + length + TAG_BYTES
        if flags & ~(_COMPRESSED | _LAST) or length > FRAME_BYTES or end > len(view):
            raise self._damaged(f"has a frame of {length:,} bytes where {len(view) - OVERHEAD:,} are left", offset)
        if last is not None and bool(flags & _LAST) != last:
            raise self._damaged("ends at another frame than it should", offset)
        body = self._cipher.open(number, flags, view[HEAD.size:end])
        if body is None:
            raise self._damaged(f"does not match the checksum of its frame {number}", offset)
        if not flags & _COMPRESSED:
            return bytes(body), end
        try:
            if zstandard.frame_content_size(body) > FRAME_BYTES:  # the library would trust it, and take the memory
                raise self._damaged("has a frame that is too large", offset)
            return self._decompress(body, max_output_size=FRAME_BYTES), end
        except zstandard.ZstdError as error:
            raise self._damaged(f"has a frame that cannot be decompressed: {error}", offset) from error

    def frames(self, data: bytes) -> Iterator[bytes]:
        """The contents of all frames of a whole object, in order. Raises `Damaged`, also if it ends early."""
        view, at, number = memoryview(data)[: -END.size], HEADER.size, 0
        while at < len(view):
            content, length = self.frame(view[at:], number, at)
            last = bool(view[at + 4] & _LAST)
            at += length
            number += 1
            if last != (at == len(view)):
                raise self._damaged("has bytes after its last frame" if last else "lacks its last frame", at)
            yield content
        if not number:
            raise self._damaged("has no frame", at)


class Seal:
    """Makes and reads the objects of one repository. From any thread.

    Attributes:
        repository_id: 16 bytes.
        url: of the repository, for messages.
    """

    def __init__(self, repository_id: bytes, url: str, keyring: Keyring | None, env: Env) -> None:
        self.repository_id, self.url = repository_id, url
        self._keyring, self._env = keyring, env

    @property
    def encrypts(self) -> bool:
        return self._keyring is not None

    @property
    def generation(self) -> int:
        """Number of the object `keys/N` that was opened; 0: it is not encrypted."""
        return 0 if self._keyring is None else self._keyring.generation

    def writer(self, kind: Kind, name: str) -> ObjectWriter:
        """Begin an object."""
        if self._keyring is None:
            header = HEADER.pack(MAGIC, VERSION, kind, 0, 0, bytes(32))
            return ObjectWriter(name, header, _Cipher(self.repository_id, kind, name, None))
        salt, number = self._env.randomness.token(32), self._keyring.newest
        header = HEADER.pack(MAGIC, VERSION, kind, _ENCRYPTED, number, salt)
        return ObjectWriter(name, header, _Cipher(self.repository_id, kind, name, self._keyring.derive(number, salt)))

    def seal(self, kind: Kind, name: str, content: bytes) -> bytes:
        """An object with this content, in as many frames as it takes."""
        writer = self.writer(kind, name)
        most = len(content) - 1 if content else 0
        for start in range(0, most - most % FRAME_BYTES, FRAME_BYTES):
            for body in compressed([content[start : start + FRAME_BYTES]]):
                writer.add(body)
        return writer.finish(content[most - most % FRAME_BYTES:])

    def reader(self, kind: Kind, name: str, header: bytes) -> ObjectReader:
        """A reader for an object that has this header.

        Raises:
            Damaged: it is not an object of this kind; or it is not encrypted, and the repository is.
            UnsupportedFormat: it is of a later release.
            KeyMissing: its data key is not among those that the repository's key opens.
        """
        where = f"{self.url}/{name}"
        if len(header) < HEADER.size:
            raise Damaged("is too short to be an object", path=where, offset=len(header))
        magic, version, found, flags, number, salt = HEADER.unpack_from(header)
        if magic != MAGIC:
            raise Damaged(f"starts with {magic!r}, not {MAGIC!r}", path=where, offset=0)
        if version != VERSION:
            raise UnsupportedFormat(f"{where} has format version {version}; this release reads {VERSION}")
        if found != kind or flags & ~_ENCRYPTED:
            raise Damaged(f"is an object of kind {found}, and one of kind {int(kind)} belongs here", path=where,
                          offset=7)
        if bool(flags & _ENCRYPTED) != self.encrypts:
            raise Damaged("is encrypted, and the repository is not" if flags else
                          "is not encrypted, and the repository is: somebody else put it there", path=where, offset=8)
        key = None
        if self._keyring is not None:
            try:
                key = self._keyring.derive(number, salt)
            except KeyError:
                raise KeyMissing(f"{where} is encrypted with data key {number}, and the repository's keys go to "
                                 f"{self._keyring.newest}") from None
        return ObjectReader(name, self.url, _Cipher(self.repository_id, kind, name, key))

    def open(self, kind: Kind, name: str, data: bytes) -> bytes:
        """The whole content of an object. Raises as `reader`, and `Damaged`."""
        return b"".join(self.reader(kind, name, data[: HEADER.size]).frames(data))
