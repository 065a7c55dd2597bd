"""Backups: how fast a full one copies, is checked and is restored, how long an incremental takes, and how much memory
a full one needs.

The store runs in a process of its own and serves HTTP on loopback; source and target are on one file system; the page
cache holds what is read, on both sides. The limit is `cp` of the very files that a backup made, plus fsync. What a
backup does besides copying, the check of the copy, is measured apart: `verify=False` leaves it out of the rate.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from .. import backup
from .child import Child
from .harness import Bench, Line, Samples
from .large_store import large_store, size_of
from .limits import copy_and_sync

MIB = 1 << 20


def run(bench: Bench) -> Iterator[Line]:
    store = large_store(bench)
    with bench.scratch("backup") as place, Child(f"{__package__}.store_child", str(store)) as server:
        uri = server.hear("open")["uri"]
        if uri is None:
            raise RuntimeError("the backup service found no free port from 6362 to 6372")
        yield from _full(bench, place, uri)
        yield from _back(bench, place)
        yield from _incremental(bench, place, uri, server)
        server.stop()
    yield from _memory(bench, store)


def _full(bench: Bench, place: Path, uri: str) -> Iterator[Line]:
    kept, target, copied = place / "kept", place / "target", place / "copied"
    backup.run(uri, kept, policy=backup.Policy(verify=False))
    size = size_of(kept)

    def ours(verify: bool) -> Callable[[], float]:
        def once() -> float:
            os.sync()
            began = perf_counter()
            backup.run(uri, target, policy=backup.Policy(verify=verify))
            seconds = perf_counter() - began
            shutil.rmtree(target)
            return size / seconds / MIB

        return once

    def cp() -> float:
        os.sync()
        seconds = copy_and_sync(kept, copied)
        shutil.rmtree(copied)
        return size / seconds / MIB

    figures = bench.interleave("full backup", {"ours": ours(False), "cp": cp}, rounds=bench.scale.load_rounds)
    checked = bench.interleave("full backup, the copy checked", {"ours": ours(True), "cp": cp}, rounds=2, warm_up=False)
    what, limit = f"of {size / MIB:,.0f} MiB over HTTP", "cp + fsync of the same files"
    yield Line(workload=f"full backup {what}", figure=figures["ours"], unit="MiB/s", peer=limit,
               peer_figure=figures["cp"], target=0.7)
    yield Line(workload=f"full backup {what}, the copy checked", figure=checked["ours"], unit="MiB/s", peer=limit,
               peer_figure=checked["cp"], note="the check opens the copy and walks the whole graph")


def _back(bench: Bench, place: Path) -> Iterator[Line]:
    """The check of a backup, and a store made from it."""
    kept, restored, copied, size = place / "kept", place / "restored", place / "copied", size_of(place / "kept")

    def rate(work: Callable[[], object], made: Path) -> Callable[[], float]:
        def once() -> float:
            os.sync()
            began = perf_counter()
            work()
            seconds = perf_counter() - began
            shutil.rmtree(made, ignore_errors=True)
            return size / seconds / MIB

        return once

    figures = bench.interleave("verify and restore", {
        "verify": rate(lambda: backup.verify(kept), restored), "restore": rate(lambda: backup.restore(kept, restored),
                                                                               restored),
        "cp": rate(lambda: copy_and_sync(kept, copied), copied)}, rounds=bench.scale.load_rounds)
    what, limit = f"of {size / MIB:,.0f} MiB", "cp + fsync of the same files"
    yield Line(workload=f"restore of a backup {what}", figure=figures["restore"], unit="MiB/s", peer=limit,
               peer_figure=figures["cp"], note="every block is compared with its digest")
    yield Line(workload=f"verify of a backup {what}", figure=figures["verify"], unit="MiB/s", peer=limit,
               peer_figure=figures["cp"], note="every digest, and a walk of the whole graph")


def _incremental(bench: Bench, place: Path, uri: str, server: Child) -> Iterator[Line]:
    target, log, copied = place / "kept", place / "log", place / "log-copied"
    log.mkdir()
    brought = []

    def ours() -> float:
        server.tell(f"commit {bench.scale.incremental}")
        server.hear("committed")
        os.sync()
        began = perf_counter()
        report = backup.run(uri, target)
        seconds = perf_counter() - began
        if report.kind != "incremental" or report.transactions != bench.scale.incremental:
            raise RuntimeError(f"not the incremental that was asked for: {report}")
        brought.append(report.log_bytes)
        return seconds * 1000

    def cp() -> float:
        (log / "segment").write_bytes(os.urandom(brought[-1] if brought else 1))
        os.sync()
        seconds = copy_and_sync(log, copied)
        shutil.rmtree(copied)
        return seconds * 1000

    figures = bench.interleave("incremental", {"ours": ours, "cp": cp}, rounds=bench.scale.load_rounds)
    yield Line(workload=f"incremental after {bench.scale.incremental:,} transactions", figure=figures["ours"],
               unit="ms", better="less", peer="cp + fsync of as many bytes", peer_figure=figures["cp"],
               note=f"{brought[-1] / 1024:,.0f} KiB of log")


def _memory(bench: Bench, store: Path) -> Iterator[Line]:
    for verify in (True, False):
        bench.say(f"memory of a full backup, {'with' if verify else 'without'} the check of the copy")
        with bench.scratch("memory") as place:
            arguments = [str(store), str(place / "target"), *([] if verify else ["--no-verify"])]
            with Child(f"{__package__}.memory_child", *arguments) as child:
                said = child.hear("memory", timeout=600)
        check = ", the copy checked" if verify else ""
        name = f"memory of a full backup of {said['image'] / MIB:,.0f} MiB{check}, above the store's own"
        yield Line(workload=name, figure=Samples(((said["peak"] - said["before"]) / MIB,)), unit="MiB", better="less",
                   target=100e6 / MIB, note=f"{(said['peak_own'] - said['before_own']) / MIB:,.0f} MiB of it the "
                   "process's own, the rest pages of mapped files")
