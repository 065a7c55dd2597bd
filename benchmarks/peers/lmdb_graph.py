"""Plain LMDB with msgpack: what an expert builds by hand on the library that our graph stands on.

The edges of a node are the sorted duplicates of its key, in one database for each direction: the other end and the
number of the edge, as two big-endian numbers. The properties of a node are one msgpack map. Keys are native integers. A
load is one transaction of sorted appends. A commit syncs data and meta page, as LMDB does by default.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np

from .adapter import DurablePeer, GraphData

_NUMBER, _END = struct.Struct("=Q"), struct.Struct(">QQ")
_MAP = 1 << 36


class LmdbGraph(DurablePeer):
    """One environment with five databases."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._lock = threading.Lock()
        self._reading: Any = None
        self._next = 1
        self._open()

    def _open(self) -> None:
        self._env = lmdb.open(str(self.place / "lmdb"), map_size=_MAP, max_dbs=8, writemap=False)
        self._out, self._in = (self._env.open_db(name, integerkey=True, dupsort=True, dupfixed=True)
                               for name in (b"out", b"in"))
        self._props = self._env.open_db(b"props", integerkey=True)
        self._names, self._decades = (self._env.open_db(name, dupsort=True, dupfixed=True, integerdup=True)
                                      for name in (b"names", b"decades"))

    def prepare(self, data: GraphData, *, properties: bool) -> None:
        self._data, self._with_properties = data, properties

    def load(self) -> None:
        pack, dump, data = _NUMBER.pack, msgpack.packb, self._data
        with self._env.begin(write=True) as txn:
            if self._with_properties:
                txn.cursor(self._props).putmulti(
                    ((pack(node), dump(data.properties(node))) for node in range(1, len(data) + 1)), append=True)
            for db, first in ((self._out, 0), (self._in, 1)):
                keys, ends = data.edges[:, first], data.edges[:, 1 - first]
                order = np.lexsort((ends, keys))
                values = np.stack((ends[order], order + 1), axis=1).astype(">u8").tobytes()
                txn.cursor(db).putmulti(((pack(key), values[at : at + 16])
                                         for key, at in zip(keys[order].tolist(), range(0, len(values), 16),
                                                            strict=True)), append=True)
        self._next = len(data.edges) + 1

    def index(self) -> None:
        with self._env.begin(write=True) as txn:
            txn.cursor(self._names).putmulti(
                sorted((name.encode(), _NUMBER.pack(node)) for node, name in enumerate(self._data.names, 1)))
            txn.cursor(self._decades).putmulti(
                (_NUMBER.pack(born // 10), _NUMBER.pack(node)) for node, born in enumerate(self._data.born, 1))

    def begin_reading(self) -> None:
        self._reading = self._env.begin()
        self._cursor, self._get = self._reading.cursor(self._out), self._reading.get

    def end_reading(self) -> None:
        if self._reading is not None:
            self._reading.abort()
            self._reading = None

    def neighbours(self, node: int) -> Sequence[int]:
        found = self._cursor.getmulti([_NUMBER.pack(node)], dupdata=True, dupfixed_bytes=16, keyfixed=True)
        targets: list[int] = np.frombuffer(found, dtype=">u8")[1::3].tolist()  # key, end, number of the edge
        return targets

    def properties(self, node: int) -> dict[str, Any]:
        found: dict[str, Any] = msgpack.unpackb(self._get(_NUMBER.pack(node), db=self._props))
        return found

    def find(self, name: str) -> Sequence[int]:
        cursor = self._reading.cursor(self._names)
        if not cursor.set_key(name.encode()):
            return []
        return [_NUMBER.unpack(value)[0] for value in cursor.iternext_dup()]

    def of_decade(self, first: int) -> Sequence[int]:
        cursor = self._reading.cursor(self._decades)
        found = cursor.getmulti([_NUMBER.pack(first // 10)], dupdata=True, dupfixed_bytes=8, keyfixed=True)
        nodes: list[int] = np.frombuffer(found, dtype="=u8")[1::2].tolist()  # key, node
        return nodes

    def add_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock, self._env.begin(write=True) as txn:
            for source, target in pairs:
                txn.put(_NUMBER.pack(source), _END.pack(target, self._next), db=self._out)
                txn.put(_NUMBER.pack(target), _END.pack(source, self._next), db=self._in)
                self._next += 1

    def delete_edges(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._lock, self._env.begin(write=True) as txn:
            cursor = txn.cursor(self._out)
            for source, target in pairs:
                if cursor.set_range_dup(_NUMBER.pack(source), _END.pack(target, 0)):
                    end, number = _END.unpack(cursor.value())
                    if end == target:
                        cursor.delete()
                        txn.delete(_NUMBER.pack(target), _END.pack(source, number), db=self._in)

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.end_reading()
        self._env.close()

    def bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.place.rglob("data.mdb"))
