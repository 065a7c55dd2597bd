"""Finding nodes by a label and a property: what is cached, and that each view finds what it shows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from graph_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.engine.builtin.graph.lmdbstate import Base
from holdfast.engine.errors import InvalidInput, StoreClosed

LABELS = ("A", "B")
VALUES = (1, 1.0, True, "1", [1])
"""Python holds the first three for equal, and a graph does not."""
CHANGES = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(LABELS), st.sampled_from(VALUES)),
    st.tuples(st.just("set"), st.integers(0, 5), st.sampled_from(VALUES)),
    st.tuples(st.just("delete"), st.integers(0, 5), st.none()),
    st.tuples(st.sampled_from(("look", "checkpoint")), st.none(), st.none()))


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def found_in(view: Any, nodes: dict[int, tuple[str, Any]]) -> None:
    """Twice: what is found first is cached."""
    for _ in range(2):
        for label in LABELS:
            for value in VALUES:
                there = [n for n, (of, held) in sorted(nodes.items()) if of == label and same(held, value)]
                assert list(view.nodes(label, k=value)) == there
                assert list(view.nodes(label, {"k": value, "other": 0})) == there
                assert list(view.nodes(label, {"k": value, "other": 1})) == []


@given(st.lists(CHANGES, max_size=14))
@settings(max_examples=60, deadline=None)
def test_each_view_finds_what_it_shows(changes: list[tuple[str, Any, Any]]) -> None:
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place, ExitStack() as views:
        rig = Rig(Path(place))
        views.callback(rig.engine.close)
        nodes: dict[int, tuple[str, Any]] = {}
        held: list[tuple[Any, dict[int, tuple[str, Any]]]] = []
        tx = rig.engine.begin()
        tx.create_index("A", "k")
        rig.commit(tx)
        rig.checkpoint()
        for do, which, value in [*changes, ("look", None, None)]:
            if do == "checkpoint":
                rig.checkpoint()
            elif do == "look":
                held.append((views.enter_context(rig.engine.view()), dict(nodes)))
            else:
                tx = rig.engine.begin()
                if do == "add":
                    nodes[tx.add_node(which, k=value, other=0)] = which, value
                elif nodes and do == "set":
                    node = sorted(nodes)[which % len(nodes)]
                    tx.set_properties(node, k=value)
                    nodes[node] = nodes[node][0], value
                elif nodes:
                    tx.delete_node(sorted(nodes)[which % len(nodes)])
                    del nodes[sorted(nodes)[which % len(nodes)]]
                found_in(tx, nodes)
                rig.commit(tx)
            for view, then in held:
                found_in(view, then)


def test_what_was_found_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    tx = rig.engine.begin()
    tx.create_index("A", "k")
    node = tx.add_node("A", k=1)
    rig.commit(tx)
    rig.checkpoint()
    looked: list[bytes] = []
    rows = Base.rows

    def noted(base: Base, db: str, start: bytes = b"", prefix: bytes = b"") -> Any:
        looked.append(prefix)
        return rows(base, db, start, prefix)

    monkeypatch.setattr(Base, "rows", noted)
    with rig.engine.view() as view, rig.engine.view() as other:
        for reader in (view, other, view):
            assert list(reader.nodes("A", k=1)) == [node]
        assert len(looked) == 1, "views without an overlay share what was found"
        for wrong in ({"k": object()}, {"": 1}):
            with pytest.raises(InvalidInput):
                view.nodes("A", wrong)
    with pytest.raises(StoreClosed):
        view.nodes("A", k=1)
    rig.engine.close()
