"""What the tests of backup, restore and verify share: small stores, faulty disks, faulty sources, a settable clock."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from holdfast.engine.contract import Engine
from holdfast.engine.history import Position, Record
from holdfast.engine.memory import MemoryEngine
from holdfast.engine.records import RecordsEngine
from holdfast.engine.seams import REAL, Clock, File, Files, Seams
from holdfast.engine.settings import Settings
from holdfast.engine.source.base import Confirmation, Grant, Source, SourceInfo
from holdfast.engine.store import Store

SMALL = Settings(segment_bytes=128 << 10, heartbeat_s=0)
ENGINES: tuple[type[Engine[Any, Any]], ...] = (MemoryEngine, RecordsEngine)


class SetClock(Clock):
    """Wall-clock time that moves when told to, one microsecond a look besides."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.us = now_us

    def now_us(self) -> int:
        self.us += 1
        return self.us


def open_store(path: Path, engine: type[Engine[Any, Any]] = MemoryEngine, seams: Seams = REAL,
               settings: Settings = SMALL) -> Store[Any, Any]:
    return Store.open(path, engine, settings=settings, seams=seams)


def write(store: Store[Any, Any], seed: int, count: int = 1, size: int = 100) -> None:
    """`count` transactions, each of which changes something else."""
    for n in range(count):
        with store.transaction() as tx:
            value = hashlib.shake_128(b"%d.%d" % (seed, n)).digest(size)
            if isinstance(store.engine, MemoryEngine):
                tx.put(b"%d.%d" % (seed, n % 50), value)
                tx.put(b"last", value[:20])
            else:
                tx.insert(value)


def digest(store: Store[Any, Any]) -> bytes:
    with store.snapshot() as view:
        assert list(view.check()) == []
        found: bytes = view.digest()
        return found


def digest_at(path: Path, engine: type[Engine[Any, Any]]) -> bytes:
    """Of a store on disk, opened read-only."""
    with Store.open(path, engine, read_only=True, settings=SMALL) as store:
        return digest(store)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def small_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Copy in chunks of `size` bytes, and note each of them, so that small images have many."""
    for name in ("holdfast.replay.files.CHUNK_BYTES", "holdfast.backup.full.CHUNK_BYTES",
                 "holdfast.backup.incremental.CHUNK_BYTES", "holdfast.replay.files.SYNC_BYTES",
                 "holdfast.replay.files.RECORD_BYTES"):
        monkeypatch.setattr(name, size)


# --- disks -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is dead: nothing it does from here on reaches the disk."""


class _FaultyFile(File):
    __slots__ = ("_disk",)

    def __init__(self, disk: FaultyDisk, path: Path, fd: int) -> None:
        super().__init__(path, fd)
        self._disk = disk

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._disk.step("write", self.path)
        super().pwrite(data, offset)

    def datasync(self) -> None:
        self._disk.step("sync", self.path)
        super().datasync()

    def sync(self) -> None:
        self._disk.step("sync", self.path)
        super().sync()

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", self.path)
        super().truncate(size)


class FaultyDisk(Files):
    """A file system that fails from the n-th step of certain kinds on. Steps change something or make it durable."""

    def __init__(self, kinds: frozenset[str] | None = None, error: Callable[[], BaseException] = Killed,
                 fail_at: int = 0) -> None:
        self.kinds, self.error, self.fail_at = kinds, error, fail_at
        self.steps = 0

    def step(self, kind: str, path: Path) -> None:
        if self.kinds is None or kind in self.kinds:
            self.steps += 1
            if self.fail_at and self.steps >= self.fail_at:
                raise self.error()

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        if mode == "create":
            self.step("create", path)
        file = super().open(path, mode)
        return _FaultyFile(self, path, file.fileno())

    def make_directory(self, path: Path) -> None:
        if not path.is_dir():
            self.step("mkdir", path)
        super().make_directory(path)

    def rename(self, old: Path, new: Path) -> None:
        self.step("rename", new)
        super().rename(old, new)

    def exchange(self, one: Path, other: Path) -> None:
        self.step("rename", other)
        super().exchange(one, other)

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        self.step("unlink", path)
        super().unlink(path, missing_ok=missing_ok)

    def remove_tree(self, path: Path) -> None:
        self.step("unlink", path)
        super().remove_tree(path)

    def sync_directory(self, path: Path) -> None:
        self.step("sync", path)
        super().sync_directory(path)


def full_disk(fail_at: int = 0) -> FaultyDisk:
    """A disk on which the n-th write and all after it find no room."""
    return FaultyDisk(frozenset({"write", "create", "mkdir"}), lambda: OSError(errno.ENOSPC, "No space left"), fail_at)


# --- sources ---------------------------------------------------------------------------------------------------------


class WrappedSource(Source):
    """Another source, with something done before each of its answers: `before(what)`, which may raise."""

    def __init__(self, inner: Source, before: Callable[[str], None] = lambda what: None) -> None:
        self.inner, self.before = inner, before

    def info(self) -> SourceInfo:
        return self.inner.info()

    def chain_at(self, txid: int) -> bytes:
        return self.inner.chain_at(txid)

    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        self.before("lease")
        return self.inner.lease(owner, image=image, after=after, ttl=ttl)

    def renew(self, lease_id: str) -> None:
        self.inner.renew(lease_id)

    def release(self, lease_id: str) -> None:
        self.before("release")
        self.inner.release(lease_id)

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        self.before("image")
        return self.inner.read_image(lease_id, name, offset, length)

    def confirm(self, lease_id: str) -> Confirmation:
        self.before("confirm")
        return self.inner.confirm(lease_id)

    def read_log(self, lease_id: str, after: Position, upto: int) -> Iterator[Record]:
        self.before("log")
        for record in self.inner.read_log(lease_id, after, upto):
            self.before("record")
            yield record

    def read_attachment(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        self.before("attachment")
        return self.inner.read_attachment(lease_id, name, offset, length)

    def register(self, consumer_id: str, name: str, position: Position) -> None:
        self.before("register")
        self.inner.register(consumer_id, name, position)

    def close(self) -> None:
        self.inner.close()


class Nth:
    """Raises at the n-th answer of a kind (any kind, without), and counts them."""

    def __init__(self, n: int, error: Callable[[], BaseException], kind: str | None = None) -> None:
        self.n, self.error, self.kind, self.count = n, error, kind, 0

    def __call__(self, what: str) -> None:
        if self.kind in (None, what):
            self.count += 1
            if self.count == self.n:
                raise self.error()
