"""`verify`: prove that a backup is whole, and that it gives a consistent state.

Every byte is read and compared: the image with the digests in the manifest, the log with its checksums, chain and
footers, attachments with what their records say. Then the backup is opened, in memory or in a scratch copy, and
replayed to its end, and the engine checks the whole state. Older generations that are kept for their restore points
are verified in the same way. The backup is not changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..engine import renamed
from ..engine.env import REAL, Env
from ..engine.env.system import system_errors
from ..engine.errors import Damaged
from ..engine.model.positions import Position
from ..engine.store.layout import Layout
from ..replay.files import Progress, silent
from .directories import held, held_for_reading, tree_bytes, waited
from .engines import AnyEngine, Options, compare_versions, engine_named
from .limits import Limits
from .report import Bounds, VerifyReport
from .target.scratch import check, rolled
from .target.target import Target


@renamed.arguments(seams="env")
def verify(target: str | os.PathLike[str], *, wait: float = 0.0, engine: AnyEngine | None = None,
           options: Options | None = None, limits: Limits | None = None, progress: Progress | None = None,
           env: Env = REAL) -> VerifyReport:
    """Check a backup. Reads and replays all of it.

    Args:
        target: the backup.
        wait: seconds to wait if another process writes to it.
        engine: the engine class. If None, the one registered under the backup's engine name.
        options: the engine's own.
        limits: how much is handled at a time.
        progress: called in this thread with (stage, done, total).
        env: files, clock, randomness and threads.

    Raises:
        Damaged: bytes are missing or changed; the message says where.
        Inconsistent: the bytes are those that were copied, but the state that they give is wrong.
        TargetInvalid, TargetPromoted, StoreLocked, UnsupportedFormat, UpgradeRequired, DiskFull, SettingError.
        LimitReached, AccessDenied, DeviceFailed, DirectoryMoved: the backup could not be read, so it is not known
            whether it is good.
    """
    started, told = env.clock.monotonic(), progress or silent
    layout, patience = Layout(env.files.resolve(target), env.files), waited(wait, env)
    with (system_errors(f"cannot verify {layout.root}"), held(layout, env) as (layout, env),
          held_for_reading(layout, patience)):
        opened = Target.open(layout, env)
        manifest = opened.manifest
        how = Checking(engine_named(manifest.engine, engine), options or {}, limits or Limits(), told)
        found, notes = [how.verified(opened)], []
        for generation, one in opened.kept():
            older = opened.older(generation)
            if one["damage"] or older is None:
                notes.append(f"{generation.name}, an older generation, is damaged and was not verified: "
                             f"{one['damage']}")
            else:
                found.append(how.verified(older))
        newest = found[0]
        return VerifyReport(
            target=str(target), store_id=manifest.history.store_id.hex(), branch=newest.branch.hex(),
            engine=manifest.engine, bounds=opened.whole(newest.bounds),
            image_bytes=sum(f.image_bytes for f in found), log_bytes=sum(f.log_bytes for f in found),
            attachment_bytes=sum(f.attachment_bytes for f in found), transactions=sum(f.transactions for f in found),
            digest=newest.digest.hex(), notes=tuple(notes), seconds=env.clock.monotonic() - started)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one generation. The fields are those of a `VerifyReport`."""

    bounds: Bounds
    branch: bytes
    image_bytes: int
    log_bytes: int
    attachment_bytes: int
    transactions: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Checking:
    """How a target's generations are verified."""

    engine: AnyEngine
    options: Options
    limits: Limits
    progress: Progress

    def verified(self, target: Target) -> Verified:
        """Read and replay one generation. Raises as `verify`."""
        manifest, log, root, env = target.manifest, target.log, target.layout.root, target.env
        compare_versions(self.engine, manifest.state_format, manifest.payloads, f"the backup in {root}")
        with target.image() as image:
            image_bytes = image.verify(self.progress)
        log.verify()
        for run in manifest.runs:
            end = Position(*run["end"])
            if end.txid >= log.base.txid and log.chain_at(end.txid) != end.chain:
                raise Damaged(f"the log has another transaction {end.txid} than the run that fetched it noted",
                              path=str(log.directory))
        bounds = target.bounds()
        with rolled(target, engine=self.engine, options=self.options, progress=self.progress,
                    memory_log_bytes=self.limits.memory_log_bytes,
                    scratch=target.layout.scratch(env.randomness.token(8))) as opened:
            check(opened, str(root))
            with opened.view() as view:
                digest = view.digest()
        return Verified(bounds, log.history.branch.id, image_bytes, log.size(),
                        tree_bytes(target.generation.log / "attachments", env.files), log.end.txid - log.base.txid,
                        digest)
