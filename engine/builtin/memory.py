"""The memory engine: keys and values in a dictionary, its durable state one file. The smallest whole engine.

`apply` changes the dictionary. `checkpoint` writes all of it to one file, which is replaced durably. So the state on
disk is always exactly at its position (atomic), and an image of it never moves (stable). A view keeps the dictionary
that was current when it was made; the first `apply` after that copies it, and leaves the old one to the view. So a
commit costs as much as it changes, but the first one after a view costs as much as the whole dictionary. This engine
is for small states, for tests, and as an example to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import msgpack

from ..contract.engine import Abilities, Context, Engine
from ..contract.image import Image
from ..contract.view import View
from ..errors import Damaged, InvalidInput, NotFound
from ..model.positions import Position
from ..model.records import Record
from ..toolkit.digest import unordered_digest
from ..toolkit.file_image import FileImage
from ..toolkit.keyed_transaction import KeyedTransaction, changes_of
from ..toolkit.state_file import read_state, write_state

MAX_KEY = 1024
MAX_VALUE = 1 << 20
_MAGIC = b"HFMEMORY"
_FILE = "state"


class Readable(Protocol):
    """Where a transaction looks for what it did not change itself."""

    def get(self, key: bytes, /) -> bytes | None: ...


class MemoryTransaction(KeyedTransaction[bytes, bytes | None]):
    """A transaction over the newest state. Keys are 1 to `MAX_KEY` bytes, values up to `MAX_VALUE`."""

    __slots__ = ("_base",)

    def __init__(self, base: Readable) -> None:
        super().__init__()
        self._base = base

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. This transaction's own changes are included."""
        return self.changes[key] if key in self.changes else self._base.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value. Raises `InvalidInput`."""
        if type(key) is not bytes or not 1 <= len(key) <= MAX_KEY:
            raise InvalidInput(f"a key is 1 to {MAX_KEY:,} bytes")
        if type(value) is not bytes or len(value) > MAX_VALUE:
            raise InvalidInput(f"a value is at most {MAX_VALUE:,} bytes")
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a key. Raises `NotFound`, `InvalidInput`."""
        if type(key) is not bytes:
            raise InvalidInput(f"a key is 1 to {MAX_KEY:,} bytes")
        if self.get(key) is None:
            raise NotFound(f"there is no key {key[:64]!r}")
        self.changes[key] = None


class MemoryView(View):
    """A view: the dictionary as it was."""

    def __init__(self, state: Mapping[bytes, bytes], txid: int) -> None:
        self._state = state
        self._txid = txid

    @property
    def txid(self) -> int:
        return self._txid

    def __len__(self) -> int:
        return len(self._state)

    def get(self, key: bytes) -> bytes | None:
        return self._state.get(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values, in any order."""
        return iter(self._state.items())

    def digest(self) -> bytes:
        return unordered_digest(b"%d:%b%b" % (len(key), key, value) for key, value in self._state.items())

    def check(self) -> Iterator[str]:
        for key, value in self._state.items():
            if not 1 <= len(key) <= MAX_KEY:
                yield f"key {key[:64]!r} has {len(key):,} bytes"
            if len(value) > MAX_VALUE:
                yield f"the value of key {key[:64]!r} has {len(value):,} bytes"


class MemoryEngine(Engine[MemoryTransaction, MemoryView]):
    """See the module's text. It takes no options."""

    name = "memory"
    state_format = 1
    payload_version = 1
    abilities = Abilities(atomic=True, image="stable", replays_in_memory=True)

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        write_state(context, directory / _FILE, _MAGIC, cls.state_format, position, _pack({}))

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        path = directory / _FILE
        position, body = read_state(context, path, _MAGIC, cls.state_format)
        try:
            state = msgpack.unpackb(body)
        except (ValueError, msgpack.UnpackException) as error:
            raise Damaged(f"holds no dictionary: {error}", path=str(path)) from error
        return cls(directory, context, state, position if at is None else at)

    def __init__(self, directory: Path, context: Context, state: dict[bytes, bytes], position: Position) -> None:
        self._directory = directory
        self._context = context
        self._env = context.env
        self._position = self._applied = position
        self._state = state
        self._viewed = False  # whether a view holds self._state: then it must not change
        self._pending = 0
        self._lock = context.env.scheduler.lock()  # guards the four above: view() runs on other threads

    @property
    def position(self) -> Position:
        return self._position

    def begin(self) -> MemoryTransaction:
        return MemoryTransaction(self._state)

    def apply(self, records: Sequence[Record]) -> None:
        with self._lock:
            if self._viewed:
                self._state, self._viewed = dict(self._state), False
            for record in records:
                for key, value in changes_of(record):
                    if value is None:
                        self._state.pop(key, None)
                    else:
                        self._state[key] = value
                self._pending += len(record.payload)
                self._applied = record.position

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:  # writes all that is applied; the writer lock keeps it still
            path = self._directory / _FILE
            write_state(self._context, path, _MAGIC, self.state_format, self._applied, _pack(self._state))
            self._position, self._pending = self._applied, 0
        return self._position

    def pending_bytes(self) -> int:
        return self._pending

    def view(self) -> MemoryView:
        with self._lock:
            self._viewed = True
            return MemoryView(self._state, self._applied.txid)

    def image(self) -> Image:
        return FileImage(self._env, self._directory, (_FILE,), self._position)

    def close(self) -> None:
        """Nothing is held open."""


def _pack(state: dict[bytes, bytes]) -> bytes:
    packed: bytes = msgpack.packb(state, use_bin_type=True)
    return packed
