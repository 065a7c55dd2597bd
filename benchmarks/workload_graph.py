"""A graph beside what users would take instead: loading, hops, searches, properties, commits, mixed work, churn, size.

Every contestant holds the same graph, in a process of its own (`peer_child`), and does the same work through one small
adapter (`peers/adapter.py`). Before anything is timed, their answers are compared with ours: a race between different
answers has no winner. Libraries in memory take part where nothing needs to be durable.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import graphs
from .child import Child
from .harness import Bench, Curve, Latencies, Line, Result, Samples
from .peers import OURS, PEERS, installed

_COMPARED = 40
_SEARCHED = 8
_COLD = 1000
_TIMED = 4000
_READS, _WRITES = 1000, 100
"""Calls per second of the mixed work."""
_DECADES = list(range(1900, 2020, 10))
_PATIENCE_S = 900.0
_MIB = 1 << 20
_TOGETHER = 1000
_PLAIN = dict.fromkeys(("LMDB + msgpack", "RocksDB", "SQLite"), 1.0)


class Peer:
    """A contestant in its process."""

    def __init__(self, name: str, child: Child) -> None:
        self.name, self._child = name, child
        child.hear("ready", timeout=_PATIENCE_S)

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Have it do something, and wait for the answer. Raises `ChildFailed`."""
        self._child.tell(json.dumps({"do": do, **given}))
        return self._child.hear("done", timeout=_PATIENCE_S)

    def per_second(self, do: str, **given: Any) -> float:
        return float(self.ask(do, **given)["per_second"])


@contextmanager
def started(name: str, place: Path, edges: Path, *, properties: bool) -> Iterator[Peer]:
    more = ["--properties"] if properties else []
    with Child(f"{__package__}.peer_child", name, str(place), str(edges), *more) as child:
        yield Peer(name, child)
        child.stop()


def _contestants(bench: Bench) -> list[str]:
    chosen = bench.scale.peers
    return [name for name in installed() if name == OURS or chosen is None or name in chosen]


def run(bench: Bench) -> Iterator[Result]:
    edges = np.unique(graphs.real(bench.scale.graph)[: bench.scale.graph_edges], axis=0)
    with bench.scratch("graph") as place:
        np.save(place / "edges.npy", edges)
        for name in bench.scale.bulk:
            yield from _loads(bench, place, name, properties=False)
        yield from _loads(bench, place, bench.scale.bulk[0], properties=True)
        yield _load_curve(bench, place)
        with ExitStack() as running:
            peers = {}
            for name in _contestants(bench):
                bench.say(f"graph: loading {name}")
                peers[name] = running.enter_context(started(name, place / _file(name), place / "edges.npy",
                                                            properties=True))
                peers[name].ask("load")
                peers[name].ask("index")
            yield from _sizes(peers)
            nodes = (1 + np.random.default_rng(7).choice(np.unique(edges[:, 0]), _TIMED)).tolist()  # with an edge each
            _compare(bench, peers, nodes)
            yield from _reads(bench, peers, nodes, edges)
            durable = {name: peer for name, peer in peers.items() if PEERS[name].durable}
            yield from _after_writes(bench, durable, nodes)
            yield from _commits(bench, durable)
            yield from _mixed(bench, durable)
            yield from _churn(bench, durable, edges)


def _file(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)


def _lines(workload: str, unit: str, figures: Mapping[str, Samples], *, better: Any = "more",
           targets: Mapping[str, float] | None = None, note: str = "") -> Iterator[Line]:
    """Ours beside each of the others."""
    for name in figures:
        if name != OURS:
            yield Line(workload=workload, figure=figures[OURS], unit=unit, peer=name, peer_figure=figures[name],
                       better=better, target=(targets or {}).get(name), note=note)


def _loads(bench: Bench, place: Path, graph: str, *, properties: bool) -> Iterator[Line]:
    edges = np.unique(graphs.real(graph)[: bench.scale.graph_edges], axis=0)
    np.save(place / "loaded.npy", edges)

    def load(name: str) -> float:
        return len(edges) / _load(name, place, place / "loaded.npy", properties=properties)

    what = f"bulk load of {graph}" + (", three properties a node" if properties else "")
    figures = bench.interleave(what, {name: partial(load, name) for name in _contestants(bench)},
                               rounds=bench.scale.load_rounds, warm_up=False)
    yield from _lines(f"{what}, {len(edges):,} edges", "edges/s", figures,
                      targets=dict.fromkeys(("Kùzu", "LadybugDB", "LMDB + msgpack"), 1.2))


