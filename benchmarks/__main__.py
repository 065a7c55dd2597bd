"""`python -m holdfast.benchmarks`: run the workloads and print the report."""

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
    report,
    workload_backup,
    workload_bulk,
    workload_cluster,
    workload_commits,
    workload_engine,
    workload_hops,
    workload_latency,
    workload_recovery,
    workload_repository,
)
from .harness import Bench, Line, Scale

WORKLOADS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "commits": workload_commits.run,
    "bulk": workload_bulk.run,
    "hops": workload_hops.run,
    "backup": workload_backup.run,
    "latency": workload_latency.run,
    "recovery": workload_recovery.run,
    "cluster": workload_cluster.run,
    "repository": workload_repository.run,
}


def run(scale: Scale, directory: Path, names: Sequence[str], say: Callable[[str], None],
        workloads: Mapping[str, Callable[[Bench], Iterator[Line]]] = WORKLOADS) -> tuple[list[Line], list[str]]:
    """Run workloads by name in a directory below `directory`, which is removed afterwards. If one fails, the others run
    all the same. Returns the lines, and the names of those that failed."""
    lines: list[Line] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-benchmarks-", dir=directory) as made:
        bench = Bench(Path(made), scale, say)
        for name in names:
            try:
                lines.extend(workloads[name](bench))
            except Exception:
                failed.append(name)
                say(f"FAILED: {name}\n{traceback.format_exc()}")
    return lines, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.benchmarks", description="Measure Holdfast beside its "
                                     "limits and peers, in one run, and print ratios.")
    parser.add_argument("--quick", action="store_true", help="a rough picture in under two minutes")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS))
    parser.add_argument("--engine", metavar="MODULE:CLASS", help="measure this engine beside the kit's own, instead of "
                        "the other workloads: an engine that maps keys to values, or its KeyValues")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="work below DIR (default: the temporary "
                        "directory, or the working directory if that one is in memory)")
    parser.add_argument("--edges", type=int, metavar="N", help="size of the generated graph that backups copy")
    parsed = parser.parse_args(arguments)
    workloads = WORKLOADS
    if parsed.engine is not None:
        if parsed.only:
            parser.error("--engine is a workload of its own: leave out --only")
        try:
            workloads = {"engine": partial(workload_engine.run, work=workload_engine.workload_named(parsed.engine))}
        except SettingError as error:
            parser.error(str(error))
    scale = harness.QUICK if parsed.quick else harness.FULL
    if parsed.edges is not None:
        scale = dataclasses.replace(scale, large_edges=parsed.edges)
    directory = harness.base_directory(parsed.directory)
    if harness.file_system(directory) in ("tmpfs", "ramfs"):
        print(f"warning: {directory} is in memory, where a sync costs nothing: commit figures will mean little",
              file=sys.stderr)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    lines, failed = run(scale, directory, parsed.only or list(workloads), say, workloads)
    machine = harness.machine(directory)
    report.show(machine, lines)
    if parsed.json is not None:
        report.save(parsed.json, machine, lines)
    if failed:
        print(f"FAILED: {', '.join(failed)}; see above for the errors", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
