"""The ways of reading a view of keys and values. All of them must show one content.

A view is read by every way that the author has named, each time that its content is asked for: all of it, and at probes
that are chosen from the content, the same ones each time. The probes are keys that are there, keys beside them that are
not, prefixes, and ends of ranges.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...contract.view import View
from ...errors import InvalidInput
from .alike import alike
from .neighbours import begins, has_prefixes, neighbours

_PROBED = 5
"""Keys of a content that are probed, the first and the last among them."""
Pairs = list[tuple[Any, Any]]


def short(thing: Any) -> str:
    """A key or a value in a message. Of a long one, its beginning, its end and its length."""
    if isinstance(thing, bytes | str) and len(thing) > 40:
        return f"{thing[:16]!r} … {thing[-16:]!r} (of {len(thing):,})"
    return f"{thing!r:.80}"


@dataclass(frozen=True, slots=True)
class Ways:
    """
    Attributes:
        items: gives all keys and values of a view, in any order.
        find: gives the value of a key, or None.
        scan: gives the pairs whose key begins with a prefix, in any order.
        range: gives the pairs with low <= key < high, by ascending keys.
        count: gives the number of keys.
    """

    items: Callable[[Any], Iterable[tuple[Any, Any]]]
    find: Callable[[Any, Any], Any] | None
    scan: Callable[[Any, Any], Iterable[tuple[Any, Any]]] | None
    range: Callable[[Any, Any, Any], Iterable[tuple[Any, Any]]] | None
    count: Callable[[Any], int] | None

    def content(self, view: View, *, every_key: bool = False) -> dict[Any, Any]:
        """All that a view shows. Raises `AssertionError` if two ways of reading it differ, at a few keys or at every
        key."""
        items = list(self.items(view))
        content = dict(items)
        if len(content) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for n, key in enumerate(keys) if key in keys[:n])
            raise AssertionError(f"items() gives a key twice: {short(twice)}")
        if self.count is not None:
            counted = self.count(view)
            assert counted == len(content), f"count() is {counted}, and items() gives {len(content)}"
        if self.find is not None or self.scan is not None or self.range is not None:
            pairs = sorted(content.items(), key=lambda pair: pair[0])
            keys = [key for key, _ in pairs]
            probed = keys if every_key else _probed(keys)
            self._look_up(view, content, probed, len(keys) if every_key else 2)
            self._scan_all(view, pairs, probed)
            self._walk_ranges(view, pairs, probed)
        return content

    def _look_up(self, view: View, content: Mapping[Any, Any], probed: Sequence[Any], beside: int) -> None:
        if self.find is None:
            return
        for key in probed:
            found = self.find(view, key)
            assert alike(found, content[key]), (
                f"find() of {short(key)} gives {short(found)}, and items() shows it with {short(content[key])}")
        for near in (near for key in probed[-beside:] for near in neighbours(key) if near not in content):
            try:
                found = self.find(view, near)
            except InvalidInput:  # a key that the engine does not take
                continue
            assert found is None, f"find() of {short(near)} gives {short(found)}, and items() does not show this key"

    def _scan_all(self, view: View, pairs: Pairs, probed: Sequence[Any]) -> None:
        if self.scan is None or not probed or not has_prefixes(probed[0]):
            return
        for prefix in _prefixes(probed):
            expected = {key: value for key, value in pairs if begins(key, prefix)}
            try:
                found = list(self.scan(view, prefix))
            except InvalidInput:
                if prefix in expected:  # a key that is there
                    raise
                continue
            _same(f"scan() of the prefix {short(prefix)}", found, expected)

    def _walk_ranges(self, view: View, pairs: Pairs, probed: Sequence[Any]) -> None:
        if self.range is None or not probed:
            return
        keys = [key for key, _ in pairs]
        after = neighbours(keys[-1])
        beyond = max(after, default=keys[-1])
        ends = [(keys[0], beyond), (keys[0], keys[-1]), (keys[0], keys[0]), (keys[-1], beyond), (beyond, keys[0]),
                *pairwise(probed)]
        ends += [(near, beyond) for near in after[:2]]
        for low, high in dict.fromkeys(ends):
            expected = pairs[bisect_left(keys, low) : bisect_left(keys, high)]
            what = f"range() from {short(low)} to {short(high)}"
            try:
                found = list(self.range(view, low, high))
            except InvalidInput:
                if low < high and low in keys and high in keys:
                    raise
                continue
            _same(what, found, dict(expected))
            assert [key for key, _ in found] == [key for key, _ in expected], f"{what} is not by ascending keys"

    def walks(self, view: View) -> dict[str, Iterator[Any]]:
        """Each way that gives a whole content piece by piece, begun."""
        walks: dict[str, Iterator[Any]] = {"items()": iter(self.items(view))}
        keys = sorted(key for key, _ in self.items(view))
        if self.scan is not None and keys and has_prefixes(keys[0]):
            walks["scan()"] = iter(self.scan(view, _common(keys[0], keys[-1])))
        if self.range is not None and keys:
            walks["range()"] = iter(self.range(view, keys[0], max(neighbours(keys[-1]), default=keys[-1])))
        return walks


def _probed(keys: Sequence[Any]) -> list[Any]:
    """The first and the last key, and some between them, which depend on how many there are."""
    if len(keys) <= _PROBED:
        return list(keys)
    between = sorted({1 + (len(keys) * n * 7919) % (len(keys) - 2) for n in range(1, _PROBED - 1)})
    return [keys[0], *(keys[n] for n in between), keys[-1]]


def _prefixes(probed: Sequence[Any]) -> list[Any]:
    """The empty prefix, keys, what they begin with, and what only few can begin with."""
    empty = probed[0][:0]
    found = [empty, *(key for key in probed), *(key[:1] for key in probed), probed[-1][: len(probed[-1]) // 2]]
    if type(empty) is bytes:
        found += [b"\xff", probed[-1] + b"\xff", b"\xff\xff"]
    elif type(empty) is str:
        found += ["\uffff", probed[-1] + "\uffff"]
    return list(dict.fromkeys(found))


def _common(one: Any, other: Any) -> Any:
    """The longest prefix of two keys."""
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _same(what: str, found: Pairs, expected: Mapping[Any, Any]) -> None:
    shown = dict(found)
    assert len(shown) == len(found), f"{what} gives a key twice"
    missing = [key for key in expected if key not in shown]
    assert not missing, f"{what} leaves out {short(missing[0])}, which items() shows"
    more = [key for key in shown if key not in expected]
    assert not more, f"{what} gives {short(more[0])}, which is not in it"
    for key, value in expected.items():
        assert alike(shown[key], value), (
            f"{what} gives {short(key)} with {short(shown[key])}, and items() with {short(value)}")
