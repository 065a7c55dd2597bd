"""Tables of nodes and edges, on their way into a graph.

Each table comes in batches. A batch is checked and converted column by column (`cells.py`), and rows that are wrong are
left out and noted. When all are read, ids are looked up, by Arrow's hash tables, and the graph gets nodes and edges in
bulk: one load for each type of edge, since a load has one, and the nodes with the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..builtin.graph import BulkLoad
from ..builtin.graph.lookups import Int64
from ..builtin.graph.values import check_labels, check_name
from ..errors import BadRows, InvalidInput
from . import cells
from .headers import END, ID, IGNORE, LABEL, PROPERTY, START, TYPE, Column, columns_of
from .libraries import library

TOLD = 20
"""How many rows that are wrong are described; the others are only counted."""
_AT_ONCE = 1 << 14
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Problems:
    """The rows that are wrong: how many there are, and words about the first."""

    rows: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, source: str, row: int, text: str) -> None:
        """Note one row. Call it once for each row."""
        self.rows += 1
        if len(self.told) < TOLD:
            self.told.append(f"{source}, row {row}: {text}")

    def refuse(self, hint: str | None = None) -> None:
        """Raise `BadRows` if there are any."""
        if self.rows:
            more = f"; the first {len(self.told)} are named" if self.rows > len(self.told) else ""
            raise BadRows(f"{self.rows:,} {'row is' if self.rows == 1 else 'rows are'} wrong, and nothing was "
                          f"loaded{more}", findings=tuple(self.told), hint=hint)


class LoadedTables(NamedTuple):
    """What was loaded: the id of the first node, how many nodes, and how many edges. Nodes have consecutive ids, in the
    order of their rows."""

    first_node: int
    nodes: int
    edges: int


@dataclass(slots=True)
class Part:
    """A batch of a table, checked.

    Attributes:
        source: the table's name, for errors.
        rows: the number of each row in it.
        ids: a node's id, or an edge's start and end, as text or 64-bit integers; each with its space.
        names: labels of nodes, as sets, or types of edges: those that occur. `codes` has one for each row.
        properties: key to values, None if there is none.
    """

    source: str
    rows: Int64
    ids: list[tuple[str, Any]]
    names: list[Any]
    codes: npt.NDArray[np.int32]
    properties: dict[str, Any]

    def only(self, kept: npt.NDArray[np.bool_]) -> Part:
        if kept.all():
            return self
        mask = library("pyarrow").array(kept)
        return Part(self.source, self.rows[kept], [(space, column.filter(mask)) for space, column in self.ids],
                    self.names, self.codes[kept], {key: column.filter(mask) for key, column in
                                                   self.properties.items()})


class Table(NamedTuple):
    """A table to be read.

    Attributes:
        source: its name, for errors.
        columns: the names of its columns.
        batches: Arrow's record batches, each with the numbers of its rows.
        fixed: labels that all its nodes have, or the type of edges that have no other.
        text: all its cells are text, as those of CSV; so is a property whose column has no type.
    """

    source: str
    columns: Sequence[str]
    batches: Iterable[tuple[Any, Int64]]
    fixed: tuple[str, ...]
    text: bool = False


def parts_of(table: Table, problems: Problems, *, of_edges: bool) -> Iterator[Part]:
    """The batches of a table, checked. Raises `InvalidInput` if a column cannot be used at all."""
    columns = columns_of(table.columns, table.source, of_edges=of_edges)
    if of_edges and not table.fixed and not any(column.role == TYPE for column in columns):
        raise InvalidInput(f"{table.source} does not say of which type its edges are",
                           hint="add a column :TYPE, or name the type beside the table")
    table = table._replace(fixed=check_labels(table.fixed))
    if table.text:
        columns = [replace(column, kind=column.kind or "string") for column in columns]
    for batch, rows in table.batches:
        yield _part(table, columns, batch, rows, problems, of_edges)


def _part(table: Table, columns: list[Column], batch: Any, rows: Int64, problems: Problems, of_edges: bool) -> Part:
    bad: dict[int, str] = {}

    def wrong_in(column: Column) -> cells.Wrong:
        return lambda place, text: bad.setdefault(place, f"{column.name}: {text}")

    ids: dict[str, tuple[str, Any]] = {}
    properties: dict[str, Any] = {}
    names: list[Any] = [table.fixed[0] if of_edges and table.fixed else table.fixed]
    codes = np.zeros(len(rows), np.int32)
    for column, data in zip(columns, batch.columns, strict=True):
        wrong = wrong_in(column)
        try:
            if column.role in (ID, START, END):
                ids[column.role] = column.space, cells.ids(data, wrong)
                for place in np.flatnonzero(_nulls(data)).tolist():
                    wrong(place, "there is no id")
            elif column.role in (LABEL, TYPE):
                names, codes = _named(data, table.fixed, column.role, wrong)
            if column.role == PROPERTY or column.key:
                properties[column.key] = cells.values(data, column, wrong)
        except InvalidInput as error:
            raise InvalidInput(f"{table.source}: the column {column.name}: {error.message}", hint=error.hint) from error
    kept = np.ones(len(rows), bool)
    read = [data for column, data in zip(columns, batch.columns, strict=True) if column.role != IGNORE]
    if read:
        kept &= ~np.logical_and.reduce([_nulls(data) for data in read])  # a row without anything is an empty line
    for place, text in sorted(bad.items()):
        if kept[place]:
            problems.add(table.source, int(rows[place]), text)
            kept[place] = False
    return Part(table.source, rows, [ids[role] for role in (ID, START, END) if role in ids], names, codes,
                properties).only(kept)


def _nulls(column: Any) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return found


def _named(data: Any, fixed: tuple[str, ...], role: str, wrong: cells.Wrong) -> tuple[list[Any], Any]:
    """The sets of labels, or the types, of a column, and for each row which one it has."""
    pa = library("pyarrow")
    if role == LABEL and (pa.types.is_list(data.type) or pa.types.is_large_list(data.type)):
        numbers: dict[Any, int] = {}
        codes = np.array([numbers.setdefault(None if labels is None else tuple(labels), len(numbers))
                          for labels in data.cast(pa.large_list(pa.large_string())).to_pylist()], np.int32)
        given: list[Any] = [*numbers]
    else:
        encoded = cells.texts(data, wrong).dictionary_encode()
        given = encoded.dictionary.to_pylist()
        codes = encoded.indices.fill_null(len(given)).to_numpy()
        if role == LABEL:
            given = [tuple(label for label in text.split(cells.DELIMITER) if label) for text in given]
        given.append(None)
    names: list[Any] = []
    for code, one in enumerate(given):
        try:
            names.append(_checked(one, fixed, role))
        except InvalidInput as error:
            names.append(None)
            for place in np.flatnonzero(codes == code).tolist():
                wrong(place, error.message)
    return names, codes


def _checked(given: Any, fixed: tuple[str, ...], role: str) -> Any:
    if role == LABEL:
        return check_labels((*fixed, *(given or ())))
    if given is None and not fixed:
        raise InvalidInput("there is no type")
    return check_name(fixed[0] if given is None else given, "edge type")


# --- ids -------------------------------------------------------------------------------------------------------------


def _joined(columns: list[list[Any]]) -> list[Any]:
    """Several ids' columns, each of some chunks, as columns that can be compared: as numbers if all are, else as text.
    """
    pa, pc = library("pyarrow"), library("pyarrow.compute")
    numbers = all(chunk.type == pa.int64() for chunks in columns for chunk in chunks)
    kind = pa.int64() if numbers else pa.large_string()
    return [pa.chunked_array([pc.cast(chunk, kind) for chunk in chunks], kind).combine_chunks() for chunks in columns]


def _by_space(parts: list[Part], side: int) -> dict[str, list[int]]:
    """For each space, the numbers of the parts whose ids are of it."""
    found: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        if part.ids:
            found.setdefault(part.ids[side][0], []).append(number)
    return found


def without_doubles(nodes: list[Part], problems: Problems) -> list[Part]:
    """The nodes, without those whose id an earlier one has."""
    nodes = [*nodes]
    for space, numbers in _by_space(nodes, 0).items():
        [joined] = _joined([[nodes[n].ids[0][1] for n in numbers]])
        encoded = joined.dictionary_encode()
        if len(encoded.dictionary) == len(encoded):
            continue
        codes = encoded.indices.to_numpy()
        first = np.full(len(encoded.dictionary), len(codes))
        np.minimum.at(first, codes, np.arange(len(codes)))
        double = first[codes] != np.arange(len(codes))
        begins = np.cumsum([0, *(len(nodes[n].rows) for n in numbers)])
        whole = [nodes[n] for n in numbers]
        for i, n in enumerate(numbers):
            mine = double[begins[i] : begins[i + 1]]
            for place in np.flatnonzero(mine).tolist():
                at = first[codes[begins[i] + place]]
                other = int(np.searchsorted(begins, at, "right")) - 1
                where = f"row {whole[other].rows[at - begins[other]]}"
                if whole[other].source != whole[i].source:
                    where = f"{whole[other].source}, {where}"
                problems.add(whole[i].source, int(whole[i].rows[place]),
                             f"the id {_shown(joined[int(at)])}{_in(space)} is that of {where} too")
            nodes[n] = whole[i].only(~mine)
    return nodes


def _shown(cell: Any) -> str:
    return cells.shown_text(str(cell.as_py()))


def _in(space: str) -> str:
    return f" in {space}" if space else ""


Ends = tuple[Part, Int64, Int64]


def with_ends(edges: Iterable[Part], nodes: list[Part], problems: Problems) -> list[Ends]:
    """The edges with the places of their ends, in the order of all nodes, without those whose ends are not there."""
    parts = list(edges)
    sources, targets = (_places(parts, side, nodes) for side in (0, 1))
    found: list[Ends] = []
    for part, source, target in zip(parts, sources, targets, strict=True):
        kept = (source >= 0) & (target >= 0)
        for place in np.flatnonzero(~kept).tolist():
            space, column = part.ids[0 if source[place] < 0 else 1]
            problems.add(part.source, int(part.rows[place]),
                         f"no node{_in(space)} has the id {_shown(column[place])}")
        part.ids = []  # no longer needed
        found.append((part.only(kept), source[kept], target[kept]))
    return found


def _places(parts: list[Part], side: int, nodes: list[Part]) -> list[Int64]:
    """For each part, the places of the nodes that its ids of one side name; -1 for those that are not there. All ids of
    a space are looked up at once, because each look-up makes a hash table of the nodes' ids."""
    begins = np.cumsum([0, *(len(part.rows) for part in nodes)])
    of_nodes = _by_space(nodes, 0)
    found = [np.full(len(part.rows), -1) for part in parts]
    for space, numbers in _by_space(parts, side).items():
        if not (having := of_nodes.get(space)):
            continue
        ids, wanted = _joined([[nodes[n].ids[0][1] for n in having], [parts[n].ids[side][1] for n in numbers]])
        places = np.concatenate([np.arange(begins[n], begins[n + 1]) for n in having] + [[-1]])
        at = library("pyarrow.compute").index_in(wanted, value_set=ids).fill_null(-1).to_numpy()
        cuts = np.cumsum([len(parts[n].rows) for n in numbers])[:-1]
        for n, mine in zip(numbers, np.split(places[at], cuts), strict=True):
            found[n] = mine
    return found


