"""A target: the directory a backup is written to, as seen by those who write and read it.

What a target claims stands in its manifest and in its log. The manifest is written after the log that it tells of is
synced, so the log may go on further than the last run says (a run died before it was noted), never less: less is
damage. `open_log` holds it so.

A generation that is being made is called `gen-N.partial`. It gets its proper name only when it is whole, durable and,
if asked for, checked; then `CURRENT` is switched. A run that dies between the two leaves a finished generation that is
not in force: the next run brings it into force.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..engine.contract.engine import Engine
from ..engine.contract.registry import find_engine
from ..engine.env import Clock, Env, Files
from ..engine.env.anchored import AnchoredFiles
from ..engine.errors import (
    Damaged,
    LocksUnsupported,
    SettingError,
    StoreLocked,
    StoreNotFound,
    TargetInvalid,
    TargetPromoted,
    UnsupportedFormat,
    UpgradeRequired,
    WrongEngine,
)
from ..engine.store.layout import Generation, Layout
from ..engine.wal.log import Log
from ..engine.wal.writer import LogOptions
from ..replay.files import CopiedFile
from .manifest import Manifest
from .report import Bounds, iso

logger = logging.getLogger("holdfast.backup")

LOG = LogOptions(preallocate=False)
MAX_RUNS = 100
"""How many runs a manifest remembers, besides the one that took its image."""

AnyEngine = type[Engine[Any, Any]]
Options = Mapping[str, Any]
"""The engine's own, for each opening of a copy."""


