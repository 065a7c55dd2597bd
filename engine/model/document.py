"""Small documents on disk: checksummed msgpack maps with a magic and a version.

The store's identity, a target's manifest and the list of slots are such files. They are replaced whole and durably
(`Files.write_durably`), never changed in place. The layout, as in `docs/formats.md`: magic (8), format version (u32),
length of the body (u32), body (msgpack map), xxh3-128 of all before it (16).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgpack
from xxhash import xxh3_128_digest

from ..env import Files
from ..errors import Damaged, UnsupportedFormat

_HEAD = struct.Struct("<8sII")
MAX_BODY = 64 << 20


def encode(magic: bytes, version: int, body: dict[str, Any]) -> bytes:
    """The bytes of a document."""
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    data = _HEAD.pack(magic, version, len(packed)) + packed
    return data + xxh3_128_digest(data)


def decode(data: bytes, magic: bytes, version: int, path: Path) -> dict[str, Any]:
    """The body of a document. Raises `Damaged` or `UnsupportedFormat`, naming `path`."""
    if len(data) < _HEAD.size + 16:
        raise Damaged("is too short to be a document", path=str(path), offset=len(data))
    found, found_version, length = _HEAD.unpack_from(data)
    if found != magic:
        raise Damaged(f"starts with {found!r}, not {magic!r}", path=str(path), offset=0)
    if found_version != version:
        raise UnsupportedFormat(f"{path} has format version {found_version}; this release reads {version}")
    if length > MAX_BODY or len(data) != _HEAD.size + length + 16:
        raise Damaged("has the wrong length", path=str(path), offset=8)
    if xxh3_128_digest(data[:-16]) != data[-16:]:
        raise Damaged("does not match its checksum", path=str(path), offset=len(data) - 16)
    body: dict[str, Any] = msgpack.unpackb(data[_HEAD.size : -16], strict_map_key=False)
    return body


def is_whole(data: bytes) -> bool:
    """Whether the checksum at the end matches. If it does, an unknown version is a later release's; if not, the
    document is damaged."""
    return xxh3_128_digest(data[:-16]) == data[-16:]


def write(files: Files, path: Path, magic: bytes, version: int, body: dict[str, Any]) -> None:
    """Replace the document at `path` durably. Raises `DiskFull`."""
    files.write_durably(path, encode(magic, version, body))


def read(files: Files, path: Path, magic: bytes, version: int) -> dict[str, Any]:
    """The body of the document at `path`. Raises `FileNotFoundError`, `Damaged` or `UnsupportedFormat`."""
    return decode(files.read(path), magic, version, path)
