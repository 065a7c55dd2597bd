"""The graph engine by example: what a transaction shows to whom, lists of all lengths, tokens of transactions that were
rolled back, and the packed lists against a plain dict."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import pytest
from graph_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.engine.builtin.graph import Edge, GraphEngine, GraphTransaction, Node, adjacency, checkpoint
from holdfast.engine.contract.engine import Context
from holdfast.engine.env.pace import Pace
from holdfast.engine.errors import Damaged


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.engine.close()


def test_what_the_readme_shows(rig: Rig) -> None:
    tx = rig.engine.begin()
    ada = tx.add_node("Person", name="Ada", born=datetime(1815, 12, 10, tzinfo=UTC))
    bob = tx.add_node("Person", "Engineer", name="Bob")
    knows = tx.add_edge(ada, "KNOWS", bob, since=1843, type="letters")
    assert tx.neighbors(ada, "KNOWS") == [bob]
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            assert view.node(ada) == Node(ada, ("Person",), {"name": "Ada",
                                                             "born": datetime(1815, 12, 10, tzinfo=UTC)})
            assert view.node(bob).labels == ("Engineer", "Person")
            assert view.edges(ada) == [Edge(knows, ada, "KNOWS", bob, {"since": 1843, "type": "letters"})]
            assert view.edges(bob, "KNOWS", "in") == view.edges(ada)
            assert view.neighbors(bob, "KNOWS", "in") == [ada]
            assert view.neighbors(bob) == view.neighbors(ada, "LIKES") == []
            assert list(view.nodes("Person", name="Bob")) == [bob]
            assert list(view.nodes("Person", {"name": "Bob"})) == [bob]
            assert list(view.nodes(name="Ada")) == [ada]
            assert list(view.nodes("Nobody")) == list(view.nodes("Person", age=3)) == []
            assert [array.tolist() for array in view.edge_arrays("KNOWS")] == [[ada], [bob], [knows]]
            assert [array.tolist() for array in view.edge_arrays("LIKES")] == [[], [], []]
        rig.checkpoint()


def test_views_and_transactions_see_what_they_should(rig: Rig) -> None:
    first = rig.engine.begin()
    a, b = first.add_node(), first.add_node()
    rig.commit(first)
    before = rig.engine.view()
    second = rig.engine.begin()
    edge = second.add_edge(a, "X", b)
    rig.stage(second)
    third = rig.engine.begin()
    assert third.neighbors(a, "X") == [b]
    third.add_edge(a, "X", a)
    assert third.neighbors(a, "X") == [b, a]
    third.close()
    with rig.engine.view() as unpublished, rig.engine.staged_view() as staged:
        assert (unpublished.txid, staged.txid) == (1, 2)
        assert unpublished.neighbors(a, "X") == []
        assert staged.neighbors(a, "X") == [b]
    rig.engine.publish(rig.end)
    fourth = rig.engine.begin()
    fourth.delete_edge(edge)
    rig.commit(fourth)
    middle_digest = rig.digest()
    rig.checkpoint()
    assert before.neighbors(a, "X") == []
    assert not before.has_edge(edge)
    with rig.engine.view() as now:
        assert now.neighbors(a, "X") == []
        assert now.digest() == middle_digest != before.digest()


def test_a_rolled_back_transaction_leaves_nothing(rig: Rig) -> None:
    tx = rig.engine.begin()
    tx.add_edge(tx.add_node("Ghost", fear=1), "HAUNTS", tx.add_node("House"))
    tx.create_index("Ghost", "fear")
    tx.close()
    tx = rig.engine.begin()
    node = tx.add_node("Real", weight=1)
    tx.add_edge(node, "IS", node)
    rig.commit(tx)
    other = rig.replayed("other")
    for engine in (rig.engine, other.engine):
        with engine.view() as view:
            assert view.node(node) == Node(1, ("Real",), {"weight": 1})
            assert view.neighbors(1, "IS") == [1]
            assert list(view.nodes("Ghost")) == []
            assert view.indexes() == []
    assert rig.digest() == other.digest()
    rig.checkpoint()
    rig.sound()
    other.engine.close()


def test_ids_are_not_given_out_twice(rig: Rig) -> None:
    tx = rig.engine.begin()
    node, other = tx.add_node(), tx.add_node()
    edge = tx.add_edge(node, "X", other)
    rig.commit(tx)
    tx = rig.engine.begin()
    tx.delete_node(other, detach=True)
    rig.commit(tx)
    rig.checkpoint()
    rig.reopen()
    tx = rig.engine.begin()
    assert tx.add_node() == other + 1
    assert tx.add_edge(node, "X", node) == edge + 1


def test_digest_tells_marks_and_content_apart(rig: Rig, tmp_path: Path) -> None:
    twin = Rig(tmp_path / "twin")
    for order, made in ((("A", "B"), rig), (("B", "A"), twin)):
        tx = made.engine.begin()
        for label in order:
            tx.create_index(label, "k")
        one, two = tx.add_node("A", k=1, l=2), tx.add_node("B")
        tx.add_edge(one, "X", two, weight=1)
        made.commit(tx)
    assert rig.digest() == twin.digest(), "the order of making tokens does not show"
    digests = {rig.digest()}
    changes: tuple[Callable[[GraphTransaction], Any], ...] = (
        lambda t: t.set_properties(1, k=1.0), lambda t: t.set_edge_properties(1, weight=2),
        lambda t: t.add_label(2, "C"), lambda t: t.drop_index("A", "k"),
        lambda t: t.delete_node(t.add_node()), lambda t: t.delete_edge(t.add_edge(1, "X", 2)))
    for change in changes:
        tx = rig.engine.begin()
        change(tx)
        rig.commit(tx)
        digests.add(rig.digest())
    assert len(digests) == 7
    twin.engine.close()


@pytest.mark.parametrize("degree", [1, 253, 254, 255, 508, 509, 1200])
def test_lists_of_all_lengths(rig: Rig, degree: int) -> None:
    tx = rig.engine.begin()
    hub = tx.add_node()
    spokes = [tx.add_node() for _ in range(20)]
    rig.commit(tx)
    edges: list[int] = []
    for share in (degree // 3, degree // 2, degree - degree // 3 - degree // 2):
        tx = rig.engine.begin()
        edges += [tx.add_edge(hub, "X", spokes[i % 20]) for i in range(share)]
        rig.commit(tx)
        rig.checkpoint()
    gone = set(edges[:: max(1, degree // 40)])
    kept = [edge for edge in edges if edge not in gone]

    def agrees() -> None:
        with rig.engine.view() as view:
            assert [edge.id for edge in view.edges(hub, "X")] == kept
            assert view.degree(hub, "X") == len(kept) == len(view.neighbors(hub))
            assert list(view.check()) == []

    tx = rig.engine.begin()
    for edge in gone:
        tx.delete_edge(edge)
    rig.commit(tx)
    agrees()
    rig.checkpoint()
    agrees()
    tx = rig.engine.begin()
    kept += [tx.add_edge(hub, "X", spokes[0]) for _ in range(3)]
    rig.commit(tx)
    agrees()
    rig.checkpoint()
    agrees()
    tx = rig.engine.begin()
    tx.delete_node(hub, detach=True)
    rig.commit(tx)
    rig.checkpoint()
    rig.sound()
    with rig.engine.view() as view:
        assert view.edge_count == 0
        assert view.neighbors(spokes[0], "X", "in") == []


_rounds = st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(0, 400), max_size=30)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
def _opened(_: bytes, stored: bytes) -> bytes:
    return stored


def _earlier(txn: Any, key: bytes) -> Iterator[tuple[bytes, bytes]]:
    return ((k, v) for k, v in txn.cursor() if len(k) > len(key) and k.startswith(key))


@given(_rounds, st.sampled_from((2, 3, 7)))
def test_packed_lists_are_what_a_dict_is(rounds: list[tuple[int, list[int]]], block: int) -> None:
    """Rounds of additions and removals on one list in LMDB, with small blocks, between two other lists."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjacency, "BLOCK", block)
        env = lmdb.open(directory, map_size=1 << 24, sync=False)
        key, below, above = (adjacency.pack_key(5, lane) for lane in (3, 2, 4))
        model: dict[int, int] = {}
        following = 1
        with env.begin(write=True) as txn:
            for other in (below, above):
                for place, value in adjacency.change(other, [(i, i) for i in range(1, 9)], txn.get, txn.cursor,
                                                     _opened):
                    assert value is not None
                    txn.put(place, value)
            around = dict(txn.cursor())
            for added, removed in rounds:
                changes: dict[int, int | None] = {}
                for edge in removed:
                    if edge in model:
                        changes[edge] = None
                for edge in range(following, following + added):
                    changes[edge] = edge * 7 % 11
                following += added
                # Redo may say again what is there.
                changes |= {edge: model[edge] for edge in list(model)[:2] if edge not in changes}
                if changes:
                    for place, value in adjacency.change(key, sorted(changes.items()), txn.get, txn.cursor,
                                                         _opened):
                        txn.delete(place) if value is None else txn.put(place, value)
                for edge, neighbour in changes.items():
                    if neighbour is None:
                        del model[edge]
                    else:
                        model[edge] = neighbour
                neighbours, edges = adjacency.read(txn.get(key), key, partial(_earlier, txn))
                assert dict(zip(edges, neighbours, strict=True)) == model
                assert edges == sorted(model)
                own = txn.get(key)
                assert (own is None) == (not model)
                assert own is None or adjacency.entries(own) + adjacency.earlier(own) == len(model)
            assert {k: v for k, v in txn.cursor() if not k.startswith(key)} == around
            long = adjacency.encode([], []) if not model else b"".join(
                n.to_bytes(8, "little") for n in (*model.values(), *model))
            if model:
                for place, value in adjacency.long_list(b"other" * 3, long):
                    txn.put(place, value)
                again = adjacency.read(txn.get(b"other" * 3), b"other" * 3, partial(_earlier, txn))
                assert again == (list(model.values()), list(model))
        env.close()


