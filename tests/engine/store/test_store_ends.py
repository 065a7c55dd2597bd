"""A store that is interrupted, and one that is closed, in the middle of whatever goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from store_kinds import MEMORY, QUIET, STAGING, Kind, commit, until

from holdfast import backup
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import Env, Scheduler, Task
from holdfast.engine.errors import (
    ConditionNotMet,
    InvalidInput,
    LimitReached,
    OutcomeUnknown,
    RolledBack,
    StoreClosed,
    StoreLocked,
)
from holdfast.engine.model.records import LogRange, Record
from holdfast.engine.source.http.service import BackupService
from holdfast.engine.store.commit_queue import CommitTicket
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[Store[Any, Any]]:
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        yield store


# --- signals ---------------------------------------------------------------------------------------------------------


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt."""


def test_one_who_leaves_the_line_hangs_nobody(tmp_path: Path, files: FaultyFiles,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends the wait of a thread in line, also of one who had just been told to lead."""
    with STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        group_commit = store.group_commit
        original = group_commit._wait_in_line

        def interrupted(waiter: Any) -> None:
            class Gate:
                def acquire(self) -> None:
                    gate.acquire()
                    raise Interrupt

                def release(self) -> None:
                    gate.release()

            gate = waiter.gate
            waiter.gate = Gate()
            original(waiter)

        held = files.hold("datasync")
        with ThreadPoolExecutor(5) as pool:
            first = pool.submit(commit, STAGING, store, 0)
            assert held.reached.wait(30)
            monkeypatch.setattr(group_commit, "_wait_in_line", interrupted)
            second = pool.submit(commit, STAGING, store, 1)  # next in line, so it will be told to lead
            until(lambda: len(group_commit._line) == 1)
            monkeypatch.undo()
            others = [pool.submit(commit, STAGING, store, n) for n in (2, 3)]
            until(lambda: len(group_commit._line) == 3)
            held.go.set()
            first.result(30)
            with pytest.raises(Interrupt):
                second.result(30)
            for other in others:
                other.result(30)
        commit(STAGING, store, 4)
        assert STAGING.numbers(store) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
def test_an_interrupted_sync_poisons_and_stays_an_interrupt(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    """Whether the bytes are on disk is not known. The interrupt was told as `OutcomeUnknown`, and so swallowed."""
    store = kind.open(tmp_path / "store", settings=QUIET, env=Env(files))
    commit(kind, store, 0)

    def interrupt(what: str, path: Path) -> None:
        if what == "datasync" and is_log(path):
            raise Interrupt

    files.before = interrupt
    with pytest.raises(Interrupt):
        commit(kind, store, 1)
    files.heal()
    assert store.poisoned
    with pytest.raises(RolledBack):
        commit(kind, store, 2)
    assert kind.numbers(store) == {0}
    store.close()
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) in ({0}, {0, 1})


def test_an_interrupted_wait_at_a_barrier_leaves_nobody_stuck(tmp_path: Path, files: FaultyFiles,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not stage gets the transaction when it is durable. If the wait for that is interrupted, it
    must get it all the same: the next writer builds on it. It never did, and an assertion met every later commit."""
    with MEMORY.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        def interrupted(ticket: CommitTicket) -> None:
            raise Interrupt

        monkeypatch.setattr(store.group_commit, "wait", interrupted)
        with pytest.raises(Interrupt):
            commit(MEMORY, store, 1)
        monkeypatch.undo()
        commit(MEMORY, store, 2)
        assert MEMORY.numbers(store) == {1, 2}


@pytest.mark.parametrize("where", ["stage", "append"])
def test_logged_and_not_staged_is_never_built_upon(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between the two: the log has a transaction that the next transaction would not see."""
    store = STAGING.open(tmp_path / "store", settings=QUIET)
    commit(STAGING, store, 0)
    original = store.log.writer.append

    def interrupted(*args: Any, **how: Any) -> Any:
        original(*args, **how)
        raise Interrupt

    if where == "stage":
        monkeypatch.setattr(store.engine, "stage", lambda record, tx: (_ for _ in ()).throw(Interrupt()))
    else:
        monkeypatch.setattr(store.log.writer, "append", interrupted)
    with pytest.raises(Interrupt):
        commit(STAGING, store, 1)
    monkeypatch.undo()
    assert store.poisoned
    with pytest.raises(RolledBack):
        commit(STAGING, store, 2)
    store.close()
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) in ({0}, {0, 1})


# --- closing ---------------------------------------------------------------------------------------------------------


def test_a_closed_store_says_so(kind: Kind, tmp_path: Path) -> None:
    store = kind.open(tmp_path / "store")
    commit(kind, store, 1)
    store.close()
    store.close()
    for call in (store.snapshot, store.checkpoint, store.prune, store.image, lambda: commit(kind, store, 2)):
        with pytest.raises(StoreClosed):
            call()


def test_closing_waits_for_an_open_transaction(kind: Kind, tmp_path: Path) -> None:
    store = kind.open(tmp_path / "store", settings=QUIET)
    transacting, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with store.transaction() as tx:
            kind.write(tx, 1)
            transacting.set()
            assert go_on.wait(30)

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(slow)
        assert transacting.wait(30)
        waiting = pool.submit(commit, kind, store, 2)
        closer = pool.submit(store.close)
        until(lambda: store._ending.holder is not None)
        go_on.set()
        writer.result(30)
        closer.result(30)
        with suppress(StoreClosed):  # either way, but it ends
            waiting.result(30)
    with kind.open(tmp_path / "store") as store:
        assert 1 in kind.numbers(store)
        assert store.recovery.clean


def test_closing_beside_a_transaction_that_does_not_end_is_bounded(kind: Kind, tmp_path: Path) -> None:
    """It is rolled back when it ends. A checkpoint that waits for the same lock does not hold the closing up."""
    settings = Settings(heartbeat_s=0, wait_s=0.3, checkpoint_soft_bytes=1)
    store = kind.open(tmp_path / "store", settings=settings)
    transacting, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with store.transaction() as tx:
            kind.write(tx, 1)
            transacting.set()
            assert go_on.wait(30)

    with ThreadPoolExecutor(2) as pool:
        commit(kind, store, 0)
        writer = pool.submit(slow)
        assert transacting.wait(30)
        checkpoint = pool.submit(store.checkpoint)
        store.close()
        go_on.set()
        with pytest.raises(RolledBack):
            writer.result(30)
        with suppress(StoreClosed):
            checkpoint.result(30)
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == {0}


def test_closing_from_within_a_transaction_is_refused(kind: Kind, store: Store[Any, Any]) -> None:
    with store.transaction() as tx:
        kind.write(tx, 1)
        with pytest.raises(InvalidInput, match="transaction open"):
            store.close()
    assert kind.numbers(store) == {1}


def test_many_may_close(tmp_path: Path) -> None:
    store = MEMORY.open(tmp_path / "store", settings=QUIET)
    commit(MEMORY, store, 1)
    with ThreadPoolExecutor(4) as pool:
        for closing in [pool.submit(store.close) for _ in range(4)]:
            closing.result(30)
            assert store.closed
    MEMORY.open(tmp_path / "store").close()


def test_a_checkpoint_within_a_transaction_is_refused_where_it_would_wait_for_itself(tmp_path: Path) -> None:
    with MEMORY.open(tmp_path / "store") as store, store.transaction() as tx:
        MEMORY.write(tx, 1)
        with pytest.raises(InvalidInput, match="checkpoint"):
            store.checkpoint()


def test_waiting_for_a_transaction_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """It would have waited for ever for whoever mistyped the number."""
    with Store.open(tmp_path / "store", MemoryEngine) as store:
        with store.transaction() as tx:
            tx.put(b"k", b"v")
        store.wait(1, timeout=30)
        with pytest.raises(InvalidInput, match="the last is 1"):
            store.wait(2)


def test_what_outlives_close_appends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bulk load that `close` no longer waited for came to its record when another process had the store open, and
    replaced that one's segment with its own."""
    store = STAGING.open(tmp_path / "store", settings=Settings(heartbeat_s=0, wait_s=0.1))
    original, closed = store.group_commit.append, threading.Event()

    def late(*args: Any, **kwargs: Any) -> tuple[Record, CommitTicket]:
        closed.wait(30)
        return original(*args, **kwargs)

    monkeypatch.setattr(store.group_commit, "append", late)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(store.bulk, {b"1": b""})
        until(lambda: store.write_path.lock.holder is not None)
        store.close()
        with STAGING.open(tmp_path / "store") as other:
            commit(STAGING, other, 2)
            files = sorted(path.name for path in other.log.directory.iterdir())
            closed.set()
            with pytest.raises(RolledBack):
                load.result(30)
            assert sorted(path.name for path in other.log.directory.iterdir()) == files
            commit(STAGING, other, 3)
    with STAGING.open(tmp_path / "store") as again:
        assert STAGING.numbers(again) == {2, 3}


def test_closing_that_was_interrupted_goes_on_when_asked_again(kind: Kind, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """It counted as closed, and its directory stayed locked for as long as the process lived."""
    store = kind.open(tmp_path / "store", settings=QUIET)
    commit(kind, store, 1)
    monkeypatch.setattr(store, "_stop_committing", lambda: (_ for _ in ()).throw(Interrupt()))
    with pytest.raises(Interrupt):
        store.close()
    with pytest.raises(StoreLocked):
        kind.open(tmp_path / "store")
    monkeypatch.undo()
    store.close()
    with kind.open(tmp_path / "store") as store:
        assert store.recovery.clean
        assert kind.numbers(store) == {1}


class Listening(Plugin):
    def logged(self, batch: LogRange) -> None:
        return None


class Failing(Scheduler):
    """Fails to start the threads of one name: the system has no more of them, or a signal's handler raises when the
    thread runs already."""

    def __init__(self, name: str, runs: bool) -> None:
        self.name, self.runs = name, runs

    def spawn(self, name: str, work: Callable[[], None]) -> Task:
        if name != self.name:
            return super().spawn(name, work)
        if self.runs:
            super().spawn(name, work)
            raise Interrupt
        raise RuntimeError("can't start new thread")


def ours(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread not in before}


@pytest.mark.parametrize("runs", [False, True], ids=["none is left", "interrupted"])
@pytest.mark.parametrize("name", ["holdfast-sync", "holdfast-ack", "holdfast-keep", "holdfast-entry",
                                  "holdfast-source"])
def test_without_threads_a_store_does_not_open_and_holds_nothing(name: str, runs: bool, tmp_path: Path) -> None:
    """Its directory stayed locked. And where an opening was interrupted as a thread began, that thread stayed, asleep,
    and kept the log's files open until the process ended. A plugin that gets no thread is a limit too."""
    before = set(threading.enumerate())
    with pytest.raises(Interrupt if runs else LimitReached):
        STAGING.open(tmp_path / "store", env=Env(scheduler=Failing(name, runs)),
                     plugins=[Listening(), BackupService(online_backup_server=":0")])
    until(lambda: not ours(before))
    with STAGING.open(tmp_path / "store") as store:
        commit(STAGING, store, 1)


@pytest.mark.parametrize("runs", [False, True], ids=["none is left", "interrupted"])
@pytest.mark.parametrize("name", ["holdfast-lease", "holdfast-read-ahead"])
def test_without_threads_a_backup_leaves_none_behind(name: str, runs: bool, tmp_path: Path) -> None:
    """Those that read ahead stayed when one of them could not be started."""
    with STAGING.open(tmp_path / "store", settings=QUIET) as store:
        commit(STAGING, store, 1)
        before = set(threading.enumerate())
        with pytest.raises(Interrupt if runs else LimitReached):
            backup.run(store, tmp_path / "b", env=Env(scheduler=Failing(name, runs)))
        until(lambda: not ours(before))
        assert backup.run(store, tmp_path / "b").kind == "full"


def test_the_store_s_block_is_left_before_the_transaction_s(kind: Kind, tmp_path: Path) -> None:
    """The wrong way round, and with an error: that is what is told, and nothing is committed."""
    store = kind.open(tmp_path / "store", settings=QUIET)
    with pytest.raises(ValueError, match="mine"), store.transaction() as tx, store:
        kind.write(tx, 1)
        raise ValueError("mine")
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == set()


@pytest.mark.parametrize(("why", "told"), [(Interrupt(), Interrupt),
                                           (ConditionNotMet("late", txid=1), OutcomeUnknown)], ids=["signal", "late"])
def test_without_a_thread_to_apply_it_late_a_transaction_poisons(why: BaseException, told: type[BaseException],
                                                                 tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the log, and nobody would give it to the engine: the writer lock stayed taken for good. And who commits
    was told of the thread that is not there, and not what that means for the transaction."""
    def ended(ticket: CommitTicket) -> None:
        raise why

    store = MEMORY.open(tmp_path / "store", settings=QUIET, env=Env(scheduler=Failing("holdfast-late", runs=False)))
    monkeypatch.setattr(store.group_commit, "wait", ended)
    with pytest.raises(told) as raised:
        commit(MEMORY, store, 1)
    assert isinstance(store.group_commit.poison, RuntimeError)
    assert raised.value is why or raised.value.__cause__ is store.group_commit.poison
    monkeypatch.undo()
    with pytest.raises(RolledBack):
        commit(MEMORY, store, 2)
    store.close()
    with MEMORY.open(tmp_path / "store") as store:
        assert MEMORY.numbers(store) in (set(), {1})
