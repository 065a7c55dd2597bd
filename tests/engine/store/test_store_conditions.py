"""Plugins that hold acknowledgements: conditions met, late, failed, and given up."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from store_kinds import GRAPH, MEMORY, QUIET, STAGING, Kind, commit, until

from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.env import Env
from holdfast.engine.errors import ConditionNotMet, OutcomeUnknown
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.commit_queue import CommitTicket
from holdfast.engine.store.settings import Settings
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log


class Holds(Plugin):
    """Holds acknowledgements: a condition for each range, which the test meets or not."""

    def __init__(self, *, gates: bool, timeout: float = 30.0) -> None:
        self.gates, self.timeout = gates, timeout
        self.asked: list[tuple[LogRange, Future[None]]] = []
        self.answer: Callable[[LogRange, Future[None]], None] = lambda batch, met: None

    def logged(self, batch: LogRange) -> Condition | None:
        met: Future[None] = Future()
        self.answer(batch, met)
        self.asked.append((batch, met))
        return Condition(met=met, timeout=self.timeout, gates_publication=self.gates, name="the test")


@pytest.fixture(params=[MEMORY, STAGING, GRAPH], ids=["memory", "staging", "graph"])
def grouped(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.mark.parametrize("gates", [True, False], ids=["gating", "not gating"])
def test_a_commit_waits_for_a_condition(grouped: Kind, gates: bool, tmp_path: Path) -> None:
    holds = Holds(gates=gates)
    with (grouped.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store,
          ThreadPoolExecutor(1) as pool):
        committing = pool.submit(commit, grouped, store, 1)
        until(lambda: bool(holds.asked))
        until(lambda: store.positions().published == (0 if gates else 1))
        assert not committing.done()
        assert store.positions().durable == 1
        assert store.positions().acknowledged == 0
        assert grouped.numbers(store) == (set() if gates else {1})
        holds.asked[0][1].set_result(None)
        committing.result(30)
        assert store.positions().acknowledged == 1
        assert grouped.numbers(store) == {1}


@pytest.mark.parametrize("gates", [True, False], ids=["gating", "not gating"])
def test_a_condition_that_is_late(grouped: Kind, gates: bool, tmp_path: Path) -> None:
    """The commit is told; nothing is lost. Gating: the watermark stays and later commits time out too, until it moves.
    Not gating: the transaction counts as acknowledged."""
    holds = Holds(gates=gates, timeout=0.1)
    with grouped.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store:
        with pytest.raises(ConditionNotMet, match="the test was not met within") as caught:
            commit(grouped, store, 1)
        assert caught.value.txid == 1
        assert store.positions().durable == 1
        until(lambda: store.positions().acknowledged == (0 if gates else 1))
        assert grouped.numbers(store) == (set() if gates else {1})
        if grouped.watermarks or not gates:  # without staging a gated transaction keeps the next one waiting
            with pytest.raises(ConditionNotMet):
                commit(grouped, store, 2)
            assert store.positions().durable == 2
        if gates:
            last = store.positions().durable
            with pytest.raises(ConditionNotMet):
                store.wait(1, timeout=0.01)
            until(lambda: len(holds.asked) == last)
            holds.asked[-1][1].set_result(None)  # cumulative: meeting the last meets all
            store.wait(last, timeout=30)
            until(lambda: store.positions().published == last)
        assert len(grouped.numbers(store)) == store.positions().durable
        holds.answer = lambda batch, met: met.set_result(None)
        commit(grouped, store, 3)
        assert 3 in grouped.numbers(store)


@pytest.mark.parametrize("gates", [True, False], ids=["gating", "not gating"])
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_a_condition_that_will_never_be_met(gates: bool, how: str, tmp_path: Path) -> None:
    holds = Holds(gates=gates)

    def never(batch: LogRange, met: Future[None]) -> None:
        if how == "fails":
            met.set_exception(OSError("gone"))
        else:
            met.cancel()
            met.set_running_or_notify_cancel()

    holds.answer = never
    with STAGING.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store:
        for n in range(1, 4):
            with pytest.raises(ConditionNotMet, match="failed: gone" if how == "fails" else "was cancelled"):
                commit(STAGING, store, n)
        until(lambda: store.positions().acknowledged == (0 if gates else 3))
        assert store.positions().durable == 3
        holds.answer = lambda batch, met: met.set_result(None)
        commit(STAGING, store, 4)
        assert STAGING.numbers(store) == {1, 2, 3, 4}


@pytest.mark.parametrize("gates", [True, False], ids=["gating", "not gating"])
def test_a_condition_that_fails_before_the_commit_stands_in_line(gates: bool, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else synced the transaction, and its condition failed, before its own thread came to wait. It then
    waited for ever (gating), or was told that all was well (not gating)."""
    holds = Holds(gates=gates)
    holds.answer = lambda batch, met: met.set_exception(OSError("gone"))
    with STAGING.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store:
        original = store.group_commit.wait

        def late(ticket: CommitTicket) -> None:
            store.group_commit.sync_within(0.0)
            until(lambda: bool(holds.asked))
            until(lambda: not store.group_commit._line)
            original(ticket)

        monkeypatch.setattr(store.group_commit, "wait", late)
        with ThreadPoolExecutor(1) as pool, pytest.raises(ConditionNotMet):
            pool.submit(commit, STAGING, store, 1).result(30)