def test_an_index_answers_before_and_after_its_checkpoint(rig: Rig) -> None:
    tx = rig.engine.begin()
    nodes = [tx.add_node("A", k=i % 3) for i in range(12)]
    tx.create_index("A", "k")
    assert list(tx.nodes("A", k=1)) == nodes[1::3]
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            assert list(view.nodes("A", k=1)) == nodes[1::3]
            assert list(view.nodes("A", k=True)) == []
        rig.checkpoint()
    rig.sound()
    tx = rig.engine.begin()
    tx.set_properties(nodes[1], k=0)
    tx.remove_property(nodes[4], "k")
    tx.remove_label(nodes[7], "A")
    tx.delete_node(nodes[10])
    tx.set_properties(nodes[0], k=1)
    more = tx.add_node("A", k=1)
    late = tx.add_node(k=1)
    tx.add_label(late, "A", "B")
    assert list(tx.nodes("A", k=1)) == [nodes[0], more, late]
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            assert list(view.nodes("A", k=1)) == [nodes[0], more, late]
        rig.sound()
        rig.checkpoint()
    tx = rig.engine.begin()
    tx.drop_index("A", "k")
    rig.commit(tx)
    rig.checkpoint()
    rig.sound()
    with rig.engine.view() as view:
        assert view.indexes() == []
        assert list(view.nodes("A", k=1)) == [nodes[0], more, late]


