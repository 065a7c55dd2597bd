"""What the engine-neutral tests need to know of an engine: an adapter, and one for each engine of the kit.

An adapter says how to draw random operations, how to run them in a draft and beside it in a plain model, and what a
view shows, in the model's terms. Operations are drawn without knowledge of the state, so that Hypothesis can shrink
them; where one names something that exists it does so by an index, taken modulo what exists when it runs. Draft and
model take each operation together, because the engine gives out the ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import strategies as st

from holdfast.engine.contract import Engine, View
from holdfast.engine.graph.engine import GraphEngine
from holdfast.engine.graph.transaction import GraphTransaction
from holdfast.engine.graph.view import GraphView
from holdfast.engine.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.records import RecordsEngine, RecordsTransaction, RecordsView

Operation = tuple[Any, ...]


class EngineAdapter(ABC):
    """Subclass one for each engine. Models are the adapter's own; the tests copy them and hand them back."""

    engine: ClassVar[type[Engine[Any, Any]]]
    options: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def operations(self) -> st.SearchStrategy[list[Operation]]:
        """The operations of one transaction, at least one; some may turn out to change nothing."""

    @abstractmethod
    def new_model(self) -> Any:
        """The model of an empty store. It has `copy()`."""

    @abstractmethod
    def run(self, tx: Any, model: Any, operations: list[Operation]) -> None:
        """Do `operations` in the draft, and to the model, and compare what the draft answers on the way."""

    @abstractmethod
    def expected(self, model: Any) -> Any:
        """The model's content, comparable."""

    @abstractmethod
    def content(self, view: View) -> Any:
        """A view's content, comparable with `expected`."""


