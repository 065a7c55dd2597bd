"""The workload is tried before the engine: each slip of its author is said in one sentence, and once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import pytest
from hypothesis import strategies as st
from workloads import WORKLOADS, JournalWorkload, keyed
from zoo_sizes import Ordered, OrderedView, Roomy, ordered

from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import Context, Engine
from holdfast.engine.contract.options import Option
from holdfast.engine.errors import NotFound, SettingError
from holdfast.engine.testing import Contract, KeyValues, Operation, Workload, check, check_engine
from holdfast.engine.testing.support.driver import driven
from holdfast.engine.testing.support.limits import an_engine, filled, rooms, would_take
from holdfast.engine.testing.support.neighbours import neighbours
from holdfast.engine.testing.support.not_tried import not_tried, untried
from holdfast.engine.testing.support.trial import tried
from holdfast.engine.testing.support.ways import Ways


def made(engine: Any = MemoryEngine, **more: Any) -> Workload:
    return KeyValues(engine, **{"put": MemoryTransaction.put, "items": MemoryView.items, "tiny": {}, **more})


def wrong(work: Workload) -> SettingError:
    error = tried(object(), work)
    assert error is not None, "nothing is wrong with it"
    return error


class OpensNothing(MemoryEngine):
    @classmethod
    def open(cls, directory: Path, context: Context, **how: Any) -> Any:
        super().open(directory, context, **how)


class Unfinished(Engine[MemoryTransaction, MemoryView]):
    name = "unfinished"


class Small(MemoryEngine):
    options: ClassVar[dict[str, Option]] = {"bytes": Option(4096, "bytes in a file")}


class Plain:
    """A value without `==`."""


def missing(where: Any, key: bytes) -> Any:
    raise NotFound("there is no such key")


@pytest.mark.parametrize(("work", "said"), [
    (made(number=lambda n: (b"number %d" % (n % 7), b"")), r"number\(0\) and number\(7\) give the same key"),
    (made(number=lambda n: b"number %d" % n), r"number\(0\) gives b'number 0', which is not a pair"),
    (made(number=lambda n: (b"%d" % n, object())), r"number\(0\) gives another key or value"),
    (made(number=lambda n: ([n], b"")), r"number\(0\) gives the key \[0\], which cannot be hashed"),
    (made(number=lambda n, m: (b"", b"")), r"number= cannot be called as number\(n\)"),
    (made(keys=st.integers(0, 99).map(lambda n: b"%d" % n), number=lambda n: (b"%d" % n, b"")),
     "which is the key of a number"),
    (made(keys=st.text()), r"the keys of keys= and number= cannot be sorted together"),
    (made(keys=st.just(b"k")), "keys= draws only the key b'k'"),
    (made(keys=st.lists(st.integers())), "keys= gives the key .*, which cannot be hashed"),
    (made(keys=st.integers(0, 9).map(lambda n: 1 // n)), "keys= of the workload raises ZeroDivisionError"),
    (made(values=st.just(float("nan"))), "values= draws nan, which is not equal to a copy"),
    (made(values=st.builds(Plain)), "values= draws .*Plain.*, which is not equal to a copy"),
    (made(put=lambda tx, key: None), r"put= cannot be called as put\(transaction, key, value\)"),
    (made(get=lambda tx: None), r"get= cannot be called as get\(transaction, key\)"),
    (made(get=missing), "get= raises NotFound for a key that is not there, and must give None"),
    (made(find=missing), "find= raises NotFound for a key that is not there, and must give None"),
    (made(range=lambda view, low: ()), r"range= cannot be called as range\(view, low, high\)"),
    (made(scan=lambda view, prefix: view.items(), keys=st.integers(), number=lambda n: ((1 << 70) + n, b"")),
     "a key that is a int has no prefixes"),
    (made(count=lambda view: None), "count= gives None, which is not a number"),
    (made(items=lambda view: list(dict(view.items()))), "items= gives b'number 0', which is not a pair"),
    (made(items=lambda view: None), "items= gives None, which cannot be iterated over"),
    (made(refused=[b"k"]), r"refused\[0\]= is b'k', which cannot be called"),
    (made(options={"pages": 1}), "options= of the workload: unknown engine option"),
    (made(Small, tiny={"bytes": "few"}), "tiny= of the workload: the engine option bytes='few'"),
    (made(OpensNothing), "OpensNothing.open returns None, and must return the engine"),
    (made(Unfinished), "Unfinished does not define apply, begin, checkpoint"),
    (made(MemoryView), "which is not a subclass of Engine"),
    (made(MemoryEngine(Path(), Context(), {}, None)), "which is not a subclass of Engine"),  # type: ignore[arg-type]
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_slip_is_said_in_one_sentence(work: Workload, said: str) -> None:
    error = wrong(work)
    with pytest.raises(SettingError, match=said):
        raise error
    assert error.hint
    assert "\n" not in error.message


class Forgetful(JournalWorkload):
    def numbered(self, number: int) -> list[Operation]:
        return [("append", b"a line")]


class NoModel(JournalWorkload):
    def new_model(self) -> Any:
        return ()


@pytest.mark.parametrize(("work", "said"), [(Forgetful(), r"numbered\(0\) and numbered\(1\) give the same"),
                                            (NoModel(), "has no copy")])
def test_a_slip_in_a_workload_of_one_s_own(work: Workload, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        raise wrong(work)


def test_the_kit_s_own_workloads_stand_their_trial() -> None:
    for make in WORKLOADS.values():
        assert tried(make, make()) is None


class Broken(MemoryEngine):
    def apply(self, records: Any) -> None:
        raise RuntimeError("it does not apply anything")


def test_what_the_engine_does_wrong_is_left_to_the_checks() -> None:
    assert tried(object(), made(Broken)) is None


class Three(Contract):
    ran: ClassVar[list[str]] = []

    @check()
    def test_one(self, work: Workload) -> None:
        """One."""
        self.ran.append("one")

    @check()
    def test_two(self, work: Workload) -> None:
        """Two."""
        self.ran.append("two")


def test_it_is_said_once_and_nothing_is_run() -> None:
    slip = made(keys=st.just(b"k"))
    suite = type("Suite", (Three,), {"workload": slip})()
    with pytest.raises(SettingError, match="keys= draws only"):
        suite.test_one()
    for again in (suite.test_one, suite.test_two):
        with pytest.raises(SkipTest, match="the workload is not right: keys= draws only"):
            again()
    for _ in range(2):
        with pytest.raises(SettingError, match="keys= draws only"):
            check_engine(lambda: made(keys=st.just(b"k")), [Three])
    assert not Three.ran


def test_what_cannot_be_tried_is_told() -> None:
    untried()
    work = KeyValues(MemoryEngine, put=MemoryTransaction.put, items=MemoryView.items,
                     keys=st.sampled_from((b"a", b"b")), number=lambda n: (b"number %d" % n, b""))
    report = check_engine(work, [Three])
    assert report.ok
    told = str(report)
    assert "NOT TRIED: what the engine does seldom" in told
    assert "it draws 2 different ones, and 50 would do" in told
    assert not check_engine(made(), [Three]).untried
    not_tried("something", "a reason")
    not_tried("something", "a reason")
    assert [(noted.what, noted.why) for noted in untried()] == [("something", "a reason")]
    assert not untried()


# --- options, and what is taken ---------------------------------------------------------------------------------------


def test_tiny_options_come_over_the_others_except_at_full_size() -> None:
    work = made(Small, options={"bytes": 100}, tiny={"bytes": 10})
    assert work.opened_with == {"bytes": 10}
    assert work.at_full_size().opened_with == {"bytes": 100}
    assert work.opened_with == {"bytes": 10}
    with driven(work) as it:
        assert it.context.options == {"bytes": 10}


def test_how_much_is_taken_is_found_by_asking() -> None:
    memory, roomy = made(), keyed(Roomy)
    assert isinstance(memory, KeyValues)
    assert isinstance(roomy, KeyValues)
    with an_engine(MemoryEngine, {}) as engine:
        assert rooms(engine, memory.takes, *memory.number(0)) == (1000, 60_000)
        assert would_take(engine, memory.takes, b"k", b"")
        assert not would_take(engine, memory.takes, b"", b"")
    with an_engine(Roomy, {}) as engine:
        assert rooms(engine, roomy.takes, *roomy.number(0)) == (60_000, 60_000)
    assert filled(5, 100, None) == 5  # type: ignore[arg-type]
    for size, seed in ((100_000, 1), (100_000, 2), (2_000_000, 1)):
        operations = memory.sized(size, seed)
        assert operations
        assert size <= sum(len(key) + len(value) for _, key, value in operations) < 2 * size + 200_000
    assert memory.sized(100_000, 1) == memory.sized(100_000, 1) != memory.sized(100_000, 2)


def test_what_an_author_draws_is_to_be_taken_and_what_the_kit_adds_may_be_refused() -> None:
    """The memory engine refuses the empty key."""
    from holdfast.engine.errors import InvalidInput

    with driven(made()) as it:
        it.commit([("try", b"", b"1"), ("try", b"a", b"2")])
        assert it.models[-1] == {b"a": b"2"}
        with pytest.raises(InvalidInput):
            it.commit([("put", b"", b"1")])
        it.compare_state()


def test_neighbours() -> None:
    assert {b"k\0", b"", b"k\xff"} <= set(neighbours(b"k"))
    assert {"k\0", "", "k ", "K"} <= set(neighbours("k"))
    assert (1, "K") in neighbours((1, "k"))
    assert neighbours(5) == []


# --- ways of reading --------------------------------------------------------------------------------------------------


def ways(**wrong_way: Any) -> Ways:
    given: dict[str, Any] = {"items": OrderedView.items, "find": OrderedView.get, "scan": OrderedView.scan,
                             "range": OrderedView.range, "count": OrderedView.__len__, **wrong_way}
    return Ways(**given)


VIEW = OrderedView({b"a": b"1", b"a\0": b"2", b"b": b"3", b"b\xff\xff": b"4"}, 1)


def _twice(view: OrderedView, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    yield from view.scan(prefix)
    yield from view.scan(prefix)


def test_all_ways_show_one_content() -> None:
    assert ways().content(VIEW) == dict(VIEW.items()) == ways().content(VIEW, every_key=True)
    assert ways().content(OrderedView({}, 0)) == {}
    for way, walk in ways().walks(VIEW).items():
        assert dict(walk) == dict(VIEW.items()), way


@pytest.mark.parametrize(("way", "said"), [
    ({"count": lambda view: 3}, r"count\(\) is 3, and items\(\) gives 4"),
    ({"items": lambda view: [*view.items(), (b"a", b"1")]}, r"items\(\) gives a key twice: b'a'"),
    ({"find": lambda view, key: view.get(key[:1])}, r"find\(\) of b'a\\x00' gives b'1', and items\(\)"),
    ({"find": lambda view, key: view.get(key) or b""}, "does not show this key"),
    ({"scan": lambda view, prefix: list(view.scan(prefix))[:-1]}, r"scan\(\) of the prefix b'' leaves out"),
    ({"scan": _twice}, "gives a key twice"),
    ({"scan": lambda view, prefix: view.items()}, "which is not in it"),
    ({"range": lambda view, low, high: list(view.range(low, high))[::-1]}, "is not by ascending keys"),
    ({"range": lambda view, low, high: view.range(low, high + b"\0")}, "which is not in it"),
    ({"range": lambda view, low, high: [(key, b"") for key, _ in view.range(low, high)]}, r"gives b'a' with b''"),
], ids=lambda given: given if isinstance(given, str) else str(*given))
def test_two_ways_that_differ(way: dict[str, Any], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        ways(**way).content(VIEW)


def test_an_engine_with_all_ways_passes() -> None:
    work = ordered()
    assert tried(ordered, work) is None
    assert isinstance(work, KeyValues)
    with driven(work) as it:
        it.commit([("try", key, b"1") for key in VIEW._state])
        it.compare_state()
    assert keyed(Ordered).engine is Ordered
