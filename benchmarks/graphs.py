"""The graphs that workloads run on: two real ones carried beside this file, and one that is generated.

A graph is an `(n, 2)` array of int64, one row an edge, nodes numbered from 0 without gaps. Parsing and generating are
never inside a timing.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine import GraphStore
from ..engine.builtin.graph import BulkLoad

Edges = NDArray[np.int64]

DATA = Path(__file__).parent / "data"
EDGE_TYPE = "TO"
"""The type of every edge that is loaded or written here."""
REAL = ("soc-Epinions1", "web-NotreDame")


@cache
def real(name: str) -> Edges:
    """One of the real graphs, as published: `from<TAB>to` lines, `#` comments.

    Raises:
        FileNotFoundError: its file is not beside this one.
    """
    with gzip.open(DATA / f"{name}.txt.gz", "rb") as file:
        text = file.read()
    body = text[text.rindex(b"#"):]
    body = body[body.index(b"\n") + 1:]
    edges = np.array(body.split(), dtype=np.int64).reshape(-1, 2)
    edges.flags.writeable = False
    return edges


def rmat(scale: int, edges: int, *, seed: int = 1) -> Edges:
    """`edges` edges over `2**scale` nodes by R-MAT with Graph500's parameters (0.57, 0.19, 0.19, 0.05): many nodes of
    low degree and a few of very high degree, as in real graphs. The same seed gives the same graph."""
    random = np.random.default_rng(seed)
    source = np.zeros(edges, dtype=np.int64)
    target = np.zeros(edges, dtype=np.int64)
    for bit in range(scale):
        draw = random.random(edges)
        down = draw >= 0.76
        right = ((draw >= 0.57) & (draw < 0.76)) | (draw >= 0.95)
        source |= down.astype(np.int64) << bit
        target |= right.astype(np.int64) << bit
    return np.stack((source, target), axis=1)


def node_count(edges: Edges) -> int:
    """Nodes are 0 … n-1."""
    return int(edges.max()) + 1 if len(edges) else 0


def load(store: GraphStore, edges: Edges) -> range:
    """Bulk load a graph as one durable transaction; the ids that its nodes 0 … n-1 got."""
    load = BulkLoad(nodes=node_count(edges), edges=edges, edge_type=EDGE_TYPE, relative=True)
    store.bulk(load)
    assert load.result is not None
    return range(load.result.first_node, load.result.first_node + load.result.nodes)
