"""The line of those who wait for acknowledgement, the conditions they wait for, and what both cost as they grow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_kinds import STAGING, until

from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.env import REAL
from holdfast.engine.errors import ConditionNotMet, HoldfastError, RolledBack
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.callbacks import Callbacks, Outcome
from holdfast.engine.store.commit_queue import CommitTicket, Line
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.watermarks import Watermarks
from holdfast.engine.testing.support.interleave import each_step


def a_ticket(txid: int) -> CommitTicket:
    nobody: Any = None
    return CommitTicket(txid, nobody)


def a_thread(txid: int, thread: int = 1) -> CommitTicket:
    waiter = a_ticket(txid)
    waiter.thread, waiter.gate = thread, threading.Lock()
    return waiter


def threads_of(line: Line) -> int:
    return len(line._gated)


def at(txid: int) -> Position:
    return Position(txid, txid.to_bytes(16, "big"))


def late(txid: int) -> HoldfastError:
    return ConditionNotMet(f"transaction {txid} is late", txid=txid)


@given(st.data())
def test_the_line_is_what_a_list_would_be(data: st.DataObject) -> None:
    line = Line()
    model: list[CommitTicket] = []
    for _ in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["join", "join", "upto", "between", "lead", "leave"]))
        woken: list[CommitTicket] = []
        if what == "join":
            free = sorted(set(range(1, 13)) - {w.txid for w in model})
            if not free:
                continue
            txid, thread = data.draw(st.sampled_from(free)), data.draw(st.integers(1, 3))
            waiter = a_thread(txid, thread) if data.draw(st.booleans()) else a_ticket(txid)
            line.join(waiter)
            model.append(waiter)
        elif what == "upto":
            upto = data.draw(st.integers(0, 12))
            line.take_upto(upto, woken)
            left = sorted((w for w in model if w.txid <= upto), key=lambda w: w.txid)
            assert woken == left
            model = [w for w in model if w.txid > upto]
        elif what == "between":
            first, last = sorted((data.draw(st.integers(0, 13)), data.draw(st.integers(0, 13))))
            line.take_between(first, last, late, woken)
            assert {id(w) for w in woken} == {id(w) for w in model if first <= w.txid <= last}
            assert all(isinstance(w.error, ConditionNotMet) and w.error.txid == w.txid for w in woken)
            model = [w for w in model if not first <= w.txid <= last]
        elif what == "lead":
            waiter_or_none = line.next_thread(woken)
            there = [w for w in model if w.gate is not None]
            assert waiter_or_none is (there[0] if there else None)
            if waiter_or_none is not None:
                assert woken == [waiter_or_none]
                model.remove(waiter_or_none)
        else:
            thread = data.draw(st.integers(1, 3))
            line.leave(thread)
            model = [w for w in model if w.gate is None or w.thread != thread]
        assert len(line) == len(model)


def test_who_has_left_is_forgotten() -> None:
    """A thread whose transaction was made durable by another stayed in the heap of those who may lead."""
    line = Line()
    for txid in range(1, 1000):
        line.join(a_thread(txid))
        line.take_upto(txid, [])
    assert threads_of(line) == 0


def steps(call: Callable[[], object]) -> int:
    """How many instructions a call takes."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with each_step(step):
        call()
    return count


@pytest.mark.parametrize("what", ["join", "upto", "between", "lead"])
def test_the_line_costs_no_more_when_it_is_long(what: str) -> None:
    def cost(length: int) -> int:
        line = Line()
        for txid in range(10, length + 10):
            line.join(a_thread(txid))
        return steps({
            "join": lambda: line.join(a_thread(9)),  # before everybody
            "upto": lambda: line.take_upto(10, []),
            "between": lambda: line.take_between(15, 15, late, []),
            "lead": lambda: line.next_thread([]),
        }[what])

    assert cost(30_000) <= cost(100) + 20


