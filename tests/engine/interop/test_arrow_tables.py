"""A graph as Arrow tables, and tables into a graph."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from graph_rig import Rig
from graph_worlds import steps, world
from hypothesis import example, given
from pyarrow import parquet

from holdfast.engine import GraphStore, interop
from holdfast.engine.builtin.graph import GraphView
from holdfast.engine.errors import BadRows, InvalidInput

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GraphStore]:
    with GraphStore.open(tmp_path / "store", online_backup_enabled=False) as opened:
        yield opened


def content(view: GraphView) -> tuple[list[Any], list[Any]]:
    """Nodes in order, and edges as a sorted list, both by the nodes' places."""
    nodes = [view.node(node) for node in view.nodes()]
    places = {node.id: place for place, node in enumerate(nodes)}
    return ([(node.labels, node.properties) for node in nodes],
            sorted((edge.type, places[edge.source], places[edge.target], sorted(edge.properties.items()))
                   for edge in view.all_edges()))


@given(script=steps)
@example(script=[])
@example(script=[("node", 1), ("edge", 0, "KNOWS", 0), ("edge", 0, "LIKES", 0), ("weigh", 0, 3), ("checkpoint",)])
def test_what_goes_out_comes_in(script: list[Any]) -> None:
    with TemporaryDirectory() as name:
        rig = world(Path(name) / "rig", script)
        with rig.engine.view() as view:
            out = interop.to_arrow(view)
            assert out.nodes.column(":ID").to_pylist() == list(view.nodes())
            assert out.nodes.column_names[:2] == [":ID", ":LABEL"]
            assert out.edges.column_names[:3] == [":START_ID", ":END_ID", ":TYPE"]
            assert out.edges.column(":TYPE").to_pylist() == [edge.type for edge in view.all_edges()]
            of_kind = interop.to_arrow(view, "KNOWS", keys=["weight"])
            assert of_kind.nodes.column_names == [":ID", ":LABEL"]
            assert of_kind.edges.num_rows == sum(1 for _ in view.all_edges("KNOWS"))
            for part, table in zip(("nodes", "edges"), out, strict=True):
                parquet.write_table(table, Path(name) / part)
            back = [parquet.read_table(Path(name) / part) for part in ("nodes", "edges")]
            with GraphStore.open(Path(name) / "store", online_backup_enabled=False) as store:
                loaded = interop.load_arrow(store, *back)
                assert loaded == (1, view.node_count, view.edge_count)
                with store.snapshot() as other:
                    assert content(other) == content(view)
                    assert list(other.check()) == []
        rig.engine.close()


def test_every_kind_of_value_goes_out_and_comes_in(store: GraphStore) -> None:
    values: dict[str, Any] = {"bool": True, "int": -(1 << 63), "float": 0.5, "str": "ü", "bytes": b"\0\xff",
                              "time": NOON, "ints": [1, 2], "empty": [], "nested": [["a"], []], "a:b": 1, "a:int": "x"}
    with store.transaction() as tx:
        tx.add_edge(tx.add_node("A", properties=values), "K", tx.add_node("A"), properties=values)
    with store.snapshot() as view:
        tables = interop.to_arrow(view)
    assert tables.nodes.schema.field("time").type == pa.timestamp("us", "UTC")
    interop.load_arrow(store, tables.nodes, tables.edges)
    with store.snapshot() as view:
        assert view.node(3).properties == view.edge(2).properties == values
        assert [*map(type, view.node(3).properties.values())] == [*map(type, view.node(1).properties.values())]


def test_whole_numbers_among_floats_are_floats_if_they_can_be(store: GraphStore) -> None:
    with store.transaction() as tx:
        tx.add_node(x=1, y=1)
        tx.add_node(x=0.5, y="one")
    with store.snapshot() as view:
        assert interop.to_arrow(view, keys=["x"]).nodes.column("x").to_pylist() == [1.0, 0.5]
        with pytest.raises(InvalidInput, match="'y' holds values of the types int, str"):
            interop.to_arrow(view)
    with store.transaction() as tx:
        tx.add_node(x=(1 << 53) + 1)
    with store.snapshot() as view, pytest.raises(InvalidInput, match="which no float is"):
        interop.to_arrow(view, keys=["x"])


@pytest.mark.parametrize("value", [{"a": 1}, [1, "a"]])
def test_what_no_column_can_hold_is_refused_or_a_struct(store: GraphStore, value: Any) -> None:
    with store.transaction() as tx:
        tx.add_node(x=value)
    with store.snapshot() as view:
        if isinstance(value, dict):
            assert interop.to_arrow(view).nodes.column("x").to_pylist() == [value]
        else:
            with pytest.raises(InvalidInput, match="'x' holds lists or dicts"):
                interop.to_arrow(view)


