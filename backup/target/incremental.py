"""An incremental backup: the source's log after the target's end, appended.

The target's log is valid at every moment. If a run dies, what was synced stays, and the next run continues after it.
A log that has outgrown the image is compacted (`compact.py`).

An engine takes longer to load than a small incremental takes. So it is loaded only if its versions must be compared:
if the source has a state format or a payload version that no engine here has read yet, or if the caller gives it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import replace

from ...engine.errors import Damaged, DiskFull, SettingError
from ...engine.source.interface import SourceInfo, compare
from ...replay.copy import kept_alive
from ...replay.roll import fetch
from ..engines import compare_versions, engine_named
from ..manifest import Manifest, with_run
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
    reads: Collection[int] | None = _Reads(job, manifest)
    if job.engine is not None or not _was_read(job.info, manifest):
        engine = job.at_hand(manifest.engine)
        reads = None if engine is None else engine.reads_payloads
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
                                reads=reads, chunk_bytes=limits.chunk_bytes,
                                batch_records=limits.batch_records, progress=job.progress)
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


def _was_read(info: SourceInfo, manifest: Manifest) -> bool:
    """Whether an engine here has read a state and transactions of the versions that the source has now. It has if the
    last full backup was verified: the versions that came since were compared when they came."""
    whole = next((run for run in reversed(manifest.runs) if run["kind"] == "full"), None)
    return (whole is not None and whole["verified"] and info.state_format == manifest.state_format
            and info.payload_version in manifest.payloads)


class _Reads(Collection[int]):
    """The payload versions that can be read: those that the backup holds. If another one comes, the engine is loaded,
    and then those that it reads; all, if it is not installed."""

    def __init__(self, job: Job, manifest: Manifest) -> None:
        self._job, self._manifest = job, manifest
        self._known, self._all, self._asked = set(manifest.payloads), False, False

    def __contains__(self, version: object) -> bool:
        if version not in self._known and not self._asked:
            self._asked = True
            engine = self._job.at_hand(self._manifest.engine)
            self._all = engine is None
            self._known = set() if engine is None else set(engine.reads_payloads)
        return self._all or version in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@contextlib.contextmanager
def _offering_a_full() -> Iterator[None]:
    """In the block, damage means damage to the target, and nothing has been changed yet: the hint offers a full one."""
    try:
        yield
    except Damaged as error:
        error.hint = ("no log was added to this backup; take a full one (full=True, --full), which becomes a new "
                      "generation, and check what can still be restored")
        raise
