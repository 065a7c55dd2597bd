"""Blocks, packs and trees: how the bytes of an image are stored.

A file is cut into blocks of equal size. A block is named by its SHA-256. New blocks that lie close together share a
frame, since compressing and reading some large frames costs a fraction of many small ones. Frames go into a pack: some
MB of them that are put as one object. The last frame of a pack is its index, so that a pack says by itself which blocks
it has.

The blocks of 64 MiB of a file are listed in a *leaf*, which is stored as a block too. The *root* lists the leaves of
all files, and how much of each pack the image uses. So a new image stores the blocks and leaves that differ from those
of the image before, and a root; and whoever reads it needs no other image. Memory holds a few leaves, whatever the
size. """

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from ...engine.contract.image import ImageFile
from ...engine.env import Env, Lock
from ...engine.env.pool import Pool
from ...engine.errors import Damaged
from ...engine.source.interface import block_digest
from . import names
from .sealed import END, FRAME_BYTES, HEADER, OVERHEAD, Body, Kind, ObjectWriter, Seal, compressed
from .storage.interface import ObjectStore
from .storage.putting import put_own

PACK_BYTES = 8 << 20
"""A pack is put once it has this many bytes."""
LEAF_BYTES = 64 << 20
"""Bytes of a file that one leaf lists."""
BLOCK_BYTES = 16 << 10
GROUP_BYTES = 256 << 10
"""The most bytes of blocks in one frame."""
UPLOADS = 3
"""Packs that are put at the same time. With a pack that is begun and one that is made whole, they hold 40 MiB."""
_TOGETHER = 256 << 10
"""Frames of a pack that lie this close are read as one range."""
_MOST_RANGE = 16 << 20
_LEAVES = 8


class Placed(NamedTuple):
    """Where a block is: frame `frame` of a pack, which has `length` bytes from `offset` on; and `size` bytes from
    `start` on of the frame's content. `pack`: its name."""

    digest: bytes
    pack: str
    frame: int
    offset: int
    length: int
    start: int
    size: int


class Part(NamedTuple):
    """A block in a frame that is to be stored: block `number` of `file`, or a leaf (then `number` is negative)."""

    digest: bytes
    file: str
    number: int
    start: int
    size: int


@dataclass(slots=True)
class PackUse:
    """What an image uses of a pack. `header`: the pack's, for reading a frame alone. `size`: its bytes as stored.
    `content`: bytes of its blocks and leaves. `used`: how many of them are this image's."""

    header: bytes
    size: int = 0
    content: int = 0
    used: int = 0


@dataclass(slots=True)
class Root:
    """The root of an image's tree.

    Attributes:
        block_bytes: the size of a block.
        files: names and sizes, each with its leaves in order.
        packs: by name, those that the image uses.
        engine, image: the engine's name, and what the catalog says of the image: so it is found without the catalog.
    """

    block_bytes: int
    files: list[tuple[ImageFile, list[Placed]]] = field(default_factory=list)
    packs: dict[str, PackUse] = field(default_factory=dict)
    engine: str = ""
    image: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        numbers = {name: n for n, name in enumerate(self.packs)}
        body: bytes = msgpack.packb({
            "block_bytes": self.block_bytes,
            "packs": [[name, use.header, use.size, use.content, use.used] for name, use in self.packs.items()],
            "files": [[file.name, file.size, _wire(leaves, numbers)] for file, leaves in self.files],
            "engine": self.engine, "image": self.image,
        }, use_bin_type=True)
        return body

    @classmethod
    def decode(cls, data: bytes, where: str) -> Root:
        """Raises `Damaged`."""
        try:
            body = msgpack.unpackb(data, strict_map_key=False)
            packs = {name: PackUse(*use) for name, *use in body["packs"]}
            listed = list(packs)
            return cls(body["block_bytes"], [(ImageFile(name, size), _placed(leaves, listed))
                                             for name, size, leaves in body["files"]], packs, body["engine"],
                       body["image"])
        except (KeyError, IndexError, TypeError, ValueError, msgpack.UnpackException) as error:
            raise Damaged(f"lacks or garbles a field: {error}", path=where) from error

    @property
    def bytes(self) -> int:
        """Of the image's files."""
        return sum(file.size for file, _ in self.files)


def _wire(placed: Iterable[Placed], numbers: dict[str, int]) -> list[Any]:
    """Places as columns, which compress better."""
    rows = list(placed)
    return [b"".join(r.digest for r in rows), [numbers[r.pack] for r in rows], [r.frame for r in rows],
            [r.offset for r in rows], [r.length for r in rows], [r.start for r in rows], [r.size for r in rows]]