T = TypeVar("T")

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a lock: until `deadline` (monotonic seconds). Without a clock, not at all."""

    clock: Clock | None = None
    deadline: float = 0.0

    def take(self, lock: Callable[[], T]) -> T:
        """What `lock` returns, as soon as it does. Raises the `StoreLocked` of the last try."""
        while True:
            try:
                return lock()
            except StoreLocked as error:
                if self.clock is None:
                    raise
                left = self.deadline - self.clock.monotonic()
                if left <= 0:
                    raise StoreLocked(error.message, hint="close the other user first, or wait longer") from None
                self.clock.sleep(min(_LOOK_S, left))


def waited(seconds: float, env: Env) -> Patience:
    """`Patience` for so many seconds from now. Raises `SettingError`."""
    if type(seconds) not in (int, float) or not 0 <= seconds < float("inf"):
        raise SettingError(f"wait is a number of seconds, 0 or more, not {seconds!r}")
    return Patience(env.clock, env.clock.monotonic() + seconds) if seconds else Patience()


@contextmanager
def locked(layout: Layout, what: str, patience: Patience | None = None, *, new: bool = False) -> Iterator[None]:
    """Hold a directory for writing. One that is `new` is written to without a lock if its file system has none.

    Raises:
        StoreLocked, LocksUnsupported.
    """
    try:
        lock = (patience or Patience()).take(
            lambda: layout.files.lock(layout.lock_path, f"{what} (process {os.getpid()})"))
    except LocksUnsupported as error:
        if not new:
            raise
        logger.warning("%s is written to without a lock: %s", layout.root, error.message)
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_for_reading(layout: Layout, patience: Patience | None = None) -> Iterator[None]:
    """Keep backup and compaction away from a target while it is read. Raises `StoreLocked`."""
    lock = (patience or Patience()).take(lambda: layout.files.lock_shared(layout.lock_path))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def held(layout: Layout, env: Env) -> Iterator[tuple[Layout, Env]]:
    """A directory, held open for the block: each use of a path in it raises `DirectoryMoved` once that path leads
    elsewhere, so that a run neither writes to what has come in its place, nor takes what is missing there for damage.
    One that is not there is not held."""
    if not layout.files.is_directory(layout.root):
        yield layout, env
        return
    anchored = AnchoredFiles(env.files, layout.root, "run it again, with the path that it has now")
    try:
        yield Layout(layout.root, anchored), replace(env, files=anchored)
    finally:
        anchored.let_go()


def make_root(layout: Layout) -> None:
    """Make the directory of a store or target. Raises `TargetInvalid` where something is in the way."""
    try:
        layout.files.make_directory(layout.root)
    except (FileExistsError, NotADirectoryError) as error:
        raise TargetInvalid(f"{layout.root} cannot be made: a file, or a link that leads in a circle, is in its way",
                            hint="choose another directory") from error
    except FileNotFoundError as error:  # as below /proc
        raise TargetInvalid(f"{layout.root} cannot be made: {error.strerror}", hint="choose another directory"
                            ) from error


def refuse_inside(path: Path, files: Files) -> None:
    """See that a directory does not lie in a store or backup: what is not theirs is in the way when they are replaced
    or looked at, or is taken for a part of them. Raises `TargetInvalid`."""
    for parent in files.resolve(path).parents:
        if Layout(parent, files).is_store():
            raise TargetInvalid(f"{path} lies in {parent}, which is a store or backup itself",
                                hint="choose a directory outside of it")


def detect(layout: Layout) -> bool:
    """Whether a backup is here (True), or nothing that matters (False). Changes nothing.

    Raises:
        TargetInvalid, TargetPromoted: something else is here, or this is a place within something else.
        Damaged, UnsupportedFormat: it cannot be read.
    """
    refuse_inside(layout.root, layout.files)
    if layout.is_store():
        read_target(layout)
        return True
    if layout.is_empty(or_finished=True):
        return False
    if not layout.files.is_directory(layout.root):
        raise TargetInvalid(f"{layout.root} is a file")
    raise TargetInvalid(f"{layout.root} is not empty and holds no backup")


def read_target(layout: Layout) -> tuple[Generation, Manifest]:
    """The generation in force of a backup, and its manifest.

    Raises:
        TargetInvalid: there is no backup here.
        TargetPromoted: there was one, until somebody opened it for writing.
        Damaged, UnsupportedFormat.
    """
    try:
        identity = layout.read_identity()
        generation = layout.current()
    except StoreNotFound as error:
        begun = bool(partials(layout)) or (layout.is_empty(or_finished=True) and not layout.is_empty())
        raise TargetInvalid(f"there is no backup in {layout.root}", hint="its first run was never finished, or its "
                            "CURRENT is gone: back up into it again" if begun else "check the path") from error
    manifest = Manifest.read(layout.files, generation)
    if manifest is None:
        raise TargetInvalid(f"{layout.root} is a store, not a backup: {generation.name} has no MANIFEST")
    if manifest.promoted_us is not None:
        raise TargetPromoted(f"{layout.root} was opened for writing at {iso(manifest.promoted_us)}, so it is a store "
                             "of its own and no longer a backup")
    if manifest.history.store_id != identity.store_id or manifest.engine != identity.engine:
        raise Damaged("is of another store than the directory it is in", path=str(generation.manifest))
    return generation, manifest


@contextmanager
def open_log(generation: Generation, manifest: Manifest, *, read_only: bool, env: Env) -> Iterator[Log]:
    """A target's log, held against what its manifest says of it. Raises `Damaged`, `UnsupportedFormat`."""
    end = manifest.noted_end
    log = Log.open(generation.log, engine_position=end, read_only=read_only, options=LOG, env=env)
    try:
        if log.base != manifest.image_position:
            raise Damaged(f"the log starts after {log.base}, and the image is of {manifest.image_position}",
                          path=str(generation.log))
        if log.history.store_id != manifest.history.store_id:
            raise Damaged("the log is another store's", path=str(generation.log))
        if log.chain_at(manifest.consistent_from.txid) != manifest.consistent_from.chain:
            raise Damaged(f"the log has another transaction {manifest.consistent_from.txid} than the manifest",
                          path=str(generation.log))
        yield log
    finally:
        log.close()


def bounds_of(manifest: Manifest, log: Log) -> Bounds:
    """What this image and log restore to."""
    first = manifest.consistent_from.txid if manifest.moving else manifest.image_position.txid
    last, noted = log.end, manifest.noted_end
    complete: int = manifest.runs[-1]["complete_until_us"] if manifest.runs else 0
    if last.txid > noted.txid:  # a run died before it was noted
        anew = log.complete_us < log.time_of(noted.txid)  # since then, times began anew
        complete = log.complete_us if anew else max(complete, log.complete_us)
    return Bounds(first=first, last=last.txid, first_time_us=log.time_of(first) or None,
                  last_time_us=log.time_of(last.txid) or None, complete_until_us=complete)


