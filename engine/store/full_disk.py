"""Room to open a store on a file system that is full.

An opening needs a little room (lock tables, a footer, a document). So does a checkpoint, without which no log can be
pruned. So before anything is written, what may be deleted is deleted: spare segments, and the log that neither the
state, nor a reader, nor a slot within its bounds needs. If a plugin may veto pruning, only spare segments are deleted.
"""

from __future__ import annotations

import logging
from typing import Any

from ..contract.engine import Context, Engine
from ..env import Files
from ..errors import DiskFull
from ..wal.log import Log
from ..wal.preallocation import SPARE
from ..wal.retention import SHARE, KeepLogs, plan_pruning
from .copied_image import copied_image
from .layout import Generation, Layout
from .reader_leases import DIRECTORY as READERS
from .settings import Settings

logger = logging.getLogger("holdfast.store")

ROOM_TO_OPEN = 1 << 20


def need_room(files: Files, layout: Layout, hint: str | None = None) -> None:
    """Raise `DiskFull` on a full file system, before a library maps a file that it cannot fill, and crashes."""
    if (free := files.free(layout.root)) < ROOM_TO_OPEN:
        raise DiskFull(f"{layout.root} has {free:,} bytes left, opening a store needs {ROOM_TO_OPEN:,}", hint=hint)


def make_room(layout: Layout, kind: type[Engine[Any, Any]], context: Context, settings: Settings, *,
              prune: bool) -> None:
    """See the module's text. The caller holds the lock; a store is there.

    Raises:
        DiskFull: there is still not enough room; the hint names the slot that holds back the log.
    """
    files = context.env.files
    if files.free(layout.root) >= ROOM_TO_OPEN:
        return
    generation = layout.current()
    for name in files.list(generation.log):
        if SPARE.fullmatch(name):
            files.unlink(generation.log / name)
    hint = None
    if copied_image(files, generation) is None:
        hint = _prune(layout, generation, kind, context, settings, prune=prune)
    need_room(files, layout, hint)


def _prune(layout: Layout, generation: Generation, kind: type[Engine[Any, Any]], context: Context, settings: Settings,
           *, prune: bool) -> str:
    """Delete the log that need not be kept. Returns a hint that names the slot that holds back the rest."""
    files, env = context.env.files, context.env
    engine = kind.open(generation.state, context, read_only=True)
    position = engine.position
    engine.close()
    log = Log.open(generation.log, engine_position=position, read_only=True, options=settings.log_options, env=env)
    readers = files.list(layout.root / READERS) if files.is_directory(layout.root / READERS) else []
    if prune and not any(name.startswith("after-") and files.is_locked(layout.root / READERS / name)
                         for name in readers):
        most = files.capacity(log.directory) // SHARE
        plan = plan_pruning(log.oldest(), size=log.size(), base=log.base.txid, newest=log.end.txid,
                            held=log.size_after, keep=KeepLogs.parse(settings.keep_logs).within(most),
                            floor=position.txid, slots=log.slots.list(),
                            slot_bytes=min(settings.slot_bytes, most), slot_hours=float("inf"),
                            now_us=log.complete_us)  # the clock is not trusted, so nothing is deleted for its age
        if plan.segments:
            logger.warning("%s is full: deleting %d log segments that nobody needs", layout.root,
                           len(plan.segments))
            log.prune(list(plan.segments))
    return log.when_full(DiskFull.hint)
