"""Whatever an engine, a plugin or a log does wrong, nobody waits for ever.

Each test runs in a thread of its own and is given up after a while, with a word about where it stood.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from staging_memory import StagingMemory
from store_kinds import until

from holdfast.engine import Store
from holdfast.engine.builtin.memory import MemoryTransaction, MemoryView
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.env import REAL, Env, Files
from holdfast.engine.errors import (
    ConditionNotMet,
    Damaged,
    DiskFull,
    InvalidInput,
    OutcomeUnknown,
    RolledBack,
    StoreClosed,
)
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange, Record, SegmentInfo
from holdfast.engine.store.settings import Settings
from holdfast.engine.testing import KeyValues
from holdfast.engine.testing.disks.quiet import quiet_env
from holdfast.engine.testing.plugin.watching import bounded
from holdfast.engine.testing.support import worker
from holdfast.engine.testing.support.interleave import Beside

QUICK = Settings(wait_s=1, heartbeat_s=0)


def ends(work: Callable[[], None]) -> None:
    bounded(20, work, list)


def opened(path: Path, *plugins: Plugin, engine: type[StagingMemory] = StagingMemory, settings: Settings = QUICK,
           env: Env = REAL) -> Store[Any, Any]:
    return Store.open(path / "store", engine, plugins=plugins, settings=settings, env=env)


def put(store: Store[Any, Any], value: bytes = b"value") -> None:
    with store.transaction() as tx:
        tx.put(b"key", value)


class Answering(Plugin):
    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def logged(self, batch: LogRange) -> Condition | None:
        answer, self.answer = self.answer, lambda: None
        found: Condition | None = answer()
        return found


def _senseless(met: Any, timeout: Any) -> Condition:
    return Condition(met=met, timeout=timeout, gates_publication=False, name="senseless")


@pytest.mark.parametrize("answer", [
    lambda: _senseless(None, 1.0), lambda: _senseless(Future(), None), lambda: "no condition", lambda: sys.exit("no"),
], ids=["no future", "no time-out", "no condition", "it exits"])
def test_a_senseless_answer_is_a_condition_that_failed(tmp_path: Path, answer: Callable[[], Any]) -> None:
    def work() -> None:
        with opened(tmp_path, Answering(answer)) as store:
            with pytest.raises(ConditionNotMet):
                put(store)
            put(store)
            assert not store.poisoned

    ends(work)


class CannotPublish(StagingMemory):
    """Fails when it has something to publish, which it is told outside of the leader where plugins listen."""

    def publish(self, position: Position) -> None:
        if self._waiting and self._waiting[0].txid <= position.txid:
            raise RuntimeError("it cannot be published")
        super().publish(position)


def test_an_engine_that_cannot_publish_poisons(tmp_path: Path) -> None:
    def work() -> None:
        with opened(tmp_path, Answering(lambda: None), engine=CannotPublish) as store:
            with pytest.raises(OutcomeUnknown, match="cannot be published"):
                put(store)
            assert store.poisoned

    ends(work)


def test_an_engine_that_cannot_publish_what_is_met_later_poisons(tmp_path: Path) -> None:
    met: Future[None] = Future()
    asked = threading.Event()

    def answer() -> Condition:
        asked.set()
        return Condition(met=met, timeout=15, gates_publication=True, name="later")

    def meet() -> None:
        asked.wait(10)
        met.set_result(None)

    def work() -> None:
        with opened(tmp_path, Answering(answer), engine=CannotPublish) as store:
            threading.Thread(target=meet, daemon=True).start()
            with pytest.raises(OutcomeUnknown, match="cannot be published"):
                put(store)

    ends(work)


@pytest.mark.parametrize("told", [True, False], ids=["a hook", "a callback"])
def test_what_exits_in_the_syncer_does_not_end_it(tmp_path: Path, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Exiting(Plugin):
        if told:
            def published(self, records: Any) -> None:
                sys.exit("in a hook")

    def commit(store: Store[Any, Any]) -> None:
        with store.transaction("pipelined") as tx:
            tx.put(b"key", str(time.time()).encode())
            if not told:
                store.log.writer.write = slowly  # type: ignore[method-assign]  # so that the callback is there in time
        if not told:
            tx.outcome.add_done_callback(lambda _: sys.exit("in a callback"))
        assert tx.outcome.result(10) == tx.txid

    def slowly(batch: Any) -> Position:
        time.sleep(0.1)
        return type(store.log.writer).write(store.log.writer, batch)

    def work() -> None:
        for _ in range(3):
            commit(store)

    with opened(tmp_path, Exiting()) as store, caplog.at_level(logging.CRITICAL):
        ends(work)


def test_a_store_closes_while_a_bulk_load_waits_for_room(tmp_path: Path) -> None:
    class Full(StagingMemory):
        def apply_bulk(self, record: Record, path: Path) -> None:
            tried.set()
            raise DiskFull("no room")

        def pending_bytes(self) -> int:
            return 1 << 20  # so that maintenance wants a checkpoint, which must wait for the bulk load

    tried = threading.Event()
    store = opened(tmp_path, engine=Full, settings=Settings(wait_s=1, checkpoint_soft_bytes=1000,
                                                            checkpoint_hard_bytes=1 << 40))

    def load() -> None:
        with pytest.raises(OutcomeUnknown):
            store.bulk({b"key": b"value"})

    beside = Beside(0)
    put(store)
    beside.run(load)
    assert tried.wait(10)
    time.sleep(1)  # maintenance looks twice a second
    ends(store.close)
    beside.finish()


def test_quiet_waits_end(tmp_path: Path) -> None:
    class Behind(StagingMemory):
        def pending_bytes(self) -> int:
            return 1 << 40

    def work() -> None:
        with opened(tmp_path, engine=Behind, env=quiet_env(Files())) as store, pytest.raises(RolledBack):
            put(store)

    ends(work)


def test_a_log_whose_end_is_nowhere_is_damaged(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store)
        end = store.log.end
        store.log._set.end = Position(end.txid + 1, end.chain)
        try:
            with pytest.raises(Damaged, match="transaction 2 is missing"):
                ends(lambda: list(store.log.read(0)).clear())
        finally:
            store.log._set.end = end


def test_threads_that_hang_in_a_child_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    class Hanging(StagingMemory):
        def begin(self) -> MemoryTransaction:
            tx = super().begin()
            if self._position.txid or self._newest[1].txid > 3:
                go.wait(15)
            return tx

    monkeypatch.setattr(worker, "STILL_S", 0.5)
    work = KeyValues(Hanging, put=MemoryTransaction.put, items=MemoryView.items)
    plan = worker.Plan(directory=tmp_path / "store", states=None, script=[[]], first=0, count=30, settings=QUICK)

    def say(kind: str, *about: Any) -> None:
        if kind == "broken":
            go.set()

    def child() -> None:
        with pytest.raises(AssertionError, match="no thread has ended a transaction"):
            worker.drive(work, say, plan)

    ends(child)
    go.set()


def called_back(store: Store[Any, Any], call: Callable[[], object]) -> Future[Any]:
    """What `call` comes to as the callback of a pipelined commit."""
    result: Future[Any] = Future()

    def callback(_: Future[int]) -> None:
        try:
            result.set_result(call())
        except Exception as error:
            result.set_exception(error)

    with store.transaction("pipelined") as tx:
        tx.put(b"key", b"first")
    tx.outcome.add_done_callback(callback)
    return result


@pytest.mark.parametrize("what", ["synced", "wait", "bulk", "empty", "at least", "checkpoint", "close"])
def test_a_callback_may_wait_for_commits_and_close(tmp_path: Path, what: str) -> None:
    """It ran in the thread that everybody else waits for, so that a commit in it waited for itself, and closing there
    left the store half closed, and its directory locked for as long as the process lived."""
    def call() -> None:
        if what == "close":
            store.close()
        elif what == "bulk":
            store.bulk({b"1": b""})
        elif what == "synced":
            put(store)
        elif what == "checkpoint":
            store.checkpoint()
        else:
            with store.transaction("pipelined") as tx:
                tx.put(b"key", b"second")
            if what == "wait":
                store.wait(tx.txid)
            elif what == "at least":
                store.snapshot(at_least=tx.txid).close()
            else:
                with store.transaction():
                    pass

    def work() -> None:
        called_back(store, call).result(10)
        if what != "close":
            put(store)
        store.close()
        opened(tmp_path).close()

    store = opened(tmp_path)
    ends(work)


def test_a_plugin_cannot_close_the_store_in_the_store_s_own_thread(tmp_path: Path) -> None:
    """As above: the hook ran in the thread that closing waits for."""
    class Closing(Plugin):
        def sealed(self, segment: SegmentInfo) -> None:
            try:
                store.close()
            except InvalidInput as error:
                refused.set_result(error)

    def work() -> None:
        for _ in range(3):
            put(store, bytes(60_000))
        assert "thread of your own" in refused.result(10).hint
        put(store)
        store.close()

    refused: Future[InvalidInput] = Future()
    store = opened(tmp_path, Closing(), settings=Settings(heartbeat_s=0, segment_bytes=128 << 10))
    ends(work)


def test_a_store_closes_although_a_callback_came_to_wait_for_the_writer(tmp_path: Path) -> None:
    """Closing held the writer lock and waited for the thread that syncs; that one ran a callback, which waited for the
    writer lock."""
    def late() -> None:
        assert closing.wait(10)
        put_pipelined()

    def put_pipelined() -> None:
        with store.transaction("pipelined") as tx:
            tx.put(b"key", b"second")

    def work() -> None:
        result = called_back(store, late)
        with ThreadPoolExecutor(1) as pool:
            with store.transaction("pipelined") as tx:
                closer = pool.submit(store.close)
                until(lambda: store._ending.holder is not None)
                closing.set()
                time.sleep(0.2)
                tx.put(b"key", b"third")
            closer.result(15)
        refused = result.exception(10)  # None if it got the lock before closing did
        assert refused is None or isinstance(refused, StoreClosed)
        with opened(tmp_path) as again, again.snapshot() as view:
            assert view.get(b"key") == (b"second" if refused is None else b"third")

    closing = threading.Event()
    store = opened(tmp_path, settings=Settings(heartbeat_s=0))
    ends(work)


def test_a_callback_waits_for_a_writer_who_waits_for_a_commit(tmp_path: Path) -> None:
    """A bulk load has the writer lock and waits for what was committed before, which plugins listen to. That was
    acknowledged in the very thread in which the callback waited for the writer lock."""
    class Load(dict[bytes, bytes]):
        def items(self) -> Any:
            loading.set()
            time.sleep(0.2)
            return super().items()

    def callback() -> None:
        assert loading.wait(10)
        with store.transaction("pipelined") as tx:
            tx.put(b"key", b"second")

    def work() -> None:
        with store:
            result = called_back(store, callback)
            assert store.bulk(Load({b"1": b""})) == 2
            result.result(10)
            put(store)

    loading = threading.Event()
    store = opened(tmp_path, Answering(lambda: None))
    ends(work)
