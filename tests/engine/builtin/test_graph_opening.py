"""The graph engine as it opens, and without room, and over what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from graph_rig import ORIGIN, Rig

from holdfast.engine.builtin.graph import BulkLoad, GraphEngine, GraphView, lmdbstate
from holdfast.engine.contract.engine import Context
from holdfast.engine.env import Env, File, Files
from holdfast.engine.errors import Damaged, DiskFull, InvalidInput, NotFound, StoreNotFound, StorePoisoned
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.engine.close()


def test_opening_what_is_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        GraphEngine.open(tmp_path, Context())
    with pytest.raises(InvalidInput, match="unknown engine option"):
        Rig(tmp_path / "x", options={"mapsize": 1})
    with pytest.raises(InvalidInput, match="map_size"):
        Rig(tmp_path / "y", options={"map_size": "large"})
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    for _ in range(3000):
        tx.add_node("A", text="x" * 100)
    rig.commit(tx)
    rig.checkpoint()
    used = rig.engine._lmdb.environment.info()["last_pgno"] * 4096
    rig.engine.close()
    state = tmp_path / "state"
    whole = (state / "data.mdb").read_bytes()
    for cut in (0, 100, 5000, used // 2):
        (state / "data.mdb").write_bytes(whole[:cut])
        for read_only in (False, True):
            with pytest.raises(Damaged):
                GraphEngine.open(state, Context(), read_only=read_only)
    (state / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(Damaged):
        GraphEngine.open(state, Context())


def test_a_read_only_opening_changes_no_byte(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    tx.add_node("A")
    rig.commit(tx)
    rig.checkpoint()
    tx = rig.engine.begin()
    tx.add_node("A")
    rig.commit(tx)
    expected = rig.digest()
    rig.engine.close()
    state = tmp_path / "state"
    (state / "lock.mdb").unlink()
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    engine = GraphEngine.open(state, Context(), read_only=True)
    engine.apply(rig.records[1:])
    with engine.view() as view:
        assert view.digest() == expected
    engine.close()
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


class FullDisk(Files):
    """A file system that can be full: reserving fails then."""

    full = False

    def open(self, path: Path, mode: Any = "read") -> File:
        file = super().open(path, mode)
        return FullFile(path, file.fileno()) if self.full else file

    def free(self, path: Path) -> int:
        return 0 if self.full else super().free(path)


class FullFile(File):
    def reserve(self, size: int) -> None:
        if size > self.size():
            raise DiskFull(f"no room for {size} bytes")


def test_a_checkpoint_without_room_changes_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    disk = FullDisk()
    context = Context(Env(files=disk))
    GraphEngine.create(tmp_path, ORIGIN, context)
    engine = GraphEngine.open(tmp_path, context)
    rig = Rig(tmp_path / "records")
    tx = engine.begin()
    for _ in range(2000):
        tx.add_node("A", text="x" * 1000)
    record = rig.record(tx.payload())
    engine.stage(record, tx)
    engine.publish(record.position)
    disk.full = True
    for _ in range(3):
        with pytest.raises(DiskFull):
            engine.checkpoint(record.position)
    assert engine.position == ORIGIN
    with engine.view() as view:
        assert view.node_count == 2000
    disk.full = False
    assert engine.checkpoint(record.position) == record.position
    engine.close()
    disk.full = True
    (tmp_path / "new").mkdir()
    with pytest.raises(DiskFull):
        GraphEngine.create(tmp_path / "new", ORIGIN, context)
    rig.engine.close()


def test_a_map_that_is_full_is_a_full_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path, options={"map_size": 2 << 20})
    tx = rig.engine.begin()
    for _ in range(3000):
        tx.add_node("A", text="x" * 1000)
    rig.commit(tx)
    for more in (0, 0, 1, 1, 1):
        for _ in range(more):
            tx = rig.engine.begin()
            tx.add_node("B")
            rig.commit(tx)
        with pytest.raises(DiskFull, match="map_size"):
            rig.engine.checkpoint(rig.end)
        assert len(rig.engine._state[1]) == 2, "what was frozen, and the active one"
    digest = rig.digest()
    rig.options = {"map_size": 1 << 30}
    rig.reopen()
    rig.checkpoint()
    assert rig.digest() == digest
    rig.engine.close()


def test_a_map_has_room_again_when_an_old_view_is_closed(tmp_path: Path) -> None:
    """What the checkpoint that failed had frozen is written then, and what came since."""
    rig = Rig(tmp_path, options={"map_size": 4 << 20})
    views = []
    with pytest.raises(DiskFull, match="map_size"):
        for n in range(6):
            tx = rig.engine.begin()
            tx.set_properties(1 if n else tx.add_node("A"), {"k": bytes([n]) * 1_000_000})
            rig.commit(tx)
            views.append(rig.engine.view())
            rig.checkpoint()
    tx = rig.engine.begin()
    tx.add_node("B")
    rig.commit(tx)
    with pytest.raises(DiskFull, match="map_size"):
        rig.checkpoint()
    for view in views:
        view.close()
    rig.checkpoint()
    digest = rig.digest()
    rig.reopen()
    assert rig.engine.position == rig.end
    assert rig.digest() == digest
    rig.engine.close()


def test_transactions_that_pass_the_map_are_told_so(tmp_path: Path) -> None:
    """Commits go on while what waits for a checkpoint is within bounds; then they say what to do, and do not wait."""
    settings = Settings(heartbeat_s=0, checkpoint_soft_bytes=1 << 20, checkpoint_hard_bytes=4 << 20)
    store = Store.open(tmp_path, GraphEngine, options={"map_size": 1 << 20}, settings=settings)
    with pytest.raises(DiskFull, match="map_size, 1,048,576 bytes") as caught:
        for _ in range(200):
            with store.transaction() as tx:
                tx.add_node("A", blob=bytes(60_000))
    assert "larger map_size" in caught.value.hint
    with store.snapshot() as view:
        digest = view.digest()
    store.close()
    with pytest.raises(DiskFull, match="map_size"):
        Store.open(tmp_path, GraphEngine, options={"map_size": 1 << 20}, settings=settings)
    with Store.open(tmp_path, GraphEngine, settings=settings) as store, store.snapshot() as view:
        assert view.digest() == digest


def test_views_of_more_states_than_lmdb_has_places_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint found no place for its new base when it had written it, and poisoned the store."""
    monkeypatch.setattr(lmdbstate, "MAX_READERS", 10)
    monkeypatch.setattr(lmdbstate, "LOCK_BYTES", 256 + 64 * 10)
    with Store.open(tmp_path, GraphEngine, settings=Settings(heartbeat_s=0)) as store:
        views: list[GraphView] = []

        def commit() -> None:
            with store.transaction() as tx:
                tx.add_node("A")

        with pytest.raises(DiskFull, match="states of") as caught:
            for _ in range(20):
                commit()
                store.checkpoint()
                views.append(store.snapshot())
        assert "close views" in caught.value.hint
        written = store.engine.position
        with pytest.raises(DiskFull, match="states of"):
            store.bulk(BulkLoad(nodes=3))
        with pytest.raises(DiskFull, match="states of"):
            store.image()
        commit()
        assert not store.poisoned
        assert store.engine.position == written
        assert [view.node_count for view in views] == list(range(1, len(views) + 1))
        with store.snapshot() as view:
            assert view.node_count == len(views) + 2
        for view in views[:2]:
            view.close()
        assert store.checkpoint() == store.log.end
        assert store.bulk(BulkLoad(nodes=3)) == store.log.end.txid


def test_an_lmdb_error_ends_checkpoints(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    tx = rig.engine.begin()
    tx.add_node("A")
    rig.commit(tx)
    with monkeypatch.context() as patch:
        def fail(*args: Any) -> None:
            raise lmdb.DiskError("injected")

        patch.setattr("holdfast.engine.builtin.graph.engine.write_state", fail)
        with pytest.raises(lmdb.DiskError):
            rig.engine.checkpoint(rig.end)
    with pytest.raises(StorePoisoned):
        rig.engine.checkpoint(rig.end)
    with rig.engine.view() as view:
        assert view.node_count == 1


def test_garbage_is_no_payload(rig: Rig) -> None:
    tx = rig.engine.begin()
    tx.add_edge(tx.add_node("A", k=1), "X", tx.add_node())
    good = tx.payload()
    for bad in (b"", b"\xc1", b"\x90", good[:-1], good + b"x", b"\x98" + b"\xc0" * 8):
        with pytest.raises(Damaged):
            rig.engine.apply([rig.record(bad)])
        rig.records.pop()
    with pytest.raises(NotFound), rig.engine.view() as view:
        view.node(1)
