"""Reading the properties of a node: what is cached, for which views, and that nobody sees another's changes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import BulkLoad, GraphView
from holdfast.engine.builtin.graph.lmdbstate import id_key
from holdfast.engine.errors import InvalidInput, NotFound, StoreClosed

PLAIN = {"name": "Ada", "born": 1815, "score": 0.5, "alive": False, "key": b"\0",
         "died": datetime(1852, 11, 27, tzinfo=UTC)}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.engine.close()


def _reads(view: GraphView, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys of the property maps that are read from LMDB from now on."""
    keys: list[bytes] = []
    get = view._base.get_props

    def noted(key: bytes) -> bytes | None:
        keys.append(key)
        return get(key)

    monkeypatch.setattr(view._base, "get_props", noted)
    return keys


def test_what_was_read_is_kept_and_is_the_callers_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.load(BulkLoad(nodes=[PLAIN, {}, {"many": [1, {"a": [2]}]}]))
    with rig.engine.view() as view, rig.engine.view() as other:
        keys = _reads(view, monkeypatch)
        for reader in (view, view, other):
            found = reader.properties(1)
            assert found == PLAIN
            assert [*map(type, found.values())] == [*map(type, PLAIN.values())]
            found["name"] = "Bob"
            del found["born"]
            assert reader.node(1).properties == PLAIN
            assert reader.properties(2) == {}
        assert Counter(keys) == {id_key(1): 1, id_key(2): 3}, "views without an overlay share what was read"
        for _ in range(2):
            found = view.properties(3)
            assert found == {"many": [1, {"a": [2]}]}
            found["many"][1]["a"].append(3)


def test_each_view_has_its_own_version(rig: Rig) -> None:
    rig.load(BulkLoad(nodes=[{"k": 1}, {"k": 2}, {"k": 3}]))
    with rig.engine.view() as before:
        tx = rig.engine.begin()
        tx.set_properties(1, k=10)
        assert tx.properties(1) == {"k": 10}
        tx.set_properties(1, k=11)
        assert tx.properties(1) == {"k": 11}
        tx.delete_node(2)
        with pytest.raises(NotFound):
            tx.properties(2)
        rig.stage(tx)
        with rig.engine.view() as unpublished:
            rig.engine.publish(rig.end)
            with rig.engine.view() as after:
                for _ in range(2):
                    for view in (before, unpublished):
                        assert [view.properties(node) for node in (1, 2, 3)] == [{"k": 1}, {"k": 2}, {"k": 3}]
                    assert [after.properties(node) for node in (1, 3)] == [{"k": 11}, {"k": 3}]
                    with pytest.raises(NotFound):
                        after.properties(2)
                rig.checkpoint()
                with rig.engine.view() as fresh:
                    for view in (after, fresh):
                        assert [view.properties(node) for node in (1, 3)] == [{"k": 11}, {"k": 3}]
                        with pytest.raises(NotFound):
                            view.properties(2)
                assert before.properties(1) == {"k": 1}


def test_views_of_one_base_disagree_about_a_node_without_properties(rig: Rig) -> None:
    """Such nodes come and go without an event of properties, so both views looked into one cache, and a node that was
    deleted, or not there yet, had an empty map."""
    rig.load(BulkLoad(nodes=[{}, PLAIN]))
    with rig.engine.view() as before:
        assert before.properties(1) == {}
        tx = rig.engine.begin()
        tx.delete_node(1)
        assert tx.add_node() == 3
        rig.commit(tx)
        with rig.engine.view() as after:
            assert after.properties(3) == {}
            with pytest.raises(NotFound, match="no node 1"):
                after.properties(1)
        assert before.properties(1) == {}
        with pytest.raises(NotFound, match="no node 3"):
            before.properties(3)


@pytest.mark.parametrize("missing", [0, 4, -1, 1 << 70])
def test_nodes_that_are_not_there(rig: Rig, missing: int) -> None:
    rig.load(BulkLoad(nodes=[{"k": 1}, {}, {}]))
    tx = rig.engine.begin()
    for reader in (rig.engine.view(), tx):
        for _ in range(2):
            with pytest.raises(NotFound, match="no node"):
                reader.properties(missing)
    tx.close()


@pytest.mark.parametrize("wrong", [1.0, "1", True, None])
def test_what_is_no_id(rig: Rig, wrong: Any) -> None:
    rig.load(BulkLoad(nodes=[{"k": 1}]))
    with rig.engine.view() as view:
        assert view.properties(np.int64(1)) == view.properties(1) == {"k": 1}  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            view.properties(wrong)


def test_a_closed_view(rig: Rig) -> None:
    rig.load(BulkLoad(nodes=[{"k": 1}]))
    for read in (True, False):
        view = rig.engine.view()
        if read:
            view.properties(1)
        view.close()
        with pytest.raises(StoreClosed):
            view.properties(1)


@pytest.mark.parametrize("overlaid", [False, True])
def test_the_cache_has_bounds(tmp_path: Path, overlaid: bool) -> None:
    rig = Rig(tmp_path, options={"cache_bytes": 1 << 16})
    rig.load(BulkLoad(nodes=[{"k": n} for n in range(2000)]))
    if overlaid:
        tx = rig.engine.begin()
        tx.set_properties(1, k=-1)
        rig.commit(tx)
    with rig.engine.view() as view:
        sizes = []
        for node in range(2, 2001):
            assert view.properties(node) == {"k": node - 1}
            sizes.append(len(view._kept))
        assert 10 < max(sizes) < (1 << 16) // (160 * (4 if overlaid else 1))
    rig.engine.close()
