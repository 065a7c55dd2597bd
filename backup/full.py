"""A full backup: image and log of a source as a new generation of the target.

It is made in `gen-N.partial`: image copied, confirmed by the source, log from its position to what was published at
that moment over it, and all of it replayed and checked elsewhere. Only then does it get its manifest and its name, and
comes into force; whatever the target held before stays in force until then, and as an older generation after that, as
long as its restore points are to be kept. So a transaction committed while the image was being
copied is in the backup, and one that is inconsistent never becomes the backup.

If the source goes away half-way, or the process dies, what is synced stays for the next run, which goes on under the
same lease if that still holds. Any other failure removes the half-made generation.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field, replace

from ..engine.env import Env
from ..engine.errors import (
    Damaged,
    DirectoryMoved,
    Diverged,
    HoldfastError,
    SourceRestarted,
    SourceUnavailable,
    StoreNotFound,
)
from ..engine.model.positions import ID_BYTES, Position
from ..engine.source.interface import CHUNK_BYTES, Grant, Source, SourceInfo
from ..engine.store.layout import Generation, Identity, Layout
from ..engine.wal.log import Log
from ..replay.copy import CopyState, begin, copy_image, kept_alive
from ..replay.files import Progress
from ..replay.roll import Fetched, fetch, history_at
from .kept import NONE, Older, gone, needed, older_one, sweep, whole
from .look import look
from .manifest import Manifest
from .report import Bounds, Report
from .scratch import check, rolled
from .target import (
    LOG,
    AnyEngine,
    Options,
    bounds_of,
    bring_into_force,
    compare_versions,
    engine_at_hand,
    engine_named,
    image_bytes,
    open_log,
    partials,
    with_run,
)

logger = logging.getLogger("holdfast.backup")


@dataclass(slots=True)
class Job:
    """One run: from where, to where, and how. `owner` names it to the source, `origin` names the source to people.
    `asked`: for a full backup. `damaged`: so the target was found."""

    source: Source
    info: SourceInfo
    layout: Layout
    env: Env
    owner: str
    origin: str
    verify: bool
    check: str
    accept_branch: bytes | None
    compact: float | None
    cutoff_us: int
    engine: AnyEngine | None
    options: Options
    registers: bool
    lease_ttl: float
    progress: Progress
    started_us: int
    started: float
    asked: bool = False
    damaged: bool = False
    notes: list[str] = field(default_factory=list)

    def at_hand(self, name: str) -> AnyEngine | None:
        """The engine, compared with the source's versions before the first byte; None where none is installed, which
        the report says.

        Raises:
            UpgradeRequired, UnsupportedFormat, WrongEngine.
        """
        engine = engine_at_hand(name, self.engine)
        if engine is None:
            self.notes.append(f"the {name} engine is not installed here, so its versions were not compared")
        else:
            compare_versions(engine, self.info.state_format, (self.info.payload_version,), "the source")
        return engine

    def ask_again(self, grant: Grant) -> SourceInfo:
        """Where the source stands now. Raises `SourceRestarted` where it is not the very opening of the store that this
        run asked first and that granted the lease: at the same address there may be another store by now."""
        info = self.source.info()
        if not self.info.instance == grant.instance == info.instance:
            raise SourceRestarted(f"the source of store {self.info.history.store_id.hex()} has been restarted, or "
                                  "another one has taken its place")
        return info

    def register(self, manifest: Manifest, end: Position) -> None:
        """Have the source keep its log for the next incremental. The backup is whole without it."""
        if not self.registers:
            return
        try:
            self.source.register(manifest.target_id.hex(), self.owner, end)
        except HoldfastError as error:
            logger.warning("the source was not told to keep its log for %s: %s", self.layout.root, error)
            self.notes.append(f"the source was not told to keep its log for the next incremental: {error.message}")

    def release(self, lease_id: str) -> None:
        """Give a lease back; one that cannot be given back expires."""
        with contextlib.suppress(HoldfastError):
            self.source.release(lease_id)

    def report(self, kind: str, why: str, manifest: Manifest, bounds: Bounds, branch: bytes, fetched: Fetched, *,
               from_txid: int, image: int = 0, resumed: int = 0, verified: bool = False,
               compacted: bool = False, before: Bounds | None = None) -> Report:
        whole_now = whole(self.layout, manifest, bounds)
        dropped = () if before is None else gone(before, whole_now)
        new_gap = before is not None and not set(whole_now.gaps) <= set(before.gaps)
        return Report(kind=kind, why=why, target=str(self.layout.root), target_id=manifest.target_id.hex(),
                      store_id=manifest.history.store_id.hex(), branch=branch.hex(), engine=manifest.engine,
                      from_txid=from_txid, to_txid=bounds.last, image_bytes=image, resumed_bytes=resumed,
                      log_bytes=fetched.bytes, transactions=fetched.records, started_us=self.started_us,
                      ended_us=self.env.clock.now_us(), seconds=self.env.clock.monotonic() - self.started,
                      bounds=whole_now, verified=verified, compacted=compacted, dropped=dropped,
                      lost=(new_gap and not self.asked) or (bool(dropped) and (self.cutoff_us == NONE or self.damaged)),
                      notes=tuple(self.notes))

    def stand(self, generation: Generation, manifest: Manifest) -> tuple[Bounds, Older]:
        """What a backup restores to before a full one takes its place, and its generations, which are the older ones
        then. One that is damaged is named with what is wrong, and does not count as restoring to anything."""
        damage = ""
        try:
            with open_log(generation, manifest, read_only=True, env=self.env) as log:
                bounds = bounds_of(manifest, log)
                look(generation, manifest, log, self.env, number=1, every=self.check == "all")
        except Damaged as error:
            damage, self.damaged = error.message, True
            bounds = Bounds(first=manifest.consistent_from.txid, last=manifest.noted_end.txid, first_time_us=None,
                            last_time_us=None, complete_until_us=manifest.runs[-1]["complete_until_us"])
            self.notes.append(f"{generation.name}, which was in force, is damaged: {damage}")
        return whole(self.layout, manifest, bounds), (*manifest.older, older_one(generation, bounds, damage))


def take_full(job: Job, before: tuple[Generation, Manifest] | None, why: str) -> Report:
    """Make a new generation and bring it into force.

    Args:
        job: the run.
        before: the generation that is in force, and its manifest, if there is a backup.
        why: for the report, where there is one.

    Raises:
        Inconsistent: the copy was checked and found wrong; what was in force still is.
        DiskFull, Damaged, LeaseExpired, SourceUnavailable, SourceRestarted, TooManyLeases, SettingError.
    """
    files, env, source = job.layout.files, job.env, job.source
    at_hand = job.at_hand(job.info.engine)
    engine = engine_named(job.info.engine, job.engine) if job.verify else None
    place = _place(job.layout)
    stood, older = (None, ()) if before is None else job.stand(*before)
    past = before[1] if before else None
    target_id = past.target_id if past else env.randomness.token(ID_BYTES)
    state = begin(source, place.path, job.owner, target_id, env=env, ttl=job.lease_ttl)
    grant = state.grant
    resumed = sum(min(f.size, len(state.digests.get(f.name, ())) * CHUNK_BYTES) for f in grant.files)
    try:
        with kept_alive(source, grant, env.scheduler):
            job.ask_again(grant)  # before all the bytes are copied
            manifest, bounds, fetched = _copy(job, place, state, past, why, at_hand)
            manifest = replace(manifest, older=needed(older, job.cutoff_us))
            if engine is not None:
                with open_log(place, manifest, read_only=True, env=env) as log, rolled(
                        place, manifest, log, engine=engine, options=job.options, env=env,
                        scratch=place.path / "work", progress=job.progress) as opened:
                    check(opened, "the copy")
                manifest.runs[-1]["verified"] = True
            manifest.write(files, place)
            files.unlink(place.path / "COPY", missing_ok=True)
            _identify(job, manifest)
            bring_into_force(job.layout, place)
            job.register(manifest, Position(*manifest.runs[-1]["end"]))
    except Exception as error:
        if not isinstance(error, SourceUnavailable) or isinstance(error, SourceRestarted):
            job.release(grant.id)
            with contextlib.suppress(OSError, DirectoryMoved):
                files.remove_tree(place.path)
        raise
    job.release(grant.id)
    sweep(job.layout, manifest)
    return job.report("full", why, manifest, bounds, manifest.history.branch.id, fetched, from_txid=0, before=stood,
                      image=image_bytes(manifest.files), resumed=resumed, verified=engine is not None)


def _place(layout: Layout) -> Generation:
    """Where an earlier run left off, or a new place. What nobody can go on with is removed."""
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


def _copy(job: Job, place: Generation, state: CopyState, before: Manifest | None, why: str,
          engine: AnyEngine | None) -> tuple[Manifest, Bounds, Fetched]:
    """Image and log, whole and durable; what their manifest says, which is not written yet, and what they restore
    to."""
    env, source, grant = job.env, job.source, state.grant
    copied = copy_image(source, state, place.path, env=env, progress=job.progress)
    confirmed = source.confirm(grant.id)
    info = job.ask_again(grant)
    env.files.remove_tree(place.log)
    log = Log.create(place.log, history_at(info.history, grant.position), grant.position, engine=info.engine,
                     last_time_us=grant.time_us, options=LOG, env=env)
    try:
        fetched = fetch(source, grant.id, log, confirmed.published, info.history,
                        reads=None if engine is None else engine.reads_payloads, progress=job.progress)
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
           "complete_until_us": confirmed.complete_until_us, "image_bytes": image_bytes(copied),
           "log_bytes": fetched.bytes, "transactions": fetched.records, "verified": False,
           "payloads": sorted(fetched.payloads)}
    manifest = Manifest(
        target_id=before.target_id if before else state.target_id, history=info.history, engine=info.engine,
        state_format=info.state_format, image_position=grant.position, consistent_from=consistent_from,
        moving=grant.moving, chunk_bytes=CHUNK_BYTES, files=copied, created_us=env.clock.now_us(),
        runs=with_run(before, run) if before else (run,))
    return manifest, bounds_of(manifest, log), fetched


def _identify(job: Job, manifest: Manifest) -> None:
    """Write who this is, unless it stands there already."""
    try:
        identity = job.layout.read_identity()
    except StoreNotFound:
        identity = None
    if identity is None or (identity.store_id, identity.engine) != (manifest.history.store_id, manifest.engine):
        job.layout.write_identity(Identity(manifest.history.store_id, manifest.engine, job.env.clock.now_us()))
