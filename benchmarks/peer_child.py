"""A contestant of the graph workloads in a process of its own: one JSON object a line on standard input, one answer.

| command | answers |
| --- | --- |
| `{"do": "load"}` | `seconds` of the load |
| `{"do": "answers", "what": W, "of": […]}` | a digest of each answer, which is the same for all contestants |
| `{"do": "time", "what": W, "of": […], "seconds": S}` | calls `per_second`, over `of` round and round |
| `{"do": "cold", "what": W, "of": […]}` | calls `per_second`, once each, after an opening |
| `{"do": "commits", "threads": N, "seconds": S}` | commits `per_second` |
| `{"do": "mixed", "reads": R, "writes": W, "seconds": S}` | histograms of `reads` and `writes`, in microseconds |
| `{"do": "add", "edges": […]}`, `{"do": "delete", "edges": […]}` | `seconds` of the transaction |
| `{"do": "index"}`, `{"do": "bytes"}`, `{"do": "memory"}` | |

W is a method of `GraphPeer` that takes a node; or `find`, which takes a name; or `of_decade`, which takes a year.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from . import child
from .peers import peer_named
from .peers.adapter import DurablePeer, GraphData, GraphPeer
from .traffic import Pairs, many_threads, one_thread

_LOOKED = 0.02
"""Seconds between two looks at the clock, about: to look costs as much as a hop."""


def canonical(answer: Any) -> str:
    """A digest of an answer: of its items in order, whatever kind of sequence or mapping it is."""
    if isinstance(answer, dict):
        text = repr(sorted(answer.items()))
    else:
        text = repr(answer if isinstance(answer, int) else sorted(map(int, answer)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def per_second(call: Callable[[Any], object], of: Sequence[Any], seconds: float) -> float:
    """Calls per second, over `of` round and round, in a loop as a user would write it."""
    done, first, chunk = 0, 0, 1
    began = now = perf_counter()
    while now < began + seconds:
        for one in of[first : first + chunk]:
            call(one)
        done += len(of[first : first + chunk])
        first = first + chunk if first + chunk < len(of) else 0
        before, now = now, perf_counter()
        if now - before < _LOOKED and chunk < len(of):
            chunk *= 2
    return done / (now - began)


class Contestant:
    """Obeys the commands; see the module's text."""

    def __init__(self, peer: GraphPeer, data: GraphData, *, properties: bool) -> None:
        self._peer, self._data = peer, data
        peer.prepare(data, properties=properties)

    def load(self) -> dict[str, Any]:
        os.sync()
        began = perf_counter()
        self._peer.load()
        return {"seconds": perf_counter() - began}

    def index(self) -> dict[str, Any]:
        self._peer.index()
        return {}

    def answers(self, what: str, of: Sequence[Any]) -> dict[str, Any]:
        self._peer.begin_reading()
        call = getattr(self._peer, what)
        found = [canonical(call(one)) for one in of]
        self._peer.end_reading()
        return {"digests": found}

    def time(self, what: str, of: Sequence[Any], seconds: float) -> dict[str, Any]:
        self._peer.begin_reading()
        found = per_second(getattr(self._peer, what), of, seconds)
        self._peer.end_reading()
        return {"per_second": found}

    def memory(self) -> dict[str, Any]:
        return {"kib": child.memory_kib()["RssAnon"]}


class DurableContestant(Contestant):
    """One that keeps the graph on disk."""

    def __init__(self, peer: DurablePeer, data: GraphData, *, properties: bool) -> None:
        super().__init__(peer, data, properties=properties)
        self._durable = peer

    def cold(self, what: str, of: Sequence[Any]) -> dict[str, Any]:
        self._durable.reopen()
        self._peer.begin_reading()
        call = getattr(self._peer, what)
        began = perf_counter()
        for one in of:
            call(one)
        found = len(of) / (perf_counter() - began)
        self._peer.end_reading()
        return {"per_second": found}

    def commits(self, threads: int, seconds: float) -> dict[str, Any]:
        def worker(seed: int) -> Callable[[], object]:
            pairs, add = Pairs(len(self._data), seed), self._durable.add_edges

            def commit() -> None:
                source, target = pairs.next()
                add([(source + 1, target + 1)])

            return commit

        if threads == 1:
            return {"per_second": one_thread(worker(time.monotonic_ns() % 1000), seconds)}
        return {"per_second": many_threads(threads, worker, seconds=seconds)}

    def mixed(self, reads: int, writes: int, seconds: float) -> dict[str, Any]:
        """A thread reads and one writes, each at a fixed rate. What a call took counts from when it was due."""
        from hdrh.histogram import HdrHistogram

        found = {"reads": HdrHistogram(1, 60_000_000, 3), "writes": HdrHistogram(1, 60_000_000, 3)}
        pairs, nodes = Pairs(len(self._data), 3), Pairs(len(self._data), 4)
        newest, add = self._durable.reader(), self._durable.add_edges

        def read() -> None:
            newest(nodes.next()[0] + 1)

        def write() -> None:
            source, target = pairs.next()
            add([(source + 1, target + 1)])

        def drive(call: Callable[[], object], rate: int, into: HdrHistogram) -> None:
            began = perf_counter()
            for number in range(int(rate * seconds)):
                due = began + number / rate
                if (early := due - perf_counter()) > 0:
                    time.sleep(early)
                call()
                into.record_value(max(1, int((perf_counter() - due) * 1e6)))

        threads = [threading.Thread(target=drive, args=(read, reads, found["reads"])),
                   threading.Thread(target=drive, args=(write, writes, found["writes"]))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {name: histogram.encode().decode("ascii") for name, histogram in found.items()}

    def add(self, edges: Sequence[tuple[int, int]]) -> dict[str, Any]:
        began = perf_counter()
        self._durable.add_edges([(source, target) for source, target in edges])
        return {"seconds": perf_counter() - began}

    def delete(self, edges: Sequence[tuple[int, int]]) -> dict[str, Any]:
        began = perf_counter()
        self._durable.delete_edges([(source, target) for source, target in edges])
        return {"seconds": perf_counter() - began}

    def bytes(self) -> dict[str, Any]:
        return {"bytes": self._durable.bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("place", type=Path)
    parser.add_argument("edges", type=Path, help="a file of NumPy's: an array of edges between nodes 0 … n-1")
    parser.add_argument("--properties", action="store_true")
    arguments = parser.parse_args()
    arguments.place.mkdir()
    data = GraphData.of(np.load(arguments.edges))
    peer = peer_named(arguments.peer, arguments.place)
    try:
        contestant = (DurableContestant(peer, data, properties=arguments.properties) if isinstance(peer, DurablePeer)
                      else Contestant(peer, data, properties=arguments.properties))
        child.say("ready")
        for line in sys.stdin:
            command = json.loads(line)
            child.say("done", **getattr(contestant, command.pop("do"))(**command))
    finally:
        peer.close()


if __name__ == "__main__":
    main()
