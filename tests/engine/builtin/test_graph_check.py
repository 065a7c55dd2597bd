"""The check finds what does not agree: wrong bytes are planted in LMDB, one kind at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import GraphEngine, adjacency
from holdfast.engine.builtin.graph.check import _Stored
from holdfast.engine.builtin.graph.lmdbstate import (
    DATABASES,
    LABEL_KEY,
    NODE_BLOCK,
    ROW_KEY,
    STATE_MAGIC,
    STATE_VERSION,
    TALLIED,
    id_key,
    sealers,
)
from holdfast.engine.builtin.graph.values import value_digest
from holdfast.engine.contract.engine import Context
from holdfast.engine.errors import Damaged
from holdfast.engine.model import document
from holdfast.engine.toolkit.checksums import Tally


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    tx = made.engine.begin()
    tx.create_index("A", "k")
    for i in range(10):
        tx.add_node("A", k=i)
    tx.add_node("B")
    for i in range(300):
        tx.add_edge(1, "X", 2 + i % 9, {"w": i} if i % 50 == 0 else None)
    tx.add_edge(3, "Y", 4)
    made.commit(tx)
    made.checkpoint()
    made.sound()
    made.engine.close()
    return made


class Bytes:
    """The databases of a closed store, to be spoilt."""

    def __init__(self, txn: Any, dbs: dict[str, Any]) -> None:
        self.txn = txn
        self.dbs = dbs
        self.sealers = sealers(Path("spoilt"))

    def get(self, db: str, key: bytes) -> bytes:
        value = self.txn.get(key, db=self.dbs[db])
        assert value is not None
        return bytes(value) if db == "meta" else self.sealers[db].opened(key, value)

    def put(self, db: str, key: bytes, value: bytes) -> None:
        self.txn.put(key, value if db == "meta" else self.sealers[db].sealed(key, value), db=self.dbs[db])

    def delete(self, db: str, key: bytes) -> None:
        assert self.txn.delete(key, db=self.dbs[db])

    def move(self, db: str, key: bytes, to: bytes) -> None:
        self.put(db, to, self.get(db, key))
        self.delete(db, key)

    def flip(self, db: str, key: bytes, at: int, mask: int = 1) -> None:
        value = bytearray(self.get(db, key))
        value[at] ^= mask
        self.put(db, key, bytes(value))

    def keys(self, db: str) -> list[bytes]:
        return [bytes(key) for key, _ in self.txn.cursor(self.dbs[db])]

    def meta(self, **changes: Any) -> None:
        body = document.decode(self.get("meta", b"state"), STATE_MAGIC, STATE_VERSION, Path())
        self.put("meta", b"state", document.encode(STATE_MAGIC, STATE_VERSION, {**body, **changes}))

    def tally(self) -> None:
        """Count what is there, as an engine would that had written it so."""
        tallies = []
        for name in TALLIED:
            tally = Tally()
            for _, value in self.txn.cursor(self.dbs[name]):
                tally.add(value)
            tallies.append([name, tally.count, tally.total])
        self.meta(tallies=tallies)


def _find(b: Bytes, long: bool) -> bytes:
    return next(k for k in b.keys("adjacency") if (len(k) > adjacency.KEY_BYTES) == long)


def _lane(b: Bytes, node: int) -> bytes:
    return next(k for k in b.keys("adjacency") if adjacency.unpack_key(k)[0] == node)


PLANTED: dict[str, Callable[[Bytes], Any]] = {
    "node gone": lambda b: b.put("nodes", id_key(0), b.get("nodes", id_key(0))[:12] + bytes(4 * NODE_BLOCK - 12)),
    "node more": lambda b: b.put("nodes", id_key(7), b.get("nodes", id_key(0))),
    "node block size": lambda b: b.put("nodes", id_key(0), b.get("nodes", id_key(0))[:-4]),
    "label set": lambda b: b.flip("nodes", id_key(0), 4, 64),
    "edge source": lambda b: b.flip("edges", id_key(0), 24 * 3),
    "edge target": lambda b: b.flip("edges", id_key(0), 24 * 3 + 8),
    "edge type": lambda b: b.flip("edges", id_key(0), 24 * 3 + 16),
    "edge present": lambda b: b.flip("edges", id_key(0), 24 * 3 + 20),
    "edge flag": lambda b: b.flip("edges", id_key(0), 24 * 3 + 20, 2),
    "edge flag unknown": lambda b: b.flip("edges", id_key(0), 24 * 3 + 20, 8),
    "edge block gone": lambda b: b.delete("edges", id_key(1)),
    "edge block size": lambda b: b.put("edges", id_key(1), b""),
    "neighbour": lambda b: b.flip("adjacency", _lane(b, 3), 0),
    "edge in list": lambda b: b.flip("adjacency", _lane(b, 3), 8),
    "list gone": lambda b: b.delete("adjacency", _lane(b, 3)),
    "list empty": lambda b: b.put("adjacency", _lane(b, 3), b""),
    "list odd size": lambda b: b.put("adjacency", _lane(b, 3), b.get("adjacency", _lane(b, 3)) + b"x"),
    "list more": lambda b: b.put("adjacency", adjacency.pack_key(5, 99), b.get("adjacency", _lane(b, 3))),
    "earlier block gone": lambda b: b.delete("adjacency", _find(b, True)),
    "earlier block neighbour": lambda b: b.flip("adjacency", _find(b, True), 0),
    "earlier block edge": lambda b: b.flip("adjacency", _find(b, True), 254 * 8),
    "earlier block moved": lambda b: b.move("adjacency", _find(b, True), _find(b, True)[:-1] + b"\x09"),
    "earlier count": lambda b: b.flip("adjacency", _find(b, True)[:12], -8),
    "tail without blocks": lambda b: b.put("adjacency", _find(b, True)[:12],
                                           b.get("adjacency", _find(b, True)[:12])[:-8]),
    "list swapped": lambda b: b.put("adjacency", _lane(b, 3), adjacency.encode(
        list(adjacency.neighbours_of(b.get("adjacency", _lane(b, 3)))),
        list(reversed(adjacency.edges_of(b.get("adjacency", _lane(b, 3))))))),
    "node properties of nobody": lambda b: b.put("node_props", id_key(500), b.get("node_props", id_key(1))),
    "node properties garbled": lambda b: b.put("node_props", id_key(1), b"\xc1"),
    "node property key": lambda b: b.put("node_props", id_key(1), b"\x81\x63\x01"),
    "node properties gone": lambda b: b.delete("node_props", id_key(1)),
    "edge properties of nobody": lambda b: b.put("edge_props", id_key(2), b.get("edge_props", id_key(1))),
    "edge properties gone": lambda b: b.delete("edge_props", id_key(1)),
    "label bit": lambda b: b.flip("labels", next(iter(b.keys("labels"))), 0, 2),
    "label bitmap gone": lambda b: b.delete("labels", next(iter(b.keys("labels")))),
    "label bitmap more": lambda b: b.put("labels", LABEL_KEY.pack(1, 77), bytes(511) + b"\1"),
    "index row gone": lambda b: b.delete("index", b.keys("index")[0]),
    "index row more": lambda b: b.put("index", ROW_KEY.pack(
        ROW_KEY.unpack(b.keys("index")[0])[0], value_digest(5), 1), b""),
    "index row of no index": lambda b: b.put("index", ROW_KEY.pack(4000, value_digest(5), 1), b""),
    "token gone": lambda b: b.delete("tokens", b.keys("tokens")[-1]),
    "count of nodes": lambda b: b.meta(marks=[12, 302, 100, 10, 301]),
    "count of edges": lambda b: b.meta(marks=[12, 302, 100, 11, 300]),
    "mark of nodes": lambda b: b.meta(marks=[11, 302, 100, 11, 301]),
    "mark of edges": lambda b: b.meta(marks=[12, 301, 100, 11, 301]),
    "mark of tokens": lambda b: b.meta(marks=[12, 302, 3, 11, 301]),
}


def _spoil(rig: Rig, spoil: Callable[[Bytes], Any], *, tallied: bool = False) -> None:
    env = lmdb.open(str(rig.directory / "state"), max_dbs=16, map_size=1 << 30)
    dbs = {name: env.open_db(name.encode()) for name in DATABASES}
    with env.begin(write=True) as txn:
        held = Bytes(txn, dbs)
        spoil(held)
        if tallied:
            held.tally()
    env.close()


@pytest.mark.parametrize("what", PLANTED)
def test_what_an_engine_wrote_wrong_is_found(rig: Rig, what: str) -> None:
    """Seals and tallies are right here, so it is the rules of the graph that find it."""
    _spoil(rig, PLANTED[what], tallied=True)
    engine = GraphEngine.open(rig.directory / "state", Context())
    with engine.view() as view:
        findings = list(view.check())
    engine.close()
    assert findings
    assert all(isinstance(finding, str) and finding for finding in findings)


@pytest.mark.parametrize("what", [what for what in PLANTED if not what.startswith(("count", "mark"))])
def test_what_nobody_wrote_is_found_by_the_tallies(rig: Rig, what: str) -> None:
    """Each seal is right here, as where entries were lost or are from another time. No digest is made of that."""
    _spoil(rig, PLANTED[what])
    if what.startswith("token"):  # all of them are read at opening
        with pytest.raises(Damaged, match="were written"):
            GraphEngine.open(rig.directory / "state", Context())
        return
    engine = GraphEngine.open(rig.directory / "state", Context())
    with engine.view() as view:
        assert any("were written" in finding for finding in view.check())
        with pytest.raises(Damaged, match="were written"):
            view.digest()
    engine.close()


def test_nothing_spoilt_nothing_found(rig: Rig) -> None:
    _spoil(rig, lambda b: b.put("meta", b"state", b.get("meta", b"state")))
    engine = GraphEngine.open(rig.directory / "state", Context())
    with engine.view() as view:
        assert list(view.check()) == []
    engine.close()


@pytest.mark.parametrize("spoil", [
    lambda b: b.flip("meta", b"state", 40), lambda b: b.delete("meta", b"state"),
    lambda b: b.put("tokens", b.keys("tokens")[0], b"\xc1"), lambda b: b.meta(marks=[1, 2]),
])
def test_a_state_without_its_head_does_not_open(rig: Rig, spoil: Callable[[Bytes], Any]) -> None:
    _spoil(rig, spoil)
    with pytest.raises(Damaged):
        GraphEngine.open(rig.directory / "state", Context())


OVERLAY: dict[str, Callable[[Any], Any]] = {
    "edge not listed": lambda layer: layer.adjacency.clear(),
    "edge gone": lambda layer: layer.edges.clear(),
    "node gone": lambda layer: layer.nodes.clear(),
    "label candidate": lambda layer: layer.labels.clear(),
    "index candidate": lambda layer: layer.rows.clear(),
    "properties of nobody": lambda layer: layer.props.update({99: (2, b"\x81\x01\x01", None)}),
    "counts": lambda layer: layer.marks.update({2: layer.marks[2]._replace(edges=5)}),
}


@pytest.mark.parametrize("what", OVERLAY)
def test_damage_in_the_overlay_is_found(rig: Rig, what: str) -> None:
    engine = rig.engine = GraphEngine.open(rig.directory / "state", Context())
    tx = engine.begin()
    node = tx.add_node("A", "C", k=77)
    tx.add_edge(node, "X", 1)
    tx.add_edge(1, "X", node, w=1)
    rig.commit(tx)
    rig.sound()
    OVERLAY[what](engine._state[1][0])
    if what == "properties of nobody":
        engine._state[1][0].nodes[99] = (2, 0, None)
    with engine.view() as view:
        assert list(view.check())
    engine.close()


def test_a_check_goes_on_while_a_writer_names_things(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rig.engine = GraphEngine.open(rig.directory / "state", Context())
    tx = engine.begin()
    tx.add_node("New")
    rig.commit(tx)
    other = engine.begin()
    original = _Stored._stored_token

    def meanwhile(stored: _Stored, token: int) -> bool:
        other.add_node(f"L{token}")
        return original(stored, token)

    monkeypatch.setattr(_Stored, "_stored_token", meanwhile)
    rig.sound()
    assert other.node_count == 14, "it was asked for two tokens that the checkpoint did not have"
    engine.close()
