"""`python -m holdfast.benchmarks`: run the workloads, and report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..engine.errors import SettingError
from . import (
    harness,
    workload_aio,
    workload_backup,
    workload_cluster,
    workload_commands,
    workload_commits,
    workload_engine,
    workload_graph,
    workload_growth,
    workload_latency,
    workload_recovery,
    workload_repository,
)
from .harness import Bench, Result, Scale
from .report import compare, figures, html, png, saved, text
from .report.saved import Run

Workload = Callable[[Bench], Iterator[Result]]

WORKLOADS: dict[str, Workload] = {
    "commits": workload_commits.run,
    "aio": workload_aio.run,
    "graph": workload_graph.run,
    "growth": workload_growth.run,
    "backup": workload_backup.run,
    "commands": workload_commands.run,
    "latency": workload_latency.run,
    "recovery": workload_recovery.run,
    "cluster": workload_cluster.run,
    "repository": workload_repository.run,
}


def run(scale: Scale, directory: Path, names: Sequence[str], say: Callable[[str], None],
        workloads: Mapping[str, Workload] = WORKLOADS) -> tuple[dict[str, list[Result]], list[str]]:
    """Run workloads by name in a directory below `directory`, which is removed afterwards. If one fails, the others run
    all the same. Returns the results by workload, and the names of those that failed."""
    results: dict[str, list[Result]] = {}
    failed: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-benchmarks-", dir=directory) as made:
        bench = Bench(Path(made), scale, say)
        for done, name in enumerate(names):
            if done:
                left = (time.monotonic() - began) / done * (len(names) - done)
                say(f"{done} of {len(names)} workloads done; as long as they took on average, {left:.0f} s are left")
            results[name] = []
            try:
                for result in workloads[name](bench):
                    results[name].append(result)
            except Exception:
                failed.append(name)
                say(f"FAILED: {name}\n{traceback.format_exc()}")
    return results, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        _check(parsed)
        earlier = None if parsed.compare is None else saved.load(parsed.compare)
        if parsed.source is None:
            found = _measure(parsed, _workloads(parsed))
        else:
            found = saved.load(parsed.source)
            found = found.only(parsed.only) if parsed.only else found
    except SettingError as error:
        parser.error(str(error))
    comparison = None if earlier is None else compare.compare(earlier, found)
    text.show(found)
    if comparison is not None:
        text.show_comparison(comparison)
    if parsed.json is not None:
        saved.save(parsed.json, found)
    if parsed.html is not None:
        html.save(parsed.html, found, comparison)
    if parsed.png is not None:
        png.save(parsed.png, found)
    if found.failed and parsed.source is None:
        print(f"FAILED: {', '.join(found.failed)}; see above for the errors", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m holdfast.benchmarks", description="Measure Holdfast beside its "
                                     "limits and peers, in one run, and print ratios.")
    parser.add_argument("--quick", action="store_true", help="a rough picture in under two minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--engine", metavar="MODULE:CLASS", help="measure this engine beside the kit's own, instead of "
                        "the other workloads: an engine that maps keys to values, or its KeyValues")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="work below DIR (default: the temporary "
                        "directory, or the working directory if that one is in memory)")
    parser.add_argument("--edges", type=int, metavar="N", help="size of the generated graph that backups copy, and of "
                        "the largest one whose growth is measured")
    parser.add_argument("--segments", type=int, metavar="N", help="segments of the longest log whose growth is "
                        "measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report with plots as one page")
    parser.add_argument("--png", type=Path, metavar="DIR", help="also write each plot into DIR, as PNG")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="also say what is better and worse than in the "
                        "run that --json wrote there")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="measure nothing: report the run that "
                        "--json wrote there, or --only some of its workloads")
    return parser


def _check(parsed: argparse.Namespace) -> None:
    """Whether everything can be written at the end: a run takes long. Raises `SettingError`."""
    if parsed.engine is not None and parsed.only:
        raise SettingError("--engine is a workload of its own", hint="leave out --only")
    if parsed.source is not None and (parsed.quick or parsed.engine or parsed.directory or parsed.edges
                                      or parsed.segments):
        raise SettingError("--from measures nothing",
                           hint="leave out --quick, --engine, --directory, --edges and --segments")
    for option, size in (("--edges", parsed.edges), ("--segments", parsed.segments)):
        if size is not None and size < 2:
            raise SettingError(f"{option} {size} is too small", hint="give 2 or more")
    if parsed.html is not None or parsed.png is not None:
        figures.require()
    for option, path in (("--json", parsed.json), ("--html", parsed.html)):
        if path is not None and not path.parent.is_dir():
            raise SettingError(f"{option} {path}: {path.parent} is not a directory", hint="make it first")
    if parsed.png is not None and parsed.png.exists() and not parsed.png.is_dir():
        raise SettingError(f"--png {parsed.png} is not a directory", hint="name one, which is made if it is missing")


def _workloads(parsed: argparse.Namespace) -> Mapping[str, Workload]:
    """By name; the engine's alone if one is given. Raises `SettingError`."""
    if parsed.engine is None:
        for name in parsed.only or ():
            if name not in WORKLOADS:
                raise SettingError(f"there is no workload {name!r}", hint=f"--only takes {', '.join(WORKLOADS)}")
        return {name: WORKLOADS[name] for name in parsed.only or WORKLOADS}
    return {"engine": partial(workload_engine.run, work=workload_engine.workload_named(parsed.engine))}


def _up_to(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """The sizes below `most`, more of them by powers of ten, and `most`."""
    found = [size for size in sizes if size < most] or [max(1, most // 10)]
    while found[-1] * 10 < most:
        found.append(found[-1] * 10)
    return (*found, most)


def _measure(parsed: argparse.Namespace, workloads: Mapping[str, Workload]) -> Run:
    scale = harness.QUICK if parsed.quick else harness.FULL
    if parsed.edges is not None:
        scale = dataclasses.replace(scale, large_edges=parsed.edges,
                                    growing_edges=_up_to(scale.growing_edges, parsed.edges))
    if parsed.segments is not None:
        scale = dataclasses.replace(scale, growing_segments=_up_to(scale.growing_segments, parsed.segments))
    directory = harness.base_directory(parsed.directory)
    if harness.file_system(directory) in ("tmpfs", "ramfs"):
        print(f"warning: {directory} is in memory, where a sync costs nothing: commit figures will mean little",
              file=sys.stderr)
    machine, began = harness.machine(directory), time.monotonic()

    def say(said: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {said}", file=sys.stderr, flush=True)

    results, failed = run(scale, directory, list(workloads), say, workloads)
    return Run(machine=machine, scale=saved.plain(scale), seconds=time.monotonic() - began, results=results,
               failed=tuple(failed))


if __name__ == "__main__":
    sys.exit(main())