def _placed(columns: list[Any], packs: Sequence[str]) -> list[Placed]:
    digests, numbers, *others = columns
    each = [digests[at : at + 32] for at in range(0, len(digests), 32)]
    return [Placed(*row) for row in zip(each, [packs[number] for number in numbers], *others, strict=True)]


def encode_leaf(blocks: Sequence[Placed], headers: dict[str, bytes]) -> bytes:
    """A leaf. `headers`: of the packs that it names."""
    used = list(dict.fromkeys(block.pack for block in blocks))
    numbers = {name: n for n, name in enumerate(used)}
    body: bytes = msgpack.packb([[[name, headers[name]] for name in used], _wire(blocks, numbers)], use_bin_type=True)
    return body


@dataclass(frozen=True, slots=True)
class Leaf:
    """The blocks of 64 MiB of a file, in order, and the headers of their packs."""

    blocks: list[Placed]
    headers: dict[str, bytes]

    @classmethod
    def decode(cls, data: bytes, where: str) -> Leaf:
        """Raises `Damaged`."""
        try:
            packs, columns = msgpack.unpackb(data)
            return cls(_placed(columns, [name for name, _ in packs]), dict(packs))
        except (IndexError, TypeError, ValueError, msgpack.UnpackException) as error:
            raise Damaged(f"has a leaf that lacks or garbles a field: {error}", path=where) from error


# --- writing ------------------------------------------------------------------------------------------------------


class PackWriter:
    """Puts blocks into packs of one session. Packs are put by threads of its own. For one thread.

    Attributes:
        packs: those that were begun, by name, with what is in them; `size` is known once one is put.
        stored: bytes that were put.
    """

    def __init__(self, store: ObjectStore, seal: Seal, session: str, env: Env) -> None:
        self._store, self._seal, self._session, self._env = store, seal, session, env
        self._pool = Pool("holdfast-pack", UPLOADS, env.scheduler)
        self._uploads: list[Future[None]] = []
        self._numbers = itertools.count(1)
        self._pack: ObjectWriter | None = None
        self._index: list[list[Any]] = []
        self.packs: dict[str, PackUse] = {}
        self.stored = 0

    def add(self, body: Body, parts: Sequence[Part]) -> list[Placed]:
        """Store a frame with these blocks. Returns where they are. Raises what putting an earlier pack raised."""
        if self._pack is None:
            name = names.pack(self._session, next(self._numbers))
            self._pack = self._seal.writer(Kind.PACK, name)
            self.packs[name] = PackUse(self._pack.header)
        pack = self._pack
        frame = pack.frames
        offset, length = pack.add(body)
        places = [Placed(part.digest, pack.name, frame, offset, length, part.start, part.size) for part in parts]
        self._index += [[part.file, part.number, part.digest, frame, offset, length, part.start, part.size]
                        for part in parts]
        self.packs[pack.name].content += sum(part.size for part in parts)
        if pack.size >= PACK_BYTES:
            self.flush()
        return places

    def flush(self) -> None:
        """Have the pack that is under way put, if there is one."""
        pack = self._pack
        if pack is None:
            return
        while len(self._uploads) >= UPLOADS:  # first, since a whole pack is in memory twice for a moment
            self._uploads.pop(0).result()
        data = pack.finish(msgpack.packb(self._index, use_bin_type=True))
        self._pack, self._index = None, []
        self.packs[pack.name].size = len(data)
        self.stored += len(data)
        name = pack.name  # a thread that had the pack itself would keep all its parts, too
        self._uploads.append(self._pool.submit(lambda: put_own(self._store, name, data, self._env)))

    def finish(self) -> None:
        """Put what is left, and wait until everything is stored."""
        self.flush()
        while self._uploads:
            self._uploads.pop(0).result()

    def close(self) -> None:
        self._pool.close()


def pack_index(store: ObjectStore, seal: Seal, name: str, size: int) -> tuple[bytes, list[tuple[str, int, Placed]]]:
    """The header of a pack of `size` bytes, and its blocks: file, number, place. Two reads. Raises `Damaged`,
    `ObjectMissing`."""
    where = f"{store.url}/{name}"
    tail = store.get(name, max(0, size - _TOGETHER), min(size, _TOGETHER))
    number, length = END.unpack(tail[-END.size :].rjust(END.size, b"\0"))
    whole = length + END.size
    if not OVERHEAD <= length <= size - HEADER.size - END.size:
        raise Damaged("has no index", path=where, offset=max(0, size - END.size))
    if whole > len(tail):
        tail = store.get(name, size - whole, whole)
    header = store.get(name, 0, HEADER.size)
    frame, _ = seal.reader(Kind.PACK, name, header).frame(tail[-whole : -END.size], number, size - whole, last=True)
    try:
        return header, [(file, number, Placed(digest, name, *place))
                        for file, number, digest, *place in msgpack.unpackb(frame)]
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise Damaged(f"has an index that lacks or garbles a field: {error}", path=where) from error