def text_of(seed: int, size: int) -> bytes:
    """`size` bytes that differ from place to place and from seed to seed, so that a misplaced piece shows."""
    return bytes((seed * 31 + i * (i // 7 + 1)) % 256 for i in range(size))


def _pick(index: int, among: Mapping[Any, Any]) -> Any:
    names = sorted(among)
    return names[index % len(names)]


class MemoryAdapter(EngineAdapter):
    engine = MemoryEngine

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        values = st.builds(text_of, st.integers(0, 255), st.sampled_from((0, 1, 20, 3000)))
        put = st.tuples(st.just("put"), st.binary(min_size=1, max_size=2), values)
        return st.lists(st.one_of(put, st.tuples(st.just("set"), index, values), st.tuples(st.just("delete"), index)),
                        min_size=1, max_size=6)

    def new_model(self) -> dict[bytes, bytes]:
        return {}

    def run(self, tx: MemoryTransaction, model: dict[bytes, bytes], operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "put":
                key, value = rest
            elif not model:
                continue
            else:
                key, value = _pick(rest[0], model), rest[-1]
            assert tx.get(key) == model.get(key)
            if kind == "delete":
                tx.delete(key)
                del model[key]
            else:
                tx.put(key, value)
                model[key] = value

    def expected(self, model: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return dict(model)

    def content(self, view: View) -> dict[bytes, bytes]:
        assert isinstance(view, MemoryView)
        content = dict(view.items())
        assert len(view) == len(content)
        return content


@dataclass
class RecordsModel:
    values: dict[int, bytes] = field(default_factory=dict)
    given_out: set[int] = field(default_factory=set)

    def copy(self) -> RecordsModel:
        return RecordsModel(dict(self.values), set(self.given_out))


class RecordsAdapter(EngineAdapter):
    engine = RecordsEngine

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        sizes = st.sampled_from((0, 5, 47, 48, 97, 98, 400, 2000))
        values = st.builds(text_of, st.integers(0, 255), sizes)
        return st.lists(st.one_of(st.tuples(st.just("insert"), values), st.tuples(st.just("update"), index, values),
                                  st.tuples(st.just("delete"), index)), min_size=1, max_size=6)

    def new_model(self) -> RecordsModel:
        return RecordsModel()

    def run(self, tx: RecordsTransaction, model: RecordsModel, operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "insert":
                number = tx.insert(rest[0])
                assert number not in model.given_out, f"number {number} was given out before"
                model.given_out.add(number)
                model.values[number] = rest[0]
            elif model.values:
                number = _pick(rest[0], model.values)
                assert tx.get(number) == model.values[number]
                if kind == "update":
                    tx.update(number, rest[1])
                    model.values[number] = rest[1]
                else:
                    tx.delete(number)
                    del model.values[number]
                    assert tx.get(number) is None

    def expected(self, model: RecordsModel) -> dict[int, bytes]:
        return dict(model.values)

    def content(self, view: View) -> dict[int, bytes]:
        assert isinstance(view, RecordsView)
        content = dict(view.items())
        for number, value in content.items():
            assert view.get(number) == value
        return content


LABELS, TYPES, KEYS = ("A", "B"), ("KNOWS", "LIKES"), ("p", "q")


@dataclass
class GraphModel:
    """`nodes`: labels and properties by id. `edges`: source, type, target and properties by id."""

    nodes: dict[int, tuple[set[str], dict[str, Any]]] = field(default_factory=dict)
    edges: dict[int, tuple[int, str, int, dict[str, Any]]] = field(default_factory=dict)
    given_out: set[tuple[str, int]] = field(default_factory=set)
    indexes: set[tuple[str, str]] = field(default_factory=set)

    def copy(self) -> GraphModel:
        return GraphModel({n: (set(labels), dict(props)) for n, (labels, props) in self.nodes.items()},
                          {e: (s, t, d, dict(props)) for e, (s, t, d, props) in self.edges.items()},
                          set(self.given_out), set(self.indexes))


def _shown(props: Mapping[str, Any]) -> str:
    """Properties by type and value: 1, 1.0 and True are three."""
    return repr(sorted(props.items()))


class GraphAdapter(EngineAdapter):
    engine = GraphEngine

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        index = st.integers(0, 9)
        values = st.sampled_from((0, 1, True, 1.0, "text", b"", [1, "two"], {"a": 1}, "long" * 300))
        props = st.dictionaries(st.sampled_from(KEYS), values, max_size=2)
        labels = st.sets(st.sampled_from(LABELS))
        kind = st.sampled_from(TYPES)
        add_node = st.tuples(st.just("add_node"), labels, props)
        add_edge = st.tuples(st.just("add_edge"), index, kind, index, props)
        return st.lists(st.one_of(
            add_node, add_edge, add_edge, st.tuples(st.just("delete_node"), index),
            st.tuples(st.just("delete_edge"), index), st.tuples(st.just("set_properties"), index, props),
            st.tuples(st.just("set_edge_properties"), index, props),
            st.tuples(st.just("remove_property"), index, st.sampled_from(KEYS)),
            st.tuples(st.just("add_label"), index, st.sampled_from(LABELS)),
            st.tuples(st.just("remove_label"), index, st.sampled_from(LABELS)),
            st.tuples(st.just("index"), st.sampled_from(LABELS), st.sampled_from(KEYS))), min_size=1, max_size=8)

    def new_model(self) -> GraphModel:
        return GraphModel()

    def run(self, tx: GraphTransaction, model: GraphModel, operations: list[Operation]) -> None:
        for kind, *rest in operations:
            if kind == "add_node":
                node = tx.add_node(*rest[0], properties=rest[1])
                self._is_new(model, "node", node)
                model.nodes[node] = (set(rest[0]), dict(rest[1]))
            elif kind == "index":
                (tx.drop_index if tuple(rest) in model.indexes else tx.create_index)(rest[0], rest[1])
                model.indexes ^= {(rest[0], rest[1])}
            elif kind in ("delete_edge", "set_edge_properties"):
                if model.edges:
                    self._change_edge(tx, model, kind, _pick(rest[0], model.edges), rest[1:])
            elif model.nodes:
                self._change_node(tx, model, kind, _pick(rest[0], model.nodes), rest[1:])

    def _change_edge(self, tx: GraphTransaction, model: GraphModel, kind: str, edge: int, rest: list[Any]) -> None:
        if kind == "delete_edge":
            tx.delete_edge(edge)
            del model.edges[edge]
        else:
            tx.set_edge_properties(edge, rest[0])
            model.edges[edge][3].update(rest[0])
            assert _shown(tx.edge(edge).properties) == _shown(model.edges[edge][3])

    def _change_node(self, tx: GraphTransaction, model: GraphModel, kind: str, node: int, rest: list[Any]) -> None:
        labels, props = model.nodes[node]
        if kind == "add_edge":
            target = _pick(rest[1], model.nodes)
            edge = tx.add_edge(node, rest[0], target, properties=rest[2])
            self._is_new(model, "edge", edge)
            model.edges[edge] = (node, rest[0], target, dict(rest[2]))
        elif kind == "delete_node":
            tx.delete_node(node, detach=True)
            del model.nodes[node]
            model.edges = {e: found for e, found in model.edges.items() if node not in (found[0], found[2])}
            assert not tx.has_node(node)
            return
        elif kind == "set_properties":
            tx.set_properties(node, rest[0])
            props.update(rest[0])
        elif kind == "remove_property":
            tx.remove_property(node, rest[0])
            props.pop(rest[0], None)
        elif kind == "add_label":
            tx.add_label(node, rest[0])
            labels.add(rest[0])
        else:
            tx.remove_label(node, rest[0])
            labels.discard(rest[0])
        found = tx.node(node)
        assert (set(found.labels), _shown(found.properties)) == (labels, _shown(props))
        assert sorted(tx.neighbors(node)) == sorted(d for s, _, d, _ in model.edges.values() if s == node)

    @staticmethod
    def _is_new(model: GraphModel, what: str, number: int) -> None:
        assert (what, number) not in model.given_out, f"{what} {number} was given out before"
        model.given_out.add((what, number))

    def expected(self, model: GraphModel) -> Any:
        nodes, edges = model.nodes, model.edges
        content: dict[Any, Any] = {
            "nodes": {n: (tuple(sorted(labels)), _shown(props)) for n, (labels, props) in nodes.items()},
            "edges": {e: (s, t, d, _shown(props)) for e, (s, t, d, props) in edges.items()},
            "counts": (len(nodes), len(edges)),
            "indexes": sorted(model.indexes),
        }
        for label in LABELS:
            content[label] = [n for n in sorted(nodes) if label in nodes[n][0]]
            for key in KEYS:
                content[label, key] = [n for n in content[label] if _shown({key: 1}) == _shown(
                    {key: nodes[n][1].get(key)})]
        for node in nodes:
            out = [(e, d) for e, (s, _, d, _) in sorted(edges.items()) if s == node]
            into = [(e, s) for e, (s, _, d, _) in sorted(edges.items()) if d == node]
            likes = [d for e, (s, t, d, _) in sorted(edges.items()) if s == node and t == "LIKES"]
            content["around", node] = ([d for _, d in out], [s for _, s in into], likes, len(out) + len(into))
        return content

    def content(self, view: View) -> Any:
        assert isinstance(view, GraphView)
        nodes = [view.node(n) for n in view.nodes()]
        content: dict[Any, Any] = {
            "nodes": {n.id: (n.labels, _shown(n.properties)) for n in nodes},
            "edges": {e.id: (e.source, e.type, e.target, _shown(e.properties)) for e in view.all_edges()},
            "counts": (view.node_count, view.edge_count),
            "indexes": view.indexes(),
        }
        for label in LABELS:
            content[label] = list(view.nodes(label))
            for key in KEYS:
                content[label, key] = list(view.nodes(label, {key: 1}))
        for node in nodes:
            content["around", node.id] = (view.neighbors(node.id), view.neighbors(node.id, direction="in"),
                                          view.neighbors(node.id, "LIKES"), view.degree(node.id, direction="both"))
        return content
