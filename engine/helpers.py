"""What the kit gives to engine authors: a state file, an image over plain files, a draft of keyed changes, a digest.

None of it is needed to write an engine; each piece saves a simple one from getting a crash point wrong.

- A *state file* is replaced whole and durably, so that it always holds one state at one position: an engine whose
  state is one such file is atomic. With an empty body it is the document that says where an engine's other files are.
- A *file image* holds its files open, so that they may be replaced or deleted while they are copied. Files that are
  replaced give a stable image; files that are written in place give a moving one.
- A *keyed draft* collects what a transaction sets, by key; its payload is those after-images and so is absolute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgpack
from xxhash import xxh3_128_digest, xxh3_128_intdigest

from .contract import Context, Image, ImageFile, Transaction
from .errors import Damaged, InvalidInput, StoreClosed, UnsupportedFormat, UpgradeRequired
from .history import ID_BYTES, Position, Record
from .seams import Seams

_HEAD = struct.Struct("<8sII16sQ16sQ")
"""Magic, the engine's format version, layout, store id, txid, chain, length of the body. The body follows, then the
checksum: xxh3-128 of the head and of the xxh3-128 of the body."""
_LAYOUT = 2

MAGIC_BYTES = 8


def write_state(context: Context, path: Path, magic: bytes, version: int, position: Position, body: bytes) -> None:
    """Put a state at `position` into the file `path`, all or nothing, durably, with the id of the store whose it is.

    Args:
        context: as the kit gave it to the engine.
        magic: exactly 8 bytes that name the engine and the kind of file.
        version: the engine's `state_format`.

    Raises:
        DiskFull: no room; the file is unchanged.
    """
    head = _HEAD.pack(magic, version, _LAYOUT, context.store_id, position.txid, position.chain, len(body))
    context.seams.files.write_durably(path, b"".join((head, body, _seal(head, body))))


def read_state(context: Context, path: Path, magic: bytes, version: int) -> tuple[Position, bytes]:
    """The position and body that `write_state` put there.

    Raises:
        Damaged: the file is missing, is another kind of file, or does not match its checksum.
        ForeignStore: it is the state of another store than the context's.
        UpgradeRequired, UnsupportedFormat: it is of an older, or a newer, format version.
    """
    try:
        data = context.seams.files.read(path)
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


def _seal(head: bytes, body: bytes) -> bytes:
    # The body's own digest stands in for it, so that a large one is not copied to be hashed together with the head.
    return xxh3_128_digest(head + xxh3_128_digest(body))


class FileImage(Image):
    """An image of plain files, which it holds open: it survives their replacement and deletion.

    Its sizes are those at the time it is made. What a file grows by later belongs to later transactions.
    """

    def __init__(self, seams: Seams, directory: Path, names: Sequence[str], position: Position) -> None:
        """Raises `OSError` where a file cannot be opened; nothing stays open then."""
        self.position = position
        self._lock = seams.scheduler.lock()
        self._reading = 0
        self._closed = False
        self._open = {}
        try:
            for name in names:
                self._open[name] = seams.files.open(directory / name, "read")
            self.files = tuple(ImageFile(name, file.size()) for name, file in self._open.items())
        except BaseException:
            self._let_go()
            raise
        self._sizes = {file.name: file.size for file in self.files}

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As `Image.read`.

        Raises:
            InvalidInput: no such file or range.
            Damaged: the file was cut short below its image.
            StoreClosed: the image was closed.
        """
        size = self._sizes.get(name)
        if size is None or offset < 0 or length < 0 or offset + length > size:
            raise InvalidInput(f"the image has no bytes {offset} to {offset + length} of {name!r}")
        with self._lock:  # counted, so that `close` never takes a descriptor from under a read
            if self._closed:
                raise StoreClosed("this image is closed", hint="take another lease")
            self._reading += 1
        try:
            data = self._open[name].pread(length, offset)
        finally:
            with self._lock:
                self._reading -= 1
                if self._closed and not self._reading:
                    self._let_go()
        if len(data) != length:
            raise Damaged("was cut short", path=name, offset=offset + len(data))
        return data

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                if not self._reading:
                    self._let_go()

    def _let_go(self) -> None:
        for file in self._open.values():
            file.close()


K = TypeVar("K")
V = TypeVar("V")


class KeyedDraft(Transaction, Generic[K, V]):
    """A draft whose changes are values by key, each the whole new value: what msgpack packs, tuples included.

    Subclasses put into `changes`, after `self.writable()` and after they have refused bad input.
    """

    __slots__ = ("changes",)

    def __init__(self) -> None:
        super().__init__()
        self.changes: dict[K, V] = {}

    def payload(self) -> bytes:
        return _pack(list(self.changes.items())) if self.changes else b""


def changes_of(record: Record) -> list[tuple[Any, Any]]:
    """The changes in a record whose draft was a `KeyedDraft`. Raises `Damaged` where its payload is no such thing."""
    try:
        changes = msgpack.unpackb(record.payload, use_list=False) if record.payload else ()
        return [(key, value) for key, value in changes]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Damaged(f"the payload of transaction {record.txid} is not a list of changes: {error}") from error


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unordered_digest(items: Iterable[bytes], *marks: int) -> bytes:
    """16 bytes over a multiset of encoded items, in whatever order they come, and some numbers, in theirs.

    Hashes are added, not xor-ed: two equal items do not cancel out.
    """
    total = count = 0
    for item in items:
        total += xxh3_128_intdigest(item)
        count += 1
    return xxh3_128_digest(_pack([(total % (1 << 128)).to_bytes(16, "little"), count, *marks]))
