"""Property values: which there are, how they become bytes, and their limits.

A value is a bool, an int of 64 bits, a float, a str, bytes, a datetime that knows its time zone, or a list or a
str-keyed dict of values. None is not a value: a property that is not there has none. The bytes are msgpack's (datetime
as its timestamp extension), so a datetime comes back as the same instant in UTC. Two values are equal when their bytes
are: 1, 1.0 and True are three different values, to the index as to a filter.

Everything is validated here before anything is changed or logged: what passes, encodes. A property map, the cell that
is stored and logged as one, is a msgpack map from the keys' tokens, ascending, to the values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import repeat
from operator import index, itemgetter
from typing import Any

import msgpack
from xxhash import xxh3_64_digest

from ...env.shown import shown, type_name
from ...errors import InvalidInput

MAX_NAME_BYTES = 256
"""Of a label, an edge type or a property key, in UTF-8."""
MAX_VALUE_BYTES = 1 << 20
"""Of one encoded value."""
MAX_PROPERTIES_BYTES = 8 << 20
"""Of all properties of one node or edge, encoded."""
MAX_DEPTH = 16
"""Of lists and dicts in one another."""
MAX_LABELS = 256
"""Of one node."""

_packer = msgpack.Packer(use_bin_type=True, datetime=True, autoreset=True)
_pack = _packer.pack
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


def check_id(given: Any, what: str) -> int:
    """The id of a node or edge as an int, from any integer, such as those in numpy's arrays. Raises `InvalidInput`."""
    if given.__class__ is int:
        return given
    if not isinstance(given, bool):
        try:
            return index(given)
        except TypeError:
            pass
    raise InvalidInput(f"the id of {what} is an integer, not {type_name(given)}",
                       hint="pass the id itself, such as node.id of a Node")


def check_name(name: object, what: str) -> str:
    """`name`, if it can be a label, type or key. Raises `InvalidInput`."""
    if type(name) is not str:
        raise InvalidInput(f"a {what} must be a str, not {type_name(name)}")
    if not name:
        raise InvalidInput(f"a {what} must not be empty")
    if len(name) > MAX_NAME_BYTES // 4 or not name.isascii():
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the {what} {name!r:.60} holds a lone surrogate, which has no UTF-8") from error
        if size > MAX_NAME_BYTES:
            raise InvalidInput(f"the {what} {name!r:.60} has {size} bytes; the limit is {MAX_NAME_BYTES}")
    return name


def check_labels(labels: Iterable[object]) -> tuple[str, ...]:
    """The labels, each once, sorted. Raises `InvalidInput`."""
    names = {check_name(label, "label") for label in labels}
    if len(names) > MAX_LABELS:
        raise InvalidInput(f"a node has {len(names)} labels; the limit is {MAX_LABELS}")
    return tuple(sorted(names))


def check_properties(properties: object) -> Mapping[str, Any]:
    """`properties`, if they are a mapping of keys to values that can be stored. Raises `InvalidInput`."""
    mapping = check_mapping(properties)
    for key, value in mapping.items():
        check_name(key, "property key")
        check_value(key, value)
    return mapping


def check_mapping(properties: object) -> Mapping[str, Any]:
    """`properties`, if they are a mapping. Raises `InvalidInput`."""
    if properties.__class__ is dict or isinstance(properties, Mapping):
        return properties
    raise InvalidInput(f"properties must be a mapping, not {type_name(properties)}")


def check_value(key: str, value: object) -> None:
    """Raise `InvalidInput` if `value` cannot be the value of property `key`."""
    kind = type(value)
    if kind is int:
        if not _INT_MIN <= value <= _INT_MAX:  # type: ignore[operator]
            raise InvalidInput(f"property {key!r}: {shown(value)} does not fit in 64 bits", hint="store it as a str")
    elif kind is str:
        if len(value) > MAX_VALUE_BYTES // 4 or not value.isascii():  # type: ignore[arg-type, attr-defined]
            _check_size(key, value)
    elif kind is bytes:
        if len(value) > MAX_VALUE_BYTES - 5:  # type: ignore[arg-type]
            _check_size(key, value)
    elif kind is datetime:
        _check_datetime(key, value)  # type: ignore[arg-type]
    elif kind is list or kind is dict:
        _check_nested(key, value, 1, [0])
        _check_size(key, value)
    elif kind is not bool and kind is not float:
        _refuse(key, value)


def check_column(key: str, values: Collection[Any]) -> None:
    """As `check_value` for each, and many times as fast if all have the same simple type."""
    kinds = set(map(type, values))
    if kinds == {int}:
        if min(values) >= _INT_MIN and max(values) <= _INT_MAX:
            return
    elif kinds == {str}:
        # Four bytes a character and a header fit. Surrogates, even two that would be a pair, have no UTF-8.
        if max(map(len, values)) < MAX_VALUE_BYTES // 8 and _has_utf8("".join(values)):
            return
    elif kinds <= {bool, float}:
        return
    for value in values:
        check_value(key, value)


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(key: str, value: object) -> None:
    if value is None:
        raise InvalidInput(f"property {key!r} is None", hint="leave it out, or use remove_property")
    raise InvalidInput(f"property {key!r} holds a {type_name(value)}",
                       hint="values are bool, int, float, str, bytes, datetime with a time zone, and lists and dicts "
                            "of these")


