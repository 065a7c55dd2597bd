"""The mutex of group commit: whoever touches what it guards holds it.

A race that a missing `with self.mutex` opens is a matter of microseconds, and no run of many threads is sure to meet
it. So the locks here know who holds them, and each call that must be made under the mutex looks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from staging_memory import StagingMemory
from store_kinds import QUIET, STAGING, commit, until

from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import Env, Lock, Scheduler
from holdfast.engine.model.records import LogRange, Record
from holdfast.engine.store.commit_queue import Line
from holdfast.engine.store.store import Store
from holdfast.engine.store.watermarks import Watermarks
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.writer import LogWriter

GUARDED = ((LogWriter, "append"), (LogWriter, "take"), (Watermarks, "append"), (Watermarks, "synced"),
           (Watermarks, "answered"), (Line, "join"), (Line, "take_upto"), (Line, "next_thread"),
           (StagingMemory, "stage"), (StagingMemory, "publish"))
"""What is called under the mutex only, while a store is open."""


class Known:
    """A lock that knows which thread holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.holder: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._lock.acquire(blocking, timeout):
            return False
        self.holder = threading.get_ident()
        return True

    def release(self) -> None:
        self.holder = None
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None, /) -> None:
        self.release()


class KnownLocks(Scheduler):
    def lock(self) -> Lock:
        return Known()


class Guard:
    """Notes who touches what the mutex of `store` guards, and whether it is held.

    Attributes:
        seen: what was touched under the mutex.
        bare: what was touched without it.
    """

    def __init__(self) -> None:
        self.store: Store[Any, Any] | None = None
        self.seen: set[str] = set()
        self.bare: set[str] = set()

    def touched(self, what: str) -> None:
        if self.store is not None:
            mutex: Any = self.store.group_commit.mutex
            (self.seen if mutex.holder == threading.get_ident() else self.bare).add(what)

    def watch(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        @wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.touched(f"{owner.__name__}.{name}")
            return call(*args, **kwargs)

        patch.setattr(owner, name, watched)


class Records(deque[Record]):
    """Those that are kept for plugins that hear of what is published."""

    guard: Guard

    def append(self, record: Record) -> None:
        self.guard.touched("kept.append")
        super().append(record)

    def popleft(self) -> Record:
        self.guard.touched("kept.popleft")
        return super().popleft()


class Hearing(Plugin):
    def __init__(self) -> None:
        self.heard: list[int] = []

    def published(self, records: Any) -> None:
        self.heard += [record.txid for record in records]


class Listening(Hearing):
    def logged(self, batch: LogRange) -> None:
        assert batch.records


@pytest.mark.parametrize(("plugin", "without"), [(Hearing, "Watermarks.answered"), (Listening, "Line.next_thread")])
def test_what_the_mutex_guards_is_touched_under_it(plugin: type[Hearing], without: str, tmp_path: Path,
                                                   files: FaultyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """`without`: what this way through it does not come to. Where a plugin listens, the syncer leads."""
    guard, heard = Guard(), plugin()
    for owner, name in GUARDED:
        guard.watch(monkeypatch, owner, name)
    with STAGING.open(tmp_path / "store", settings=QUIET, plugins=[heard],
                      env=Env(files, scheduler=KnownLocks())) as store:
        commit(STAGING, store, 0)
        until(lambda: heard.heard == [1])
        Records.guard, store.group_commit._kept = guard, Records()
        guard.store = store
        held = files.hold("datasync", only=is_log)
        threads = [threading.Thread(target=commit, args=(STAGING, store, n)) for n in (1, 2, 3)]
        try:
            threads[0].start()
            assert held.reached.wait(30)
            for number, thread in enumerate(threads[1:], 3):  # they stand in line, and one is handed the lead
                thread.start()
                until(lambda n=number: store.positions().appended == n)  # type: ignore[misc]
            until(lambda: len(store.group_commit._line) >= 2)
        finally:
            held.go.set()
        for thread in threads:
            thread.join()
        with store.transaction("relaxed") as tx:
            STAGING.write(tx, 4)
        store.checkpoint()
        until(lambda: heard.heard == [1, 2, 3, 4, 5])
        guard.store = None
    assert guard.bare == set()
    every = {f"{owner.__name__}.{name}" for owner, name in GUARDED} | {"kept.append", "kept.popleft"}
    assert every - guard.seen == {without}, "what was touched at all"


def test_the_time_of_what_is_published_is_read_under_the_mutex(tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit between the two looks would have the time of a later group pass for that of what is published."""
    guard, complete = Guard(), Log.complete_us
    main = threading.get_ident()

    def watched(log: Log) -> int:
        if threading.get_ident() == main:  # maintenance reads it too, for another purpose
            guard.touched("complete_us")
        return complete.fget(log)  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(Log, "complete_us", property(watched))
    with STAGING.open(tmp_path / "store", settings=QUIET, env=Env(scheduler=KnownLocks())) as store:
        commit(STAGING, store, 0)
        guard.store = store
        store.complete_until_us()
        guard.store = None
    assert (guard.seen, guard.bare) == ({"complete_us"}, set())


def test_a_commit_returns_when_views_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watermarks move a moment before the engine publishes. A thread whose record another one had synced looked at
    them in this moment, without the mutex: its commit returned, and its next view lacked what it had written. So did a
    view that was to be `at_least` of this transaction."""
    late, publishing, publish = threading.Event(), threading.Event(), threading.Event()
    shown: dict[str, int] = {}
    with STAGING.open(tmp_path / "store", settings=QUIET) as store:
        engine: Any = store.engine
        wait, real_publish = store.group_commit.wait, engine.publish

        def wait_late(ticket: Any) -> None:
            if threading.current_thread().name == "late":
                assert late.wait(30)
            wait(ticket)

        def publish_late(position: Any) -> None:
            if threading.current_thread().name == "leads":
                publishing.set()
                assert publish.wait(30)
            real_publish(position)

        def write(number: int) -> None:
            commit(STAGING, store, number)
            with store.snapshot() as view:
                shown[threading.current_thread().name] = view.txid

        def read() -> None:
            with store.snapshot(at_least=1) as view:
                shown["reads"] = view.txid

        monkeypatch.setattr(store.group_commit, "wait", wait_late)
        monkeypatch.setattr(engine, "publish", publish_late)
        threads = [threading.Thread(target=write, args=(1,), name="late")]
        threads[0].start()
        until(lambda: store.positions().appended == 1)
        threads += [threading.Thread(target=write, args=(2,), name="leads"), threading.Thread(target=read)]
        threads[1].start()
        assert publishing.wait(30)
        late.set()
        threads[2].start()
        threads[0].join(0.1)
        threads[2].join(0.1)
        publish.set()
        for thread in threads:
            thread.join()
    assert shown["late"] >= 1
    assert shown["leads"] == 2
    assert shown["reads"] >= 1
