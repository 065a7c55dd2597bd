"""The durable state: one LMDB environment. Only checkpoints write to it.

Databases, all keys big-endian:

    meta        "state" -> a document (`engine/model/document.py`): position, marks, indexes, tallies, the store's id
    tokens      token u32 -> msgpack [kind, value]
    nodes       id // 1018 u64 -> u32 little-endian for each of 1018 ids: label-set token, 0 if there is no node
    node_props  id u64 -> property map
    edges       id // 169 u64 -> for each of 169 ids: source u64, target u64, type u32, flags u32, little-endian;
                flag 1: it is there, flag 2: it has properties
    edge_props  id u64 -> property map
    adjacency   see `adjacency.py`
    labels      label u32, id // 4096 u64 -> 512 bytes, bit i of byte j for id 8 j + i of the window
    index       index u32, value digest (8), id u64 -> nothing

Every value except the document is sealed (see `engine/toolkit/checksums.py`): a checksum over its key and value follows
it, which every read compares. The document has a tally of each database. Block sizes are chosen so that a block with
its seal fills one of LMDB's overflow pages (4096 bytes less 16 of header).

LMDB is copy-on-write: its file is always a whole state, at the position that the same transaction stored. A `Base` is a
read transaction on one such state, shared by all views on it. Nothing ends it explicitly: it ends when the engine and
the last view have dropped the object, and until then its pages are kept. Several threads may use an LMDB read
transaction at once if all its databases have been opened before. So a new base opens all of them first.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
"""The pages of a file up to this size are checked when it is opened; those of a larger one only by `check`."""
MAX_READERS = 2046
LOCK_BYTES = 256 + 64 * MAX_READERS
LEAST_MAP_SIZE = 64 << 20
"""If the address space has no room for `map_size`, a copy or a reader tries smaller maps, down to half of this."""
_FIRST_ROOM = 1 << 20
_SPARE_ROOM = 16 << 20
_KEPT_BYTES = 160
"""About how many bytes a kept list or dict takes besides its content."""
_MAX_BLOCKS = 1024
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def sealers(path: Path) -> dict[str, Sealer]:
    """By database."""
    return {name: Sealer(name, number, path) for number, name in enumerate(DATABASES)}


class Kept(dict[_Key, _Value]):
    """A cache: by node, of one adjacency list, only the neighbours, packed, or of properties; or by label, key and
    value, of the nodes that were found. A base does not change, so entries stay valid. When the room is used up, all
    are dropped; what is read often soon comes back. Several threads may use it at once, without a lock; then the room
    is only approximate."""

    __slots__ = ("_limit", "_room")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = self._room = limit

    def keep(self, key: _Key, value: _Value, size: int) -> None:
        """Keep what takes about so many bytes."""
        self._room -= size + _KEPT_BYTES
        if self._room < 0:
            self.clear()
            self._room = self._limit - size - _KEPT_BYTES
        if self._room >= 0:
            self[key] = value


KeptLists = Kept[int, bytes]
KeptProperties = Kept[int, dict[str, Any]]
KeptFound = Kept[tuple[int, int, bytes], tuple[int, ...]]


class Base:
    """A read transaction on one durable state.

    Attributes:
        txn: LMDB's.
        get: gives a list's value in adjacency, its seal opened, or None. Raises `lmdb.Error`, `Damaged`.
        get_props: the same of a node's property map.
        dbs: the databases by name.
        position: of this state; if it was opened with `at`, that position.
        txid: the last transaction that it holds. Overlay entries of earlier transactions are in it too.
        marks, indexes: as of the position.
        tallies: what each database should contain.
        node_props, edge_props: whether any node, any edge has properties.
        state: the environment that it belongs to.
        meta: the file's meta page of this state.
        node_blocks, edge_blocks: a cache of blocks by number, checked when they were read. Whether a node exists is
            asked more often than anything else, and LMDB releases the interpreter lock for each read.
        lists: a cache of adjacency lists, by lane.
        properties: a cache of properties; `found`: of the nodes with a label and a property.
        sound: whether all of it was verified.
    """

    __slots__ = ("dbs", "edge_blocks", "edge_props", "found", "get", "get_props", "indexes", "lists", "marks", "meta",
                 "node_blocks", "node_props", "position", "properties", "sound", "state", "tallies", "txid", "txn")

    def __init__(self, state: LmdbState, at: Position | None = None) -> None:
        self.state = state
        self.txn, self.meta = state.begin_known()
        self.dbs = state.dbs
        self.get, self.get_props = (_opening(self.txn.get, self.dbs[name], state.sealers[name])
                                    for name in ("adjacency", "node_props"))
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
        self.properties = KeptProperties(state.cache_bytes)
        self.found = KeptFound(state.cache_bytes // 4)
        self.node_props, self.edge_props = (self.tallies[name].count > 0 for name in ("node_props", "edge_props"))
        self.sound = False

    def stored(self, db: str, key: bytes) -> bytes | None:
        """A value, or None if there is none. Raises `StoreClosed`, `Damaged`."""
        try:
            sealed = self.txn.get(key, None, self.dbs[db])
        except lmdb.Error as error:
            raise self.failed(error) from error
        return None if sealed is None else self.state.sealers[db].opened(key, sealed)

    def rows(self, db: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The entries of a database, from key `start` on, as long as keys begin with `prefix`; in key order. Raises
        `StoreClosed`, `Damaged`."""
        opened = self.state.sealers[db].opened
        try:
            cursor = self.txn.cursor(self.dbs[db])
            more = cursor.set_range(start or prefix) if start or prefix else cursor.first()
            while more:
                key, sealed = cursor.item()
                value = opened(key, sealed)  # before the prefix is looked at: a damaged key may seem to end the range
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
        """A block of `nodes`. Raises as `stored`, and `struct.error` if `number` is out of range."""
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
        """The error to raise for an LMDB error in a read: the environment was closed under the view, the file is
        damaged, or the system refused something."""
        number: int = getattr(error, "code", 0) or 0
        if number < 0 and not self.state.closed:
            return Damaged(f"LMDB says: {error}", path=str(self.state.path))
        if number > 0 and not self.state.closed:
            refused = OSError(number, os.strerror(number), str(self.state.path))
            if (said := told(refused, "cannot read the state")) is not None:
                return said
        return StoreClosed(f"the store of this view is closed ({error})")

    def verify(self) -> None:
        """Read the whole state, and compare it with its tallies. Only this finds missing entries: single reads cannot.
        Cost: one pass over the entries, and one over the file's pages.

        Raises:
            Damaged: something is wrong. Do not read from the state any more.
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
        """Raise `Damaged` if a database does not contain exactly what was written to it."""
        if tally != (written := self.tallies[name]):
            raise Damaged(f"{name} has {tally.count:,} entries that are not the {written.count:,} that were written",
                          path=str(self.state.path))


def _opening(get: Callable[..., bytes | None], db: Any, sealer: Sealer) -> Callable[[bytes], bytes | None]:
    """`get` of one database that opens the seal of what it finds. It is `Sealer.opened` inlined, because every hop runs
    it."""
    tag, digest, seed = sealer.tag, xxh3_64_digest, xxh3_64_intdigest

    def opening(key: bytes) -> bytes | None:
        sealed = get(key, None, db)
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
    """The environment in a directory. `grows`: it is a store's own, and must get all of `map_size`. With a smaller map
    it would fail much later, in the middle of its work.

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
        """LMDB's environment. If the address space has no room for `map_size` (as under `ulimit -v`), one that does not
        grow gets a smaller map. Raises `lmdb.Error`, `LimitReached`."""
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
            size //= 2  # not all that would fit: the process needs address space for other things
            env = self._map(size, how)
            logger.warning("%s: this process has no address space for map_size, %s bytes; the state may take %s",
                           self.path, f"{map_size:,}", f"{size:,}")
        return env

    def _map(self, size: int, how: dict[str, bool]) -> Any:
        return lmdb.open(os.fsencode(self.path.parent), map_size=size, max_dbs=len(DATABASES) + 1, mode=0o600,
                         max_readers=MAX_READERS, max_spare_txns=4, **how)

    def at_open(self, error: lmdb.Error) -> Exception:
        """The error to raise for an LMDB error when the state is made or opened. LMDB's code is the system's errno if
        the system refused something (memory, descriptors, rights, a failing disk); that says nothing about the bytes.
        Its own codes, for what it found in the file, are negative."""
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
        """Check the pages of a state (by default the newest) before LMDB follows them. Of a file of more than `upto`
        bytes, check only that the pages exist. Raises `Damaged`, `DeviceFailed` or what else the system refuses."""
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
        """Allocate LMDB's lock file. LMDB writes to it through a map, and on a full disk that ends in a signal."""
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
        """As `begin`, with the meta page of that state. Tries again if another process commits in between and replaces
        the meta page."""
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
        """Make sure that the next read transaction has a reader slot: begin one and end it, and LMDB keeps its slot.

        Raises:
            DiskFull: there is none.
        """
        self.environment.reader_check()  # frees the slots of processes that were killed
        self.begin().abort()

    def reserve(self, pages: int) -> None:
        """Allocate room in the file for `pages` more pages, and a little more.

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
        """How many pages `map_size` leaves after the last page ever used."""
        info = self.environment.info()
        return int(info["map_size"] // self.page_size - info["last_pgno"] - 1)

    def trim(self) -> None:
        """Give back room that was reserved and not used, except for a little: 1 MiB to 16 MiB, as the state is small
        or large. The caller makes sure that nothing writes meanwhile. Nothing reads after the last page."""
        used = (self.environment.info()["last_pgno"] + 1) * self.page_size
        file = self.files.open(self.path, "write")
        try:
            spare = min(max(used // 64, _FIRST_ROOM), _SPARE_ROOM)
            if file.size() > used + 2 * spare:
                file.truncate(used + spare)
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
        """An image of the newest state. The caller makes sure that nothing writes meanwhile."""
        return LmdbImage(self.begin(), self.files.open(self.path), position)

    def close(self) -> None:
        """End all open read transactions, and close. LMDB's binding waits for reads in other threads."""
        self.closed = True
        self.mapping.end()
        self.environment.close()


def token_entry(token: int, kind: str, value: Any) -> tuple[bytes, bytes]:
    """Key and value of a token."""
    packed: bytes = msgpack.packb([kind, value])
    return _token_key.pack(token), packed
