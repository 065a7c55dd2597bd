"""Property values: what is taken, what is refused, and that a refused call leaves a transaction as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_rig import Rig
from hypothesis import given
from hypothesis import strategies as st

from holdfast.engine.builtin.graph import Edge, GraphTransaction, Node, values
from holdfast.engine.contract.transaction import end
from holdfast.engine.errors import InvalidInput, NotFound, StoreClosed

_scalars = st.one_of(st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False),
                     st.text(max_size=20), st.binary(max_size=20),
                     st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1),
                                  timezones=st.sampled_from((UTC, timezone(timedelta(hours=-5, minutes=-30))))))
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3)
                       | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.integers(1, 1000), _values, max_size=4))
def test_what_passes_comes_back_equal(properties: dict[int, Any]) -> None:
    for value in properties.values():
        values.check_value("key", value)
    packed = values.encode_map(properties)
    assert values.decode_map(packed) == properties
    assert values.encode_map(dict(reversed(properties.items()))) == packed


@given(st.dictionaries(st.integers(1, 1000), st.none(), min_size=1, max_size=20), st.data())
def test_many_maps_are_encoded_as_each_one_is(keys: dict[int, None], data: st.DataObject) -> None:
    rows = [{key: data.draw(_scalars) for key in keys} for _ in range(3)]
    assert values.encode_maps({key: [row[key] for row in rows] for key in keys}) == [*map(values.encode_map, rows)]


@pytest.mark.parametrize("count", [7, 8, 15, 16, 17, 40_000])
def test_headers_of_all_sizes(count: int) -> None:
    row = dict.fromkeys(range(1, count + 1), "x")
    assert values.encode_maps({key: ["x", "x"] for key in row}) == [values.encode_map(row)] * 2


_odd = st.one_of(st.sampled_from(("\ud800", "\udc00", "\u00e9", 1 << 63, -(1 << 63) - 1, None, (1,), np.int64(1),
                                  [None], datetime(2000, 1, 1), "x" * (values.MAX_VALUE_BYTES - 4),
                                  "\u00e9" * (values.MAX_VALUE_BYTES // 2))), _values)


@given(st.lists(_odd, min_size=1, max_size=3) | st.lists(st.sampled_from(("\ud800", "\udc00", "x")), min_size=1))
def test_a_column_is_refused_if_one_of_it_is(column: list[Any]) -> None:
    def refused(check: Callable[..., None], *given: Any) -> bool:
        try:
            check("key", *given)
        except InvalidInput:
            return True
        return False

    assert refused(values.check_column, column) == any(refused(values.check_value, value) for value in column)


@given(_values, _values)
def test_digests_tell_values_apart_by_type_and_not_by_order(a: Any, b: Any) -> None:
    if values.encode_value(a) == values.encode_value(b):
        assert a == b
        assert values.value_digest(a) == values.value_digest(b)
    assert values.encode_value({"x": a, "y": b}) == values.encode_value({"y": b, "x": a})


def test_one_and_one_point_zero_and_true_differ() -> None:
    assert len({values.value_digest(value) for value in (1, 1.0, True, "1", b"1")}) == 5


def _nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"k": value}
    return value


def _wide(levels: int) -> Any:
    value: Any = [1]
    for _ in range(levels):
        value = [value] * 1000
    return value


class Text(str):
    pass


REFUSED = {
    "none": None, "too large": 1 << 63, "too small": -(1 << 63) - 1, "naive": datetime(2020, 1, 1),
    "out of range": datetime.min.replace(tzinfo=timezone(timedelta(hours=3))), "set": {1}, "tuple": (1,),
    "complex": 1j, "object": object(), "subclass": Text("x"), "surrogate": "\ud800", "surrogate within": ["\udfff"],
    "surrogate key": {"\ud800": 1}, "long": "x" * values.MAX_VALUE_BYTES, "long bytes": bytes(values.MAX_VALUE_BYTES),
    "long in all": ["x" * 1000] * 1100, "deep": _nested(values.MAX_DEPTH + 1), "wide": _wide(6),
    "none within": [None], "int key": {1: 2}, "large within": {"a": [1 << 64]}, "naive within": [datetime(2020, 1, 1)],
}


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[GraphTransaction]:
    rig = Rig(tmp_path)
    first = rig.engine.begin()
    first.add_edge(first.add_node("A", k=1), "X", first.add_node())
    rig.commit(first)
    yield rig.engine.begin()
    rig.engine.close()


def _refused(tx: GraphTransaction, call: Callable[[], Any]) -> None:
    payload, marks, tokens = tx.payload(), tx.marks(), tx._tokens.highest
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.hint
    assert (tx.payload(), tx.marks(), tx._tokens.highest) == (payload, marks, tokens)


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_refused_values(tx: GraphTransaction, value: Any) -> None:
    _refused(tx, lambda: tx.add_node("New", fine=1, bad=value))
    _refused(tx, lambda: tx.set_properties(1, {"new": 2, "bad": value}))
    _refused(tx, lambda: tx.add_edge(1, "NEW", 2, bad=value))
    _refused(tx, lambda: tx.set_edge_properties(1, bad=value))
    _refused(tx, lambda: list(tx.nodes("A", k=value)))


@pytest.mark.parametrize("value", [_nested(values.MAX_DEPTH), "é" * (values.MAX_VALUE_BYTES // 2 - 4), [], {}, "",
                                   float("inf"), -(1 << 63)])
def test_values_at_the_limits(tx: GraphTransaction, value: Any) -> None:
    node = tx.add_node(key=value)
    assert tx.node(node).properties == {"key": value}


@pytest.mark.parametrize("name", ["", "x" * 257, "é" * 129, "\ud800", 7, None, b"x"])
def test_refused_names(tx: GraphTransaction, name: Any) -> None:
    _refused(tx, lambda: tx.add_node(name))
    _refused(tx, lambda: tx.add_node(properties={name: 1}))
    _refused(tx, lambda: tx.add_edge(1, name, 2))
    _refused(tx, lambda: tx.add_label(1, "fine", name))
    _refused(tx, lambda: tx.create_index(name, "k"))
    _refused(tx, lambda: tx.create_index("A", name))


def test_too_much_in_all(tx: GraphTransaction) -> None:
    half = "x" * (values.MAX_VALUE_BYTES - 10)
    _refused(tx, lambda: tx.add_node("New", properties={f"k{i}": half for i in range(9)}))
    _refused(tx, lambda: tx.add_node(*(f"L{i}" for i in range(257))))
    _refused(tx, lambda: tx.set_properties(1, {f"k{i}": half for i in range(9)}))
    _refused(tx, lambda: tx.set_properties(1, [1]))  # type: ignore[arg-type]


def test_refused_changes(tx: GraphTransaction) -> None:
    _refused(tx, lambda: tx.delete_node(1))
    _refused(tx, lambda: tx.neighbors(1, "X", "up"))  # type: ignore[arg-type]
    _refused(tx, lambda: tx.expand([[1]]))
    _refused(tx, lambda: tx.expand([1.5]))
    _refused(tx, lambda: tx.nodes("A", ["k"]))  # type: ignore[arg-type]  # wrong on purpose
    tx.create_index("A", "k")
    _refused(tx, lambda: tx.create_index("A", "k"))


@pytest.mark.parametrize("wrong", [1.0, True, np.True_, np.float64(1), "1", None, [1], Node(1, (), {}),
                                   Edge(1, 1, "X", 2, {})], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_id(tx: GraphTransaction, wrong: Any) -> None:
    calls: tuple[Callable[[Any], Any], ...] = (
        tx.node, tx.has_node, tx.edge, tx.has_edge, tx.neighbors, tx.neighbors_array, tx.edges, tx.degree,
        lambda n: tx.expand([n]), lambda n: tx.neighbors(n, "X"), tx.delete_node, lambda n: tx.add_label(n, "NEW"),
        lambda n: tx.remove_label(n, "A"), lambda n: tx.set_properties(n, k=1), lambda n: tx.remove_property(n, "k"),
        lambda n: tx.add_edge(n, "NEW", 2), lambda n: tx.add_edge(1, "NEW", n), tx.delete_edge,
        lambda n: tx.set_edge_properties(n, k=1), lambda n: tx.remove_edge_property(n, "k"))
    for call in calls:
        _refused(tx, partial(call, wrong))


def test_ids_from_arrays_are_ids(tmp_path: Path) -> None:
    """What the graph gave out in an array: with it, a transaction could not be packed when it was committed."""
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    a, b, c = (tx.add_node("A", k=i) for i in range(3))
    for target in (b, c, c):
        tx.add_edge(a, "X", target)
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            sources, targets, edges = view.edge_arrays()
            assert view.node(sources[0]) == view.node(a)
            assert type(view.node(sources[0]).id) is type(view.edge(edges[0]).id) is int
            assert view.neighbors(sources[0]) == [b, c, c]
            assert all(view.has_node(node) for node in targets)
        rig.checkpoint()
    tx = rig.engine.begin()
    tx.set_properties(targets[0], k=9)
    tx.remove_property(sources[0], "k")
    tx.add_label(targets[0], "B")
    tx.set_edge_properties(edges[0], w=1)
    tx.delete_edge(edges[1])
    tx.delete_node(targets[1], detach=True)
    new = tx.add_edge(targets[0], "Y", sources[0])
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            assert list(view.all_edges()) == [Edge(1, a, "X", b, {"w": 1}), Edge(new, b, "Y", a, {})]
            assert [view.node(n) for n in view.nodes()] == [Node(a, ("A",), {}), Node(b, ("A", "B"), {"k": 9})]
        rig.checkpoint()
    rig.sound()
    rig.engine.close()


@pytest.mark.parametrize("missing", [0, 3, -1, 1 << 63, 1 << 70])
def test_what_is_not_there(tx: GraphTransaction, missing: Any) -> None:
    payload = tx.payload()
    for call in (tx.node, tx.edge, tx.neighbors, tx.edges, tx.degree, tx.neighbors_array, tx.delete_node,
                 tx.delete_edge, tx.set_properties, tx.set_edge_properties, tx.add_label):
        with pytest.raises(NotFound):
            call(missing)
    for type in (None, "X", "NONE"):
        with pytest.raises(NotFound):
            tx.neighbors(missing, type)
    for ends in ((missing, 1), (1, missing)):
        with pytest.raises(NotFound):
            tx.add_edge(ends[0], "NEW", ends[1])
    with pytest.raises(NotFound):
        tx.drop_index("A", "none")
    assert not tx.has_node(missing)
    assert not tx.has_edge(missing)
    assert tx.payload() == payload


def test_ended_transactions_and_views(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    node = tx.add_node()
    rig.commit(tx)
    end(tx, "committed")
    for call in (lambda: tx.add_node(), lambda: tx.add_edge(node, "X", node), lambda: tx.delete_node(node),
                 lambda: tx.set_properties(node, a=1), lambda: tx.create_index("A", "k")):
        with pytest.raises(StoreClosed):
            call()
    closed = rig.engine.view()
    closed.close()
    closed.close()
    for reader in (tx, closed):
        for look in (lambda r=reader: r.node(node), lambda r=reader: r.neighbors(node),
                     lambda r=reader: r.neighbors(node, "X"), lambda r=reader: list(r.nodes()),
                     lambda r=reader: r.has_edge(1), lambda r=reader: r.expand([node])):
            with pytest.raises(StoreClosed):
                look()
    open_view = rig.engine.view()
    rig.checkpoint()
    later = rig.engine.view()
    rig.engine.close()
    for view in (open_view, later):
        for look in (lambda v=view: v.neighbors(node + 1, "X"), lambda v=view: list(v.nodes()),
                     lambda v=view: v.digest(), lambda v=view: list(v.check())):
            with pytest.raises(StoreClosed):
                look()
