"""Runs a restore, or the rehearsal of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
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
from ..destination import begin_log, destination, written_over
from ..directories import refuse_inside, waited
from ..engines import AnyEngine, Options, compare_versions, engine_named
from ..report import RestoreReport
from ..target.scratch import check
from .archive import Archive
from .blocks import TreeReader
from .catalog import Catalog
from .plan import Point
from .reports import Rehearsal
from .restoring import LogSource, opened_state, scratch_log, tree_of
from .sealed import Seal
from .storage.interface import ObjectStore


@dataclass(slots=True)
class Rolling:
    """A state at a point: the engine, opened; the log that led there; how far it was replayed; and the bytes of the
    image that were written."""

    opened: Engine[Any, Any]
    log: Log
    rolled: Rolled
    written: int

    @property
    def time_us(self) -> int | None:
        txid = self.rolled.position.txid
        return (self.log.time_of(txid) or None) if txid else None


@dataclass(slots=True)
class Restoring:
    """A restore to a point, with what can be refused looked at already: nothing of it is after this.

    Raises:
        Damaged, WrongEngine, SettingError, UnsupportedFormat, UpgradeRequired: on construction.
    """

    point: Point
    store: ObjectStore
    seal: Seal
    archive: Archive
    env: Env
    options: Options
    progress: Progress
    given: InitVar[AnyEngine | None]
    engine: AnyEngine = field(init=False)
    tree: TreeReader = field(init=False)

    def __post_init__(self, given: AnyEngine | None) -> None:
        image = self.point.reach.image
        self.engine = engine_named(self.archive.state.engine, given)
        compare_versions(self.engine, image.state_format, image.payloads,
                         f"the image {image.session[:8]} in {self.store.url}")
        self.tree = tree_of(self.store, self.seal, image, self.env)

    @contextmanager
    def rolled(self, place: Path, state: Path, env: Env) -> Iterator[Rolling]:
        """Write image and log into `state` and `place`, and replay to the point. The log in `place` goes at the end."""
        point, image = self.point, self.point.reach.image
        history = self.archive.state.branches[point.branch].history
        source = LogSource(self.store, self.seal, self.archive, point.reach)
        scratch = place / "restore-log"
        env.files.remove_tree(scratch)
        try:
            with opened_state(self.tree, image, state, self.engine, self.options, env, self.progress) as (opened,
            written):
                log = scratch_log(source, history, scratch, self.engine, env, upto=point.txid, until_us=point.at_us,
                                  progress=self.progress)
                try:
                    yield Rolling(opened, log, roll(opened, log, log.end.txid, durable=True, progress=self.progress),
                                  written)
                finally:
                    log.abandon()
        finally:
            env.files.remove_tree(scratch)


def restore_to(dest: Path, restoring: Restoring, *, force: bool, delta: bool, wait: float) -> RestoreReport:
    """See `Repository.restore`."""
    env, image, state = restoring.env, restoring.point.reach.image, restoring.archive.state
    files, started = env.files, env.clock.monotonic()
    final, patience = files.resolve(dest), waited(wait, env)
    with system_errors(f"cannot restore to {final}"):
        refuse_inside(final, files)
        identity = Identity(image.history.store_id, state.engine, env.clock.now_us())
        with (written_over(final, identity, patience, env) if delta else
              destination(final, identity, force, patience, env)) as (made, env):
            files.make_directory(made.path)
            with restoring.rolled(made.path, made.state, env) as at:
                branch = env.randomness.token(ID_BYTES)
                position, time_us = at.rolled.position, at.time_us
                begin_log(made, at.log, at.opened.position, position, branch, engine=restoring.engine, env=env)
                count, written = at.rolled.records, at.written
    return RestoreReport(
        source=restoring.store.url, destination=str(dest), store_id=image.history.store_id.hex(), branch=branch.hex(),
        engine=state.engine, txid=position.txid, time_us=time_us, image_bytes=image.bytes, transactions=count,
        seconds=env.clock.monotonic() - started, written_bytes=written if delta else None)


def rehearse(restoring: Restoring, catalog: Catalog, scratch: Path | None) -> Rehearsal:
    """See `Repository.rehearse`. The result is noted, good or bad."""
    env, point, image = restoring.env, restoring.point, restoring.point.reach.image
    started = env.clock.monotonic()
    if scratch is None:
        place = env.files.make_scratch_directory()
    else:
        place = env.files.resolve(scratch) / f"rehearsal-{env.randomness.token(8).hex()}"
    good, digest, txid = False, b"", 0
    try:
        env.files.make_directory(place)
        with restoring.rolled(place, place / "state", env) as at:
            restored = env.clock.monotonic()
            txid, time_us, count = at.rolled.position.txid, at.time_us, at.rolled.records
            check(at.opened, f"the restored state of transaction {txid}")
            with at.opened.view() as view:
                digest = view.digest()
            good = True
    finally:
        env.files.remove_tree(place)
        if good or txid:
            catalog.note({"do": "proof", "of": image.session, "kind": "rehearsal", "good": good, "txid": txid,
                          "digest": digest.hex(), "time_us": env.clock.now_us()})
    return Rehearsal(repository=restoring.store.url, image=image.session, branch=point.branch,
                     engine=restoring.engine.name, txid=txid, time_us=time_us, image_bytes=image.bytes,
                     transactions=count, digest=digest.hex(), seconds=restored - started,
                     check_seconds=env.clock.monotonic() - restored)
