"""Opening a store for writing: create it if it is not there, lock it, recover it, and bring the engine to the end of
the log.

Recovery opens the engine's durable state and replays the log after its position over it. A copied image, which is what
a backup holds, is durably promoted before the engine may change it. The engine opens it at the image position, and the
log continues on a new branch, begun durably before anything is written. So the directory is never again taken for a
backup of the store it came from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..contract.engine import Context, Engine
from ..env import Env
from ..errors import DirectoryMoved, InvalidInput, LocksUnsupported, StoreExists, StoreLocked, StoreNotFound
from ..model.positions import Branch, History, Position, origin
from ..wal.log import Log
from .copied_image import copied_image
from .full_disk import make_room, need_room
from .layout import Identity, Layout
from .opened import Opened, anchor, identity_of, match, process_name
from .replay import replay
from .replica import noted
from .settings import Settings


def open_for_writing(root: Path, kind: type[Engine[Any, Any]], *, create: bool, options: Mapping[str, Any],
                     settings: Settings, env: Env, prune: bool = True, replica: int | None = None) -> Opened:
    """Open as `Store.open`. `prune`: on a full file system, log that nobody needs may be deleted. Raises what
    `Store.open` does; then nothing is left open or locked, and a store that this call created is removed."""
    layout = Layout(root, env.files)
    undo = None
    if not layout.is_store():
        if layout.is_half_restored():
            raise StoreNotFound(f"the restore of the store in {root} has not ended", hint="run the restore again")
        if not create:
            raise StoreNotFound(f"no store in {root}")
        if not layout.is_empty():
            what = "is not empty, and is not a store" if env.files.is_directory(root) else "is a file"
            raise StoreExists(f"{root} {what}")
        undo = partial(_unmake, layout, directory_too=not env.files.exists(root))
        try:
            env.files.make_directory(root)
        except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
            raise InvalidInput(f"{root} cannot be made: {error.strerror} ({error.filename})",
                               hint="choose another directory") from error
    try:
        lock = env.files.lock(layout.lock_path, process_name())
    except FileNotFoundError as error:
        raise StoreLocked(f"{root} is being made or removed by another process", hint="try again") from error
    except LocksUnsupported:
        if undo is not None:
            undo()
        raise
    anchored = None
    try:
        anchored, env = anchor(layout, env)
        if not layout.is_store():
            _create(layout, kind, options, settings, env)
        else:
            undo = None  # it was there before, or another process was faster
        identity = identity_of(layout, kind)
        context = Context(env, options, store_id=identity.store_id)
        make_room(layout, kind, context, settings, prune=prune)
        generation = layout.current()
        for directory in (generation.state, generation.log):
            anchored.hold_too(directory)
        layout.sync_names(generation)
        copied = copied_image(env.files, generation)
        if copied is not None and replica is not None:
            raise InvalidInput(f"{root} is a backup, not the store of a member",
                               hint="join with an empty directory; its state is copied from another member")
        if copied is not None:
            copied.promote(kind, context)
        layout.sweep()  # also removes the older generations that a backup keeps: this is not a backup any more
        engine = kind.open(generation.state, context, at=None if copied is None else copied.position)
        try:
            log = Log.open(generation.log, engine_position=engine.position, options=settings.log_options,
                           env=env)
            try:
                match(identity, log)
                if copied is not None:
                    copied.begin_branch(log)
                if replica is None:
                    log.begin_era()
                    upto = log.end.txid
                else:
                    held = max(engine.position.txid, replica, noted(env.files, generation.log))
                    upto = min(held, log.end.txid)
                cursor = log.cursor(engine.position)
                replayed = replay(engine, log, cursor, upto, settings.checkpoint_soft_bytes)
                shown = Position(upto, log.chain_at(upto))
            except BaseException:
                log.abandon()
                raise
        except BaseException:
            engine.close()
            raise
    except BaseException:
        if undo is not None:
            undo()
        if anchored is not None:
            anchored.let_go()
        lock.release()
        raise
    return Opened(layout, generation, engine, log, cursor, lock, replayed.records,
                  replayed.last or engine.position, anchored, env, undo=undo,
                  copied=copied, shown=shown)


def _create(layout: Layout, kind: type[Engine[Any, Any]], options: Mapping[str, Any], settings: Settings,
            env: Env) -> None:
    """Create an empty store. It counts as a store once `CURRENT` names its generation."""
    files = env.files
    layout.clear()  # the remains of a creation that was cut off; `is_empty` has checked that
    need_room(files, layout)
    now = env.clock.now_us()
    store_id, branch_id = env.randomness.token(16), env.randomness.token(16)
    start = origin(store_id)
    generation = layout.generation(1)
    files.make_directory(generation.state)
    kind.create(generation.state, start, Context(env, options, store_id=store_id))
    history = History(store_id, (Branch(branch_id, start),))
    # No commit is earlier than this, so a restore to an earlier time is one to before the store existed.
    log = Log.create(generation.log, history, start, engine=kind.name, last_time_us=now, options=settings.log_options,
                     env=env)
    log.close()
    layout.write_identity(Identity(store_id, kind.name, now))
    layout.switch(generation)


def _unmake(layout: Layout, *, directory_too: bool) -> None:
    """Remove a store, or part of one, that was created but could not be opened. The caller holds its lock."""
    files, root = layout.files, layout.root
    # If the disk fails here, the next opening clears what is left and creates the store.
    with contextlib.suppress(OSError, DirectoryMoved):
        layout.clear()
        files.unlink(layout.lock_path)
        if directory_too:
            files.remove_directory(root)  # fails, as it should, if somebody has put something here
