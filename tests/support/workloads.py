"""The workloads of the kit's own engines, for the contract suites and the other engine-neutral tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from staging_memory import StagingMemory

from holdfast.engine.builtin.graph.bulk import BulkLoad
from holdfast.engine.builtin.graph.engine import GraphEngine
from holdfast.engine.builtin.graph.transaction import GraphTransaction
from holdfast.engine.builtin.graph.view import GraphView
from holdfast.engine.builtin.inplace.records import RecordsEngine, RecordsTransaction, RecordsView
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.engine import Engine
from holdfast.engine.contract.view import View
from holdfast.engine.testing import PROFILES, KeyValues, Operation, Workload, current_profile
from holdfast.engine.testing.support.workload import pick, text_of

KEPT = Path(__file__).parents[1] / "kept"
"""States of these engines, each made by `python -m holdfast.engine.testing keep` when a format was new."""
FEWER_IN_CI = PROFILES["default"] if current_profile().name == "ci" else None
"""The profile of engines that nobody but a test uses: CI tries less of them."""


def keyed(engine: type[Engine[Any, Any]], **more: Any) -> Workload:
    """Of an engine whose calls are the memory engine's."""
    return KeyValues(engine, put=lambda tx, key, value: tx.put(key, value), items=lambda view: view.items(),
                     get=lambda tx, key: tx.get(key), delete=lambda tx, key: tx.delete(key),
                     find=lambda view, key: view.get(key), **{"tiny": {}, **more})


def memory() -> Workload:
    return keyed(MemoryEngine, kept=KEPT / "memory")


def staging() -> Workload:
    return keyed(StagingMemory, bulk=dict, kept=KEPT / "staging")


def sqlite() -> Workload:
    return keyed(SqliteEngine, above_env=False, kept=KEPT / "sqlite")


def rocksdb() -> Workload:
    made = keyed(RocksEngine, above_env=False, kept=KEPT / "rocksdb")
    made.fragile = ("MANIFEST-*",)  # on one in thousands of damaged ones RocksDB opens for ever
    return made


@dataclass
class RecordsModel:
    values: dict[int, bytes] = field(default_factory=dict)
    given_out: set[int] = field(default_factory=set)

    def copy(self) -> RecordsModel:
        return RecordsModel(dict(self.values), set(self.given_out))


class RecordsWorkload(Workload):
    engine = RecordsEngine
    kept = KEPT / "records"
    tiny: Mapping[str, Any] = {}

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
                number = pick(rest[0], model.values)
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
            assert view.get(number) == value, f"value {number} by its number and on a walk"
        return content

    def numbered(self, number: int) -> list[Operation]:
        return [("insert", _long(number))]

    def sized(self, size: int, seed: int) -> list[Operation]:
        return [("insert", drawn) for drawn in _drawn(size, seed)]

    def walks(self, view: View) -> dict[str, Iterator[Any]]:
        assert isinstance(view, RecordsView)
        return {"items()": iter(view.items())}

    def shows(self, content: dict[int, bytes], number: int) -> bool:
        return _long(number) in content.values()


def _drawn(size: int, seed: int) -> list[bytes]:
    """Values of this size in all."""
    draw = random.Random(seed)
    return [draw.randbytes(min(2000, size - at)) for at in range(0, size, 2000)]


def _long(number: int) -> bytes:
    """A value that takes several records, and that `operations` never draws."""
    return (b"number %d " % number) * 16


class JournalTransaction(MemoryTransaction):
    """Lines by their numbers, which are consecutive from 0."""

    __slots__ = ("length",)

    def __init__(self, state: Mapping[bytes, bytes]) -> None:
        super().__init__(state)
        self.length = len(state)

    def line(self, number: int) -> bytes | None:
        return self.get(number.to_bytes(8, "big"))

    def append(self, line: bytes) -> int:
        self.put(self.length.to_bytes(8, "big"), line)
        self.length += 1
        return self.length - 1

    def truncate(self, length: int) -> None:
        while self.length > length:
            self.length -= 1
            self.delete(self.length.to_bytes(8, "big"))


class JournalEngine(MemoryEngine):
    name = "journal"

    def begin(self) -> JournalTransaction:
        return JournalTransaction(self._state)


class JournalWorkload(Workload):
    """A list of lines. What its transactions answer depends on all that came before, and is compared with the model: a
    model that is not that of the state which the transaction sees is an error here, where it would be none of a map."""

    engine = JournalEngine
    kept = KEPT / "journal"
    tiny: Mapping[str, Any] = {}

    def operations(self) -> st.SearchStrategy[list[Operation]]:
        lines = st.builds(text_of, st.integers(0, 255), st.sampled_from((0, 5, 2000)))
        return st.lists(st.one_of(st.tuples(st.just("append"), lines),
                                  st.tuples(st.just("truncate"), st.integers(0, 9))), min_size=1, max_size=6)

    def new_model(self) -> list[bytes]:
        return []

    def run(self, tx: JournalTransaction, model: list[bytes], operations: list[Operation]) -> None:
        for kind, what in operations:
            if kind == "append":
                number = tx.append(what)
                assert number == len(model), f"line {len(model)} was appended as {number}"
                model.append(what)
            else:
                length = what % (len(model) + 1)
                tx.truncate(length)
                del model[length:]
            assert tx.length == len(model), f"the transaction has {tx.length} lines, and should have {len(model)}"
            if model:
                assert tx.line(len(model) - 1) == model[-1], f"the transaction's last line, {len(model) - 1}"

    def expected(self, model: list[bytes]) -> dict[int, bytes]:
        return dict(enumerate(model))

    def content(self, view: View) -> dict[int, bytes]:
        assert isinstance(view, MemoryView)
        return {int.from_bytes(number, "big"): line for number, line in view.items()}

    def numbered(self, number: int) -> list[Operation]:
        return [("append", b"number %d" % number)]

    def sized(self, size: int, seed: int) -> list[Operation]:
        return [("append", drawn) for drawn in _drawn(size, seed)]

    def walks(self, view: View) -> dict[str, Iterator[Any]]:
        assert isinstance(view, MemoryView)
        return {"items()": iter(view.items())}

    def shows(self, content: dict[int, bytes], number: int) -> bool:
        return b"number %d" % number in content.values()


