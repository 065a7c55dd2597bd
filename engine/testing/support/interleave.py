"""Something done in the middle of something else, in a thread of its own: at each operation of a simulated disk, say.

The other thread may have to wait for a lock that this side holds, as the contract allows. This side waits for it only a
moment, and begins nothing more while it waits. So nothing deadlocks, and if nothing waits, the order is the same in
every run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .whereabouts import whereabouts

MOMENT_S = 0.2
_TURN_S = 0.0005
LIMIT_S = 40.0
"""A call in a check that takes this many seconds never ends."""
LINES = 200
"""How many lines of a block are tried."""
_LAST_LINES = 100
_LINE_MOMENT_S = 0.02
_SUITES = __name__.rpartition(".support.")[0]


class Beside:
    """Runs calls in another thread, one at a time."""

    def __init__(self, moment: float = MOMENT_S) -> None:
        """
        Args:
            moment: longest wait, in seconds, for something that may be waiting for us.
        """
        self._moment = moment
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self, call: Callable[[], object]) -> None:
        """Begin `call`, unless an earlier one still waits, and give it a moment to end. Raises what an earlier one
        raised, or this one."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_TURN_S)  # what it waits for may be free just now, and not for long
            if self._thread.is_alive():
                return
        self.finish()

        def work() -> None:
            try:
                call()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="holdfast-beside", daemon=True)
        self._thread.start()
        self._thread.join(self._moment)
        if not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait for what was begun. Raises what it raised."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(LIMIT_S)
            if thread.is_alive():
                raise AssertionError("a call in another thread never ended: two sides wait for each other\n"
                                     + whereabouts(thread))
        error, self._error = self._error, None
        if error is not None:
            raise error


@contextmanager
def at_each_line(call: Callable[[], object], among: int = 0) -> Iterator[None]:
    """Run `call` in another thread before each line of Python that this thread comes to within the block, the first
    `LINES` of them. Raises what it raised, when the block has ended.

    Args:
        among: about how many lines there will be, as `lines_of` tells. If these are more than `LINES`, that many all
            over the block are tried, and all of the last ones.
    """
    beside = Beside(_LINE_MOMENT_S)
    errors: list[BaseException] = []
    last = max(among, LINES) - _LAST_LINES
    step = -(-last // (LINES - _LAST_LINES))
    # There may be some more lines than were counted, and the last ones matter most.
    end = LINES if among <= LINES else among + LINES

    def look(line: int) -> None:
        if line < end and (line >= last or line % step == 0) and not errors:
            try:
                beside.run(call)
            except BaseException as error:  # it must not be raised in the code that is being looked at
                errors.append(error)

    try:
        with _traced(look):
            yield
    finally:
        beside.finish()
    if errors:
        raise errors[0]


def lines_of(call: Callable[[], object]) -> int:
    """How many lines of Python `call` comes to in this thread."""
    lines = 0

    def count(line: int) -> None:
        nonlocal lines
        lines = line + 1

    with _traced(count):
        call()
    return lines


@contextmanager
def at_lines(numbers: Container[int], call: Callable[[], object]) -> Iterator[None]:
    """Call `call` in this thread before the lines of Python with these numbers, from 0, that it comes to within the
    block. What it raises is raised there."""

    def look(line: int) -> None:
        if line in numbers:
            call()

    with _traced(look):
        yield


@contextmanager
def each_step(step: Callable[[], None]) -> Iterator[None]:
    """Call `step` for each instruction of a function that this thread enters within the block."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            step()
        return trace

    before = sys.gettrace()  # coverage, or a debugger
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _traced(look: Callable[[int], None]) -> Iterator[None]:
    """Call `look` before each line that this thread comes to within the block, with its number from 0. Those of the
    suites do not count."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if frame.f_globals.get("__name__", "").startswith(_SUITES):
            return None
        if event == "line":
            lines += 1
            look(lines - 1)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
