"""Plugins: every moment, in order; what each may do, and what becomes of the commit when it raises."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_kinds import GRAPH, MEMORY, QUIET, RECORDS, STAGING, Kind, commit, until

from holdfast.engine.contract.plugin import Condition, Plugin, StoreHandle
from holdfast.engine.contract.transaction import Transaction
from holdfast.engine.env import Clock, Env, Files
from holdfast.engine.errors import (
    InvalidInput,
    OutcomeUnknown,
    PluginError,
    RolledBack,
    SettingError,
    StoreClosed,
    StoreLocked,
)
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange, Record, SegmentInfo
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
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

    def opened(self, store: StoreHandle) -> None:
        self.note("opened")

    def closing(self, store: StoreHandle) -> None:
        self.note("closing")

    def committing(self, tx: Transaction) -> None:
        self.note("committing")

    def final(self, tx: Transaction) -> None:
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
        assert [s.ordinal for s in told.segments] == [1, 2, 3]
        assert all(s.sealed for s in told.segments)
        store.checkpoint()
        store.prune()  # unless it did by itself
        assert len(store.log.segments()) == 1
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
        store.prune()  # unless it did by itself
        assert len(store.log.segments()) == 1


# --- committing and final --------------------------------------------------------------------------------------------


def test_committing_may_add_and_final_sees_it(kind: Kind, tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Adds(Plugin):
        def committing(self, tx: Any) -> None:
            kind.write(tx, 1000)

    class Looks(Plugin):
        def final(self, tx: Any) -> None:
            seen.append(tx.payload())

    with kind.open(tmp_path / "store", plugins=[Looks(), Adds()]) as store:
        commit(kind, store, 1)
        assert kind.numbers(store) == {1, 1000}
        assert seen == [next(store.log.read(0)).payload]


def test_what_final_adds_rolls_back(kind: Kind, tmp_path: Path) -> None:
    class Adds(Plugin):
        adds = True

        def final(self, tx: Any) -> None:
            if self.adds:
                kind.write(tx, 2000)

    plugin = Adds()
    with kind.open(tmp_path / "store", plugins=[plugin]) as store:
        with pytest.raises(RolledBack, match=r"Adds\.final changed the final transaction"):
            commit(kind, store, 1)
        assert kind.numbers(store) == set()
        plugin.adds = False
        commit(kind, store, 2)
        assert kind.numbers(store) == {2}


def test_no_other_thread_changes_what_is_being_committed(kind: Kind, tmp_path: Path) -> None:
    """It would be in the state and not in the log, or nowhere. Engines do nothing for it: a method that was fetched
    before, and one that is called of the class, are refused too."""
    refused: list[StoreClosed] = []

    def attempt(change: Any, *args: Any) -> None:
        with pytest.raises(StoreClosed, match="being committed") as caught:
            change(*args)
        refused.append(caught.value)

    class Waits(Plugin):
        def final(self, tx: Any) -> None:
            method = "insert" if kind is RECORDS else "add_node" if kind is GRAPH else "put"
            args = ("N",) if kind is GRAPH else (b"late",) if kind is RECORDS else (b"77", b"late")
            fetched = getattr(tx, method)
            unbound = getattr(type(tx), method)
            for change, some in ((fetched, args), (unbound, (tx, *args)), (setattr, (tx, "changes", {}))):
                thread = threading.Thread(target=attempt, args=(change, *some))
                thread.start()
                thread.join()

    with kind.open(tmp_path / "store", plugins=[Waits()]) as store:
        with store.transaction() as tx:
            kind.write(tx, 1)
        assert len(refused) == 3
        assert tx.txid == 1
        with pytest.raises(StoreClosed, match="ended"):
            kind.write(tx, 2)
        assert kind.numbers(store) == {1}
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == {1}


@pytest.mark.parametrize("moment", ["committing", "final"])
def test_a_refusal_rolls_back_and_says_why(kind: Kind, moment: str, tmp_path: Path) -> None:
    class Refuses(Plugin):
        refuse = True

        def committing(self, tx: Any) -> None:
            kind.write(tx, 1000)

    def refusal(tx: Any) -> None:
        if plugin.refuse:
            raise ValueError("not on a Sunday")

    base = Refuses.committing

    class Both(Refuses):
        def committing(self, tx: Any) -> None:
            base(self, tx)
            if moment == "committing":
                refusal(tx)

        def final(self, tx: Any) -> None:
            if moment == "final":
                refusal(tx)

    plugin = Both()
    with kind.open(tmp_path / "store", plugins=[plugin]) as store:
        with pytest.raises(RolledBack, match="Sunday") as caught:
            commit(kind, store, 1)
        assert isinstance(caught.value.__cause__, ValueError)
        assert kind.numbers(store) == set()
        assert store.log.writer.appended.txid == 0
        plugin.refuse = False
        commit(kind, store, 2)
        assert kind.numbers(store) == {2, 1000}


def test_a_hook_under_the_writer_lock_cannot_commit(kind: Kind, tmp_path: Path) -> None:
    class Reenters(Plugin):
        def opened(self, store: StoreHandle) -> None:
            self.store = store

        def committing(self, tx: Any) -> None:
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
        def final(self, tx: Any) -> None:
            """A second goes by."""

    settings = Settings(heartbeat_s=0, hook_s=hook_s)
    with kind.open(tmp_path / "store", plugins=[Looks()], settings=settings, env=Env(clock=SlowClock())) as store:
        if hook_s < 1:
            with pytest.raises(RolledBack, match=r"Looks.final took 1.0 s .* hook_s"):
                commit(kind, store, 1)
        else:
            commit(kind, store, 1)
        assert kind.numbers(store) == (set() if hook_s < 1 else {1})


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

    def closing(self, store: StoreHandle) -> None:
        raise RuntimeError("closing")


def test_observers_that_raise_are_logged_and_harm_nothing(kind: Kind, tmp_path: Path,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    files, told = FaultyFiles(), Told("told", [])
    store = kind.open(tmp_path / "store", settings=Settings(heartbeat_s=0, segment_bytes=128 << 10),
                      plugins=[Broken(), told], env=Env(files))
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
        def opened(self, store: StoreHandle) -> None:
            raise error

    told = Told("told", [])
    expected = PluginError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected, match="no port"):
        kind.open(tmp_path / "store", plugins=[told, Starts()])
    assert [m for _, m in told.notes] == ["opened", "closing"]
    with kind.open(tmp_path / "store") as store:
        commit(kind, store, 1)
        assert store.recovery.clean


def test_an_opening_that_is_undone_takes_no_other_s_store_with_it(kind: Kind, tmp_path: Path) -> None:
    """It removed the store that it had just made, its lock file, and then whatever was in the directory: somebody else
    had made a store there meanwhile, and what he committed was gone."""
    others: list[Store[Any, Any]] = []

    class CannotStart(Plugin):
        def opened(self, store: StoreHandle) -> None:
            raise RuntimeError("no port")

    class Meanwhile(Files):
        def remove_directory(self, path: Path) -> None:
            others.append(kind.open(path))
            commit(kind, others[0], 1)
            super().remove_directory(path)

    with pytest.raises(PluginError):
        kind.open(tmp_path / "store", plugins=[CannotStart()], env=Env(files=Meanwhile()))
    (other,) = others
    commit(kind, other, 2)
    other.close()
    with kind.open(tmp_path / "store", create=False) as store:
        assert kind.numbers(store) == {1, 2}


def test_only_plugins_that_were_opened_are_told_closing(kind: Kind, tmp_path: Path) -> None:
    """Whoever raises in *opened* cleans up after himself, as with `contextlib.ExitStack`."""
    notes: list[tuple[str, str]] = []

    class CannotStart(Told):
        def opened(self, store: StoreHandle) -> None:
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
        def opened(self, store: StoreHandle) -> None:
            commit(STAGING, store, 1)

        def closing(self, store: StoreHandle) -> None:
            commit(STAGING, store, 2)

    STAGING.open(tmp_path / "store", plugins=[Writes()]).close()
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == {1, 2}
        with pytest.raises(InvalidInput), store.transaction():
            commit(STAGING, store, 3)


class CannotStart(Plugin):
    def opened(self, store: StoreHandle) -> None:
        raise RuntimeError("no")


class CommitsAtFirst(Plugin):
    def opened(self, store: StoreHandle) -> None:
        commit(MEMORY, store, 1)


def test_an_opening_that_fails_leaves_no_store_that_was_not_there(kind: Kind, tmp_path: Path) -> None:
    """Neither an option that the engine refuses nor a plugin that cannot start makes one; what was committed stays."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(InvalidInput, match="unknown engine option"):
            kind.open(path, options={"colour": "red"})
        with pytest.raises(PluginError):
            kind.open(path, plugins=[CannotStart()])
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(PluginError):
        MEMORY.open(tmp_path / "kept", plugins=[CommitsAtFirst(), CannotStart()])
    with MEMORY.open(tmp_path / "kept", create=False) as store:
        assert MEMORY.numbers(store) == {1}
        with pytest.raises(StoreLocked):
            MEMORY.open(tmp_path / "kept")
    with pytest.raises(PluginError):
        MEMORY.open(tmp_path / "kept", plugins=[CannotStart()])
    MEMORY.open(tmp_path / "kept", create=False).close()