def test_a_list_in_several_layers(rig: Rig) -> None:
    """A checkpoint that stops short of what is staged leaves a frozen layer; the list grows on in the next."""
    tx = rig.engine.begin()
    hub, spoke = tx.add_node(), tx.add_node()
    edges = [tx.add_edge(hub, "X", spoke)]
    rig.commit(tx)
    for upto, delete in ((1, False), (1, False), (2, True), (3, True), (12, False)):
        for _ in range(2):
            tx = rig.engine.begin()
            edges.append(tx.add_edge(hub, "X", hub))
            rig.commit(tx)
        rig.engine.checkpoint(rig.position(upto))
        with rig.engine.view() as view:
            assert view.neighbors(hub, "X") == [spoke] + [hub] * (len(edges) - 1)
            assert [edge.id for edge in view.edges(hub, "X")] == edges
            assert view.neighbors(hub, "X", "in") == [hub] * (len(edges) - 1)
        if delete:
            tx = rig.engine.begin()
            tx.delete_edge(edges.pop())
            assert len(tx.neighbors(hub, "X")) == len(edges)
            rig.commit(tx)
        rig.sound()


def test_an_image_adopted_at_an_earlier_position(rig: Rig, tmp_path: Path) -> None:
    """Redo converges: transactions that the state holds already change nothing when they are applied again."""
    for _ in range(4):
        tx = rig.engine.begin()
        node = tx.add_node("A", n=1)
        tx.add_edge(1, "X", node)
        tx.delete_edge(tx.add_edge(1, "X", 1))
        rig.commit(tx)
    rig.checkpoint()
    image = rig.engine.image()
    place = tmp_path / "copy"
    place.mkdir()
    (place / "data.mdb").write_bytes(image.read("data.mdb", 0, image.files[0].size))
    image.close()
    for at in (4, 3, 1, 0):
        copy = GraphEngine.open(place, Context(), read_only=True, at=rig.position(at))
        assert copy.position == rig.position(at)
        copy.apply(rig.records[at:])
        with copy.view() as view:
            assert view.txid == 4
            assert view.digest() == rig.digest()
            assert view.neighbors(1, "X") == [1, 2, 3, 4]
            assert list(view.check()) == []
        copy.close()
    for end in (4, 2):
        copy = GraphEngine.open(place, Context(), at=rig.position(1))
        for txid in range(2, end + 1):
            copy.apply(rig.records[txid - 1 : txid])
            assert copy.checkpoint(rig.position(txid)) == rig.position(txid) == copy.position
        copy.close()
    copy = GraphEngine.open(place, Context())
    copy.apply(rig.records[copy.position.txid :])
    with copy.view() as view:
        assert view.digest() == rig.digest()
        assert view.neighbors(1, "X") == [1, 2, 3, 4]
        assert list(view.check()) == []
    copy.close()
    tx = rig.engine.begin()
    tx.add_node()
    rig.commit(tx)
    for wrong in (rig.end, rig.position(4)._replace(chain=bytes(16))):
        with pytest.raises(Damaged):
            GraphEngine.open(place, Context(), at=wrong)


