"""Drives a graph engine without a store around it, and a plain model of the graph beside it."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine.builtin.graph import BulkLoad, Direction, GraphEngine, GraphTransaction, GraphView
from holdfast.engine.contract.engine import Context
from holdfast.engine.errors import NotFound
from holdfast.engine.model.positions import Position, origin
from holdfast.engine.model.records import Attachment, Record

ORIGIN = origin(b"graph test store")


@dataclass
class Rig:
    """An engine in a directory and the records it was given."""

    directory: Path
    records: list[Record] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = self.directory / "state"
        if not state.exists():
            state.mkdir(parents=True)
            GraphEngine.create(state, ORIGIN, Context(options=self.options))
        self.engine = GraphEngine.open(state, Context(options=self.options))

    @property
    def end(self) -> Position:
        return self.records[-1].position if self.records else ORIGIN

    def position(self, txid: int) -> Position:
        return self.records[txid - 1].position if txid else ORIGIN

    def record(self, payload: bytes, attachment: Attachment | None = None) -> Record:
        record = Record.make(self.end.chain, self.end.txid + 1, 0, 0, 1, payload, attachment)
        self.records.append(record)
        return record

    def stage(self, tx: GraphTransaction) -> None:
        self.engine.stage(self.record(tx.payload()), tx)
        tx.close()

    def commit(self, tx: GraphTransaction) -> None:
        self.stage(tx)
        self.engine.publish(self.end)

    def load(self, load: BulkLoad) -> Record:
        path = self.directory / f"load-{self.end.txid + 1}"
        with path.open("wb") as file:
            payload = self.engine.write_bulk(load, file)
        record = self.record(payload, Attachment(path.name, path.stat().st_size, bytes(16)))
        self.engine.apply_bulk(record, path)
        return record

    def checkpoint(self) -> None:
        assert self.engine.checkpoint(self.end) == self.end

    def digest(self) -> bytes:
        with self.engine.view() as view:
            return view.digest()

    def sound(self) -> None:
        with self.engine.view() as view:
            assert list(view.check()) == []

    def replayed(self, name: str) -> Rig:
        """A new engine beside this one, brought to the same end from nothing."""
        other = Rig(self.directory / name, options=self.options)
        for record in self.records:
            other.replay(record, self.directory)
        return other

    def replay(self, record: Record, loads: Path) -> None:
        self.records.append(record)
        if record.attachment is None:
            self.engine.apply([record])
        else:
            self.engine.apply_bulk(record, loads / record.attachment.name)

    def reopen(self) -> None:
        """Close without a checkpoint, open, and apply what is missing."""
        self.engine.close()
        self.engine = GraphEngine.open(self.directory / "state", Context(options=self.options))
        self.engine.apply(self.records[self.engine.position.txid :])


@dataclass
class Model:
    """The graph as plain dicts."""

    nodes: dict[int, tuple[set[str], dict[str, Any]]] = field(default_factory=dict)
    edges: dict[int, tuple[int, str, int, dict[str, Any]]] = field(default_factory=dict)
    indexes: set[tuple[str, str]] = field(default_factory=set)

    def copy(self) -> Model:
        return deepcopy(self)

    def neighbors(self, node: int, kind: str | None, direction: str) -> list[int]:
        found = []
        for _, (source, edge_kind, target, _) in sorted(self.edges.items()):
            if kind in (None, edge_kind):
                found += [target] if source == node and direction != "in" else []
                found += [source] if target == node and direction != "out" else []
        return found


def same(a: Any, b: Any) -> bool:
    """Whether two property values are equal in type too."""
    return type(a) is type(b) and bool(a == b)


def compare(view: GraphView | GraphTransaction, model: Model, kinds: Iterable[str | None],
            wanted: Iterable[tuple[str, str, Any]]) -> None:
    """Everything a reader shows, against the model."""
    assert view.node_count == len(model.nodes)
    assert view.edge_count == len(model.edges)
    assert list(view.nodes()) == sorted(model.nodes)
    assert view.indexes() == sorted(model.indexes)
    labels = {label for carried, _ in model.nodes.values() for label in carried}
    assert view.labels() == sorted(labels)
    for label in labels:
        assert list(view.nodes(label)) == sorted(n for n, (carried, _) in model.nodes.items() if label in carried)
    for label, key, value in wanted:
        assert list(view.nodes(label, {key: value})) == sorted(
            n for n, (carried, props) in model.nodes.items()
            if label in carried and key in props and same(props[key], value))
    for node, (carried, props) in model.nodes.items():
        found = view.node(node)
        assert (found.labels, found.properties) == (tuple(sorted(carried)), props)
        assert view.properties(node) == props  # once more: from the cache, if there is one
    for node in set(range(1, max(model.nodes, default=0) + 3)) - set(model.nodes):
        assert not view.has_node(node)
        for read in (view.node, view.properties, view.neighbors, view.degree, view.edges):
            with pytest.raises(NotFound):
                read(node)  # of one that is deleted, or not there yet: another view may have kept it
    for edge, ends in model.edges.items():
        got = view.edge(edge)
        assert (got.source, got.type, got.target, got.properties) == ends
    nodes = sorted(model.nodes)
    directions: tuple[Direction, ...] = ("out", "in", "both")
    for kind in kinds:
        for direction in directions:
            lists = [view.neighbors(node, kind, direction) for node in nodes]
            assert lists == [model.neighbors(node, kind, direction) for node in nodes]
            offsets, targets = view.expand(nodes, kind, direction)
            assert [targets[a:b].tolist() for a, b in pairwise(offsets.tolist())] == lists
            for node, expected in zip(nodes, lists, strict=True):
                assert view.degree(node, kind, direction) == len(expected)
                assert view.neighbors_array(node, kind, direction).tolist() == expected
                around = view.edges(node, kind, direction)
                assert [edge.id for edge in around] == sorted(edge.id for edge in around)
                assert len(around) == len(expected)
    if isinstance(view, GraphView):
        assert [edge.id for edge in view.all_edges()] == sorted(model.edges)
