"""Compaction: the older log of a target is compacted into its image.

A log that has outgrown the image makes restores slow, since they replay it. Compaction takes the log that is older than
the restore points to be kept. Image and this log are rolled into a scratch copy, which is checked. Its image becomes a
new generation, together with the later segments of the log. The old generation stays in force until the new one is
whole. The price: restore points inside the compacted log are gone.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ...engine.env import Env
from ...engine.errors import Damaged, DirectoryMoved
from ...engine.model.positions import Position
from ...engine.store.layout import Generation, bring_into_force
from ...engine.wal.log import Log
from ...replay.files import copy_durably, copy_files, link_or_copy
from ...replay.roll import carry, history_at
from ..directories import partials, tree_bytes
from ..engines import AnyEngine
from ..manifest import Manifest, with_run
from ..policy import Policy
from ..report import Bounds
from ..retention import NONE
from .job import Job
from .scratch import check, rolled
from .target import LOG, Target


def outgrown(target: Target, policy: Policy) -> bool:
    """Whether a target's log is so large, compared with its image, that it should be compacted."""
    if policy.compact is None:
        return False
    return tree_bytes(target.generation.log, target.layout.files) > _much(target.manifest, policy)


def _much(manifest: Manifest, policy: Policy) -> float:
    return max((policy.compact or 0.0) * manifest.image_bytes, policy.compact_floor)


def _point(job: Job, target: Target) -> Position | None:
    """The position up to which the log can be compacted: its end if no points are to be kept, otherwise the end of the
    last segment that is older than all of them. None if that is not worth it."""
    if job.cutoff_us == NONE:
        return target.log.end
    point, size = None, 0
    for end, last_time_us, taken in target.log.ends():
        if last_time_us >= job.cutoff_us:
            break
        size += taken
        if (end.txid >= target.manifest.consistent_from.txid and size > _much(target.manifest, job.policy)
                and not next(target.log.read(end.txid - 1, end.txid)).is_kit):  # an image cannot be at a kit record
            point = end
    return point


def compact(job: Job, target: Target, engine: AnyEngine) -> tuple[Target, Bounds] | None:
    """Roll image and log into a new generation, and bring it into force. The caller holds the target's lock. Returns
    the new generation and what it restores to; None if too little log is old enough. O(image and log).

    Raises:
        DiskFull, Inconsistent, Damaged: the old generation is unchanged and in force.
    """
    files, env, manifest, log = job.layout.files, job.env, target.manifest, target.log
    limits = job.policy.limits
    for rubbish in partials(job.layout):
        files.remove_tree(rubbish.path)
    fresh = job.layout.next_generation()
    place = Generation(fresh.path.with_name(f"{fresh.name}.partial"))
    started_us = env.clock.now_us()
    try:
        point = _point(job, target)
        if point is None:
            return None
        files.make_directory(place.path)
        with rolled(target, engine=engine, options=job.options, scratch=place.path / "work", progress=job.progress,
                    memory_log_bytes=None, upto=point.txid) as opened:
            check(opened, "the backup, replayed to be compacted,")
            image = opened.image()
            try:
                copied = copy_files(image.read, image.files, place.state, env=env, chunk_bytes=limits.chunk_bytes,
                                    progress=job.progress, stage="compact")
                position = image.position
            finally:
                image.close()
        if position.txid > point.txid or any(not r.is_kit for r in log.read(position.txid, point.txid)):
            raise Damaged(f"the compacted image is of {position}, and should be of {point}", path=str(place.path))
        _carry_log(log, place, position, env, ends_there=point == log.end)
        run = {"kind": "fold", "why": "", "source": "", "started_us": started_us, "ended_us": env.clock.now_us(),
               "from": manifest.image_position.txid, "to": position.txid, "end": list(log.end),
               "complete_until_us": target.bounds().complete_until_us,
               "image_bytes": sum(file.size for file in copied)}
        made = Target(job.layout, place, replace(
            manifest, history=log.history, state_format=engine.state_format, image_position=position,
            consistent_from=position, moving=False, chunk_bytes=limits.chunk_bytes, files=copied,
            created_us=env.clock.now_us(), runs=with_run(manifest.runs, run, limits.runs)), env)
        bounds = made.bounds()  # reads the new log back, before the generation comes into force
        made.note(made.manifest)
    except Exception:
        with contextlib.suppress(OSError, DirectoryMoved):
            files.remove_tree(place.path)
        raise
    made.generation = bring_into_force(job.layout, place)
    return made, bounds


def _carry_log(log: Log, place: Generation, after: Position, env: Env, *, ends_there: bool) -> None:
    """Put the log after a position into a new generation. The position is a segment's end, or the log's end, or has
    only kit records after it. Sealed segments are linked. The last one is copied, since it will be appended to."""
    files = env.files
    if after == log.end:
        Log.create(place.log, log.history, after, engine=log.engine, epoch=log.epoch, last_time_us=log.complete_us,
                   options=LOG, env=env).close()
        return
    if ends_there:
        made = Log.create(place.log, history_at(log.history, after), after, engine=log.engine,
                          epoch=next(log.read(after.txid)).epoch, last_time_us=log.time_of(after.txid), options=LOG,
                          env=env)
        try:
            carry(log, made, log.end)
        except BaseException:
            made.abandon()
            raise
        made.close()
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
