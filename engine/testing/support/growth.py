"""What the calls of an engine cost, counted rather than timed, and how that grows.

A machine that others use too makes times useless: a commit takes twice as long because somebody compiles. So what can
be counted is: the lines of Python that a call runs, the bytes of memory that it holds at most, and the bytes that it
moves to and from files. They are the same in each run, but that memory of the interpreter's own may be among them.
What a library in C does between two lines is not in them, so processor time is measured too, in turns on the two
engines that are compared, and judged with a wide margin.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ...contract.engine import Context, Engine, StagingEngine
from ...env import REAL
from ...model.positions import Position, origin
from ...model.records import Record
from .crash_images import tree
from .workload import Operation, Workload

_IO = Path("/proc/self/io")
_SUITES = __name__.rpartition(".support.")[0]
_ORIGIN = origin(b"a store's own id")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call costs.

    Attributes:
        lines: of Python that it runs, on average, those of the suites left out.
        memory: bytes that it holds at most, above what was held before: the median, since one value may be huge.
        moved: bytes that the process reads from files and writes to them, on average; 0 if the system does not tell.
        seconds: of processor time in the calling thread: the median.
    """

    lines: float
    memory: float
    moved: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Growth:
    """How a call's cost grows, for the report.

    Attributes:
        call: `commit`, `view`, `opening`, `checkpoint` or `image`.
        against: `history`: the transactions so far, on a state that stays as large; or `size`: the things in the state.
        points: how much of that, with the cost there, in ascending order.
        exponents: by the name of each measure, x where the cost grows as the x-th power: 0 is flat, 1 is linear.
    """

    call: str
    against: str
    points: tuple[tuple[int, Cost], ...]
    exponents: dict[str, float]

    def __str__(self) -> str:
        (least, first), (most, last) = self.points[0], self.points[-1]
        grows = ", ".join(f"{measure} {exponent:.1f}" for measure, exponent in self.exponents.items())
        return (f"{self.call} against {self.against}, {least:,} to {most:,}: {first.seconds * 1e6:,.0f} to "
                f"{last.seconds * 1e6:,.0f} µs, {first.lines:,.0f} to {last.lines:,.0f} lines; exponents: {grows}")


def growth(call: str, against: str, points: Sequence[tuple[int, Cost]]) -> Growth:
    """With the exponents, from the first point to the last, or from the last but one if it is more there: what does not
    grow weighs least there, and what happens at one size only weighs least over all."""
    last = points[-1]
    exponents = {measure: max(_exponent(measure, first, last) for first in (points[0], points[-2]))
                 for measure in Cost.__slots__}
    return Growth(call, against, tuple(points), exponents)


def _exponent(measure: str, first: tuple[int, Cost], last: tuple[int, Cost]) -> float:
    low, high = getattr(first[1], measure), getattr(last[1], measure)
    return math.log(high / low) / math.log(last[0] / first[0]) if low > 0 and high > 0 else 0.0


_measured: list[tuple[str, Growth]] = []


def note_growth(engine: str, grown: Growth) -> None:
    """Keep it for the report."""
    _measured.append((engine, grown))


def measured() -> list[tuple[str, Growth]]:
    """What was measured since this was asked last, by the names of the engines."""
    noted = list(_measured)
    _measured.clear()
    return noted