def test_pending_bytes_follow_the_overlay(rig: Rig) -> None:
    empty = rig.engine.pending_bytes()
    tx = rig.engine.begin()
    for _ in range(100):
        tx.add_node("A", text="x" * 1000)
    rig.commit(tx)
    full = rig.engine.pending_bytes()
    assert full - empty > 100_000
    rig.checkpoint()
    assert rig.engine.pending_bytes() == empty == 0


def test_checkpoint_reaches_what_it_is_asked_for_and_no_more(rig: Rig) -> None:
    for _ in range(3):
        tx = rig.engine.begin()
        tx.add_node("A")
        rig.commit(tx)
    assert rig.engine.checkpoint(rig.position(2)) == rig.position(2)
    assert rig.engine.checkpoint(rig.position(1)) == rig.position(2)
    rig.engine.close()
    rig.engine = GraphEngine.open(rig.directory / "state", Context())
    assert rig.engine.position == rig.position(2)
    with rig.engine.view() as view:
        assert (view.txid, view.node_count) == (2, 2)
    rig.engine.apply(rig.records[2:])
    with rig.engine.view() as view:
        assert (view.txid, view.node_count) == (3, 3)


def test_views_of_an_old_base_let_go_of_it(rig: Rig) -> None:
    view = rig.engine.view()
    for _ in range(3):
        tx = rig.engine.begin()
        tx.add_node()
        rig.commit(tx)
        rig.checkpoint()
    readers = rig.engine._lmdb.environment.readers
    held = readers().count("\n")
    view.close()
    del view
    gc.collect()
    other = rig.engine.view()
    del other
    assert readers().count("\n") <= held
    assert rig.engine._state[0].txid == 3


def test_only_what_nobody_has_is_taken_apart(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a layer could be emptied hung on `sys.getrefcount(layer) == 2`, which Python does not promise: 3.14
    borrows references without counting them, and a view that was held lost its data."""
    monkeypatch.setattr("sys.getrefcount", lambda _: 2)
    taken: list[int] = []
    original = checkpoint.dismantle

    def dismantle(parts: list[dict[int, Any]], pace: Pace) -> None:
        taken.append(len(parts[0]))
        original(parts, pace)

    monkeypatch.setattr("holdfast.engine.builtin.graph.engine.dismantle", dismantle)
    tx = rig.engine.begin()
    node = tx.add_node("A", k=1)
    rig.commit(tx)
    held, other = rig.engine.view(), rig.engine.begin()
    rig.checkpoint()
    assert taken == []
    assert held.node(node).properties == other.node(node).properties == {"k": 1}
    assert held._layers[0].nodes
    other.close()
    tx = rig.engine.begin()
    tx.add_node("A")
    tx.add_node("A")
    rig.commit(tx)
    tx.close()
    del tx, other
    rig.checkpoint()
    assert taken == [2]
    assert held.node(node).properties == {"k": 1}
    held.close()


def test_readers_beside_a_writer_and_checkpoints(rig: Rig) -> None:
    """Each transaction moves one unit between two counters and adds an edge pair; no view may show half of one."""
    tx = rig.engine.begin()
    a, b = tx.add_node(n=1000), tx.add_node(n=0)
    rig.commit(tx)
    failures: list[Any] = []
    done = threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                with rig.engine.view() as view:
                    out, back = len(view.neighbors(a, "X")), view.degree(a, "X", "in")
                    n = view.node(a).properties["n"], view.node(b).properties["n"]
                    if not (sum(n) == 1000 and n[1] == out == back == view.txid - 1):
                        failures.append((n, out, back, view.txid))
        except Exception as error:
            failures.append(error)

    def checkpoints() -> None:
        try:
            while not done.is_set():
                with rig.engine.view() as view:
                    upto = rig.position(view.txid)
                rig.engine.checkpoint(upto)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (look, look, checkpoints)]
    for thread in threads:
        thread.start()
    for i in range(1, 301):
        tx = rig.engine.begin()
        tx.set_properties(a, n=1000 - i)
        tx.add_edge(a, "X", b)
        tx.add_edge(b, "X", a)
        tx.set_properties(b, n=i)
        rig.commit(tx)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    rig.checkpoint()
    rig.sound()
