"""What code costs, counted in instructions of Python's: no clock, and so the same on each run and each machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


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


def steps(call: Callable[[], object]) -> int:
    """How many instructions a call takes."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with each_step(step):
        call()
    return count
