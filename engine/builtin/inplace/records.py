"""The records engine: byte strings by number, in fixed-size records that are written in place.

Neo4j 1.x kept its stores like this. Such a state is the hardest to copy while it is in use. A checkpoint overwrites
records all over the files. So an image moves while it is read, and a crash leaves torn records and records of different
times. Only redo repairs that (`abilities.atomic` is False). Payloads hold whole records as they are after the change,
by file and number, including allocation marks and free list. Redo sets them, and reads nothing.

There are two files of 64-byte records (`cells` preserves what views see while they are overwritten):

- `values`: record n is value n: its length, its first bytes, and the first overflow record for the rest. Numbers are
  never reused. The record of a deleted value stays, marked as deleted.
- `overflow`: records of chains, each with the number of the next. Freed ones form a chain too, and are reused.

Record 0 of each file holds its marks: the next number that was never used, and the head of the free chain. Every record
has a checksum that also covers its place. The two files hold at least what the file `position` says.

A limit: a record from an earlier time has a right checksum too. So if a disk lost a write, only the check finds that,
and only if chains no longer fit together. Other engines have a tally of all records. A tally is of one moment, but
files that are written in place mix several until redo has ended.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ...contract.engine import Abilities, Context, Engine
from ...contract.image import Image
from ...contract.view import View
from ...errors import Damaged, InvalidInput, NotFound, StoreClosed
from ...model.positions import Position
from ...model.records import Record
from ...toolkit.digest import unordered_digest
from ...toolkit.file_image import FileImage
from ...toolkit.keyed_transaction import KeyedTransaction, changes_of
from ...toolkit.state_file import read_state, write_state
from .cells import CELL, CellFiles, Key

MAX_VALUE = 1 << 20
"""Bytes in a value, at most."""

VALUES, OVERFLOW = 0, 1
_NAMES = ("values", "overflow")
_MAGICS = (b"HFRECVAL", b"HFRECOVF")
_POSITION, _POSITION_MAGIC = "position", b"HFRECPOS"

_HEADER = struct.Struct("<8sII32s")  # magic, format version, bytes in a record, engine; then xxh3-128 of these
_MARKS = struct.Struct("<4xQQ44x")  # after the checksum: next number never used, head of the free chain (0: none)
_VALUE = struct.Struct("<4xIQB47s")  # length, first overflow record (0: none), state, first bytes
_CHAIN = struct.Struct("<4xQBB50s")  # next record (0: none), state, bytes used, bytes
_SUM = struct.Struct("<I")
_PLACE = struct.Struct("<BQ")
_INLINE, _LINK = 47, 50
_FREE, _USED = 1, 2  # states; 0 is a record that was never written
_STRETCH = 1024


class _Value(NamedTuple):
    length: int
    chain: int
    used: bool
    inline: bytes


class _Link(NamedTuple):
    next: int
    used: bool
    data: bytes


class _Marks(NamedTuple):
    next: int
    free: int


def _header(magic: bytes) -> bytes:
    packed = _HEADER.pack(magic, RecordsEngine.state_format, CELL, RecordsEngine.name.encode())
    return packed + xxh3_128_digest(packed)


def _close(key: Key, cell: bytes) -> bytes:
    """Put the checksum in front of a packed record."""
    return _SUM.pack(xxh3_64_intdigest(_PLACE.pack(*key) + cell[4:]) & 0xFFFFFFFF) + cell[4:]


def _verified(key: Key, cell: bytes) -> bytes:
    """The cell. Raises `Damaged` if its checksum is wrong, or belongs to another place."""
    if _SUM.unpack_from(cell)[0] != xxh3_64_intdigest(_PLACE.pack(*key) + cell[4:]) & 0xFFFFFFFF:
        raise Damaged(f"record {key[1]} does not match its checksum", path=_NAMES[key[0]], offset=CELL * (1 + key[1]))
    return cell


class _Reader:
    """Decodes and verifies records. `fetch` gives the cells: a transaction's or a view's."""

    __slots__ = ("_fetch",)

    def __init__(self, fetch: Callable[[Key], bytes]) -> None:
        self._fetch = fetch

    def marks(self, file: int) -> _Marks:
        return _Marks(*_MARKS.unpack(_verified((file, 0), self._fetch((file, 0)))))

    def find(self, number: int) -> _Value | None:
        """A value, or None if it does not exist. Raises `InvalidInput`, `Damaged`."""
        if type(number) is not int or number < 1:
            raise InvalidInput("a value's number is an int from 1 up")
        if number >= self.marks(VALUES).next:
            return None
        value = self.decode(number, self._fetch((VALUES, number)))
        return value if value.used else None

    @staticmethod
    def decode(number: int, cell: bytes) -> _Value:
        length, chain, state, inline = _VALUE.unpack(_verified((VALUES, number), cell))
        return _Value(length, chain, state == _USED, inline[: min(length, _INLINE)])

    def link(self, number: int) -> _Link:
        following, state, size, data = _CHAIN.unpack(_verified((OVERFLOW, number), self._fetch((OVERFLOW, number))))
        return _Link(following, state == _USED, data[:size])

    def chain(self, number: int, value: _Value) -> list[tuple[int, bytes]]:
        """The overflow records of a value, in order: number and bytes of each. Raises `Damaged`."""
        links: list[tuple[int, bytes]] = []
        left, at = value.length - len(value.inline), value.chain
        while 0 < left < MAX_VALUE and at:
            link = self.link(at)
            if not link.used or not 0 < len(link.data) <= left:
                break
            links.append((at, link.data))
            left, at = left - len(link.data), link.next
        if left or at:
            raise Damaged(f"value {number} of {value.length:,} bytes has a broken chain, at overflow record {at}",
                          path=_NAMES[VALUES], offset=CELL * (1 + number))
        return links

    def content(self, number: int, value: _Value) -> bytes:
        return b"".join((value.inline, *(data for _, data in self.chain(number, value))))


class RecordsTransaction(KeyedTransaction[Key, bytes]):
    """A transaction over the newest state: whole records by place. Values are up to `MAX_VALUE` bytes."""

    __slots__ = ("_cells", "_reader", "_step")

    def __init__(self, cells: CellFiles) -> None:
        super().__init__()
        self._cells = cells
        self._step: dict[Key, bytes] = {}  # what one call changes; merged only when the call succeeds
        self._reader = _Reader(self._fetch)

    def get(self, number: int) -> bytes | None:
        """The value, or None. This transaction's own changes are included. Raises `InvalidInput`."""
        self._step = {}
        value = self._reader.find(number)
        return None if value is None else self._reader.content(number, value)

    def insert(self, value: bytes) -> int:
        """Add a value. Returns its number, which no other value of this branch ever had."""
        self._start(value)
        marks = self._reader.marks(VALUES)
        self._set((VALUES, 0), _MARKS.pack(marks.next + 1, marks.free))
        self._put(marks.next, value)
        self.changes.update(self._step)
        return marks.next

    def update(self, number: int, value: bytes) -> None:
        """Replace a value. Raises `NotFound`, `InvalidInput`."""
        self._start(value)
        self._take(number)
        self._put(number, value)
        self.changes.update(self._step)

    def delete(self, number: int) -> None:
        """Remove a value. Raises `NotFound`, `InvalidInput`."""
        self._start(b"")
        self._take(number)
        self._set((VALUES, number), _VALUE.pack(0, 0, _FREE, b""))
        self.changes.update(self._step)

    def _start(self, value: bytes) -> None:
        if type(value) is not bytes or len(value) > MAX_VALUE:
            raise InvalidInput(f"a value is at most {MAX_VALUE:,} bytes")
        self._step = {}

    def _fetch(self, key: Key) -> bytes:
        cell = self._step.get(key) or self.changes.get(key)
        return self._cells.newest(key) if cell is None else cell

    def _set(self, key: Key, cell: bytes) -> None:
        self._step[key] = _close(key, cell)

    def _take(self, number: int) -> None:
        """Free the chain of an existing value. Raises `NotFound`."""
        value = self._reader.find(number)
        if value is None:
            raise NotFound(f"there is no value {number}")
        marks = self._reader.marks(OVERFLOW)
        free = marks.free
        for at, _ in reversed(self._reader.chain(number, value)):
            self._set((OVERFLOW, at), _CHAIN.pack(free, _FREE, 0, b""))
            free = at
        if free != marks.free:
            self._set((OVERFLOW, 0), _MARKS.pack(marks.next, free))

    def _put(self, number: int, value: bytes) -> None:
        """Write a value's record and its chain. Uses freed records first, then new ones."""
        following, free = self._reader.marks(OVERFLOW)
        places = []
        for _ in range(_INLINE, len(value), _LINK):
            if free:
                link = self._reader.link(free)
                if link.used:
                    raise Damaged(f"overflow record {free} is in the free chain and in use", path=_NAMES[OVERFLOW],
                                  offset=CELL * (1 + free))
                places.append(free)
                free = link.next
            else:
                places.append(following)
                following += 1
        if places:
            self._set((OVERFLOW, 0), _MARKS.pack(following, free))
        for i, at in enumerate(places):
            start = _INLINE + i * _LINK
            data = value[start : start + _LINK]
            self._set((OVERFLOW, at), _CHAIN.pack(places[i + 1] if i + 1 < len(places) else 0, _USED, len(data), data))
        head = places[0] if places else 0
        self._set((VALUES, number), _VALUE.pack(len(value), head, _USED, value[:_INLINE]))


