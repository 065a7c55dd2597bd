"""What a person sees: steps with a bar each on a terminal, plain lines elsewhere.

Bars need `rich`, which is an extra; without it, or when the output is not a terminal, each step is one line when it
begins and one when it is done, so that a log of the run reads as a story.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
except ImportError:
    HAVE_RICH = False
else:
    HAVE_RICH = True


class Step:
    """One step as it runs: `advance` it, and say at the end what came of it."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task
        self.outcome = ""

    def advance(self, stage: str, done: int, total: int) -> None:
        """How far it is; fits as a progress callback of backups and restores."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=max(total, 1), stage=stage)

    def done(self, outcome: str) -> None:
        """What came of it, in words; shown when the step ends."""
        self.outcome = outcome


class Terminal:
    """Shows steps, one after the other."""

    def __init__(self, steps: int, out: TextIO | None = None) -> None:
        out = sys.stdout if out is None else out
        self._out, self._steps, self._number = out, steps, 0
        self._console = Console(file=out) if HAVE_RICH and out.isatty() else None

    def line(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self._out, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """A step that lasts as long as the block. An error in it leaves the step unfinished on the screen."""
        self._number += 1
        head = f"[{self._number}/{self._steps}] {text}"
        began = monotonic()
        if self._console is None:
            self.line(head)
            step = Step()
            yield step
        else:
            self.line(head)
            columns = (SpinnerColumn(), BarColumn(bar_width=60), TimeElapsedColumn(),
                       TextColumn("{task.fields[stage]}"))
            with Progress(*columns, console=self._console, transient=True) as bar:
                task: TaskID = bar.add_task("", total=None, stage="")
                step = Step(bar, task)
                yield step
        self.line(f"      {step.outcome} ({monotonic() - began:.1f} s)")
