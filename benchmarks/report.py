"""The report: ratios first, each beside its target. A table if `rich` is installed, otherwise plain columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from .harness import Line, Samples

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:
    HAVE_RICH = False
else:
    HAVE_RICH = True

_HEAD = ("workload", "ratio", "target", "met", "figure", "beside", "its figure", "unit")


def number(value: float) -> str:
    """
    >>> number(1234567.8), number(12.345), number(0.1234), number(0)
    ('1,234,568', '12.3', '0.123', '0')
    """
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def spread(samples: Samples | None, *, sign: str = "") -> str:
    """The median, and the lowest and highest if there are several samples."""
    if samples is None:
        return ""
    if len(samples.values) == 1:
        return f"{number(samples.median)}{sign}"
    return f"{number(samples.median)}{sign} ({number(samples.low)} … {number(samples.high)})"


def row(line: Line) -> tuple[str, ...]:
    """A line's cells, as `_HEAD` names them."""
    target = ""
    if line.target is not None:
        unit = f" {line.unit}" if line.peer_figure is None else " ×"
        target = f"{'≥' if line.better == 'more' else '≤'} {number(line.target)}{unit}"
    met = {None: "", True: "yes", False: "NO"}[line.met]
    workload = f"{line.workload}\n  {line.note}" if line.note else line.workload
    return (workload, spread(line.ratio, sign=" ×"), target, met,
            spread(line.figure), line.peer or "", spread(line.peer_figure), line.unit)


def show(machine: dict[str, Any], lines: Sequence[Line], out: TextIO | None = None) -> None:
    """Print the report for people."""
    out = sys.stdout if out is None else out
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = (f"{machine['cores']} cores of {machine['cpu']}, {machine['memory']}, {machine['file_system']} on "
            f"{machine['system']}\nPython {machine['python']}, SQLite {machine['sqlite']}, {versions}\n"
            f"{machine['time']}. Medians of interleaved rounds (lowest … highest); a ratio is ours over the other, "
            "taken round by round.")
    if HAVE_RICH and out.isatty():
        table = Table(title="Holdfast benchmarks", caption=head, caption_justify="left")
        for name in _HEAD:
            table.add_column(name, justify="right" if name in ("ratio", "figure", "its figure") else "left")
        for line in lines:
            style = {None: None, True: "green", False: "bold red"}[line.met]
            table.add_row(*row(line), style=style)
        Console(file=out).print(table)
        return
    print(head, file=out)
    for line in lines:
        workload, ratio, target, met, figure, peer, peer_figure, unit = row(line)
        title, _, note = workload.partition("\n  ")
        judged = f"   target {target}: {'met' if met == 'yes' else 'NOT MET'}" if target else ""
        print(f"\n{title}" + (f"  [{note}]" if note else ""), file=out)
        if ratio:
            print(f"  {ratio}{judged}\n  {figure} {unit}; {peer}: {peer_figure} {unit}", file=out)
        else:
            print(f"  {figure} {unit}{judged}", file=out)


def save(path: Path, machine: dict[str, Any], lines: Sequence[Line]) -> None:
    """The same as one JSON object: `machine`, and `lines` with every round's value."""
    path.write_text(json.dumps({"machine": machine, "lines": [line.to_json() for line in lines]}, indent=1) + "\n")
