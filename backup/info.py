"""`info` and `transactions`: what a directory is, and what its log holds, without changing it or keeping anyone out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from ..engine import renamed
from ..engine.env import REAL, Env
from ..engine.env.system import system_errors
from ..engine.errors import Damaged, RestorePointOutOfRange
from ..engine.model.records import Record
from ..engine.store.layout import Layout
from ..engine.store.open_read_only import steadily
from ..engine.wal.log import Log
from .directories import tree_bytes
from .manifest import Manifest
from .report import Bounds, Info
from .target.target import LOG, Target


@renamed.arguments(seams="env")
def info(path: str | os.PathLike[str], *, env: Env = REAL) -> Info:
    """What a store or backup is. Another process may be writing it.

    Raises:
        StoreNotFound, Damaged, UnsupportedFormat, LimitReached, AccessDenied, DeviceFailed.
    """
    layout = Layout(env.files.resolve(path), env.files)
    with system_errors(f"cannot look at {layout.root}"):
        return steadily(layout, env, lambda: _look(layout, str(path), env))


def _look(layout: Layout, path: str, env: Env) -> Info:
    identity = layout.read_identity()
    generation = layout.current()
    manifest = Manifest.read(env.files, generation)
    kind = "store" if manifest is None else "backup" if manifest.promoted_us is None else "promoted backup"
    log = Log.open(generation.log, read_only=True, options=LOG, env=env)
    try:
        target = None if manifest is None else Target(layout, generation, manifest, env, log)
        if target is not None and kind == "backup":
            bounds, state = target.whole(target.bounds()), target.manifest.image_bytes
        else:  # a promoted backup prunes its log and moves its state, like any store
            bounds = Bounds(first=log.base.txid, last=log.end.txid, first_time_us=log.time_of(log.base.txid) or None,
                            last_time_us=log.time_of(log.end.txid) or None, complete_until_us=log.complete_us)
            state = tree_bytes(generation.state, env.files)
        segments = log.segments()
        if layout.current() != generation:
            raise Damaged("names another generation by now", path=str(layout.root / "CURRENT"))
        facts: dict[str, Any] = {} if manifest is None or target is None else {
            "target_id": manifest.target_id.hex(), "image_first": manifest.image_position.txid,
            "image_last": manifest.consistent_from.txid, "moving": manifest.moving,
            "runs": tuple(_shown(r) for r in manifest.runs),
            "older": tuple(dict(one) for _, one in reversed(target.kept())),
            "promoted_us": manifest.promoted_us}
        return Info(
            kind=kind, path=path, store_id=identity.store_id.hex(), engine=identity.engine,
            created_us=identity.created_us, generation=generation.name, bounds=bounds, image_bytes=state,
            branches=tuple({"id": b.id.hex(), "from_txid": b.start.txid} for b in log.history.branches),
            log_bytes=tree_bytes(generation.log, env.files), log_clean=segments[-1].sealed, segments=len(segments),
            times_since=since if (since := log.status()["times_since"]) > log.base.txid + 1 else None,
            clock_behind=max(0, log.complete_us - env.clock.now_us()) / 1e6,
            clock_doubted=layout.doubted_s() if kind != "backup" else None,
            slots=tuple({"id": slot.id, "name": slot.name, "txid": slot.position.txid, "seen_us": slot.seen_us,
                         "held_bytes": log.size_after(slot.position.txid)} for slot in log.slots.list()), **facts)
    finally:
        log.close()


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    """A run as people are told of it: without its chain, and a compaction by that name. The manifest says `fold`."""
    shown = {k: v for k, v in run.items() if k != "end"}
    return {**shown, "kind": "compaction"} if run["kind"] == "fold" else shown


@renamed.arguments(seams="env")
def transactions(path: str | os.PathLike[str], *, first: int | None = None, last: int | None = None,
                 env: Env = REAL) -> Iterator[Record]:
    """The records in the log of a store or backup, from `first` to `last`, both included. By default, all of them.

    Raises:
        RestorePointOutOfRange: they are not all in this log.
        StoreNotFound, Damaged, UnsupportedFormat.
    """
    return _transactions(Layout(env.files.resolve(path), env.files), first, last, env)


def _transactions(layout: Layout, first: int | None, last: int | None, env: Env) -> Iterator[Record]:
    with system_errors(f"cannot look at {layout.root}"), closing(_opened(layout, env)) as log:
        begin = log.base.txid + 1 if first is None else first
        end = log.end.txid if last is None else last
        if begin <= log.base.txid or end > log.end.txid:
            held = f"{log.base.txid + 1} to {log.end.txid}" if log.base.txid < log.end.txid else "none"
            raise RestorePointOutOfRange(f"transactions {begin} to {end} are not all in this log, which holds {held}",
                                         hint="ask for less")
        if begin <= end:
            yield from log.read(begin - 1, end)


def _opened(layout: Layout, env: Env) -> Log:
    layout.read_identity()
    return steadily(layout, env, lambda: Log.open(layout.current().log, read_only=True, options=LOG, env=env))
