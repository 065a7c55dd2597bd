"""The LDBC ACID suite on the graph store, under real threads; `docs/anomalies.md` says what each anomaly is.

Of each anomaly two tests: the threads find none, whatever is read; and the checker finds it where the store is made
weaker, each step of a transaction by itself and another transaction between two of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from ldbc import (
    Access,
    Accounts,
    Apart,
    Atomicity,
    CircularFlow,
    DirtyWrite,
    Friends,
    Graph,
    Likes,
    Versions,
    abort,
    get,
    put,
    run_threads,
)

from holdfast.engine.builtin.graph import GraphEngine
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

SECONDS = 0.4
WRITERS, READERS = 4, 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Graph]:
    # Checkpoints as often as can be, so that views are of all ages of the durable state.
    settings = Settings(heartbeat_s=0, checkpoint_soft_bytes=2000)
    with Store.open(tmp_path / "graph", GraphEngine, settings=settings) as opened:
        yield opened


@pytest.fixture(params=["synced, read published", "relaxed, read unsynced"])
def access(request: pytest.FixtureRequest, store: Graph) -> Access:
    """Every pair of durability and reading is isolated alike; these are the two ends."""
    return Access(store) if request.param.startswith("synced") else Access(store, "relaxed", unsynced=True)


@pytest.fixture
def weak(store: Graph) -> Apart:
    return Apart(store)


# --- atomicity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rolls_back", [False, True], ids=["commit", "rollback"])
def test_atomicity(access: Access, rolls_back: bool) -> None:
    persons = Atomicity(access.store)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        persons.befriend(access, number, fails=rolls_back and chance.random() < 0.5)

    def read(number: int, chance: random.Random) -> None:
        found.extend(persons.anomalies(access, exact=False))

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]
    assert persons.anomalies(access, exact=True) == []
    assert persons.committed > 1


@pytest.mark.parametrize("rolls_back", [False, True], ids=["commit", "rollback"])
def test_atomicity_can_be_seen_to_fail(weak: Apart, rolls_back: bool) -> None:
    persons = Atomicity(weak.store)
    seen: list[str] = []
    weak.between = lambda: seen.extend(persons.anomalies(weak, exact=False))
    persons.befriend(weak, 1, fails=rolls_back)
    assert seen == ["1 persons, 2 addresses, 0 friends"]
    assert bool(persons.anomalies(weak, exact=True)) == rolls_back


# --- G0 --------------------------------------------------------------------------------------------------------------


def test_g0_dirty_write(access: Access) -> None:
    pair = DirtyWrite(access.store)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        pair.write(access, number)

    def read(number: int, chance: random.Random) -> None:
        found.extend(pair.anomalies(access))

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]
    assert pair.anomalies(access) == []


def test_g0_can_be_seen(weak: Apart) -> None:
    pair = DirtyWrite(weak.store)
    weak.interpose(lambda: pair.write(weak, 2))
    pair.write(weak, 1)
    assert pair.anomalies(weak) == ["[1, 2], [2, 1] and [2, 1] were written in different orders"]


# --- G1a, G1b, G1c ---------------------------------------------------------------------------------------------------


def test_g1a_aborted_read(access: Access) -> None:
    one = Versions(access.store, 1)
    found: list[str] = []
    [person] = one.persons

    def write(number: int, chance: random.Random) -> None:
        assert access.write(put("version", person, 2), abort) == []

    def read(number: int, chance: random.Random) -> None:
        found.extend([f"version {seen}" for seen in access.read(get("version", person)) if seen != 1])

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_g1a_can_be_seen(weak: Apart) -> None:
    [person] = Versions(weak.store, 1).persons
    seen: list[int] = []
    weak.between = lambda: seen.extend(weak.read(get("version", person)))
    weak.write(put("version", person, 2), abort)
    assert seen == [2]


def test_g1b_intermediate_read(access: Access) -> None:
    one = Versions(access.store, 1)
    found: list[str] = []
    [person] = one.persons

    def write(number: int, chance: random.Random) -> None:
        access.write(put("version", person, 2 * number), put("version", person, 2 * number + 1))

    def read(number: int, chance: random.Random) -> None:
        found.extend([f"version {seen}" for seen in access.read(get("version", person)) if seen % 2 == 0])

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_g1b_can_be_seen(weak: Apart) -> None:
    [person] = Versions(weak.store, 1).persons
    seen: list[int] = []
    weak.between = lambda: seen.extend(weak.read(get("version", person)))
    weak.write(put("version", person, 2), put("version", person, 3))
    assert seen == [2]


def test_g1c_circular_information_flow(access: Access) -> None:
    flow = CircularFlow(access.store)

    def write(number: int, chance: random.Random) -> None:
        flow.write(access, number, swapped=chance.random() < 0.5)

    run_threads(SECONDS, *[write] * WRITERS)
    assert flow.anomalies() == []
    assert any(flow.read_from.values()), "no transaction read from another"


def test_g1c_can_be_seen(weak: Apart) -> None:
    flow = CircularFlow(weak.store)
    weak.interpose(lambda: flow.write(weak, 2, swapped=True))
    flow.write(weak, 1, swapped=False)
    assert flow.anomalies()


# --- what one transaction reads twice --------------------------------------------------------------------------------


def test_imp_item_many_preceders(access: Access) -> None:
    one = Versions(access.store, 1)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        one.increment_all(access)

    def read(number: int, chance: random.Random) -> None:
        first, second = access.read(get("version", one.persons[0]), get("version", one.persons[0]))
        found.extend([] if first == second else [f"version {first}, then {second}"])

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_imp_can_be_seen(weak: Apart) -> None:
    one = Versions(weak.store, 1)
    weak.between = lambda: one.increment_all(Access(weak.store))
    assert weak.read(get("version", one.persons[0]), get("version", one.persons[0])) == [1, 2]


def test_pmp_predicate_many_preceders(access: Access) -> None:
    likes = Likes(access.store)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        likes.like(access)

    def read(number: int, chance: random.Random) -> None:
        first, second = access.read(likes.count, likes.count)
        found.extend([] if first == second else [f"{first} likes, then {second}"])

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_pmp_can_be_seen(weak: Apart) -> None:
    likes = Likes(weak.store)
    weak.between = lambda: likes.like(weak)
    assert weak.read(likes.count, likes.count) == [0, 1]


def vanished(first: list[int], second: list[int]) -> list[str]:
    """What the first reading showed of a transaction, the second must show all of."""
    return [f"{first}, then {second}"] if max(first) > min(second) else []


def test_otv_observed_transaction_vanishes(access: Access) -> None:
    ring = Versions(access.store, 4)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        ring.increment_all(access)

    def read(number: int, chance: random.Random) -> None:
        found.extend(vanished(*access.read(ring.around, ring.around)))

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_otv_can_be_seen(weak: Apart) -> None:
    ring = Versions(weak.store, 4)
    seen: list[str] = []
    reader = Access(weak.store)
    weak.between = lambda: seen.extend(vanished(*reader.read(ring.around, ring.around)))
    ring.increment_all(weak)
    assert seen[0] == "[2, 1, 1, 1], then [2, 1, 1, 1]"


def test_fr_fractured_read(access: Access) -> None:
    ring = Versions(access.store, 4)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        ring.increment_all(access)

    def read(number: int, chance: random.Random) -> None:
        first, second = access.read(ring.around, ring.around)
        found.extend([f"{first}, then {second}"] if first != second or len(set(first)) > 1 else [])

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_fr_can_be_seen(weak: Apart) -> None:
    ring = Versions(weak.store, 4)
    weak.between = lambda: ring.increment_all(Access(weak.store))
    assert weak.read(ring.around, ring.around) == [[1] * 4, [2] * 4]


# --- what was read before it is written ------------------------------------------------------------------------------


def test_lu_lost_update(access: Access) -> None:
    friends = Friends(access.store)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        friends.add(access)

    def read(number: int, chance: random.Random) -> None:
        found.extend(friends.anomalies(access))

    calls = run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]
    with access.store.snapshot(at_least=access.store.positions().appended) as view:
        assert view.node(friends.person).properties["friends"] == sum(calls[:WRITERS])


def test_lu_can_be_seen(weak: Apart) -> None:
    friends = Friends(weak.store)
    weak.between = lambda: friends.add(Access(weak.store))
    friends.add(weak)
    assert friends.anomalies(weak) == ["1 friends are counted, and 2 are there"]


def test_ws_write_skew(access: Access) -> None:
    accounts = Accounts(access.store, 3)
    found: list[str] = []

    def write(number: int, chance: random.Random) -> None:
        pair = chance.randrange(3)
        if chance.random() < 0.3:
            accounts.refill(access, pair)
        accounts.take(access, pair, chance.randrange(2))

    def read(number: int, chance: random.Random) -> None:
        found.extend(accounts.anomalies(access))

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)
    assert not found, found[:3]


def test_ws_can_be_seen(weak: Apart) -> None:
    accounts = Accounts(weak.store, 1)
    weak.between = lambda: accounts.take(Access(weak.store), 0, 1)
    accounts.take(weak, 0, 0)
    assert accounts.anomalies(weak) == ["pair 0 comes to -50"]


# --- what the page says besides --------------------------------------------------------------------------------------


def test_a_snapshot_shows_what_was_acknowledged_before_it(store: Graph) -> None:
    """Strict: after a commit has returned, every snapshot shows it, in whichever thread."""
    one = Versions(store, 1)
    returned = [1]

    def write(number: int, chance: random.Random) -> None:
        one.increment_all(Access(store))
        with store.snapshot() as view:
            returned.append(one.around(view)[0])

    def read(number: int, chance: random.Random) -> None:
        before = returned[-1]
        with store.snapshot() as view:
            assert one.around(view)[0] >= before

    run_threads(SECONDS, write, *[read] * READERS)


def test_a_later_snapshot_is_never_of_an_earlier_state(access: Access) -> None:
    one = Versions(access.store, 1)

    def write(number: int, chance: random.Random) -> None:
        one.increment_all(access)

    def read(number: int, chance: random.Random) -> None:
        [first], [second] = access.read(one.around)[0], access.read(one.around)[0]
        assert first <= second

    run_threads(SECONDS, *[write] * WRITERS, *[read] * READERS)


def test_at_least_waits_for_what_was_not_waited_for(store: Graph) -> None:
    [person] = Versions(store, 1).persons
    for version in range(2, 30):
        with store.transaction("relaxed" if version % 2 else "pipelined") as tx:
            tx.set_properties(person, version=version)
        assert tx.txid is not None
        with store.snapshot(at_least=tx.txid) as view:
            assert view.node(person).properties["version"] >= version
