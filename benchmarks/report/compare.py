"""Two runs compared: what is better and what is worse than it was.

A ratio to a peer survives a change of machine better than a figure does, so it is compared if there is a peer. A
difference counts only if the rounds of the two runs do not overlap. Of three rounds each, equal things are apart like
that once in ten times, of five each once in 126 times. With fewer than three it says nothing, so nothing is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..harness import Curve, Latencies, Line, Result, Samples
from .saved import Run

_LEAST_ROUNDS = 3
_SHARES = {0.5: "p50", 0.99: "p99", 0.999: "p99.9"}
_BUSY = 0.25

Verdict = Literal["better", "worse", "no difference", "not judged"]


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that two runs may both have.

    Attributes:
        what: in words; the same words in both runs.
        unit: × for a ratio.
    """

    what: str
    unit: str
    better: Literal["more", "less"]
    samples: Samples


@dataclass(frozen=True, slots=True)
class Change:
    """A measure then and now."""

    then: Measure
    now: Measure

    @property
    def verdict(self) -> Verdict:
        then, now = self.then.samples, self.now.samples
        if min(len(then.values), len(now.values)) < _LEAST_ROUNDS:
            return "not judged"
        if now.low <= then.high and then.low <= now.high:
            return "no difference"
        return "better" if (now.low > then.high) == (self.now.better == "more") else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs beside each other.

    Attributes:
        time: when the earlier run was.
        warnings: why the comparison may mislead, as sentences.
        changes: of what both have, in the order of the later run.
        only_then, only_now: what one of them lacks, in words.
    """

    time: str
    warnings: tuple[str, ...]
    changes: tuple[Change, ...]
    only_then: tuple[str, ...]
    only_now: tuple[str, ...]

    def counts(self) -> Counter[Verdict]:
        return Counter(change.verdict for change in self.changes)


def compare(then: Run, now: Run) -> Comparison:
    """What became of each measure that both runs have."""
    before, after = _measures(then), _measures(now)
    return Comparison(
        time=str(then.machine.get("time", "an unknown time")), warnings=tuple(_warnings(then, now)),
        changes=tuple(Change(before[key], measure) for key, measure in after.items() if key in before),
        only_then=tuple(measure.what for key, measure in before.items() if key not in after),
        only_now=tuple(measure.what for key, measure in after.items() if key not in before))


def _measures(run: Run) -> dict[tuple[str, str, str, int], Measure]:
    """By workload, words, unit, and which of several with the same of these."""
    found: dict[tuple[str, str, str, int], Measure] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    for name, results in run.results.items():
        for result in results:
            for measure in _of(result):
                key = (name, measure.what, measure.unit)
                found[(*key, seen[key])] = measure
                seen[key] += 1
    return found


def _of(result: Result) -> Iterator[Measure]:
    if isinstance(result, Line):
        ratio = result.ratio
        beside = f", beside {result.peer}" if result.peer else ""
        yield Measure(result.workload + beside, result.unit if ratio is None else "×", result.better,
                      result.figure if ratio is None else ratio)
    elif isinstance(result, Curve):
        yield from _of_curve(result)
    else:
        yield from _of_latencies(result)


def _of_curve(curve: Curve) -> Iterator[Measure]:
    """How our cost grew; and the cost at the largest size, beside each peer that was measured there, or alone."""
    _, *peers = curve.costs
    ours = dict(_measured(curve, next(iter(curve.costs))))
    if len(ours) > 1:
        (first, least), (last, most) = next(iter(ours.items())), list(ours.items())[-1]
        if len(least.values) == len(most.values):
            yield Measure(f"{curve.workload}, at {last:,} {curve.along} over at {first:,}", "×", "less",
                          most.over(least))
    for peer in peers:
        for size, cost in reversed(_measured(curve, peer)):
            if size in ours and len(cost.values) == len(ours[size].values):
                yield Measure(f"{curve.workload}, at {size:,} {curve.along}, beside {peer}", "×", "less",
                              ours[size].over(cost))
                break
    if not peers and ours:
        size, cost = list(ours.items())[-1]
        yield Measure(f"{curve.workload}, at {size:,} {curve.along}", curve.unit, "less", cost)


def _measured(curve: Curve, contestant: str) -> list[tuple[int, Samples]]:
    return [(size, cost) for size, cost in zip(curve.sizes, curve.costs[contestant], strict=True) if cost is not None]


def _of_latencies(latencies: Latencies) -> Iterator[Measure]:
    """The usual percentiles, beside each other contestant, or alone. There is one sample of each."""
    (_, first), *others = latencies.percentiles.items()
    ours = dict(first)
    for share, name in _SHARES.items():
        if share not in ours:
            continue
        for peer, pairs in others:
            if theirs := dict(pairs).get(share):
                yield Measure(f"{latencies.workload}, {name}, beside {peer}", "×", "less",
                              Samples((ours[share] / theirs,)))
        if not others:
            yield Measure(f"{latencies.workload}, {name}", "ms", "less", Samples((ours[share],)))


# --- what may mislead ------------------------------------------------------------------------------------------------


def busy(machine: Mapping[str, Any]) -> str:
    """A sentence if something else was running when the run began, else nothing."""
    load = machine["load"][0]
    return (f"Something else was running: the load of the last minute was {load:g} on {machine['cores']} cores."
            if load > _BUSY * machine["cores"] else "")


def _warnings(then: Run, now: Run) -> Iterator[str]:
    differ = [f"{name.replace('_', ' ')} {then.machine.get(name)!s} then, {now.machine.get(name)!s} now"
              for name in ("cpu", "cores", "system", "file_system", "python")
              if then.machine.get(name) != now.machine.get(name)]
    if differ:
        yield f"The machines differ ({'; '.join(differ)}): figures without a peer say little."
    before, after = then.machine.get("versions", {}), now.machine.get("versions", {})
    if others := [f"{name} {before[name]} then, {after[name]} now" for name in after
                  if name in before and name != "holdfast" and before[name] != after[name]]:
        yield f"Libraries differ: {'; '.join(others)}."
    if then.scale != now.scale:
        yield "The runs did different amounts of work, as with and without --quick."
    for word, run in (("Then", then), ("Now", now)):
        if said := busy(run.machine):
            yield f"{word}: {said[0].lower()}{said[1:]}"
