"""Keys and values in an existing database: what engines over such databases have in common.

The database holds what is checkpointed, and a document with the position, both written by one of its own transactions.
Later changes are in memory, in an *overlay* of absolute values by key (None: deleted). So a commit is as fast as the
log, needs no room in the database, and is made durable only once. A view is a snapshot of the database under a
dictionary that no longer changes. A checkpoint writes the overlay to the database, and puts a newer snapshot under the
rest of it. Values are absolute, so an overlay entry that the snapshot already has changes nothing.

There are two overlays: one of what is published, and, for transactions, one that also has what is staged. Each is lent
without a copy; the next change copies it first. Users of a snapshot are counted; it is closed when the last view or
transaction that uses it ends.

For a database you write `create` and `open`, `_snapshot`, `_write` (a checkpoint), `_copy` (an image, in files of its
own, so that it does not change with the database) and `_close`. `sqlite.py` and `rocksdb.py` are such engines.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...contract.engine import Context, StagingEngine
from ...contract.image import Image
from ...contract.view import View
from ...env import Files
from ...errors import Damaged, StoreClosed, Unsupported
from ...model import document
from ...model.positions import Position
from ...model.records import Record
from ...toolkit.digest import unordered_digest
from ...toolkit.file_image import FileImage
from ...toolkit.keyed_transaction import changes_of
from ..memory import MAX_KEY, MAX_VALUE, MemoryTransaction

RUN_BYTES = 256 << 10
"""Bytes, about, that a snapshot reads in one run: few calls if pairs are small, little memory if they are large."""
IMAGE_PREFIX = "image-"
"""Prefix of directories that hold an image until its files are open. Those that a killed process left are removed."""

Overlay = Mapping[bytes, bytes | None]


class Snapshot(ABC):
    """The database as of one moment. Later writes do not show. For any thread. Once closed, raises `StoreClosed`."""

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """A value, or None. Raises `Damaged`."""

    @abstractmethod
    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs, by key. Raises `Damaged`, at the latest after the last one."""

    @abstractmethod
    def check(self) -> Iterator[str]:
        """What the database's own check finds, beyond what reading all pairs finds."""

    @abstractmethod
    def close(self) -> None:
        """Release the snapshot. Called once."""


class _Base:
    """A snapshot and the number of its users: views, transactions, and the engine while it is the newest."""

    __slots__ = ("snapshot", "users")

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.users = 1


class _Layer:
    """An overlay that is lent without a copy. The next change copies it first."""

    __slots__ = ("_changes", "_lent")

    def __init__(self) -> None:
        self._changes: dict[bytes, bytes | None] = {}
        self._lent = False

    def lend(self) -> Overlay:
        self._lent = True
        return self._changes

    def peek(self) -> Overlay:
        """The overlay, not lent: valid until the next change. For a transaction, which ends with that change."""
        return self._changes

    def add(self, changes: Overlay) -> None:
        if self._lent:
            self._changes, self._lent = dict(self._changes), False
        self._changes.update(changes)

    def drop(self, written: Overlay) -> None:
        """Remove entries that the database has now: those whose value is the same object as in `written`."""
        absent = object()
        self._changes = {k: v for k, v in self._changes.items() if written.get(k, absent) is not v}
        self._lent = False


