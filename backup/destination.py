"""The destination of a restore: a directory that becomes a store when all of it is there.

If it is empty, the store is made in place: it becomes one when the last document, `CURRENT`, is written. With `force`,
it is made beside what it replaces, and the two directories swap names atomically. A directory that cannot be swapped,
such as a mount point, gets a new generation instead, which also comes into force atomically. That needs the same store
to be there. A restore that fails leaves at most an empty directory with a lock file. One that dies leaves the
destination as it was, or without a store, and the next restore removes what it left.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from xxhash import xxh3_64_hexdigest

from ..engine.env import Env
from ..engine.errors import (
    DirectoryMoved,
    HoldfastError,
    StoreExists,
    StoreLocked,
    StoreNotFound,
    TargetInvalid,
    Unsupported,
)
from ..engine.model.positions import Position
from ..engine.store.layout import MEMBER, RESTORING, Generation, Identity, Layout, bring_into_force
from ..engine.store.reader_leases import readers_in
from ..engine.wal.log import Log
from ..replay.roll import carry, history_at
from .directories import Patience, held, locked, make_root, partials
from .engines import AnyEngine
from .target.target import LOG

MAX_NAME = 255
"""The most bytes that a name in a directory may have."""


@contextlib.contextmanager
def destination(final: Path, identity: Identity, force: bool, patience: Patience, env: Env
                 ) -> Iterator[tuple[Generation, Env]]:
    """A generation, in a locked directory, that the block fills with state and log through the `Env` given with it. At
    the end of the block the store is at `final`, durably.

    Raises:
        StoreExists, StoreLocked, TargetInvalid, Unsupported, DirectoryMoved.
    """
    there = Layout(final, env.files)
    if _is_free(there):
        with in_place(there, identity, patience, env) as made:
            yield made
        return
    if not force:
        raise StoreExists(f"{final} is not empty", hint="choose another directory, or replace it with force")
    if not there.files.is_directory(final) or not (
            there.is_store() or there.is_empty() or there.is_half_restored()):
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
def in_place(there: Layout, identity: Identity, patience: Patience, env: Env
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


@contextlib.contextmanager
def written_over(final: Path, identity: Identity, patience: Patience, env: Env) -> Iterator[tuple[Generation, Env]]:
    """The generation of the store at `final`, for a restore that writes only what differs. Its old state is not kept:
    before the block there is durably no store any more, so nobody opens what is half old. At the end of the block there
    is one again. If the block or the process dies, the next restore of this kind goes on, and one with `force` replaces
    what is there.

    Raises:
        TargetInvalid: there is no store there, or another one, or it is a backup or a member of a cluster.
        StoreLocked, DirectoryMoved.
    """
    there = Layout(final, env.files)
    if not there.files.is_directory(final):
        raise TargetInvalid(f"{final} is not a directory, and only a store can be written over",
                            hint="leave out --delta")
    with held(there, env) as (there, env), locked(there, "restore", patience):
        with readers_in(there.root, "restore", env) as readers:
            if readers:
                raise StoreLocked(f"{final} is open for reading in {len(readers)} places", hint="close it there first")
            place = _out_of_force(there, identity)
        env.files.remove_tree(place.log)
        yield place, env
        bring_into_force(there, place)
        env.files.unlink(there.root / RESTORING)
        env.files.sync_directory(there.root)
        there.sweep()


def _out_of_force(there: Layout, identity: Identity) -> Generation:
    """Take the generation of a store out of force, durably. If an earlier restore died, this is done already."""
    files = there.files
    try:
        known = there.read_identity()
    except StoreNotFound as error:
        raise TargetInvalid(f"{there.root} holds no store that could be written over", hint="leave out --delta"
                            ) from error
    if (known.store_id, known.engine) != (identity.store_id, identity.engine):
        raise TargetInvalid(f"{there.root} holds store {known.store_id.hex()} of the {known.engine} engine, and not "
                            f"store {identity.store_id.hex()}", hint="choose the store's own directory")
    if files.exists(there.root / MEMBER):
        raise TargetInvalid(f"{there.root} belongs to a member of a cluster", hint="seed the member anew instead")
    if there.is_store():
        there.sweep()
        if files.exists(there.current().manifest):
            raise TargetInvalid(f"{there.root} is a backup", hint="choose a store's directory")
        files.write_durably(there.root / RESTORING, b"")
        files.unlink(there.root / "CURRENT")
        files.sync_directory(there.root)
    elif not there.is_half_restored():
        raise TargetInvalid(f"{there.root} holds no store that could be written over", hint="leave out --delta")
    found = [*partials(there), *there.generations()]
    if len(found) != 1:
        raise TargetInvalid(f"{there.root} has {len(found)} states, none of which is in force", hint="use --force")
    [one] = found
    if one.name.endswith(".partial"):
        return one
    place = Generation(one.path.with_name(f"{there.next_generation().name}.partial"))
    files.rename(one.path, place.path)
    files.sync_directory(there.root)
    return place


def begin_log(made: Generation, log: Log, state: Position, position: Position, branch: bytes, *, engine: AnyEngine,
               env: Env) -> None:
    """Make the log of a restored store, which continues from `position` on a new branch. It begins at `state`, the
    position of the state: between the two there are only kit records, which the engine never gets."""
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
