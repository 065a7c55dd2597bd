"""Recovery and replay: how fast transactions come back from the log.

Recovery is what opening takes after a SIGKILL that left every transaction since the beginning to the log alone, less
what opening takes when there was nothing to recover. How an opening grows with the log is a curve. Replay is what
restore, verify and followers do: log into an engine whose state is on disk, durable at the end. Beside both stands the
rate at which the same transactions were first committed, by many threads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from ..engine import GraphStore
from ..engine.builtin.graph import GraphEngine
from ..engine.contract.engine import Context
from ..engine.env import REAL
from ..engine.store.layout import Layout
from ..engine.wal.log import Log
from ..replay.roll import roll
from .child import Child
from .harness import Bench, Curve, Line, Samples
from .store_child import NEVER_CHECKPOINT

MIB = 1 << 20


def killed_store(directory: Path, transactions: int, threads: int) -> float:
    """Let a process make a store with so many commits, and kill it. The rate of the commits."""
    arguments = [str(directory), "--threads", str(threads), "--never-checkpoint"]
    with Child(f"{__package__}.store_child", *arguments) as child:
        child.hear("open")
        child.tell(f"commit {transactions}")
        rate = float(child.hear("committed", timeout=600)["rate"])
        child.kill()
    return rate


def _seconds_to_open(store: Path, place: Path) -> float:
    shutil.copytree(store, place)
    began = perf_counter()
    opened = GraphStore.open(place, create=False, settings=NEVER_CHECKPOINT, online_backup_enabled=False)
    seconds = perf_counter() - began
    opened.close()
    shutil.rmtree(place)
    return seconds


def _replay(store: Path, place: Path) -> tuple[float, float]:
    """Transactions a second, and MiB of log a second, from an empty state on disk to the log's end."""
    shutil.copytree(store, place)
    log = Log.open(Layout(place, REAL.files).current().log, env=REAL)
    size = sum(segment.size for segment in log.segments() if segment.sealed)
    state = place / "replayed"
    state.mkdir()
    GraphEngine.create(state, log.base, Context())
    engine = GraphEngine.open(state, Context())
    began = perf_counter()
    roll(engine, log, log.end.txid, durable=True)
    seconds = perf_counter() - began
    rates = (log.end.txid - log.base.txid) / seconds, size / seconds / MIB
    engine.close()
    log.close()
    shutil.rmtree(place)
    return rates


def run(bench: Bench) -> Iterator[Line | Curve]:
    count, threads = bench.scale.recovery, bench.scale.threads
    with bench.scratch("recovery") as place:
        bench.say(f"recovery: committing {count:,} transactions, and a kill")
        first = killed_store(place / "full", count, threads)
        killed_store(place / "empty", 0, threads)
        megabytes: list[float] = []

        def recover() -> float:
            whole, empty = (_seconds_to_open(place / name, place / "copy") for name in ("full", "empty"))
            return count / max(whole - empty, 1e-9)

        def replay() -> float:
            transactions, rate = _replay(place / "full", place / "copy")
            megabytes.append(rate)
            return transactions

        figures = bench.interleave("recovery and replay", {"recover": recover, "replay": replay},
                                   rounds=bench.scale.load_rounds)
        yield _openings(bench, place, count)
    committed = Samples((first,) * bench.scale.load_rounds)
    peer = f"as first committed, {threads} threads"
    yield Line(workload=f"recovery after SIGKILL, {count:,} transactions", figure=figures["recover"],
               unit="transactions/s", peer=peer, peer_figure=committed, note="opening, less an empty opening")
    yield Line(workload=f"replay into a state on disk, {count:,} transactions", figure=figures["replay"],
               unit="transactions/s", peer=peer, peer_figure=committed,
               note=f"{sorted(megabytes)[len(megabytes) // 2]:,.1f} MiB of log a second")


def _openings(bench: Bench, place: Path, count: int) -> Curve:
    """How long an opening after a SIGKILL takes, by what it has to recover. `place` has the longest log in `full`."""
    sizes = tuple(sorted({max(1, count // share) for share in (100, 10, 1)}))
    costs: list[Samples | None] = []
    for size in sizes:
        bench.say(f"recovery: opening with {size:,} transactions to recover")
        store = place / ("full" if size == count else str(size))
        if size != count:
            killed_store(store, size, bench.scale.threads)
        costs.append(Samples(tuple(_seconds_to_open(store, place / "copy") for _ in range(bench.scale.load_rounds))))
    return Curve(workload="an opening after SIGKILL", along="transactions to recover", sizes=sizes, unit="s",
                 costs={"Holdfast": tuple(costs)})
