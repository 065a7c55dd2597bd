"""The cells of a column as values that a property can have.

A batch of cells is converted by Arrow, in one call. Only if that fails are its cells looked at one by one, to find
those that are wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ..builtin.graph.values import MAX_VALUE_BYTES, check_value
from ..errors import InvalidInput
from .headers import Column
from .libraries import library

Wrong = Callable[[int, str], object]
"""Called with the place of a cell in the batch, and what is wrong with it. The cell counts as empty then."""

DELIMITER = ";"
"""Between the items of a list in a text."""
_INT = re.compile(r"[+-]?[0-9]+")
_LARGE = MAX_VALUE_BYTES - 16


def ids(column: Any, wrong: Wrong) -> Any:
    """A column of ids: 64-bit integers if they are, otherwise text. Raises `InvalidInput` if they are neither."""
    pa = library("pyarrow")
    if pa.types.is_integer(column.type) and column.type != pa.uint64():
        return column.cast(pa.int64())
    return texts(column, wrong)


def texts(column: Any, wrong: Wrong) -> Any:
    """A column of bytes, text or whole numbers as text. Raises `InvalidInput` if it is of another type."""
    pa, pc = library("pyarrow"), library("pyarrow.compute")
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (_is_text(types, column.type) or types.is_integer(column.type) or types.is_null(column.type)):
        raise InvalidInput(f"it has the type {column.type}, where text or whole numbers are needed")
    try:
        return pc.cast(column, pa.large_string())
    except pa.ArrowInvalid:
        return _one_by_one(column, pa.large_string(), _decoded, wrong)


def values(column: Any, of: Column, wrong: Wrong) -> Any:
    """A column as values of properties: bools, 64-bit integers and floats, text, bytes, times in UTC, and lists of
    these. Raises `InvalidInput` if its type has none."""
    pa = library("pyarrow")
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if of.kind and _is_text(types, column.type):
        column = texts(column, wrong)
        found = _parsed_lists(column, of.kind, wrong) if of.several else _parsed(column, of.kind, wrong)
    else:
        found = _typed(column, _target(pa, column.type, of), wrong)
    return _within_limits(found, of.key, wrong)


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
                or types.is_binary(kind) or types.is_large_binary(kind))


def _arrow_kind(kind: str) -> Any:
    pa = library("pyarrow")
    return {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "string": pa.large_string(),
            "datetime": pa.timestamp("us", "UTC")}[kind]


def _target(pa: Any, kind: Any, of: Column) -> Any:
    """The type that values of an Arrow type become. Raises `InvalidInput`."""
    types = pa.types
    if of.kind:
        wanted = _arrow_kind(of.kind)
        return pa.large_list(wanted) if of.several else wanted
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.large_list(_target(pa, kind.value_type, of))
    for is_of, wanted in ((types.is_null, pa.null()), (types.is_boolean, pa.bool_()), (types.is_integer, pa.int64()),
                          (types.is_floating, pa.float64())):
        if is_of(kind):
            return wanted
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.large_binary()
    if types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp("us", "UTC")
    hint = "give it a time zone" if types.is_timestamp(kind) else "convert it, or end its name in :IGNORE"
    raise InvalidInput(f"it has the type {kind}, which no property can have", hint=hint)


def _typed(column: Any, wanted: Any, wrong: Wrong) -> Any:
    pa, pc = library("pyarrow"), library("pyarrow.compute")
    try:
        return pc.cast(column, wanted)
    except pa.ArrowNotImplementedError as error:
        raise InvalidInput(f"it has the type {column.type}, which cannot become {wanted}",
                           hint="convert it, or leave out the type in its name") from error
    except pa.ArrowInvalid:
        def cast(cell: Any) -> Any:
            try:
                return pc.cast(cell, wanted).as_py()
            except pa.ArrowInvalid as error:
                raise ValueError(f"{shown_text(_words(cell))} does not fit into {wanted}") from error

        return _one_by_one(column, wanted, cast, wrong, scalars=True)


def _parsed(column: Any, kind: str, wrong: Wrong) -> Any:
    """Values of one kind from a column of text."""
    pa, pc = library("pyarrow"), library("pyarrow.compute")
    if kind == "string":
        return column
    if kind == "bool":
        lower = pc.utf8_lower(column)
        true = pc.equal(lower, "true")
        if pc.all(pc.or_(true, pc.equal(lower, "false"))).as_py() is not False:
            return true
    elif kind != "int" or pc.all(pc.match_substring_regex(column, "^-?[0-9]+$")).as_py() is not False:
        try:
            return pc.cast(column, _arrow_kind(kind))
        except pa.ArrowInvalid:
            pass
    return _one_by_one(column, _arrow_kind(kind), _PARSERS[kind], wrong)


def _parsed_lists(column: Any, kind: str, wrong: Wrong) -> Any:
    parse = _PARSERS[kind]
    wanted = library("pyarrow").large_list(_arrow_kind(kind))
    return _one_by_one(column, wanted, lambda text: [parse(item) for item in text.split(DELIMITER)] if text else [],
                       wrong)


def _one_by_one(column: Any, wanted: Any, convert: Callable[[Any], Any], wrong: Wrong, scalars: bool = False) -> Any:
    found: list[Any] = []
    for place, cell in enumerate(column if scalars else column.to_pylist()):
        value = None
        if cell.is_valid if scalars else cell is not None:
            try:
                value = convert(cell)
            except ValueError as error:
                wrong(place, str(error))
        found.append(value)
    return library("pyarrow").array(found, wanted)


def _words(cell: Any) -> str:
    pa, pc = library("pyarrow"), library("pyarrow.compute")
    try:
        return str(pc.cast(cell, pa.string()).as_py())
    except pa.ArrowException:  # a list
        return str(cell)


def shown_text(text: str) -> str:
    """A text, quoted, as messages show it."""
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _decoded(cell: bytes | str) -> str:
    if isinstance(cell, str):
        return cell
    try:
        return cell.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{shown_text(cell.decode(errors='backslashreplace'))} is not UTF-8") from None


def _as_int(text: str) -> int:
    text = text.strip()
    if not _INT.fullmatch(text):
        raise ValueError(f"{shown_text(text)} is not a whole number")
    if len(text) > 40 or not -(1 << 63) <= (number := int(text)) < 1 << 63:
        raise ValueError(f"{shown_text(text)} does not fit in 64 bits")
    return number


def _as_float(text: str) -> float:
    try:
        if "_" not in text:
            return float(text)
    except ValueError:
        pass
    raise ValueError(f"{shown_text(text)} is not a number")


def _as_bool(text: str) -> bool:
    if (lower := text.strip().lower()) not in ("true", "false"):
        raise ValueError(f"{shown_text(text)} is neither true nor false")
    return lower == "true"


def _as_datetime(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{shown_text(text)} is not a time, as 2026-03-01T12:00:00Z is") from None
    if found.tzinfo is None:
        raise ValueError(f"{shown_text(text)} has no time zone")
    return found


_PARSERS: dict[str, Callable[[str], Any]] = {"int": _as_int, "float": _as_float, "bool": _as_bool, "string": str,
                                             "datetime": _as_datetime}


def _within_limits(column: Any, key: str, wrong: Wrong) -> Any:
    """The column, without values that no property can have: those that are too large, and lists that hold None."""
    pa, pc = library("pyarrow"), library("pyarrow.compute")
    types = pa.types
    if types.is_large_list(column.type):
        if not types.is_large_list(column.type.value_type) and column.nbytes <= _LARGE and not column.values.null_count:
            return column
    elif not (types.is_large_string(column.type) or types.is_large_binary(column.type)) or not (
            pc.max(pc.binary_length(column)).as_py() or 0) > _LARGE:
        return column

    def checked(value: Any) -> Any:
        try:
            check_value(key, value)
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return value

    return _one_by_one(column, column.type, checked, wrong)
