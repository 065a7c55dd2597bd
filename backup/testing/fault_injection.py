"""What a backup must live with: a source that goes on changing, or dies, and a disk that fails, at any step.

A `WatchedSource` is another source, with something done before each of its answers; a `BusySource` changes the store in
the middle of each piece of its image. A `DyingDisk` is the real file system up to its n-th step that changes something,
and fails from there on. So every point between two steps can be tried, one after the other.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Condition

from ...engine.model.positions import Position
from ...engine.model.records import Record
from ...engine.source.interface import CHUNK_BYTES, Confirmation, Grant, SlotState, Source, SourceInfo
from ...engine.testing.disks.faulty import FaultyFiles

PATIENCE_S = 30


class WatchedSource(Source):
    """Another source, with `before(what)` called before each of its answers; what it raises, the answer raises."""

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

    def register(self, slot_id: str, name: str, position: Position) -> None:
        self.before("register")
        self.inner.register(slot_id, name, position)

    def slots(self) -> list[SlotState]:
        return self.inner.slots()

    def drop(self, slot_id: str) -> None:
        self.inner.drop(slot_id)

    def close(self) -> None:
        self.inner.close()


class BusySource(WatchedSource):
    """A source whose store changes while it is copied: `step` is called in the middle of each piece of the image, and
    before the copy is confirmed. Pieces are given out in the image's order, one at a time, however many ask at once, so
    that the same steps make the same copy."""

    def __init__(self, inner: Source, step: Callable[[], None]) -> None:
        super().__init__(inner, lambda what: step() if what == "confirm" else None)
        self._step = step
        self._turn = Condition()
        self._pieces: list[tuple[str, int]] = []

    def lease(self, owner: str, *, image: bool, after: Position | None = None, ttl: float = 60.0) -> Grant:
        grant = super().lease(owner, image=image, after=after, ttl=ttl)
        self._pieces = [(f.name, offset) for f in grant.files for offset in range(0, f.size, CHUNK_BYTES)]
        return grant

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        with self._turn:
            in_turn = self._turn.wait_for(lambda: self._pieces[:1] == [(name, offset)], PATIENCE_S)
            assert in_turn, f"{name} from byte {offset} on was read out of turn"
            try:
                first = self.inner.read_image(lease_id, name, offset, length // 2)
                self._step()
                return first + self.inner.read_image(lease_id, name, offset + length // 2, length - length // 2)
            finally:
                del self._pieces[0]
                self._turn.notify_all()


class Nth:
    """Raises at the n-th answer of a kind (any kind, without), and counts them."""

    def __init__(self, n: int, error: Callable[[], BaseException], kind: str | None = None) -> None:
        self.n, self.error, self.kind, self.count = n, error, kind, 0

    def __call__(self, what: str) -> None:
        if self.kind in (None, what):
            self.count += 1
            if self.count == self.n:
                raise self.error()


class Killed(BaseException):
    """The process is dead: nothing it does from here on reaches the disk."""


CHANGES = frozenset({"create", "pwrite", "datasync", "sync", "truncate", "reserve", "rename", "exchange", "unlink",
                     "remove_tree", "make_directory", "sync_directory"})
GROWS = frozenset({"create", "pwrite", "reserve", "make_directory"})


class DyingDisk(FaultyFiles):
    """The real file system, which fails from its `fail_at`-th step on (never, with 0). Steps are operations of `kinds`:
    all that change something or make it durable, unless others are named. `steps` counts them."""

    def __init__(self, fail_at: int = 0, error: Callable[[], BaseException] = Killed,
                 kinds: frozenset[str] = CHANGES) -> None:
        super().__init__()
        self.steps = 0

        def before(kind: str, path: Path) -> None:
            if kind in kinds:
                self.steps += 1
                if 0 < fail_at <= self.steps:
                    raise error()

        self.before = before


def full_disk(fail_at: int = 0) -> DyingDisk:
    """A disk on which the n-th operation that takes room, and all after it, find none."""
    return DyingDisk(fail_at, lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), GROWS)
