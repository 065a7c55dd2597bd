"""Bulk loads: what may be given, what is refused, and that a loaded store is the one that transactions would make."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_rig import Model, Rig, compare
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.engine.builtin.graph import (
    BulkLoad,
    BulkResult,
    Direction,
    GraphEngine,
    GraphView,
    adjacency,
    bulk,
    bulk_columns,
)
from holdfast.engine.env import Files
from holdfast.engine.errors import Damaged, DiskFull, InvalidInput, UnsupportedFormat
from holdfast.engine.store.store import Store


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.engine.close()


DIRECTIONS: tuple[Direction, ...] = ("out", "in", "both")
EDGES = [(0, 1), (2, 0), (0, 1), (1, 1)]
FORMS: dict[str, Any] = {
    "list": EDGES, "generator": (edge for edge in EDGES), "array": np.array(EDGES), "u32": np.array(EDGES, "u4"),
    "pair": (np.array([s for s, _ in EDGES]), np.array([t for _, t in EDGES])), "lists": [[*edge] for edge in EDGES],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_edges(rig: Rig, form: str) -> None:
    tx = rig.engine.begin()
    tx.add_node("Before")
    rig.commit(tx)
    load = BulkLoad(nodes=3, labels="Page", edges=FORMS[form], edge_type="LINKS", relative=True)
    rig.load(load)
    assert load.result == BulkResult(2, 3, 1, 4)
    model = Model({1: ({"Before"}, {}), **{n: ({"Page"}, {}) for n in (2, 3, 4)}},
                  {i + 1: (s + 2, "LINKS", t + 2, {}) for i, (s, t) in enumerate(EDGES)})
    with rig.engine.view() as view:
        compare(view, model, ("LINKS", None), ())
    rig.sound()
    rig.reopen()
    with rig.engine.view() as view:
        assert view.txid == 2
        compare(view, model, ("LINKS", None), ())


def test_nodes_with_labels_and_properties_and_an_index(rig: Rig) -> None:
    tx = rig.engine.begin()
    tx.create_index("A", "k")
    old = tx.add_node("A", k=1)
    rig.commit(tx)
    load = BulkLoad(nodes=[("A", {"k": 1}), (("A", "B"), {"k": 2, "l": "x"}), ("B", {}), ({}), {"k": 1}], labels="C",
                    edges=[(old, 2, {"w": 1.5}), (3, old)], edge_type="T")
    rig.load(load)
    model = Model({1: ({"A"}, {"k": 1}), 2: ({"A"}, {"k": 1}), 3: ({"A", "B"}, {"k": 2, "l": "x"}), 4: ({"B"}, {}),
                   5: ({"C"}, {}), 6: ({"C"}, {"k": 1})},
                  {1: (1, "T", 2, {"w": 1.5}), 2: (3, "T", 1, {})}, {("A", "k")})
    with rig.engine.view() as view:
        compare(view, model, ("T",), [("A", "k", 1), ("A", "k", 2), ("C", "k", 1)])
    rig.sound()
    other = rig.replayed("other")
    assert other.digest() == rig.digest()
    other.engine.close()


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=40), min_size=1, max_size=3),
       st.sampled_from((3, 254)), st.booleans())
def test_loads_are_what_transactions_make(rounds: list[list[tuple[int, int]]], block: int, checkpoints: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjacency, "BLOCK", block)
        loaded, made = Rig(Path(directory) / "loaded"), Rig(Path(directory) / "made")
        for rig in (loaded, made):
            tx = rig.engine.begin()
            for _ in range(12):
                tx.add_node("N")
            tx.add_edge(1, "T", 2)
            rig.commit(tx)
        for edges in rounds:
            loaded.load(BulkLoad(nodes=2, labels=("N", "M"), edges=edges, edge_type="T"))
            tx = made.engine.begin()
            for _ in range(2):
                tx.add_node("N", "M")
            for source, target in edges:
                tx.add_edge(source, "T", target)
            made.commit(tx)
            if checkpoints:
                made.checkpoint()
        assert loaded.digest() == made.digest()
        with loaded.engine.view() as a, made.engine.view() as b:
            for node in range(1, 13):
                for direction in DIRECTIONS:
                    assert a.neighbors(node, "T", direction) == b.neighbors(node, "T", direction)
            assert list(a.check()) == list(b.check()) == []
        for rig in (loaded, made):
            rig.engine.close()


def test_many_nodes_over_many_blocks(rig: Rig) -> None:
    for count in (1019, 1, 1, 5000, 4096 * 2):
        rig.load(BulkLoad(nodes=count, labels="A"))
        rig.sound()
    rng = np.random.default_rng(1)
    edges = rng.integers(1, 1020 + 13194, (20_000, 2))
    rig.load(BulkLoad(edges=edges, edge_type="T"))
    rig.load(BulkLoad(edges=edges[:3000], edge_type="S"))
    rig.load(BulkLoad(edges=edges[:3000, ::-1], edge_type="T"))
    rig.sound()
    with rig.engine.view() as view:
        assert view.node_count == len(list(view.nodes("A"))) == 14213
        sources, targets, ids = view.edge_arrays()
        assert ids.tolist() == list(range(1, 26_001))
        assert (np.stack((sources, targets), 1)[:20_000] == edges).all()
        offsets, found = view.expand(np.arange(1, 14_214), "S")
        assert len(found) == offsets[-1] == 3000


def test_the_order_without_room_for_packing() -> None:
    sources, targets = np.array([1 << 61, 5, 7]), np.array([5, 1 << 61, 5])
    order = bulk_columns._order(sources, targets)
    assert order.tolist() == [1, 3, 5, 2, 0, 4]
    assert bulk_columns._order(sources % 61, targets % 61).tolist() == sorted(
        range(6), key=lambda i: (*[[*(sources % 61), *(targets % 61)][i]], i))


REFUSED: dict[str, dict[str, Any]] = {
    "negative": {"nodes": -1}, "text": {"nodes": "ab"}, "bool": {"nodes": True}, "float": {"nodes": 1.5},
    "no node": {"nodes": [3]}, "bad value": {"nodes": [{"k": None}]}, "bad label": {"nodes": [("", {})]},
    "bad labels": {"labels": [1]}, "no labels": {"labels": None}, "unhashable": {"nodes": [((["A"],), {})]},
    "no type": {"edges": [(1, 1)]}, "bad type": {"edges": [(1, 1)], "edge_type": ""},
    "missing": {"edges": [(1, 3)], "edge_type": "T"}, "deleted": {"edges": [(2, 1)], "edge_type": "T"},
    "negative id": {"edges": [(-1, 1)], "edge_type": "T"}, "beyond": {"edges": [(0, 2)], "nodes": 2, "relative": True,
                                                                     "edge_type": "T"},
    "float ids": {"edges": np.zeros((2, 2)), "edge_type": "T"}, "shape": {"edges": np.zeros((2, 3), int)},
    "flat": {"edges": np.zeros(4, int)}, "uneven": {"edges": (np.zeros(2, int), np.zeros(3, int))},
    "one end": {"edges": [(1,)], "edge_type": "T"}, "text ids": {"edges": [("a", "b")], "edge_type": "T"},
    "bool ids": {"edges": [(True, 1)], "edge_type": "T"},
    "large ids": {"edges": [(1 << 70, 1)], "edge_type": "T"}, "edges text": {"edges": "ab"},
    "u64": {"edges": np.array([[1 << 63, 1]], "u8"), "edge_type": "T"}, "edges number": {"edges": 3},
    "bad edge value": {"edges": [(1, 1, {"k": {1: 2}})], "edge_type": "T"},
    "sources and targets, or two edges": {"edges": ([0, 0], [1, 1]), "nodes": 2, "relative": True, "edge_type": "T"},
    "array and list": {"edges": (np.zeros(2, int), [1, 1]), "nodes": 2, "relative": True, "edge_type": "T"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_loads(rig: Rig, what: str) -> None:
    tx = rig.engine.begin()
    tx.add_node()
    tx.delete_node(tx.add_node())
    rig.commit(tx)
    before = rig.digest()
    out = io.BytesIO()
    with pytest.raises(InvalidInput):
        rig.engine.write_bulk(BulkLoad(**REFUSED[what]), out)
    assert out.getvalue() == b""
    tx = rig.engine.begin()
    tx.add_node("Fine", k=1)
    assert tx.marks().next_node == 4
    tx.close()
    assert rig.digest() == before


def _indexed(rig: Rig, first: int) -> BulkLoad:
    if first == 0:
        tx = rig.engine.begin()
        for key in "abcd":
            tx.create_index("A", key)
        rig.commit(tx)
    return BulkLoad(nodes=[dict.fromkeys("abcd", first + i) for i in range(2000)], labels="A")


def _half_pages(rig: Rig, first: int) -> BulkLoad:
    """Lists that take half a page each, and then come to need a whole one."""
    nodes = np.arange(300)
    if first:
        return BulkLoad(edges=np.stack((nodes + 1, np.roll(nodes, 1) + 1), 1), edge_type="T")
    sources = np.repeat(nodes, 126)
    return BulkLoad(nodes=300, labels="A", edges=(sources, np.roll(sources, 126 * 7)), edge_type="T", relative=True)


def _scattered(rig: Rig, first: int) -> BulkLoad:
    """Labels that have a leaf of their own each, and then another node."""
    sets = [tuple(f"L{n}_{i}" for i in range(250)) for n in range(6)]
    return BulkLoad(nodes=[(labels, {}) for labels in sets for _ in range(1 if first else 30_000)])


LARGE: dict[str, Callable[[Rig, int], BulkLoad]] = {
    "properties": lambda rig, first: BulkLoad(nodes=[{"k": bytes(1340)}] * 1500, labels="A"),
    "labels": lambda rig, first: BulkLoad(nodes=20_000, labels=[f"L{i}" for i in range(200)]),
    "rows": _indexed, "lists": _half_pages, "labels of many windows": _scattered,
}


@pytest.mark.parametrize("what", LARGE)
def test_a_load_takes_no_more_than_it_was_thought_to(rig: Rig, what: str) -> None:
    for first in (0, 5000):
        load = LARGE[what](rig, first)
        rig.checkpoint()
        held, room = rig.engine.view(), rig.engine._lmdb.room()
        record = rig.load(load)
        assert record.attachment is not None
        loaded = bulk_columns.read(Files(), rig.directory / record.attachment.name, record.payload)
        assert room - rig.engine._lmdb.room() <= loaded.pages(held)


def test_a_checkpoint_while_a_load_is_read_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it wrote was neither pending any more nor in the state that the load had begun on, and room for copying it
    was not reserved: the load was logged, and waited for room for ever."""
    tx = rig.engine.begin()
    ids = np.array([tx.add_node("A") for _ in range(200)])
    for n in range(1, 127):  # an adjacency list of each node takes half a page
        for source, target in zip(ids.tolist(), np.roll(ids, n).tolist(), strict=True):
            tx.add_edge(source, "T", target)
    rig.commit(tx)
    state = rig.engine._lmdb
    reserve = state.reserve
    held: list[GraphView] = []
    room: list[int] = []
    told: list[int] = []

    def noted(pages: int) -> None:
        told.append(pages)
        reserve(pages)

    def nodes() -> Iterator[dict[str, Any]]:
        yield {}
        rig.checkpoint()
        held.append(rig.engine.view())
        room.append(state.room())

    load = BulkLoad(nodes=nodes(), edges=(ids, np.roll(ids, 1)), edge_type="T")
    monkeypatch.setattr(state, "reserve", noted)
    rig.load(load)
    assert len(told) == 3, "for the checkpoint, for the load, and when that was applied"
    assert room[0] - state.room() <= told[1]


