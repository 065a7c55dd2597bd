"""The store: how a commit may end, the three durabilities, group commit, bounds, closing. Faults, plugins and locks
have files of their own beside this one."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from store_kinds import GRAPH, MEMORY, QUIET, STAGING, Kind, commit, until

from holdfast.engine import GraphStore
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.image import Image
from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import Env
from holdfast.engine.errors import ConditionNotMet, InvalidInput, OutcomeUnknown, SettingError, Unsupported
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import Record
from holdfast.engine.store.callbacks import Callbacks, Outcome
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log
from holdfast.engine.testing.support.interleave import Beside


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[Store[Any, Any]]:
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        yield store


class Oops(Exception):
    """A caller's own."""


# --- how a transaction ends ------------------------------------------------------------------------------------------


def test_a_commit_is_there_at_once_and_after_reopening(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store") as store:
        with store.transaction() as tx:
            kind.write(tx, 7)
        assert tx.txid == 1
        assert kind.numbers(store) == {7}
        positions = store.positions()
        assert (positions.appended, positions.durable, positions.acknowledged, positions.published) == (1, 1, 1, 1)
    with kind.open(tmp_path / "store", create=False) as store:
        assert kind.numbers(store) == {7}
        assert store.recovery.clean
        assert store.recovery.replayed == 0


def test_nested_transactions_are_refused_and_harm_nothing(kind: Kind, store: Store[Any, Any]) -> None:
    with store.transaction() as tx:
        kind.write(tx, 1)
        with pytest.raises(InvalidInput, match="already"), store.transaction():
            raise AssertionError("never runs")
        kind.write(tx, 2)
    assert kind.numbers(store) == {1, 2}


def test_a_transaction_without_writes_logs_nothing(kind: Kind, store: Store[Any, Any]) -> None:
    with store.transaction() as tx:
        kind.write(tx, 1)
    with store.transaction() as tx:
        pass
    assert tx.txid is None
    assert store.log.end.txid == 1


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_a_transaction_without_writes_waits_until_what_it_read_is_durable(kind: Kind, tmp_path: Path,
                                                                          files: FaultyFiles) -> None:
    with kind.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        with store.transaction() as tx:
            kind.write(tx, 0)
        held = files.hold("datasync")
        with ThreadPoolExecutor(2) as pool:
            writer = pool.submit(commit, kind, store, 1)
            assert held.reached.wait(30)
            reader = pool.submit(read_only, store)
            until(lambda: store.group_commit._watchers > 0)
            assert not reader.done()
            assert kind.numbers(store) == {0}
            held.go.set()
            writer.result(30)
            reader.result(30)
        assert kind.numbers(store) == {0, 1}


def read_only(store: Store[Any, Any]) -> None:
    with store.transaction():
        pass


def test_durability_is_one_of_three(store: Store[Any, Any]) -> None:
    with pytest.raises(InvalidInput, match="durability"):
        store.transaction("maybe")  # type: ignore[arg-type]
    with pytest.raises(SettingError):
        Settings(durability="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"relaxed_ms": 0}, {"keep_logs": "a while"}, {"segment_bytes": 1},
                                     {"checkpoint_soft_bytes": 10, "checkpoint_hard_bytes": 9}, {"heartbeat_s": -1},
                                     {"wait_s": 0}, {"slot_days": 0}, {"wait_s": "5"}, {"segment_bytes": 1e6},
                                     {"keep_logs": 7}, {"slot_bytes": math.nan}, {"checkpoint_soft_bytes": True},
                                     {"slot_bytes": 0}, {"unwritten_bytes": -1},
                                     *({name: value} for value in (math.nan, math.inf, 1e15, None)
                                       for name in ("relaxed_ms", "heartbeat_s", "wait_s", "hook_s", "slot_days"))])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Settings(**setting)


@pytest.mark.parametrize("given", [{"settings": {"wait_s": 1}}, {"options": 5}, {"plugins": "backup-service"},
                                   {"plugins": Plugin()}, {"plugins": [Plugin]}, {"plugins": ["no such"]}])
def test_what_is_no_setting_option_or_plugin_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    for opened in (MEMORY.open, GraphStore.open):
        with pytest.raises(SettingError):
            opened(tmp_path / "store", **given)
    assert not (tmp_path / "store").exists()


# --- durabilities ----------------------------------------------------------------------------------------------------


