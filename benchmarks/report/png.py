"""The plots of a run as PNG files, for pages that take pictures."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from . import figures
from .groups import Group, Overall, Shown, grouped, overall
from .saved import Run
from .words import heading


def save(directory: Path, run: Run) -> list[Path]:
    """Write `peers.png`, and a file for each group, curve and latencies, named by workload and title, into a directory,
    which is made. A figure without a peer has no plot. Returns the files. Raises `OSError`, and `SettingError` if
    matplotlib is not installed."""
    figures.require()
    results = [one for results in run.results.values() for one in results]
    looks = figures.styles(results)
    plots: dict[str, Shown | list[Overall]] = {}
    if peers := overall(results):
        plots["peers"] = peers
    for name, found in run.results.items():
        for shown in grouped(found):
            if not isinstance(shown, Group) or len(shown.bars) > 1:
                plots[_free(f"{name}-{_plain(heading(shown))}", plots)] = shown
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for stem, plot in plots.items():
        figures.png(plot, directory / f"{stem}.png", looks)
        made.append(directory / f"{stem}.png")
    return made


def _plain(title: str) -> str:
    """
    >>> _plain("one hop, warm: Kùzu / 1,000 ms")
    'one-hop-warm-kuzu-1-000-ms'
    """
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub("[^a-z0-9]+", "-", ascii_only).strip("-")[:80]


def _free(stem: str, taken: dict[str, Shown | list[Overall]]) -> str:
    """The stem, with a number if it is taken."""
    number, found = 1, stem
    while found in taken:
        number += 1
        found = f"{stem}-{number}"
    return found
