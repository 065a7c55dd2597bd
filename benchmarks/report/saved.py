"""What one run of the benchmarks found, and the file of JSON that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...engine.errors import SettingError
from ..harness import Curve, Latencies, Line, Result, Samples, Scale

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of the benchmarks found.

    Attributes:
        machine: what it ran on, as `harness.machine` says it.
        scale: how much work it did, by `plain`.
        seconds: how long it took.
        results: by the name of the workload that yielded them, in its order.
        failed: the workloads that ended with an error. What they had yielded before is in `results`.
    """

    machine: Mapping[str, Any]
    scale: Mapping[str, Any]
    seconds: float
    results: Mapping[str, Sequence[Result]]
    failed: tuple[str, ...] = ()

    def only(self, names: Sequence[str]) -> Run:
        """The same run with the results of these workloads alone. Raises `SettingError` for a name that it lacks."""
        for name in names:
            if name not in self.results:
                raise SettingError(f"the run has no workload {name!r}", hint=f"it has {', '.join(self.results)}")
        return Run(machine=self.machine, scale=self.scale, seconds=self.seconds,
                   results={name: self.results[name] for name in names},
                   failed=tuple(name for name in self.failed if name in names))


def plain(scale: Scale) -> dict[str, Any]:
    """A scale's fields as they are read back from a file, so that they can be compared."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(scale)))
    return fields


def save(path: Path, run: Run) -> None:
    """Write a run as one JSON object: `format`, `machine`, `scale`, `seconds`, `workloads` (their names), `failed`, and
    `results`. This is a list of objects with `of` (the workload's name), `kind`, and what `to_json` of the result
    gives, with every round's value. Raises `OSError`."""
    results = [{"of": name, "kind": type(one).__name__.lower(), **one.to_json()}
               for name, results in run.results.items() for one in results]
    kept = {"format": _FORMAT, "machine": run.machine, "scale": run.scale, "seconds": run.seconds,
            "workloads": list(run.results), "failed": list(run.failed), "results": _finite(results)}
    path.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for: a ratio to 0."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def load(path: Path) -> Run:
    """The run that `save` wrote. Raises `SettingError` if the file cannot be read or holds something else."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format"] != _FORMAT:
            raise SettingError(f"{path} has format {kept['format']!r}, and this program reads {_FORMAT}",
                               hint="measure again, or use the Holdfast that wrote it")
        results: dict[str, list[Result]] = {name: [] for name in kept["workloads"]}
        for one in kept["results"]:
            results[one["of"]].append(_KINDS[one["kind"]](one))
        return Run(machine=dict(kept["machine"]), scale=dict(kept["scale"]), seconds=float(kept["seconds"]),
                   results=results, failed=tuple(kept["failed"]))
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}", hint="name a file that --json wrote") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{path} is not a run of these benchmarks: {type(error).__name__}: {error}",
                           hint="name a file that --json wrote") from error


def _samples(kept: Mapping[str, Any]) -> Samples:
    if not kept["values"]:
        raise ValueError("a figure without values")
    return Samples(tuple(float(value) for value in kept["values"]))


def _maybe(kept: Mapping[str, Any] | None) -> Samples | None:
    return None if kept is None else _samples(kept)


def _line(kept: Mapping[str, Any]) -> Line:
    return Line(workload=kept["workload"], figure=_samples(kept["figure"]), unit=kept["unit"], ours=kept["ours"],
                peer=kept["peer"], peer_figure=_maybe(kept["peer_figure"]), target=kept["target"],
                better=kept["better"], note=kept["note"])


def _curve(kept: Mapping[str, Any]) -> Curve:
    return Curve(workload=kept["workload"], along=kept["along"], sizes=tuple(kept["sizes"]), unit=kept["unit"],
                 costs={name: tuple(map(_maybe, costs)) for name, costs in kept["costs"].items()}, flat=kept["flat"],
                 note=kept["note"])


def _latencies(kept: Mapping[str, Any]) -> Latencies:
    return Latencies(workload=kept["workload"], counts=dict(kept["counts"]), note=kept["note"],
                     percentiles={name: tuple((float(share), float(ms)) for share, ms in pairs)
                                  for name, pairs in kept["percentiles"].items()})


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], Result]] = {"line": _line, "curve": _curve, "latencies": _latencies}
