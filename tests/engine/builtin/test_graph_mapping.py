"""A walk over a whole state leaves little of it mapped, and disturbs no reader."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from graph_rig import Rig

from holdfast.engine.builtin.graph import BulkLoad, GraphEngine, mapping
from holdfast.engine.builtin.graph.lmdbstate import LmdbState
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.options import checked

EDGES = 300_000


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    ends = np.random.default_rng(1).integers(0, 5000, (EDGES, 2))
    made.load(BulkLoad(nodes=5000, edges=ends, edge_type="X", relative=True))
    made.engine.close()
    return made


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what is mapped")
def test_walks_let_go_of_what_they_passed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 1 << 20
    monkeypatch.setattr(mapping, "ROOM", room)
    engine = GraphEngine.open(rig.directory / "state", Context(), read_only=True)
    assert (rig.directory / "state" / "data.mdb").stat().st_size > 16 * room
    with engine.view() as view, engine.view() as other:
        node = next(other.nodes())
        expected = other.neighbors(node)
        most = 0
        least = mapping._mapped()
        passed = engine._lmdb.mapping.passed

        def watched(size: int) -> None:
            nonlocal most
            passed(size)
            most = max(most, mapping._mapped() - least)

        monkeypatch.setattr(engine._lmdb.mapping, "passed", watched)
        assert list(view.check()) == []
        digest = view.digest()
        assert 0 < most < 6 * room
        assert other.neighbors(node) == expected
        assert other.digest() == digest
    engine.close()


def test_nothing_is_asked_of_a_map_that_is_gone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "_mapped", lambda: pytest.fail("asked"))
    state = LmdbState(rig.directory / "state", Context(options=checked(GraphEngine.options, {})), read_only=True)
    state.close()
    state.mapping.passed(1 << 40)


@pytest.mark.parametrize("missing", ["_mapped", "_maps_of"])
def test_without_proc_nothing_is_let_go(rig: Rig, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """In a sandbox without `/proc`, a walk over more than 16 MiB failed, and with it each verify and each full backup,
    although all it could not do was to save memory."""
    def gone(*_: object) -> int:
        raise FileNotFoundError(2, "No such file or directory", "/proc/self/statm")

    monkeypatch.setattr(mapping, "ROOM", 0)
    monkeypatch.setattr(mapping, missing, gone)
    engine = GraphEngine.open(rig.directory / "state", Context(), read_only=True)
    with engine.view() as view:
        assert list(view.check()) == []
        view.digest()
    engine.close()
