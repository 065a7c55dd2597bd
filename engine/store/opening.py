"""Opening a store: make it if it is not there, lock it, recover it, and bring the engine to the end of the log.

Recovery is the same two verbs as everything else: the engine opens its durable state (the image), and the log after its
position is replayed over it. A backup target is a store like any other, whose state is an image that was copied between
two positions: it is opened at the first and counts only when replayed to the second. Opening one for writing promotes
it before
the engine may change the image, and begins a new branch before anything is written, both durably, so that it is never
again taken for a backup of the store it came from.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..contract.engine import BulkEngine, Context, Engine
from ..env import DirectoryLock, Env, Files
from ..env.anchored import AnchoredFiles
from ..env.scratch import ScratchDirectory
from ..errors import (
    Damaged,
    DirectoryMoved,
    InvalidInput,
    LocksUnsupported,
    LogPruned,
    StoreExists,
    StoreLocked,
    StoreNotFound,
    Unsupported,
    UnsupportedFormat,
    WrongEngine,
)
from ..model.positions import Branch, History, Position, origin
from ..model.records import Record
from ..wal.attachments import verify_attachment
from ..wal.cursor import Cursor
from ..wal.log import Log
from .layout import Generation, Identity, Layout, Manifest
from .reader_leases import ReaderLease
from .room import make_room, need_room
from .settings import Settings

T = TypeVar("T")

LOOKS = 6
"""How often a directory that is being written is looked at before what seems wrong with it counts as wrong."""
REPLAY_RECORDS = 1000
REPLAY_BYTES = 256 << 10
"""So many records, or payload bytes, are applied in one go; in memory an engine may hold twenty times as much."""
REPLAY_IN_MEMORY = 256 << 20
"""A read-only opening replays up to this much log in memory, and more into a scratch copy."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a store found and did.

    Attributes:
        clean: it had been closed properly.
        replayed: transactions replayed over the engine's durable state.
        cut_bytes, cut_path, cut_offset: a torn end of the log that was cut; it held nothing acknowledged.
        rewritten_bytes: bytes written again because they were perhaps in memory only.
    """

    clean: bool
    replayed: int
    cut_bytes: int
    cut_path: str | None
    cut_offset: int
    rewritten_bytes: int


@dataclass(slots=True)
class Opened:
    """What an opening made.

    Attributes:
        engine: brought to the log's durable end.
        log: recovered.
        cursor: behind what was replayed.
        lock: None where opened read-only.
        replayed: how many transactions were replayed.
        anchored: what holds its directories.
        env: the store's: its files are those.
        scratch: a copy of the state that goes when the store is closed, or None.
        manifest: to be settled when a checkpoint has passed its `consistent_from`, or None.
        reader: what keeps the log that is needed here, where another process writes the store; or None.
        still: opened read-only where nobody wrote: what keeps writers out, since what libraries read without locks must
            not change under them; or None.
        undo: removes the store, which this opening has made; None where there was one.
        half_way: `follow` has begun to apply what is new; not all of it may be there, or shown.
        engine_closed, released: how far `release` came.
    """

    layout: Layout
    generation: Generation
    engine: Engine[Any, Any]
    log: Log
    cursor: Cursor
    lock: DirectoryLock | None
    replayed: int
    anchored: AnchoredFiles
    env: Env
    scratch: ScratchDirectory | None = None
    manifest: Manifest | None = None
    reader: ReaderLease | None = None
    still: DirectoryLock | None = None
    undo: Callable[[], None] | None = None
    half_way: bool = False
    engine_closed: bool = False
    released: bool = False

    def release(self) -> None:
        """Close the engine and let go of the directory: each part, whatever another raises. Fine to call again, above
        all where a signal's handler raised."""
        with ExitStack() as last_to_first:
            for part in (self.still, self.reader, self.lock):
                if part is not None:
                    last_to_first.callback(part.release)
            last_to_first.callback(self.anchored.let_go)
            if self.undo is not None and not self.log.end.txid:  # no plugin has committed meanwhile
                last_to_first.callback(self.undo)
            if self.scratch is not None:
                last_to_first.callback(self.scratch.cleanup)
            if not self.engine_closed:
                self.engine_closed = True
                last_to_first.callback(self.engine.close)
        self.released = True

    @property
    def recovery(self) -> Recovery:
        found = self.log.recovery
        return Recovery(found.clean, self.replayed, found.cut_bytes, found.path if found.cut_bytes else None,
                        found.cut_offset, found.rewritten_bytes)

    def abandon(self) -> None:
        """In a child process: neither lock nor log is ours."""
        self.log.abandon()
        for part in (self.lock, self.reader, self.still):
            if part is not None:
                part.abandon()


