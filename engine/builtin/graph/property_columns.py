"""The properties, labels and types of a whole graph, in columns: one list for each key, in the order of the items."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .lmdbstate import id_of
from .lookups import Int64
from .overlay import newest
from .reads import Reads
from .values import decode_map
from .walk import nodes_at_once


def property_columns(reads: Reads, ids: Int64, *, of_edges: bool = False,
                     keys: Container[str] | None = None) -> dict[str, list[Any]]:
    """The properties of nodes, or of edges.

    Args:
        ids: of which, ascending.
        of_edges: whether `ids` are of edges.
        keys: only these; None for all.

    Returns:
        For each key that one of them has: as many values as `ids`, with None if an item does not have it. In the order
        in which the keys are met. One pass over all property maps, if there are any.
    """
    places = dict(zip(ids.tolist(), range(len(ids)), strict=True)) if _some(reads, of_edges) else {}
    columns: dict[int, list[Any]] = {}
    name = reads._tokens.name
    for item, packed in _maps(reads, of_edges):
        place = places.get(item)
        if place is not None:
            for token, value in decode_map(packed).items():
                column = columns.get(token)
                if column is None:
                    if keys is not None and name(token) not in keys:
                        continue
                    column = columns[token] = [None] * len(ids)
                column[place] = value
    return {name(token): column for token, column in columns.items()}


def label_sets(reads: Reads) -> tuple[npt.NDArray[np.uint32], dict[int, tuple[str, ...]]]:
    """The label set of each node, by ascending id, as a token; and the labels, sorted, by token."""
    parts = [sets for _, sets in nodes_at_once(reads)]
    sets = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    return sets, {token: reads._tokens.label_names(token) for token in np.unique(sets).tolist()}


def _some(reads: Reads, of_edges: bool) -> bool:
    if of_edges:
        return reads._base.edge_props or any(layer.edge_props for layer in reads._layers)
    return reads._base.node_props or any(layer.props for layer in reads._layers)


def _maps(reads: Reads, of_edges: bool) -> Iterator[tuple[int, bytes]]:
    """The property maps of all nodes or edges, each once, in no particular order."""
    if not _some(reads, of_edges):
        return
    changed: dict[int, bytes] = {}
    for layer in reads._layers:
        for item, event in list((layer.edge_props if of_edges else layer.props).items()):
            shown = newest(event, reads._bound)
            if shown is not None:
                changed.setdefault(item, shown[1])
    passed = reads._base.state.mapping.passed
    for key, packed in reads._base.rows("edge_props" if of_edges else "node_props"):
        passed(len(packed))
        [item] = id_of(key)
        if item not in changed:
            yield item, packed
    for item, packed in changed.items():
        if packed:
            yield item, packed
