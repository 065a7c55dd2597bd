"""How things are timed, and what a result is.

A figure alone says more about the machine and the minute than about the code. So each workload names its contestants:
ours, and a limit or peer. `interleave` runs them in turn, in rounds of rotating order, so that a slow minute affects
all of them. The ratio is taken within each round, under equal conditions; the report shows its median over the rounds,
and the lowest and highest. Nothing here asserts a time: a benchmark reports, a test judges.
"""

from __future__ import annotations

import math
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

Contestant = Callable[[], float]
"""Runs once, for about the scale's `seconds`, and returns its figure."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One figure, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: Samples) -> Samples:
        """Their ratio, round by round."""
        return Samples(tuple(a / b if b else float("inf") for a, b in zip(self.values, other.values, strict=True)))

    def to_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high, "values": list(self.values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the report.

    Attributes:
        workload: what was done, in words.
        figure: ours, in `unit`.
        ours: whose it is.
        peer: the limit or peer, in words; None if there is none.
        peer_figure: the peer's figure, in the same unit, from the same rounds.
        target: what the ratio should reach, or the figure if there is no peer; None: no target.
        better: whether more of `unit` is better, or less.
    """

    workload: str
    figure: Samples
    unit: str
    ours: str = "Holdfast"
    peer: str | None = None
    peer_figure: Samples | None = None
    target: float | None = None
    better: Literal["more", "less"] = "more"
    note: str = ""

    @property
    def ratio(self) -> Samples | None:
        """Ours over theirs, round by round."""
        return None if self.peer_figure is None else self.figure.over(self.peer_figure)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        value = (self.ratio or self.figure).median
        return value >= self.target if self.better == "more" else value <= self.target

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "unit": self.unit,
            "ours": self.ours,
            "figure": self.figure.to_json(),
            "peer": self.peer,
            "peer_figure": None if self.peer_figure is None else self.peer_figure.to_json(),
            "ratio": None if self.ratio is None else self.ratio.to_json(),
            "target": self.target,
            "better": self.better,
            "met": self.met,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How a cost grows: the same work at several sizes.

    Attributes:
        workload: what was done, in words.
        along: what grows, in words, such as `edges`.
        sizes: of it, ascending; the first is not 0.
        unit: of the costs. Less is better.
        costs: by contestant, ours first; a cost for each size, or None if it was not measured there.
        flat: how many times the cost at the first size our cost at the last may be; None: no target.
    """

    workload: str
    along: str
    sizes: tuple[int, ...]
    unit: str
    costs: Mapping[str, tuple[Samples | None, ...]]
    flat: float | None = None
    note: str = ""

    def exponent(self, contestant: str) -> float | None:
        """The power by which a cost grows: the slope of a line through the logarithms, by least squares. 0 is flat, 1
        is linear. None if fewer than two sizes were measured."""
        points = [(math.log(size), math.log(max(cost.median, 1e-12)))
                  for size, cost in zip(self.sizes, self.costs[contestant], strict=True) if cost is not None]
        if len(points) < 2:
            return None
        return statistics.linear_regression(*zip(*points, strict=True)).slope

    @property
    def grown(self) -> float | None:
        """Our cost at the last measured size over that at the first."""
        measured = [cost.median for cost in next(iter(self.costs.values())) if cost is not None]
        return measured[-1] / measured[0] if len(measured) > 1 and measured[0] else None

    @property
    def met(self) -> bool | None:
        return None if self.flat is None or self.grown is None else self.grown <= self.flat

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "along": self.along,
            "sizes": list(self.sizes),
            "unit": self.unit,
            "costs": {name: [None if cost is None else cost.to_json() for cost in costs]
                      for name, costs in self.costs.items()},
            "exponents": {name: self.exponent(name) for name in self.costs},
            "grown": self.grown,
            "flat": self.flat,
            "met": self.met,
            "note": self.note,
        }


_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """How long single calls took, at a fixed rate, each counted from when it was due.

    Attributes:
        workload: what was done, in words.
        percentiles: by contestant, ours first: pairs of a share (0..1) and the milliseconds that it did not exceed.
        counts: by contestant, how many calls.
    """

    workload: str
    percentiles: Mapping[str, tuple[tuple[float, float], ...]]
    counts: Mapping[str, int]
    note: str = ""

    @classmethod
    def of(cls, workload: str, histograms: Mapping[str, HdrHistogram], note: str = "") -> Latencies:
        """From histograms of microseconds."""
        return cls(workload=workload, note=note,
                   percentiles={name: tuple((share, found.get_value_at_percentile(100 * share) / 1000)
                                            for share in _SHARES) for name, found in histograms.items()},
                   counts={name: found.get_total_count() for name, found in histograms.items()})

    def to_json(self) -> dict[str, Any]:
        return {"workload": self.workload, "percentiles": {name: [list(pair) for pair in pairs]
                                                           for name, pairs in self.percentiles.items()},
                "counts": dict(self.counts), "note": self.note}


Result = Line | Curve | Latencies
"""What a workload yields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much work a run does.

    Attributes:
        rounds: how often each contestant runs.
        seconds: how long one timed run of a contestant lasts.
        threads: how many threads commit in the workloads with many.
        bulk: the graphs that are loaded in bulk, the first one also with properties.
        graph: the graph that commits and reads work on; its first `graph_edges` edges.
        load_rounds: rounds of a bulk load, a backup or a recovery, each of which takes its own time.
        overlay_edges: how many edges are written before the reads of what was written.
        window: seconds of one latency window; `windows`: how many of each kind.
        rate: commits per second that a latency window asks for.
        incremental: transactions of the incremental backup; `recovery`: of the log that is recovered and replayed.
        large_edges: edges of the generated graph whose backup's memory is measured.
        kills: how often a cluster's primary is killed; `switches`: how often it hands over.
        committing: with how many threads each contestant of the graph workloads commits.
        days: of the churn, on each of which `churn` edges come and go.
        peers: the contestants of the graph workloads beside ours; None: all that are installed.
        load_curve: sizes of the graphs that each of them loads.
        growing_edges: sizes of the graphs whose calls should cost the same; `growing_segments`: lengths of the log.
    """

    rounds: int = 3
    seconds: float = 0.4
    threads: int = 32
    bulk: tuple[str, ...] = ("soc-Epinions1", "web-NotreDame")
    graph: str = "soc-Epinions1"
    graph_edges: int | None = None
    load_rounds: int = 3
    overlay_edges: int = 30_000
    window: float = 3.0
    windows: int = 4
    rate: int = 250
    incremental: int = 1000
    recovery: int = 100_000
    large_edges: int = 8_000_000
    kills: int = 8
    switches: int = 5
    committing: tuple[int, ...] = (1, 8, 32, 128)
    days: int = 30
    churn: int = 250
    peers: tuple[str, ...] | None = None
    load_curve: tuple[int, ...] = (100_000, 1_000_000, 4_000_000)
    growing_edges: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    growing_segments: tuple[int, ...] = (10, 100, 1000, 10_000)


FULL = Scale()
QUICK = Scale(rounds=1, seconds=0.12, bulk=("soc-Epinions1",), load_rounds=1, window=0.8, windows=1, recovery=5_000,
              large_edges=1_000_000, kills=1, switches=1, committing=(1, 32), days=3, churn=100, overlay_edges=3_000,
              peers=("LMDB + msgpack", "SQLite"), load_curve=(20_000, 80_000),
              growing_edges=(20_000, 200_000), growing_segments=(10, 100))


@dataclass(slots=True)
class Bench:
    """What a workload is given: a scale, a directory that really syncs, and `say` for progress."""

    directory: Path
    scale: Scale
    say: Callable[[str], None]
    _made: int = field(default=0, repr=False)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A directory of its own, removed afterwards."""
        self._made += 1
        with tempfile.TemporaryDirectory(prefix=f"{self._made:03}-{name}-", dir=self.directory) as made:
            yield Path(made)

    def interleave(self, what: str, contestants: Mapping[str, Contestant], *, rounds: int | None = None,
                   warm_up: bool = True) -> dict[str, Samples]:
        """Run every contestant once a round, in rotating order. A warm-up round comes first and does not count."""
        names = list(contestants)
        figures: dict[str, list[float]] = {name: [] for name in names}
        total = self.scale.rounds if rounds is None else rounds
        if warm_up:
            self.say(f"{what}: warm-up")
            for run in contestants.values():
                run()
        for number in range(total):
            self.say(f"{what}: round {number + 1} of {total}")
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                figures[name].append(contestants[name]())
        return {name: Samples(tuple(values)) for name, values in figures.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _first_line_after(path: str, key: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(key):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def file_system(path: Path) -> str:
    """The type of the file system of `path`, from the mount table; `unknown` if it is not there."""
    best, kind = "", "unknown"
    try:
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            for mount in mounts:
                _, point, this, *_ = mount.split()
                point = point.replace("\\040", " ")
                inside = str(path.resolve()) == point or str(path.resolve()).startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, this
    except OSError:
        pass
    return kind


def base_directory(asked: Path | None) -> Path:
    """Where to work: `asked`, else the system's temporary directory, else the working directory. A temporary directory
    in memory is not used: there a sync costs nothing, and commit figures would mean nothing."""
    if asked is not None:
        return asked
    usual = Path(tempfile.gettempdir())
    return Path.cwd() if file_system(usual) in ("tmpfs", "ramfs") else usual


_LIBRARIES = ("holdfast", "lmdb", "numpy", "aiohttp", "msgpack", "xxhash", "rocksdict", "duckdb", "kuzu", "ladybug",
              "networkx", "igraph")


def machine(directory: Path) -> dict[str, Any]:
    """What the figures are measured on, and the `load` of the last 1, 5 and 15 minutes: ask before the first is
    measured. A library that is not installed has no entry in `versions`."""
    versions = {}
    for package in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _first_line_after("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _first_line_after("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system(directory),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "versions": versions,
    }