def _load(name: str, place: Path, edges: Path, *, properties: bool) -> float:
    """Seconds of a load into an empty directory, which is removed."""
    at = place / "load"
    with started(name, at, edges, properties=properties) as peer:
        seconds = float(peer.ask("load")["seconds"])
    shutil.rmtree(at)
    return seconds


def _load_curve(bench: Bench, place: Path) -> Curve:
    sizes = bench.scale.load_curve
    costs: dict[str, list[Samples | None]] = {name: [] for name in _contestants(bench) if PEERS[name].durable}
    for size in sizes:
        np.save(place / "generated.npy", np.unique(graphs.rmat(max(4, (size // 16).bit_length()), size), axis=0))
        for name, found in costs.items():
            bench.say(f"bulk load of {size:,} edges by {name}")
            found.append(Samples((_load(name, place, place / "generated.npy", properties=True),)))
    return Curve(workload="bulk load of a generated graph, three properties a node", along="edges", sizes=sizes,
                 unit="s", costs={name: tuple(found) for name, found in costs.items()},
                 note="R-MAT, 16 edges a node, each edge once")


def _sizes(peers: Mapping[str, Peer]) -> Iterator[Line]:
    figures = {name: Samples((peer.ask("bytes")["bytes"] / _MIB,)) for name, peer in peers.items()
               if PEERS[name].durable}
    yield from _lines("bytes on disk, with three properties a node and its indexes", "MiB", figures, better="less",
                      targets={"LMDB + msgpack": 1.2}, note="without logs")
    figures = {name: Samples((peer.ask("memory")["kib"] / 1024,)) for name, peer in peers.items()}
    yield from _lines("memory after loading", "MiB", figures, better="less",
                      note="of the whole process, with the arrays that were loaded, without pages of mapped files")


def _compare(bench: Bench, peers: Mapping[str, Peer], nodes: Sequence[int]) -> None:
    """Raises `RuntimeError` if two contestants do not give the same answers."""
    bench.say("graph: comparing answers")
    for what, count in (("neighbours", _COMPARED), ("two_hops", _COMPARED), ("three_hops", _SEARCHED),
                        ("search", 1), ("properties", _COMPARED), ("find", _COMPARED),
                        ("of_decade", len(_DECADES))):
        of = {"find": [_name(node) for node in nodes[:count]], "of_decade": _DECADES}.get(what, nodes[:count])
        ours = peers[OURS].ask("answers", what=what, of=of)["digests"]
        for name, peer in peers.items():
            if peer.ask("answers", what=what, of=of)["digests"] != ours:
                raise RuntimeError(f"{name} and {OURS} disagree about {what}: the comparison is void")


def _name(node: int) -> str:
    return f"person number {node}"


def _reads(bench: Bench, peers: Mapping[str, Peer], nodes: Sequence[int], edges: graphs.Edges) -> Iterator[Line]:
    degrees = np.bincount(edges[:, 0] + 1)
    crowded = np.argsort(degrees)[-20:].tolist()
    for name, what, of in (
            ("one hop, warm", "neighbours", nodes), ("two hops, distinct, warm", "two_hops", nodes[:400]),
            ("three hops, distinct, warm", "three_hops", nodes[:20]),
            ("breadth-first search of all that can be reached", "search", crowded[-1:]),
            (f"one hop of a node with {degrees[crowded[0]]:,} edges or more", "neighbours", crowded),
            ("properties of a node as a dict, warm", "properties", nodes),
            ("a node by the value of a property, warm", "find", [_name(node) for node in nodes]),
            ("the nodes of a label, warm", "of_decade", _DECADES)):
        yield from _lines(name, "labels/s" if what == "of_decade" else "nodes/s", bench.interleave(name, {
            of_: partial(peer.per_second, "time", what=what, of=of, seconds=bench.scale.seconds)
            for of_, peer in peers.items()}), targets=_PLAIN)
    durable = {name: peer for name, peer in peers.items() if PEERS[name].durable}
    for name, what in (("one hop, cold: the first reads of an opened store", "neighbours"),
                       ("properties of a node, cold", "properties")):
        yield from _lines(name, "nodes/s", bench.interleave(name, {
            of_: partial(peer.per_second, "cold", what=what, of=nodes[:_COLD]) for of_, peer in durable.items()},
            rounds=bench.scale.load_rounds), targets=_PLAIN)


def _after_writes(bench: Bench, peers: Mapping[str, Peer], nodes: Sequence[int]) -> Iterator[Line]:
    """The same hops after many transactions. Ours then lie in the overlay, before the next checkpoint."""
    count = bench.scale.overlay_edges
    bench.say(f"graph: adding {count:,} edges")
    added = np.random.default_rng(8).choice(np.array(nodes), (count, 2))
    for part in np.array_split(added, max(1, count // _TOGETHER)):
        for peer in peers.values():
            peer.ask("add", edges=part.tolist())
    for name, what, of in (("one hop", "neighbours", nodes), ("two hops, distinct", "two_hops", nodes[:400])):
        name = f"{name}, after {count:,} edges more, {_TOGETHER:,} a transaction"
        yield from _lines(name, "nodes/s", bench.interleave(name, {
            of_: partial(peer.per_second, "time", what=what, of=of, seconds=bench.scale.seconds)
            for of_, peer in peers.items()}), targets=_PLAIN)


def _commits(bench: Bench, peers: Mapping[str, Peer]) -> Iterator[Line]:
    for threads in bench.scale.committing:
        name = f"durable commits of an edge, {threads} thread{'s' if threads > 1 else ''}"
        yield from _lines(name, "commits/s", bench.interleave(name, {
            of: partial(peer.per_second, "commits", threads=threads, seconds=bench.scale.seconds)
            for of, peer in peers.items()}), targets={"SQLite": 1.0, "RocksDB": 1.0})


def _mixed(bench: Bench, peers: Mapping[str, Peer]) -> Iterator[Latencies]:
    from hdrh.histogram import HdrHistogram

    found = {kind: {name: HdrHistogram(1, 60_000_000, 3) for name in peers} for kind in ("reads", "writes")}

    def window(peer: Peer) -> float:
        said = peer.ask("mixed", reads=_READS, writes=_WRITES, seconds=bench.scale.window)
        for kind, histograms in found.items():
            histograms[peer.name].decode_and_add(said[kind])
        return 0.0

    bench.interleave("mixed reads and commits", {name: partial(window, peer) for name, peer in peers.items()},
                     rounds=bench.scale.load_rounds, warm_up=False)
    for kind, what in (("reads", f"one hop of the newest state at {_READS:,}/s, beside {_WRITES:,} commits/s"),
                       ("writes", f"a durable commit at {_WRITES:,}/s, beside {_READS:,} reads/s")):
        yield Latencies.of(what, found[kind])


def _churn(bench: Bench, peers: Mapping[str, Peer], edges: graphs.Edges) -> Iterator[Curve]:
    """Each day as many edges come as go. Space and speed should stay as they are."""
    scale, random = bench.scale, np.random.default_rng(11)
    nodes = graphs.node_count(edges)
    there = np.unique((edges + 1) @ (nodes + 1, 1))
    space: dict[str, list[Samples | None]] = {name: [] for name in peers}
    times: dict[str, list[Samples | None]] = {name: [] for name in peers}
    for day in range(scale.days):
        bench.say(f"churn: day {day + 1} of {scale.days}")
        drawn = np.unique(random.integers(1, nodes + 1, (scale.churn, 2)), axis=0)
        pairs = drawn[~np.isin(drawn @ (nodes + 1, 1), there)].tolist()
        for name, peer in peers.items():
            seconds = sum(peer.ask(do, edges=pairs)["seconds"] for do in ("add", "delete"))
            times[name].append(Samples((seconds * 1000,)))
            space[name].append(Samples((peer.ask("bytes")["bytes"] / _MIB,)))
    days, note = tuple(range(1, scale.days + 1)), f"{scale.churn:,} edges come and go each day"
    yield Curve(workload="space while as many edges come as go", along="days", sizes=days, unit="MiB", flat=1.5,
                costs={name: tuple(found) for name, found in space.items()}, note=f"{note}; without logs")
    yield Curve(workload="time while as many edges come as go", along="days", sizes=days, unit="ms", flat=1.5,
                costs={name: tuple(found) for name, found in times.items()}, note=note)