@pytest.mark.parametrize(("column", "wanted"), [
    (pa.array([1, None], pa.uint8()), [1, None]), (pa.array([1, 2], pa.uint64()), [1, 2]),
    (pa.array(["a", "a"]).dictionary_encode(), ["a", "a"]), (pa.array([0.5, None], pa.float16()), [0.5, None]),
    (pa.nulls(2), [None, None]), (pa.array([b"ab", b"cd"], pa.binary(2)), [b"ab", b"cd"]),
    (pa.array(["a", None], pa.string_view()), ["a", None]), (pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
                                                             [[1, 2], [3, 4]]),
    (pa.array([NOON, None], pa.timestamp("ns", "Europe/Berlin")), [NOON, None]),
    (pa.array([0, 1], pa.timestamp("s", "+02:00")), [datetime(1970, 1, 1, 0, 0, n, tzinfo=UTC) for n in (0, 1)]),
])
def test_types_that_a_column_may_have(store: GraphStore, column: Any, wanted: list[Any]) -> None:
    interop.load_arrow(store, pa.table({"x": column, "kept": ["yes", "yes"]}))
    with store.snapshot() as view:
        assert [view.node(node).properties.get("x") for node in view.nodes()] == wanted


@pytest.mark.parametrize(("column", "name", "why"), [
    (pa.array([1 << 63, 1], pa.uint64()), "x", "does not fit into int64"),
    (pa.array([1_000_000_001, 1000], pa.timestamp("ns", "UTC")), "x", "does not fit into timestamp"),
    (pa.array([1.5, 2.0]), "x:int", "does not fit into int64"),
    (pa.array([[1, None], [2]]), "x", "is None"),
])
def test_a_cell_that_no_property_can_have(store: GraphStore, column: Any, name: str, why: str) -> None:
    with pytest.raises(BadRows) as caught:
        interop.load_arrow(store, pa.table({name: column}))
    [finding] = caught.value.findings
    assert finding.startswith(f"nodes, row 1: {name}: ")
    assert why in finding
    assert store.published.txid == 0


@pytest.mark.parametrize(("column", "why"), [
    (pa.array([1], pa.timestamp("us")), "which no property can have .give it a time zone"),
    (pa.array([1], pa.date32()), "date32"), (pa.array([[{"a": 1}]]), "struct"),
])
def test_a_type_that_no_property_can_have(store: GraphStore, column: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        interop.load_arrow(store, pa.table({"x": column}))
    assert store.published.txid == 0


def test_several_tables_are_one_graph(store: GraphStore) -> None:
    people, films = pa.table({":ID(P)": [1, 2], ":LABEL": ["A;B", None]}), pa.table({":ID(F)": ["1"]})
    saw = pa.table({":START_ID(P)": [2, 2], ":END_ID(F)": [1, 1], ":TYPE": ["SAW", "SAW"]})
    with store.transaction() as tx:
        tx.add_node("Before")
    assert interop.load_arrow(store, [people, films.to_batches()[0]], [saw, saw]) == (2, 3, 4)
    assert store.published.txid == 2, "one type of edge: one transaction"
    with store.snapshot() as view:
        assert [view.node(node).labels for node in view.nodes()] == [("Before",), ("A", "B"), (), ()]
        assert view.edge_arrays()[0].tolist() == [3] * 4
        assert view.edge_arrays()[1].tolist() == [4] * 4
    for wrong in (7, ["people"], {"a": 1}):
        with pytest.raises((InvalidInput, TypeError)):
            interop.load_arrow(store, wrong)


def test_nothing_is_loaded_if_a_row_is_wrong(store: GraphStore) -> None:
    nodes = pa.table({":ID": ["a", "b", "a"]})
    with pytest.raises(BadRows, match="1 row is wrong"):
        interop.load_arrow(store, nodes)
    edges = pa.table({":START_ID": ["a", "x"], ":END_ID": ["y", "b"], ":TYPE": ["K", "K"]})
    with pytest.raises(BadRows) as caught:
        interop.load_arrow(store, nodes.slice(0, 2), edges)
    assert caught.value.findings == ("edges, row 1: no node has the id 'y'", "edges, row 2: no node has the id 'x'")
    assert store.published.txid == 0


def test_views_of_the_same_rows_are_the_same_properties(tmp_path: Path) -> None:
    """Through a checkpoint and an overlay over it."""
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    nodes = [tx.add_node("N", number=n, text="x" * n) for n in range(50)]
    rig.commit(tx)
    rig.checkpoint()
    tx = rig.engine.begin()
    for node in nodes[::3]:
        tx.set_properties(node, number=-node)
    for node in nodes[1::3]:
        tx.remove_property(node, "number")
    for node in nodes[2::9]:
        tx.delete_node(node)
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            table = interop.to_arrow(view).nodes
            ids = list(view.nodes())
            assert table.column(":ID").to_pylist() == ids
            for key in ("number", "text"):
                assert table.column(key).to_pylist() == [view.node(node).properties.get(key) for node in ids]
            assert np.array_equal(table.column(":ID").to_numpy(), ids)
        rig.checkpoint()
    rig.engine.close()
