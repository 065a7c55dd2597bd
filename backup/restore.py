"""`restore`: make a store from a backup, as of any point between the backup's bounds.

The image is copied, and each chunk compared with its digest. The log is replayed to the point, and the state is
checkpointed exactly there. An empty log continues from there on a new branch.

How the directory becomes a store is in `destination.py`.

The new branch keeps the two stores apart. Both continue with the same transaction numbers, so whatever follows one of
them must be able to tell the other, and refuse it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from datetime import UTC, datetime, timedelta

from ..engine import renamed
from ..engine.env import REAL, Env
from ..engine.env.shown import shown
from ..engine.env.system import system_errors
from ..engine.errors import (
    Damaged,
    InvalidInput,
    RestorePointOutOfRange,
)
from ..engine.model.positions import ID_BYTES
from ..engine.store.layout import Identity, Layout
from ..engine.wal.log import Log
from ..replay.files import Progress, silent
from ..replay.roll import roll
from .destination import begin_log, destination
from .directories import (
    held,
    held_for_reading,
    refuse_inside,
    waited,
)
from .engines import AnyEngine, Options, compare_versions, engine_named
from .report import Bounds, RestoreReport, iso
from .target.scratch import copied_state
from .target.target import Target

logger = logging.getLogger("holdfast.backup")


@renamed.arguments(seams="env")
def restore(target: str | os.PathLike[str], dest: str | os.PathLike[str], *, to_txid: int | None = None,
            at: datetime | None = None, force: bool = False, wait: float = 0.0,
            engine: AnyEngine | None = None, options: Options | None = None, progress: Progress | None = None,
            env: Env = REAL) -> RestoreReport:
    """Restore a backup into a directory. O(image and log).

    Args:
        target: the backup. It is not changed.
        dest: the directory for the store, new or empty. A link is followed.
        to_txid: the transaction to restore to. If None, the last one.
        at: restore to the last transaction committed at or before this time, which must have a time zone.
        force: replace the store or backup at `dest`, once the new one is whole. Refused while it is open, and if its
            directory holds other things.
        wait: seconds to wait if another process writes to the backup or has `dest` open.
        engine: the engine class. If None, the one registered under the backup's engine name.
        options: the engine's own.
        progress: called in this thread with (stage, done, total).
        env: files, clock, randomness and threads.

    Raises:
        RestorePointOutOfRange: the point is not within the backup's bounds, which the message names.
        StoreExists, StoreLocked: the destination is taken.
        TargetInvalid: there is no backup at `target`, or what is at `dest` is not a store that can be replaced.
        TargetPromoted: there was a backup at `target`, until it was opened for writing.
        Unsupported: with `force`: the two directories cannot swap names, and `dest` holds another store.
        InvalidInput, Damaged, UnsupportedFormat, UpgradeRequired, SettingError.
        DiskFull, LimitReached, AccessDenied, DeviceFailed: the system refused; run it again once that is mended.
        DirectoryMoved: one of the two paths was moved during the restore; what is there now was not touched.
    """
    check_point(to_txid, at)
    files, started = env.files, env.clock.monotonic()
    layout, final = Layout(files.resolve(target), files), files.resolve(dest)
    source_root, patience = layout.root, waited(wait, env)
    if final == source_root or source_root in final.parents or final in source_root.parents:
        raise InvalidInput(f"{final} and the backup {source_root} lie within one another", hint="restore elsewhere")
    with system_errors(f"cannot restore to {final}"):
        refuse_inside(final, files)
    with (system_errors(f"cannot restore {layout.root} to {final}"), held(layout, env) as (layout, env),
          held_for_reading(layout, patience)):
        newest = Target.open(layout, env)
        engine = engine_named(newest.manifest.engine, engine)
        chosen, point = _chosen(newest, to_txid, at)
        manifest, log = chosen.manifest, chosen.log
        compare_versions(engine, manifest.state_format, manifest.payloads, f"the backup in {layout.root}")
        identity = Identity(manifest.history.store_id, engine.name, env.clock.now_us())
        with destination(final, identity, force, patience, env) as (made, env):
            with copied_state(chosen, made.state, engine, options or {}, env, durable=True,
                              progress=progress or silent) as opened:
                rolled = roll(opened, log, point, durable=True, progress=progress or silent)
                state = opened.position
            position = rolled.position
            time_us = log.time_of(point)
            branch = env.randomness.token(ID_BYTES)
            begin_log(made, log, state, position, branch, engine=engine, env=env)
    return RestoreReport(
        source=str(target), destination=str(dest), store_id=manifest.history.store_id.hex(), branch=branch.hex(),
        engine=manifest.engine, txid=position.txid, time_us=(time_us or None) if position.txid else None,
        image_bytes=manifest.image_bytes, transactions=rolled.records, seconds=env.clock.monotonic() - started)


def check_point(to_txid: int | None, at: datetime | None) -> None:
    """Check how a caller names the point to restore to. Raises `InvalidInput`."""
    if to_txid is not None and at is not None:
        raise InvalidInput("to_txid and at were both given", hint="give one of them")
    if to_txid is not None and type(to_txid) is not int:
        raise InvalidInput(f"to_txid={shown(to_txid)} is not a whole number")
    if at is not None and not isinstance(at, datetime):
        raise InvalidInput(f"at={shown(at)} is not a datetime")
    if at is not None and at.tzinfo is None:
        raise InvalidInput(f"the time {at} has no time zone", hint="add one: 2026-03-01T12:00:00+01:00, or a final Z")


def _chosen(newest: Target, to_txid: int | None, at: datetime | None) -> tuple[Target, int]:
    """The newest generation that restores to the given point, and the transaction of that point.

    Raises:
        RestorePointOutOfRange: none does.
        Damaged: the newest generation is damaged, or the older one that is chosen.
    """
    bounds = newest.bounds()
    try:
        return newest, _point(newest.log, bounds, to_txid, at)
    except RestorePointOutOfRange as error:
        refused = error
    for generation, told in newest.kept():
        older = newest.older(generation)
        if older is None:
            raise Damaged("is missing", path=str(generation.manifest))
        with contextlib.suppress(RestorePointOutOfRange):
            point = _point(older.log, older.bounds(), to_txid, at)
            logger.info("restoring from %s, an older generation than %s", told["generation"],
                        newest.generation.name)
            return older, point
    if newest.manifest.older:
        asked = f"transaction {to_txid}" if at is None else iso(micros(at))
        raise RestorePointOutOfRange(f"{asked} is not a point of this backup, which restores to "
                                     f"{newest.whole(bounds)}", hint=refused.hint) from refused
    raise refused


def micros(at: datetime) -> int:
    """Microseconds since the Unix epoch."""
    return (at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def _point(log: Log, bounds: Bounds, to_txid: int | None, at: datetime | None) -> int:
    """The transaction to restore to. Raises `RestorePointOutOfRange`."""
    if at is None:
        point = bounds.last if to_txid is None else to_txid
        if not bounds.first <= point <= bounds.last:
            raise RestorePointOutOfRange(f"transaction {point} is not in this backup, which restores to {bounds}")
        return point
    time_us = micros(at)
    if time_us > bounds.complete_until_us:
        raise RestorePointOutOfRange(f"{iso(time_us)} is after the end of this backup; it restores to {bounds}",
                                     hint="take an incremental first, or ask for an earlier time")
    point = log.txid_at(time_us)
    # If the time of the first point is not known, a time counts as within bounds only from the next transaction on.
    known = bounds.first_time_us is not None and time_us >= bounds.first_time_us
    if point < bounds.first or (point == bounds.first and not known):
        raise RestorePointOutOfRange(f"{iso(time_us)} is before this backup begins; it restores to {bounds}",
                                     hint="use an earlier backup, or ask for a later time")
    return point
