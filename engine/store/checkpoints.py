"""The engine's durable state: checkpoints and bulk loads change it, and images are made of it.

Only one checkpoint or bulk load runs at a time. Making an image excludes both, unless the engine declares
`background_checkpoint`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..contract.engine import BulkEngine, Engine
from ..contract.image import Image
from ..env import Env
from ..env.owned_lock import OwnedLock
from ..env.system import is_limit
from ..errors import DirectoryMoved, DiskFull, LimitReached
from ..model.positions import Position
from ..model.records import Record
from .group_commit import GroupCommit
from .hooks import Hooks
from .usability import Usability

logger = logging.getLogger("holdfast.store")


class Checkpoints:
    """See the module's text. From any thread.

    Attributes:
        handed: the highest position that the engine's files may contain: a moving image must be replayed up to here.
        handing: called before `handed` rises, or None.
        made: how many checkpoints were made.
        beside: whether checkpoints may run while a transaction is open. If not, the caller holds the writer lock.
    """

    def __init__(self, engine: Engine[Any, Any], group_commit: GroupCommit, hooks: Hooks, env: Env,
                 usability: Usability, *, settle: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            engine, group_commit, hooks, env, usability: what it works on.
            settle: called after each checkpoint, on its thread, before another change can begin.
        """
        self.handed = group_commit.watermarks.published
        self.handing: Callable[[Position], None] | None = None
        self.made = 0
        self.beside = engine.abilities.background_checkpoint
        self._engine = engine
        self._group_commit = group_commit
        self._hooks = hooks
        self._files = env.files
        self._usability = usability
        self._settle = settle
        self._changing = OwnedLock(env)
        self._imaging = env.scheduler.lock()

    def make(self, still: Callable[[], object]) -> Position:
        """Make the engine's durable state hold everything published. Returns the position it reached. While this waits
        for another change, it calls `still` every `LOOK_S` seconds, which raises if waiting has become pointless.

        Raises:
            DiskFull, LimitReached, DirectoryMoved: try again later.
            StorePoisoned: the engine failed in the middle; the store is poisoned.
        """
        return self._changing.run(self._make, still)

    def _make(self) -> Position:
        engine, group_commit = self._engine, self._group_commit
        if group_commit.poison is not None:
            raise group_commit.poisoned()
        directory = self._usability.directory
        self._files.look(directory)
        upto = group_commit.told(group_commit.watermarks.published)
        if upto.txid > engine.position.txid:
            try:
                self.hand(upto)
                with self._no_image_beside():
                    reached = engine.checkpoint(upto)
            except (DiskFull, LimitReached, DirectoryMoved) as error:
                if isinstance(error, DiskFull):
                    error.hint = group_commit.log.when_full(error.hint)
                raise
            except BaseException as error:
                if isinstance(error, OSError) and is_limit(error):  # a file that could not be opened, say
                    raise LimitReached(f"{directory} made no checkpoint: {error}") from error
                group_commit.fail(error)
                if isinstance(error, Exception):
                    raise group_commit.poisoned() from error
                raise
            group_commit.watermarks.checkpoint(reached)
            self.made += 1
            self._hooks.tell("checkpointed", reached)
        self._settle()
        return engine.position

    def hand(self, position: Position) -> None:
        """The engine's files may hold everything up to `position` from now on."""
        if position.txid > self.handed.txid:
            if self.handing is not None:
                self.handing(position)
            self.handed = position

    def apply_bulk(self, record: Record, path: Path) -> None:
        """Apply a bulk load. It is in the log, so it must get into the state: if there is no room, wait until there is.
        Raises what the engine raises."""
        self._changing.run(lambda: self._apply_bulk(record, path), lambda: None)

    def _apply_bulk(self, record: Record, path: Path) -> None:
        engine, ended = self._engine, self._usability
        assert isinstance(engine, BulkEngine)
        while True:
            try:
                with self._no_image_beside():
                    engine.apply_bulk(record, path)
                break
            except (DiskFull, LimitReached, OSError) as error:
                if isinstance(error, OSError) and not is_limit(error):
                    raise
                logger.warning("transaction %d, a bulk load, waits to be applied: %s", record.txid, error)
                if ended.ended is not None or self._group_commit.wait_until(lambda: ended.ended is not None, 1.0):
                    raise
        self._group_commit.watermarks.checkpoint(engine.position)

    def image(self) -> Image:
        """The engine's image."""
        with self._no_image_beside():
            return self._engine.image()

    def _no_image_beside(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self.beside else self._imaging