# --- into the graph --------------------------------------------------------------------------------------------------


def load(store: Any, nodes: list[Part], edges: list[Ends], progress: Progress) -> LoadedTables:
    """Load nodes and edges into a `GraphStore`, or any `Store` of the graph engine."""
    count = sum(len(part.rows) for part in nodes)
    total = count + sum(len(part.rows) for part, _, _ in edges)
    done = 0

    def passed(rows: int) -> None:
        nonlocal done
        done += rows
        progress("load", done, total)

    types = sorted({part.names[code] for part, _, _ in edges for code in np.unique(part.codes).tolist()})
    first = BulkLoad(nodes=_node_items(nodes, passed), labels=_shared_labels(nodes) or (), relative=True)
    if types:
        first.edge_type = types[0]
        first.edges = _edge_items(edges, types[0], 0, passed)
    store.bulk(first)
    assert first.result is not None
    for kind in types[1:]:
        store.bulk(BulkLoad(edges=_edge_items(edges, kind, first.result.first_node, passed), edge_type=kind))
    return LoadedTables(first.result.first_node, count, total - count)


def _shared_labels(nodes: list[Part]) -> tuple[str, ...] | None:
    """The labels of all nodes, if all have the same."""
    found = {part.names[code] for part in nodes for code in np.unique(part.codes).tolist()}
    return found.pop() if len(found) == 1 else None


