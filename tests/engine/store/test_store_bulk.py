"""Bulk loads through the store: one transaction each, whatever fails on the way. Their crashes are in
`test_store_crash`."""

from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_kinds import GRAPH, MEMORY, QUIET, RECORDS, STAGING, Kind, commit, until

from holdfast.engine.builtin.graph import BulkLoad
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.contract.transaction import Transaction
from holdfast.engine.env import Env
from holdfast.engine.errors import (
    ConditionNotMet,
    Damaged,
    DiskFull,
    InvalidInput,
    OutcomeUnknown,
    RolledBack,
    StorePoisoned,
    Unsupported,
)
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log


@pytest.fixture(params=[STAGING, GRAPH], ids=["staging", "graph"])
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


def load(kind: Kind, *numbers: int) -> Any:
    if kind is STAGING:
        return {b"%d" % n: b"bulk" for n in numbers}
    return BulkLoad(nodes=[("N", {"n": n}) for n in numbers])


def attachments(store: Store[Any, Any]) -> list[str]:
    directory = store.log.directory / "attachments"
    return sorted(p.name for p in directory.iterdir()) if directory.exists() else []


def test_a_bulk_load_is_one_transaction_in_its_place(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        commit(kind, store, 1)
        outcomes = []
        for n in (2, 3):
            with store.transaction("pipelined") as tx:
                kind.write(tx, n)
            outcomes.append(tx.outcome)
        with store.snapshot(at_least=3) as before:
            assert store.bulk(load(kind, *range(10, 20))) == 4
            assert kind.of(before) == {1, 2, 3}
        assert [o.result(0) for o in outcomes] == [2, 3]
        assert kind.numbers(store) == {1, 2, 3, *range(10, 20)}
        assert store.engine.position.txid == 4, "checkpointed with it"
        commit(kind, store, 5)
        assert store.log.attached() == [4]
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == {1, 2, 3, 5, *range(10, 20)}


@pytest.mark.parametrize("kind", [MEMORY, RECORDS], ids=["memory", "records"])
def test_an_engine_without_bulk_loads_says_so(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store") as store, pytest.raises(Unsupported):
        store.bulk({})


def test_what_is_no_load_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        with pytest.raises(InvalidInput):
            store.bulk("nonsense")
        assert store.log.writer.appended.txid == 0
        assert attachments(store) == []
        commit(kind, store, 1)
        assert kind.numbers(store) == {1}


def test_within_a_transaction_it_is_refused(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        with store.transaction() as tx:
            kind.write(tx, 1)
            with pytest.raises(InvalidInput, match="already"):
                store.bulk(load(kind, 2))
        assert kind.numbers(store) == {1}


@pytest.mark.parametrize("what", ["create", "pwrite", "sync", "rename", "sync_directory"])
def test_without_room_for_its_file_nothing_happened(kind: Kind, what: str, tmp_path: Path, files: FaultyFiles) -> None:
    with kind.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        commit(kind, store, 1)
        files.fail(what, code=errno.ENOSPC, only=lambda path: "attachments" in str(path))
        with pytest.raises(DiskFull):
            store.bulk(load(kind, 2))
        files.heal()
        assert store.log.writer.appended.txid == 1
        assert store.bulk(load(kind, 3)) == 2
        assert len(attachments(store)) == 1 or what == "sync_directory"
        assert kind.numbers(store) == {1, 3}
    with kind.open(tmp_path / "store") as store:
        assert len(attachments(store)) == 1
        assert kind.numbers(store) == {1, 3}


def test_without_room_for_what_it_adds_to_the_state_nothing_happened(tmp_path: Path, files: FaultyFiles) -> None:
    with GRAPH.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        commit(GRAPH, store, 1)

        def full(what: str, path: Path) -> None:
            if what == "reserve" and "state" in path.parts:
                raise DiskFull("injected")

        files.before = full
        with pytest.raises(DiskFull, match="injected"):
            store.bulk(load(GRAPH, 2))
        files.heal()
        assert store.log.writer.appended.txid == 1
        assert attachments(store) == []
        assert store.bulk(load(GRAPH, 3)) == 2
        assert GRAPH.numbers(store) == {1, 3}


def test_poison_while_it_is_logged(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    store = kind.open(tmp_path / "store", settings=QUIET, env=Env(files))
    commit(kind, store, 1)
    files.fail("datasync", only=is_log)
    with pytest.raises(OutcomeUnknown):
        store.bulk(load(kind, 2, 3))
    files.heal()
    with pytest.raises(StorePoisoned):
        store.bulk(load(kind, 4))
    assert kind.numbers(store) == {1}
    store.close()
    with kind.open(tmp_path / "store") as store:
        found = kind.numbers(store)
        assert found in ({1}, {1, 2, 3})
        assert len(attachments(store)) == (found == {1, 2, 3})
        commit(kind, store, 9)


def test_an_interrupt_after_it_was_logged_poisons_and_keeps_its_file(kind: Kind, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was removed although a record named it: damage, at the next opening."""
    class Interrupt(BaseException):
        pass

    store = kind.open(tmp_path / "store", settings=QUIET)
    commit(kind, store, 1)
    original = store.log.writer.append

    def interrupted(*args: Any, **how: Any) -> Any:
        original(*args, **how)
        raise Interrupt

    monkeypatch.setattr(store.log.writer, "append", interrupted)
    with pytest.raises(Interrupt):
        store.bulk(load(kind, 2))
    monkeypatch.undo()
    assert store.poisoned
    assert len(attachments(store)) == 1
    store.close()
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) in ({1}, {1, 2})


def test_without_room_to_apply_it_waits_for_room(tmp_path: Path, files: FaultyFiles) -> None:
    """It is in the log, so it will be in the state; nobody else may write before that."""
    with STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files)) as store:
        commit(STAGING, store, 1)
        files.fail("pwrite", code=errno.ENOSPC, only=lambda path: "state" in path.parts)
        with ThreadPoolExecutor(2) as pool:
            loading = pool.submit(store.bulk, load(STAGING, 2, 3))
            until(lambda: store.positions().durable == 2)
            writing = pool.submit(commit, STAGING, store, 4)
            time.sleep(0.1)
            assert not loading.done()
            assert not writing.done()
            assert STAGING.numbers(store) == {1}
            files.heal()
            assert loading.result(30) == 2
            writing.result(30)
        assert STAGING.numbers(store) == {1, 2, 3, 4}


def test_closing_while_it_waits_for_room_loses_nothing(tmp_path: Path, files: FaultyFiles) -> None:
    store = STAGING.open(tmp_path / "store", settings=Settings(heartbeat_s=0, wait_s=0.2), env=Env(files))
    commit(STAGING, store, 1)
    files.fail("pwrite", code=errno.ENOSPC, only=lambda path: "state" in path.parts)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(store.bulk, load(STAGING, 2, 3))
        until(lambda: store.positions().durable == 2)
        store.close()
        assert isinstance(loading.exception(30), (OutcomeUnknown, ConditionNotMet))
    files.heal()
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == {1, 2, 3}


def test_a_gated_load_is_applied_when_its_condition_is_met(kind: Kind, tmp_path: Path) -> None:
    asked: list[Future[None]] = []

    class Gate(Plugin):
        def logged(self, batch: LogRange) -> Condition | None:
            asked.append(Future())
            return Condition(met=asked[-1], timeout=0.1, gates_publication=True, name="the test")

    with kind.open(tmp_path / "store", settings=QUIET, plugins=[Gate()]) as store:
        with pytest.raises(ConditionNotMet):
            store.bulk(load(kind, 1, 2))
        assert kind.numbers(store) == set()
        assert store.positions().durable == 1
        asked[-1].set_result(None)
        store.wait(1, timeout=30)
        until(lambda: kind.numbers(store) == {1, 2})

        def meet() -> None:
            until(lambda: len(asked) == 2)
            asked[-1].set_result(None)

        meeting = threading.Thread(target=meet)
        meeting.start()
        commit(kind, store, 3)
        meeting.join()
        assert kind.numbers(store) == {1, 2, 3}


def test_a_load_that_is_not_applied_yet_is_replayed_and_missed(kind: Kind, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash between logging and applying; and then without its file."""
    store = kind.open(tmp_path / "store", settings=QUIET)
    commit(kind, store, 1)

    def fails(record: Any, path: Path) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(store.engine, "apply_bulk", fails)
    with pytest.raises(OutcomeUnknown):
        store.bulk(load(kind, 2, 3))
    names = attachments(store)
    directory = store.log.directory / "attachments"
    store.close()
    (directory / names[0]).rename(tmp_path / "aside")
    with pytest.raises(Damaged, match="missing or truncated"):
        kind.open(tmp_path / "store")
    (tmp_path / "aside").rename(directory / names[0])
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == {1, 2, 3}


@pytest.mark.parametrize("moment", ["committing", "final"])
def test_plugins_are_asked_of_a_bulk_load(kind: Kind, moment: str, tmp_path: Path) -> None:
    """A plugin that refused every transaction was not asked of bulk loads: they passed every veto."""
    asked: list[tuple[str, Any, bytes]] = []
    refuses = True

    class Policy(Plugin):
        def committing(self, tx: Transaction) -> None:
            self.look("committing", tx)

        def final(self, tx: Transaction) -> None:
            self.look("final", tx)

        def look(self, at: str, tx: Transaction) -> None:
            asked.append((at, tx.bulk, tx.payload()))
            if refuses and at == moment:
                raise ValueError("frozen by policy")

    with kind.open(tmp_path / "store", settings=QUIET, plugins=[Policy()]) as store:
        loaded = load(kind, 1, 2)
        with pytest.raises(RolledBack, match="frozen by policy") as caught:
            store.bulk(loaded)
        assert isinstance(caught.value.__cause__, ValueError)
        expected = [("committing", loaded, b""), ("final", loaded, b"")]
        assert asked == (expected if moment == "final" else expected[:1])
        assert store.log.writer.appended.txid == 0
        assert attachments(store) == []
        refuses = False
        asked.clear()
        assert store.bulk(loaded) == 1
        assert asked == expected
        commit(kind, store, 3)
        assert kind.numbers(store) == {1, 2, 3}


def test_what_adds_to_every_transaction_cannot_add_to_a_bulk_load(kind: Kind, tmp_path: Path) -> None:
    """It would be in the state and not in the log. The load is refused, and not taken without the addition."""
    class Adds(Plugin):
        def committing(self, tx: Transaction) -> None:
            kind.write(tx, 1000)

    with kind.open(tmp_path / "store", settings=QUIET, plugins=[Adds()]) as store:
        with pytest.raises(RolledBack, match=r"Adds\.committing changed a bulk load, which takes no additions"):
            store.bulk(load(kind, 1, 2))
        assert attachments(store) == []
        commit(kind, store, 3)
        assert kind.numbers(store) == {3, 1000}


def test_a_slow_plugin_loses_a_bulk_load_too(kind: Kind, tmp_path: Path) -> None:
    """All others wait meanwhile, as behind a transaction."""
    class Slow(Plugin):
        def final(self, tx: Transaction) -> None:
            time.sleep(0.05)

    settings = Settings(heartbeat_s=0, hook_s=0.01)
    with kind.open(tmp_path / "store", settings=settings, plugins=[Slow()]) as store:
        with pytest.raises(RolledBack, match=r"Slow\.final took"):
            store.bulk(load(kind, 1))
        assert kind.numbers(store) == set()
