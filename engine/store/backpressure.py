"""Backpressure: two bounds that slow writers down, and what plugins have against another transaction.

Two things are held in memory: records appended but not yet written (or not yet answered by a plugin that listens), and
changes applied but not yet checkpointed. If either is too much, a new writer waits, at most `Settings.wait_s`. The
writers and maintenance share this object: writers ask here for a checkpoint, and maintenance says here that one was
made, or why none can be made. A plugin may have a bound of its own, such as how much log is not archived yet: then the
transaction waits as long for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..contract.engine import Engine
from ..contract.plugin import Obstacle
from ..env import Env
from ..errors import DirectoryMoved, DiskFull, LimitReached, RolledBack, rolled_back
from ..wal.log import Log
from .group_commit import GroupCommit
from .settings import Settings


class Backpressure:
    """See the module's text. From any thread.

    Attributes:
        slow: with fewer pending or waiting bytes than this, neither bound is reached.
        delayed: how many waits there were.
        wanted: set when maintenance has something to do.
        blocked: why no checkpoint can be made now (no room, no descriptor, the directory is gone), or None.
        closing: maintenance ends, so nobody may wait for it.
    """

    def __init__(self, engine: Engine[Any, Any], log: Log, group_commit: GroupCommit, settings: Settings,
                 env: Env) -> None:
        self._engine = engine
        self._log = log
        self._group_commit = group_commit
        self._settings = settings
        self._clock = env.clock
        self._changed = env.scheduler.condition()
        self.slow = min(settings.checkpoint_soft_bytes, settings.unwritten_bytes)
        self.delayed = 0
        self.wanted = env.scheduler.event()
        self.blocked: DiskFull | LimitReached | DirectoryMoved | None = None
        self.closing = False

    def notify(self) -> None:
        """Wake the waiting writers: a checkpoint was made, or could not be made."""
        with self._changed:
            self._changed.notify_all()

    def admits(self) -> bool:
        """Whether `wait` would return at once. Asks for a checkpoint as `wait` does."""
        pending = self._engine.pending_bytes()
        if pending >= self._settings.checkpoint_soft_bytes:
            self.wanted.set()
        return pending < self._settings.checkpoint_hard_bytes and self._few_wait()

    def wait(self, usable: Callable[[], bool]) -> None:
        """Wait until neither bound is reached. Returns early if the store is poisoned or no longer `usable`; the caller
        checks that. Call it if `slow` bytes are pending or waiting.

        Raises:
            RolledBack: a bound was still exceeded after `wait_s`, the store is being closed, or no checkpoint can be
                made. In the last case the error is also a `DiskFull`, `LimitReached` or `DirectoryMoved`.
        """
        settings, group_commit, pending = self._settings, self._group_commit, self._engine.pending_bytes
        if pending() >= settings.checkpoint_soft_bytes:
            self.wanted.set()
        if not self._few_wait():
            self.delayed += 1
            group_commit.sync_within(0.0)
            caught_up = group_commit.wait_until(self._few_wait, settings.wait_s)
            if not caught_up and group_commit.poison is None and usable() and not self.closing:
                raise RolledBack(f"after {settings.wait_s} s, {settings.unwritten_bytes:,} bytes were still waiting to "
                                 "be written, or to be answered by plugins",
                                 hint="try again; the disk or a plugin is slow")
        if pending() < settings.checkpoint_hard_bytes:
            return
        self.delayed += 1
        deadline = self._clock.monotonic() + settings.wait_s
        with self._changed:
            while pending() >= settings.checkpoint_hard_bytes:
                if not usable() or group_commit.poison is not None:
                    return
                if self.closing:
                    raise RolledBack("the store is being closed")
                if (blocked := self.blocked) is not None:
                    hard = settings.checkpoint_hard_bytes
                    what = "no room for a checkpoint" if isinstance(blocked, DiskFull) else "no checkpoint can be made"
                    raise rolled_back(blocked, f"{what}, and {hard:,} bytes wait for it") from blocked
                if self._clock.monotonic() >= deadline:
                    raise RolledBack(f"the checkpoint did not catch up within {settings.wait_s} s",
                                     hint="try again; a slower load or a larger checkpoint_hard_bytes avoids this")
                self.wanted.set()
                self._changed.wait(0.05)

    def admit(self, plugins: tuple[Callable[[], Obstacle | None], ...], usable: Callable[[], bool]) -> None:
        """Wait until no plugin is against another transaction. Returns early as `wait` does.

        Raises:
            RolledBack: a plugin was still against it after `wait_s`, or failed.
        """
        deadline: float | None = None
        while (obstacle := self._obstacle(plugins)) is not None:
            if not usable() or self._group_commit.poison is not None:
                return
            now = self._clock.monotonic()
            if deadline is None:
                self.delayed += 1
                deadline = now + self._settings.wait_s
            elif now >= deadline:
                raise RolledBack(f"after {self._settings.wait_s} s, {obstacle.why}", hint=obstacle.hint)
            with self._changed:
                self._changed.wait(0.05)

    def _obstacle(self, plugins: tuple[Callable[[], Obstacle | None], ...]) -> Obstacle | None:
        for hook in plugins:
            try:
                obstacle = hook()
            except Exception as error:
                raise RolledBack(f"a plugin failed as the transaction began: {error}", hint="see the plugin's own error"
                                 ) from error
            if obstacle is not None:
                return obstacle
        return None

    def _few_wait(self) -> bool:
        most = self._settings.unwritten_bytes
        return self._log.writer.waiting_bytes < most and self._group_commit.unheard_bytes < most
