"""Plugins: every moment, in order; what each may do, and what becomes of the commit when it raises."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_kinds import GRAPH, MEMORY, QUIET, STAGING, Kind, commit, until

from holdfast.engine.contract import Transaction
from holdfast.engine.errors import (
    ConditionNotMet,
    InvalidInput,
    OutcomeUnknown,
    PluginError,
    RolledBack,
    SettingError,
    StoreClosed,
    StoreLocked,
)
from holdfast.engine.history import Position, Record
from holdfast.engine.log.segment import SegmentInfo
from holdfast.engine.plugins import Condition, LogRange, Plugin
from holdfast.engine.seams import Clock, Seams
from holdfast.engine.settings import Settings
from holdfast.engine.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log


class Told(Plugin):
    """Overrides every moment and notes it."""

    def __init__(self, name: str, notes: list[tuple[str, str]]) -> None:
        self.name, self.notes = name, notes
        self.published_txids: list[int] = []
        self.ranges: list[LogRange] = []
        self.checkpoints: list[int] = []
        self.segments: list[SegmentInfo] = []
        self.threads: set[int] = set()

    def note(self, moment: str) -> None:
        self.notes.append((self.name, moment))

    def opened(self, store: Store[Any, Any]) -> None:
        self.note("opened")

    def closing(self, store: Store[Any, Any]) -> None:
        self.note("closing")

    def committing(self, draft: Transaction) -> None:
        self.note("committing")

    def final(self, draft: Transaction) -> None:
        self.note("final")

    def logged(self, batch: LogRange) -> Condition | None:
        self.threads.add(threading.get_ident())
        self.ranges.append(batch)
        self.note("logged")
        return None

    def published(self, records: Sequence[Record]) -> None:
        self.note("published")
        self.published_txids += [r.txid for r in records]

    def checkpointed(self, position: Position) -> None:
        self.note("checkpointed")
        self.checkpoints.append(position.txid)

    def sealed(self, segment: SegmentInfo) -> None:
        self.note("sealed")
        self.segments.append(segment)

    def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
        self.note("pruning")
        return None


def test_every_moment_in_the_order_given(kind: Kind, tmp_path: Path) -> None:
    notes: list[tuple[str, str]] = []
    first, second = Told("first", notes), Told("second", notes)
    store = kind.open(tmp_path / "store", settings=QUIET, plugins=[first, second])
    commit(kind, store, 1)
    until(lambda: ("second", "published") in notes)
    store.checkpoint()
    store.close()
    moments = [moment for name, moment in notes if name == "first"]
    assert moments == ["opened", "committing", "final", "logged", "published", "checkpointed", "closing"]
    assert [n for n in notes if n[1] == "committing"] == [("first", "committing"), ("second", "committing")]
    assert [m for name, m in notes if name == "second"] == moments
    assert notes.index(("second", "committing")) < notes.index(("first", "final"))
    assert (first.ranges, first.published_txids, first.checkpoints) == ([LogRange(1, 1)], [1], [1])
    assert threading.get_ident() not in first.threads


def test_every_transaction_is_logged_and_published_once_in_order(kind: Kind, tmp_path: Path) -> None:
    told = Told("told", [])
    with kind.open(tmp_path / "store", settings=QUIET, plugins=[told]) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: commit(kind, store, n), range(60)))
        until(lambda: len(told.published_txids) == 60)
    assert told.published_txids == list(range(1, 61))
    assert [r.first for r in told.ranges] == [1, *(r.last + 1 for r in told.ranges[:-1])]
    assert told.ranges[-1].last == 60


def test_sealed_and_pruning(tmp_path: Path) -> None:
    told = Told("told", [])
    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions")
    with STAGING.open(tmp_path / "store", settings=settings, plugins=[told]) as store:
        for n in range(12):
            with store.transaction() as tx:
                tx.put(b"%d" % n, bytes(30_000))
        until(lambda: len(told.segments) >= 3)
        assert [s.ordinal for s in told.segments] == [2, 3, 4]
        assert all(s.sealed for s in told.segments)
        store.checkpoint()
        assert store.prune() >= 3
        assert ("told", "pruning") in told.notes


@pytest.mark.parametrize("how", ["vetoes", "raises"])
def test_pruning_can_be_vetoed_and_a_failure_is_a_veto(how: str, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    class Keeper(Plugin):
        keep = True

        def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
            if not self.keep:
                return None
            if how == "raises":
                raise RuntimeError("injected")
            return "not yet archived"

    keeper = Keeper()
    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions")
    with STAGING.open(tmp_path / "store", settings=settings, plugins=[keeper]) as store:
        for n in range(12):
            with store.transaction() as tx:
                tx.put(b"%d" % n, bytes(30_000))
        store.checkpoint()
        with caplog.at_level(logging.INFO, "holdfast"):
            assert store.prune() == 0
        assert ("not yet archived" if how == "vetoes" else "the log is kept") in caplog.text
        assert store.log.base.txid == 0
        keeper.keep = False
        assert store.prune() >= 3


# --- committing and final --------------------------------------------------------------------------------------------


def test_committing_may_add_and_final_sees_it_and_may_not(kind: Kind, tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Adds(Plugin):
        def committing(self, draft: Any) -> None:
            kind.write(draft, 1000)

    class Looks(Plugin):
        def final(self, draft: Any) -> None:
            seen.append(draft.payload())
            with pytest.raises(StoreClosed, match="being committed"):
                kind.write(draft, 2000)

    with kind.open(tmp_path / "store", plugins=[Looks(), Adds()]) as store:
        commit(kind, store, 1)
        assert kind.numbers(store) == {1, 1000}
        assert seen == [next(store.log.read(0)).payload]


@pytest.mark.parametrize("moment", ["committing", "final"])
def test_a_refusal_rolls_back_and_says_why(kind: Kind, moment: str, tmp_path: Path) -> None:
    class Refuses(Plugin):
        refuse = True

        def committing(self, draft: Any) -> None:
            kind.write(draft, 1000)

    def refusal(draft: Any) -> None:
        if plugin.refuse:
            raise ValueError("not on a Sunday")

    base = Refuses.committing

    class Both(Refuses):
        def committing(self, draft: Any) -> None:
            base(self, draft)
            if moment == "committing":
                refusal(draft)

        def final(self, draft: Any) -> None:
            if moment == "final":
                refusal(draft)

    plugin = Both()
    with kind.open(tmp_path / "store", plugins=[plugin]) as store:
        with pytest.raises(RolledBack, match="Sunday") as caught:
            commit(kind, store, 1)
        assert isinstance(caught.value.__cause__, ValueError)
        assert kind.numbers(store) == set()
        assert store.log.appended.txid == 0
        plugin.refuse = False
        commit(kind, store, 2)
        assert kind.numbers(store) == {2, 1000}


def test_a_hook_under_the_writer_lock_cannot_commit(kind: Kind, tmp_path: Path) -> None:
    class Reenters(Plugin):
        def opened(self, store: Store[Any, Any]) -> None:
            self.store = store

        def committing(self, draft: Any) -> None:
            commit(kind, self.store, 5)

    with kind.open(tmp_path / "store", plugins=[Reenters()]) as store:
        with pytest.raises(RolledBack, match="already"):
            commit(kind, store, 1)
        assert kind.numbers(store) == set()


class SlowClock(Clock):
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("hook_s", [0.5, 1.5])
def test_a_hook_that_holds_everybody_up_rolls_back(kind: Kind, hook_s: float, tmp_path: Path) -> None:
    class Looks(Plugin):
        def final(self, draft: Any) -> None:
            """A second goes by."""

    settings = Settings(heartbeat_s=0, hook_s=hook_s)
    with kind.open(tmp_path / "store", plugins=[Looks()], settings=settings, seams=Seams(clock=SlowClock())) as store:
        if hook_s < 1:
            with pytest.raises(RolledBack, match=r"Looks.final took 1.0 s .* hook_s"):
                commit(kind, store, 1)
        else:
            commit(kind, store, 1)
        assert kind.numbers(store) == (set() if hook_s < 1 else {1})


# --- logged ----------------------------------------------------------------------------------------------------------


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
        if grouped.stages or not gates:  # without staging a gated transaction keeps the next one waiting
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
        original = store.committer.wait

        def late(txid: int) -> None:
            store.committer.sync_within(0.0)
            until(lambda: bool(holds.asked))
            until(lambda: not store.committer._line)
            original(txid)

        monkeypatch.setattr(store.committer, "wait", late)
        with ThreadPoolExecutor(1) as pool, pytest.raises(ConditionNotMet):
            pool.submit(commit, STAGING, store, 1).result(30)


@pytest.mark.parametrize("what", ["raises", "returns nonsense"])
def test_a_hook_that_fails_is_a_condition_not_met(what: str, tmp_path: Path) -> None:
    class Fails(Plugin):
        def logged(self, batch: LogRange) -> Condition | None:
            if what == "raises":
                raise RuntimeError("injected")
            return True  # type: ignore[return-value]

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
        assert not store.committer._promised


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
    store = STAGING.open(tmp_path / "store", settings=QUIET, plugins=[holds], seams=Seams(files))
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


# --- observing moments, and the ends ---------------------------------------------------------------------------------


class Broken(Plugin):
    """Raises at every moment at which a plugin only observes."""

    def published(self, records: Sequence[Record]) -> None:
        raise RuntimeError("published")

    def checkpointed(self, position: Position) -> None:
        raise RuntimeError("checkpointed")

    def sealed(self, segment: SegmentInfo) -> None:
        raise RuntimeError("sealed")

    def fault(self, error: BaseException) -> None:
        raise RuntimeError("fault")

    def closing(self, store: Store[Any, Any]) -> None:
        raise RuntimeError("closing")


def test_observers_that_raise_are_logged_and_harm_nothing(kind: Kind, tmp_path: Path,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    files, told = FaultyFiles(), Told("told", [])
    store = kind.open(tmp_path / "store", settings=Settings(heartbeat_s=0, segment_bytes=128 << 10),
                      plugins=[Broken(), told], seams=Seams(files))
    for n in range(3):
        commit(kind, store, n)
    store.checkpoint()
    assert told.checkpoints == [3]
    files.fail("datasync", only=is_log)
    with pytest.raises(OutcomeUnknown):
        commit(kind, store, 3)
    files.heal()
    assert kind.numbers(store) == {0, 1, 2}
    store.close()
    assert told.notes[-1] == ("told", "closing")
    for moment in ("published", "checkpointed", "fault", "closing"):
        assert f"RuntimeError: {moment}" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("no port"), StoreLocked("no port"), KeyboardInterrupt("no port")])
def test_a_plugin_that_cannot_start_closes_the_store(kind: Kind, error: BaseException, tmp_path: Path) -> None:
    class Starts(Plugin):
        def opened(self, store: Store[Any, Any]) -> None:
            raise error

    told = Told("told", [])
    expected = PluginError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected, match="no port"):
        kind.open(tmp_path / "store", plugins=[told, Starts()])
    assert [m for _, m in told.notes] == ["opened", "closing"]
    with kind.open(tmp_path / "store") as store:
        commit(kind, store, 1)
        assert store.recovery.clean


def test_only_plugins_that_were_opened_are_told_closing(kind: Kind, tmp_path: Path) -> None:
    """Whoever raises in *opened* cleans up after himself, as with `contextlib.ExitStack`."""
    notes: list[tuple[str, str]] = []

    class CannotStart(Told):
        def opened(self, store: Store[Any, Any]) -> None:
            super().opened(store)
            raise RuntimeError("no port")

    plugins = [Told("before", notes), CannotStart("itself", notes), Told("after", notes)]
    with pytest.raises(PluginError):
        kind.open(tmp_path / "store", plugins=plugins)
    assert notes == [("before", "opened"), ("itself", "opened"), ("before", "closing")]


def test_what_is_no_plugin_is_refused(tmp_path: Path) -> None:
    for wrong in (object(), Plugin):
        with pytest.raises(SettingError, match="plugin"):
            MEMORY.open(tmp_path / "store", plugins=[wrong])
    with pytest.raises(SettingError, match="nowhere"):
        MEMORY.open(tmp_path / "store", plugins=["nowhere to be found"])
    assert not (tmp_path / "store").exists()


def test_a_plugin_may_commit_where_nothing_is_held(tmp_path: Path) -> None:
    class Writes(Plugin):
        def opened(self, store: Store[Any, Any]) -> None:
            commit(STAGING, store, 1)

        def closing(self, store: Store[Any, Any]) -> None:
            commit(STAGING, store, 2)

    STAGING.open(tmp_path / "store", plugins=[Writes()]).close()
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == {1, 2}
        with pytest.raises(InvalidInput), store.transaction():
            commit(STAGING, store, 3)
