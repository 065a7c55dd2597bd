"""RocksDB by its Python binding `rocksdict`, in its raw mode: keys and values are bytes.

An edge is a key of its own, its two ends and its number as big-endian numbers, once for each direction, so that adding
one reads nothing. A load is written as sorted files, which are moved into the database (ingested), as its manual
advises.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from rocksdict import Options, Rdict, SstFileWriter, WriteBatch, WriteOptions

from .adapter import DurablePeer, GraphData

_OUT, _IN, _PROPS, _NAMES, _DECADES = b"o", b"i", b"p", b"n", b"d"
_NODE, _PAIR, _EDGE = struct.Struct(">cQ"), struct.Struct(">cQQ"), struct.Struct(">cQQQ")
_NUMBER = struct.Struct(">Q")


class RocksdbGraph(DurablePeer):
    """One database. Its commits sync the log of writes."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._durable = WriteOptions()
        self._durable.sync = True
        self._open()

    def _open(self) -> None:
        self._db = Rdict(str(self.place / "rocksdb"), Options(raw_mode=True))

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        self._data, self._with_properties = data, properties

    def _keys(self, kind: bytes, first: int) -> Iterator[bytes]:
        """The keys of all edges in one direction, sorted."""
        starts, ends = self._data.edges[:, first], self._data.edges[:, 1 - first]
        order = np.lexsort((ends, starts))
        return (_EDGE.pack(kind, *key) for key in zip(starts[order].tolist(), ends[order].tolist(),
                                                      (order + 1).tolist(), strict=True))

    def load(self) -> None:
        files: list[str] = []

        def write(pairs: Iterable[tuple[bytes, bytes]]) -> None:
            path = str(self.place / f"{len(files)}.sst")
            writer = SstFileWriter(options=Options(raw_mode=True))
            writer.open(path)
            for key, value in pairs:
                writer[key] = value
            writer.finish()
            files.append(path)

        for kind, first in ((_IN, 1), (_OUT, 0)):
            write((key, b"") for key in self._keys(kind, first))
        if self._with_properties:
            props = self._data.properties
            write((_NODE.pack(_PROPS, node), msgpack.packb(props(node))) for node in range(1, len(self._data) + 1))
        self._db.ingest_external_file(files)
        self._db.flush_wal(sync=True)
        self._numbers = itertools.count(len(self._data.edges) + 1)

    def index(self) -> None:
        batch = WriteBatch(raw_mode=True)
        for node, name in enumerate(self._data.names, 1):
            batch.put(_NAMES + name.encode() + b"\0" + _NUMBER.pack(node), b"")
            batch.put(_PAIR.pack(_DECADES, self._data.born[node - 1] // 10, node), b"")
        self._db.write(batch)
        self._db.flush()

    def _from(self, prefix: bytes) -> list[bytes]:
        """The keys that begin so, without the prefix."""
        found, iterator, skipped = [], self._db.iter(), len(prefix)
        key: Callable[[], bytes | None] = iterator.key
        iterator.seek(prefix)
        while iterator.valid():
            one = key()
            if one is None or not one.startswith(prefix):
                break
            found.append(one[skipped:])
            iterator.next()
        return found

    def neighbours(self, node: int) -> Sequence[int]:
        return [_NUMBER.unpack_from(key)[0] for key in self._from(_NODE.pack(_OUT, node))]

    def properties(self, node: int) -> dict[str, Any]:
        found: dict[str, Any] = msgpack.unpackb(self._db[_NODE.pack(_PROPS, node)])
        return found

    def find(self, name: str) -> Sequence[int]:
        return [_NUMBER.unpack(key)[0] for key in self._from(_NAMES + name.encode() + b"\0")]

    def of_decade(self, first: int) -> Sequence[int]:
        return [_NUMBER.unpack(key)[0] for key in self._from(_NODE.pack(_DECADES, first // 10))]

    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for source, target in pairs:
            number = next(self._numbers)
            batch.put(_EDGE.pack(_OUT, source, target, number), b"")
            batch.put(_EDGE.pack(_IN, target, source, number), b"")
        self._db.write(batch, self._durable)

    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for source, target in pairs:
            [first, *_] = self._from(_EDGE.pack(_OUT, source, target, 0)[:-8])
            [number] = _NUMBER.unpack(first)
            batch.delete(_EDGE.pack(_OUT, source, target, number))
            batch.delete(_EDGE.pack(_IN, target, source, number))
        self._db.write(batch, self._durable)

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._db.close()
