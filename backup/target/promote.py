"""A target that is opened as a store: the store adopts its image, and it ceases to be a backup.

A target that is opened for writing is *promoted*: its manifest then says since when it is not a backup. The manifest
stays, so that an incremental into the directory is refused with that date. It is durable before the engine may change
the image. So a crash leaves either a whole backup, or a store that continues on a branch of its own.
"""

from __future__ import annotations

from typing import Any, Self

from ...engine.contract.engine import Context, Engine
from ...engine.env import Files
from ...engine.errors import Damaged
from ...engine.model.positions import Position
from ...engine.store.copied_image import CopiedImage
from ...engine.store.layout import Generation
from ...engine.wal.log import Log
from ..manifest import Manifest


class TargetImage(CopiedImage):
    """The image of a target. Registered in the entry-point group `holdfast.images`."""

    def __init__(self, files: Files, generation: Generation, manifest: Manifest) -> None:
        self._files, self._generation, self._manifest = files, generation, manifest

    @classmethod
    def read(cls, files: Files, generation: Generation) -> Self | None:
        manifest = Manifest.read(files, generation)
        return None if manifest is None or manifest.settled else cls(files, generation, manifest)

    @property
    def position(self) -> Position:
        return self._manifest.image_position

    @property
    def promoted(self) -> bool:
        return self._manifest.promoted_us is not None

    @property
    def log_end(self) -> Position | None:
        return None if self.promoted else self._manifest.noted_end

    def check(self, log: Log) -> None:
        image, consistent = self._manifest.image_position, self._manifest.consistent_from
        if log.chain_at(image.txid) != image.chain:
            raise Damaged(f"the image and the log have different histories at transaction {image.txid}",
                          path=str(log.directory))
        if log.end.txid < consistent.txid:
            raise Damaged(f"the log ends at transaction {log.end.txid}, and this image counts only from "
                          f"{consistent.txid}", path=str(log.directory))

    def promote(self, kind: type[Engine[Any, Any]], context: Context) -> None:
        if self.promoted:
            return
        log = Log.open(self._generation.log, engine_position=self.log_end, read_only=True, env=context.env)
        self.check(log)
        log.verify()  # the replay would find damage only when this is no longer a backup that restores to before it
        kind.open(self._generation.state, context, read_only=True, at=self.position).close()
        self._replace(self._manifest.promote(context.env.clock.now_us(), context.env.randomness.token(16)))

    def begin_branch(self, log: Log) -> None:
        self.check(log)
        branch = self._manifest.promoted_branch
        assert branch is not None
        if all(known.id != branch for known in log.history.branches):
            log.writer.extend_history(log.history.extended(branch, log.end))

    def settle(self, reached: Position) -> bool:
        if reached.txid < self._manifest.consistent_from.txid:
            return False
        self._replace(self._manifest.settle())
        return True

    def _replace(self, manifest: Manifest) -> None:
        manifest.write(self._files, self._generation)
        self._manifest = manifest
