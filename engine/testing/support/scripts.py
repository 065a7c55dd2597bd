"""The fixed runs that crashes are tried on, made of what a workload gives: the same for each run of the suite."""

from __future__ import annotations

import contextlib

from hypothesis import strategies as st

from ...contract.engine import BulkEngine
from .simulated_run import Run, Step
from .workload import Operation, Workload

LARGE = 33_000
"""Bytes of a payload of which three fit into a segment of the smallest size."""
_WORTH = 1000
"""Operations that add fewer bytes to a payload are left out of a large one."""


class _RolledBack(Exception):
    """Ends a transaction that was only looked at."""


class Script:
    """What the steps of a script are made of, one after the other."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._drawn = work.examples
        self._next = 0
        run = Run(work)
        run.do(("open",))
        self._store = run.store
        by_size = sorted(self._drawn, key=lambda operations: self._grown(operations, [], 0))
        self._bulky, self._light = by_size[: -21 : -1], by_size[:40]

    def _grown(self, operations: list[Operation], more: list[list[Operation]], size: int) -> int:
        """Bytes of a payload, in an empty store. To its `operations` some of `more` are added until it has `size`."""
        grown = 0
        with contextlib.suppress(_RolledBack), self._store.transaction() as tx:
            model = self._work.new_model()
            self._work.run(tx, model, operations)
            grown = len(tx.payload())
            for some in more:
                if grown >= size:
                    break
                self._work.run(tx, model, some)
                before, grown = grown, len(tx.payload())
                if grown - before >= _WORTH:
                    operations += some
            raise _RolledBack
        return grown

    def small(self) -> list[Operation]:
        """Operations of a transaction that changes something."""
        self._next += 1
        return [*self._drawn[self._next % len(self._drawn)], *self._work.numbered(self._next)]

    def light(self) -> list[Operation]:
        """The same, but nothing that takes long."""
        self._next += 1
        return [*self._light[self._next * 7 % len(self._light)], *self._work.numbered(self._next)]

    def large(self, size: int) -> list[Operation]:
        """Operations of a transaction whose payload is about this many bytes, or as large as some dozens of drawn ones
        make it."""
        operations = self.small()
        turn = self._next % len(self._bulky)
        self._grown(operations, 2 * (self._bulky[turn:] + self._bulky[:turn]), size)
        return operations


def _loads(work: Workload, *steps: Step) -> tuple[Step, ...]:
    return steps if issubclass(work.engine, BulkEngine) else ()


def long_script(work: Workload) -> list[Step]:
    """All that a store does to its disk, except filling a segment: creation, commits alone and together, checkpoints,
    bulk loads, a slot, a close, a reopening, a new epoch, pruning, and all that once more. It ends as if killed."""
    of = Script(work)
    small, large = of.small, of.large
    return [
        ("open",), ("commit", small()), ("commit", large(2000)), ("spare",), ("checkpoint",), ("commit", small()),
        ("commit", large(5000)), ("keep",), ("together", small(), small(), small()), *_loads(work, ("load", 10**6)),
        ("commit", small()), ("checkpoint",), ("let_go",), ("prune",), ("commit", small()), ("close",),
        ("open",), ("commit", small()), ("epoch",), ("checkpoint",), ("commit", large(5000)),
        *_loads(work, ("load", 10**6 + 1)), ("together", small(), small()), ("prune",), ("commit", small()),
        ("epoch",), ("close",), ("open",), ("commit", small()), ("checkpoint",), ("commit", small()), ("prune",),
        ("commit", small()), ("commit", small()),
    ]


def short_script(work: Workload) -> list[Step]:
    """Once each of what a store does to its disk, and nothing large."""
    of = Script(work)
    return [
        ("open",), ("commit", of.light()), ("spare",), ("commit", of.light()), ("checkpoint",), ("keep",),
        ("together", of.light(), of.light()), *_loads(work, ("load", 10**6)), ("close",),
        ("open",), ("commit", of.light()), ("checkpoint",), ("prune",), ("commit", of.light()), ("close",),
    ]


AFTER_FULL = 5
"""The last steps of `full_segments`, from the one on that does not fit."""


def full_segments(work: Workload) -> list[Step]:
    """What fills a segment, or as much of one as some dozens of commits can; the first transactions in the next; and
    what makes the full one superfluous."""
    of, run = Script(work), Run(work)
    run.do(("open",))
    steps: list[Step] = [("open",)]
    while len(run.store.log.segments()) < 2 and len(steps) < 50:
        steps.append(("commit", of.large(LARGE)))
        run.do(steps[-1])
    return [*steps, ("commit", of.small()), ("checkpoint",), ("prune",), ("commit", of.small())]


def steps_of(work: Workload) -> st.SearchStrategy[list[Step]]:
    """Short runs, as they may be drawn."""
    commit = st.tuples(st.just("commit"), work.operations())
    together = st.lists(work.operations(), min_size=2, max_size=3).map(lambda several: ("together", *several))
    again = st.just(("close",))
    return st.lists(st.one_of(commit, st.just(("checkpoint",)), together, again), min_size=1, max_size=7).map(_opening)


def _opening(steps: list[Step]) -> list[Step]:
    """With an opening at the start and after each close."""
    whole: list[Step] = [("open",)]
    for step in steps:
        whole += (step, ("open",)) if step[0] == "close" else (step,)
    return whole