class PairsView(View):
    """A view. It holds a snapshot of the database, so close it."""

    def __init__(self, engine: PairsEngine, base: _Base, overlay: Overlay, txid: int) -> None:
        self._engine = engine
        self._base = base
        self._overlay = overlay
        self._txid = txid
        self._closed = False

    @property
    def txid(self) -> int:
        return self._txid

    def get(self, key: bytes) -> bytes | None:
        """A value, or None. Raises `Damaged`, `StoreClosed`."""
        self._check_open()
        return self._overlay[key] if key in self._overlay else self._base.snapshot.get(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys and values, by key. Raises `Damaged`, `StoreClosed`."""
        self._check_open()
        overlay = self._overlay
        below = (pair for pair in self._base.snapshot.pairs() if pair[0] not in overlay)
        above = sorted((key, value) for key, value in overlay.items() if value is not None)
        for pair in heapq.merge(below, above):
            self._check_open()
            yield pair

    def digest(self) -> bytes:
        return unordered_digest(b"%d:%b%b" % (len(key), key, value) for key, value in self.items())

    def check(self) -> Iterator[str]:
        self._check_open()
        try:
            yield from self._base.snapshot.check()
            for key, value in self.items():
                if not 1 <= len(key) <= MAX_KEY:
                    yield f"key {key[:64]!r} has {len(key):,} bytes"
                if len(value) > MAX_VALUE:
                    yield f"the value of key {key[:64]!r} has {len(value):,} bytes"
        except Damaged as error:
            yield error.message

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.release(self._base)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("this view is closed", hint="take another snapshot")


class PairsTransaction(MemoryTransaction):
    """A transaction over the newest state, as the memory engine's: `get`, `put`, `delete`."""

    __slots__ = ("_view",)

    def __init__(self, view: PairsView) -> None:
        super().__init__(view)
        self._view = view

    def close(self) -> None:
        self._view.close()


class PairsEngine(StagingEngine[PairsTransaction, PairsView]):
    """See the module's text."""

    def __init__(self, directory: Path, context: Context, position: Position) -> None:
        """The subclass has opened its database. `position`: the one that the database holds, or `at` if given."""
        self._directory = directory
        self._env = context.env
        self._position = self._published = position
        self._shown, self._newest = _Layer(), _Layer()
        self._staged = position.txid
        self._waiting: deque[tuple[Position, Overlay, int]] = deque()  # staged, not published; with bytes of payload
        self._pending = 0
        self._lock = context.env.scheduler.lock()  # guards all above and below; never held for long
        self._checkpointing = context.env.scheduler.lock()
        self._pid = os.getpid()
        self._base = _Base(self._snapshot())
        self._bases = {self._base}
        _open_engines.add(self)

    _read_only = False
    """Whether it was opened read-only. The subclass sets it."""

    # --- the author's ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _snapshot(self) -> Snapshot:
        """A snapshot of the database as it is now. Raises `Damaged`."""

    @abstractmethod
    def _write(self, changes: Overlay, position: Position) -> None:
        """Bring the database to `position`, durably and atomically: set these values; None deletes a key.

        Raises:
            DiskFull: nothing changed.
        """

    def _tidy(self) -> None:
        """Called after a write, once the newest snapshot includes it: tidy up the database."""

    @abstractmethod
    def _copy(self, place: Path) -> Position:
        """Make a directory `place` with the database as of one position, which is returned. Its files are read soon, so
        they need not be synced. Raises `DiskFull`, `OSError`, `Damaged`."""

    @abstractmethod
    def _close(self) -> None:
        """Close the database. All snapshots are closed already."""

    # --- the newest state --------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        return self._position

    def begin(self) -> PairsTransaction:
        with self._lock:
            return PairsTransaction(self._look(self._newest.peek(), self._staged))

    def stage(self, record: Record, tx: PairsTransaction) -> None:
        self._take(record, tx.changes)

    def apply(self, records: Sequence[Record]) -> None:
        for record in records:
            self._take(record, dict(changes_of(record)))
            self.publish(record.position)

    def _take(self, record: Record, changes: Overlay) -> None:
        with self._lock:
            self._newest.add(changes)
            self._staged = record.txid
            self._waiting.append((record.position, changes, len(record.payload)))
            self._pending += len(record.payload)

    def publish(self, position: Position) -> None:
        with self._lock:
            while self._waiting and self._waiting[0][0].txid <= position.txid:
                self._published, changes, _ = self._waiting.popleft()
                self._shown.add(changes)

    def view(self) -> PairsView:
        with self._lock:
            return self._look(self._shown.lend(), self._published.txid)

    def staged_view(self) -> PairsView:
        with self._lock:
            return self._look(self._newest.lend(), self._staged)

    def _look(self, overlay: Overlay, txid: int) -> PairsView:
        self._base.users += 1
        return PairsView(self, self._base, overlay, txid)

    def release(self, base: _Base) -> None:
        """A user of the snapshot has ended. The last one closes it."""
        if self._pid != os.getpid():
            return  # in a forked child: the database is the parent's, and a lock may be held for ever
        with self._lock:
            base.users -= 1
            last = base.users == 0 and base in self._bases
            if last:
                self._bases.discard(base)
        if last:
            base.snapshot.close()

    def pending_bytes(self) -> int:
        return self._pending

    # --- the durable state -------------------------------------------------------------------------------------------

    def checkpoint(self, upto: Position) -> Position:
        with self._checkpointing:
            if upto.txid > self._position.txid:
                with self._lock:
                    changes, reached = self._shown.lend(), self._published
                    size = self._pending - sum(size for *_, size in self._waiting)
                self._write(changes, reached)
                self._renew()
                with self._lock:
                    self._shown.drop(changes)
                    # Keep staged entries, even if their value is the very object that was written now (as None and b""
                    # can be): the next checkpoint may write an older value of the key, which they must still hide.
                    staged = {key for _, waiting, _ in self._waiting for key in waiting}
                    self._newest.drop({key: value for key, value in changes.items() if key not in staged})
                    self._position = reached
                    self._pending -= size
                self._tidy()
            return self._position

    def _renew(self) -> None:
        """Take a newer snapshot, and put it under the overlays."""
        base = _Base(self._snapshot())
        with self._lock:
            old, self._base = self._base, base
            self._bases.add(base)
        self.release(old)

    def image(self) -> Image:
        if self._read_only:
            raise Unsupported(f"the {self.name} engine makes an image beside its files, and {self._directory} is open "
                              "read-only", hint="back up from the store when it is open for writing")
        place = self._directory / f"{IMAGE_PREFIX}{self._env.randomness.token(8).hex()}"
        return FileImage.copied(self._env, place, self._copy)

    def close(self) -> None:
        with self._checkpointing:
            with self._lock:
                bases, self._bases = self._bases, set()
            for base in bases:
                base.snapshot.close()
            if bases:
                self._close()
            _open_engines.discard(self)


def sweep(files: Files, directory: Path) -> None:
    """Remove the directories of images whose process died while it made them."""
    for name in files.list(directory):
        if name.startswith(IMAGE_PREFIX):
            files.remove_tree(directory / name)


def encode_state(context: Context, magic: bytes, version: int, position: Position, **more: int) -> bytes:
    """The document of a database's state: its store, its engine, its position, and numbers of the engine's own."""
    return document.encode(magic, version, {"store_id": context.store_id, "txid": position.txid,
                                            "chain": position.chain, **more})


def decode_state(context: Context, data: bytes, magic: bytes, version: int,
                 path: Path) -> tuple[Position, dict[str, int]]:
    """What `encode_state` was given. Raises `Damaged`, `UnsupportedFormat`, `ForeignStore`."""
    body = document.decode(data, magic, version, path)
    try:
        context.check_store(body.pop("store_id"), path)
        return Position(body.pop("txid"), body.pop("chain")), body
    except KeyError as error:
        raise Damaged(f"lacks {error} in the document of its state", path=str(path)) from error


def checked_position(held: Position, at: Position | None, path: Path) -> Position:
    """The position of a state that holds `held`. Raises `Damaged` if `at` is given and disagrees: these databases are
    copied as of one position, so a copy cannot hold less."""
    if at is not None and (held.txid < at.txid or (held.txid == at.txid and held != at)):
        raise Damaged(f"holds the state at {held}, where it should be at {at}", path=str(path))
    return held if at is None else at


_open_engines: weakref.WeakSet[PairsEngine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A database that was open at a fork is the parent's. If the child freed the object, that would close the database
    # and might remove files that the parent uses. So an extra reference keeps it until the child ends.
    for engine in list(_open_engines):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


os.register_at_fork(after_in_child=_after_fork_in_child)
