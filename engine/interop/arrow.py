"""A graph as Arrow tables, and Arrow tables into a graph. Their columns are named as `headers.py` says.

The tables that `to_arrow` gives can be loaded as they are, or after a way through Parquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from ..builtin.graph import GraphView
from ..builtin.graph.csr import ends
from ..builtin.graph.lookups import Int64
from ..builtin.graph.property_columns import label_sets, property_columns
from ..errors import InvalidInput
from .libraries import library
from .tables import LoadedTables, Problems, Table, load, parts_of, with_ends, without_doubles

__all__ = ["ArrowTables", "LoadedTables", "load_arrow", "to_arrow"]


class ArrowTables(NamedTuple):
    """Two `pyarrow.Table`s, by ascending id. `nodes`: `:ID`, `:LABEL` (a list), and a column for each property key.
    `edges`: `:START_ID`, `:END_ID`, `:TYPE`, and a column for each key."""

    nodes: Any
    edges: Any


def to_arrow(view: GraphView, type: str | None = None, *, keys: Iterable[str] | None = None) -> ArrowTables:
    """A graph as Arrow tables. What an item does not have is null. O(graph).

    Args:
        view: a view of a graph.
        type: only edges of this type; all nodes.
        keys: only properties with these keys; None for all.

    Raises:
        Unsupported: PyArrow is not installed.
        InvalidInput: a key has values of several types, which no column can hold. Whole numbers among floats are
            floats then, if that does not change them.
    """
    pa = library("pyarrow")
    chosen = None if keys is None else {*keys}
    found = ends(view, view._type(type))
    sets, labels = label_sets(view)
    tokens, codes = np.unique(sets, return_inverse=True)
    by_code = pa.array([labels[token] for token in tokens.tolist()], pa.list_(pa.string()))
    nodes = {":ID": pa.array(found.ids), ":LABEL": by_code.take(pa.array(codes))}
    for key, column in property_columns(view, found.ids, keys=chosen).items():
        nodes[_header(key)] = _array(pa, key, column)
    kinds, codes = np.unique(found.kinds, return_inverse=True)
    names = pa.array([view._tokens.name(kind) for kind in kinds.tolist()], pa.string())
    edges = {":START_ID": pa.array(found.ids[found.sources]), ":END_ID": pa.array(found.ids[found.targets]),
             ":TYPE": pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), names)}
    for key, column in property_columns(view, found.edges, of_edges=True, keys=chosen).items():
        edges[_header(key)] = _array(pa, key, column)
    return ArrowTables(pa.table(nodes), pa.table(edges))


def _header(key: str) -> str:
    return f"{key}:" if ":" in key else key


def _array(pa: Any, key: str, column: list[Any]) -> Any:
    kinds = {value.__class__ for value in column if value is not None}
    if kinds == {int, float}:
        column, kinds = _floats(key, column), {float}
    if len(kinds) > 1:
        raise InvalidInput(f"property {key!r} holds values of the types "
                           f"{', '.join(sorted(kind.__name__ for kind in kinds))}, which no column can",
                           hint="choose other properties by keys=")
    [kind] = kinds
    wanted = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.large_string(), bytes: pa.large_binary(),
              datetime: pa.timestamp("us", "UTC")}.get(kind)
    try:
        return pa.array(column, wanted)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidInput(f"property {key!r} holds lists or dicts that no column can: {error}",
                           hint="choose other properties by keys=") from error


def _floats(key: str, column: list[Any]) -> list[Any]:
    for value in column:
        if value.__class__ is int and int(float(value)) != value:
            raise InvalidInput(f"property {key!r} holds floats, and {value}, which no float is",
                               hint="choose other properties by keys=")
    return [None if value is None else float(value) for value in column]


def load_arrow(store: Any, nodes: Any = None, edges: Any = None) -> LoadedTables:
    """Load tables into a graph. Ids are of the tables: edges lead between these nodes, which get new ids in the graph.

    All rows are checked before anything is loaded. Then there is a bulk load, which is a transaction, for each type of
    edge; the nodes are in the first.

    Args:
        store: a `GraphStore`.
        nodes: a `pyarrow.Table` or `RecordBatch` of nodes, or several; None for none.
        edges: of edges, likewise.

    Raises:
        Unsupported: PyArrow is not installed.
        BadRows: some rows are wrong. Nothing was loaded.
        InvalidInput: a column is missing, or its name or type is not one. Nothing was loaded.
        As `Store.bulk`.
    """
    problems = Problems()
    read = [part for table in _tables(nodes, "nodes") for part in parts_of(table, problems, of_edges=False)]
    read = without_doubles(read, problems)
    problems.refuse()
    links = with_ends((part for table in _tables(edges, "edges") for part in parts_of(table, problems, of_edges=True)),
                      read, problems)
    problems.refuse()
    return load(store, read, links, lambda stage, done, total: None)


def _tables(given: Any, what: str) -> list[Table]:
    pa = library("pyarrow")
    several = [] if given is None else [given] if isinstance(given, (pa.Table, pa.RecordBatch)) else list(given)
    for table in several:
        if not isinstance(table, (pa.Table, pa.RecordBatch)):
            raise InvalidInput(f"{what} are pyarrow tables, not {table.__class__.__name__}")
    return [Table(what if len(several) == 1 else f"{what} {number}", table.column_names, _numbered(pa, table), ())
            for number, table in enumerate(several, 1)]


def _numbered(pa: Any, table: Any) -> Iterator[tuple[Any, Int64]]:
    begin = 1
    for batch in [table] if isinstance(table, pa.RecordBatch) else table.to_batches():
        yield batch, np.arange(begin, begin + batch.num_rows)
        begin += batch.num_rows
