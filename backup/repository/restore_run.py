"""Runs a restore: into a store, a view, a rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...engine.contract.engine import Engine
from ...engine.contract.view import View
from ...engine.env import Env
from ...engine.env.system import system_errors
from ...engine.errors import Inconsistent
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
from .imaging import who
from .plan import Point
from .reports import Rehearsal
from .restoring import LogSource, log_from_image, opened_state, tree_of
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


OnWay = tuple[int, Callable[[Engine[Any, Any]], None]]


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
    def rolled(self, place: Path, state: Path, env: Env, on_way: OnWay | None = None) -> Iterator[Rolling]:
        """Write image and log into `state` and `place`, and replay to the point. The log in `place` goes at the end.
        `on_way`: a transaction, and what is called with the engine there, if the replay comes to it."""
        point, image = self.point, self.point.reach.image
        history = self.archive.state.branches[point.branch].history
        source = LogSource(self.store, self.seal, self.archive, point.reach)
        scratch = place / "restore-log"
        env.files.remove_tree(scratch)
        try:
            with opened_state(self.tree, image, state, self.engine, self.options, env, self.progress) as (opened,
            written):
                log = log_from_image(source, history, scratch, self.engine.name, env,
                                     reads=self.engine.reads_payloads, upto=point.txid, until_us=point.at_us,
                                     progress=self.progress)
                try:
                    before = 0
                    if on_way is not None and image.consistent_from.txid <= on_way[0] <= log.end.txid:
                        before = roll(opened, log, on_way[0], durable=True, progress=self.progress).records
                        on_way[1](opened)
                    rolled = roll(opened, log, log.end.txid, durable=True, progress=self.progress)
                    yield Rolling(opened, log, replace(rolled, records=before + rolled.records), written)
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


@contextmanager
def scratch_place(scratch: Path | None, what: str, env: Env) -> Iterator[Path]:
    """A new directory in `scratch`, or in that for temporary files. It is removed at the end of the block."""
    if scratch is None:
        place = env.files.make_scratch_directory()
    else:
        place = env.files.resolve(scratch) / f"{what}-{env.randomness.token(8).hex()}"
    try:
        env.files.make_directory(place)
        yield place
    finally:
        env.files.remove_tree(place)


@contextmanager
def viewed(restoring: Restoring, scratch: Path | None) -> Iterator[View]:
    """See `Repository.view`."""
    with ExitStack() as stack:
        with system_errors("cannot open a past state in a scratch place"):
            place = stack.enter_context(scratch_place(scratch, "view", restoring.env))
            at = stack.enter_context(restoring.rolled(place, place / "state", restoring.env))
        yield stack.enter_context(at.opened.view())


def rehearse(restoring: Restoring, catalog: Catalog, scratch: Path | None) -> Rehearsal:
    """See `Repository.rehearse`. The result is noted, good or bad."""
    env, point, image = restoring.env, restoring.point, restoring.point.reach.image
    started = env.clock.monotonic()
    good, digest, txid, compared_at, aside = False, b"", 0, 0, 0.0
    noted = image.noted
    by = "" if noted is None else "repository" if image.synthetic is not None else "source"

    def compare(opened: Engine[Any, Any]) -> None:
        nonlocal txid, digest, compared_at, aside
        assert noted is not None
        begun = env.clock.monotonic()
        txid = compared_at = noted.txid
        with opened.view() as view:
            digest = view.digest()
        if digest != noted.digest:
            raise Inconsistent(f"the restored state of transaction {txid} has the digest {digest.hex()}, and had "
                               f"{noted.digest.hex()} when the {by} computed it")
        aside = env.clock.monotonic() - begun

    try:
        with scratch_place(scratch, "rehearsal", env) as place, restoring.rolled(
                place, place / "state", env, None if noted is None else (noted.txid, compare)) as at:
            restored = env.clock.monotonic()
            txid, time_us, count = at.rolled.position.txid, at.time_us, at.rolled.records
            check(at.opened, f"the restored state of transaction {txid}")
            if not digest or txid != compared_at:
                with at.opened.view() as view:
                    digest = view.digest()
            good = True
    finally:
        if good or txid:
            catalog.note({"do": "proof", "of": image.session, "kind": "rehearsal", "good": good, "txid": txid,
                          "branch": point.branch, "digest": digest.hex(), "compared": bool(compared_at),
                          "compared_at": compared_at, "digest_from": by if compared_at else "",
                          "key": restoring.seal.generation, "who": who("rehearsal"), "time_us": env.clock.now_us()})
    return Rehearsal(repository=restoring.store.url, image=image.session, branch=point.branch,
                     engine=restoring.engine.name, txid=txid, time_us=time_us, image_bytes=image.bytes,
                     transactions=count, digest=digest.hex(), compared=bool(compared_at), compared_at=compared_at,
                     digest_from=by if compared_at else "", seconds=restored - started - aside,
                     check_seconds=env.clock.monotonic() - restored + aside)