def _node_items(nodes: list[Part], passed: Callable[[int], None]) -> Any:
    if not any(part.properties for part in nodes) and _shared_labels(nodes) is not None:
        count = sum(len(part.rows) for part in nodes)
        passed(count)
        return count
    if _shared_labels(nodes) is not None:
        return (properties for part in nodes for properties in _maps(part, passed))
    return ((part.names[code], properties) for part in nodes
            for code, properties in zip(part.codes.tolist(), _maps(part, passed), strict=True))


def _edge_items(edges: list[Ends], kind: str, first_node: int, passed: Callable[[int], None]) -> Any:
    """The edges of one type: two arrays, or with properties, an iterable."""
    mine = []
    for part, sources, targets in edges:
        having = np.array([name == kind for name in part.names])[part.codes]
        if having.any():
            mine.append((part.only(having), sources[having] + first_node, targets[having] + first_node))
    if not any(part.properties for part, _, _ in mine):
        passed(sum(len(part.rows) for part, _, _ in mine))
        return np.concatenate([sources for _, sources, _ in mine]), np.concatenate([t for _, _, t in mine])
    return ((source, target, properties) for part, sources, targets in mine
            for source, target, properties in zip(sources.tolist(), targets.tolist(), _maps(part, passed),
                                                  strict=True))


def _maps(part: Part, passed: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """The properties of each row."""
    keys = list(part.properties)
    for begin in range(0, len(part.rows), _AT_ONCE):
        count = min(_AT_ONCE, len(part.rows) - begin)
        columns = [column.slice(begin, count).to_pylist() for column in part.properties.values()]
        if not keys:
            yield from ({} for _ in range(count))
        else:
            for row in zip(*columns, strict=True):
                yield {key: value for key, value in zip(keys, row, strict=True) if value is not None}
        passed(count)