@pytest.mark.parametrize("what", ["answered", "met", "expired"])
def test_an_event_costs_no_more_with_many_open_conditions(what: str) -> None:
    """One pass over 3,000 open conditions took 0.7 s, with the mutex held that every commit needs."""
    def cost(conditions: int) -> int:
        watermarks = Watermarks(at(0), at(0), 2)
        for txid in range(1, conditions + 2):
            watermarks.append(at(txid))
            watermarks.synced(at(txid))
            log = watermarks.next_unanswered()
            assert log is not None
            if txid <= conditions:
                watermarks.answered(log.last, [(0, True), (1, False)])
        return steps({
            "answered": lambda: watermarks.answered(conditions + 1, [(0, True)]),
            "met": lambda: watermarks.met(0, 1),
            "expired": lambda: watermarks.expired(1, conditions // 2),
        }[what])

    assert cost(30_000) <= cost(100) + 20


class Slow(Plugin):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.heard: list[int] = []

    def logged(self, batch: LogRange) -> Condition | None:
        assert [r.txid for r in batch.records] == list(range(batch.first, batch.last + 1))
        assert self.go.wait(30)
        self.heard += [r.txid for r in batch.records]
        return None


def test_what_a_listener_has_not_heard_yet_is_bounded(tmp_path: Path) -> None:
    """It is given the records, so they are in memory until it answers."""
    plugin = Slow()
    settings = Settings(heartbeat_s=0, unwritten_bytes=100_000, wait_s=0.3)
    with STAGING.open(tmp_path / "store", plugins=[plugin], settings=settings) as store:
        done = 0
        with pytest.raises(RolledBack, match="waiting to be written, or to be answered"):
            while done < 100:
                with store.transaction("pipelined") as tx:
                    tx.put(b"%d" % done, bytes(10_000))
                done += 1
        assert 9 <= done <= 12
        plugin.go.set()
        with store.transaction() as tx:
            tx.put(b"again", b"")
        assert store.group_commit.unheard_bytes == 0
        until(lambda: len(plugin.heard) == done + 1)
        assert plugin.heard == list(range(1, done + 2))


def test_a_condition_that_is_met_leaves_the_heap_of_deadlines(tmp_path: Path) -> None:
    """Each stayed until its time would have been over: half a minute's commits, and their records."""
    class Met(Plugin):
        def logged(self, batch: LogRange) -> Condition:
            met: Future[None] = Future()
            met.set_result(None)
            return Condition(met=met, timeout=3600, gates_publication=True, name="always met")

    with STAGING.open(tmp_path / "store", plugins=[Met()], settings=Settings(heartbeat_s=0)) as store:
        for n in range(400):
            with store.transaction() as tx:
                tx.put(b"%d" % (n % 9), b"")
        assert store._ack_tracker is not None
        assert len(store._ack_tracker._due) < 100


def test_an_outcome_s_callbacks_come_in_order_and_late_ones_too() -> None:
    callbacks = Callbacks(REAL)
    seen: list[tuple[int, str]] = []
    outcomes = [Outcome(callbacks) for _ in range(5)]
    for number, outcome in enumerate(outcomes):
        outcome.add_done_callback(lambda done: seen.append((done.result(), threading.current_thread().name)))
        outcome.set_result(number)
    outcomes[0].add_done_callback(lambda done: seen.append((done.result() + 10, threading.current_thread().name)))
    callbacks.close()
    assert [n for n, _ in seen] == [0, 1, 2, 3, 4, 10]
    assert {name for _, name in seen} == {"holdfast-callbacks"}
    assert not outcomes[0].cancel()


def test_each_transaction_is_passed_once() -> None:
    """One ticket that waits for long, far ahead, must not make everybody go through all before it again."""
    line, woken = Line(), list[CommitTicket]()
    line.join(a_ticket(1))
    line.join(a_ticket(1_000_000))
    line.take_upto(999_999, woken)
    assert [ticket.txid for ticket in woken] == [1]
    looked = 0

    class Looked(dict[int, CommitTicket]):
        def __contains__(self, key: object) -> bool:
            nonlocal looked
            looked += 1
            return super().__contains__(key)

    line._at = Looked(line._at)
    line.take_upto(999_999, woken)
    assert looked == 0
    line.take_upto(1_000_000, woken)
    assert looked == 1
    assert [ticket.txid for ticket in woken] == [1, 1_000_000]


class Unmet(Plugin):
    def logged(self, batch: LogRange) -> Condition:
        return Condition(met=Future(), timeout=3600.0, gates_publication=False, name="a copy that is away")


def test_a_relaxed_commit_keeps_no_place_in_line(tmp_path: Path) -> None:
    """Nobody waits for it, and its condition may be open for long: each one took 300 bytes until it was met."""
    with STAGING.open(tmp_path / "store", plugins=[Unmet()]) as store:
        group_commit = store.group_commit
        with store.transaction("pipelined") as first:
            STAGING.write(first, 0)
        for n in range(300):
            with store.transaction("relaxed") as tx:
                STAGING.write(tx, n)
        until(lambda: store.durable.txid == 301)
        assert len(group_commit._line) == 1
        assert not first.outcome.done()
        group_commit.give_up(1, 301, "is late")
        with pytest.raises(ConditionNotMet):
            first.outcome.result(30)
