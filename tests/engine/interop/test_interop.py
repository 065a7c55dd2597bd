"""Graphs for SciPy, igraph and NetworkX, compared with NetworkX's own graphs made edge by edge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import networkx as nx
import numpy as np
import pytest
from graph_rig import Rig
from graph_worlds import steps, world
from hypothesis import example, given

from holdfast.engine import interop
from holdfast.engine.builtin.graph import GraphView
from holdfast.engine.errors import InvalidInput, Unsupported
from holdfast.engine.interop import networkx_backend, networkx_info
from holdfast.engine.interop.libraries import library
from holdfast.engine.interop.networkx_graph import NetworkXGraph

LOOPS = [("node", 1), ("node", 2), ("edge", 0, "KNOWS", 0), ("edge", 0, "KNOWS", 1), ("edge", 0, "LIKES", 1),
         ("checkpoint",), ("edge", 1, "KNOWS", 0), ("weigh", 1, 5), ("cut", 0)]


def plain(view: GraphView, kind: str | None = None, directed: bool = True) -> Any:
    """The graph, made of what a view shows one by one."""
    graph = nx.MultiDiGraph() if directed else nx.MultiGraph()
    for node in view.nodes():
        graph.add_node(node, labels=view.node(node).labels, **view.node(node).properties)
    for edge in view.all_edges(kind):
        graph.add_edge(edge.source, edge.target, edge.id, type=edge.type, **edge.properties)
    return graph


def same_graph(a: Any, b: Any) -> bool:
    return bool(a.__class__ is b.__class__ and dict(a.nodes(data=True)) == dict(b.nodes(data=True)) and
                a.adj == b.adj)


@given(script=steps)
@example(script=[])
@example(script=LOOPS)
def test_each_library_gets_the_same_graph(script: list[Any]) -> None:
    with TemporaryDirectory() as name:
        rig = world(Path(name), script)
        with rig.engine.view() as view:
            for kind in (None, "KNOWS", "NEVER"):
                whole = plain(view, kind)
                nodes = sorted(whole)
                assert same_graph(interop.to_networkx(view, kind), whole)
                assert same_graph(interop.to_networkx(view, kind, directed=False), plain(view, kind, directed=False))
                bare = interop.to_networkx(view, kind, properties=False)
                assert sorted(bare.edges(keys=True)) == sorted(whole.edges(keys=True))
                assert all(attributes == {} for _, attributes in bare.nodes(data=True))
                for weight in (None, "weight"):
                    wanted = nx.to_numpy_array(whole, nodes, weight=weight) if nodes else np.empty((0, 0))
                    matrix, ids = interop.to_scipy(view, kind, weight=weight)
                    assert ids.tolist() == nodes
                    assert matrix.has_canonical_format
                    assert np.array_equal(matrix.toarray(), wanted)
                    assert np.array_equal(interop.to_scipy(view, kind, direction="in", weight=weight)[0].toarray(),
                                          wanted.T)
                    assert np.array_equal(interop.to_scipy(view, kind, direction="both", weight=weight)[0].toarray(),
                                          wanted + wanted.T)
                assert interop.to_igraph(view, kind, properties=False).es.attributes() == []
                other = interop.to_igraph(view, kind)
                assert other.is_directed()
                assert other.vs["id"] == nodes
                assert other.vs["labels"] == [view.node(node).labels for node in nodes]
                if "number" in other.vs.attributes():
                    assert other.vs["number"] == [view.node(node).properties.get("number") for node in nodes]
                assert [(nodes[e.source], nodes[e.target], e["id"], e["type"]) for e in other.es] == [
                    (e.source, e.target, e.id, e.type) for e in view.all_edges(kind)]
        rig.engine.close()


ALGORITHMS: dict[str, Callable[[Any, Any], Any]] = {
    "pagerank": lambda graph, node: nx.pagerank(graph, tol=1e-12, max_iter=1000),
    "pagerank unweighted, from there": lambda graph, node: nx.pagerank(graph, weight=None, tol=1e-12, max_iter=1000,
                                                                       personalization={node: 1}, nstart={node: 2}),
    "degree_centrality": lambda graph, node: nx.degree_centrality(graph),
    "single_source_shortest_path_length": lambda graph, node: nx.single_source_shortest_path_length(graph, node),
    "cut off": lambda graph, node: nx.single_source_shortest_path_length(graph, node, cutoff=1),
    "descendants": lambda graph, node: nx.descendants(graph, node),
    "ancestors": lambda graph, node: nx.ancestors(graph, node),
}
DIRECTED: dict[str, Callable[[Any, Any], Any]] = {
    "in_degree_centrality": lambda graph, node: nx.in_degree_centrality(graph),
    "out_degree_centrality": lambda graph, node: nx.out_degree_centrality(graph),
    "weakly_connected_components": lambda graph, node: {*map(frozenset, nx.weakly_connected_components(graph))},
    "strongly_connected_components": lambda graph, node: {*map(frozenset, nx.strongly_connected_components(graph))},
    "how many": lambda graph, node: (nx.number_weakly_connected_components(graph),
                                     nx.number_strongly_connected_components(graph)),
    "whether one": lambda graph, node: (nx.is_weakly_connected(graph), nx.is_strongly_connected(graph)),
}
UNDIRECTED: dict[str, Callable[[Any, Any], Any]] = {
    "connected_components": lambda graph, node: {*map(frozenset, nx.connected_components(graph))},
    "number_connected_components": lambda graph, node: nx.number_connected_components(graph),
    "is_connected": lambda graph, node: nx.is_connected(graph),
    "node_connected_component": lambda graph, node: nx.node_connected_component(graph, node),
}


def outcome(run: Callable[[Any, Any], Any], graph: Any, node: Any) -> Any:
    try:
        found = run(graph, node)
    except (nx.NetworkXException, KeyError, ZeroDivisionError) as error:
        return error.__class__
    if isinstance(found, dict) and any(isinstance(value, float) for value in found.values()):
        return {key: pytest.approx(value, abs=1e-8) for key, value in found.items()}
    return found


@given(script=steps)
@example(script=[])
@example(script=[("node", 1)])
@example(script=LOOPS)
@example(script=[*[("node", n) for n in range(8)], *[("edge", n, "KNOWS", n + 1) for n in range(7)]])
def test_networkx_computes_on_a_view_as_on_its_own_graph(script: list[Any]) -> None:
    with TemporaryDirectory() as name:
        rig = world(Path(name), script)
        with rig.engine.view() as view:
            node = next(view.nodes(), 99)
            for directed, more in ((True, DIRECTED), (False, UNDIRECTED)):
                whole = plain(view, directed=directed)
                graph = view if directed else interop.NetworkXGraph(view, directed=False)
                for algorithm, run in {**ALGORITHMS, **more}.items():
                    ours, theirs = outcome(run, graph, node), outcome(run, whole, node)
                    assert ours == theirs, algorithm
            of_kind = interop.NetworkXGraph(view, "KNOWS")
            assert outcome(ALGORITHMS["pagerank"], of_kind, node) == outcome(ALGORITHMS["pagerank"],
                                                                             plain(view, "KNOWS"), node)
        rig.engine.close()


@pytest.fixture
def view(tmp_path: Path) -> Iterator[GraphView]:
    rig = world(tmp_path, LOOPS)
    with rig.engine.view() as found:
        yield found
    rig.engine.close()


def test_a_function_is_computed_by_the_backend(view: GraphView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networkx_backend, "pagerank", lambda graph, *more: ("ours", graph))
    assert nx.pagerank(view) == ("ours", view)
    assert nx.pagerank(nx.path_graph(3), backend="holdfast")[0] == "ours"


def test_the_backend_takes_graphs_of_networkx() -> None:
    for graph in (nx.path_graph(4), nx.MultiDiGraph([("a", "b", {"weight": 2}), ("b", "a"), ("a", "a")]), nx.Graph()):
        assert nx.pagerank(graph, backend="holdfast") == pytest.approx(nx.pagerank(graph))
    assert nx.descendants(nx.DiGraph([("a", "b")]), "a", backend="holdfast") == {"b"}


def test_what_the_backend_lacks_is_refused_unless_networkx_may_convert(view: GraphView) -> None:
    with pytest.raises(NotImplementedError):
        nx.betweenness_centrality(view)
    nx.config.fallback_to_nx = True
    try:
        assert nx.betweenness_centrality(view) == nx.betweenness_centrality(plain(view))
        once = interop.NetworkXGraph(view, directed=False)
        assert nx.number_of_spanning_trees(once) == nx.number_of_spanning_trees(plain(view, directed=False))
        assert once.__networkx_cache__  # converted once
    finally:
        nx.config.fallback_to_nx = False


def test_networkx_is_told_what_there_is() -> None:
    [info] = entry_points(group="networkx.backend_info", name="holdfast")
    [backend] = entry_points(group="networkx.backends", name="holdfast")
    assert backend.load() is networkx_backend
    assert info.load() is networkx_info.info
    assert GraphView.__networkx_backend__ == NetworkXGraph.__networkx_backend__ == "holdfast"
    for name in networkx_info.FUNCTIONS:
        assert callable(getattr(networkx_backend, name))
        assert name in nx.utils.backends._registered_algorithms


def test_pagerank_that_does_not_converge_says_so(view: GraphView) -> None:
    with pytest.raises(nx.PowerIterationFailedConvergence):
        nx.pagerank(view, max_iter=0)


def test_a_weight_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    node = tx.add_node()
    tx.add_edge(node, "KNOWS", node, weight="heavy")
    rig.commit(tx)
    with rig.engine.view() as view:
        for run in (lambda: nx.pagerank(view), lambda: interop.to_scipy(view, weight="weight")):
            with pytest.raises(InvalidInput, match="not a number but a str"):
                run()
        assert nx.pagerank(view, weight=None) == {node: pytest.approx(1)}
    rig.engine.close()


@pytest.mark.parametrize(("module", "extra"), [("scipy.sparse", "scipy"), ("pyarrow", "arrow"), ("igraph", "igraph"),
                                               ("networkx", "networkx")])
def test_a_library_that_is_missing_is_named_with_its_extra(module: str, extra: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(Unsupported, match=rf"holdfast\[{extra}\]"):
        library(module)
