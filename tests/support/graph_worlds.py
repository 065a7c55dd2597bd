"""Small graphs with a past: loaded, changed, deleted from, and checkpointed at some point or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graph_rig import Rig
from hypothesis import strategies as st

from holdfast.engine.builtin.graph import BulkLoad

KINDS = ("KNOWS", "LIKES", "OWES")
small = st.integers(0, 7)
steps = st.lists(st.one_of(
    st.tuples(st.just("node"), small),
    st.tuples(st.just("edge"), small, st.sampled_from(KINDS), small),
    st.tuples(st.just("edge"), small, st.sampled_from(KINDS), small),
    st.tuples(st.just("edge"), small, st.sampled_from(KINDS), small),
    st.tuples(st.just("cut"), small),
    st.tuples(st.just("remove"), small),
    st.tuples(st.just("weigh"), small, st.integers(1, 9)),
    st.tuples(st.just("load"), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6)),
    st.tuples(st.just("checkpoint")),
), max_size=30)
"""What to do, one after the other. Numbers choose among what there is, modulo how much there is."""


def world(directory: Path, script: list[Any]) -> Rig:
    """A graph that has gone through a script."""
    rig = Rig(directory)
    for what, *with_what in script:
        if what == "checkpoint":
            rig.checkpoint()
            continue
        if what == "load":
            rig.load(BulkLoad(nodes=4, labels="Loaded", edges=with_what[0], edge_type="KNOWS", relative=True))
            continue
        with rig.engine.view() as view:
            nodes, edges = list(view.nodes()), [edge.id for edge in view.all_edges()]
        tx = rig.engine.begin()
        if what == "node":
            tx.add_node(*("Even",)[with_what[0] % 2:], number=with_what[0])
        elif what == "edge" and nodes:
            tx.add_edge(nodes[with_what[0] % len(nodes)], with_what[1], nodes[with_what[2] % len(nodes)])
        elif what == "cut" and edges:
            tx.delete_edge(edges[with_what[0] % len(edges)])
        elif what == "remove" and nodes:
            tx.delete_node(nodes[with_what[0] % len(nodes)], detach=True)
        elif what == "weigh" and edges:
            tx.set_edge_properties(edges[with_what[0] % len(edges)], weight=with_what[1])
        rig.commit(tx)
    return rig