LABELS, TYPES, KEYS, NUMBERED = ("A", "B"), ("KNOWS", "LIKES"), ("p", "q"), "N"


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


class GraphWorkload(Workload):
    """Numbers are nodes with a loop; both bear the number."""

    engine = GraphEngine
    kept = KEPT / "graph"
    tiny: Mapping[str, Any] = {}
    above_env = False

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
                    self._change_edge(tx, model, kind, pick(rest[0], model.edges), rest[1:])
            elif model.nodes:
                self._change_node(tx, model, kind, pick(rest[0], model.nodes), rest[1:])

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
            target = pick(rest[1], model.nodes)
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
        shown = set(found.labels), _shown(found.properties)
        assert shown == (labels, _shown(props)), f"the transaction's node {node}"
        around = sorted(d for s, _, d, _ in model.edges.values() if s == node)
        assert sorted(tx.neighbors(node)) == around, f"the transaction's neighbours of node {node}"

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
            "numbered": {props["n"] for _, props in nodes.values() if "n" in props} & {
                props["n"] for *_, props in edges.values() if "n" in props},
        }
        for label in LABELS:
            content[label] = [n for n in sorted(nodes) if label in nodes[n][0]]
            for key in KEYS:
                content[label, key] = [n for n in content[label] if _shown({key: 1}) == _shown(
                    {key: nodes[n][1].get(key)})]
        out: dict[int, list[int]] = {node: [] for node in nodes}
        into: dict[int, list[int]] = {node: [] for node in nodes}
        likes: dict[int, list[int]] = {node: [] for node in nodes}
        for _, (source, kind, target, _) in sorted(edges.items()):
            out[source].append(target)
            into[target].append(source)
            if kind == "LIKES":
                likes[source].append(target)
        for node in nodes:
            around = out[node], into[node], likes[node], len(out[node]) + len(into[node])
            content["around", node] = around
        return content

    def content(self, view: View) -> Any:
        assert isinstance(view, GraphView)
        nodes, edges = [view.node(n) for n in view.nodes()], list(view.all_edges())
        content: dict[Any, Any] = {
            "nodes": {n.id: (n.labels, _shown(n.properties)) for n in nodes},
            "edges": {e.id: (e.source, e.type, e.target, _shown(e.properties)) for e in edges},
            "counts": (view.node_count, view.edge_count),
            "indexes": view.indexes(),
            "numbered": {n.properties["n"] for n in nodes if "n" in n.properties} & {
                e.properties["n"] for e in edges if "n" in e.properties},
        }
        for label in LABELS:
            content[label] = list(view.nodes(label))
            for key in KEYS:
                content[label, key] = list(view.nodes(label, {key: 1}))
        for node in nodes:
            content["around", node.id] = (view.neighbors(node.id), view.neighbors(node.id, direction="in"),
                                          view.neighbors(node.id, "LIKES"), view.degree(node.id, direction="both"))
        return content

    def numbered(self, number: int) -> list[Operation]:
        return [("add_node", (NUMBERED,), {"n": number}), ("add_edge", -1, TYPES[0], -1, {"n": number})]

    def sized(self, size: int, seed: int) -> list[Operation]:
        return [("add_node", LABELS[:1], {"q": drawn}) for drawn in _drawn(size, seed)]

    def walks(self, view: View) -> dict[str, Iterator[Any]]:
        assert isinstance(view, GraphView)
        return {"nodes()": iter(view.nodes()), "all_edges()": iter(view.all_edges())}

    def shows(self, content: Any, number: int) -> bool:
        return number in content["numbered"]

    def bulk_load(self, number: int, model: GraphModel) -> BulkLoad:
        node, edge = (1 + max((n for what, n in model.given_out if what == kind), default=0)
                      for kind in ("node", "edge"))
        model.given_out |= {("node", node), ("edge", edge)}
        model.nodes[node] = ({NUMBERED}, {"n": number})
        model.edges[edge] = (node, TYPES[0], node, {"n": number})
        return BulkLoad([{"n": number}], NUMBERED, [(0, 0, {"n": number})], TYPES[0], relative=True)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "memory": memory, "staging": staging, "records": RecordsWorkload, "graph": GraphWorkload, "sqlite": sqlite,
    "rocksdb": rocksdb,
}
