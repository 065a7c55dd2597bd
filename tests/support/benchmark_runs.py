"""Runs of the benchmarks that nobody measured: one with each kind of result, and one whose names are hostile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from holdfast.benchmarks.harness import QUICK, Curve, Latencies, Line, Result, Samples
from holdfast.benchmarks.report import saved
from holdfast.benchmarks.report.saved import Run

HOSTILE = "<script>alert('x')</script> & \"quoted\" $\\frac{$ #0b5fb4 id=\"a\" 汉字 ]]> -->"
HOSTILE_UNIT = "<b>&'\"/s"
MACHINE = {"time": "2026-11-29T16:21:05+00:00", "cpu": "a processor", "cores": 2, "memory": "1024 kB",
           "system": "Linux 6", "file_system": "ext4", "load": [0.1, 0.2, 0.3], "python": "3.11.7", "sqlite": "3.40.1",
           "versions": {"holdfast": "0.1.0", "lmdb": "3.0.0"}}


def of(*values: float) -> Samples:
    return Samples(values)


FIGURE = of(10, 11, 12)


def line(workload: str = "commits", figure: Samples = FIGURE, **more: Any) -> Line:
    return Line(workload=workload, figure=figure, unit=more.pop("unit", "commits/s"), **more)


def beside(peer: str, figure: Samples, theirs: Samples, **more: Any) -> Line:
    return line(figure=figure, peer=peer, peer_figure=theirs, **more)


CURVE = Curve(workload="opening", along="edges", sizes=(100, 1000, 10_000), unit="ms", flat=1.5, note="medians",
              costs={"Holdfast": (of(4, 5, 6), of(5, 5, 5), of(5, 6, 7)), "SQLite": (of(1, 1, 1), None, None),
                     "Kùzu": (of(1, 2, 3), of(10, 20, 30), of(100, 200, 300))})
LATENCIES = Latencies(workload="mixed reads", counts={"Holdfast": 1000, "SQLite": 900},
                      percentiles={"Holdfast": ((0.0, 0.1), (0.5, 0.2), (0.99, 1.0), (0.999, 2.0), (1.0, 4.0)),
                                   "SQLite": ((0.0, 0.2), (0.5, 0.4), (0.99, 3.0), (0.999, 6.0), (1.0, 9.0))})


def run_of(*results: Result, **more: Any) -> Run:
    return Run(machine=more.pop("machine", MACHINE), scale=saved.plain(QUICK), seconds=61.0,
               results={"some": list(results)}, **more)


def everything() -> Run:
    ours = of(10, 11, 12)
    return run_of(beside("SQLite", ours, of(5, 5, 5), target=1.0), beside("RocksDB", ours, of(20, 20, 20), target=1.0),
                  beside("plain loop", ours, of(2000, 2100, 2200), note="a limit"), CURVE, LATENCIES,
                  line("memory", of(80.0), unit="MiB", better="less", target=100.0),
                  line("bytes", of(4.0, 4.0), unit="MiB", better="less", peer="SQLite", peer_figure=of(0.0, 0.0)),
                  failed=("cluster",))


def hostile() -> Run:
    ours = of(10, 11, 12)
    return run_of(
        beside(HOSTILE, ours, of(1, 2, 3), workload=HOSTILE, unit=HOSTILE_UNIT, ours=HOSTILE, note=HOSTILE, target=9.0),
        beside(HOSTILE, ours, of(2, 3, 4), workload="another"), line(HOSTILE, note=HOSTILE),
        replace(CURVE, workload=HOSTILE, along=HOSTILE, unit=HOSTILE_UNIT, note=HOSTILE,
                costs={HOSTILE: CURVE.costs["Holdfast"], f"{HOSTILE} 2": CURVE.costs["Kùzu"]}),
        replace(LATENCIES, workload=HOSTILE, note=HOSTILE, counts={HOSTILE: 10},
                percentiles={HOSTILE: LATENCIES.percentiles["SQLite"]}),
        machine={**MACHINE, "cpu": HOSTILE, "versions": {HOSTILE: HOSTILE}}, failed=(HOSTILE,))
