"""An incremental backup, and the compaction of a target's log into its image.

An incremental appends the source's log after the target's end. It is valid log at every moment: a run that dies leaves
what was synced, and the next goes on after it.

When the log has outgrown the image, replaying it makes restores slow, so it is *compacted*, as far as it is older than
the
restore points to be kept: image and log up to there are rolled into a scratch copy, which is checked, and whose image
becomes a new generation with the segments of log that come after. The old generation stays in force until the new one
is whole. The price: restore points before the compaction are gone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from ..engine.env import Env
from ..engine.errors import Damaged, DirectoryMoved, DiskFull, SettingError
from ..engine.model.positions import Position
from ..engine.source.interface import CHUNK_BYTES, compare
from ..engine.store.layout import Generation
from ..engine.wal.log import Log
from ..replay.copy import kept_alive
from ..replay.files import copy_durably, copy_files, link_or_copy
from ..replay.roll import fetch
from .full import Job
from .kept import NONE, needed, sweep, whole
from .look import look
from .manifest import Manifest
from .report import Bounds, Report
from .scratch import check, rolled
from .target import (
    LOG,
    AnyEngine,
    bounds_of,
    bring_into_force,
    compare_versions,
    engine_named,
    image_bytes,
    open_log,
    partials,
    payload_versions,
    tree_bytes,
    with_run,
)

logger = logging.getLogger("holdfast.backup")

COMPACT_FLOOR_BYTES = 64 << 20
"""A log smaller than this is never compacted."""


def take_incremental(job: Job, generation: Generation, manifest: Manifest) -> Report:
    """Append what the source has published since.

    Raises:
        ForeignStore, OtherBranch, AheadOfSource, Diverged, LogPruned: nothing was changed.
        Damaged: of the target, or what the source sent.
        DiskFull, LeaseExpired, SourceUnavailable: what came stays, and the next run goes on after it.
    """
    env, source = job.env, job.source
    engine = job.at_hand(manifest.engine)
    if engine is not None:
        compare_versions(engine, manifest.state_format, payload_versions(manifest), f"the backup in {job.layout.root}")
    looks = manifest.runs[-1].get("looks", 0) + 1 if manifest.runs else 1
    with _offering_a_full(), open_log(generation, manifest, read_only=True, env=env) as log:
        compare(job.info, log.history, log.end, accept_branch=job.accept_branch)
        before = whole(job.layout, manifest, bounds_of(manifest, log))
        look(generation, manifest, log, env, number=looks, every=job.check == "all")
        end = log.end
    grant = source.lease(job.owner, image=False, after=end, ttl=job.lease_ttl)
    try:
        with kept_alive(source, grant, env.scheduler):
            info = job.ask_again(grant)
            with open_log(generation, manifest, read_only=False, env=env) as log:
                compare(info, log.history, log.end, accept_branch=job.accept_branch)  # recovery may have found more
                began = log.end.txid
                upto = max(info.published, log.end, key=lambda p: p.txid)
                fetched = fetch(source, grant.id, log, upto, info.history,
                                reads=None if engine is None else engine.reads_payloads, progress=job.progress)
                end, branch = log.end, log.history.branch.id
            run = {"kind": "incremental", "why": "", "source": job.origin, "started_us": job.started_us,
                   "ended_us": env.clock.now_us(), "from": began, "to": end.txid, "end": list(end),
                   "complete_until_us": info.complete_until_us, "log_bytes": fetched.bytes,
                   "transactions": fetched.records, "payloads": sorted(fetched.payloads),
                   "looks": looks}
            manifest = replace(manifest, runs=with_run(manifest, run), older=needed(manifest.older, job.cutoff_us))
            bounds = bounds_of(manifest, log)
            manifest.write(env.files, generation)
            job.register(manifest, end)
    finally:
        job.release(grant.id)
    compacted = False
    if job.compact is not None and _outgrown(job, generation, manifest, job.compact):
        try:
            if made := compact(job, generation, manifest, engine_named(manifest.engine, job.engine)):
                manifest, bounds = made
                compacted = True
        except (DiskFull, SettingError) as error:
            logger.warning("%s was not compacted: %s", job.layout.root, error)
            job.notes.append(f"the log has outgrown the image and could not be compacted into it: {error.message}")
    sweep(job.layout, manifest)
    return job.report("incremental", "", manifest, bounds, branch, fetched, from_txid=began, compacted=compacted,
                      before=before)


@contextlib.contextmanager
def _offering_a_full() -> Iterator[None]:
    """What is damaged in the block is the target; no byte of it has been changed."""
    try:
        yield
    except Damaged as error:
        error.hint = ("no log was added to this backup; take a full one (full=True, --full), which becomes a new "
                      "generation, and check what can still be restored")
        raise


def _outgrown(job: Job, generation: Generation, manifest: Manifest, share: float) -> bool:
    return tree_bytes(generation.log, job.layout.files) > _much(manifest, share)


def _much(manifest: Manifest, share: float) -> float:
    return max(share * image_bytes(manifest.files), COMPACT_FLOOR_BYTES)


def _compact_point(job: Job, manifest: Manifest, log: Log) -> Position | None:
    """How far the log can be compacted: to its end, if no points are to be kept, or to the end of the last segment that
    is older than those. None if that is not worth it."""
    if job.cutoff_us == NONE:
        return log.end
    point, size = None, 0
    for end, last_time_us, taken in log.ends():
        if last_time_us >= job.cutoff_us:
            break
        size += taken
        if end.txid >= manifest.consistent_from.txid and size > _much(manifest, job.compact or 0.0):
            point = end
    return point


def compact(job: Job, generation: Generation, manifest: Manifest, engine: AnyEngine) -> tuple[Manifest, Bounds] | None:
    """Roll image and log into a new generation and bring it into force; its manifest, and what it restores to. The
    caller holds the lock. None if too little is old enough.

    Raises:
        DiskFull, Inconsistent, Damaged: the old generation is as it was, and in force.
    """
    files, env = job.layout.files, job.env
    for rubbish in partials(job.layout):
        files.remove_tree(rubbish.path)
    fresh = job.layout.next_generation()
    place = Generation(fresh.path.with_name(f"{fresh.name}.partial"))
    started_us = env.clock.now_us()
    try:
        with open_log(generation, manifest, read_only=True, env=env) as log:
            point = _compact_point(job, manifest, log)
            if point is None:
                return None
            files.make_directory(place.path)
            with rolled(generation, manifest, log, engine=engine, options=job.options, scratch=place.path / "work",
                        env=env, progress=job.progress, in_memory=False, upto=point.txid) as opened:
                check(opened, "the backup, replayed to be compacted,")
                image = opened.image()
                try:
                    copied = copy_files(image.read, image.files, place.state, env=env, progress=job.progress,
                                        stage="fold")
                    position = image.position
                finally:
                    image.close()
            if position != point:
                raise Damaged(f"the compacted image is of {position}, and should be of {point}", path=str(place.path))
            _carry_log(log, place, position, env)
            run = {"kind": "fold", "why": "", "source": "", "started_us": started_us, "ended_us": env.clock.now_us(),
                   "from": manifest.image_position.txid, "to": position.txid, "end": list(log.end),
                   "complete_until_us": bounds_of(manifest, log).complete_until_us, "image_bytes": image_bytes(copied)}
            compacted = replace(manifest, history=log.history, state_format=engine.state_format,
                                image_position=position, consistent_from=position, moving=False,
                                chunk_bytes=CHUNK_BYTES, files=copied, created_us=env.clock.now_us(),
                                runs=with_run(manifest, run))
        with open_log(place, compacted, read_only=True, env=env) as log:
            bounds = bounds_of(compacted, log)
        compacted.write(files, place)
    except Exception:
        with contextlib.suppress(OSError, DirectoryMoved):
            files.remove_tree(place.path)
        raise
    bring_into_force(job.layout, place)
    return compacted, bounds


def _carry_log(log: Log, place: Generation, after: Position, env: Env) -> None:
    """The log after a position, which is its end or that of a segment, in a generation of its own. Sealed segments are
    the same files; the last one, which is gone on with, is a copy."""
    files = env.files
    if after == log.end:
        Log.create(place.log, log.history, after, engine=log.engine, epoch=log.epoch, last_time_us=log.complete_us,
                   options=LOG, env=env).close()
        return
    files.make_directory(place.log)
    paths = [segment.path for segment in log.segments() if segment.first > after.txid]
    for path in paths[:-1]:
        link_or_copy(files, path, place.log / path.name)
    copy_durably(files, paths[-1], place.log / paths[-1].name)
    files.sync_directory(place.log)
    names = log.attachments_after(after.txid)
    if names:
        files.make_directory(place.log / "attachments")
        for name in names:
            link_or_copy(files, log.attachment_path(name), place.log / "attachments" / name)
        files.sync_directory(place.log / "attachments")
