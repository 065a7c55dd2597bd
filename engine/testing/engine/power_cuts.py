"""Every crash, and every error of the disk, for engines that use the environment only: see `docs/crashes.md`.

A run on a simulated disk is recorded once; each point between two of its operations is a crash, and what it may leave
is opened again. If a moment has few states, each is tried; if it has many, some are. Equal disks are tried and counted
once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random

from hypothesis import strategies as st

from ..disks.simdisk import SimDisk
from ..disks.simfates import Drawn, Dropped, Fate, power_cuts
from ..disks.simfaults import DiskFault, Injected, faults_of, lacks_of
from ..disks.simops import Op
from ..support.contract import ABOVE_ENV, Contract, check
from ..support.counters import count
from ..support.scripts import AFTER_FULL, full_segments, long_script, short_script, steps_of
from ..support.shrinking import shortest
from ..support.simulated_run import Run, Step
from ..support.workload import Workload

_CHANGES = ("names", "write", "truncate")


class PowerCutChecks(Contract):
    """What is found again after a crash, a failed write, a failed sync."""

    @check(ABOVE_ENV)
    def test_a_power_cut_anywhere_leaves_a_prefix(self, work: Workload) -> None:
        """Wherever the power is cut, and whatever it leaves of the unsynced bytes, the store opens with exactly
        transactions 1 to n, n at least the last one acknowledged, and goes on from there."""

        def cut(run: Run, since: int) -> None:
            for ops, at in _points(run, since):
                for left in power_cuts(at, tries=self.effort.crash_states, salt=ops):
                    run.survives(left, ops)

        self._on_recorded(work, cut)

    @check(ABOVE_ENV)
    def test_a_power_cut_in_recovery_takes_nothing_back(self, work: Workload) -> None:
        """The power is cut again while the store recovers from a power cut, at any point and with any result. The next
        opening finds what the first one found, or would have found."""

        def cut(run: Run, since: int) -> None:
            for ops in _telling(run.disk.ops, since, (2 if since else 4) * self.effort.times):
                at = _after(run.disk.ops[:ops])
                for left in (at.crashed(Fate()), at.crashed(Drawn(Random(ops)))):
                    self._cut_recovery(run, left, ops)

        self._on_recorded(work, cut)

    def _cut_recovery(self, run: Run, left: SimDisk, ops: int) -> None:
        recovering = left.copy()
        found = run.recovers(recovering, ops, "close")
        for point, then in enumerate(left.points(recovering.ops)):
            for again in power_cuts(then, tries=self.effort.crash_states, salt=point):
                run.survives(again, ops, least=found)

    @check(ABOVE_ENV)
    def test_a_kill_and_then_a_power_cut(self, work: Workload) -> None:
        """A killed process leaves its writes in the page cache and its new names in memory. The next process finds them
        and builds on them. A power cut after that does not take them back."""

        def kill_and_cut(run: Run, since: int) -> None:
            for ops, at in _points(run, since):
                if ops and run.disk.ops[ops - 1].kind in _CHANGES:
                    disk = at.killed()
                    found = run.recovers(disk, ops, "prune")
                    for fate in (Dropped(), Dropped(data_kept=True)):
                        run.survives(disk.crashed(fate), ops, least=found)

        self._on_recorded(work, kill_and_cut)

    @check(ABOVE_ENV)
    def test_power_cuts_in_any_history(self, work: Workload) -> None:
        """Whatever was committed, and wherever the power is cut, and cut again while the store is opened: it opens
        with exactly transactions 1 to n, n at least the last one acknowledged."""
        tried = 0

        def claim(history: list[Step], data: st.DataObject) -> None:
            nonlocal tried
            run = Run(work)
            run.do(*history)
            ops = data.draw(st.integers(0, len(run.disk.ops)), label="the first cut, after so many operations")
            random = data.draw(st.randoms(use_true_random=False), label="what is lost")
            left = _after(run.disk.ops[:ops]).crashed(Drawn(random))
            found = run.acked_at(ops)
            if data.draw(st.booleans(), label="whether it is cut again"):
                recovering = left.copy()
                found = run.recovers(recovering, ops, "close")
                cut = data.draw(st.integers(0, len(recovering.ops)), label="the second, while it is opened")
                for op in recovering.ops[:cut]:
                    left.apply(op)
                left = left.crashed(Drawn(random))
            run.survives(left, ops, least=found)
            tried += run.states

        self.prove(claim, examples=40, history=steps_of(work), data=st.data())
        count("crash states", work.engine.name, tried)

    @check(ABOVE_ENV)
    def test_a_failing_disk(self, work: Workload) -> None:
        """Any operation of the disk fails, once or from then on: for lack of room or otherwise, as a partial write, or
        as a sync without effect. Each call ends as the contract says, reads go on, and what may be retried can be.
        Afterwards the store opens with exactly transactions 1 to n, n at least the last one acknowledged."""
        made = Run(work)
        made.do(("open",), ("close",))
        empty = made.disk.copy()
        creation: list[Step] = [("open",), ("commit", work.numbered(0)), ("close",)]
        with _unsaid():
            tried = self._failing(work, creation, None)
            tried += self._failing(work, short_script(work), empty)
            tried += self._failing(work, full_segments(work), empty, since=-AFTER_FULL, steps=4)
        count("crash states", work.engine.name, tried)

    @check(ABOVE_ENV)
    def test_running_out_of_descriptors_or_memory(self, work: Workload) -> None:
        """Any opening of a file lacks descriptors, or any operation of the disk lacks memory, once or until the call
        ends. No commit is lost or in doubt, the store is not poisoned, what failed can be done again, and everything is
        there afterwards."""
        made = Run(work)
        made.do(("open",), ("close",))
        empty, script = made.disk.copy(), short_script(work)
        clean, openings = Run(work, empty.copy()), 0

        def opening(name: str) -> None:
            nonlocal openings
            openings += 1

        clean.disk.opening = opening
        clean.do(*script)
        with _unsaid():
            tried = sum(self._with_fault(work, script, empty, fault)
                        for fault in self.effort.some(lacks_of(clean.disk.ops, openings)))
        count("crash states", work.engine.name, tried)

    def _failing(self, work: Workload, script: list[Step], disk: SimDisk | None, *, since: int = 0,
                 steps: int = 10**6) -> int:
        """Try faults in `steps` steps of a script, from step `since` on; how many different disks they left."""
        clean = Run(work, disk and disk.copy())
        clean.do(*script)
        starts = [done for done, _ in clean.told[since:][: steps + 1]]
        end = starts[-1] if len(starts) > steps else len(clean.disk.ops)
        return sum(self._with_fault(work, script, disk, fault)
                   for fault in self.effort.some(faults_of(clean.disk.ops))
                   if starts[0] <= fault.at < end)

    def _with_fault(self, work: Workload, script: list[Step], disk: SimDisk | None, fault: DiskFault) -> int:
        """One run with a fault; how many different disks it left."""
        run = Run(work, disk and disk.copy())
        try:
            return _fails(run, script, fault)
        except Exception as error:
            step = _step_at(run, fault)
            raise self._shortest(script, error, lambda steps: _first(work, steps, disk, fault, step)) from None

    def _on_recorded(self, work: Workload, survives: Callable[[Run, int], None]) -> None:
        """Call `survives` with runs, and the number of operations after which crashes are tried."""

        def fails(steps: list[Step]) -> Exception | None:
            run = Run(work)
            try:
                run.do(*steps)
            except Exception:  # no such run, or another fault
                return None
            return _raised(lambda: survives(run, run.told[-1][0]))

        for run, since in _recorded(work):
            try:
                survives(run, since)
            except Exception as error:
                cut_off = [step for done, step in run.told if done < max(run.failed_at, 1)]
                raise self._shortest(cut_off, error, fails) from None
            count("crash states", work.engine.name, run.states)

    def _shortest(self, steps: list[Step], error: Exception, fails: Callable[[list[Step]], Exception | None],
                  ) -> Exception:
        return shortest(steps, error, fails) if self.shrinks else error


@contextmanager
def _unsaid() -> Iterator[None]:
    """Silence the kit's log: what it says of injected errors would hide the rest, and takes half of the time."""
    logger = logging.getLogger("holdfast")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _recorded(work: Workload) -> list[tuple[Run, int]]:
    """Runs, each with the number of operations after which crashes are tried."""
    long, full = Run(work), Run(work)
    long.do(*long_script(work))
    full.do(*full_segments(work))
    return [(long, 0), (full, full.told[-AFTER_FULL][0])]


