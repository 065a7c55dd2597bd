"""Images of the graph engine: the same bytes however often they are read, and a state that opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import GraphEngine
from holdfast.engine.builtin.graph.pages import free_pages, read_metas
from holdfast.engine.contract.engine import Context
from holdfast.engine.env import REAL
from holdfast.engine.errors import Damaged, InvalidInput


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    for i in range(6):
        _change(made, i)
    yield made
    made.engine.close()


def _change(rig: Rig, seed: int) -> None:
    """A transaction that adds, and takes away part of what an earlier one added; and a checkpoint."""
    tx = rig.engine.begin()
    nodes = [tx.add_node("A", text=f"{seed}-{i}-" + "x" * (i * 37 % 3000)) for i in range(150)]
    for i, node in enumerate(nodes):
        tx.add_edge(node, "X", nodes[i * 7 % len(nodes)], weight=i)
    for node in list(tx.nodes("A"))[seed::5]:
        tx.delete_node(node, detach=True)
    rig.commit(tx)
    rig.checkpoint()


def test_an_image_stays_as_it_was_while_the_store_goes_on(rig: Rig, tmp_path: Path) -> None:
    with rig.engine.view() as view:
        expected = view.digest()
    image = rig.engine.image()
    size = image.files[0].size
    assert [file.name for file in image.files] == ["data.mdb"]
    first = image.read("data.mdb", 0, size)
    on_disk = (rig.directory / "state" / "data.mdb").read_bytes()[:size]
    for i in range(6, 16):
        _change(rig, i)
    changed = (rig.directory / "state" / "data.mdb").read_bytes()[:size]
    assert on_disk != changed, "the store was to reuse pages"
    assert image.read("data.mdb", 0, size) == first
    pieces = []
    at, step = 0, 1
    while at < size:
        length = min(step, size - at)
        pieces.append(image.read("data.mdb", at, length))
        at += length
        step = step * 5 % 16381 + 1
    assert b"".join(pieces) == first
    image.close()
    place = tmp_path / "copy"
    place.mkdir()
    (place / "data.mdb").write_bytes(first)
    for read_only in (True, False):
        copy = GraphEngine.open(place, Context(), read_only=read_only, at=image.position)
        with copy.view() as view:
            assert view.digest() == expected
            assert list(view.check()) == []
        if not read_only:
            copy.apply(rig.records[image.position.txid :])
            assert copy.checkpoint(rig.end) == rig.end
            with copy.view() as view:
                assert view.digest() == rig.digest()
                assert list(view.check()) == []
        copy.close()


def test_what_was_deleted_is_not_in_an_image(rig: Rig) -> None:
    tx = rig.engine.begin()
    secrets = [tx.add_node(secret="do not tell " * 400) for _ in range(30)]
    rig.commit(tx)
    rig.checkpoint()
    tx = rig.engine.begin()
    for node in secrets:
        tx.delete_node(node)
    rig.commit(tx)
    rig.checkpoint()
    image = rig.engine.image()
    data = image.read("data.mdb", 0, image.files[0].size)
    image.close()
    assert b"do not tell" in (rig.directory / "state" / "data.mdb").read_bytes()
    assert b"do not tell" not in data


def test_free_pages_are_what_lmdb_says(rig: Rig) -> None:
    file = REAL.files.open(rig.directory / "state" / "data.mdb")
    meta = max(read_metas(file), key=lambda meta: meta.txn)
    free = free_pages(file, meta)
    file.close()
    env = rig.engine._lmdb.environment
    with env.begin() as txn:
        assert meta.txn == txn.id()
        stats = [txn.stat(db) for db in rig.engine._lmdb.dbs.values()]
    used = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in [*stats, env.stat()])
    assert meta.last_page == env.info()["last_pgno"]
    # Two meta pages, and the free list's own, which LMDB does not count out to us.
    assert 0 < meta.last_page + 1 - 2 - used - len(free) <= 4
    assert len(set(free.tolist())) == len(free) > 50


def test_a_new_store_has_an_image(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store")
    image = rig.engine.image()
    place = tmp_path / "copy"
    place.mkdir()
    (place / "data.mdb").write_bytes(image.read("data.mdb", 0, image.files[0].size))
    image.close()
    image.close()
    copy = GraphEngine.open(place, Context(), at=image.position)
    with copy.view() as view:
        assert view.digest() == rig.digest()
    copy.close()
    rig.engine.close()


def test_ranges_and_names_outside(rig: Rig) -> None:
    image = rig.engine.image()
    size = image.files[0].size
    assert image.read("data.mdb", size, 0) == b""
    for name, offset, length in (("lock.mdb", 0, 1), ("data.mdb", size, 1), ("data.mdb", -1, 1), ("data.mdb", 0, -1)):
        with pytest.raises(InvalidInput):
            image.read(name, offset, length)
    image.close()


def test_a_file_that_is_no_lmdb_file(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    for data in (b"", bytes(8192), b"\xff" * 8192):
        path.write_bytes(data)
        file = REAL.files.open(path)
        with pytest.raises(Damaged):
            read_metas(file)
        file.close()
