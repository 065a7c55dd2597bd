"""Figures, targets and growth in words, the same in every form of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..harness import Curve, Line, Result, Samples
from .compare import Comparison, busy
from .groups import Group

RATIO = ("Medians of interleaved rounds (lowest … highest). A ratio is ours over the other, taken round by round; if "
         "less is better, below 1 is ahead.")
"""What every reader must know."""


def number(value: float) -> str:
    """
    >>> number(1234567.8), number(12.345), number(0.1234), number(0.00321), number(0)
    ('1,234,568', '12.3', '0.123', '0.0032', '0')
    """
    if abs(value) < 0.1:
        return f"{value:#.2g}" if value else "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def spread(samples: Samples | None, *, sign: str = "") -> str:
    """The median, and the lowest and highest if there are several samples."""
    if samples is None:
        return ""
    if len(samples.values) == 1:
        return f"{number(samples.median)}{sign}"
    return f"{number(samples.median)}{sign} ({number(samples.low)} … {number(samples.high)})"


def target(result: Line | Curve) -> str:
    """What it should reach, or nothing."""
    if isinstance(result, Curve):
        return "" if result.flat is None else f"≤ {result.flat:,g} ×"
    if result.target is None:
        return ""
    unit = f" {result.unit}" if result.peer_figure is None else " ×"
    return f"{'≥' if result.better == 'more' else '≤'} {result.target:,g}{unit}"


def power(curve: Curve, contestant: str) -> str:
    """How a cost grows, such as `n^0.98`; nothing if it was measured at one size only."""
    exponent = curve.exponent(contestant)
    return "" if exponent is None else f"n^{round(exponent, 2) + 0.0:.2f}"


def grown(curve: Curve) -> str:
    """How many times as much ours costs in the end; nothing if it was measured at one size only."""
    sizes = [size for size, cost in zip(curve.sizes, next(iter(curve.costs.values())), strict=True) if cost is not None]
    return "" if curve.grown is None else f"{number(curve.grown)} × from {sizes[0]:,} to {sizes[-1]:,} {curve.along}"


def heading(shown: Group | Result) -> str:
    """What was done; and by what a cost grows, since the same work may be measured along several sizes."""
    return f"{shown.workload}, by {shown.along}" if isinstance(shown, Curve) else shown.workload


def share_name(share: float) -> str:
    """
    >>> share_name(0.5), share_name(0.999), share_name(1.0)
    ('p50', 'p99.9', 'most')
    """
    return "most" if share == 1 else f"p{100 * share:.6g}"


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """What the run was measured on, in a few lines."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = ", ".join(f"{value:g}" for value in machine["load"])
    lines = [f"{machine['cores']} cores of {machine['cpu']}, {machine['memory']}, {machine['file_system']} on "
             f"{machine['system']}", f"Python {machine['python']}, SQLite {machine['sqlite']}, {versions}",
             f"{machine['time']}, load {load}"]
    return [*lines, said] if (said := busy(machine)) else lines


def counted(comparison: Comparison) -> str:
    """How many of each, in a sentence."""
    counts = comparison.counts()
    return (f"{counts['better']} better, {counts['worse']} worse, {counts['no difference']} without a difference that "
            f"the rounds show, {counts['not judged']} not judged, because they have fewer than three rounds.")
