"""What the kit gives to engine authors: a state file, an image over plain files, a draft of keyed changes, a digest.

None of it is needed to write an engine; each piece saves a simple one from getting a crash point wrong.

- A *state file* is replaced whole and durably, so that it always holds one state at one position: an engine whose
  state is one such file is atomic. With an empty body it is the document that says where an engine's other files are.
- A *file image* holds its files open, so that they may be replaced or deleted while they are copied, or has a directory
  of its own with links or copies. Files that are replaced give a stable image; files that are written in place give a
  moving one.
- A *keyed draft* collects what a transaction sets, by key; its payload is those after-images and so is absolute.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgpack
from xxhash import xxh3_128_digest, xxh3_128_intdigest

from .contract import Context, Image, ImageFile, Transaction
from .errors import Damaged, InvalidInput, StoreClosed, UnsupportedFormat, UpgradeRequired
from .history import ID_BYTES, Position, Record
from .seams import File, Seams

_HEAD = struct.Struct("<8sII16sQ16sQ")
"""Magic, the engine's format version, layout, store id, txid, chain, length of the body. The body follows, then the
checksum: xxh3-128 of the head and of the xxh3-128 of the body."""
_LAYOUT = 2

MAGIC_BYTES = 8
MAX_HELD = 64
"""So many files an image may hold open: there may be sixteen, and a process may often open no more than 1,024."""

logger = logging.getLogger("holdfast.store")


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
    """An image of plain files, which survives what the engine does to them meanwhile.

    Files of the engine's own directory are held open, so that they may be replaced or deleted: that is for a few.
    Where there may be many, link or copy them into a directory that is the image's own: of that a file is open while
    it is read and no longer, and the directory goes with the image. Sizes are those at the time it is made; what a file
    grows by later belongs to later transactions.
    """

    def __init__(self, seams: Seams, directory: Path, names: Sequence[str], position: Position, *,
                 own: bool = False) -> None:
        """
        Args:
            seams, directory: as usual.
            names: of its files, in `directory`.
            position: what the image is of.
            own: `directory` is the image's own, and is removed when the image is closed.

        Raises:
            OSError: a file cannot be opened, or is not there; nothing stays open then.
            InvalidInput: more than `MAX_HELD` files, and the directory is not the image's own.
        """
        if not own and len(names) > MAX_HELD:
            raise InvalidInput(f"an image cannot hold {len(names)} files open, {MAX_HELD} is the most",
                               hint="link or copy them into a directory, and say own=True")
        self.position = position
        self._files = seams.files
        self._directory = directory
        self._own = own
        self._lock = seams.scheduler.lock()
        self._reading = 0
        self._closed = False
        self._held: dict[str, File] = {}
        if own:
            self._sizes = {name: seams.files.size(directory / name) for name in names}
        else:
            try:
                for name in names:
                    self._held[name] = seams.files.open(directory / name, "read")
                self._sizes = {name: file.size() for name, file in self._held.items()}
            except BaseException:
                self._let_go()
                raise
        self.files = tuple(ImageFile(name, size) for name, size in self._sizes.items())

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
        with self._lock:  # counted, so that `close` never takes a file from under a read
            if self._closed:
                raise StoreClosed("this image is closed", hint="take another lease")
            self._reading += 1
        try:
            data = self._held[name].pread(length, offset) if not self._own else self._read_own(name, offset, length)
        finally:
            with self._lock:
                self._reading -= 1
                last = self._closed and not self._reading
            if last:
                self._let_go()
        if len(data) != length:
            raise Damaged("was cut short", path=name, offset=offset + len(data))
        return data

    def _read_own(self, name: str, offset: int, length: int) -> bytes:
        file = self._files.open(self._directory / name, "read")
        try:
            return file.pread(length, offset)
        finally:
            file.close()

    def close(self) -> None:
        with self._lock:
            last = not self._closed and not self._reading
            self._closed = True
        if last:
            self._let_go()

    def _let_go(self) -> None:
        for file in self._held.values():
            file.close()
        if self._own:
            try:
                self._files.remove_tree(self._directory)
            except OSError as error:  # the engine's next opening removes it
                logger.warning("%s of an image that is done with cannot be removed: %s", self._directory, error)


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
