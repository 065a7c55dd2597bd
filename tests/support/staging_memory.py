"""A staging engine for tests: keys and values in memory, its durable state one file, and bulk loads.

The memory engine does not stage, so its commits do not group. This one does, with nothing else to it. A bulk load is a
dictionary that is set as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgpack

from holdfast.engine.builtin.memory import MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import Abilities, BulkEngine, Context, StagingEngine
from holdfast.engine.contract.image import Image
from holdfast.engine.errors import InvalidInput
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.toolkit.file_image import FileImage
from holdfast.engine.toolkit.keyed_transaction import changes_of
from holdfast.engine.toolkit.state_file import read_state, write_state
from holdfast.engine.wal.attachments import TRAILER

_MAGIC, _FILE = b"TESTSTAG", "state"


def _changed(state: Mapping[bytes, bytes], *records: Record) -> dict[bytes, bytes]:
    changed: dict[bytes, bytes | None] = {**state}
    for record in records:
        changed.update(changes_of(record))
    return {key: value for key, value in changed.items() if value is not None}


class StagingMemory(StagingEngine[MemoryTransaction, MemoryView], BulkEngine[MemoryTransaction, MemoryView]):
    name = "staging-memory"
    state_format = 1
    payload_version = 1
    abilities = Abilities(atomic=True, image="stable", background_checkpoint=True, shared_readers=True,
                          replays_in_memory=True)

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        write_state(context, directory / _FILE, _MAGIC, 1, position, msgpack.packb({}))

    @classmethod
    def open(cls, directory: Path, context: Context, *, read_only: bool = False, at: Position | None = None) -> Self:
        position, body = read_state(context, directory / _FILE, _MAGIC, 1)
        return cls(directory, context, msgpack.unpackb(body), at or position)

    def __init__(self, directory: Path, context: Context, state: dict[bytes, bytes], position: Position) -> None:
        self._directory = directory
        self._context = context
        self._env = context.env
        self._position = position
        self._published: tuple[dict[bytes, bytes], Position] = state, position  # replaced as one, never changed
        self._newest: tuple[dict[bytes, bytes], Position] = state, position
        self._waiting: deque[Record] = deque()
        self._pending: Any = 0
        self._file_lock = context.env.scheduler.lock()  # so that an image is of the position that it says

    @property
    def position(self) -> Position:
        return self._position

    def begin(self) -> MemoryTransaction:
        return MemoryTransaction(self._newest[0])

    def stage(self, record: Record, tx: MemoryTransaction) -> None:
        self._newest = _changed(self._newest[0], record), record.position
        self._pending += len(record.payload)
        self._waiting.append(record)

    def publish(self, position: Position) -> None:
        state, reached = self._published
        while self._waiting and self._waiting[0].txid <= position.txid:
            record = self._waiting.popleft()
            state, reached = _changed(state, record), record.position
        self._published = state, reached

    def apply(self, records: Sequence[Record]) -> None:
        state = _changed(self._published[0], *records)
        self._pending += sum(len(record.payload) for record in records)
        self._published = self._newest = state, records[-1].position

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            with self._file_lock:
                state, reached = self._published
                write_state(self._context, self._directory / _FILE, _MAGIC, 1, reached, msgpack.packb(state))
                self._position, self._pending = reached, 0
        return self._position

    def write_bulk(self, load: Any, out: BinaryIO) -> bytes:
        if not isinstance(load, dict):
            raise InvalidInput("a bulk load is a dictionary")
        for key, value in load.items():
            out.write(msgpack.packb((key, value)))
        return b"bulk"

    def apply_bulk(self, record: Record, path: Path) -> None:
        content = self._env.files.read(path)[: -TRAILER.size]
        unpacker = msgpack.Unpacker()
        unpacker.feed(content)
        state = {**self._published[0], **dict(unpacker)}
        with self._file_lock:
            write_state(self._context, self._directory / _FILE, _MAGIC, 1, record.position, msgpack.packb(state))
            self._published = self._newest = state, record.position
            self._position, self._pending = record.position, 0

    def pending_bytes(self) -> int:
        return int(self._pending)

    def view(self) -> MemoryView:
        state, position = self._published
        return MemoryView(state, position.txid)

    def staged_view(self) -> MemoryView:
        state, position = self._newest
        return MemoryView(state, position.txid)

    def image(self) -> Image:
        with self._file_lock:
            return FileImage(self._env, self._directory, (_FILE,), self._position)

    def close(self) -> None:
        """Nothing is held open."""