# --- reading ------------------------------------------------------------------------------------------------------


class TreeReader:
    """Reads an image by its root. From any thread."""

    def __init__(self, store: ObjectStore, seal: Seal, root: Root, env: Env) -> None:
        self._store, self._seal, self.root = store, seal, root
        self._leaves: OrderedDict[Placed, Leaf] = OrderedDict()
        self._lock: Lock = env.scheduler.lock()
        self._files = {file.name: leaves for file, leaves in root.files}

    def leaf(self, place: Placed) -> Leaf:
        """A leaf. Some are kept. Raises `Damaged`, `ObjectMissing`."""
        with self._lock:
            if found := self._leaves.get(place):
                self._leaves.move_to_end(place)
                return found
        [(_, data)] = self.read([place], {place.pack: self.root.packs[place.pack].header})
        leaf = Leaf.decode(bytes(data), f"{self._store.url}/{place.pack}")
        with self._lock:
            self._leaves[place] = leaf
            while len(self._leaves) > _LEAVES:
                self._leaves.popitem(last=False)
        return leaf

    def leaf_at(self, file: str, offset: int) -> Placed | None:
        """Where the leaf lies that lists the bytes of a file from `offset` on."""
        leaves, number = self._files.get(file, []), offset // LEAF_BYTES
        return leaves[number] if number < len(leaves) else None

    def blocks_at(self, file: str, offset: int, length: int) -> tuple[list[Placed], dict[str, bytes]]:
        """The places of the blocks that hold these bytes of a file, which lie in one leaf, as far as the file had them;
        and the headers of packs. `offset`: a multiple of the block size."""
        place = self.leaf_at(file, offset)
        if place is None:
            return [], {}
        leaf, size, within = self.leaf(place), self.root.block_bytes, offset % LEAF_BYTES
        return leaf.blocks[within // size : (within + length + size - 1) // size], leaf.headers

    def read(self, places: Sequence[Placed], headers: dict[str, bytes]) -> Iterator[tuple[int, memoryview]]:
        """The contents of blocks, each with its number in `places`, in the order in which they lie in their packs.
        Compared with their digests. Frames that lie close together are one read, and each is decompressed once.

        Raises:
            Damaged, ObjectMissing, StorageUnavailable.
        """
        order = sorted(range(len(places)), key=lambda n: (places[n].pack, places[n].offset, places[n].start))
        for name, numbers in itertools.groupby(order, key=lambda n: places[n].pack):
            reader = self._seal.reader(Kind.PACK, name, headers[name])
            for together in _ranges([(n, places[n]) for n in numbers]):
                start = together[0][1].offset
                data = memoryview(self._store.get(name, start, together[-1][1].offset + together[-1][1].length - start))
                for frame, blocks in itertools.groupby(together, key=lambda one: one[1].frame):
                    content: memoryview | None = None
                    for n, place in blocks:
                        if content is None:
                            at = place.offset - start
                            content = memoryview(reader.frame(data[at : at + place.length], frame, place.offset,
                                                              last=False)[0])
                        block = content[place.start : place.start + place.size]
                        if block_digest(block) != place.digest:
                            raise Damaged("has another block than the image says", path=f"{self._store.url}/{name}",
                                          offset=place.offset)
                        yield n, block


def _ranges(places: Sequence[tuple[int, Placed]]) -> Iterator[list[tuple[int, Placed]]]:
    """Frames of one pack, in order, in groups that are read at once."""
    group: list[tuple[int, Placed]] = []
    for n, place in places:
        if group and group[-1][1].frame != place.frame and (
                place.offset - group[-1][1].offset - group[-1][1].length > _TOGETHER
                      or place.offset + place.length - group[0][1].offset > _MOST_RANGE):
            yield group
            group = []
        group.append((n, place))
    if group:
        yield group


def leaf_body(content: bytes) -> Body:
    """A leaf as a frame. It fits: 64 MiB in blocks of 4 KiB are 16,384 places of about 55 bytes."""
    assert len(content) <= FRAME_BYTES
    [body] = compressed([content])
    return body
