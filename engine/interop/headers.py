"""What the columns of a table of nodes or edges mean, by their names, in the manner of Neo4j's import tool.

    :ID, key:ID, :ID(space)     a node's id in the files; with a key, it is a property too
    :LABEL                      a node's labels
    :START_ID, :END_ID          an edge's ends, as ids of nodes; each may name a space
    :TYPE                       an edge's type
    key, key:int, key:string[]  a property; without a type, a text from CSV, and what it is from Arrow and Parquet
    :IGNORE, key:IGNORE         is not read

Ids are looked up within their space, and are compared as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..builtin.graph.values import check_name
from ..env.shown import shown
from ..errors import InvalidInput

ID, LABEL, START, END, TYPE, IGNORE, PROPERTY = "ID", "LABEL", "START_ID", "END_ID", "TYPE", "IGNORE", "PROPERTY"
KINDS = {
    "int": "int", "long": "int", "short": "int", "byte": "int", "float": "float", "double": "float", "boolean": "bool",
    "bool": "bool", "string": "string", "char": "string", "datetime": "datetime",
}
"""Types of properties in a header, and the kinds of values they stand for."""
_ROLE = re.compile(r"(ID|LABEL|START_ID|END_ID|TYPE|IGNORE)(?:\(([^()]*)\))?")
_OF_NODES, _OF_EDGES = {ID, LABEL}, {START, END, TYPE}


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: as it is in the table.
        role: what it is.
        key: of the property; "" if it is none.
        kind: of the property's values; "" for what they are.
        several: whether they are lists of that kind.
        space: of ids.
    """

    name: str
    role: str
    key: str = ""
    kind: str = ""
    several: bool = False
    space: str = ""


def columns_of(names: Sequence[str], source: str, *, of_edges: bool) -> list[Column]:
    """The columns of a table, by their names. `source` names the table in errors. Raises `InvalidInput`."""
    found = [_column(name, source, of_edges) for name in names]
    for role in (*_OF_NODES, *_OF_EDGES):
        if sum(column.role == role for column in found) > 1:
            raise InvalidInput(f"{source} has more than one column :{role}", hint="rename one, or end it in :IGNORE")
    keys = [column.key for column in found if column.key]
    if (twice := {key for key in keys if keys.count(key) > 1}):
        raise InvalidInput(f"{source} has the property {min(twice)} in more than one column",
                           hint="rename one, or end it in :IGNORE")
    for role in (START, END) if of_edges else ():
        if not any(column.role == role for column in found):
            raise InvalidInput(f"{source} has no column :{role}, which edges need",
                               hint=f"it has {', '.join(names) or 'none'}; if these are nodes, give it as such")
    return found


def _column(name: str, source: str, of_edges: bool) -> Column:
    key, colon, rest = name.rpartition(":")
    if not colon:
        return _property(name, name, source)
    if (match := _ROLE.fullmatch(rest)) is not None:
        role, space = match[1], match[2] or ""
        if role in (_OF_NODES if of_edges else _OF_EDGES):
            raise InvalidInput(f"{source} has the column {name}, which only {'nodes' if of_edges else 'edges'} have",
                               hint="end it in :IGNORE, or give the file as "
                                    f"{'nodes' if of_edges else 'edges'}")
        if match[2] is not None and role not in (ID, START, END):
            raise InvalidInput(f"{source}: the column {name} names a space, which only ids have",
                               hint="leave out the brackets")
        return Column(name, role, key=_named(key, name, source) if role == ID and key else "", space=space)
    if not rest:
        return _property(key, name, source)
    base = rest.removesuffix("[]")
    if (kind := KINDS.get(base.lower())) is None:
        raise InvalidInput(f"{source}: the column {name} has the type {shown(rest)}, which there is not",
                           hint=f"types are {', '.join(KINDS)}, each also with [] for a list; if the key itself holds "
                                "a colon, end the name in one more")
    return Column(name, PROPERTY, _named(key, name, source), kind, rest.endswith("[]"))


def _property(key: str, name: str, source: str) -> Column:
    return Column(name, PROPERTY, _named(key, name, source))


def _named(key: str, name: str, source: str) -> str:
    try:
        return check_name(key, "property key")
    except InvalidInput as error:
        raise InvalidInput(f"{source}: the column {shown(name)}: {error.message}", hint=error.hint) from error