class Meter:
    """Measures calls. Use it within `metering`, which keeps the garbage collector quiet."""

    def counted(self, calls: Sequence[Callable[[], object]]) -> Cost:
        """What can be counted; `seconds` is 0. The calls are slow meanwhile."""
        moved = _moved()
        lines, peaks = 0, []

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if event == "call" and frame.f_globals.get("__name__", "").startswith(_SUITES):
                return None
            lines += event == "line"
            return trace

        before_trace = sys.gettrace()
        for call in calls:
            sys.settrace(trace)
            try:
                call()
            finally:
                sys.settrace(before_trace)
        moved = _moved() - moved
        tracemalloc.start()
        try:
            for call in calls:
                tracemalloc.reset_peak()
                held, _ = tracemalloc.get_traced_memory()
                call()
                peaks.append(tracemalloc.get_traced_memory()[1] - held)
        finally:
            tracemalloc.stop()
        count = len(calls)
        return Cost(lines / count, statistics.median(peaks), moved / count, 0.0)

    def timed(self, *rows: Sequence[Callable[[], object]], times: int = 3) -> list[float]:
        """The median time of each row's calls. The rows take turns, so that what disturbs one disturbs all."""
        taken: list[list[float]] = [[] for _ in rows]
        for _ in range(times):
            for calls in zip(*rows, strict=True):
                for call, times_of in zip(calls, taken, strict=True):
                    began = time.thread_time()
                    call()
                    times_of.append(time.thread_time() - began)
        return [statistics.median(each) for each in taken]


@contextmanager
def metering() -> Iterator[Meter]:
    """A meter, while the garbage collector waits: its runs cost as much as all that lives."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield Meter()
    finally:
        if was_enabled:
            gc.enable()


def _moved() -> int:
    try:
        counts = dict(line.split(b": ") for line in _IO.read_bytes().splitlines())
    except OSError:
        return 0
    return int(counts[b"rchar"]) + int(counts[b"wchar"])


class Life:
    """An engine and its state, which may have any length of history: nothing is kept of what is past.

    Attributes:
        directory: the state's.
        context: what it is opened with.
        engine: the engine, open.
        model: of the last transaction.
        txid, end: the last transaction's number, and its position.
        written: bytes in the payloads of all transactions.
    """

    def __init__(self, work: Workload, directory: Path, begins: Position = _ORIGIN) -> None:
        """Makes a state that begins at a position, and opens it."""
        self._work = work
        self.directory = directory
        self.context = Context(REAL, work.opened_with)
        self.model: Any = work.new_model()
        self.end = begins
        self.written = 0
        directory.mkdir(parents=True)
        work.engine.create(directory, begins, self.context)
        self.engine: Engine[Any, Any] = work.engine.open(directory, self.context)

    @property
    def txid(self) -> int:
        return self.end.txid

    def commit(self, operations: list[Operation]) -> None:
        """One transaction, as the kit does it, the log left out."""
        engine = self.engine
        tx = engine.begin()
        try:
            self._work.run(tx, self.model, operations)
            payload = tx.payload()
            if not payload:
                return
            txid = self.txid + 1
            record = Record.make(self.end.chain, txid, 0, txid, engine.payload_version, payload, None)
            self.end = record.position
            self.written += len(payload)
            if isinstance(engine, StagingEngine):
                engine.stage(record, tx)
                engine.publish(record.position)
            else:
                engine.apply([record])
        finally:
            tx.close()

    def roll_back(self, operations: list[Operation]) -> bool:
        """A transaction that is dropped. Whether it would have changed anything."""
        tx = self.engine.begin()
        try:
            self._work.run(tx, self.model.copy(), operations)
            return bool(tx.payload())
        finally:
            tx.close()

    def checkpoint(self) -> None:
        self.engine.checkpoint(self.end)

    def view(self) -> None:
        """A view, opened and closed."""
        self.engine.view().close()

    def image(self) -> None:
        """An image, made and closed."""
        self.engine.image().close()

    def reopen(self) -> None:
        """Close and open."""
        self.engine.close()
        self.engine = self._work.engine.open(self.directory, self.context)

    def close(self) -> None:
        self.engine.close()

    @property
    def size(self) -> int:
        """About how large the content is, in bytes of its text."""
        return len(repr(self._work.expected(self.model)))

    def files(self) -> dict[str, int]:
        """The files of the state, and the bytes in each."""
        return {name: os.stat(self.directory / name).st_size for name in tree(self.directory)}
