"""Commits, and how they are driven: by one thread or many, by the clock or by count, alike for every contestant."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np

from ..engine import GraphStore
from . import graphs

Commit = Callable[[], object]
"""Makes one commit, and returns when it is durable."""

_DRAWN = 1 << 14


class Pairs:
    """Random pairs of nodes 0 … n-1, drawn before they are needed: picking is not what is measured."""

    def __init__(self, nodes: int, seed: int) -> None:
        drawn = np.random.default_rng(seed).integers(0, nodes, (2, _DRAWN))
        self._pairs = list(zip(*drawn.tolist(), strict=True))
        self._next = 0

    def next(self) -> tuple[int, int]:
        self._next = (self._next + 1) & (_DRAWN - 1)
        return self._pairs[self._next]


def edge_commits(store: GraphStore, nodes: range, seed: int) -> Commit:
    """Our commit: one edge between two random nodes."""
    pairs, first, transaction = Pairs(len(nodes), seed), nodes.start, store.transaction

    def commit() -> None:
        source, target = pairs.next()
        with transaction() as tx:
            tx.add_edge(first + source, graphs.EDGE_TYPE, first + target)

    return commit


def one_thread(commit: Commit, seconds: float) -> float:
    """Commits per second of this thread, for `seconds`."""
    count = 0
    began = perf_counter()
    end = began + seconds
    while perf_counter() < end:
        commit()
        count += 1
    return count / (perf_counter() - began)


def many_threads(threads: int, worker: Callable[[int], Commit], *, seconds: float | None = None,
                 count: int | None = None) -> float:
    """Commits per second of many threads, from a common start to the end of the last: for `seconds`, or until they
    made `count` together. Thread i makes the commits of `worker(i)`. Raises what a commit raised."""
    start = threading.Barrier(threads + 1)
    made = [0] * threads
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            commit, done = worker(number), 0
            start.wait()
            if seconds is not None:
                end = perf_counter() + seconds
                while perf_counter() < end:
                    commit()
                    done += 1
            else:
                for done in range(1, len(range(number, count or 0, threads)) + 1):  # noqa: B007 - `done` is the count
                    commit()
            made[number] = done
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            start.abort()

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        start.wait()
    began = perf_counter()
    for thread in running:
        thread.join()
    elapsed = perf_counter() - began
    if errors:
        raise errors[0]
    return sum(made) / elapsed