def with_run(manifest: Manifest, run: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The runs of a manifest and one more; the oldest are forgotten beyond `MAX_RUNS`, but for the versions of the
    payloads that they brought."""
    runs = (*manifest.runs, run)
    if len(runs) <= MAX_RUNS + 1:
        return runs
    first, last = runs[0], runs[-MAX_RUNS:]
    gone = {version for r in runs[:-MAX_RUNS] for version in r.get("payloads", ())}
    return {**first, "payloads": sorted(gone)}, *last


def image_bytes(copied: tuple[CopiedFile, ...]) -> int:
    return sum(f.size for f in copied)


def tree_bytes(path: Path, files: Files) -> int:
    """Bytes of all files below a directory."""
    if not files.is_directory(path):
        return files.size(path) if files.exists(path) else 0
    return sum(tree_bytes(path / name, files) for name in files.list(path))


def partials(layout: Layout) -> list[Generation]:
    """Generations that were begun and not finished."""
    if not layout.files.is_directory(layout.root):
        return []
    return [Generation(layout.root / n) for n in layout.files.list(layout.root)
            if n.startswith("gen-") and n.endswith(".partial")]


def finish_switch(layout: Layout) -> None:
    """Bring a finished generation into force that a run did not come to switch to. The caller holds the lock."""
    files = layout.files
    try:
        store_id = layout.read_identity().store_id
    except StoreNotFound:
        return
    in_force = layout.current().name if files.exists(layout.root / "CURRENT") else ""
    for name in reversed(files.list(layout.root)):
        if not name.startswith("gen-") or name.endswith(".partial") or name <= in_force:
            continue
        manifest = Manifest.read(files, Generation(layout.root / name))
        if manifest is not None and manifest.promoted_us is None and manifest.history.store_id == store_id:
            layout.switch(Generation(layout.root / name))
            return


def bring_into_force(layout: Layout, partial: Generation) -> Generation:
    """Give a whole, durable generation its name and switch to it."""
    files = layout.files
    generation = Generation(partial.path.with_name(partial.name.removesuffix(".partial")))
    files.rename(partial.path, generation.path)
    files.sync_directory(layout.root)
    layout.switch(generation)
    return generation


def engine_named(name: str, given: AnyEngine | None) -> AnyEngine:
    """The engine class to use for a backup of the engine `name`.

    Raises:
        WrongEngine: `given` is another one.
        SettingError: none of that name is installed.
    """
    if given is None:
        found: AnyEngine = find_engine(name)
        return found
    if given.name != name:
        raise WrongEngine(f"the backup is of the {name} engine, and {given.name} was given")
    return given


def compare_versions(engine: AnyEngine, state_format: int, payloads: Iterable[int], whose: str) -> None:
    """See that an engine reads a state of this format, and payloads of these versions.

    Raises:
        UpgradeRequired: the state is of an older format.
        UnsupportedFormat: the state is of a newer format, or a payload's version is unknown.
    """
    if state_format < engine.state_format:
        raise UpgradeRequired(f"{whose} has state format {state_format}, and this {engine.name} engine has "
                              f"{engine.state_format}",
                              hint="use the release that wrote it; or upgrade the store, and take a full backup of it")
    if state_format > engine.state_format:
        raise UnsupportedFormat(f"{whose} has state format {state_format}, and this {engine.name} engine has "
                                f"{engine.state_format}")
    if unknown := sorted(set(payloads) - engine.reads_payloads):
        raise UnsupportedFormat(f"{whose} has transactions of payload version {unknown[0]}, and this {engine.name} "
                                f"engine reads {sorted(engine.reads_payloads)}")


def payload_versions(manifest: Manifest) -> set[int]:
    """The versions of the payloads that the runs of a backup have brought."""
    return {version for run in manifest.runs for version in run.get("payloads", ())}


def engine_at_hand(name: str, given: AnyEngine | None) -> AnyEngine | None:
    """As `engine_named`; None where none of that name is installed."""
    try:
        return engine_named(name, given)
    except SettingError:
        return None
