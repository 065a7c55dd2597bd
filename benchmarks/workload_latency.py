"""What a backup costs those who commit: the latency of commits in paired windows, with and without a backup running.

Commits come at a fixed rate, well below what the store can do, and a commit's latency counts from when it was due, not
from when the one before it had ended: otherwise one long stall would hide all the commits that should have happened
meanwhile. Backups run in another process, one after the other, for the whole of their window. Windows alternate, and
which of a pair comes first alternates too.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from time import perf_counter

from ..engine import GraphStore
from .child import Child
from .harness import Bench, Line, Samples, percentile
from .large_store import large_store
from .store_child import nodes_of
from .traffic import Commit, edge_commits

_SHARES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))


def latencies(commit: Commit, rate: int, seconds: float) -> list[float]:
    """Milliseconds from when each commit was due until it was durable."""
    found = []
    began = perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (early := due - perf_counter()) > 0:
            time.sleep(early)
        commit()
        found.append((perf_counter() - due) * 1000)
    return found


def run(bench: Bench) -> Iterator[Line]:
    scale = bench.scale
    original = large_store(bench)
    with bench.scratch("latency") as place:
        shutil.copytree(original, place / "store")
        with GraphStore.open(place / "store") as store:
            if store.backup_uri is None:
                raise RuntimeError("the backup service found no free port from 6362 to 6372")
            commit = edge_commits(store, nodes_of(store, 0), 1)
            with Child(f"{__package__}.backup_child", store.backup_uri, str(place)) as backups:
                backups.hear("ready")
                latencies(commit, scale.rate, 1.0)
                quiet: list[list[float]] = []
                busy: list[list[float]] = []
                made = 0
                for number in range(2 * scale.windows):
                    bench.say(f"commit latency: window {number + 1} of {2 * scale.windows}")
                    if number % 4 in (0, 3):
                        quiet.append(latencies(commit, scale.rate, scale.window))
                    else:
                        backups.tell("go")
                        backups.hear("going")
                        busy.append(latencies(commit, scale.rate, scale.window))
                        backups.tell("halt")
                        made += backups.hear("halted")["backups"]
                backups.stop()
    for name, share in _SHARES:
        yield Line(workload=f"commit latency {name} while backups run, {scale.rate:,}/s", unit="ms", better="less",
                   figure=Samples(tuple(percentile(window, share) for window in busy)),
                   peer="the same without",
                   peer_figure=Samples(tuple(percentile(window, share) for window in quiet)),
                   note=f"{scale.windows} windows of {scale.window:g} s each, {made} full backups")