def _check_datetime(key: str, value: datetime) -> None:
    if value.utcoffset() is None:
        raise InvalidInput(f"property {key!r} is a datetime without a time zone", hint="give it one: tzinfo=...")
    try:
        value.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInput(f"property {key!r}: {shown(value)} is out of range in UTC") from error


def _check_size(key: str, value: object) -> None:
    try:
        size = len(_pack(value))
    except UnicodeEncodeError as error:
        raise InvalidInput(f"property {key!r} holds a lone surrogate, which has no UTF-8",
                           hint="store it as bytes") from error
    if size > MAX_VALUE_BYTES:
        raise InvalidInput(f"property {key!r} has {size:,} bytes; the limit is {MAX_VALUE_BYTES:,}")


def _check_nested(key: str, value: object, depth: int, seen: list[int]) -> None:
    """Walk lists and dicts. `seen` counts items, each of which takes a byte or more when encoded. So a value that holds
    one list many times over, small in memory and huge when encoded, is refused early."""
    kind = type(value)
    if kind is list or kind is dict:
        if depth > MAX_DEPTH:
            raise InvalidInput(f"property {key!r} is nested deeper than {MAX_DEPTH} levels")
        seen[0] += len(value)  # type: ignore[arg-type]
        if seen[0] > MAX_VALUE_BYTES:
            raise InvalidInput(f"property {key!r} has more than {MAX_VALUE_BYTES:,} bytes")
        if kind is dict:
            for name, item in value.items():  # type: ignore[attr-defined]
                if type(name) is not str:
                    raise InvalidInput(f"property {key!r} holds a dict with a key that is not a str")
                _check_nested(key, item, depth + 1, seen)
        else:
            for item in value:  # type: ignore[attr-defined]
                _check_nested(key, item, depth + 1, seen)
    elif kind is int:
        if not _INT_MIN <= value <= _INT_MAX:  # type: ignore[operator]
            raise InvalidInput(f"property {key!r} holds {shown(value)}, which does not fit in 64 bits")
    elif kind is datetime:
        _check_datetime(key, value)  # type: ignore[arg-type]
    elif kind is str or kind is bytes:
        seen[0] += len(value)  # type: ignore[arg-type]
    elif kind is not bool and kind is not float:
        _refuse(key, value)


def encode_map(properties: dict[int, Any]) -> bytes:
    """The bytes of a property map: tokens to checked values. Empty bytes for an empty one.

    Raises:
        InvalidInput: all together are too large.
    """
    if not properties:
        return b""
    if len(properties) > 1:
        properties = dict(sorted(properties.items()))
    packed: bytes = _pack(properties)
    _check_together(len(packed))
    return packed


def encode_maps(columns: Mapping[int, Sequence[Any]]) -> list[bytes]:
    """As `encode_map` for many maps that have the same keys: tokens to columns of checked values, one at least."""
    parts: list[Iterable[Any]] = []
    for token, column in sorted(columns.items(), key=itemgetter(0)):
        parts += [repeat(token, len(column)), column]
    # A map's bytes are those of the list of its keys and values, but for the header. The lists need no dicts.
    head, skipped = _packer.pack_map_header(len(columns)), len(_packer.pack_array_header(len(parts)))
    packed = [head + row[skipped:] for row in map(_pack, zip(*parts, strict=True))]
    _check_together(max(map(len, packed)))
    return packed


def _check_together(size: int) -> None:
    if size > MAX_PROPERTIES_BYTES:
        raise InvalidInput(f"the properties have {size:,} bytes together; the limit is {MAX_PROPERTIES_BYTES:,}")


def decode_map(packed: bytes) -> dict[int, Any]:
    """A property map from its bytes, as a new dict."""
    if not packed:
        return {}
    decoded: dict[int, Any] = msgpack.unpackb(packed, timestamp=3, strict_map_key=False)
    return decoded


def encode_value(value: Any) -> bytes:
    """The bytes of one checked value, by which values compare."""
    packed: bytes = _pack(_canonical(value))
    return packed


def value_digest(value: Any) -> bytes:
    """The 8 bytes under which the property index has a value. Equal values have equal digests."""
    return encoded_digest(encode_value(value))


def encoded_digest(encoded: bytes) -> bytes:
    """As `value_digest`, of what `encode_value` gave."""
    return xxh3_64_digest(encoded)


def _canonical(value: Any) -> Any:
    """The same value with the keys of its dicts in order, since order is not part of a dict's value."""
    if type(value) is dict:
        return {key: _canonical(value[key]) for key in sorted(value)}
    if type(value) is list:
        return [_canonical(item) for item in value]
    return value
