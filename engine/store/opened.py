"""What an opening returns, and the steps that both kinds of opening share."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..contract.engine import Engine
from ..env import DirectoryLock, Env
from ..env.anchored import AnchoredFiles
from ..env.scratch import ScratchDirectory
from ..errors import Damaged, WrongEngine
from ..model.positions import Position
from ..wal.cursor import Cursor
from ..wal.log import Log
from .copied_image import CopiedImage
from .layout import Generation, Identity, Layout
from .reader_leases import ReaderLease


@dataclass(slots=True)
class Opened:
    """What an opening made.

    Attributes:
        engine: brought to the log's durable end.
        log: recovered.
        cursor: after what was replayed.
        lock: the directory's lock; None if opened read-only.
        replayed: how many transactions were replayed.
        applied: the last record that the engine got. After it, the log has only kit records.
        anchored: holds the store's directories open.
        env: the store's environment; its files are `anchored`.
        shown: the position that is shown; None: the log's end.
        scratch: a copy of the state, removed when the store is closed; or None.
        copied: the copied image that was opened, until a checkpoint has settled it; or None.
        reader: the lease on the log, if another process writes the store; or None.
        still: the shared lock, if opened read-only while nobody wrote; or None. It keeps writers out, because libraries
            read without locks.
        undo: removes the store, if this opening created it; or None.
        half_way: `follow` has begun to apply new records and has not finished: some may be missing or not shown.
        engine_closed, released: how far `release` has come.
    """

    layout: Layout
    generation: Generation
    engine: Engine[Any, Any]
    log: Log
    cursor: Cursor
    lock: DirectoryLock | None
    replayed: int
    applied: Position
    anchored: AnchoredFiles
    env: Env
    shown: Position | None = None
    scratch: ScratchDirectory | None = None
    copied: CopiedImage | None = None
    reader: ReaderLease | None = None
    still: DirectoryLock | None = None
    undo: Callable[[], None] | None = None
    half_way: bool = False
    engine_closed: bool = False
    released: bool = False

    def settle(self) -> None:
        """Call it after a checkpoint: once the state has passed the copied image, forget where that came from."""
        if self.copied is not None and self.copied.settle(self.engine.position):
            self.copied = None

    def release(self) -> None:
        """Close the engine and release the directory. Every part is released even if another raises. May be called
        again, for instance if a signal handler raised."""
        with ExitStack() as last_to_first:
            for part in (self.still, self.reader, self.lock):
                if part is not None:
                    last_to_first.callback(part.release)
            last_to_first.callback(self.anchored.let_go)
            if self.undo is not None and not self.log.end.txid:  # unless a plugin has committed meanwhile
                last_to_first.callback(self.undo)
            if self.scratch is not None:
                last_to_first.callback(self.scratch.cleanup)
            if not self.engine_closed:
                self.engine_closed = True
                last_to_first.callback(self.engine.close)
        self.released = True


def process_name() -> str:
    return f"process {os.getpid()}"


def anchor(layout: Layout, env: Env) -> tuple[AnchoredFiles, Env]:
    """Hold a store's directory open. From here on, files below its path raise if the path leads elsewhere."""
    anchored = AnchoredFiles(env.files, layout.root)
    layout.files = anchored
    return anchored, replace(env, files=anchored)


def identity_of(layout: Layout, kind: type[Engine[Any, Any]]) -> Identity:
    """The identity of a store, whose engine must be `kind`. Raises `StoreNotFound`, `Damaged`, `WrongEngine`."""
    identity = layout.read_identity()
    if identity.engine != kind.name:
        raise WrongEngine(f"{layout.root} is a store of the {identity.engine} engine, not of {kind.name}")
    return identity


def match(identity: Identity, log: Log) -> None:
    """Check that a log belongs to the store in whose directory it is. Raises `Damaged`."""
    if log.history.store_id != identity.store_id:
        raise Damaged(f"the log is of store {log.history.store_id.hex()}, not of {identity.store_id.hex()}",
                      path=str(log.directory))
