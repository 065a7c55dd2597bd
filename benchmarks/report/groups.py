"""Lines put together: those of the same work, and those beside the same peer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..harness import Curve, Latencies, Line, Result, Samples


@dataclass(frozen=True, slots=True)
class Bar:
    """One contestant of a group: its figure in each round."""

    name: str
    samples: Samples
    ours: bool


@dataclass(frozen=True, slots=True)
class Group:
    """The lines of one work in one unit: ours, and all that were measured beside it."""

    lines: tuple[Line, ...]

    @property
    def workload(self) -> str:
        return self.lines[0].workload

    @property
    def unit(self) -> str:
        return self.lines[0].unit

    @property
    def better(self) -> Literal["more", "less"]:
        return self.lines[0].better

    @property
    def bars(self) -> list[Bar]:
        """Ours first, then the peers in the order of the lines. If ours has several figures, because not all peers
        were measured in the same rounds, each is beside its peer's, and says so."""
        several, seen, found = len({line.figure for line in self.lines}) > 1, set(), []
        for line in self.lines:
            if line.figure not in seen:
                beside = f", beside {line.peer}" if several and line.peer else ""
                found.append(Bar(f"{line.ours}{beside}", line.figure, True))
                seen.add(line.figure)
            if line.peer_figure is not None:
                found.append(Bar(line.peer or "", line.peer_figure, False))
        return found


Shown = Group | Curve | Latencies
"""What has a plot of its own, or is a row of the table of figures without a peer."""


def grouped(results: Iterable[Result]) -> list[Shown]:
    """The results with lines of one work put together, at the place of the first of them."""
    found: dict[object, list[Line] | Curve | Latencies] = {}
    for result in results:
        if isinstance(result, Line):
            lines = found.setdefault((result.workload, result.unit, result.better), [])
            assert isinstance(lines, list)
            lines.append(result)
        else:
            found[id(result)] = result
    return [Group(tuple(one)) if isinstance(one, list) else one for one in found.values()]


def standing(line: Line) -> Literal["ahead", "behind"] | None:
    """Whether ours is ahead of the peer in every round, or behind in every round; None if neither, or if there is only
    one round."""
    if line.ratio is None or len(line.ratio.values) < 2:
        return None
    if line.ratio.low > 1 or line.ratio.high < 1:
        return "ahead" if (line.ratio.low > 1) == (line.better == "more") else "behind"
    return None


@dataclass(frozen=True, slots=True)
class Overall:
    """All lines beside one peer.

    Attributes:
        advantages: of each line, how many times as good as the peer ours is: the median ratio, or 1 over it if less is
            better. Above 1, ours is ahead.
    """

    peer: str
    advantages: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their geometric mean: twice as good here and half as good there is 1."""
        return math.exp(statistics.fmean(map(math.log, self.advantages)))


def overall(results: Iterable[Result]) -> list[Overall]:
    """What was measured more than once beside each peer, the peer that is farthest behind first."""
    found: dict[str, list[float]] = {}
    for line in results:
        if isinstance(line, Line) and line.peer is not None and line.ratio is not None:
            ratio = line.ratio.median
            if 0 < ratio < math.inf:
                found.setdefault(line.peer, []).append(ratio if line.better == "more" else 1 / ratio)
    several = [Overall(peer, tuple(ratios)) for peer, ratios in found.items() if len(ratios) > 1]
    return sorted(several, key=lambda one: -one.mean)


def judged(results: Iterable[Result]) -> list[Line | Curve]:
    """Those that have a target."""
    return [one for one in results if not isinstance(one, Latencies) and one.met is not None]


def unmet(results: Iterable[Result]) -> Sequence[Line | Curve]:
    """Those that miss theirs."""
    return [one for one in judged(results) if one.met is False]
