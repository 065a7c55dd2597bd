"""Graphs as arrays, compared with what the lists of neighbours say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from graph_rig import Rig
from graph_worlds import KINDS, steps, world
from hypothesis import example, given

from holdfast.engine.builtin.graph import BulkLoad, Direction, GraphView, csr
from holdfast.engine.errors import InvalidInput, StoreClosed

DIRECTIONS: tuple[Direction, ...] = ("out", "in", "both")


def compare(view: GraphView) -> None:
    nodes = list(view.nodes())
    for kind in (None, *KINDS, "NEVER"):
        for direction in DIRECTIONS:
            found = view.csr(kind, direction, edges=True)
            assert found.edges is not None
            assert {a.dtype for a in (found.ids, found.offsets, found.targets, found.edges)} == {np.dtype(np.int64)}
            assert found.ids.tolist() == nodes
            spans = list(pairwise(found.offsets.tolist()))
            assert [found.ids[found.targets[a:b]].tolist() for a, b in spans] == [
                view.neighbors(node, kind, direction) for node in nodes]
            assert [sorted({*found.edges[a:b].tolist()}) for a, b in spans] == [
                sorted({edge.id for edge in view.edges(node, kind, direction)}) for node in nodes]
            assert all((np.diff(found.edges[a:b]) >= 0).all() for a, b in spans)
            bare = view.csr(kind, direction)
            assert bare.edges is None
            assert bare.targets.tolist() == found.targets.tolist()


@given(script=steps)
@example(script=[])
@example(script=[("node", 1), ("edge", 0, "KNOWS", 0), ("edge", 0, "KNOWS", 0), ("checkpoint",), ("cut", 0)])
def test_rows_are_the_lists_of_neighbours(script: list[Any]) -> None:
    with TemporaryDirectory() as name:
        rig = world(Path(name), script)
        with rig.engine.view() as view:
            compare(view)
        rig.engine.close()


def test_many_nodes_over_many_blocks(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    draw = np.random.default_rng(5)
    rig.load(BulkLoad(nodes=5000, edges=draw.integers(0, 5000, (30_000, 2)), edge_type="KNOWS", relative=True))
    tx = rig.engine.begin()
    for node in range(1, 5000, 7):
        tx.delete_node(node, detach=True)
    rig.commit(tx)
    for _ in range(2):
        with rig.engine.view() as view:
            found = view.csr()
            sources, targets, edges = view.edge_arrays()
            order = np.argsort(sources, kind="stable")
            assert found.ids.tolist() == list(view.nodes())
            assert np.array_equal(found.ids[found.targets], targets[order])
            assert np.array_equal(np.repeat(found.ids, np.diff(found.offsets)), sources[order])
            again = view.csr(edges=True)
            assert again.edges is not None
            assert np.array_equal(again.edges, edges[order])
        rig.checkpoint()
    rig.engine.close()


def test_a_view_that_is_closed_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    view = rig.engine.view()
    with pytest.raises(InvalidInput, match="direction"):
        view.csr(direction="up")  # type: ignore[arg-type]
    view.close()
    with pytest.raises(StoreClosed):
        view.csr()
    rig.engine.close()


@pytest.mark.parametrize("ids", [[1, 2, 3, 4], [3, 5, 6, 40], [1, 2, 1 << 40, (1 << 62) + 5]])
def test_places_are_found_however_far_apart_ids_are(ids: list[int]) -> None:
    there = np.array(ids)
    wanted = np.array([3, 0, 2, 2, 1])
    assert csr._places(there, there[wanted]).tolist() == wanted.tolist()
    for missing in (0, ids[-1] + 1, 4 if ids[1] > 4 else 1 << 50):
        with pytest.raises(IndexError):
            csr._places(there, np.array([ids[0], missing]))


def test_edges_of_one_source_keep_their_order_in_both_ways_of_sorting() -> None:
    sources = np.random.default_rng(1).integers(0, 9, 1000)
    wanted = np.argsort(sources, kind="stable").tolist()
    assert csr._order(9, sources).tolist() == wanted
    assert csr._order(1 << 60, sources).tolist() == wanted
