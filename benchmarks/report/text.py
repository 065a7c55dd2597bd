"""The report as text: ratios first, each beside its target. Tables if `rich` is installed, otherwise plain lines."""

from __future__ import annotations

import sys
from typing import TextIO

from ..harness import Curve, Latencies, Line, Result
from .compare import Comparison
from .groups import Group, Shown, grouped, judged, unmet
from .saved import Run
from .words import RATIO, counted, grown, heading, machine_lines, number, power, share_name, spread, target

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:
    HAVE_RICH = False
else:
    HAVE_RICH = True

_HEAD = ("workload", "ratio", "target", "met", "figure", "beside", "its figure", "unit")
_SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)


def titled(result: Result) -> str:
    return f"{heading(result)}\n  {result.note}" if result.note else heading(result)


def row(line: Line) -> tuple[str, ...]:
    """A line's cells, as `_HEAD` names them."""
    met = {None: "", True: "yes", False: "NO"}[line.met]
    return (titled(line), spread(line.ratio, sign=" ×"), target(line), met,
            spread(line.figure), line.peer or "", spread(line.peer_figure), line.unit)


def show(run: Run, out: TextIO | None = None) -> None:
    """Print the report for people."""
    out = sys.stdout if out is None else out
    results = [one for results in run.results.values() for one in results]
    head = "\n".join((*machine_lines(run.machine), RATIO))
    if HAVE_RICH and out.isatty():
        _tables(head, results, Console(file=out, markup=False))
    else:
        print(head, file=out)
        for shown in grouped(results):
            print("\n" + "\n  ".join(_told(shown)), file=out)
    if of := len(judged(results)):
        print(f"\n{of - len(unmet(results))} of {of} targets are met.", file=out)
    if run.failed:
        print(f"\nNot all is here: {', '.join(run.failed)} ended with an error.", file=out)


def _told(shown: Shown) -> list[str]:
    """A group, a curve or latencies in plain lines, the first of which is a title."""
    if isinstance(shown, Group):
        return [shown.workload, *(told for line in shown.lines for told in _told_line(line))]
    title = f"{heading(shown)}  [{shown.note}]" if shown.note else heading(shown)
    if isinstance(shown, Latencies):
        return [title, *(f"{name}: {_percentiles(pairs)}; {shown.counts[name]:,} calls"
                         for name, pairs in shown.percentiles.items())]
    lines = [f"{name} {power(shown, name)}".rstrip() + ": " + ", ".join(
        f"{spread(cost)} {shown.unit} at {size:,}" for size, cost in zip(shown.sizes, costs, strict=True)
        if cost is not None) for name, costs in shown.costs.items()]
    return [title, *([f"{grown(shown)}{_aim(shown)}"] if grown(shown) else []), *lines]


def _told_line(line: Line) -> list[str]:
    _, ratio, _, _, figure, peer, peer_figure, unit = row(line)
    note = f"  [{line.note}]" if line.note else ""
    if ratio:
        return [f"{ratio}{_aim(line)}", f"  {figure} {unit}; {peer}: {peer_figure} {unit}{note}"]
    return [f"{figure} {unit}{_aim(line)}{note}"]


def _aim(result: Line | Curve) -> str:
    return "" if result.met is None else f"   target {target(result)}: {'met' if result.met else 'NOT MET'}"


def _percentiles(pairs: tuple[tuple[float, float], ...]) -> str:
    return ", ".join(f"{share_name(share)} {number(value)} ms" for share, value in pairs if share in _SHARES)


def _tables(head: str, results: list[Result], console: Console) -> None:
    table = Table(title="Holdfast benchmarks", caption=head, caption_justify="left")
    for name in _HEAD:
        table.add_column(name, justify="right" if name in ("ratio", "figure", "its figure") else "left")
    for one in results:
        if isinstance(one, Line):
            table.add_row(*row(one), style={None: None, True: "green", False: "bold red"}[one.met])
    console.print(table)
    for one in results:
        if isinstance(one, Curve):
            console.print(_curve(one))
        elif isinstance(one, Latencies):
            console.print(_latencies(one))


def _curve(curve: Curve) -> Table:
    met = {None: "", True: "yes", False: "NO"}[curve.met]
    table = Table(title=titled(curve), title_justify="left", caption_justify="left",
                  caption=grown(curve) + (f"; target {target(curve)}, met: {met}" if met else ""))
    for name in (f"{curve.unit}, by {curve.along}", "grows", *(f"{size:,}" for size in curve.sizes)):
        table.add_column(name)
    for name, costs in curve.costs.items():
        table.add_row(name, power(curve, name), *map(spread, costs))
    return table


def _latencies(latencies: Latencies) -> Table:
    table = Table(title=titled(latencies), title_justify="left")
    for name in ("ms", *map(share_name, _SHARES), "calls"):
        table.add_column(name)
    for name, pairs in latencies.percentiles.items():
        at = dict(pairs)
        table.add_row(name, *(number(at[share]) if share in at else "" for share in _SHARES),
                      f"{latencies.counts[name]:,}")
    return table


def show_comparison(comparison: Comparison, out: TextIO | None = None) -> None:
    """Print what is better and worse than in an earlier run."""
    out = sys.stdout if out is None else out
    print(f"\nCompared with the run of {comparison.time}:", file=out)
    for warning in comparison.warnings:
        print(f"warning: {warning}", file=out)
    for change in comparison.changes:
        sign = " ×" if change.now.unit == "×" else f" {change.now.unit}"
        print(f"  {change.verdict:13}  {change.now.what}: {spread(change.then.samples, sign=sign)} then, "
              f"{spread(change.now.samples, sign=sign)} now", file=out)
    for word, only in (("then", comparison.only_then), ("now", comparison.only_now)):
        for what in only:
            print(f"  only {word:8}  {what}", file=out)
    print(counted(comparison), file=out)
