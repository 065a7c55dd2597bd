"""`restore`: make a store from a backup, as of any point between the backup's bounds.

The store is made whole beside its destination, in `DEST.partial`: image copied (each chunk against its digest), log
replayed to the point, state checkpointed exactly there, and an empty log that goes on from there on a new branch. Then
it takes its name in one step; with `force`, it and what was there swap names in one step. A restore that dies leaves
the destination as it was, and the next one starts clean.

The new branch is what keeps the twins apart: the restored store goes on with the same transaction numbers as the old
one, and anything that knows one of them refuses the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..engine.directory import Identity, Layout
from ..engine.errors import (
    DiskFull,
    InvalidInput,
    RestorePointOutOfRange,
    StoreExists,
    TargetInvalid,
)
from ..engine.history import ID_BYTES, Position
from ..engine.log.log import Log
from ..engine.seams import REAL, Files, Seams, is_disk_full
from ..replay.files import Progress, silent
from ..replay.roll import history_at, roll
from .report import Bounds, RestoreReport, iso
from .scratch import copied_state
from .target import (
    LOG,
    AnyEngine,
    Options,
    bounds_of,
    engine_named,
    held_for_reading,
    image_bytes,
    locked,
    open_log,
    read_target,
)


def restore(target: str | os.PathLike[str], dest: str | os.PathLike[str], *, to_txid: int | None = None,
            at: datetime | None = None, force: bool = False, engine: AnyEngine | None = None,
            options: Options | None = None, progress: Progress | None = None, seams: Seams = REAL) -> RestoreReport:
    """Restore a backup into a directory.

    Args:
        target: the backup; not a byte of it changes.
        dest: where the store is to be: a directory that is new or empty.
        to_txid: the transaction to restore to; the last one, without.
        at: restore to the last transaction committed at or before this time, which must say its time zone.
        force: replace the store or backup that is at `dest`, once the new one is whole. Refused while it is open.
        engine: the engine class; found by the backup's engine name, without.
        options: the engine's own.
        progress: told (stage, done, total).
        seams: files, clock, randomness and threads.

    Raises:
        RestorePointOutOfRange: the point is not within the backup's bounds, which the message names.
        StoreExists, StoreLocked: the destination is taken.
        TargetInvalid, TargetRetired: there is no backup at `target`.
        InvalidInput, Damaged, DiskFull, UnsupportedFormat, UpgradeRequired, SettingError.
    """
    if to_txid is not None and at is not None:
        raise InvalidInput("to_txid and at both say where to stop", hint="give one of them")
    if to_txid is not None and type(to_txid) is not int:
        raise InvalidInput(f"to_txid={to_txid!r} is no whole number")
    if at is not None and not isinstance(at, datetime):
        raise InvalidInput(f"at={at!r} is no datetime")
    if at is not None and at.tzinfo is None:
        raise InvalidInput(f"the time {at} says no time zone", hint="add one: 2026-03-01T12:00:00+01:00, or a final Z")
    files, started = seams.files, seams.clock.monotonic()
    layout, final = Layout(Path(target), files), Path(dest).absolute()
    source_root = layout.root.absolute()
    if final == source_root or source_root in final.parents or final in source_root.parents:
        raise InvalidInput(f"{final} and the backup {source_root} lie within one another", hint="restore elsewhere")
    made = Layout(final.with_name(final.name + ".partial"), files)
    try:
        with held_for_reading(layout), _destination(final, force, files) as taken:
            generation, manifest = read_target(layout)
            engine = engine_named(manifest.engine, engine)
            with open_log(generation, manifest, read_only=True, seams=seams) as log:
                point = _point(log, bounds_of(manifest, log), to_txid, at)
                _clear(made)
                files.make_directory(made.root)
                with locked(made, "restore"):
                    place = made.generation(1)
                    with copied_state(generation, manifest, place.state, engine, options or {}, seams,
                                      durable=True, progress=progress or silent) as opened:
                        rolled = roll(opened, log, point, durable=True, progress=progress or silent)
                    position = rolled.position
                    time_us = log.time_of(point)
                    branch = seams.randomness.token(ID_BYTES)
                    _finish(made, log, position, branch, time_us=time_us, engine=engine, seams=seams)
                    _take_name(made.root, final, swap=taken, files=files)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"no room left to restore to {final}") from error
        raise
    return RestoreReport(
        source=str(target), destination=str(dest), store_id=manifest.history.store_id.hex(), branch=branch.hex(),
        engine=manifest.engine, txid=position.txid, time_us=time_us or None, image_bytes=image_bytes(manifest.files),
        transactions=rolled.records, seconds=seams.clock.monotonic() - started)


def _point(log: Log, bounds: Bounds, to_txid: int | None, at: datetime | None) -> int:
    """The transaction to restore to. Raises `RestorePointOutOfRange`."""
    if at is None:
        point = bounds.last if to_txid is None else to_txid
        if not bounds.first <= point <= bounds.last:
            raise RestorePointOutOfRange(f"transaction {point} is not in this backup, which restores to {bounds}")
        return point
    time_us = (at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    if time_us > bounds.complete_until_us:
        raise RestorePointOutOfRange(f"{iso(time_us)} is after what this backup knows of; it restores to {bounds}",
                                     hint="take an incremental first, or ask for an earlier time")
    point = log.txid_at(time_us)
    # Where the first point's own time is not known, only a transaction after it shows that a time is not before it.
    known = bounds.first_time_us is not None and time_us >= bounds.first_time_us
    if point < bounds.first or (point == bounds.first and not known):
        raise RestorePointOutOfRange(f"{iso(time_us)} is before this backup begins; it restores to {bounds}",
                                     hint="use an earlier backup, or ask for a later time")
    return point


@contextlib.contextmanager
def _destination(final: Path, force: bool, files: Files) -> Iterator[bool]:
    """Whether something is at the destination that is to be replaced; it is kept locked meanwhile.

    Raises:
        StoreExists, StoreLocked, TargetInvalid.
    """
    there = Layout(final, files)
    if not files.exists(final) or (files.is_directory(final) and not files.list(final)):
        yield False
        return
    if not force:
        raise StoreExists(f"{final} is not empty", hint="choose another directory, or replace it with force")
    if not files.is_directory(final) or not (there.is_store() or there.is_empty()):
        raise TargetInvalid(f"{final} is no store or backup, so it is not replaced", hint="choose another directory")
    with locked(there, "restore"):
        yield True


def _clear(made: Layout) -> None:
    """Remove what an earlier restore left behind, and nothing else."""
    if made.files.exists(made.root):
        if not (made.has_only_ours() or made.is_store()):
            raise TargetInvalid(f"{made.root} is in the way", hint="move it away; restore makes the store there first")
        with locked(made, "restore"):
            made.files.remove_tree(made.root)


def _finish(made: Layout, log: Log, position: Position, branch: bytes, *, time_us: int, engine: AnyEngine,
            seams: Seams) -> None:
    """Write what makes a state at `position` a store: log, identity, and last of all the generation in force."""
    history = history_at(log.history, position).extended(branch, position)
    epoch = next((r.epoch for r in log.read(position.txid - 1, position.txid)), 0) if position != log.base else (
        log.segments()[0].epoch)
    Log.create(made.generation(1).log, history, position, engine=engine.name, epoch=epoch, last_time_us=time_us,
               options=LOG, seams=seams).close()
    made.write_identity(Identity(history.store_id, engine.name, seams.clock.now_us()))
    made.switch(made.generation(1))


def _take_name(made: Path, final: Path, *, swap: bool, files: Files) -> None:
    if swap:
        files.exchange(made, final)
        files.sync_directory(final.parent)
        files.remove_tree(made)
    else:
        files.rename(made, final)
    files.sync_directory(final.parent)
