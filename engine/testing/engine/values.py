"""Keys and values that are more than their size: what means something to a library or a file format, what differs in
little, what is of another type, and what its giver changes afterwards."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import SkipTest

from ..support.alike import alike
from ..support.awkward import awkward_like, changed_a_little, equal_ones
from ..support.contract import Contract, check
from ..support.driver import Driver, driven
from ..support.limits import has_size, sized_like, would_take
from ..support.not_tried import not_tried
from ..support.tried import Tried
from ..support.ways import short
from ..support.workload import KeyValues, Workload, sampled
from .sizes import of_pairs

_LENGTHS = (2, 20, 40, 100, 300, 5000)
_DRAWN, _CHANGED, _SAMPLED = 30, 8, 100


class ValueChecks(Contract):
    """See the module's text."""

    @check()
    def test_awkward_keys_and_values_are_what_they_were(self, work: Workload) -> None:
        """Texts, bytes and floats that mean something to a library, a file format or a file system (line ends, blanks
        and NULs at an end, numbers, quotes, wildcards, paths, accents that are written in two ways, half characters,
        -0.0) are taken as keys and as values, and then shown as they were by every way of reading, with one digest
        wherever they are read, or they are refused with `InvalidInput`, and the transaction is as it was. If `values=`
        draws values that `==` takes for one another (True and 1, 1 and 1.0, 0.0 and -0.0), each is put over the other.
        It is shown with its own type and sign then, if it is so where nothing was before."""
        pairs = of_pairs(work)
        key, value = pairs.number(0)
        keys, values, equal = awkward_like(key), awkward_like(value), equal_ones(sampled(pairs.values, _SAMPLED))
        if not keys and not values and not equal:
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
        if equal:
            _put_over(work, pairs, equal)

    @check()
    def test_keys_and_values_of_other_types(self, work: Workload) -> None:
        """A key or a value of a type that the workload does not draw (None, a number, a text, bytes, a tuple, a list, a
        dictionary whose keys are numbers, any object) raises an error when it is put, and changes nothing. Or it is
        taken wholly: it is applied, checkpointed and opened again, is shown as the same everywhere, and transactions
        go on. An error that comes only when the transaction is logged makes the store unusable, at every opening."""
        pairs = of_pairs(work)
        taken: list[tuple[str, Callable[[], tuple[Any, Any]]]] = []
        with driven(work) as it:
            _ordinary(it)
            for what, pair in _of_other_types(pairs):
                with closing(it.engine.begin()) as tx:
                    work.run(tx, it.models[-1].copy(), work.numbered(100))
                    before = tx.payload()
                    try:
                        pairs.put(tx, *pair())
                    except Exception as error:
                        refused = f"put() of {what} raises {type(error).__name__}"
                        assert tx.payload() == before, f"{refused}, and the transaction is another one than before"
                        continue
                    taken.append((what, pair))
            it.commit(work.numbered(100))
            it.compare_state(what="a view after keys and values of other types were refused, or dropped,")
        for what, pair in taken:
            with driven(work) as it:
                _is_whole(it, pairs, what, pair)

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
        it was put, and what readers do to a value that they were given, by a view or by a transaction, changes nothing
        for others. If values are `bytes`, a `bytearray` is tried too: it is refused, or copied."""
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
                after = "by whoever had put it"
                if pairs.get is not None:
                    _spoil(pairs.get(tx, key))
                    after += ", or got it from the transaction"
                it.apply(it.note(tx.payload(), {**it.models[-1], key: value}))
                tx.close()
                it.compare_state(what=f"a view after {short(value)} was put, and changed {after},")
            for checkpointed in (False, True):
                with it.engine.view() as held:
                    for reader in _readers(pairs, [key for key, _ in taken]):
                        with it.engine.view() as view:
                            for got in reader(view):
                                _spoil(got)
                        it.compare(held, "a view after a reader changed what another view had given it")
                    it.compare_state(what="a view after a reader changed what an earlier one had given it")
                    if pairs.get is not None:
                        tx = it.engine.begin()
                        for key, _ in taken:
                            _spoil(pairs.get(tx, key))
                        payload = tx.payload()
                        tx.close()
                        said = "what a transaction's get() had given was changed by its reader"
                        assert not payload, f"{said}, and the transaction has a payload"
                        it.compare(held, f"an older view after {said}, and the transaction was dropped,")
                        it.compare_state(what=f"a view after {said}, and the transaction was dropped,")
                if not checkpointed:
                    it.checkpoint()
                    it.reopen()
            it.compare_state(what="a view after readers changed what they had been given, and an opening")


class _Thing:
    """Something of a class of the application's own."""

    def __eq__(self, other: object) -> bool:
        return type(other) is _Thing

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "an object of a class"


