"""Backups as commands: what `holdfast` takes from the start of its process to its end, beside Litestream's commands.

The store runs in a process of its own and serves HTTP on loopback, as a database would. Litestream reads the files of a
SQLite database, which holds the same graph and gets the same commits. Everything is on one file system. Ours checks
what it copies and restores, and Litestream is told to check nothing, as it does by default. Without Litestream, ours is
measured alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

from ..engine import GraphStore
from . import graphs, litestream_peer
from .child import Child
from .harness import Bench, Line, Samples
from .large_store import size_of
from .litestream_peer import Litestream

MIB = 1 << 20


def run(bench: Bench) -> Iterator[Line]:
    edges = graphs.real(bench.scale.graph)[: bench.scale.graph_edges]
    with bench.scratch("commands") as place, ExitStack() as closing:
        bench.say("commands: loading the graph")
        with GraphStore.open(place / "store", online_backup_enabled=False) as store:
            graphs.load(store, edges)
        theirs = None
        if litestream_peer.is_there():
            theirs = closing.enter_context(Litestream(place / "litestream", edges))
        server = closing.enter_context(Child(f"{__package__}.store_child", str(place / "store")))
        uri = server.hear("open")["uri"]
        if uri is None:
            raise RuntimeError("the backup service found no free port from 6362 to 6372")
        yield from _measure(bench, place, server, uri, theirs)
        server.stop()


def _measure(bench: Bench, place: Path, server: Child, uri: str, theirs: Litestream | None) -> Iterator[Line]:
    target, kept, restored, count = place / "target", place / "kept", place / "restored", bench.scale.incremental
    repository = place / "repository"

    def full() -> float:
        shutil.rmtree(target, ignore_errors=True)
        return _seconds(lambda: _holdfast("backup", uri, target))

    def commit_and_back_up() -> float:
        server.tell(f"commit {count}")
        server.hear("committed")
        return _seconds(lambda: _holdfast("backup", uri, kept))

    def restore(command: tuple[str, ...], source: Path) -> Callable[[], float]:
        def once() -> float:
            shutil.rmtree(restored, ignore_errors=True)
            return _seconds(lambda: _holdfast(*command, source, restored))

        return once

    def commit_and_replicate(other: Litestream) -> float:
        other.commit(count)
        return _seconds(other.replicate)

    def begin_anew(other: Litestream) -> float:
        other.forget()
        return _seconds(other.replicate)

    _holdfast("backup", uri, kept)
    _holdfast("backup", uri, repository.as_uri())
    works: list[tuple[str, Callable[[], float], Callable[[Litestream], float]]] = [
        (f"a full backup of {bench.scale.graph}, checked", full, begin_anew),
        (f"an incremental backup of {count:,} transactions", commit_and_back_up, commit_and_replicate),
        (f"a restore of {bench.scale.graph}", restore(("restore",), kept), _restore),
        (f"a restore of {bench.scale.graph} from a repository", restore(("repo", "restore"), repository), _restore)]
    for what, ours, other in works:
        contestants = {"ours": ours}
        if theirs is not None:
            contestants["litestream"] = partial(other, theirs)
        figures = bench.interleave(f"{what}, as a command", contestants, rounds=bench.scale.load_rounds)
        if other is commit_and_replicate:  # so that what is restored has the same commits
            _holdfast("backup", uri, repository.as_uri())
        yield Line(workload=f"{what}, as a command", figure=figures["ours"], unit="s", better="less",
                   peer=None if theirs is None else "Litestream", peer_figure=figures.get("litestream"),
                   target=None if theirs is None else 1.0)
    stored = {f"stored by a {kind} of {bench.scale.graph}": size_of(path) / MIB
              for kind, path in (("backup", kept), ("repository", repository))}
    for what, size in stored.items():
        yield Line(workload=what, figure=Samples((size,)), unit="MiB", better="less",
                   peer=None if theirs is None else "Litestream",
                   peer_figure=None if theirs is None else Samples((size_of(theirs.replica) / MIB,)))


def _restore(other: Litestream) -> float:
    other.make_room()
    return _seconds(other.restore)


def _seconds(work: Callable[[], object]) -> float:
    os.sync()
    began = perf_counter()
    work()
    return perf_counter() - began


def _holdfast(*arguments: object) -> None:
    """Run the command, with the bytecode that an installed package has."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([Path(sys.executable).with_name("holdfast"), *map(str, arguments)], check=True, capture_output=True,
                   env=environment)
