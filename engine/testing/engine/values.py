"""Keys and values that are more than their size: what means something to a library or a file format, what differs in
little, and what its giver changes afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import SkipTest

from ..support.awkward import awkward_like, changed_a_little
from ..support.contract import Contract, check
from ..support.driver import Driver, driven
from ..support.limits import has_size, sized_like, would_take
from ..support.not_tried import not_tried
from ..support.tried import Tried
from ..support.ways import short
from ..support.workload import KeyValues, Workload, sampled
from .sizes import of_pairs

_LENGTHS = (2, 20, 40, 100, 300, 5000)
_DRAWN, _CHANGED = 30, 8


class ValueChecks(Contract):
    """See the module's text."""

    @check()
    def test_awkward_keys_and_values_are_what_they_were(self, work: Workload) -> None:
        """Texts, bytes and floats that mean something to a library, a file format or a file system (line ends, blanks
        and NULs at an end, numbers, quotes, wildcards, paths, accents that are written in two ways, half characters,
        -0.0) are taken as keys and as values, and then shown as they were by every way of reading, with one digest
        wherever they are read, or they are refused with `InvalidInput`, and the transaction is as it was."""
        pairs = of_pairs(work)
        key, value = pairs.number(0)
        keys, values = awkward_like(key), awkward_like(value)
        if not keys and not values:
            why = f"they are neither bytes nor texts nor floats: {type(key).__name__}, {type(value).__name__}"
            not_tried("awkward keys and values", why)
            raise SkipTest(why)
        with driven(work) as it:
            tried = Tried(it, pairs)
            for odd in keys:
                tried.put(partial(_with_value, pairs, odd), f"the key {odd!a}")
            for odd in values:
                tried.put(partial(_with_key, pairs, odd), f"the value {odd!a}")
            tried.look()
            tried.change()
            tried.look()

    @check()
    def test_what_differs_a_little_has_another_digest(self, work: Workload) -> None:
        """The digest changes if a value is replaced by one that differs in a bit, in its last byte, in its length or in
        its sign, if two keys that are almost the same exchange their values, and if the end of a key becomes the
        beginning of its value. A digest that leaves something out takes a damaged copy for a good one."""
        pairs = of_pairs(work)
        (key, first), (_, second) = pairs.number(0), pairs.number(1)
        seen: dict[bytes, Any] = {}
        with driven(work) as it:
            for value in [*_alike(first), *sampled(pairs.values, _DRAWN)]:
                if _put(it, pairs, {key: value}):
                    other = seen.setdefault(it.digest(), value)
                    assert other == value, (f"a state in which {short(key)} is {short(other)} has the digest of one in "
                                            f"which it is {short(value)}")
            for one, other in pairwise(_alike(pairs.number(2)[0])):
                if _put(it, pairs, {one: first, other: second}):
                    digest = it.digest()
                    _put(it, pairs, {one: second, other: first})
                    assert it.digest() != digest, (f"the values of {short(one)} and {short(other)} changed places, and "
                                                   "the digest is the same")
        moved: dict[bytes, Mapping[Any, Any]] = {}
        for content in _moved(key, first):
            with driven(work) as it:
                if _put(it, pairs, content):
                    before = moved.setdefault(it.digest(), content)
                    assert before is content, f"the states {short(before)} and {short(content)} have one digest"

    @check()
    def test_what_was_given_is_not_changed_from_outside(self, work: Workload) -> None:
        """A value that its giver changes afterwards (a list, a dictionary, a `bytearray`) is committed as it was when
        it was put, and what readers do to a value that they were given changes nothing for others. If values are
        `bytes`, a `bytearray` is tried too: it is refused, or copied."""
        pairs = of_pairs(work)
        values = [value for value in sampled(pairs.values, _DRAWN) if _spoil(copy.deepcopy(value))]
        if type(pairs.number(0)[1]) is bytes:
            values.append(bytearray(b"a value that can be changed"))
        with driven(work) as it:
            taken = [(pairs.number(n)[0], value) for n, value in enumerate(values[:_CHANGED])
                     if would_take(it.engine, pairs.takes, pairs.number(n)[0], copy.deepcopy(value))]
            if not taken:
                raise SkipTest("the engine takes no value that whoever has given it can change")
            for key, value in taken:
                tx, given = it.engine.begin(), copy.deepcopy(value)
                pairs.put(tx, key, given)
                _spoil(given)
                it.apply(it.note(tx.payload(), {**it.models[-1], key: value}))
                tx.close()
                it.compare_state(what=f"a view after {short(value)} was put, and changed by whoever had put it,")
            for checkpointed in (False, True):
                with it.engine.view() as held:
                    for reader in _readers(pairs, [key for key, _ in taken]):
                        with it.engine.view() as view:
                            for got in reader(view):
                                _spoil(got)
                        it.compare(held, "a view after a reader changed what another view had given it")
                    it.compare_state(what="a view after a reader changed what an earlier one had given it")
                if not checkpointed:
                    it.checkpoint()
                    it.reopen()
            it.compare_state(what="a view after readers changed what they had been given, and an opening")


def _with_value(work: KeyValues, key: Any, number: int) -> tuple[Any, Any]:
    return key, work.number(number)[1]


def _with_key(work: KeyValues, value: Any, number: int) -> tuple[Any, Any]:
    return work.number(number)[0], value


def _alike(thing: Any) -> list[Any]:
    """Things of one type, of several lengths, each with some that differ from it in little."""
    some = [sized_like(thing, size) for size in _LENGTHS] if has_size(thing) else [thing]
    return [each for one in some for each in (one, *changed_a_little(one))]


def _moved(key: Any, value: Any) -> list[dict[Any, Any]]:
    """Two contents of one pair, of which key and value are the same if they are written one behind the other."""
    if has_size(key) and type(key) is type(value) and value:
        return [{key: value}, {key + value[:1]: value[1:]}]
    if (type(key) is not int and not has_size(key)) or type(value) is not int:
        return []
    one = b"1" if type(key) is bytes else "1"
    return [{key: 12}, {(10 * key + 1 if type(key) is int else key + one): 2}]


def _put(it: Driver, work: KeyValues, content: Mapping[Any, Any]) -> bool:
    """A transaction that puts some pairs; whether all were taken and something was changed. If not, it is dropped."""
    tx = it.engine.begin()
    try:
        if not all(work.takes(tx, key, value) for key, value in content.items()) or not (payload := tx.payload()):
            return False
        it.apply(it.note(payload, {**it.models[-1], **content}))
        return True
    finally:
        tx.close()


def _spoil(thing: Any) -> bool:
    """Change a thing in place, or what is in it; whether it could be."""
    if isinstance(thing, dict):
        for value in thing.values():
            _spoil(value)
        thing["spoilt"] = "spoilt"
        return True
    if isinstance(thing, list):
        for each in thing:
            _spoil(each)
        thing.append("spoilt")
        return True
    if isinstance(thing, set):
        thing.add("spoilt")
        return True
    if isinstance(thing, bytearray):
        thing[:] = b"spoilt" + thing[::-1]
        return True
    return isinstance(thing, tuple) and sum(map(_spoil, thing)) > 0


def _readers(work: KeyValues, keys: list[Any]) -> list[Callable[[Any], list[Any]]]:
    """Each way of reading values from a view."""
    ways, find = work.ways, work.ways.find
    readers: list[Callable[[Any], list[Any]]] = [lambda view: [value for _, value in ways.items(view)]]
    if find is not None:
        readers.append(lambda view: [find(view, key) for key in keys])
    return readers
