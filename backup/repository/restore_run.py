"""Runs a restore, or the rehearsal of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Engine
from ...engine.env import Env
from ...engine.env.system import system_errors
from ...engine.model.positions import ID_BYTES
from ...engine.store.layout import Identity
from ...engine.wal.log import Log
from ...replay.files import Progress
from ...replay.roll import Rolled, roll
from ..destination import begin_log, destination
from ..directories import refuse_inside, waited
from ..engines import AnyEngine, Options, compare_versions, engine_named
from ..report import RestoreReport
from ..target.scratch import check
from .archive import Archive
from .catalog import Catalog
from .plan import Point
from .reports import Rehearsal
from .restoring import LogSource, opened_state, scratch_log, tree_of
from .sealed import Seal
from .storage.interface import ObjectStore


@dataclass(slots=True)
class Rolling:
    """A state at a point: the engine, opened; the log that led there; and how far it was replayed."""

    opened: Engine[Any, Any]
    log: Log
    rolled: Rolled
    engine: AnyEngine

    @property
    def time_us(self) -> int | None:
        txid = self.rolled.position.txid
        return (self.log.time_of(txid) or None) if txid else None


@contextmanager
def _rolled(place: Path, state: Path, point: Point, store: ObjectStore, seal: Seal, archive: Archive, env: Env, *,
            engine: AnyEngine | None, options: Options, progress: Progress) -> Iterator[Rolling]:
    """Write image and log into `state` and `place`, and replay to the point. The log in `place` goes at the end."""
    image = point.reach.image
    history = archive.state.branches[point.branch].history
    found = engine_named(archive.state.engine, engine)
    compare_versions(found, image.state_format, image.payloads, f"the image {image.session[:8]} in {store.url}")
    source = LogSource(store, seal, archive, point.reach)
    scratch = place / "restore-log"
    try:
        with opened_state(tree_of(store, seal, image, env), image, state, found, options, env, progress) as opened:
            log = scratch_log(source, history, scratch, found, env, upto=point.txid, until_us=point.at_us,
                              progress=progress)
            try:
                yield Rolling(opened, log, roll(opened, log, log.end.txid, durable=True, progress=progress), found)
            finally:
                log.abandon()
    finally:
        env.files.remove_tree(scratch)


def restore_to(dest: Path, point: Point, store: ObjectStore, seal: Seal, archive: Archive, env: Env, *, force: bool,
               wait: float, engine: AnyEngine | None, options: Options, progress: Progress) -> RestoreReport:
    """See `Repository.restore`."""
    files, started, image = env.files, env.clock.monotonic(), point.reach.image
    final, patience = files.resolve(dest), waited(wait, env)
    with system_errors(f"cannot restore to {final}"):
        refuse_inside(final, files)
        identity = Identity(image.history.store_id, archive.state.engine, env.clock.now_us())
        with destination(final, identity, force, patience, env) as (made, env):
            files.make_directory(made.path)
            with _rolled(made.path, made.state, point, store, seal, archive, env, engine=engine, options=options,
                         progress=progress) as at:
                branch = env.randomness.token(ID_BYTES)
                position, time_us, state = at.rolled.position, at.time_us, at.opened.position
                begin_log(made, at.log, state, position, branch, engine=at.engine, env=env)
                count = at.rolled.records
    return RestoreReport(
        source=store.url, destination=str(dest), store_id=image.history.store_id.hex(), branch=branch.hex(),
        engine=archive.state.engine, txid=position.txid, time_us=time_us, image_bytes=image.bytes, transactions=count,
        seconds=env.clock.monotonic() - started)


def rehearse(point: Point, store: ObjectStore, seal: Seal, archive: Archive, catalog: Catalog, env: Env, *,
             scratch: Path | None, engine: AnyEngine | None, options: Options, progress: Progress) -> Rehearsal:
    """See `Repository.rehearse`. The result is noted, good or bad."""
    started, image = env.clock.monotonic(), point.reach.image
    if scratch is None:
        place = env.files.make_scratch_directory()
    else:
        place = env.files.resolve(scratch) / f"rehearsal-{env.randomness.token(8).hex()}"
    good, digest, txid = False, b"", 0
    try:
        env.files.make_directory(place)
        with _rolled(place, place / "state", point, store, seal, archive, env, engine=engine, options=options,
                     progress=progress) as at:
            restored = env.clock.monotonic()
            txid, time_us, count, name = at.rolled.position.txid, at.time_us, at.rolled.records, at.engine.name
            check(at.opened, f"the restored state of transaction {txid}")
            with at.opened.view() as view:
                digest = view.digest()
            good = True
    finally:
        env.files.remove_tree(place)
        if good or txid:
            catalog.note({"do": "proof", "of": image.session, "kind": "rehearsal", "good": good, "txid": txid,
                          "digest": digest.hex(), "time_us": env.clock.now_us()})
    return Rehearsal(repository=store.url, image=image.session, branch=point.branch, engine=name, txid=txid,
                     time_us=time_us, image_bytes=image.bytes, transactions=count, digest=digest.hex(),
                     seconds=restored - started, check_seconds=env.clock.monotonic() - restored)


