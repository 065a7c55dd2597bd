"""What backups cost those who commit: the latency of commits in windows with and without something beside them.

Commits come at a fixed rate, well below what the store can do, and a commit's latency counts from when it was due, not
from when the one before it had ended: otherwise one long stall would hide all the commits that should have happened
meanwhile. Beside them run, one after the other and in another process, full backups, incremental ones, checks of a
backup, restores, or throttled images into a repository; or, in a thread of the store's process, checkpoints, or the
archiver, as `serve --archive` has it. Store, copies and client share one disk. Windows rotate, and each is compared
with the quiet one of its round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter

from ..backup import Repository
from ..engine import GraphStore
from ..engine.source.local import LocalSource
from .child import Child
from .harness import Bench, Line, Samples, percentile
from .large_store import generate
from .store_child import nodes_of
from .traffic import Commit, edge_commits

_SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_RATE = 32 << 20
_INTERVAL = 1.0
_PAUSE = 0.25
"""Seconds between two checkpoints."""
_FULL, _IMAGES = "full backups", f"images at {_RATE >> 20} MiB/s"
_ARCHIVING, _CHECKPOINTS = f"archiving every {_INTERVAL:g} s", f"checkpoints {_PAUSE:g} s apart"
_ASKED = {_FULL: "full", _IMAGES: f"image {_RATE}", "incremental backups": "incremental",
          "checks of a backup": "verify", "restores": "restore"}
"""What the child is asked for."""
_BESIDE: dict[str, float | None] = {**dict.fromkeys(_ASKED), _FULL: 1.3, _IMAGES: 1.3, _ARCHIVING: 1.15,
                                    _CHECKPOINTS: None}
"""What runs beside commits, and how many times the quiet p99 is aimed at."""
_SHARE = 8
"""The copied store is so many times smaller than the one whose whole copy is timed: windows hold whole backups then."""


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


class _Beside:
    """What runs beside commits, each as a context. `made`: how much it did in all windows."""

    def __init__(self, store: GraphStore, place: Path, backups: Child) -> None:
        self._store, self._backups, self.made = store, backups, dict.fromkeys(_BESIDE, 0)
        self._repository = Repository.init(place / "archive")
        self._repository.backup(store)
        self._archiver = self._repository.archiver(LocalSource(store))

    def close(self) -> None:
        self._archiver.close()
        self._repository.close()

    def contexts(self) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        return {"quiet": nullcontext, **{name: partial(self._child, name, word) for name, word in _ASKED.items()},
                _ARCHIVING: self._archive, _CHECKPOINTS: partial(self._every, _PAUSE, self._checkpoint)}

    @contextmanager
    def _child(self, name: str, word: str) -> Iterator[None]:
        self._backups.tell(word)
        self._backups.hear("going")
        yield
        self._backups.tell("halt")
        self.made[name] += self._backups.hear("halted")["made"]

    def _archive(self) -> AbstractContextManager[None]:
        self._archiver.step()  # what was committed since the last such window
        return self._every(_INTERVAL, self._archive_more)

    def _archive_more(self) -> None:
        self.made[_ARCHIVING] += self._archiver.step().transactions

    def _checkpoint(self) -> None:
        self._store.checkpoint()
        self.made[_CHECKPOINTS] += 1

    @contextmanager
    def _every(self, seconds: float, work: Callable[[], None]) -> Iterator[None]:
        """Do `work` again and again in a thread, with pauses of so many seconds."""
        stop = threading.Event()

        def repeat() -> None:
            while not stop.wait(seconds):
                work()

        with ThreadPoolExecutor(1) as pool:
            repeated = pool.submit(repeat)
            try:
                yield
            finally:
                stop.set()
        repeated.result()


def run(bench: Bench) -> Iterator[Line]:
    scale = bench.scale
    windows: dict[str, list[list[float]]] = {}
    with bench.scratch("latency") as place:
        generate(bench, place / "store", scale.large_edges // _SHARE)
        with GraphStore.open(place / "store") as store:
            if store.backup_uri is None:
                raise RuntimeError("the backup service found no free port from 6362 to 6372")
            commit = edge_commits(store, nodes_of(store, 0), 1)
            with Child(f"{__package__}.backup_child", store.backup_uri, str(place)) as backups:
                backups.hear("ready")
                beside = _Beside(store, place, backups)

                def window(name: str, context: Callable[[], AbstractContextManager[None]]) -> Callable[[], float]:
                    def once() -> float:
                        with context():
                            found = latencies(commit, scale.rate, scale.window)
                        windows.setdefault(name, []).append(found)
                        return percentile(found, 0.99)

                    return once

                latencies(commit, scale.rate, 1.0)
                bench.interleave("commit latency", {name: window(name, context)
                                                    for name, context in beside.contexts().items()},
                                 rounds=scale.windows, warm_up=False)
                beside.close()
                backups.stop()
    for name, aim in _BESIDE.items():
        unit = "transactions" if name == _ARCHIVING else "made"
        for percent, share in _SHARES.items():
            yield Line(workload=f"commit latency {percent} beside {name}, {scale.rate:,}/s", unit="ms", better="less",
                       figure=Samples(tuple(percentile(found, share) for found in windows[name])),
                       peer="the same without", target=aim if percent == "p99" else None,
                       peer_figure=Samples(tuple(percentile(found, share) for found in windows["quiet"])),
                       note=f"{scale.windows} windows of {scale.window:g} s each, {beside.made[name]:,} {unit}")
