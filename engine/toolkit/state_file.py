"""A small state file: written whole, at a position, with a checksum."""

from __future__ import annotations

import struct
from pathlib import Path

from xxhash import xxh3_128_digest

from ..contract.engine import Context
from ..errors import Damaged, UnsupportedFormat, UpgradeRequired
from ..model.positions import ID_BYTES, Position

_HEAD = struct.Struct("<8sII16sQ16sQ")
"""Magic, the engine's format version, layout, store id, txid, chain, length of the body. The body follows, then the
checksum: xxh3-128 of the head and of the xxh3-128 of the body."""
_LAYOUT = 2


def write_state(context: Context, path: Path, magic: bytes, version: int, position: Position, body: bytes) -> None:
    """Replace the file at `path` with a state at `position`, atomically and durably. O(body).

    Args:
        context: as the kit gave it to the engine. The file records its store id.
        magic: exactly 8 bytes that name the engine and the kind of file.
        version: the engine's `state_format`.

    Raises:
        DiskFull: no room; the file is unchanged.
    """
    head = _HEAD.pack(magic, version, _LAYOUT, context.store_id, position.txid, position.chain, len(body))
    context.env.files.write_durably(path, b"".join((head, body, _seal(head, body))))


def read_state(context: Context, path: Path, magic: bytes, version: int) -> tuple[Position, bytes]:
    """The position and body that `write_state` wrote. O(body).

    Raises:
        Damaged: the file is missing, is another kind of file, or does not match its checksum.
        ForeignStore: it is the state of another store than the context's.
        UpgradeRequired, UnsupportedFormat: it is of an older, or a newer, format version.
    """
    try:
        data = context.env.files.read(path)
    except FileNotFoundError as error:
        raise Damaged("is missing", path=str(path)) from error
    if len(data) < _HEAD.size + ID_BYTES:
        raise Damaged("too short to be a state", path=str(path), offset=len(data))
    found, found_version, layout, store_id, txid, chain, length = _HEAD.unpack_from(data)
    if found != magic:
        raise Damaged(f"starts with {found!r}, not {magic!r}", path=str(path), offset=0)
    if layout != _LAYOUT:
        raise UnsupportedFormat(f"{path} is a state file of layout {layout}; this release reads {_LAYOUT}")
    if found_version != version:
        kind = UpgradeRequired if found_version < version else UnsupportedFormat
        raise kind(f"{path} has state format {found_version}; this release writes {version}")
    if len(data) != _HEAD.size + length + ID_BYTES:
        raise Damaged("has the wrong length", path=str(path), offset=_HEAD.size)
    head, body = data[: _HEAD.size], data[_HEAD.size : -ID_BYTES]
    if _seal(head, body) != data[-ID_BYTES:]:
        raise Damaged("does not match its checksum", path=str(path), offset=len(data) - ID_BYTES)
    context.check_store(store_id, path)
    return Position(txid, chain), body


def with_version(data: bytes, version: int) -> bytes | None:
    """The bytes of a state file, as they would be if it were of another format version; None if these are not those of
    a state file. For tests of how a state of another version is met."""
    if len(data) < _HEAD.size + ID_BYTES or version < 0:
        return None
    magic, _, layout, store_id, txid, chain, length = _HEAD.unpack_from(data)
    head, body = data[: _HEAD.size], data[_HEAD.size : -ID_BYTES]
    if layout != _LAYOUT or _seal(head, body) != data[-ID_BYTES:]:
        return None
    head = _HEAD.pack(magic, version, layout, store_id, txid, chain, length)
    return b"".join((head, body, _seal(head, body)))


def _seal(head: bytes, body: bytes) -> bytes:
    # Hash the body's digest, not the body, so that a large body is not copied to be joined with the head.
    return xxh3_128_digest(head + xxh3_128_digest(body))