def test_a_load_beyond_the_map_is_refused_before_it_is_logged(tmp_path: Path) -> None:
    """It was logged, and could then neither be applied nor taken back."""
    options = {"map_size": 8 << 20}
    with Store.open(tmp_path / "store", GraphEngine, options=options) as store:
        with pytest.raises(DiskFull, match="map_size") as caught:
            store.bulk(BulkLoad(nodes=[{"k": bytes(100_000)} for _ in range(80)]))
        assert "larger map_size" in caught.value.hint
        with pytest.raises(DiskFull, match="map_size"):
            store.bulk(BulkLoad(nodes=1 << 40))
        assert store.bulk(small := BulkLoad(nodes=3)) == 1
        assert small.result == BulkResult(1, 3, 1, 0)
    with Store.open(tmp_path / "store", GraphEngine, options=options) as store, store.snapshot() as view:
        assert view.node_count == 3


def test_a_load_that_was_logged_is_applied_when_the_map_is_large_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    record = rig.load(BulkLoad(nodes=[{"k": bytes(100_000)} for _ in range(80)]))
    other = Rig(tmp_path / "other", options={"map_size": 4 << 20})
    with pytest.raises(DiskFull, match="map_size"):
        other.replay(record, rig.directory)
    other.engine.close()
    other = Rig(tmp_path / "other", options={"map_size": 1 << 30})
    other.replay(record, rig.directory)
    assert other.digest() == rig.digest()
    for made in (rig, other):
        made.engine.close()