def test_one_thread_syncs_once_for_each_commit(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    with kind.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        commit(kind, store, 0)
        until(lambda: not store.log.writer.wants_spare)
        before = files.counts.copy()
        for n in range(1, 41):
            commit(kind, store, n)
        files.counts.subtract(before)
        del files.counts["pread"]  # a transaction may read the state
        assert {name: count for name, count in files.counts.items() if count} == {"pwrite": 40, "datasync": 40}


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_what_arrives_while_a_sync_runs_joins_the_next(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    with kind.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        commit(kind, store, 0)
        until(lambda: not store.log.writer.wants_spare)
        held = files.hold("datasync")
        before = files.counts["datasync"]
        with ThreadPoolExecutor(20) as pool:
            first = pool.submit(commit, kind, store, 1)
            assert held.reached.wait(30)
            others = [pool.submit(commit, kind, store, n) for n in range(2, 20)]
            until(lambda: store.positions().appended == 20)
            assert kind.numbers(store) == {0}
            assert not any(f.done() for f in (first, *others))
            held.go.set()
            for f in (first, *others):
                f.result(30)
        assert files.counts["datasync"] - before == 2
        assert kind.numbers(store) == set(range(20))
        assert store.log.end.txid == 20


def test_32_threads(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    """Everything committed is there, each once; where the engine stages, far fewer syncs than commits."""
    each = 12
    settings = Settings(heartbeat_s=0, checkpoint_soft_bytes=2000, segment_bytes=128 << 10)
    with kind.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        def work(worker: int) -> None:
            for i in range(each):
                commit(kind, store, worker * each + i)

        before = files.counts["datasync"]
        # As on a disk: in memory a sync costs nothing, and is done before others have come.
        files.before = lambda what, path: time.sleep(0.001) if what == "datasync" else None
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32)))
        if kind is STAGING:
            assert files.counts["datasync"] - before < 32 * each * 0.8
        assert kind.numbers(store) == set(range(32 * each))
        assert store.positions().published == 32 * each
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == set(range(32 * each))


def test_pipelined_gives_futures(kind: Kind, store: Store[Any, Any]) -> None:
    outcomes: list[Future[int]] = []
    for n in range(50):
        with store.transaction("pipelined") as tx:
            kind.write(tx, n)
        outcomes.append(tx.outcome)
    assert [o.result(30) for o in outcomes] == list(range(1, 51))
    assert kind.numbers(store) == set(range(50))


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_what_is_synced_before_it_is_staged_is_not_shown_without_it(kind: Kind, tmp_path: Path) -> None:
    """A thread that was interrupted between logging its transaction and giving it to the engine could find it synced
    and published by another: views of that moment did not show it and later did, or a commit returned before anybody
    could see it. Met by `test_many_threads_see_one_history`, in one run of some hundreds."""
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        stage, views = store.engine.stage, []  # type: ignore[attr-defined]

        def slowly(record: Record, tx: Any) -> None:
            others = threading.Thread(target=store.group_commit.sync_within, args=(0.0,))
            others.start()
            end = time.monotonic() + 0.3
            while store.durable.txid < record.txid and time.monotonic() < end:
                time.sleep(0.001)
            view = store.snapshot()
            views.append((view, kind.of(view)))
            stage(record, tx)

        store.engine.stage = slowly  # type: ignore[attr-defined]
        for n in (1, 2):
            commit(kind, store, n)
            with store.snapshot() as after:
                assert after.txid == n
                assert kind.of(after) == set(range(1, n + 1))
        for view, shown in views:
            assert kind.of(view) == shown == set(range(1, view.txid + 1))
            view.close()


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_what_the_engine_did_not_take_is_never_shown(kind: Kind, tmp_path: Path) -> None:
    """An engine that fails at a record which is in the log already: whoever syncs it before the store is poisoned must
    not publish it."""
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        commit(kind, store, 1)
        stage, fail = store.engine.stage, store.group_commit.fail  # type: ignore[attr-defined]
        others: list[threading.Thread] = []

        def refuse(record: Record, tx: Any) -> None:
            others.append(threading.Thread(target=store.group_commit.sync_within, args=(0.0,)))
            others[0].start()  # it waits for the mutex that we are under, and is the first to have it
            raise RuntimeError("the engine has a bug")

        def late(error: BaseException) -> None:
            end = time.monotonic() + 0.3
            while store.durable.txid < 2 and time.monotonic() < end:
                time.sleep(0.001)
            fail(error)

        store.engine.stage, store.group_commit.fail = refuse, late  # type: ignore[attr-defined,method-assign]
        with pytest.raises(OutcomeUnknown):
            commit(kind, store, 2)
        others[0].join()
        assert store.poisoned
        assert store.published.txid == 1
        with store.snapshot() as view:
            assert (view.txid, kind.of(view)) == (1, {1})
        store.engine.stage = stage  # type: ignore[attr-defined]
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) in ({1}, {1, 2})


