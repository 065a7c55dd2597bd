"""An incremental backup, and the folding of a target's log into its image.

An incremental appends the source's log after the target's end. It is valid log at every moment: a run that dies leaves
what was synced, and the next goes on after it.

When the log has outgrown the image, replaying it makes restores slow, so it is *folded*: image and log are rolled into
a scratch copy, which is checked, and whose image becomes a new generation with an empty log. The old generation stays
in force until the new one is whole. The price: restore points before the fold are gone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from ..engine.directory import Generation, Manifest
from ..engine.errors import Damaged, DiskFull, SettingError
from ..engine.log.log import Log
from ..engine.source.base import CHUNK_BYTES, compare
from ..replay.copy import kept_alive
from ..replay.files import copy_files
from ..replay.roll import fetch
from .full import Job
from .look import look
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

FOLD_FLOOR_BYTES = 64 << 20
"""A log smaller than this is never folded."""


def take_incremental(job: Job, generation: Generation, manifest: Manifest) -> Report:
    """Append what the source has published since.

    Raises:
        ForeignStore, OtherBranch, AheadOfSource, Diverged, LogPruned: nothing was changed.
        Damaged: of the target, or what the source sent.
        DiskFull, LeaseExpired, SourceUnavailable: what came stays, and the next run goes on after it.
    """
    seams, source = job.seams, job.source
    engine = job.at_hand(manifest.engine)
    if engine is not None:
        compare_versions(engine, manifest.state_format, payload_versions(manifest), f"the backup in {job.layout.root}")
    looks = manifest.runs[-1].get("looks", 0) + 1 if manifest.runs else 1
    with _offering_a_full(), open_log(generation, manifest, read_only=True, seams=seams) as log:
        compare(job.info, log.history, log.end, accept_branch=job.accept_branch)
        look(generation, manifest, log, seams.files, number=looks, every=job.check == "all")
        end = log.end
    grant = source.lease(job.owner, image=False, after=end, ttl=job.lease_ttl)
    try:
        with kept_alive(source, grant, seams.scheduler):
            info = job.ask_again(grant)
            with open_log(generation, manifest, read_only=False, seams=seams) as log:
                compare(info, log.history, log.end, accept_branch=job.accept_branch)  # recovery may have found more
                began = log.end.txid
                upto = max(info.published, log.end, key=lambda p: p.txid)
                fetched = fetch(source, grant.id, log, upto, info.history,
                                reads=None if engine is None else engine.reads_payloads, progress=job.progress)
                end, branch = log.end, log.history.branch.id
            run = {"kind": "incremental", "why": "", "source": job.origin, "started_us": job.started_us,
                   "ended_us": seams.clock.now_us(), "from": began, "to": end.txid, "end": list(end),
                   "complete_until_us": info.complete_until_us, "log_bytes": fetched.bytes,
                   "transactions": fetched.records, "payloads": sorted(fetched.payloads),
                   "looks": looks}
            manifest = replace(manifest, runs=with_run(manifest, run))
            bounds = bounds_of(manifest, log)
            manifest.write(seams.files, generation)
            job.register(manifest, end)
    finally:
        job.release(grant.id)
    folded = False
    if job.fold is not None and _outgrown(job, generation, manifest, job.fold):
        try:
            generation, manifest, bounds = fold(job, generation, manifest, engine_named(manifest.engine, job.engine))
            folded = True
        except (DiskFull, SettingError) as error:
            logger.warning("%s was not folded: %s", job.layout.root, error)
            job.notes.append(f"the log has outgrown the image and could not be folded into it: {error.message}")
    job.layout.sweep()
    return job.report("incremental", "", manifest, bounds, branch, fetched, from_txid=began, folded=folded)


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
    log = tree_bytes(generation.log, job.layout.files)
    return log > max(share * image_bytes(manifest.files), FOLD_FLOOR_BYTES)


def fold(job: Job, generation: Generation, manifest: Manifest,
         engine: AnyEngine) -> tuple[Generation, Manifest, Bounds]:
    """Roll image and log into a new generation and bring it into force; what that restores to. The caller holds the
    lock.

    Raises:
        DiskFull, Inconsistent, Damaged: the old generation is as it was, and in force.
    """
    files, seams = job.layout.files, job.seams
    for rubbish in partials(job.layout):
        files.remove_tree(rubbish.path)
    fresh = job.layout.next_generation()
    place = Generation(fresh.path.with_name(f"{fresh.name}.partial"))
    started_us = seams.clock.now_us()
    try:
        with open_log(generation, manifest, read_only=True, seams=seams) as log:
            files.make_directory(place.path)
            with rolled(generation, manifest, log, engine=engine, options=job.options, scratch=place.path / "work",
                        seams=seams, progress=job.progress, in_memory=False) as opened:
                check(opened, "the backup, replayed to be folded,")
                image = opened.image()
                try:
                    copied = copy_files(image.read, image.files, place.state, seams=seams, progress=job.progress,
                                        stage="fold")
                    position = image.position
                finally:
                    image.close()
            if position != log.end:
                raise Damaged(f"the folded image is of {position}, and should be of {log.end}", path=str(place.path))
            fresh_log = Log.create(place.log, log.history, position, engine=manifest.engine, epoch=log.epoch,
                                   last_time_us=log.last_time_us, options=LOG, seams=seams)
            fresh_log.close()
            run = {"kind": "fold", "why": "", "source": "", "started_us": started_us, "ended_us": seams.clock.now_us(),
                   "from": manifest.p0.txid, "to": position.txid, "end": list(position),
                   "complete_until_us": bounds_of(manifest, log).complete_until_us, "image_bytes": image_bytes(copied)}
            folded = replace(manifest, history=log.history, state_format=engine.state_format, p0=position, p1=position,
                             moving=False, chunk_bytes=CHUNK_BYTES, files=copied, created_us=seams.clock.now_us(),
                             runs=with_run(manifest, run))
        folded.write(files, place)
    except Exception:
        with contextlib.suppress(OSError):
            files.remove_tree(place.path)
        raise
    return bring_into_force(job.layout, place), folded, bounds_of(folded, fresh_log)