def _of_other_types(work: KeyValues) -> Iterator[tuple[str, Callable[[], tuple[Any, Any]]]]:
    """Keys, each with an ordinary value, and values, each with an ordinary key: how they are called, and what makes
    them, because some can be changed."""
    key, value = work.number(200)
    of: dict[str, tuple[set[type], Callable[[Any], tuple[Any, Any]]]] = {
        "key": ({type(each) for each in (key, *sampled(work.keys, _DRAWN))}, lambda odd: (odd, value)),
        "value": ({type(each) for each in (value, *sampled(work.values, _DRAWN))}, lambda odd: (key, odd))}
    for name, (drawn, pair) in of.items():
        for odd in (None, 7, 1.5, True, "7", b"7", ("7", 7), ["7", 7], {7: 7}, _Thing()):
            if type(odd) not in drawn:
                yield f"the {name} {odd!r}", partial(lambda odd, pair: pair(copy.deepcopy(odd)), odd, pair)


def _ordinary(it: Driver) -> None:
    it.commit([operation for n in range(3) for operation in it.work.numbered(n)])


def _is_whole(it: Driver, work: KeyValues, what: str, pair: Callable[[], tuple[Any, Any]]) -> None:
    """Commit what was taken in a transaction before. It may come back as another type, but as the same everywhere."""
    doing = ""
    shown: list[str] = []

    def look() -> list[str]:
        with it.engine.view() as view:
            found = list(view.check())
            assert not found, f"put() took {what}, and after {doing} the engine's own check finds {found[:3]}"
            return [*sorted(f"{key!r} is {value!r}" for key, value in work.ways.items(view)), view.digest().hex()]

    _ordinary(it)
    try:
        doing = "payload()"
        with closing(it.engine.begin()) as tx:
            work.put(tx, *pair())
            if not (payload := tx.payload()):  # it means nothing, as None may
                return
        for doing, do in ((f"apply() of a transaction with {what}", lambda: it.apply(it.note(payload, {}))),
                          ("a checkpoint", it.checkpoint), ("an opening", it.reopen),
                          ("another transaction", lambda: it.commit(it.work.numbered(100))),
                          ("a checkpoint of it", it.checkpoint), ("another opening", it.reopen)):
            do()
            before, shown = shown, look()
            if before and doing != "another transaction":
                where = next((f"{a}, and not {b}" for a, b in zip(shown, before, strict=False) if a != b), "more")
                assert shown == before, f"put() took {what}, and after {doing} a view shows something else: {where}"
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"put() took {what}, and {doing} raises {type(error).__name__}: {error}. Once a "
                             "transaction is logged, each opening meets the error again, so put() must refuse what "
                             "cannot be kept: ask for the type, type(key) is bytes for example") from error


def _put_over(work: Workload, pairs: KeyValues, equal: Sequence[tuple[Any, Any]]) -> None:
    """Put values over those that == takes for them, in one transaction and in two."""
    with driven(work) as it:
        numbers = itertools.count()
        puts: dict[Any, tuple[Any, str]] = {}
        for one, other in (both for pair in _told_apart(work, pairs, equal) for both in (pair, pair[::-1])):
            put = f"{short(other)} was put over {short(one)}"
            for steps in ([[one], [other]], [[one, other]]):
                key, _ = pairs.number(next(numbers))
                for values in steps:
                    with closing(it.engine.begin()) as tx:
                        if not all(pairs.takes(tx, key, value) for value in values):
                            break
                        payload = tx.payload()
                        assert payload, f"{put}, and the transaction logs nothing: == takes one for the other"
                        puts[key] = values[-1], put
                        it.apply(it.note(payload, {**it.models[-1], key: values[-1]}))
                        if pairs.get is not None:
                            found = pairs.get(tx, key)
                            same = alike(found, values[-1], exactly=True)
                            assert same, f"{put}, and get() gives {short(found)}: == takes one for the other"
        _shows_exactly(it, puts, "a view")
        it.checkpoint()
        it.reopen()
        _shows_exactly(it, puts, "a view after a checkpoint and an opening")


def _told_apart(work: Workload, pairs: KeyValues, equal: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Those of pairs of equal values of which both are shown exactly as they were put, each under a key of its own."""
    with driven(work) as it:
        puts = {pairs.number(n)[0]: value for n, value in enumerate(value for pair in equal for value in pair)}
        for key, value in puts.items():
            _put(it, pairs, {key: value})
        it.checkpoint()
        it.reopen()
        it.compare_state(what="a view after equal values of several types were put, a checkpoint and an opening")
        with it.engine.view() as view:
            content = it.work.content(view)
    kept = [key in content and alike(content[key], value, exactly=True) for key, value in puts.items()]
    told = [pair for n, pair in enumerate(equal) if all(kept[2 * n : 2 * n + 2])]
    if one := next((f"{short(a)} and {short(b)}" for a, b in equal if (a, b) not in told), None):
        not_tried(f"values that are equal, such as {one}, one put over the other",
                  "the engine refuses one of them, or makes one of them the other")
    return told


def _shows_exactly(it: Driver, puts: Mapping[Any, tuple[Any, str]], what: str) -> None:
    it.compare_state(what=f"{what}, after values were put over equal ones of other types,")
    with it.engine.view() as view:
        content = it.work.content(view)
    for key, (value, put) in puts.items():
        same = alike(content[key], value, exactly=True)
        assert same, f"{put}, and {what} shows {short(content[key])}: == takes one for the other"


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