def test_what_is_no_load(rig: Rig) -> None:
    with pytest.raises(InvalidInput):
        rig.engine.write_bulk([(1, 2)], io.BytesIO())
    out = io.BytesIO()
    payload = rig.engine.write_bulk(BulkLoad(nodes=2, labels="A", edges=[(0, 1)], edge_type="T", relative=True), out)
    path = rig.directory / "load"
    whole = out.getvalue()
    for bad, error in ((b"", Damaged), (b"X" + whole[1:], Damaged), (whole[:-1], Damaged),
                       (whole[:8] + b"\x02" + whole[9:], UnsupportedFormat)):
        path.write_bytes(bad)
        with pytest.raises(error):
            rig.engine.apply_bulk(rig.record(payload), path)
        rig.records.pop()
    path.write_bytes(whole)
    rig.engine.apply_bulk(rig.record(payload), path)
    rig.sound()


_KEYS = st.sampled_from(("a", "b", "c", "d"))
_ITEMS = st.lists(st.dictionaries(_KEYS, st.integers(-(1 << 63), (1 << 63) - 1) | st.booleans() | st.text(max_size=3)
                                  | st.floats(allow_nan=False) | st.lists(st.integers(0, 9), max_size=2), max_size=4),
                  max_size=12)


@settings(deadline=None, max_examples=30)
@given(_ITEMS, st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from((3, 4096)))
def test_properties_of_many_shapes(items: list[dict[str, Any]], labelled: list[bool], batch: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_BATCH", batch)
        rig = Rig(Path(directory))
        tx = rig.engine.begin()
        tx.add_node(d=1)
        rig.commit(tx)
        nodes = [("L", item) if with_label else item for item, with_label in zip(items, labelled, strict=False)]
        edges = [(0, len(items) - 1, item) for item in items]
        rig.load(BulkLoad(nodes=nodes, labels="M", edges=edges, edge_type="T", relative=True))
        with rig.engine.view() as view:
            for at, (item, with_label) in enumerate(zip(items, labelled, strict=False)):
                found, edge = view.node(2 + at), view.edge(1 + at)
                assert found.labels == (("L",) if with_label else ("M",))
                assert found.properties == edge.properties == item
                assert all(type(found.properties[key]) is type(value) for key, value in item.items())
        rig.sound()
        rig.engine.close()


class _Text(str):
    pass


@pytest.mark.parametrize("key", [_Text("k"), _Text("l"), 1, ""])
def test_a_key_that_is_no_text_is_refused_wherever_it_comes(rig: Rig, key: Any) -> None:
    for nodes in ([{"k": 1}, {key: 1}], [{key: 1}, {"k": 1}], [{"l": 1}, {key: 1, "m": 2}]):
        with pytest.raises(InvalidInput, match="property key"):
            rig.engine.write_bulk(BulkLoad(nodes=nodes), io.BytesIO())


def test_an_entry_after_all_others_is_damage(rig: Rig) -> None:
    """LMDB leaves out what it is told to append and what does not come last."""
    rig.load(BulkLoad(nodes=[{"k": 1}]))
    state = rig.engine._lmdb
    with state.environment.begin(write=True) as txn:
        txn.put(bytes(7) + b"\x09", b"stray", db=state.dbs["node_props"])
    with pytest.raises(Damaged, match="node_props has an entry that nothing wrote"):
        rig.load(BulkLoad(nodes=[{"k": 2}, {"k": 3}]))


def test_a_loaded_state_leaves_little_room_unused(rig: Rig) -> None:
    rig.load(BulkLoad(nodes=[{"k": n} for n in range(50_000)]))
    state = rig.engine._lmdb
    used = (state.environment.info()["last_pgno"] + 1) * state.page_size
    assert used <= state.files.size(state.path) <= used + (2 << 20)
    leaves = rig.engine.view()._base.txn.stat(state.dbs["node_props"])["leaf_pages"]
    entry = 2 + 8 + 8 + 6 + 8  # its place, LMDB's header, the key, a map of one number, the seal
    assert leaves <= 1.05 * 50_000 * entry / state.page_size