def process_name() -> str:
    return f"process {os.getpid()}"


def open_for_writing(root: Path, kind: type[Engine[Any, Any]], *, create: bool, options: Mapping[str, Any],
                     settings: Settings, env: Env, prune: bool = True) -> Opened:
    """`prune`: on a full file system, log that nobody needs may go. Raises what `Store.open` does. Nothing is left open
    or locked then, and no store that was not there before."""
    layout = Layout(root, env.files)
    undo = None
    if not layout.is_store():
        if not create:
            raise StoreNotFound(f"no store in {root}")
        if not layout.is_empty():
            what = "is not empty, and holds no store" if env.files.is_directory(root) else "is a file"
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
        anchored, env = _anchor(layout, env)
        if not layout.is_store():
            _create(layout, kind, options, settings, env)
        else:
            undo = None  # whether it was there before, or somebody was faster than we
        identity = _identity(layout, kind)
        context = Context(env, options, store_id=identity.store_id)
        make_room(layout, kind, context, settings, prune=prune)
        generation = layout.current()
        for directory in (generation.state, generation.log):
            anchored.hold_too(directory)
        layout.settle_names(generation)
        manifest = Manifest.read(env.files, generation)
        if manifest is not None and manifest.promoted_us is None:
            manifest = _promote(generation, manifest, kind, context)
        layout.sweep()  # what a backup kept of older generations too: it is none any more
        at = None if manifest is None or manifest.settled else manifest.image_position
        engine = kind.open(generation.state, context, at=at)
        try:
            log = Log.open(generation.log, engine_position=_durable_end(manifest, engine),
                           options=settings.log_options, env=env)
            try:
                _match(identity, log)
                if manifest is not None:
                    _begin_branch(manifest, log)
                log.begin_era()
                cursor = log.cursor(engine.position)
                replayed = replay(engine, log, cursor, log.end.txid, settings.checkpoint_soft_bytes)
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
    return Opened(layout, generation, engine, log, cursor, lock, replayed, anchored, env, undo=undo,
                  manifest=manifest if manifest is not None and not manifest.settled else None)


def _anchor(layout: Layout, env: Env) -> tuple[AnchoredFiles, Env]:
    """Hold a store's directory, and let nothing below its path be used when that leads elsewhere."""
    anchored = AnchoredFiles(env.files, layout.root)
    layout.files = anchored
    return anchored, replace(env, files=anchored)


def _create(layout: Layout, kind: type[Engine[Any, Any]], options: Mapping[str, Any], settings: Settings,
            env: Env) -> None:
    """Make an empty store. It is one from the moment that `CURRENT` names its generation."""
    files = env.files
    layout.clear()  # the rests of a creation that was cut off, as `is_empty` has made sure
    need_room(files, layout)
    now = env.clock.now_us()
    store_id, branch_id = env.randomness.token(16), env.randomness.token(16)
    start = origin(store_id)
    generation = layout.generation(1)
    files.make_directory(generation.state)
    kind.create(generation.state, start, Context(env, options, store_id=store_id))
    history = History(store_id, (Branch(branch_id, start),))
    # No commit was earlier, so a restore to a time before it is one to before the store was.
    log = Log.create(generation.log, history, start, engine=kind.name, last_time_us=now, options=settings.log_options,
                     env=env)
    log.close()
    layout.write_identity(Identity(store_id, kind.name, now))
    layout.switch(generation)


def _unmake(layout: Layout, *, directory_too: bool) -> None:
    """Remove a store that could not be opened when it was made, or what there is of it. The caller holds its lock."""
    files, root = layout.files, layout.root
    # On a disk that fails, the next opening makes a store of what is left.
    with contextlib.suppress(OSError, DirectoryMoved):
        layout.clear()
        files.unlink(layout.lock_path)
        if directory_too:
            files.remove_directory(root)  # unless somebody else has come in here


