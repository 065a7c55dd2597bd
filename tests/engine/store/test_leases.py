"""Leases: the rules against a plain model, and the table with its lock and clock."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast.engine.env import Clock, Env
from holdfast.engine.env.rate_limited_log import EVERY_S
from holdfast.engine.errors import InvalidInput, LeaseExpired, StoreClosed, TooManyLeases
from holdfast.engine.store.leases import Lease, Leases, LeaseTable

MAX, TTL, AGE = 3, 10.0, 50.0


class FakeImage:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class ManualClock(Clock):
    def __init__(self) -> None:
        self.time = 1000.0

    def monotonic(self) -> float:
        return self.time


class LeaseMachine(RuleBasedStateMachine):
    """The model: per lease [txid, granted, last use, ttl, open uses, ended]. Ended or over time, and unused: gone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(max_leases=MAX, max_ttl=TTL, max_age=AGE)
        self.now = 0.0
        self.number = 0
        self.model: dict[str, list[float]] = {}
        self.uses: list[Lease] = []

    def holds(self, id: str) -> bool:
        _, granted, used, ttl, _, ended = self.model[id]
        return not ended and self.now < min(used + ttl, granted + AGE)

    def gone(self, id: str) -> None:
        del self.model[id]

    @rule(txid=st.integers(0, 9), ttl=st.sampled_from([1.0, 5.0, 100.0]))
    def grant(self, txid: int, ttl: float) -> None:
        self.number += 1
        if len(self.model) >= MAX:
            with pytest.raises(TooManyLeases, match="somebody"):
                self.table.grant(str(self.number), "somebody", self.now, ttl, txid)
        else:
            lease = self.table.grant(str(self.number), "somebody", self.now, ttl, txid)
            assert lease.ttl == min(ttl, TTL)
            self.model[lease.id] = [txid, self.now, self.now, lease.ttl, 0, 0]

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 9.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.model)
    @rule(data=st.data(), use=st.booleans())
    def touch(self, data: st.DataObject, use: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        act = self.table.use if use else self.table.renew
        if self.holds(id):
            lease = act(id, self.now)
            self.model[id][2] = self.now
            if use:
                self.model[id][4] += 1
                self.uses.append(lease)
        else:
            self.model[id][5] = 1  # once found over, it never holds again
            with pytest.raises(LeaseExpired):
                act(id, self.now)

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        lease = self.uses.pop(data.draw(st.integers(0, len(self.uses) - 1)))
        held = self.holds(lease.id)
        freed = self.table.end_use(lease, self.now)
        entry = self.model[lease.id]
        entry[4] -= 1
        if held:
            entry[2] = self.now
            assert freed is None
        else:
            entry[5] = 1
            assert (freed is lease) == (entry[4] == 0)
            if freed:
                self.gone(lease.id)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        freed = self.table.release(id)
        self.model[id][5] = 1
        assert (freed is not None) == (self.model[id][4] == 0)
        if freed:
            self.gone(id)

    @rule()
    def expire(self) -> None:
        over = {id for id in self.model if not self.holds(id)}
        for id in over:
            self.model[id][5] = 1
        expected = {id for id in over if self.model[id][4] == 0}
        assert {lease.id for lease in self.table.expire(self.now)} == expected
        for id in expected:
            self.gone(id)

    @invariant()
    def same_as_model(self) -> None:
        assert self.table.floor() == min((int(entry[0]) for entry in self.model.values()), default=None)
        assert [(s.id, s.txid, s.uses) for s in self.table.list(self.now)] == [
            (id, entry[0], entry[4]) for id, entry in self.model.items()]


LeaseMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLeaseMachine = LeaseMachine.TestCase


def test_furnish_raises_the_pin_and_begins_its_time_anew() -> None:
    table, image = LeaseTable(max_ttl=10), FakeImage()
    table.grant("a", "x", 0.0, 10, 5)
    lease = table.furnish("a", 9.0, 3, 8, image)
    assert (table.floor(), lease.ttl) == (8, 3)
    assert table.renew("a", 11.9) is lease
    with pytest.raises(InvalidInput):
        table.furnish("a", 12.0, 3, 9, FakeImage())
    with pytest.raises(LeaseExpired):
        table.furnish("a", 30.0, 3, 9, FakeImage())
    [freed] = table.expire(30.0)
    assert freed.image is image


def test_a_pin_is_never_lowered() -> None:
    table = LeaseTable()
    table.grant("a", "x", 0.0, 10, 5)
    with pytest.raises(InvalidInput):
        table.furnish("a", 1.0, 3, 4, FakeImage())


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_senseless_lifetimes_are_refused(ttl: float) -> None:
    with pytest.raises(InvalidInput):
        LeaseTable().grant("a", "x", 0.0, ttl, 0)


@pytest.mark.parametrize("owner", ["", "x" * 201])
def test_senseless_owners_are_refused(owner: str) -> None:
    with pytest.raises(InvalidInput):
        LeaseTable().grant("a", owner, 0.0, 1, 0)


def test_an_expired_lease_is_dead_at_once_and_freed_with_its_last_reader() -> None:
    clock = ManualClock()
    leases, image = Leases(Env(clock=clock)), FakeImage()
    lease = leases.grant_longest("x", 3)
    leases.furnish(lease.id, 60, 4, image)
    with leases.using(lease.id), leases.using(lease.id):
        clock.time += 61
        leases.sweep()
        with pytest.raises(LeaseExpired):
            leases.renew(lease.id)
        assert image.closed < 1
        assert leases.floor() == 4
        assert leases.list()[0].dead
    assert image.closed == 1
    assert leases.floor() is None


def test_renewal_does_not_outlive_the_greatest_age() -> None:
    clock = ManualClock()
    leases = Leases(Env(clock=clock), LeaseTable(max_ttl=10, max_age=25))
    lease = leases.grant("x", 10, 0)
    for _ in range(4):
        clock.time += 6
        leases.renew(lease.id)
    clock.time += 6
    with pytest.raises(LeaseExpired):
        leases.renew(lease.id)
    with leases.frozen() as floor:  # a prune sweeps first
        assert floor is None


def test_leases_that_expire_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each that expired was a line: who took leases of a hundredth of a second, sixteen at a time, wrote the service's
    log full. The first is still named, and of the others it is said how many they were."""
    clock = ManualClock()
    leases = Leases(Env(clock=clock))
    for number in range(600):
        leases.grant(f"owner {number}", 0.01, 0)
        clock.time += 0.02
    clock.time += EVERY_S
    leases.sweep()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].endswith("of owner 0 expired")
    assert lines[-1].endswith("of owner 599 expired (598 more like it since the last line)")
    assert len(lines) == 2


def test_no_lease_gets_in_while_the_floor_is_frozen() -> None:
    leases = Leases()
    granted: list[Lease] = []
    thread = threading.Thread(target=lambda: granted.append(leases.grant("x", 10, 7)))
    with leases.frozen() as floor:
        assert floor is None
        thread.start()
        thread.join(0.05)
        assert not granted
    thread.join()
    assert leases.floor() == 7


def use(leases: Leases, id: str) -> None:
    with leases.using(id):
        pass


@pytest.mark.parametrize("change", [Leases.renew, Leases.release, use,
                                    lambda leases, id: leases.furnish(id, 60, 7, FakeImage())],
                         ids=["renew", "release", "use", "furnish"])
def test_no_lease_changes_while_the_floor_is_frozen(change: Callable[[Leases, str], object]) -> None:
    """Two threads in the table at once would also lose changes."""
    leases = Leases()
    lease = leases.grant_longest("x", 7)
    done = threading.Event()

    def work() -> None:
        change(leases, lease.id)
        done.set()

    thread = threading.Thread(target=work)
    with leases.frozen() as floor:
        assert floor == 7
        thread.start()
        assert not done.wait(0.05)
    thread.join()
    assert done.is_set()


def test_closing_waits_for_readers_and_lets_nobody_in() -> None:
    leases, image = Leases(), FakeImage()
    lease = leases.grant_longest("x", 0)
    leases.furnish(lease.id, 60, 0, image)
    closer = threading.Thread(target=leases.close)
    with leases.using(lease.id):
        closer.start()
        closer.join(0.05)
        assert closer.is_alive()
        assert image.closed < 1
    closer.join()
    assert image.closed == 1
    with pytest.raises(StoreClosed):
        leases.grant("x", 10, 0)
    leases.release(lease.id)  # fine if gone


def test_an_image_that_fails_to_close_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def close(self) -> None:
            raise OSError("no")

    leases = Leases()
    lease = leases.grant_longest("x", 0)
    leases.furnish(lease.id, 60, 0, Broken())
    leases.release(lease.id)
    assert leases.floor() is None
    assert "closing the image" in caplog.text
