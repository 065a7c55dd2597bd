"""The durable state: one LMDB environment, written by checkpoints only.

Databases, all keys big-endian:

    meta        "state" -> a document (`engine/model/document.py`): position, marks, indexes, tallies, the store's id
    tokens      token u32 -> msgpack [kind, value]
    nodes       id // 1018 u64 -> u32 little-endian for each of 1018 ids: label-set token, 0 where there is no node
    node_props  id u64 -> property map
    edges       id // 169 u64 -> for each of 169 ids: source u64, target u64, type u32, flags u32, little-endian;
                flag 1: it is there, flag 2: it has properties
    edge_props  id u64 -> property map
    adjacency   see `adjacency.py`
    labels      label u32, id // 4096 u64 -> 512 bytes, bit i of byte j for id 8 j + i of the window
    index       index u32, value digest (8), id u64 -> nothing

Every value but the document is sealed (see `engine/toolkit/checksums.py`): it has a checksum over its key and itself
behind it, which whoever reads it compares, and the document has a tally of each database. The sizes of blocks are such
that one with its seal fills LMDB's overflow page (4096 bytes less its 16 of header).

LMDB is copy-on-write, and its file is always a whole state at the position that the same transaction stored. A `Base`
is a read transaction on one such state, shared by all views on it. Nobody ends it: it goes as an object does that the
engine and the last view have let go of, and until then its pages are kept. LMDB read transactions may be used from
several threads at once as long as none of their databases is yet to be looked up, so a new base looks up all.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from ...contract.engine import Context
from ...env.system import system_errors, told
from ...errors import Damaged, DiskFull, LimitReached, StoreClosed, StoreLocked, StoreNotFound
from ...model import document
from ...model.positions import Position
from ...toolkit.checksums import SEAL, Sealer, Tally
from . import pages
from .image import DATA, LmdbImage
from .mapping import Mapping as FileMapping
from .overlay import Indexes, Marks
from .pages import Meta, check_ends, newest_meta, read_metas
from .tokens import LABELS, Tokens

logger = logging.getLogger("holdfast.graph")

NODE_BLOCK, EDGE_BLOCK, LABEL_WINDOW = 1018, 169, 4096
PRESENT, HAS_PROPS = 1, 2
EDGE_DTYPE = np.dtype([("source", "<u8"), ("target", "<u8"), ("type", "<u4"), ("flags", "<u4")])
EDGE_ENTRY = struct.Struct("<QQII")
LABEL_KEY = struct.Struct(">IQ")
ROW_KEY = struct.Struct(">I8sQ")
_u64 = struct.Struct(">Q")
id_key = _u64.pack
id_of = _u64.unpack_from
_token_key = struct.Struct(">I")

DATABASES = ("meta", "tokens", "nodes", "node_props", "edges", "edge_props", "adjacency", "labels", "index")
TALLIED = DATABASES[1:]
STATE_MAGIC, STATE_VERSION = b"HFGRAPH\0", 2
CHECKED_AT_OPENING = 64 << 20
"""The pages of a file up to this size are checked when it is opened; those of a larger one when it is checked."""
MAX_READERS = 2046
LOCK_BYTES = 256 + 64 * MAX_READERS
LEAST_MAP_SIZE = 64 << 20
"""Where the address space has no room for `map_size`, a copy or a reader tries with less, down to half of this."""
_FIRST_ROOM = 1 << 20
_SPARE_ROOM = 16 << 20
_KEPT_BYTES = 160
"""About what a kept list takes beside its bytes."""
_MAX_BLOCKS = 1024


def sealers(path: Path) -> dict[str, Sealer]:
    """By database."""
    return {name: Sealer(name, number, path) for number, name in enumerate(DATABASES)}


class KeptLists(dict[int, bytes]):
    """Adjacency lists that were read, by node: the neighbours alone, packed. A reader's state does not change, so what
    was read once stays right. When there is no room left all are forgotten: what is asked for often is soon there
    again. Several threads may come here at once; the room is about right then."""

    __slots__ = ("_limit", "_room")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = self._room = limit

    def keep(self, node: int, packed: bytes) -> None:
        self._room -= len(packed) + _KEPT_BYTES
        if self._room < 0:
            self.clear()
            self._room = self._limit - len(packed) - _KEPT_BYTES
        if self._room >= 0:
            self[node] = packed


class Base:
    """A read transaction on one durable state.

    Attributes:
        txn: LMDB's.
        get: a list's value in adjacency, or None; its seal opened. Raises `lmdb.Error`, `Damaged`.
        dbs: by name.
        position: of this state, or where it was said to be (`at`).
        txid: the last transaction that it holds: what the overlay has of earlier ones is in it.
        marks, indexes: as of the position.
        tallies: what each database should have.
        node_props, edge_props: whether any node, any edge has properties.
        state: whose it is.
        meta: the file's page that says where it is.
        node_blocks, edge_blocks: some blocks by number, which were checked when they were read: whether a node is there
            is asked more often than anything, and LMDB releases the interpreter lock for each answer.
        lists: adjacency lists that were read, by lane.
        sound: all of it was verified.
    """

    __slots__ = ("dbs", "edge_blocks", "edge_props", "get", "indexes", "lists", "marks", "meta", "node_blocks",
                 "node_props", "position", "sound", "state", "tallies", "txid", "txn")

    def __init__(self, state: LmdbState, at: Position | None = None) -> None:
        self.state = state
        self.txn, self.meta = state.begin_known()
        self.get = _opening(self.txn.get, state.sealers["adjacency"])
        self.dbs = state.dbs
        for db in self.dbs.values():
            self.txn.stat(db)
        held, self.marks, self.indexes, self.tallies = state.read_meta(self.txn.get(b"state", None, self.dbs["meta"]))
        self.position = held if at is None else at
        self.txid = held.txid
        if held.txid < self.position.txid or (held.txid == self.position.txid and held != self.position):
            raise Damaged(f"holds the state at {held}, where it should be at {self.position}", path=str(state.path))
        self.node_blocks: dict[int, bytes] = {}
        self.edge_blocks: dict[int, bytes] = {}
        self.lists: dict[int, KeptLists] = {}
        self.node_props, self.edge_props = (self.tallies[name].count > 0 for name in ("node_props", "edge_props"))
        self.sound = False

    def stored(self, db: str, key: bytes) -> bytes | None:
        """A value, or None where there is none. Raises `StoreClosed`, `Damaged`."""
        try:
            sealed = self.txn.get(key, None, self.dbs[db])
        except lmdb.Error as error:
            raise self.failed(error) from error
        return None if sealed is None else self.state.sealers[db].opened(key, sealed)

    def rows(self, db: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The entries of a database from key `start` on whose keys begin with `prefix`, by key. Raises `StoreClosed`,
        `Damaged`."""
        opened = self.state.sealers[db].opened
        try:
            cursor = self.txn.cursor(self.dbs[db])
            more = cursor.set_range(start or prefix) if start or prefix else cursor.first()
            while more:
                key, sealed = cursor.item()
                value = opened(key, sealed)  # first: a key that changed may seem to be behind the last one
                if not key.startswith(prefix):
                    return
                yield key, value
                more = cursor.next()
        except lmdb.Error as error:
            raise self.failed(error) from error

    def earlier_blocks(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The blocks of an adjacency list before its tail, in order: key and value."""
        return self.rows("adjacency", key + bytes(8), key)

    def node_block(self, number: int) -> bytes | None:
        """A block of `nodes`. Raises as `stored`, and `struct.error` if it cannot be a number of one."""
        return self._block("nodes", number, self.node_blocks)

    def edge_block(self, number: int) -> bytes | None:
        """A block of `edges`. Raises as `node_block`."""
        return self._block("edges", number, self.edge_blocks)

    def _block(self, db: str, number: int, kept: dict[int, bytes]) -> bytes | None:
        block = self.stored(db, id_key(number))
        if block is not None:
            if len(kept) >= _MAX_BLOCKS:
                kept.clear()
            kept[number] = block
        return block

    def failed(self, error: lmdb.Error) -> Exception:
        """What an LMDB error in a read means: the environment was closed under the view, the file is damaged, or the
        system refuses something."""
        number: int = getattr(error, "code", 0) or 0
        if number < 0 and not self.state.closed:
            return Damaged(f"LMDB says: {error}", path=str(self.state.path))
        if number > 0 and not self.state.closed:
            refused = OSError(number, os.strerror(number), str(self.state.path))
            if (said := told(refused, "cannot read the state")) is not None:
                return said
        return StoreClosed(f"the store of this view is closed ({error})")

    def verify(self) -> None:
        """Read all of the state, and compare it with its tallies: what single reads have to believe, that no entry is
        missing, is found here. Cost: one pass over the file, and one over its pages.

        Raises:
            Damaged: something is wrong. Nothing is to be read from the state any more.
            StoreClosed.
        """
        self.sound = False
        self.state.check_pages(self.meta)
        passed = self.state.mapping.passed
        for name in TALLIED:
            try:
                tally = self.state.sealers[name].tallied(self.txn.cursor(self.dbs[name]), passed)
            except lmdb.Error as error:
                raise self.failed(error) from error
            self.compare(name, tally)
        self.sound = True

    def compare(self, name: str, tally: Tally) -> None:
        """Raises `Damaged` where a database does not have what was written."""
        if tally != (written := self.tallies[name]):
            raise Damaged(f"{name} has {tally.count:,} entries that are not the {written.count:,} that were written",
                          path=str(self.state.path))


def _opening(get: Callable[..., bytes | None], sealer: Sealer) -> Callable[[bytes], bytes | None]:
    """`get`, with the seal of what it finds opened: `Sealer.opened` written out, for the way of each hop."""
    tag, digest, seed = sealer.tag, xxh3_64_digest, xxh3_64_intdigest

    def opening(key: bytes) -> bytes | None:
        sealed = get(key)
        if sealed is None:
            return None
        value = sealed[:-SEAL]
        if digest(value, seed(key, tag)) != sealed[-SEAL:]:
            raise sealer.damaged(key)
        return value

    return opening


def encode_meta(store_id: bytes, position: Position, marks: Marks, indexes: Indexes,
                tallies: Mapping[str, Tally]) -> bytes:
    return document.encode(STATE_MAGIC, STATE_VERSION, {
        "store_id": store_id, "txid": position.txid, "chain": position.chain, "marks": list(marks),
        "indexes": [[*key, index] for key, index in sorted(indexes.items())],
        "tallies": [[name, tallies[name].count, tallies[name].total] for name in TALLIED]})


class LmdbState:
    """The environment in a directory. `grows`: it is a store's own, and has to have all of `map_size`: one that ran
    with less would come to that bound much later, in the middle of its work.

    Raises (when opened):
        Damaged, DiskFull, LimitReached, StoreNotFound, UnsupportedFormat.
    """

    def __init__(self, directory: Path, context: Context, *, create: bool = False, read_only: bool = False,
                 grows: bool = False) -> None:
        self.cache_bytes: int = context.options["cache_bytes"]
        map_size = context.options["map_size"]
        self.path = directory / DATA
        self.files = context.env.files
        self.closed = False
        self.context = context
        self.sealers = sealers(self.path)
        self.mapping = FileMapping(self.path, context.env.scheduler.lock())
        lock = not read_only or context.shared
        if create:
            if self.files.free(directory) < _FIRST_ROOM + LOCK_BYTES:
                raise DiskFull(f"no room for a store in {directory}")
        elif not self.files.exists(self.path):
            raise StoreNotFound(f"no graph state in {directory}")
        else:
            self.check_pages(upto=CHECKED_AT_OPENING)
        if not read_only:
            self._reserve_lock_file(directory)
        try:
            self.environment = self._open(map_size, grows, create=create, readonly=read_only, lock=lock)
        except lmdb.Error as error:
            raise self.at_open(error) from error
        try:
            if create:
                self.reserve(0)
            self.dbs = {name: self.environment.open_db(name.encode(), create=create) for name in DATABASES}
        except lmdb.Error as error:
            self.environment.close()
            raise self.at_open(error) from error
        except BaseException:
            self.environment.close()
            raise

    def _open(self, map_size: int, grows: bool, **how: bool) -> Any:
        """LMDB's environment, where it does not grow with a smaller map than `map_size` if the address space has no
        room for that (as under `ulimit -v`). Raises `lmdb.Error`, `LimitReached`."""
        size = map_size
        while True:
            try:
                env = self._map(size, how)
                break
            except lmdb.MemoryError as error:
                if grows:
                    raise LimitReached(f"cannot open {self.path}: this process has no address space for map_size, "
                                       f"{map_size:,} bytes", hint="raise its limit (ulimit -v, or the container's), "
                                       "or say with the option map_size how much the state may ever take") from error
                if size < 2 * LEAST_MAP_SIZE:
                    raise
                size //= 2
        if size < map_size:
            env.close()
            size //= 2  # the rest of what fits is for everything else that this process does
            env = self._map(size, how)
            logger.warning("%s: this process has no address space for map_size, %s bytes; the state may take %s",
                           self.path, f"{map_size:,}", f"{size:,}")
        return env

    def _map(self, size: int, how: dict[str, bool]) -> Any:
        return lmdb.open(os.fsencode(self.path.parent), map_size=size, max_dbs=len(DATABASES) + 1, mode=0o600,
                         max_readers=MAX_READERS, max_spare_txns=4, **how)

    def at_open(self, error: lmdb.Error) -> Exception:
        """What an LMDB error means when the state is made or opened. LMDB gives numbers of the system's for what the
        system refused (memory, descriptors, rights, a failing disk), which says nothing of the bytes; and its own,
        below zero, for what it found in them."""
        number: int = getattr(error, "code", 0) or 0
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return DiskFull(f"no room to open {self.path}")
        if "already open in this process" in str(error):
            return StoreLocked(f"{self.path.parent} is open in this process already, and LMDB opens it once",
                               hint="read from the store that is open")
        if number > 0:
            return OSError(number, f"{os.strerror(number)}, says LMDB", str(self.path))
        return Damaged(f"LMDB cannot open it: {error}", path=str(self.path))

    def check_pages(self, meta: Meta | None = None, upto: int | None = None) -> None:
        """Check the pages of a state, the newest if none is given, before LMDB is led by them; above `upto` bytes only
        that they are there. Raises `Damaged`, `DeviceFailed` or what else the system refuses."""
        with system_errors("cannot read the state"):
            file = self.files.open(self.path)
            try:
                meta = newest_meta(file) if meta is None else meta
                (pages.check_pages if upto is None or meta.size <= upto else check_ends)(file, meta)
            finally:
                file.close()

    def read_meta(self, data: bytes | None) -> tuple[Position, Marks, Indexes, dict[str, Tally]]:
        """The document of a state. Raises `Damaged`, `UnsupportedFormat`, `ForeignStore`."""
        if data is None:
            raise Damaged("holds no graph state", path=str(self.path))
        body = document.decode(data, STATE_MAGIC, STATE_VERSION, self.path)
        try:
            self.context.check_store(body["store_id"], self.path)
            tallies = {name: Tally(count, total) for name, count, total in body["tallies"]}
            return (Position(body["txid"], body["chain"]), Marks(*body["marks"]),
                    {(label, key): index for label, key, index in body["indexes"]},
                    {name: tallies[name] for name in TALLIED})
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"lacks or garbles a field of the state: {error}", path=str(self.path)) from error

    def _reserve_lock_file(self, directory: Path) -> None:
        """Give LMDB's lock file its room: LMDB writes to it through a map, which on a full disk is a signal."""
        path = directory / "lock.mdb"
        file = self.files.open(path, "write" if self.files.exists(path) else "create")
        try:
            file.reserve(LOCK_BYTES)
        finally:
            file.close()

    def begin(self) -> Any:
        """A read transaction on the newest state; its default database is adjacency.

        Raises:
            DiskFull: LMDB has no place for another reader.
        """
        try:
            return self.environment.begin(db=self.dbs["adjacency"])
        except lmdb.ReadersFullError as error:
            most = self.environment.info()["max_readers"]
            raise DiskFull(f"{most:,} states of {self.path} are being read, and there is no place for another",
                           hint="close views that are no longer needed") from error

    def begin_known(self) -> tuple[Any, Meta]:
        """As `begin`, with the file's page that says where the state is. Another process that writes may put its own
        there in between."""
        for _ in range(5):
            txn = self.begin()
            file = self.files.open(self.path)
            try:
                for meta in read_metas(file):
                    if meta.txn == txn.id():
                        return txn, meta
            finally:
                file.close()
            txn.abort()
        raise Damaged("has no meta page of the state that LMDB shows", path=str(self.path))

    def keep_place(self) -> None:
        """Make sure that the next read transaction has a place: the library keeps that of one that has ended.

        Raises:
            DiskFull: there is none.
        """
        self.environment.reader_check()  # processes that were killed have left theirs
        self.begin().abort()

    def reserve(self, pages: int) -> None:
        """Make room for `pages` more than the file has, and a little.

        Raises:
            DiskFull: there is none.
        """
        size = (self.environment.info()["last_pgno"] + 1 + pages) * self.page_size + _FIRST_ROOM
        file = self.files.open(self.path, "write")
        try:
            file.reserve(size)
        finally:
            file.close()

    def room(self) -> int:
        """How many pages `map_size` leaves beyond the last one that was ever used."""
        info = self.environment.info()
        return int(info["map_size"] // self.page_size - info["last_pgno"] - 1)

    def trim(self) -> None:
        """Give back room that was reserved and not used, beyond a little. Nobody writes meanwhile, and nobody reads
        behind the last page."""
        used = (self.environment.info()["last_pgno"] + 1) * self.page_size
        file = self.files.open(self.path, "write")
        try:
            if file.size() > used + 2 * _SPARE_ROOM:
                file.truncate(used + _SPARE_ROOM)
        finally:
            file.close()

    @property
    def page_size(self) -> int:
        return int(self.environment.stat()["psize"])

    def read_tokens(self, base: Base) -> Tokens:
        tokens = Tokens()
        try:
            for key, value in base.rows("tokens"):
                kind, name = msgpack.unpackb(value)
                tokens.add(_token_key.unpack(key)[0], kind, tuple(name) if kind == LABELS else name)
        except (ValueError, TypeError, struct.error, msgpack.UnpackException) as error:
            raise Damaged(f"garbles a token: {error}", path=str(self.path)) from error
        base.compare("tokens", self.sealers["tokens"].tallied(base.txn.cursor(base.dbs["tokens"])))
        return tokens

    def image(self, position: Position) -> LmdbImage:
        """The newest state's file. Nothing may write meanwhile."""
        return LmdbImage(self.begin(), self.files.open(self.path), position)

    def close(self) -> None:
        """Read transactions still open end here; reads in other threads are waited for by the library."""
        self.closed = True
        self.mapping.end()
        self.environment.close()


def token_entry(token: int, kind: str, value: Any) -> tuple[bytes, bytes]:
    """Key and value of a token."""
    packed: bytes = msgpack.packb([kind, value])
    return _token_key.pack(token), packed