def _identity(layout: Layout, kind: type[Engine[Any, Any]]) -> Identity:
    identity = layout.read_identity()
    if identity.engine != kind.name:
        raise WrongEngine(f"{layout.root} is a store of the {identity.engine} engine, not of {kind.name}")
    return identity


def _match(identity: Identity, log: Log) -> None:
    if log.history.store_id != identity.store_id:
        raise Damaged(f"the log is of store {log.history.store_id.hex()}, not of {identity.store_id.hex()}",
                      path=str(log.directory))


def _durable_end(manifest: Manifest | None, engine: Engine[Any, Any] | None = None) -> Position | None:
    """What is known, from outside of the log, to be durable in it: where the state is; in a backup, what its runs have
    noted, which lies after that."""
    if manifest is not None and manifest.promoted_us is None:
        return manifest.noted_end
    return None if engine is None else engine.position


def _need_replay(manifest: Manifest, log: Log) -> None:
    if log.chain_at(manifest.image_position.txid) != manifest.image_position.chain:
        raise Damaged(f"the image is of another history than the log at transaction {manifest.image_position.txid}",
                      path=str(log.directory))
    if log.end.txid < manifest.consistent_from.txid:
        raise Damaged(f"the log ends at transaction {log.end.txid}, and this image counts only from "
                      f"{manifest.consistent_from.txid}", path=str(log.directory))


def _promote(generation: Generation, manifest: Manifest, kind: type[Engine[Any, Any]], context: Context) -> Manifest:
    """Write into the manifest of a backup that it is one no more, durably. This comes before the state is opened for
    writing, since many a library changes its files at once; and after it was opened read-only, so that an option that
    is wrong costs nobody a backup."""
    log = Log.open(generation.log, engine_position=_durable_end(manifest), read_only=True, env=context.env)
    _need_replay(manifest, log)
    kind.open(generation.state, context, read_only=True, at=manifest.image_position).close()
    manifest = manifest.promote(context.env.clock.now_us(), context.env.randomness.token(16))
    manifest.write(context.env.files, generation)
    return manifest


def _begin_branch(manifest: Manifest, log: Log) -> None:
    """Continue the log of what was a backup on a branch of its own, durably, unless that is done already."""
    if not manifest.settled:
        _need_replay(manifest, log)
    assert manifest.promoted_branch is not None
    if all(branch.id != manifest.promoted_branch for branch in log.history.branches):
        log.writer.extend_history(log.history.extended(manifest.promoted_branch, log.end))


def replay(engine: Engine[Any, Any], log: Log, cursor: Cursor, upto: int, soft_bytes: int) -> int:
    """Apply the log's records from the cursor up to `upto`, with checkpoints on the way where much is pending.

    Raises:
        UnsupportedFormat: a payload version that the engine does not read.
        Damaged, DiskFull.
    """
    batch: list[Record] = []
    count, size, reads = 0, 0, engine.reads_payloads
    for record in cursor.read(upto):
        if record.payload_version not in reads:
            raise UnsupportedFormat(f"transaction {record.txid} has payload version {record.payload_version}; "
                                    f"this {engine.name} engine reads {sorted(reads)}")
        count += 1
        if record.attachment is not None:
            if batch:
                engine.apply(batch)
                batch, size = [], 0
            if not isinstance(engine, BulkEngine):
                raise UnsupportedFormat(f"transaction {record.txid} is a bulk load, which {engine.name} does not take")
            path = log.attachment_path(record.attachment.name)
            verify_attachment(log.files, path, record.attachment)
            engine.apply_bulk(record, path)
            continue
        batch.append(record)
        size += len(record.payload)
        if len(batch) >= REPLAY_RECORDS or size >= REPLAY_BYTES:
            engine.apply(batch)
            if engine.pending_bytes() >= soft_bytes:
                engine.checkpoint(batch[-1].position)
            batch, size = [], 0
    if batch:
        engine.apply(batch)
    return count