def _points(run: Run, since: int) -> Iterator[tuple[int, SimDisk]]:
    """Each moment of a run: how many operations were done, and the disk."""
    return ((ops, at) for ops, at in enumerate(SimDisk().points(run.disk.ops)) if ops >= since)


def _after(ops: list[Op]) -> SimDisk:
    disk = SimDisk()
    for op in ops:
        disk.apply(op)
    return disk


def _telling(ops: list[Op], since: int, number: int) -> list[int]:
    """Some points after changes, spread over a run, the last one among them; none if nothing was changed."""
    points = [at + 1 for at, op in enumerate(ops) if op.kind in _CHANGES and at >= since]
    return sorted({points[-1 - i * (len(points) - 1) // number] for i in range(number)}) if points else []


def _raised(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _step_at(run: Run, fault: DiskFault) -> str:
    """The kind of the step that a fault strikes; empty if it is counted by openings."""
    if fault.kind == "EMFILE":
        return ""
    kinds: list[str] = [step[0] for done, step in run.told if done <= fault.at]
    return kinds[-1]


def _first(work: Workload, steps: list[Step], disk: SimDisk | None, like: DiskFault, step: str) -> Exception | None:
    """What the earliest fault leads to that leads to an error, of those of a kind in steps of a kind."""
    clean, openings = Run(work, disk and disk.copy()), 0

    def opening(name: str) -> None:
        nonlocal openings
        openings += 1

    clean.disk.opening = opening
    if _raised(lambda: clean.do(*steps)) is not None:  # no such run, or another fault
        return None
    faults = (*faults_of(clean.disk.ops), *lacks_of(clean.disk.ops, openings))
    for fault in faults:
        if (fault.kind, fault.lasting, _step_at(clean, fault)) == (like.kind, like.lasting, step):
            error = _raised(partial(_fails, Run(work, disk and disk.copy()), steps, fault))
            if error is not None:
                return error
    return None


def _fails(run: Run, steps: list[Step], fault: DiskFault) -> int:
    """One run with a fault; how many different disks it left."""
    injected = Injected(run.disk, fault)
    try:
        try:
            run.endure(injected, *steps)
        except Exception as error:
            error.add_note(run.story(len(run.disk.ops) + 1))
            raise
        injected.heal()
        ops, acked = len(run.disk.ops), run.last_acknowledged
        for left in (run.disk.crashed(Dropped()), run.disk.killed()):
            run.survives(left, ops, least=acked)
    except Exception as error:
        error.add_note(f"the disk's fault: {fault}" + (f", the {injected.struck[0]}" if injected.struck else ""))
        raise
    return run.states
