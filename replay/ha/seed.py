"""Making the store of a member from another member's: the same store, branch and log, unlike a restore.

The image is copied under a lease, then the log from the image's position up to what was published when the copy was
confirmed, and the state is rolled to there. All of that is in a generation beside the one in force, if there is one,
which stays open for readers meanwhile. One rename and one write bring it into force. Before that, a crash leaves the
directory as it was, and the next attempt resumes the copy of the image if the lease still holds. Once the state is
being rolled it is not the image any more, so the next attempt begins anew. An opening of the directory sweeps whatever
is not in force.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Context, Engine
from ...engine.env import Env
from ...engine.env.shown import shown
from ...engine.errors import (
    Damaged,
    DirectoryMoved,
    Diverged,
    ForeignStore,
    HoldfastError,
    LeaseExpired,
    LogPruned,
    SourceRestarted,
    SourceUnavailable,
    StoreNotFound,
    TooManyLeases,
    WrongEngine,
)
from ...engine.model.positions import ID_BYTES, Position
from ...engine.source.interface import Source, SourceInfo
from ...engine.store.layout import MEMBER, Generation, Identity, Layout, bring_into_force
from ...engine.store.settings import Settings
from ...engine.wal.log import Log
from ...engine.wal.segment import holds_records
from ..copy import CopyState, begin, copy_image, kept_alive
from ..files import Progress, silent
from ..roll import fetch, history_at, roll
from .errors import MemberRefused

LEASE_S = 300.0
"""How long a copy that died can be resumed."""
PASSING = (SourceUnavailable, LeaseExpired, TooManyLeases, LogPruned, Damaged)
"""Errors of an attempt after which another one may succeed, at this source or another."""


def seed(source: Source, directory: Path, engine: type[Engine[Any, Any]], *, store_id: bytes,
         epoch_at: Callable[[Position], int], options: Mapping[str, Any] | None, settings: Settings, env: Env,
         progress: Progress = silent) -> Callable[[], None]:
    """Copy a store beside what is in `directory`. Returns what brings the copy into force; call it when nothing there
    is open. Slow: O(image and log).

    Args:
        source: the backup source of the member to copy.
        directory: of the member to be made. The caller keeps others out of it.
        engine, options, settings, env: as for `Store.open`.
        store_id: of the cluster.
        epoch_at: the epoch of the record at a position of the source's log.
        progress: called in this thread with (stage, done, total). If it raises `SourceUnavailable`, what was copied
            stays for the next attempt.

    Raises:
        MemberRefused: the directory holds what is not a member's; nothing was written.
        ForeignStore, WrongEngine: the source or the directory is of another store or engine; nothing was written.
        Any of `PASSING`, DiskFull: try again.
        Diverged: the source's log contradicts what it confirmed.
    """
    layout, files = Layout(directory, env.files), env.files
    _check_directory(layout, store_id)
    info = source.info()
    if info.history.store_id != store_id:
        raise ForeignStore(f"the member to copy has store {info.history.store_id.hex()}, and the cluster has "
                           f"{store_id.hex()}")
    if info.engine != engine.name:
        raise WrongEngine(f"the cluster's engine is {info.engine}, and this member was opened with {engine.name}")
    files.make_directory(layout.root)
    place = _place(layout)
    state = begin(source, place.path, "a new member", env.randomness.token(ID_BYTES), env=env, ttl=LEASE_S)
    grant = state.grant
    try:
        with kept_alive(source, grant, env.scheduler):
            copy_image(source, state, place.path, env=env, progress=progress)
            _bring_log(source, state, place, info, engine, epoch_at, options or {}, settings, env, progress)
    except BaseException as error:
        if not isinstance(error, SourceUnavailable) or isinstance(error, SourceRestarted):  # else it may be resumed
            with contextlib.suppress(HoldfastError):
                source.release(grant.id)
            with contextlib.suppress(OSError, DirectoryMoved):
                files.remove_tree(place.path)
        raise
    with contextlib.suppress(HoldfastError):
        source.release(grant.id)

    def into_force() -> None:
        if not layout.is_store():
            layout.write_identity(Identity(store_id, engine.name, env.clock.now_us()))
        generation = bring_into_force(layout, place)
        files.unlink(generation.path / "COPY", missing_ok=True)

    return into_force


def _check_directory(layout: Layout, store_id: bytes) -> None:
    """Raise `ForeignStore` or `MemberRefused` unless the directory holds nothing, a store with this id, or what an
    earlier attempt left."""
    files, root = layout.files, layout.root
    if not files.is_directory(root):
        if files.exists(root):
            raise MemberRefused(f"{root} is a file", hint="join with an empty directory")
        return
    try:
        held = layout.read_identity().store_id
    except StoreNotFound:
        pass
    except Damaged as error:
        raise MemberRefused(f"{root} holds part of a store: {error.message}",
                            hint="join with an empty directory") from error
    else:
        if held != store_id:
            raise ForeignStore(f"{root} holds store {held.hex()}, and the cluster has {store_id.hex()}",
                               hint="join with an empty directory")
    if layout.is_store():
        return
    foreign = [name for name in layout.foreign() if name != MEMBER]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise MemberRefused(f"{root} holds {shown(foreign[0])}{more}, which is not a member's",
                            hint="join with an empty directory")
    for generation in layout.generations():  # a seeding that was cut off just before the end has left its `COPY` there
        if holds_records(files, generation.log) and CopyState.read(files, generation.path) is None:
            raise MemberRefused(f"{generation.path} holds the log of a store whose CURRENT is gone",
                                hint="keep it if it holds what the cluster lacks, and join with an empty directory")


def _place(layout: Layout) -> Generation:
    """The half-made generation of an earlier attempt if it can be resumed, or a new one. Others are removed."""
    files, found = layout.files, None
    for partial in layout.generations(partial=True):
        if found is None and CopyState.read(files, partial.path) is not None:
            found = partial
        else:
            files.remove_tree(partial.path)
    fresh = layout.next_generation()
    return found or Generation(fresh.path.with_name(f"{fresh.name}.partial"))


def _bring_log(source: Source, state: CopyState, place: Generation, info: SourceInfo, engine: type[Engine[Any, Any]],
               epoch_at: Callable[[Position], int], options: Mapping[str, Any], settings: Settings, env: Env,
               progress: Progress) -> None:
    """Fetch the log after the image up to where the copy is consistent, and roll the state to there, durably."""
    grant = state.grant
    confirmed = source.confirm(grant.id)
    upto = confirmed.published
    env.files.remove_tree(place.log)
    log = Log.create(place.log, history_at(info.history, grant.position), grant.position, engine=engine.name,
                     epoch=epoch_at(grant.position), last_time_us=grant.time_us, options=settings.log_options, env=env)
    try:
        fetch(source, grant.id, log, upto, source.info().history, reads=engine.reads_payloads, progress=progress)
        begins = confirmed.consistent_from if grant.moving else grant.position
        if log.chain_at(begins.txid) != begins.chain:
            raise Diverged(f"the source confirmed the copy at {begins}, and its log has another transaction there")
        # From here on the files are not the image's, so no later attempt may resume their copy: no source has this
        # instance. The document itself stays until the generation is in force.
        CopyState(replace(grant, instance=""), state.target_id, state.chunk_bytes).write(env.files, place.path)
        opened = engine.open(place.state, Context(env, options, store_id=info.history.store_id), at=grant.position)
        try:
            roll(opened, log, upto.txid, durable=True, progress=progress)
        finally:
            opened.close()
        log.close()
    except BaseException:
        log.abandon()
        raise
    for path in (place.state, place.log, place.path):
        env.files.sync_directory(path)