def open_to_read(root: Path, kind: type[Engine[Any, Any]], *, options: Mapping[str, Any], settings: Settings,
                 env: Env) -> Opened:
    """Open without changing a byte in `root`: replay into memory where the engine can and the log is small, into a
    scratch copy elsewhere otherwise."""
    layout = Layout(root, env.files)
    if not layout.is_store():
        raise StoreNotFound(f"no store in {root}")

    def look() -> Opened:
        try:
            still = env.files.lock_shared(layout.lock_path)
        except StoreLocked:
            manifest = Manifest.read(env.files, layout.current())
            if manifest is not None and manifest.promoted_us is None:
                raise  # a backup is written to by runs, which look for no readers, and no reader may write into it
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
    """Look at a directory that may be written meanwhile. A segment that is pruned, sealed or half-written between two
    of our looks seems damaged or gone, and does not when looked at again. Raises what the last look raises."""
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
    anchored, env = _anchor(layout, env)
    try:
        return _open_held(layout, anchored, kind, options, settings, env, shared=shared)
    except BaseException:
        anchored.let_go()
        raise


def _open_held(layout: Layout, anchored: AnchoredFiles, kind: type[Engine[Any, Any]], options: Mapping[str, Any],
               settings: Settings, env: Env, *, shared: bool) -> Opened:
    root = layout.root
    identity = _identity(layout, kind)
    generation = layout.current()
    for held in (generation.state, generation.log):
        anchored.hold_too(held)
    manifest = Manifest.read(env.files, generation)
    at = None if manifest is None or manifest.settled else manifest.image_position
    if shared and not kind.abilities.shared_readers:
        raise StoreLocked(f"{root} is open for writing, and the {kind.name} engine cannot be read meanwhile")
    log = Log.open(generation.log, engine_position=_durable_end(manifest), read_only=True,
                   options=settings.log_options, env=env)
    _match(identity, log)
    if manifest is not None and not manifest.settled:
        _need_replay(manifest, log)
    context = Context(env, options, shared=shared, store_id=identity.store_id)
    if kind.abilities.replays_in_memory:
        engine = kind.open(generation.state, context, read_only=True, at=at)
        try:
            # Again: what the engine holds by now is durable, and so is the log up to there.
            log = Log.open(generation.log, engine_position=_durable_end(manifest, engine), read_only=True,
                           options=settings.log_options, env=env)
            if not _replays_large(log, engine.position.txid):
                cursor = log.cursor(engine.position)
                replayed = replay(engine, log, cursor, log.end.txid, 1 << 62)
                return Opened(layout, generation, engine, log, cursor, None, replayed, anchored, env)
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
            log = Log.open(generation.log, engine_position=_durable_end(manifest, engine), read_only=True,
                           options=settings.log_options, env=env)
            cursor = log.cursor(engine.position)
            replayed = replay(engine, log, cursor, log.end.txid, settings.checkpoint_soft_bytes)
        except BaseException:
            engine.close()
            raise
    except BaseException:
        directory.cleanup()
        raise
    return Opened(layout, generation, engine, log, cursor, None, replayed, anchored, env, directory)


def follow(opened: Opened, env: Env) -> int:
    """Bring a store that was opened read-only to the durable end that its log has by now; how many transactions were
    applied. Costs what is new.

    Raises:
        LogPruned: what comes next is no longer in the log.
        Unsupported: what comes next is a bulk load, or the directory has another generation.
        Diverged, Damaged: as `Log.look`.
    """
    if opened.layout.current() != opened.generation:
        raise Unsupported(f"{opened.layout.root} has a new generation", hint="open it again")
    log, cursor = opened.log, opened.cursor
    steadily(opened.layout, env, log.look)
    if _replays_large(log, cursor.txid):
        raise Unsupported("a bulk load, or more log than fits in memory, came since", hint="open it again")
    opened.half_way = True
    replayed = replay(opened.engine, log, cursor, log.end.txid, 1 << 62)
    if opened.reader is not None and replayed:
        opened.reader.advance(log.last_base)
    return replayed


def _is_written(layout: Layout) -> bool:
    """Whether somebody holds the directory's lock."""
    try:
        return layout.files.is_locked(layout.lock_path)
    except LocksUnsupported:
        return False  # so nobody can be open for writing here


def _replays_large(log: Log, after: int) -> bool:
    return log.size_after(after) > REPLAY_IN_MEMORY or bool(log.attached(after))


def copy_tree(files: Files, source: Path, target: Path) -> None:
    """Copy the files below `source` to a new directory `target`. Raises `DiskFull`."""
    files.make_directory(target)
    for name in files.list(source):
        if files.is_directory(source / name):
            copy_tree(files, source / name, target / name)
        else:
            files.copy_file(source / name, target / name)