def test_a_callback_holds_up_nobody_but_later_callbacks(tmp_path: Path, files: FaultyFiles) -> None:
    """It ran in the thread that syncs: one that slept for three seconds stalled everybody in the same group, and one
    that committed waited for its own sync for ever."""
    with STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files=files)) as store:
        go = threading.Event()
        seen: list[tuple[int, str]] = []

        def slow(outcome: Future[int]) -> None:
            assert go.wait(30)
            commit(STAGING, store, 2)
            seen.append((1, threading.current_thread().name))
            raise ValueError("a bug of the caller's")

        held = files.hold("datasync", only=is_log)
        with ThreadPoolExecutor(2) as pool:
            leads = pool.submit(commit, STAGING, store, 0)
            assert held.reached.wait(30)
            with store.transaction("pipelined") as tx:
                STAGING.write(tx, 1)
            tx.outcome.add_done_callback(slow)
            shares_the_group = pool.submit(commit, STAGING, store, 4)
            until(lambda: len(store.group_commit._line) == 2)
            files.heal()
            held.go.set()
            assert (leads.result(30), shares_the_group.result(30), tx.outcome.result(30)) == (None, None, 2)
        with store.transaction("pipelined") as later:
            STAGING.write(later, 5)
        assert wait([later.outcome], 30).done
        later.outcome.add_done_callback(lambda _: seen.append((2, threading.current_thread().name)))
        assert not seen
        go.set()
        until(lambda: len(seen) == 2)
        assert seen == [(1, "holdfast-callbacks"), (2, "holdfast-callbacks")]
        assert STAGING.numbers(store) == {0, 1, 2, 4, 5}


def test_an_event_loop_waits_for_outcomes(tmp_path: Path) -> None:
    async def commits(store: Any) -> list[int]:
        outcomes = []
        for n in range(20):
            with store.transaction("pipelined") as tx:
                STAGING.write(tx, n)
            outcomes.append(asyncio.wrap_future(tx.outcome))
        return list(await asyncio.gather(*outcomes))

    with STAGING.open(tmp_path / "store", settings=QUIET) as store:
        assert asyncio.run(commits(store)) == list(range(1, 21))


def test_a_callback_that_never_ends_does_not_keep_a_store_from_closing(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    store = STAGING.open(tmp_path / "store", settings=QUIET)
    store.group_commit.callbacks = Callbacks(Env(), close_s=0.1)
    with store.transaction("pipelined") as tx:
        STAGING.write(tx, 1)
    tx.outcome.add_done_callback(lambda _: go.wait(30))
    with caplog.at_level("WARNING"):
        store.close()
    assert "callbacks of its commits still run" in caplog.text
    go.set()


def test_a_pipelined_future_cannot_be_cancelled(tmp_path: Path, files: FaultyFiles) -> None:
    """The transaction is on its way. A future that somebody cancelled (asyncio does, with its task) raised in the
    thread that synced, which ended there with everybody else still in line."""
    with STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        held = files.hold("datasync")
        with store.transaction("pipelined") as tx:
            STAGING.write(tx, 1)
        assert held.reached.wait(30)
        assert not tx.outcome.cancel()
        held.go.set()
        assert tx.outcome.result(30) == 1
        commit(STAGING, store, 2)
        assert STAGING.numbers(store) == {1, 2}


def test_an_outcome_that_was_resolved_is_seen_although_nobody_was_told() -> None:
    """A signal's handler may raise between the outcome and the calls that tell of it. Whoever waited would wait for
    ever; so he looks from time to time."""
    def interrupted(done: Future[int]) -> None:
        raise KeyboardInterrupt

    outcome = Outcome(Callbacks(Env()))
    Future.add_done_callback(outcome, interrupted)  # in the thread that resolves it
    with pytest.raises(TimeoutError):
        outcome.result(0)
    with pytest.raises(TimeoutError):
        outcome.exception(0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(outcome.result)
        until(lambda: outcome._ended is not None)
        with pytest.raises(KeyboardInterrupt):
            outcome.set_result(7)
        assert waiting.result(10) == 7


def test_closing_syncs_what_is_pipelined(tmp_path: Path, files: FaultyFiles) -> None:
    """And its futures say so. Those appended while somebody else led were left to the log's sealing, and their futures
    told that a condition was open."""
    store = STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files))
    outcomes = []
    held = files.hold("datasync")
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(commit, STAGING, store, 0)
        assert held.reached.wait(30)
        for n in range(1, 5):
            with store.transaction("pipelined") as tx:
                STAGING.write(tx, n)
            outcomes.append(tx.outcome)
        closer = pool.submit(store.close)
        until(lambda: store.group_commit._closing)
        held.go.set()
        leader.result(30)
        closer.result(30)
    assert [o.result(0) for o in outcomes] == [2, 3, 4, 5]
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == set(range(5))