class RecordsView(View):
    """A view. While it is open, overwritten records are kept in memory for it, so close it."""

    def __init__(self, cells: CellFiles) -> None:
        self._cells = cells
        self._txid = cells.pin()
        self._closed = False
        self._reader = _Reader(self._fetch)

    @property
    def txid(self) -> int:
        return self._txid

    def get(self, number: int) -> bytes | None:
        """A value, or None. Raises `InvalidInput`, and `Damaged` if its records are damaged."""
        value = self._reader.find(number)
        return None if value is None else self._reader.content(number, value)

    def items(self) -> Iterator[tuple[int, bytes]]:
        """All numbers and values, by number. Raises `Damaged`."""
        for number, cell in self._stretch():
            value = self._reader.decode(number, cell)
            if value.used:
                yield number, self._reader.content(number, value)

    def digest(self) -> bytes:
        items = (b"%d:%b" % item for item in self.items())
        return unordered_digest(items, self._reader.marks(VALUES).next)

    def check(self) -> Iterator[str]:
        """Walk every record, value chain and free chain."""
        try:
            values, overflow = self._reader.marks(VALUES), self._reader.marks(OVERFLOW)
        except Damaged as error:
            yield error.message
            return
        for file, marks in ((VALUES, values), (OVERFLOW, overflow)):
            if not 1 <= marks.next <= max(1, self._cells.reach(file)):
                yield f"{_NAMES[file]}: the marks say that {marks.next:,} records were used; the file has fewer"
                return
        owner: dict[int, str] = {}
        for number, cell in self._stretch():
            try:
                value = self._reader.decode(number, cell)
                links = self._reader.chain(number, value) if value.used else []
            except Damaged as error:
                yield error.message
                continue
            for at, _ in links:
                if at in owner:
                    yield f"overflow: record {at} is in {owner[at]} and in value {number}"
                elif at >= overflow.next:
                    yield f"overflow: record {at}, in value {number}, is beyond the mark {overflow.next}"
                owner[at] = f"value {number}"
        yield from self._check_free(overflow, owner)
        for at in range(1, overflow.next):
            if at not in owner:
                try:
                    self._reader.link(at)
                    yield f"overflow: record {at} is in no chain"
                except Damaged as error:
                    yield error.message

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._cells.unpin(self._txid)

    def _fetch(self, key: Key) -> bytes:
        self._check_open()
        return self._cells.cell(key, self._txid)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("this view is closed", hint="take another snapshot")

    def _stretch(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each record in `values`, read some at a time."""
        end = self._reader.marks(VALUES).next
        for first in range(1, end, _STRETCH):
            self._check_open()
            yield from enumerate(self._cells.run(VALUES, first, min(_STRETCH, end - first), self._txid), first)

    def _check_free(self, marks: _Marks, owner: dict[int, str]) -> Iterator[str]:
        """Walk the free chain as far as it is intact, and enter its records in `owner`."""
        at = marks.free
        while at:
            if at in owner:
                yield f"overflow: record {at} is in {owner[at]} and in the free chain"
                return
            owner[at] = "the free chain"
            try:
                link = self._reader.link(at)
            except Damaged as error:
                yield error.message
                return
            if link.used or at >= marks.next:
                yield f"overflow: record {at} is in the free chain and {'in use' if link.used else 'was never used'}"
                return
            at = link.next


class RecordsEngine(Engine[RecordsTransaction, RecordsView]):
    """See the module's text. It takes no options."""

    name = "records"
    state_format = 1
    payload_version = 1
    abilities = Abilities(atomic=False, image="moving", background_checkpoint=True, replays_in_memory=True)

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        files = context.env.files
        empty = _MARKS.pack(1, 0)
        for file, (path, header) in enumerate(cls._layout(directory)):
            files.write_durably(path, header + _close((file, 0), empty))
        write_state(context, directory / _POSITION, _POSITION_MAGIC, cls.state_format, position, b"")

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        files = context.env.files
        position, _ = read_state(context, directory / _POSITION, _POSITION_MAGIC, cls.state_format)
        position = position if at is None else at
        cells = CellFiles(files, cls._layout(directory), position, context.env.scheduler.lock(), read_only=read_only)
        return cls(directory, context, cells, position)

    def __init__(self, directory: Path, context: Context, cells: CellFiles, position: Position) -> None:
        self._directory = directory
        self._context = context
        self._env = context.env
        self._cells = cells
        self._position = position

    @staticmethod
    def _layout(directory: Path) -> list[tuple[Path, bytes]]:
        return [(directory / name, _header(magic)) for name, magic in zip(_NAMES, _MAGICS, strict=True)]

    @property
    def position(self) -> Position:
        return self._position

    def begin(self) -> RecordsTransaction:
        return RecordsTransaction(self._cells)

    def apply(self, records: Sequence[Record]) -> None:
        self._cells.apply([(record.position, changes_of(record)) for record in records])

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            reached = self._cells.write_back()
            path = self._directory / _POSITION
            write_state(self._context, path, _POSITION_MAGIC, self.state_format, reached, b"")
            self._position = reached
        return self._position

    def pending_bytes(self) -> int:
        return self._cells.pending_bytes()

    def view(self) -> RecordsView:
        return RecordsView(self._cells)

    def image(self) -> Image:
        # Read the position first: if a checkpoint runs while the files are opened, they hold that position and more.
        position = self._position
        return FileImage(self._env, self._directory, (*_NAMES, _POSITION), position)

    def close(self) -> None:
        self._cells.close()
