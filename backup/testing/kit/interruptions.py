"""Checks of backups that are cut off: by a source that dies, a disk that is full, a process that is killed.

Each step of a backup is a place to be cut off at. First a run is counted, then others fail at the n-th step: a first
full backup, an incremental, and a full one in the place of another. Whatever was there before is still a backup then,
and the next run goes on to the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ....engine.env import REAL, Env
from ....engine.errors import DiskFull, SourceUnavailable
from ....engine.source.local import LocalSource
from ....engine.store.layout import Layout
from ....engine.testing.support.contract import Contract, check
from ....engine.testing.support.workload import Workload
from ..fault_injection import DyingDisk, Killed, Nth, WatchedSource, full_disk
from ..world import World, seen_in, world

POINTS, LAST_POINTS = 6, 20
"""Points to be cut off at that the default profile tries: some all over a run, and each of the last ones of a full run,
in which what was copied comes into force."""

T = TypeVar("T")
Attempt = Callable[[Path, int], int]
"""Backs up into a target and fails at the n-th step (never, with 0); how many steps were done. Raises what failed."""


def points(total: int, count: int, last: int) -> list[int]:
    """Of the numbers 1 to `total`, the `last` ones, and `count` spread over those before.

    >>> points(9, 2, 3), points(3, 2, 8)
    ([1, 6, 7, 8, 9], [1, 2, 3])
    """
    before = max(0, total - last)
    return [*spread(before, count), *range(before + 1, total + 1)]


def spread(total: int, count: int) -> list[int]:
    """Up to `count` of the numbers 1 to `total`, the first and the last among them.

    >>> spread(5, 8), spread(100, 4)
    ([1, 2, 3, 4, 5], [1, 34, 67, 100])
    """
    if total <= count:
        return list(range(1, total + 1))
    return [1 + round(i * (total - 1) / (count - 1)) for i in range(count)]


class InterruptionChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_source_that_dies_leaves_a_backup_to_go_on_with(self, work: Workload) -> None:
        """A source that goes away, at any of its answers, leaves what was backed up before as it was, and never a
        half-made backup that is taken for a whole one. The next run goes on."""

        def attempt_in(w: World) -> Attempt:
            def attempt(target: Path, n: int) -> int:
                dying = Nth(n, lambda: SourceUnavailable("the source was told to die"))
                w.back_up(target, source=WatchedSource(LocalSource(w.store), dying))
                return dying.count

            return attempt

        self._try(work, attempt_in, (SourceUnavailable,))

    @check()
    def test_a_killed_backup_leaves_one_to_go_on_with(self, work: Workload) -> None:
        """A backup that is killed, before any change to the target's files, leaves what was backed up before as it was,
        and never a half-made backup that is taken for a whole one. The next run goes on."""
        self._try(work, lambda w: self._on(w, DyingDisk), (Killed,))

    @check()
    def test_a_full_disk_leaves_a_backup_to_go_on_with(self, work: Workload) -> None:
        """If a target's disk is full, at any write, the run raises `DiskFull`, and leaves what was backed up before as
        it was. The next run goes on when there is room."""
        self._try(work, lambda w: self._on(w, full_disk), (DiskFull,))

    @staticmethod
    def _on(w: World, disk: Callable[[int], DyingDisk]) -> Attempt:
        def attempt(target: Path, n: int) -> int:
            files = disk(n)
            w.back_up(target, env=Env(files=files))
            return files.steps

        return attempt

    def _try(self, work: Workload, attempt_in: Callable[[World], Attempt], errors: tuple[type[BaseException], ...]
             ) -> None:
        with world(work) as w:
            w.add(2)
            w.store.checkpoint()
            w.add()
            trial = Trial(w, attempt_in(w), errors)
            trial.run(None, self.effort.examples(POINTS), 0)
            w.back_up()
            w.add(3)
            trial.run(w.target, self.effort.examples(POINTS), 0)
            w.lose_log()  # a full one again, and there is something to lose
            trial.run(w.target, self.effort.examples(POINTS), self.effort.examples(LAST_POINTS))


class Trial:
    """Attempts on targets of their own, each cut off at another step."""

    def __init__(self, w: World, attempt: Attempt, errors: tuple[type[BaseException], ...]) -> None:
        self.w, self.attempt, self.errors = w, attempt, errors

    def run(self, before: Path | None, count: int, last: int) -> None:
        """Attempts on copies of the backup `before`, if there is one, at such `points`."""
        was = None if before is None else self.w.bounds(before).last
        steps = self._on_a_copy(before, lambda target: self.attempt(target, 0))
        assert steps, "a backup was made without a step"
        for n in points(steps, count, last):
            with seen_in(f"a backup that fails at step {n} of {steps}"):
                self._on_a_copy(before, partial(self._cut_off, n, was))

    def _on_a_copy(self, before: Path | None, act: Callable[[Path], T]) -> T:
        target = self.w.fresh("target")
        if before is not None:
            shutil.copytree(before, target)
        try:
            return act(target)
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _cut_off(self, n: int, was: int | None, target: Path) -> None:
        w = self.w
        try:
            self.attempt(target, n)
        except self.errors:
            if was is not None or Layout(target, REAL.files).is_store():
                last = w.verified(target)
                assert (was or 0) <= last <= w.last, f"the backup that is left ends at {last}; before, at {was}"
        report = w.back_up(target, verify=False)  # since it is verified right here
        for lease in LocalSource(w.store).leases():  # those of the dead expire; here there is no time for that
            w.store.leases.release(lease.id)
        assert report.to_txid == w.last, f"the next run ends at {report.to_txid}, not {w.last}"
        last = w.verified(target)
        assert last == w.last, f"after the next run the backup ends at {last}, not {w.last}"
        generations = [path.name for path in target.iterdir() if path.name.startswith("gen-")]
        assert len(generations) == 1, f"the next run leaves {generations}"
