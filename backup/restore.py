"""`restore`: make a store from a backup, as of any point between the backup's bounds.

The image is copied, and each chunk compared with its digest. The log is replayed to the point, and the state is
checkpointed exactly there. An empty log continues from there on a new branch.

If the destination is empty, all this is made in place: it becomes a store when the last document, `CURRENT`, is
written. With `force`, it is made beside what it replaces, and the two directories swap names atomically. A directory
that cannot be swapped, such as a mount point, gets a new generation instead, which also comes into force atomically.
That needs the same store to be there. A restore that fails leaves at most an empty directory with a lock file. One that
dies leaves the destination as it was, or without a store, and the next restore removes what it left.

The new branch keeps the two stores apart. Both continue with the same transaction numbers, so whatever follows one of
them must be able to tell the other, and refuse it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from ..engine import renamed
from ..engine.env import REAL, Env
from ..engine.env.shown import shown
from ..engine.env.system import system_errors
from ..engine.errors import (
    Damaged,
    DirectoryMoved,
    HoldfastError,
    InvalidInput,
    RestorePointOutOfRange,
    StoreExists,
    TargetInvalid,
    Unsupported,
)
from ..engine.model.positions import ID_BYTES, Position
from ..engine.store.layout import Generation, Identity, Layout, bring_into_force
from ..engine.wal.log import Log
from ..replay.files import Progress, silent
from ..replay.roll import carry, history_at, roll
from .directories import (
    Patience,
    held,
    held_for_reading,
    locked,
    make_root,
    partials,
    refuse_inside,
    waited,
)
from .engines import AnyEngine, Options, compare_versions, engine_named
from .report import Bounds, RestoreReport, iso
from .target.scratch import copied_state
from .target.target import LOG, Target

logger = logging.getLogger("holdfast.backup")

MAX_NAME = 255
"""The most bytes that a name in a directory may have."""


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
    if to_txid is not None and at is not None:
        raise InvalidInput("to_txid and at were both given", hint="give one of them")
    if to_txid is not None and type(to_txid) is not int:
        raise InvalidInput(f"to_txid={shown(to_txid)} is not a whole number")
    if at is not None and not isinstance(at, datetime):
        raise InvalidInput(f"at={shown(at)} is not a datetime")
    if at is not None and at.tzinfo is None:
        raise InvalidInput(f"the time {at} has no time zone", hint="add one: 2026-03-01T12:00:00+01:00, or a final Z")
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
        with _destination(final, identity, force, patience, env) as (made, env):
            with copied_state(chosen, made.state, engine, options or {}, env, durable=True,
                              progress=progress or silent) as opened:
                rolled = roll(opened, log, point, durable=True, progress=progress or silent)
                state = opened.position
            position = rolled.position
            time_us = log.time_of(point)
            branch = env.randomness.token(ID_BYTES)
            _begin_log(made, log, state, position, branch, engine=engine, env=env)
    return RestoreReport(
        source=str(target), destination=str(dest), store_id=manifest.history.store_id.hex(), branch=branch.hex(),
        engine=manifest.engine, txid=position.txid, time_us=(time_us or None) if position.txid else None,
        image_bytes=manifest.image_bytes, transactions=rolled.records, seconds=env.clock.monotonic() - started)


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
        asked = f"transaction {to_txid}" if at is None else iso(_micros(at))
        raise RestorePointOutOfRange(f"{asked} is not a point of this backup, which restores to "
                                     f"{newest.whole(bounds)}", hint=refused.hint) from refused
    raise refused


def _micros(at: datetime) -> int:
    return (at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def _point(log: Log, bounds: Bounds, to_txid: int | None, at: datetime | None) -> int:
    """The transaction to restore to. Raises `RestorePointOutOfRange`."""
    if at is None:
        point = bounds.last if to_txid is None else to_txid
        if not bounds.first <= point <= bounds.last:
            raise RestorePointOutOfRange(f"transaction {point} is not in this backup, which restores to {bounds}")
        return point
    time_us = _micros(at)
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


@contextlib.contextmanager
def _destination(final: Path, identity: Identity, force: bool, patience: Patience, env: Env
                 ) -> Iterator[tuple[Generation, Env]]:
    """A generation, in a locked directory, that the block fills with state and log through the `Env` given with it. At
    the end of the block the store is at `final`, durably.

    Raises:
        StoreExists, StoreLocked, TargetInvalid, Unsupported, DirectoryMoved.
    """
    there = Layout(final, env.files)
    if _is_free(there):
        with _in_place(there, identity, patience, env) as made:
            yield made
        return
    if not force:
        raise StoreExists(f"{final} is not empty", hint="choose another directory, or replace it with force")
    if not there.files.is_directory(final) or not (there.is_store() or there.is_empty()):
        raise TargetInvalid(f"{final} is neither a store nor a backup, so it is not replaced",
                            hint="choose another directory")
    if foreign := there.foreign():
        raise TargetInvalid(f"{final} also holds files of something else, so it is not replaced: {', '.join(foreign)}",
                            hint="move that elsewhere, or choose another directory")
    with held(there, env) as (there, inner), locked(there, "restore", patience):
        way = _beside if there.files.can_be_swapped(final) else _renewed
        with way(there, identity, inner if way is _renewed else env) as made:
            yield made


def _is_free(there: Layout) -> bool:
    """Whether the directory is empty, or holds only what a restore that died has left. What a first backup that died
    has left counts as occupied, since that backup can be resumed."""
    return there.is_empty() and not partials(there)


@contextlib.contextmanager
def _in_place(there: Layout, identity: Identity, patience: Patience, env: Env
              ) -> Iterator[tuple[Generation, Env]]:
    make_root(there)
    with held(there, env) as (there, env), locked(there, "restore", patience, new=True):
        if not _is_free(there):
            raise StoreExists(f"{there.root} is not empty any more: another restore was faster")
        there.clear()
        try:
            made = there.generation(1)
            yield made, env
            there.write_identity(identity)
            there.switch(made)
        except BaseException:
            with contextlib.suppress(OSError, DirectoryMoved):
                there.clear()
            raise


@contextlib.contextmanager
def _renewed(there: Layout, identity: Identity, env: Env) -> Iterator[tuple[Generation, Env]]:
    """A new generation of the store in `there`, which is locked, for a directory that cannot be swapped. The document
    with the store's identity is not changed, since it and `CURRENT` could not be replaced in one step.

    Raises:
        Unsupported: another store is there; nothing was written.
    """
    try:
        known = there.read_identity()
        same = there.is_store() and (known.store_id, known.engine) == (identity.store_id, identity.engine)
    except HoldfastError:
        same = False
    if not same:
        raise Unsupported(f"{there.root} cannot be swapped with a directory beside it (it is a mount point, or this "
                          "user cannot write to its parent), and it holds another store",
                          hint="empty it first, or restore into another directory")
    files = there.files
    fresh = there.next_generation()
    place = Generation(fresh.path.with_name(f"{fresh.name}.partial"))
    try:
        yield place, env
        bring_into_force(there, place)
    except BaseException:
        with contextlib.suppress(OSError, DirectoryMoved):
            files.remove_tree(place.path)
        raise
    there.sweep()


@contextlib.contextmanager
def _beside(there: Layout, identity: Identity, env: Env) -> Iterator[tuple[Generation, Env]]:
    """A generation in a directory beside `there`, to be swapped with it. `there` is locked, so no other restore of it
    is running, and a directory under such a name was left by one that died."""
    files, final = env.files, there.root  # not `there.files`, which would object that the directory has moved
    prefix = f".{final.name}.restore-"
    if len(os.fsencode(prefix)) + 16 > MAX_NAME:
        prefix = f".{xxh3_64_hexdigest(os.fsencode(final.name))}.restore-"
    dead = [name for name in files.list(final.parent)
            if name.startswith(prefix) and re.fullmatch("[0-9a-f]{16}", name.removeprefix(prefix))]
    if dead:
        files.sync_directory(final.parent)  # one may be a store that was swapped out: make the swap durable first
    for name in dead:
        files.remove_tree(final.parent / name)
    made = Layout(final.with_name(prefix + env.randomness.token(8).hex()), files)
    files.make_directory(made.root)
    swapped = False
    try:
        with locked(made, "restore"):
            with held(made, env) as (inside, inner):
                yield made.generation(1), inner
                inside.write_identity(identity)
                inside.switch(made.generation(1))
            there.files.look(final)
            files.exchange(made.root, final)
            swapped = True
            files.sync_directory(final.parent)
            files.remove_tree(made.root)  # now, while the locks keep others out
    except BaseException:
        if not swapped:
            files.remove_tree(made.root)
        raise


def _begin_log(made: Generation, log: Log, state: Position, position: Position, branch: bytes, *, engine: AnyEngine,
               env: Env) -> None:
    """Make the log that continues from `position` on a new branch. It begins at `state`, the position of the state:
    between the two there are only kit records, which the engine never gets."""
    history = history_at(log.history, position).extended(branch, position)
    epoch = next((r.epoch for r in log.read(state.txid - 1, state.txid)), 0) if state != log.base else (
        log.segments()[0].epoch)
    begun = Log.create(made.log, history if state == position else history_at(log.history, state), state,
                       engine=engine.name, epoch=epoch, last_time_us=log.time_of(state.txid), options=LOG, env=env)
    try:
        if state != position:
            carry(log, begun, position)
            begun.writer.extend_history(history)
    except BaseException:
        begun.abandon()
        raise
    begun.close()