@pytest.mark.parametrize("what", ["raises", "returns nonsense", "returns a time-out that is not a number"])
def test_a_hook_that_fails_is_a_condition_not_met(what: str, tmp_path: Path) -> None:
    class Fails(Plugin):
        def logged(self, batch: LogRange) -> Condition | None:
            if what == "raises":
                raise RuntimeError("injected")
            if what == "returns nonsense":
                return True  # type: ignore[return-value]  # wrong on purpose
            return Condition(met=Future(), timeout=math.nan, gates_publication=False, name="the test")

    with STAGING.open(tmp_path / "store", settings=QUIET, plugins=[Fails()]) as store:
        for n in (1, 2):
            with pytest.raises(ConditionNotMet):
                commit(STAGING, store, n)
        until(lambda: store.positions().acknowledged == 2)
        assert STAGING.numbers(store) == {1, 2}


def test_a_time_out_may_be_for_ever(tmp_path: Path) -> None:
    """A lock cannot wait that long; the thread that watches conditions died of it."""
    holds = Holds(gates=True, timeout=float("inf"))
    with STAGING.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store, ThreadPoolExecutor(1) as pool:
        for n in (1, 2):
            committing = pool.submit(commit, STAGING, store, n)
            until(lambda n=n: len(holds.asked) == n)  # type: ignore[misc]
            holds.asked[-1][1].set_result(None)
            committing.result(30)


def test_two_listeners_each_with_their_say(tmp_path: Path) -> None:
    gate, hold = Holds(gates=True), Holds(gates=False)
    with (STAGING.open(tmp_path / "store", settings=QUIET, plugins=[gate, hold]) as store,
          ThreadPoolExecutor(1) as pool):
        committing = pool.submit(commit, STAGING, store, 1)
        until(lambda: bool(hold.asked))
        assert STAGING.numbers(store) == set()
        gate.asked[0][1].set_result(None)
        until(lambda: store.positions().published == 1)
        assert not committing.done()
        hold.asked[0][1].set_result(None)
        committing.result(30)


def test_pipelined_and_relaxed_under_conditions(tmp_path: Path) -> None:
    holds = Holds(gates=True, timeout=0.2)
    with STAGING.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store:
        with store.transaction("pipelined") as tx:
            STAGING.write(tx, 1)
        assert isinstance(tx.outcome.exception(30), ConditionNotMet)
        with store.transaction("relaxed") as tx:
            STAGING.write(tx, 2)
        until(lambda: store.positions().durable == 2)
        assert STAGING.numbers(store) == set()
        until(lambda: bool(holds.asked) and holds.asked[-1][0].last == 2)
        holds.asked[-1][1].set_result(None)
        until(lambda: STAGING.numbers(store) == {1, 2})
        assert not store.group_commit._line


def test_what_nobody_waits_for_is_not_synced_at_once(tmp_path: Path) -> None:
    """Each transaction has its place in line, so that a condition that fails early is told whoever comes. Only who
    comes makes it urgent."""
    holds = Holds(gates=False)
    holds.answer = lambda batch, met: met.set_result(None)
    settings = Settings(heartbeat_s=0, relaxed_ms=60_000)
    with STAGING.open(tmp_path / "store", settings=settings, plugins=[holds]) as store:
        for n in (1, 2):
            with store.transaction("relaxed") as tx:
                STAGING.write(tx, n)
        assert not store.group_commit.wait_until(lambda: store.durable.txid > 0, 0.3)
        commit(STAGING, store, 3)
        assert store.positions().acknowledged == 3
        assert not store.group_commit._line


@pytest.mark.parametrize("gates", [True, False], ids=["gating", "not gating"])
def test_closing_ends_the_wait_for_conditions(grouped: Kind, gates: bool, tmp_path: Path) -> None:
    holds = Holds(gates=gates)
    settings = Settings(heartbeat_s=0, wait_s=0.3)
    store = grouped.open(tmp_path / "store", settings=settings, plugins=[holds])
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit, grouped, store, 1)
        until(lambda: bool(holds.asked))
        store.close()
        assert isinstance(committing.exception(30), (ConditionNotMet, OutcomeUnknown))
    with grouped.open(tmp_path / "store") as store:
        assert grouped.numbers(store) == {1}


def test_poison_under_conditions(tmp_path: Path) -> None:
    files = FaultyFiles()
    holds = Holds(gates=True)
    store = STAGING.open(tmp_path / "store", settings=QUIET, plugins=[holds], env=Env(files))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(commit, STAGING, store, 1)
        until(lambda: bool(holds.asked))
        files.fail("datasync", only=is_log)
        with pytest.raises(OutcomeUnknown):
            commit(STAGING, store, 2)
        assert isinstance(first.exception(30), OutcomeUnknown)
    files.heal()
    store.close()
    with STAGING.open(tmp_path / "store") as store:
        assert 1 in STAGING.numbers(store)
