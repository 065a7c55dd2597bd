"""Texts, bytes and floats that mean something to somebody: to a library, a file format, a file system, a language."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from .alike import alike

TEXTS = (
    "", " ", "a ", " a", "\t", "a\n", "a\r\n", "a\r", "\r\nb", "a\x0bb", "a\x0c", "a\x1cb", "a\x85b", "a\u2028b",
    "a\x00", "a\x00b", "0", "00", "01", "1", "1.0", "1e0", "+1", "-1", "0x1", "inf", "nan", "1_000", "9" * 25, "true",
    "None", "null", "'", '"', "a'b", 'a"b', "`", "\\", "a\\", "\\n", "\\x00", "%", "%s", "a%", "_", "a_c", "abc", "*",
    "a*", "?", "[a]", "{}", "{0}", "$a", "a,b", "a;b", "a\tb", "a=b", "a:b", "#a", "--", "-a", "a|b", "<a>", "&amp;",
    ".", "..", "/", "a/b", "../a", "/a", "a/../b", "a/", "a.tmp", "CON", "~", "\xe9", "e\u0301", "\xc9", "\xdf", "ss",
    "SS", "\u0130", "i", "I", "\u0131", "\ufb01", "fi", "\xc5", "\u212b", "\u03a9", "\u2126", "\ufeffa", "a\u200b",
    "a\xad", "\U0001f600", "\uffff", "\U0010ffff", "\ud800", "\udc80a", "\u6f22")
"""No two are equal. Whoever folds, strips, normalises, quotes or translates them takes some for others."""
BYTES = (
    b"", b"\0", b"a\0", b"a\0\0", b"\0a", b"a ", b" a", b"a\n", b"a\r\n", b"\r", b"\n", b"\x1a", b"\xff", b"\xff\xff",
    b"\x80", b"\x7f", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbfa", b"1", b"01", b"1.0", b"a'b", b'a"b', b"\\", b"%",
    b"_", b"*", b"/", b"..", b"a/b", b",", b"a\tb", b"\xc0", b"\xc1", b"None", b"b'a'", bytes(range(256)))


FLOATS = (0.0, -0.0, 0.1, 1e-9, 5e-324, 2.0**53 + 2, 1e16, 1.7976931348623157e308, float("inf"), float("-inf"))
"""Not NaN, which is not equal to itself."""


def awkward_like(thing: Any) -> tuple[Any, ...]:
    """Awkward things of this type; none if it is neither bytes nor a text nor a float."""
    known: dict[type, tuple[Any, ...]] = {bytes: BYTES, str: TEXTS, float: FLOATS}
    return known.get(type(thing), ())


def changed_a_little(thing: Any) -> list[Any]:
    """Others of its type that differ in little from a number, from bytes or from a text. None of any other type."""
    if type(thing) is int:
        return [-thing - 1, *(thing + (1 << bits) for bits in (0, 4, 8, 16, 32))]
    if type(thing) is float:
        return [-thing, thing + 1, thing + 2**-20, thing / 3]
    if type(thing) is bytes:
        return [thing[:-1] + b"~", b"~" + thing[1:], thing[:-1], thing + b"\0", b"\0" + thing, thing[::-1], thing * 2]
    if type(thing) is str:
        return [thing[:-1] + "~", "~" + thing[1:], thing[:-1], thing + "\0", "0" + thing, thing[::-1], thing * 2]
    return []


_PAIRS = 12
_Place = tuple[Any, ...]
"""Where in a value something is: the types and the keys of what it is in."""


def equal_ones(drawn: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Pairs of values that == takes for one another, and that differ in the type of a number or in the sign of a zero.
    They are of types that were drawn in the same place, so that nobody has to keep what they never promised to."""
    values = list(drawn)
    kinds: dict[_Place, dict[type, None]] = {}
    for value in values:
        for place, number in _numbers(value, ()):
            kinds.setdefault(place, {})[type(number)] = None
    signed = {place for value in values for place, number in _numbers(value, ()) if _is_negative(number)}
    found: dict[Any, tuple[Any, Any]] = {}
    for value in values:
        for place, number in _numbers(value, ()):
            for one, other in _alternatives(number, kinds[place], place in signed):
                pair = _with_number(value, place, number, one), _with_number(value, place, number, other)
                if not alike(*pair, exactly=True):
                    found.setdefault((place, repr(one), type(other)), pair)
    return list(found.values())[:_PAIRS]


def _is_negative(number: Any) -> bool:
    return type(number) is float and math.copysign(1, number) < 0


def _numbers(thing: Any, place: _Place) -> Iterator[tuple[_Place, Any]]:
    """The numbers in a value, and where they are."""
    if type(thing) in (bool, int, float):
        yield place, thing
    elif type(thing) in (list, tuple):
        for each in thing:
            yield from _numbers(each, (*place, type(thing)))
    elif type(thing) is dict:
        for key, each in thing.items():
            yield from _numbers(each, (*place, dict, key))


def _alternatives(number: Any, kinds: Iterable[type], signed: bool) -> Iterator[tuple[Any, Any]]:
    for kind in kinds:
        if kind is not type(number) and abs(number) < 1 << 53 and kind(number) == number:
            yield number, kind(number)
    if signed and type(number) is float:
        yield 0.0, -0.0


def _with_number(thing: Any, place: _Place, number: Any, other: Any) -> Any:
    """A value with another number in the place of the first such number that is there."""
    if not place:
        return other if type(thing) is type(number) and thing == number else thing
    if type(thing) is not place[0]:
        return thing
    if place[0] is dict:
        _, key, *rest = place
        changed = _with_number(thing[key], tuple(rest), number, other) if key in thing else None
        return thing if key not in thing or changed is thing[key] else {**thing, key: changed}
    for n, part in enumerate(thing):
        changed = _with_number(part, place[1:], number, other)
        if changed is not part:
            return type(thing)([*thing[:n], changed, *thing[n + 1 :]])
    return thing
