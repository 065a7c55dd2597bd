"""Random transactions on the graph engine, staged, published, checkpointed, replayed and copied in any order, with
views held open meanwhile, against a plain model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from graph_rig import Model, Rig, compare
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from holdfast.engine.builtin.graph import BulkLoad, GraphEngine, GraphTransaction, GraphView, adjacency
from holdfast.engine.contract.engine import Context
from holdfast.engine.errors import InvalidInput

LABELS, KINDS, KEYS = ("A", "B", "C"), ("X", "Y"), ("k", "l")
VALUES: tuple[Any, ...] = (1, 1.0, True, "v", b"v", [1, {"a": 2}], {"b": 1, "a": [2.5]})
WANTED = [(label, key, value) for label in LABELS[:2] for key in KEYS for value in VALUES[:4]]

_index = st.integers(0, 30)
_props = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)
_labels = st.lists(st.sampled_from(LABELS), max_size=2)
_operations = st.lists(st.one_of(
    st.tuples(st.just("add_node"), _labels, _props),
    st.tuples(st.just("add_edge"), _index, st.sampled_from(KINDS), _index, _props),
    st.tuples(st.just("add_edge"), _index, st.sampled_from(KINDS), _index, st.just({})),
    st.tuples(st.just("set_properties"), _index, _props),
    st.tuples(st.just("remove_property"), _index, st.sampled_from(KEYS)),
    st.tuples(st.just("set_edge_properties"), _index, _props),
    st.tuples(st.just("remove_edge_property"), _index, st.sampled_from(KEYS)),
    st.tuples(st.just("add_label"), _index, _labels),
    st.tuples(st.just("remove_label"), _index, _labels),
    st.tuples(st.just("delete_edge"), _index),
    st.tuples(st.just("delete_node"), _index, st.booleans()),
    st.tuples(st.just("create_index"), st.sampled_from(LABELS[:2]), st.sampled_from(KEYS)),
    st.tuples(st.just("drop_index"), st.sampled_from(LABELS[:2]), st.sampled_from(KEYS)),
), min_size=1, max_size=8)


def run(tx: GraphTransaction, model: Model, operations: list[tuple[Any, ...]]) -> None:
    """Do operations to both. What has nothing to work on is passed over."""
    for kind, *args in operations:
        if kind == "add_node":
            node = tx.add_node(*args[0], properties=args[1])
            assert node not in model.nodes
            model.nodes[node] = (set(args[0]), dict(args[1]))
        elif kind in ("create_index", "drop_index"):
            where = (args[0], args[1])
            if (where in model.indexes) == (kind == "drop_index"):
                getattr(tx, kind)(*where)
                (model.indexes.add if kind == "create_index" else model.indexes.remove)(where)
        elif kind in ("delete_edge", "set_edge_properties", "remove_edge_property"):
            if model.edges:
                edge = sorted(model.edges)[args[0] % len(model.edges)]
                getattr(tx, kind)(edge, *args[1:])
                if kind == "delete_edge":
                    del model.edges[edge]
                elif kind == "set_edge_properties":
                    model.edges[edge][3].update(args[1])
                else:
                    model.edges[edge][3].pop(args[1], None)
        elif model.nodes:
            ids = sorted(model.nodes)
            node = ids[args[0] % len(ids)]
            carried, props = model.nodes[node]
            if kind == "add_edge":
                target = ids[args[2] % len(ids)]
                edge = tx.add_edge(node, args[1], target, args[3])
                assert edge not in model.edges
                model.edges[edge] = (node, args[1], target, dict(args[3]))
            elif kind == "set_properties":
                tx.set_properties(node, args[1])
                props.update(args[1])
            elif kind == "remove_property":
                tx.remove_property(node, args[1])
                props.pop(args[1], None)
            elif kind == "add_label":
                tx.add_label(node, *args[1])
                carried.update(args[1])
            elif kind == "remove_label":
                tx.remove_label(node, *args[1])
                carried.difference_update(args[1])
            else:
                edges = [e for e, (s, _, t, _) in model.edges.items() if node in (s, t)]
                if edges and not args[1]:
                    with pytest.raises(InvalidInput):
                        tx.delete_node(node)
                else:
                    tx.delete_node(node, detach=args[1])
                    del model.nodes[node]
                    for edge in edges:
                        del model.edges[edge]


class GraphMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.rig = Rig(self.root / "live")
        self.models = [Model()]
        self.published = 0
        self.held: list[tuple[GraphView, int, bytes]] = []
        self.copies = 0

    def teardown(self) -> None:
        for view, txid, digest in self.held:
            self.look(view, txid, digest)
        with self.rig.engine.staged_view() as view:
            self.look(view, len(self.rig.records))
        self.rig.engine.close()
        shutil.rmtree(self.root)

    def look(self, view: GraphView, txid: int, digest: bytes | None = None) -> None:
        assert view.txid == txid
        compare(view, self.models[txid], (None, *KINDS), WANTED)
        assert list(view.check()) == []
        if digest is not None:
            assert view.digest() == digest

    @rule(operations=_operations)
    def stage(self, operations: list[tuple[Any, ...]]) -> None:
        model = self.models[-1].copy()
        tx = self.rig.engine.begin()
        run(tx, model, operations)
        compare(tx, model, (None, *KINDS), WANTED)
        if tx.payload():
            self.rig.stage(tx)
            self.models.append(model)
        else:
            assert model == self.models[-1]

    @rule(operations=_operations)
    def roll_back(self, operations: list[tuple[Any, ...]]) -> None:
        tx = self.rig.engine.begin()
        run(tx, self.models[-1].copy(), operations)
        tx.close()

    @rule(operations=_operations)
    def stage_across_a_checkpoint(self, operations: list[tuple[Any, ...]]) -> None:
        model = self.models[-1].copy()
        tx = self.rig.engine.begin()
        run(tx, model, operations[: len(operations) // 2])
        self.rig.engine.checkpoint(self.rig.position(self.published))
        run(tx, model, operations[len(operations) // 2 :])
        if tx.payload():
            self.rig.stage(tx)
            self.models.append(model)

    @rule(share=st.floats(0, 1))
    def publish(self, share: float) -> None:
        self.published += round(share * (len(self.rig.records) - self.published))
        self.rig.engine.publish(self.rig.position(self.published))

    @rule(share=st.floats(0, 1))
    def checkpoint(self, share: float) -> None:
        at = self.rig.engine.position.txid
        upto = self.rig.position(at + round(share * (self.published - at)))
        assert self.rig.engine.checkpoint(upto) == upto == self.rig.engine.position

    @rule(kind=st.sampled_from(KINDS), ends=st.lists(st.tuples(_index, _index), max_size=12),
          props=st.lists(_props, max_size=4))
    def load(self, kind: str, ends: list[tuple[int, int]], props: list[dict[str, Any]]) -> None:
        self.publish(1.0)
        model = self.models[-1].copy()
        first = self.rig.engine.begin().marks().next_node
        ids = sorted(model.nodes) + list(range(first, first + len(props)))
        edges: list[Any] = [] if not ids else [
            (ids[a % len(ids)], ids[b % len(ids)], *([{"k": a}] if a % 3 == 0 else [])) for a, b in ends]
        load = BulkLoad(nodes=[(LABELS[i % 3], p) for i, p in enumerate(props)], edges=edges, edge_type=kind)
        self.rig.load(load)
        assert load.result is not None
        for i, node in enumerate(range(load.result.first_node, load.result.first_node + load.result.nodes)):
            model.nodes[node] = ({LABELS[i % 3]}, dict(props[i]))
        for i, (source, target, *more) in enumerate(edges):
            model.edges[load.result.first_edge + i] = (source, kind, target, dict(more[0]) if more else {})
        self.models.append(model)
        self.published = len(self.rig.records)

    @rule()
    def hold(self) -> None:
        view = self.rig.engine.view()
        self.held.append((view, self.published, view.digest()))
        self.look(*self.held[-1])

    @precondition(lambda self: self.held)
    @rule(index=_index)
    def look_again(self, index: int) -> None:
        view, txid, digest = self.held.pop(index % len(self.held))
        with view:
            self.look(view, txid, digest)

    @rule()
    def copy_and_replay(self) -> None:
        """An image, opened in another place and replayed to the end, read-only as for writing."""
        image = self.rig.engine.image()
        self.copies += 1
        place = self.root / f"copy-{self.copies}" / "state"
        place.mkdir(parents=True)
        (place / "data.mdb").write_bytes(image.read("data.mdb", 0, image.files[0].size))
        image.close()
        with self.rig.engine.staged_view() as view:
            expected = view.digest()
        if any(record.attachment for record in self.rig.records[image.position.txid :]):
            return
        for read_only in (True, False):
            copy = GraphEngine.open(place, Context(), read_only=read_only, at=image.position)
            assert copy.position == image.position
            copy.apply(self.rig.records[image.position.txid :])
            if not read_only:
                copy.checkpoint(self.rig.end)
            with copy.view() as view:
                assert view.digest() == expected
                self.look(view, len(self.rig.records))
            copy.close()

    @rule()
    def replay_all(self) -> None:
        self.copies += 1
        other = self.rig.replayed(str(self.root / f"replayed-{self.copies}"))
        with self.rig.engine.staged_view() as view:
            assert other.digest() == view.digest()
        other.engine.close()

    @precondition(lambda self: not any(r.attachment for r in self.rig.records[self.rig.engine.position.txid :]))
    @rule()
    def reopen(self) -> None:
        while self.held:
            self.look(*self.held.pop())
        with self.rig.engine.staged_view() as view:
            before = view.digest()
        self.rig.reopen()
        self.published = len(self.rig.records)
        assert self.rig.digest() == before


TestGraphMachine = GraphMachine.TestCase
TestGraphMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None,
                                     suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class SmallBlockMachine(GraphMachine):
    """The same with adjacency blocks of three entries, so that every list of some length is split."""

    def __init__(self) -> None:
        super().__init__()
        self.block, adjacency.BLOCK = adjacency.BLOCK, 3

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            adjacency.BLOCK = self.block


TestSmallBlockMachine = SmallBlockMachine.TestCase
TestSmallBlockMachine.settings = TestGraphMachine.settings
