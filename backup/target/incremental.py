"""An incremental backup: the source's log after the target's end, appended.

The target's log is valid at every moment. If a run dies, what was synced stays, and the next run continues after it.
A log that has outgrown the image is compacted (`compact.py`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from ...engine.errors import Damaged, DiskFull, SettingError
from ...engine.source.interface import compare
from ...replay.copy import kept_alive
from ...replay.roll import fetch
from ..engines import compare_versions, engine_named
from ..manifest import with_run
from ..report import Report
from ..retention import needed
from .compact import compact, outgrown
from .job import Job
from .target import Target

logger = logging.getLogger("holdfast.backup")


def take_incremental(job: Job, target: Target) -> Report:
    """Append what the source has published since.

    Raises:
        ForeignStore, OtherBranch, AheadOfSource, Diverged, LogPruned: nothing was changed.
        Damaged: the target is damaged, or what the source sent.
        DiskFull, LeaseExpired, SourceUnavailable: what came stays, and the next run continues after it.
    """
    env, source, manifest, limits = job.env, job.source, target.manifest, job.policy.limits
    engine = job.at_hand(manifest.engine)
    if engine is not None:
        compare_versions(engine, manifest.state_format, manifest.payloads, f"the backup in {job.layout.root}")
    looks = manifest.runs[-1].get("looks", 0) + 1 if manifest.runs else 1
    with _offering_a_full():
        end = target.log.end
        compare(job.info, target.log.history, end, accept_branch=job.accept_branch)
        before = target.whole(target.bounds())
        job.look(target, looks)
    grant = source.lease(job.owner, image=False, after=end, ttl=job.policy.lease_ttl)
    try:
        with kept_alive(source, grant, env.scheduler):
            info = job.ask_again(grant)
            with target.appending() as log:
                compare(info, log.history, log.end, accept_branch=job.accept_branch)  # recovery may have found more log
                began = log.end.txid
                upto = max(info.published, log.end, key=lambda p: p.txid)
                fetched = fetch(source, grant.id, log, upto, info.history,
                                reads=None if engine is None else engine.reads_payloads,
                                chunk_bytes=limits.chunk_bytes, batch_records=limits.batch_records,
                                progress=job.progress)
                end, branch = log.end, log.history.branch.id
            complete = info.complete_until_us
            if not fetched.records and manifest.runs:  # a member that lags may know less than the last one
                complete = max(complete, manifest.runs[-1]["complete_until_us"])
            run = {"kind": "incremental", "why": "", "source": job.origin, "started_us": job.started_us,
                   "ended_us": env.clock.now_us(), "from": began, "to": end.txid, "end": list(end),
                   "complete_until_us": complete, "log_bytes": fetched.bytes,
                   "transactions": fetched.records, "payloads": sorted(fetched.payloads),
                   "looks": looks}
            target.note(replace(manifest, runs=with_run(manifest.runs, run, limits.runs),
                                older=needed(manifest.older, job.cutoff_us)))
            job.register(target)
    finally:
        job.release(grant.id)
    bounds, compacted = target.bounds(), False
    if outgrown(target, job.policy):
        try:
            if made := compact(job, target, engine_named(manifest.engine, job.engine)):
                (target, bounds), compacted = made, True
        except (DiskFull, SettingError) as error:
            logger.warning("%s was not compacted: %s", job.layout.root, error)
            job.notes.append(f"the log has outgrown the image and could not be compacted into it: {error.message}")
    target.sweep()
    return job.report("incremental", target, bounds, branch, fetched, from_txid=began, before=before,
                      compacted=compacted)


@contextlib.contextmanager
def _offering_a_full() -> Iterator[None]:
    """In the block, damage means damage to the target, and nothing has been changed yet: the hint offers a full one."""
    try:
        yield
    except Damaged as error:
        error.hint = ("no log was added to this backup; take a full one (full=True, --full), which becomes a new "
                      "generation, and check what can still be restored")
        raise
