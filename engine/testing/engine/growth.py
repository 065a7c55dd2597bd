"""What grows, and must not: the cost of each call, with the length of history and with the size of the state, and the
files of a state that stays as large as it is.

Two engines of one kind are compared, an old one and a young one, with contents that are equally large. Costs are
counted, and processor time is measured with a wide margin (`support/growth.py`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ...errors import HoldfastError
from ..support.contract import Contract, check, scratch
from ..support.growth import Cost, Life, Meter, growth, metering, note_growth
from ..support.not_tried import not_tried
from ..support.workload import Operation, Workload

_OLD, _LEAST_OLD, _OLD_S = 1500, 400, 0.5
"""Transactions of the old engine; fewer, but so many, if they take longer than this."""
_FLAT = 2.0
"""How many times as much a call may cost on the old engine."""
_SIZES = (64, 256, 1024)
_TOGETHER = 32
"""Things that are added in one transaction."""
_MOST_EXPONENT = 1.5
"""Of a cost against the size: 1 is linear, sorting is a little more, and 2 is quadratic."""
_WINDOW = 12
_ROUNDS = 3
_REPLACED = 6 << 20
"""Bytes, at least, that are written over the same things."""
_AS_LARGE = 1.5
_FILES = 64
"""How many more files there may be: more than this an image cannot hold open."""
_CHECKPOINTS, _BETWEEN = 80, 4
"""Checkpoints, and transactions between them."""
_MUCH, _ALL = 96 << 20, 0.8
"""Bytes that are written over the same things if fewer were too few to tell, and the share of them that is there still
if nothing is let go."""


class _Measure(NamedTuple):
    """A measure by its name in `Cost`, how a cost in it is said, and how much more nobody need be told of."""

    name: str
    verb: str
    of: str
    slack: float

    def said(self, cost: float) -> str:
        return f"{cost * 1e6 if self.name == 'seconds' else cost:,.0f}"


_MEASURES = (_Measure("lines", "runs", "lines of Python", 40), _Measure("memory", "holds", "bytes of memory", 16 << 10),
             _Measure("moved", "moves", "bytes to and from files", 16 << 10),
             _Measure("seconds", "takes", "µs of processor time", 30e-6))
_MEMORY, _TIME = _MEASURES[1], _MEASURES[-1]


class GrowthChecks(Contract):
    """See the module's text."""

    @check()
    def test_a_long_history_makes_nothing_dearer(self, work: Workload) -> None:
        """A commit, a view, and after a checkpoint also an opening, a checkpoint and an image, cost on a state with a
        long history at most twice what they cost on an equally large state with a short one, in lines of Python that
        run, memory and bytes moved, and in processor time. What an opening, a checkpoint and an image read may be as
        large as the files are."""
        work = work.at_full_size()
        with scratch() as place, metering() as meter, ExitStack() as lives:
            young, old = (lives.enter_context(closing(Life(work, place / name / "state"))) for name in ("young", "old"))
            began = time.process_time()
            for life, length in ((young, 1), (old, _OLD)):
                while life.txid < (min(length, _LEAST_OLD) if time.process_time() - began > _OLD_S else length):
                    before = life.txid
                    for operations in work.examples:  # whole rounds, so that the states are alike
                        life.commit(operations)
                    assert life.txid > before, "what operations() draws changes nothing"
            compared = _Compared(young, old, meter)
            some = [operations for operations in work.examples if old.roll_back(operations)][:_WINDOW]
            compared.look("commit", lambda life: [partial(life.commit, one) for one in some], old.size / young.size)
            for life in (young, old):
                life.checkpoint()
                life.reopen()
            files = sum(old.files().values()) / max(1, sum(young.files().values()))
            state = max(files, old.size / young.size)
            changes = [operation for operations in some for operation in operations]
            compared.look("view", lambda life: [life.view] * 4, old.size / young.size)
            compared.look("opening", lambda life: [life.reopen] * 2, state)
            compared.look("checkpoint", lambda life: [partial(_changed, life, changes)] * 3, state)
            compared.look("image", lambda life: [life.image] * 2, state)

    @check()
    def test_a_large_state_costs_at_most_in_proportion(self, work: Workload) -> None:
        """A commit, a view, an opening, a checkpoint and an image cost at most in proportion to the size of the state,
        or a little more, as sorting does. If the state is four times as large, they may cost eight times as much, and
        not sixteen times, as they would if each thing were compared with each other one."""
        work = work.at_full_size()
        with scratch() as place, metering() as meter, ExitStack() as lives:
            grown = []
            for size in _SIZES:
                life = lives.enter_context(closing(Life(work, place / str(size))))
                for first in range(0, size, _TOGETHER):
                    life.commit([o for n in range(first, first + _TOGETHER) for o in work.numbered(n)])
                life.checkpoint()
                grown.append(life)
            numbers = itertools.count(10**6)

            def added(life: Life) -> None:
                life.commit(work.numbered(next(numbers)))

            def added_durably(life: Life) -> None:
                _changed(life, work.numbered(next(numbers)))

            for name, call in (("commit", added), ("view", Life.view), ("checkpoint", added_durably),
                               ("opening", Life.reopen), ("image", Life.image)):
                _in_proportion(work, meter, name, [[partial(call, life)] * 3 for life in grown])

    @check()
    def test_the_files_stay_as_large_as_the_state(self, work: Workload) -> None:
        """While transactions replace the same things and checkpoints are made, the files of the state do not become
        more with each checkpoint, nor larger with each transaction: what was replaced is let go, at once or in time. A
        log that a library keeps counts too, and is let go while the engine is open: a server may run for a year."""
        for changes in _replacing(work):
            (_, few, small, less, little), (opened, many, large, more, much) = _checkpointed(work, changes)
            if much <= _AS_LARGE * little:
                break
        else:
            not_tried("whether the files stay as large as the state", "what sized() and operations() draw only adds to "
                      "it: it never stays as large")
            return
        assert many - few < _FILES, (
            f"after {_CHECKPOINTS - 10} more checkpoints of a state that stays as large, its directory has {many} "
            f"files instead of {few}: a checkpoint leaves behind what it replaces")
        _lets_go_while_it_is_open(work, opened - small, opened - large, (more - less) / _BETWEEN)
        if large - small > (more - less) / 2 + (64 << 10):
            say = (f"transactions of {more - less:,} bytes replaced the same things, and the files grew from "
                   f"{small:,} to {large:,} bytes, checkpoints and an opening included")
            if work.tiny:
                raise AssertionError(f"{say}: what was replaced is never let go (with the options {work.tiny}, "
                                     "under which it must happen early)")
            not_tried("whether the files stay as large as the state", f"{say}. If the engine tidies up later, give "
                      "the workload tiny=, the option that makes it do so early")


