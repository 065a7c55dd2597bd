"""Copies of a store and of its log: seeded while it is written, rolled to any transaction, refused if they do not fit.

The store is a real one with a model beside it (`Modelled`), and nothing happens in it that is not asked for. It is
copied through its source, as a backup and a replica do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from ...engine.contract.engine import Context, Engine
from ...engine.contract.view import View
from ...engine.env import REAL
from ...engine.model.positions import Position
from ...engine.source.interface import Confirmation
from ...engine.source.local import LocalSource
from ...engine.store.layout import Layout
from ...engine.store.settings import Settings
from ...engine.store.store import Store
from ...engine.testing.disks.quiet import SetClock, quiet_env
from ...engine.testing.support.contract import scratch
from ...engine.testing.support.modelled import Modelled
from ...engine.testing.support.workload import Workload
from ...engine.wal.log import Log
from ...engine.wal.writer import LogOptions
from .. import copy
from ..roll import fetch, history_at

SETTINGS = Settings(segment_bytes=128 << 10, keep_logs="1 transactions", heartbeat_s=0)
"""As little log as possible is kept, so that what holds it shows."""
LOG = LogOptions(preallocate=False)
_PIECE = 500
"""Bytes of an image that are read at a time."""
_FILL = 400
_ROTATIONS = 60


class Kept(Protocol):
    """A store with a model beside it."""

    work: Workload
    engine: type[Engine[Any, Any]]

    @property
    def store(self) -> Store[Any, Any]: ...
    def compare(self, view: View) -> None: ...


class BusySource(LocalSource):
    """A source whose store changes before each piece of its image is read, and in the middle of it."""

    def __init__(self, store: Store[Any, Any], change: Callable[[], None]) -> None:
        super().__init__(store)
        self._change, self._turn = change, Lock()

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        with self._turn:
            self._change()
            first = super().read_image(lease_id, name, offset, length // 2)
            self._change()
            return first + super().read_image(lease_id, name, offset + length // 2, length - length // 2)


class Seeded:
    """A copy of a store in the making: image, confirmation and log, in the layout of a store at `root`."""

    def __init__(self, kept: Kept, source: LocalSource, root: Path) -> None:
        """Copies the image. `source` is asked for the log later, too."""
        self._kept, self._source = kept, source
        self.root = root
        self.generation = Layout(root, REAL.files).generation(1)
        state = copy.begin(source, self.generation.path, "a check", bytes(16), env=REAL, ttl=60, chunk_bytes=_PIECE)
        self.grant = state.grant
        copy.copy_image(source, state, self.generation.path, env=REAL)
        self.confirmed: Confirmation = source.confirm(self.grant.id)
        self.image_position = self.grant.position
        self.consistent_from = self.confirmed.consistent_from if self.grant.moving else self.image_position

    def fetched(self, upto: Position | None = None) -> Log:
        """Its log, up to a position or to what was confirmed as published. The caller closes it."""
        history = self._kept.store.history
        REAL.files.remove_tree(self.generation.log)
        log = Log.create(self.generation.log, history_at(history, self.image_position), self.image_position,
                         engine=self._kept.engine.name, last_time_us=self.grant.time_us, options=LOG, env=REAL)
        try:
            fetch(self._source, self.grant.id, log, upto or self.confirmed.published, history)
        except BaseException:
            log.close()
            raise
        return log

    def engine(self) -> Engine[Any, Any]:
        """Opened as a copy that was taken from the image's position on."""
        context = Context(options=self._kept.work.opened_with)
        return self._kept.engine.open(self.generation.state, context, at=self.image_position)

    def release(self) -> None:
        self._source.release(self.grant.id)


@contextlib.contextmanager
def quietly_kept(work: Workload, clock: SetClock | None = None, seed: int = 0) -> Iterator[Modelled]:
    """A store that does nothing by itself. Its ids are drawn from the seed."""
    env = quiet_env(REAL.files, clock=clock, seed=seed)
    with scratch() as place, Modelled(work, place, settings=SETTINGS, env=env) as kept:
        yield kept


def fill(kept: Modelled, segments: int = 1) -> None:
    """Write until this many more segments are sealed, and checkpoint."""
    wanted = len(kept.store.log.segments()) + segments
    for _ in range(_ROTATIONS):
        first = 10**6 + _FILL * len(kept.models)
        kept.transact([operation for n in range(_FILL) for operation in kept.work.numbered(first + n)])
        if len(kept.store.log.segments()) >= wanted:
            break
    kept.store.checkpoint()


def last_for_engine(log: Log, txid: int) -> int:
    """The last transaction up to `txid` that an engine gets: kit records, such as that of a new epoch, it does not."""
    for record in reversed(list(log.read(log.base.txid, txid))):
        if not record.is_kit:
            return record.txid
    return log.base.txid


def compare_rolled(kept: Kept, engine: Engine[Any, Any], txid: int, what: str) -> None:
    with engine.view() as view:
        assert view.txid == txid, f"{what} shows transaction {view.txid}, not {txid}"
        kept.compare(view)
