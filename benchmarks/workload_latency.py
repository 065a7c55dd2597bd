"""What backups cost those who commit: the latency of commits in windows with and without something beside them.

Commits come at a fixed rate, well below what the store can do, and a commit's latency counts from when it was due, not
from when the one before it had ended: otherwise one long stall would hide all the commits that should have happened
meanwhile. Beside them run full backups, one after the other, in another process; images into a repository, throttled;
or the archiver, in a thread of the store's process, as `serve --archive` has it. Windows rotate, and each is compared
with the quiet one of its round.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter

from ..backup import Repository
from ..backup.repository.archiver import Archiver
from ..engine import GraphStore
from ..engine.source.local import LocalSource
from .child import Child
from .harness import Bench, Line, Samples, percentile
from .large_store import large_store
from .store_child import nodes_of
from .traffic import Commit, edge_commits

_SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_RATE = 32 << 20
_INTERVAL = 1.0
_BESIDE = {"full backups": 1.3, f"images at {_RATE >> 20} MiB/s": 1.3, f"archiving every {_INTERVAL:g} s": 1.15}
"""What runs beside commits, and how many times the quiet p99 is aimed at."""


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
        self._backups, self.made = backups, dict.fromkeys(_BESIDE, 0)
        self._repository = Repository.init(place / "archive")
        self._repository.backup(store)
        self._archiver = self._repository.archiver(LocalSource(store))

    def close(self) -> None:
        self._archiver.close()
        self._repository.close()

    def contexts(self) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        full, images, archiving = _BESIDE
        return {"quiet": nullcontext, full: lambda: self._child(full, "full"),
                images: lambda: self._child(images, f"image {_RATE}"),
                archiving: lambda: self._archive(archiving)}

    @contextmanager
    def _child(self, name: str, word: str) -> Iterator[None]:
        self._backups.tell(word)
        self._backups.hear("going")
        yield
        self._backups.tell("halt")
        self.made[name] += self._backups.hear("halted")["made"]

    @contextmanager
    def _archive(self, name: str) -> Iterator[None]:
        self._archiver.step()  # what was committed since the last such window
        stop = threading.Event()
        thread = threading.Thread(target=self._steps, args=(self._archiver, stop, name))
        thread.start()
        yield
        stop.set()
        thread.join()

    def _steps(self, archiver: Archiver, stop: threading.Event, name: str) -> None:
        while not stop.wait(_INTERVAL):
            self.made[name] += archiver.step().transactions


def run(bench: Bench) -> Iterator[Line]:
    scale = bench.scale
    original = large_store(bench)
    windows: dict[str, list[list[float]]] = {}
    with bench.scratch("latency") as place:
        shutil.copytree(original, place / "store")
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
        unit = "transactions" if name.startswith("archiving") else "made"
        for percent, share in _SHARES.items():
            yield Line(workload=f"commit latency {percent} beside {name}, {scale.rate:,}/s", unit="ms", better="less",
                       figure=Samples(tuple(percentile(found, share) for found in windows[name])),
                       peer="the same without", target=aim if percent == "p99" else None,
                       peer_figure=Samples(tuple(percentile(found, share) for found in windows["quiet"])),
                       note=f"{scale.windows} windows of {scale.window:g} s each, {beside.made[name]:,} {unit}")
