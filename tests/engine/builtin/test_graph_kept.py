"""Neighbour lists that were read are kept, and never shown to whom they are not true for."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.engine import GraphStore
from holdfast.engine.errors import NotFound


def test_a_transaction_sees_each_of_its_edges_and_leaves_none_behind(tmp_path: Path) -> None:
    """A transaction changes while it is read. Had it kept a list, it would have missed its own second edge; and had it
    kept it where all views of the checkpoint look, they would show what was rolled back."""
    with GraphStore.open(tmp_path / "graph", online_backup_enabled=False) as graph:
        with graph.transaction() as tx:
            a, b, c = (tx.add_node() for _ in range(3))
            tx.add_edge(b, "KNOWS", c)
        graph.checkpoint()
        with pytest.raises(ZeroDivisionError), graph.transaction() as tx:
            assert tx.neighbors(a, "KNOWS") == []
            tx.add_edge(a, "KNOWS", b)
            assert tx.neighbors(a, "KNOWS") == [b]
            tx.add_edge(a, "KNOWS", c)
            assert tx.neighbors(a, "KNOWS") == [b, c]
            assert tx.degree(a, "KNOWS") == 2
            raise ZeroDivisionError
        with graph.snapshot() as view:
            assert view.neighbors(a, "KNOWS") == []


def test_a_deleted_node_is_not_found_although_its_empty_list_was_kept(tmp_path: Path) -> None:
    with GraphStore.open(tmp_path / "graph", online_backup_enabled=False) as graph:
        with graph.transaction() as tx:
            a, b, lone = (tx.add_node() for _ in range(3))
            tx.add_edge(a, "KNOWS", b)
        graph.checkpoint()
        with graph.snapshot() as before:
            assert before.neighbors(lone, "KNOWS") == []
            with graph.transaction() as tx:
                tx.delete_node(lone)
            with graph.snapshot() as after:
                for read in (after.neighbors, after.neighbors_array, after.degree):
                    with pytest.raises(NotFound):
                        read(lone, "KNOWS")
                with pytest.raises(NotFound):
                    after.expand([a, lone], "KNOWS")
            assert before.neighbors(lone, "KNOWS") == []