def test_relaxed_is_shown_once_synced(tmp_path: Path, files: FaultyFiles) -> None:
    settings = Settings(heartbeat_s=0, relaxed_ms=20)
    with STAGING.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        held = files.hold("datasync")
        with store.transaction("relaxed") as tx:
            STAGING.write(tx, 1)
        assert STAGING.numbers(store) == set()
        assert STAGING.numbers(store, unsynced=True) == {1}
        assert held.reached.wait(30), "the bound was kept"
        assert store.positions().durable == 0
        held.go.set()
        store.wait(1, timeout=30)
        assert STAGING.numbers(store) == {1}


def test_the_bound_for_relaxed_holds_after_a_synced_commit_took_the_last_one_along(tmp_path: Path,
                                                                                   files: FaultyFiles) -> None:
    """When the bound ran out while somebody else was syncing, it was never forgotten: it was taken for one that is
    nearer than the next, nobody was woken for that, and relaxed commits stayed unsynced for ever."""
    settings = Settings(heartbeat_s=0, relaxed_ms=30)
    with STAGING.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        held = files.hold("datasync")
        with store.transaction("relaxed") as tx:
            STAGING.write(tx, 1)
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(commit, STAGING, store, 2)
            assert held.reached.wait(30)
            time.sleep(0.2)  # the bound passes while somebody leads
            held.go.set()
            synced.result(30)
        with store.transaction("relaxed") as tx:
            STAGING.write(tx, 3)
        until(lambda: store.positions().durable == 3)


def test_unsynced_needs_an_engine_that_stages(tmp_path: Path) -> None:
    with MEMORY.open(tmp_path / "store") as store, pytest.raises(Unsupported):
        store.snapshot(unsynced=True)


def test_a_snapshot_may_wait_for_a_transaction(tmp_path: Path, files: FaultyFiles) -> None:
    settings = Settings(heartbeat_s=0, relaxed_ms=60_000, wait_s=0.2)
    with STAGING.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        with store.transaction("relaxed") as tx:
            STAGING.write(tx, 1)
        assert STAGING.numbers(store, at_least=1) == {1}
        with pytest.raises(ConditionNotMet, match="not committed yet"):
            store.snapshot(at_least=2)
        with pytest.raises(SettingError):
            store.wait(1, timeout=math.nan)


# --- images ----------------------------------------------------------------------------------------------------------


def test_no_image_is_made_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    """An engine that replaces its file and then notes the new position would name the old one for the new file: a
    backup then restored a state that was ahead of its log. Unless it says that it can, it need not keep the two apart.
    """

    class Watched(MemoryEngine):
        half_way = False

        def checkpoint(self, upto: Position) -> Position:
            self.half_way = True
            other.run(image)
            reached = super().checkpoint(upto)
            self.half_way = False
            return reached

        def image(self) -> Image:
            assert not self.half_way
            return super().image()

    def image() -> None:
        made = store.image()
        positions.append(made.position.txid)
        made.close()

    positions: list[int] = []
    other = Beside()
    with Store.open(tmp_path / "store", Watched, settings=QUIET) as store:
        with store.transaction() as tx:
            tx.put(b"a", b"1")
        store.checkpoint()
        other.finish()
    assert positions == [1]
