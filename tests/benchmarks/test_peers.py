"""Every contestant of the graph workloads gives the answers of a plain model, before and after it is changed. Each runs
in a process of its own: two of the libraries cannot be loaded together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from holdfast.benchmarks import graphs
from holdfast.benchmarks.peer_child import canonical
from holdfast.benchmarks.peers import OURS, PEERS, installed
from holdfast.benchmarks.peers.adapter import GraphData
from holdfast.benchmarks.peers.key_values import KeyValuePeer, key_value_peers
from holdfast.benchmarks.workload_graph import Peer, started

EDGES = np.unique(graphs.rmat(6, 300), axis=0)
NODES = [1, 2, 5, 17, 40]
DATA = GraphData.of(EDGES)


class Model:
    """Sets of targets."""

    def __init__(self) -> None:
        self.targets: dict[int, set[int]] = {}
        for source, target in DATA.edges.tolist():
            self.targets.setdefault(source, set()).add(target)

    def after(self, nodes: set[int]) -> set[int]:
        return {target for node in nodes for target in self.targets.get(node, ())}

    def answers(self, what: str) -> list[object]:
        hops = {"neighbours": 1, "two_hops": 2, "three_hops": 3}
        found: list[object] = []
        for node in NODES:
            reached = {node}
            for _ in range(hops.get(what, 0)):
                reached = self.after(reached)
            while what == "search" and self.after(reached) - reached:
                reached |= self.after(reached)
            found.append(len(reached) if what == "search" else sorted(reached))
        return found


@pytest.fixture(params=[pytest.param(name, id=PEERS[name].kind) for name in installed()])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    np.save(tmp_path / "edges.npy", EDGES)
    with started(request.param, tmp_path / "peer", tmp_path / "edges.npy", properties=True) as made:
        yield made


def compare(peer: Peer, model: Model) -> None:
    for what in ("neighbours", "two_hops", "three_hops", "search"):
        expected = [canonical(answer) for answer in model.answers(what)]
        assert peer.ask("answers", what=what, of=NODES)["digests"] == expected, what


def test_a_contestant_gives_the_right_answers(peer: Peer) -> None:
    model = Model()
    assert peer.ask("load")["seconds"] > 0
    peer.ask("index")
    compare(peer, model)
    assert peer.ask("answers", what="properties", of=NODES)["digests"] == [
        canonical(DATA.properties(node)) for node in NODES]
    assert peer.ask("answers", what="find", of=[DATA.names[node - 1] for node in NODES])["digests"] == [
        canonical([node]) for node in NODES]
    decades = (1900, 1950, 2010, 2020)
    assert peer.ask("answers", what="of_decade", of=decades)["digests"] == [
        canonical([node for node, born in enumerate(DATA.born, 1) if first <= born < first + 10]) for first in decades]
    assert peer.per_second("time", what="neighbours", of=NODES, seconds=0.01) > 0
    if not PEERS[peer.name].durable:
        return
    new, other = (next(target for target in range(1, len(DATA) + 1) if target not in model.after({node}))
                  for node in (1, 40))
    peer.ask("add", edges=[[1, new], [40, other]])
    peer.ask("delete", edges=[[40, other]])
    model.targets[1].add(new)
    compare(peer, model)
    assert peer.per_second("cold", what="neighbours", of=NODES) > 0
    compare(peer, model)
    assert peer.ask("bytes")["bytes"] > 0
    assert peer.per_second("commits", threads=3, seconds=0.05) > 0
    assert peer.ask("mixed", reads=100, writes=50, seconds=0.1)["reads"].startswith("HIST")


def test_ours_is_always_a_contestant() -> None:
    assert installed()[0] == OURS
    assert "SQLite" in installed()


def test_answers_of_different_kinds_have_equal_digests() -> None:
    assert canonical([3, 1, 2]) == canonical(np.array([1, 2, 3])) == canonical((2, 3, 1))
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})
    assert len({canonical([1]), canonical([1, 1]), canonical(1), canonical({"a": 1})}) == 4


def test_libraries_that_are_used_plainly_keep_what_they_are_given(tmp_path: Path) -> None:
    with ExitStack() as closing:
        peers: dict[str, KeyValuePeer] = key_value_peers(tmp_path)
        assert "plain SQLite" in peers
        for peer in peers.values():
            closing.callback(peer.close)
            peer.fill([(b"a", b"1"), (b"b", b"2")])
            peer.put(b"b", b"3")
            assert [peer.get(key) for key in (b"a", b"b", b"c")] == [b"1", b"3", None]
