"""A full backup: image and log of a source as a new generation of the target.

It is made in `gen-N.partial`. The image is copied, and the source confirms it. The log is fetched from the image's
position up to what was published at the confirmation. So transactions that were committed during the copy are in the
backup. Image and log are replayed and checked in a scratch place. Only then does the generation get its manifest and
its name, and come into force. So an inconsistent copy never becomes the backup. What the target held before stays in
force until then. After that it is kept as an older generation, as long as its restore points are to be kept.

If the source goes away or the process dies, what is synced stays. The next run resumes it if the lease still holds.
Any other failure removes the half-made generation.
"""

from __future__ import annotations

import contextlib

from ...engine.errors import DirectoryMoved, Diverged, SourceRestarted, SourceUnavailable, StoreNotFound
from ...engine.model.positions import ID_BYTES
from ...engine.store.layout import Generation, Identity, Layout, bring_into_force
from ...engine.wal.log import Log
from ...replay.copy import CopyState, begin, copy_image, kept_alive
from ...replay.roll import Fetched, fetch, history_at
from ..directories import partials
from ..engines import AnyEngine, engine_named
from ..manifest import Manifest, with_run
from ..report import Report
from ..retention import Older, needed
from .job import Job
from .scratch import check, rolled
from .target import LOG, Target


def take_full(job: Job, before: Target | None, why: str) -> Report:
    """Make a new generation and bring it into force.

    Args:
        job: the run.
        before: the backup that the target holds, if any.
        why: why a full backup replaces it, for the report; empty if it holds none.

    Raises:
        Inconsistent: the copy was checked and found wrong; what was in force still is.
        DiskFull, Damaged, LeaseExpired, SourceUnavailable, SourceRestarted, TooManyLeases, SettingError.
    """
    files, env, source = job.layout.files, job.env, job.source
    at_hand = job.at_hand(job.info.engine)
    engine = engine_named(job.info.engine, job.engine) if job.policy.verify else None
    place = _place(job.layout)
    stood, older = (None, ()) if before is None else job.stand(before)
    past = None if before is None else before.manifest
    target_id = past.target_id if past else env.randomness.token(ID_BYTES)
    state = begin(source, place.path, job.owner, target_id, env=env, ttl=job.policy.lease_ttl,
                  chunk_bytes=job.policy.limits.chunk_bytes)
    grant = state.grant
    resumed = sum(min(f.size, len(state.digests.get(f.name, ())) * state.chunk_bytes) for f in grant.files)
    try:
        with kept_alive(source, grant, env.scheduler):
            job.ask_again(grant)  # fails early, before the bytes are copied
            target, fetched = _copy(job, place, state, past, older, why, at_hand)
            bounds = target.bounds()
            if engine is not None:
                with rolled(target, engine=engine, options=job.options, scratch=place.path / "work",
                            memory_log_bytes=job.policy.limits.memory_log_bytes, progress=job.progress) as opened:
                    check(opened, "the copy")
                target.manifest.runs[-1]["verified"] = True
            target.note(target.manifest)
            files.unlink(place.path / "COPY", missing_ok=True)
            _identify(job, target.manifest)
            target.generation = bring_into_force(job.layout, place)
            job.register(target)
    except Exception as error:
        if not isinstance(error, SourceUnavailable) or isinstance(error, SourceRestarted):
            job.release(grant.id)
            with contextlib.suppress(OSError, DirectoryMoved):
                files.remove_tree(place.path)
        raise
    job.release(grant.id)
    target.sweep()
    manifest = target.manifest
    return job.report("full", target, bounds, manifest.history.branch.id, fetched, from_txid=0, before=stood, why=why,
                      image_bytes=manifest.image_bytes, resumed_bytes=resumed, verified=engine is not None)


def _place(layout: Layout) -> Generation:
    """The half-made generation of an earlier run if it can be resumed, or a new one. Others are removed."""
    found: Generation | None = None
    for partial in partials(layout):
        if found is None and CopyState.read(layout.files, partial.path) is not None:
            found = partial
        else:
            layout.files.remove_tree(partial.path)
    if found is not None:
        layout.files.remove_tree(found.path / "work")
        return found
    fresh = layout.next_generation()
    return Generation(fresh.path.with_name(f"{fresh.name}.partial"))


def _copy(job: Job, place: Generation, state: CopyState, before: Manifest | None, older: Older, why: str,
          engine: AnyEngine | None) -> tuple[Target, Fetched]:
    """Copy image and log, whole and durable. The target that is returned has a manifest that is not written yet."""
    env, source, grant, limits = job.env, job.source, state.grant, job.policy.limits
    copied = copy_image(source, state, place.path, env=env, progress=job.progress)
    confirmed = source.confirm(grant.id)
    info = job.ask_again(grant)
    env.files.remove_tree(place.log)
    log = Log.create(place.log, history_at(info.history, grant.position), grant.position, engine=info.engine,
                     last_time_us=grant.time_us, options=LOG, env=env)
    try:
        fetched = fetch(source, grant.id, log, confirmed.published, info.history,
                        reads=None if engine is None else engine.reads_payloads, chunk_bytes=limits.chunk_bytes,
                        batch_records=limits.batch_records, progress=job.progress)
        end = log.end
        consistent_from = confirmed.consistent_from if grant.moving else grant.position
        if log.chain_at(consistent_from.txid) != consistent_from.chain:
            raise Diverged(f"the source confirmed the copy at {consistent_from}, and its log has another "
                           "transaction there")
        log.close()
    except BaseException:
        log.abandon()
        raise
    run = {"kind": "full", "why": why, "source": job.origin, "started_us": job.started_us,
           "ended_us": env.clock.now_us(), "from": 0, "to": end.txid, "end": list(end),
           "complete_until_us": confirmed.complete_until_us, "image_bytes": sum(file.size for file in copied),
           "log_bytes": fetched.bytes, "transactions": fetched.records, "verified": False,
           "payloads": sorted(fetched.payloads)}
    manifest = Manifest(
        target_id=before.target_id if before else state.target_id, history=info.history, engine=info.engine,
        state_format=info.state_format, image_position=grant.position, consistent_from=consistent_from,
        moving=grant.moving, chunk_bytes=state.chunk_bytes, files=copied, created_us=env.clock.now_us(),
        runs=with_run(before.runs if before else (), run, limits.runs),
        older=needed(older, job.cutoff_us))
    return Target(job.layout, place, manifest, env), fetched


def _identify(job: Job, manifest: Manifest) -> None:
    """Write the target's identity document, unless it is there already."""
    try:
        identity = job.layout.read_identity()
    except StoreNotFound:
        identity = None
    if identity is None or (identity.store_id, identity.engine) != (manifest.history.store_id, manifest.engine):
        job.layout.write_identity(Identity(manifest.history.store_id, manifest.engine, job.env.clock.now_us()))