def _changed(life: Life, operations: list[Operation]) -> None:
    """A transaction and a checkpoint of it."""
    life.commit(operations)
    life.checkpoint()


def _replacing(work: Workload) -> Iterator[Sequence[list[Operation]]]:
    """Transactions that may change the same things again and again: large ones, if the workload can make them, and
    then those that it draws. In an engine of records or of a queue, each adds something."""
    sized = work.sized(_REPLACED // (_BETWEEN * _CHECKPOINTS), 0)
    if sized is not None:
        yield [sized]
    yield work.examples


def _lets_go_while_it_is_open(work: Workload, grown: int, let_go: int, written: float) -> None:
    """Raises `AssertionError` if files grow as long as the engine is open, and are small when it is opened again.

    Args:
        grown, let_go: bytes that they grew by while it was open, and that went when it was opened again.
        written: bytes that all checkpoints together had to write at least.
    """
    if grown <= written / 2 + (64 << 10) or let_go <= 3 * grown / 4:
        return
    # Any library's log may grow for a while: that of RocksDB has 64 MiB before it is let go.
    many = work.sized(_MUCH // _CHECKPOINTS, 0)
    if many is None:
        not_tried("whether the files stay as large while the engine is open", "the workload has no sized()")
        return
    with scratch() as place, closing(Life(work, place / "state")) as life:
        try:
            for _ in range(_CHECKPOINTS):
                _changed(life, many)
        except HoldfastError as error:
            not_tried("whether the files stay as large while the engine is open", str(error))
            return
        large = sum(life.files().values())
        life.reopen()
        small = sum(life.files().values())
    assert large < _ALL * life.written or small > large / 4, (
        f"{_CHECKPOINTS} transactions of {life.written:,} bytes replaced the same things, each with a checkpoint after "
        f"it, and the files grew to {large:,} bytes. Opened again, they have {small:,}: what was replaced is let go, "
        "but not as long as the engine is open. Have each checkpoint tidy up the log that the library keeps, and hold "
        "no reader open that needs it")


def _checkpointed(work: Workload, changes: Sequence[list[Operation]]) -> list[tuple[int, int, int, int, int]]:
    """Run transactions with many checkpoints. Returns after the tenth and after the last of them: the bytes of the
    files; then, when it was opened again, how many files there are, and their bytes; and those of all payloads, and of
    the content."""
    found = []
    with scratch() as place, closing(Life(work, place / "state")) as life:
        following = itertools.cycle(changes)
        for n in range(1 + _CHECKPOINTS):
            for operations in itertools.islice(following, _BETWEEN):
                life.commit(operations)
            life.checkpoint()
            if n in (10, _CHECKPOINTS):
                open_bytes = sum(life.files().values())
                life.reopen()
                files = life.files()
                found.append((open_bytes, len(files), sum(files.values()), life.written, life.size))
    return found


class _Compared:
    """Compares an old engine with a young one."""

    def __init__(self, young: Life, old: Life, meter: Meter) -> None:
        self._young, self._old, self._meter = young, old, meter

    def look(self, call: str, of: Callable[[Life], Sequence[Callable[[], object]]], larger: float) -> None:
        """Raises `AssertionError` if a call costs more than it may on the old one.

        Args:
            call: its name.
            of: gives the calls that are measured.
            larger: how many times as large the old state is.
        """
        young, old, meter = self._young, self._old, self._meter
        bound = _FLAT * max(1.0, larger)
        ages = young.txid, old.txid
        lower, upper = meter.counted(of(young)), meter.counted(of(old))
        for _ in range(_ROUNDS):
            low, high = meter.timed(of(young), of(old))
            if high <= bound * low + _TIME.slack and upper.memory <= bound * lower.memory + _MEMORY.slack:
                break
            lower, upper = _held_least(meter, (lower, upper), (of(young), of(old)))
        lower, upper = replace(lower, seconds=low), replace(upper, seconds=high)
        note_growth(young.engine.name, growth(call, "history", [(ages[0], lower), (ages[1], upper)]))
        for measure in _MEASURES:
            few, many = getattr(lower, measure.name), getattr(upper, measure.name)
            assert many <= bound * few + measure.slack, (
                f"{_named(call)} {measure.verb} {measure.said(few)} {measure.of} after {ages[0]:,} transactions, and "
                f"{measure.said(many)} after {ages[1]:,}. The state is {larger:.1f} times as large, so it may be "
                f"{bound:.1f} times as much. Is something kept of each transaction, and gone through again?")


def _in_proportion(work: Workload, meter: Meter, call: str, rows: Sequence[Sequence[Callable[[], object]]]) -> None:
    counted = [meter.counted(row[:1]) for row in rows]
    for _ in range(_ROUNDS):
        costs = [replace(cost, seconds=s) for cost, s in zip(counted, meter.timed(*rows, times=1), strict=True)]
        grown = growth(call, "size", list(zip(_SIZES, costs, strict=True)))
        if max(grown.exponents["seconds"], grown.exponents["memory"]) <= _MOST_EXPONENT:
            break
        counted = _held_least(meter, counted, [row[:1] for row in rows])
    note_growth(work.engine.name, grown)
    for measure in _MEASURES:
        few, many = (getattr(cost, measure.name) for cost in costs[-2:])
        exponent = grown.exponents[measure.name]
        assert exponent <= _MOST_EXPONENT or many <= few + 10 * measure.slack, (
            f"{_named(call)} {measure.verb} {measure.said(few)} {measure.of} on a state of {_SIZES[-2]} things, and "
            f"{measure.said(many)} on one of {_SIZES[-1]:,}: that grows as its power of {exponent:.1f}, and "
            "1 would be linear. Is each thing compared with each other one?")


def _held_least(meter: Meter, counted: Sequence[Cost],
                rows: Sequence[Sequence[Callable[[], object]]]) -> list[Cost]:
    """The same, with the least memory of one more measurement: a table of the interpreter's own may have grown."""
    return [replace(cost, memory=min(cost.memory, meter.counted(calls).memory))
            for cost, calls in zip(counted, rows, strict=True)]


def _named(call: str) -> str:
    return f"{'an' if call[0] in 'io' else 'a'} {call}"
