"""Making the store of a member from another member's: the same store, branch and log, unlike a restore.

The image is copied under a lease, then the log from the image's position up to where the copy is consistent, and the
state is rolled to there. All of that is in a generation beside the one in force, if there is one, which stays open for
readers meanwhile. One rename and one write bring it into force. Before that, a crash leaves the directory as it was,
and the next attempt resumes the copy if the lease still holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Context, Engine
from ...engine.env import Env
from ...engine.errors import DirectoryMoved, ForeignStore, HoldfastError, SourceUnavailable, WrongEngine
from ...engine.model.positions import ID_BYTES, Position
from ...engine.source.interface import Source, SourceInfo
from ...engine.store.layout import Generation, Identity, Layout, bring_into_force
from ...engine.store.settings import Settings
from ...engine.wal.log import Log
from ..copy import CopyState, begin, copy_image, kept_alive
from ..files import Progress, silent
from ..roll import fetch, history_at, roll

LEASE_S = 300.0
"""How long a copy that died can be resumed."""


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
        progress: called in this thread with (stage, done, total).

    Raises:
        ForeignStore, WrongEngine: the source is of another store or engine; nothing was written.
        SourceUnavailable, LeaseExpired, Damaged, DiskFull: try again.
    """
    layout, files, info = Layout(directory, env.files), env.files, source.info()
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
            files.unlink(place.path / "COPY", missing_ok=True)
    except BaseException as error:
        if not isinstance(error, SourceUnavailable):  # then the next attempt may resume
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
        bring_into_force(layout, place)

    return into_force


def _place(layout: Layout) -> Generation:
    """The half-made generation of an earlier attempt if it can be resumed, or a new one. Others are removed."""
    files, found = layout.files, None
    for name in files.list(layout.root):
        if not name.endswith(".partial"):
            continue
        partial = Generation(layout.root / name)
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
    upto = source.confirm(grant.id).published
    env.files.remove_tree(place.log)
    log = Log.create(place.log, history_at(info.history, grant.position), grant.position, engine=engine.name,
                     epoch=epoch_at(grant.position), last_time_us=grant.time_us, options=settings.log_options, env=env)
    try:
        fetch(source, grant.id, log, upto, source.info().history, reads=engine.reads_payloads, progress=progress)
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
