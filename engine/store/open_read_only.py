"""Opening a store read-only, and following its writer. Not a byte of the directory changes.

The log is replayed into memory if the engine can do that and the log is small, and otherwise into a scratch copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..contract.engine import Context, Engine
from ..env import Env, Files
from ..env.anchored import AnchoredFiles
from ..env.scratch import ScratchDirectory
from ..errors import Damaged, LocksUnsupported, LogPruned, StoreLocked, StoreNotFound, Unsupported
from ..wal.log import Log
from .copied_image import copied_image
from .layout import Layout
from .opened import Opened, anchor, identity_of, match, process_name
from .reader_leases import ReaderLease
from .replay import replay
from .settings import Settings

T = TypeVar("T")

LOOKS = 6
"""Attempts to read a directory that another process is writing before reporting an inconsistency."""


def open_to_read(root: Path, kind: type[Engine[Any, Any]], *, options: Mapping[str, Any], settings: Settings,
                 env: Env) -> Opened:
    """Open without changing a byte in `root`. See the module's text for where the log is replayed. Raises what
    `Store.open` does."""
    layout = Layout(root, env.files)
    if not layout.is_store():
        raise StoreNotFound(f"no store in {root}")

    def look() -> Opened:
        try:
            still = env.files.lock_shared(layout.lock_path)
        except StoreLocked:
            copied = copied_image(env.files, layout.current())
            if copied is not None and not copied.promoted:
                raise  # backup runs do not look for readers, and a reader may not write its file into a backup
            return look_beside()
        try:
            opened = _open_to_read(layout, kind, options, settings, env, shared=False)
        except BaseException:
            if still is not None:
                still.release()
            raise
        opened.still = still
        return opened

    def look_beside() -> Opened:
        reader = ReaderLease(root, process_name(), env)
        try:
            opened = _open_to_read(layout, kind, options, settings, env, shared=True)
            reader.advance(opened.log.last_base)
        except BaseException:
            reader.release()
            raise
        opened.reader = reader
        return opened

    return steadily(layout, env, look)


def steadily(layout: Layout, env: Env, look: Callable[[], T]) -> T:
    """Call `look` on a directory that may be written meanwhile, up to `LOOKS` times. A segment that is pruned, sealed
    or written during one look seems damaged or gone, but not on the next look. Raises what the last look raises."""
    for attempt in range(1, LOOKS):
        try:
            return look()
        except (Damaged, LogPruned, FileNotFoundError):
            if not _is_written(layout):
                break
            env.clock.sleep(0.01 * attempt)
    return look()


def _open_to_read(layout: Layout, kind: type[Engine[Any, Any]], options: Mapping[str, Any], settings: Settings,
                  env: Env, *, shared: bool) -> Opened:
    layout = Layout(layout.root, env.files)
    anchored, env = anchor(layout, env)
    try:
        return _open_held(layout, anchored, kind, options, settings, env, shared=shared)
    except BaseException:
        anchored.let_go()
        raise


def _open_held(layout: Layout, anchored: AnchoredFiles, kind: type[Engine[Any, Any]], options: Mapping[str, Any],
               settings: Settings, env: Env, *, shared: bool) -> Opened:
    root = layout.root
    identity = identity_of(layout, kind)
    generation = layout.current()
    for held in (generation.state, generation.log):
        anchored.hold_too(held)
    copied = copied_image(env.files, generation)
    at = None if copied is None else copied.position
    log_end = None if copied is None else copied.log_end
    if shared and not kind.abilities.shared_readers:
        raise StoreLocked(f"{root} is open for writing, and the {kind.name} engine does not allow readers beside it")
    log = Log.open(generation.log, engine_position=log_end, read_only=True,
                   options=settings.log_options, env=env)
    match(identity, log)
    if copied is not None:
        copied.check(log)
    context = Context(env, options, shared=shared, store_id=identity.store_id)
    if kind.abilities.replays_in_memory:
        engine = kind.open(generation.state, context, read_only=True, at=at)
        try:
            # Open the log again: the engine's position is durable by now, so the log must be durable up to there.
            log = Log.open(generation.log, engine_position=log_end or engine.position, read_only=True,
                           options=settings.log_options, env=env)
            if not _replays_large(log, engine.position.txid, settings):
                cursor = log.cursor(engine.position)
                replayed = replay(engine, log, cursor, log.end.txid, 1 << 62)
                return Opened(layout, generation, engine, log, cursor, None, replayed.records,
                              replayed.last or engine.position, anchored, env)
        except BaseException:
            engine.close()
            raise
        engine.close()
    if shared:
        raise StoreLocked(f"{root} is open for writing, and too much of its log is not checkpointed",
                          hint="ask its writer for a checkpoint, or take a backup and read that")
    directory = ScratchDirectory(env.files)
    try:
        copy = directory.path / "state"
        copy_tree(env.files, generation.state, copy)
        engine = kind.open(copy, Context(env, options, store_id=identity.store_id), at=at)
        try:
            log = Log.open(generation.log, engine_position=log_end or engine.position, read_only=True,
                           options=settings.log_options, env=env)
            cursor = log.cursor(engine.position)
            replayed = replay(engine, log, cursor, log.end.txid, settings.checkpoint_soft_bytes)
        except BaseException:
            engine.close()
            raise
    except BaseException:
        directory.cleanup()
        raise
    return Opened(layout, generation, engine, log, cursor, None, replayed.records,
                  replayed.last or engine.position, anchored, env, scratch=directory)


def follow(opened: Opened, settings: Settings, env: Env) -> int:
    """Bring a store that was opened read-only to the durable end that its log has now. Returns how many transactions
    were applied. O(new log).

    Raises:
        LogPruned: the next record is no longer in the log.
        Unsupported: the new log has a bulk load or is too large, or the directory has another generation.
        Diverged, Damaged: as `Log.look`.
    """
    if opened.layout.current() != opened.generation:
        raise Unsupported(f"{opened.layout.root} has a new generation", hint="open the store again")
    log, cursor = opened.log, opened.cursor
    steadily(opened.layout, env, log.look)
    if _replays_large(log, cursor.txid, settings):
        raise Unsupported("the new log has a bulk load, or is larger than replay_memory_bytes",
                          hint="open the store again")
    opened.half_way = True
    replayed = replay(opened.engine, log, cursor, log.end.txid, 1 << 62)
    if replayed.last is not None:
        opened.applied = replayed.last
    if opened.reader is not None and replayed.records:
        opened.reader.advance(log.last_base)
    return replayed.records


def _is_written(layout: Layout) -> bool:
    """Whether somebody holds the directory's lock."""
    try:
        return layout.files.is_locked(layout.lock_path)
    except LocksUnsupported:
        return False  # without locks, no process can have it open for writing


def _replays_large(log: Log, after: int, settings: Settings) -> bool:
    return log.size_after(after) > settings.replay_memory_bytes or bool(log.attached(after))


def copy_tree(files: Files, source: Path, target: Path) -> None:
    """Copy the files below `source` to a new directory `target`. Raises `DiskFull`."""
    files.make_directory(target)
    for name in files.list(source):
        if files.is_directory(source / name):
            copy_tree(files, source / name, target / name)
        else:
            files.copy_file(source / name, target / name)
