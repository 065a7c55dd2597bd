"""Stores on a disk that fails: poison, no room, and what recovery finds afterwards.

Faults are injected at the environment's files, into the n-th operation of a kind, for every n that a small run has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_kinds import GRAPH, MEMORY, QUIET, RECORDS, STAGING, Kind, commit, until

from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import Env
from holdfast.engine.errors import (
    DiskFull,
    HoldfastError,
    LimitReached,
    OutcomeUnknown,
    RolledBack,
    StoreClosed,
    StorePoisoned,
)
from holdfast.engine.store.settings import Settings
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log, is_state
from holdfast.engine.wal.log import Log

SMALL = Settings(heartbeat_s=0, segment_bytes=128 << 10)


class Faults(Plugin):
    def __init__(self) -> None:
        self.seen: list[BaseException] = []

    def fault(self, error: BaseException) -> None:
        self.seen.append(error)


# --- poison ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("what", ["pwrite", "datasync"])
def test_a_failed_write_of_log_bytes_poisons(kind: Kind, what: str, after: int, tmp_path: Path,
                                             files: FaultyFiles) -> None:
    faults = Faults()
    store = kind.open(tmp_path / "store", settings=QUIET, env=Env(files), plugins=[faults])
    commit(kind, store, 0)
    until(lambda: not store.log.writer.wants_spare)
    view = store.snapshot()
    files.fail(what, after=after, only=is_log)
    done = [0]
    with pytest.raises(OutcomeUnknown) as caught:
        for n in range(1, 10):
            commit(kind, store, n)
            done.append(n)
    files.heal()
    assert len(done) == after + 1
    assert caught.value.txid == after + 2
    assert isinstance(caught.value.__cause__, OSError)
    assert store.poisoned
    assert "Input/output" in str(store.status()["poisoned"])
    assert [type(e) for e in faults.seen] == [OSError]
    # Certainly not there, and no second try of what failed.
    for _ in range(2):
        with pytest.raises(StorePoisoned) as later:
            commit(kind, store, 77)
        assert isinstance(later.value, RolledBack)
    with pytest.raises(StorePoisoned) as refused:
        store.checkpoint()
    assert not isinstance(refused.value, RolledBack), "no transaction was open"
    # Views and reads of what is published go on.
    assert kind.of(view) == {0}
    assert kind.numbers(store) == set(done)
    view.close()
    store.close()
    with kind.open(tmp_path / "store", create=False) as again:
        found = kind.numbers(again)
        assert set(done) <= found <= {*done, after + 1}
        commit(kind, again, 100)
        assert kind.numbers(again) == found | {100}


@pytest.mark.parametrize("what", ["datasync", "sync", "sync_directory"])
def test_a_sync_that_lacks_memory_is_not_tried_again(what: str, tmp_path: Path, files: FaultyFiles) -> None:
    """What lacks memory is tried again, and so were syncs of a new segment's header, of its name and of a footer. But a
    sync that failed, for whatever reason, may have dropped what it should have written, and the next one goes well."""
    with STAGING.open(tmp_path / "store", settings=SMALL, env=Env(files)) as store:
        commit(STAGING, store, 0)
        until(lambda: not store.log.writer.wants_spare)
        failed: list[Path] = []

        def fail(kind: str, path: Path) -> None:
            if kind == what and (is_log(path) or path.name == "log"):
                failed.append(path)
                raise OSError(errno.ENOMEM, "injected")

        files.before = fail
        with pytest.raises(OutcomeUnknown):
            for n in range(1, 40):
                with store.transaction() as tx:
                    tx.put(b"%d" % n, bytes(20_000))
        files.heal()
        assert len(failed) == 1
        assert store.poisoned
    with STAGING.open(tmp_path / "store") as again:
        assert again.durable.txid >= (0 if what == "datasync" else 4)


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_poison_ends_everybody_in_line_and_open_transactions(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    store = kind.open(tmp_path / "store", settings=QUIET, env=Env(files))
    commit(kind, store, 0)
    until(lambda: not store.log.writer.wants_spare)
    reached, go = threading.Event(), threading.Event()

    def fail(what: str, path: Path) -> None:
        if what == "datasync" and is_log(path):
            reached.set()
            assert go.wait(30)
            raise OSError(errno.EIO, "injected")

    files.before = fail
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(commit, kind, store, 1)]
        assert reached.wait(30)
        waiting += [pool.submit(commit, kind, store, n) for n in range(2, 8)]
        until(lambda: store.positions().appended == 8)
        with store.transaction("pipelined") as tx:
            kind.write(tx, 8)
        with pytest.raises(RolledBack), store.transaction() as late:
            kind.write(late, 9)
            go.set()
            for future in waiting:
                assert isinstance(future.exception(30), OutcomeUnknown)
        assert isinstance(tx.outcome.exception(30), OutcomeUnknown)
        with pytest.raises(OutcomeUnknown):
            store.wait(3, timeout=30)
    files.heal()
    assert kind.numbers(store) == {0}
    store.close()
    with kind.open(tmp_path / "store") as again:
        found = kind.numbers(again)
        assert 0 in found
        assert found == set(range(len(found))), "a prefix"
        assert 9 not in found


def test_what_failed_is_not_synced_again(tmp_path: Path, files: FaultyFiles) -> None:
    """After a failed fsync the next one succeeds, and nothing is on the disk: so there must be no next one."""
    store = STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files))
    commit(STAGING, store, 0)
    until(lambda: not store.log.writer.wants_spare)
    files.fail("datasync", only=is_log)
    with pytest.raises(OutcomeUnknown):
        commit(STAGING, store, 1)
    files.heal()
    before = files.counts.copy()
    store.close()
    assert files.counts["datasync"] == before["datasync"]
    assert files.counts["pwrite"] == before["pwrite"]


@pytest.mark.parametrize("kind", [MEMORY, STAGING, RECORDS], ids=["memory", "staging", "records"])
def test_a_checkpoint_that_fails_poisons_and_loses_nothing(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    for what in ("pwrite", "sync", "rename", "sync_directory"):
        where = tmp_path / what
        store = kind.open(where, settings=QUIET, env=Env(files))
        commit(kind, store, 1, 2, 3)
        files.fail(what, only=lambda path: "state" in path.parts)
        with pytest.raises(StorePoisoned):
            store.checkpoint()
        files.heal()
        assert store.poisoned
        assert kind.numbers(store) == {1, 2, 3}
        store.close()
        with kind.open(where) as again:
            assert kind.numbers(again) == {1, 2, 3}


def test_rotation_that_fails_poisons(tmp_path: Path, files: FaultyFiles) -> None:
    """Sealing a segment and starting the next are log bytes too."""
    for what in ("sync", "truncate", "rename", "sync_directory"):
        store = STAGING.open(tmp_path / what, settings=SMALL, env=Env(files))
        acknowledged: list[int] = []

        def fail(kind: str, path: Path, what: str = what) -> None:
            # Not the zero-filling of the next segment, which is another thread's and harmless.
            if kind == what and threading.current_thread() is threading.main_thread():
                raise OSError(errno.EIO, "injected")

        commit(STAGING, store, 0)
        files.before = fail
        with pytest.raises((OutcomeUnknown, RolledBack)):
            for n in range(1, 100_000):
                with store.transaction() as tx:
                    tx.put(b"%d" % n, bytes(20_000))
                acknowledged.append(n)
        files.heal()
        assert len(acknowledged) >= 3
        store.close()
        with STAGING.open(tmp_path / what) as again:
            assert {0, *acknowledged} <= STAGING.numbers(again)
            again.log.verify()


def test_a_heartbeat_that_fails_poisons(tmp_path: Path, files: FaultyFiles) -> None:
    faults = Faults()
    store = STAGING.open(tmp_path / "store", settings=Settings(heartbeat_s=0.05), env=Env(files), plugins=[faults])
    commit(STAGING, store, 0)
    files.fail("datasync", only=is_log)
    until(lambda: store.poisoned)
    files.heal()
    assert STAGING.numbers(store) == {0}
    store.close()
    with STAGING.open(tmp_path / "store") as again:
        assert STAGING.numbers(again) == {0}


# --- no room ---------------------------------------------------------------------------------------------------------


def test_without_room_for_a_segment_commits_are_refused_until_there_is(tmp_path: Path, files: FaultyFiles) -> None:
    with STAGING.open(tmp_path / "store", settings=SMALL, env=Env(files)) as store:
        commit(STAGING, store, 0)
        files.fail("pwrite", code=errno.ENOSPC, only=lambda path: path.suffix == ".new" and "log" in path.parts)
        n = 0
        with pytest.raises(DiskFull) as caught:
            for n in range(1, 100):
                with store.transaction() as tx:
                    tx.put(b"%d" % n, bytes(30_000))
        assert isinstance(caught.value, RolledBack)
        assert not store.poisoned
        assert store.log.writer.appended.txid == n
        assert STAGING.numbers(store) == set(range(n))
        for _ in range(3):
            with pytest.raises(DiskFull), store.transaction() as tx:
                tx.put(b"77", bytes(30_000))
        files.heal()
        with store.transaction() as tx:
            tx.put(b"%d" % n, bytes(30_000))
        assert tx.txid == n + 1
        assert STAGING.numbers(store) == set(range(n + 1))
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == set(range(n + 1))
        assert store.recovery.clean


def test_another_error_at_allocation_rolls_back_and_poisons_nothing(tmp_path: Path, files: FaultyFiles) -> None:
    """No log byte was written, so nothing is unknown. It came out as a bare `OSError`."""
    with STAGING.open(tmp_path / "store", settings=SMALL, env=Env(files)) as store:
        commit(STAGING, store, 0)
        files.fail("sync", only=lambda path: path.suffix == ".new" and "log" in path.parts)
        with pytest.raises(RolledBack):
            for n in range(1, 100):
                with store.transaction() as tx:
                    tx.put(b"%d" % n, bytes(30_000))
        assert not store.poisoned
        files.heal()
        commit(STAGING, store, 1)


def test_a_disk_that_prepares_no_segment_is_asked_less_and_less(tmp_path: Path, files: FaultyFiles,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second it zero-filled 16 MiB and failed, with a traceback each time, for as long as the disk was bad."""
    with STAGING.open(tmp_path / "store", settings=SMALL, env=Env(files)) as store:
        keeper, now = store._maintenance, 1000.0
        assert keeper is not None
        keeper.close()
        commit(STAGING, store, 0)
        monkeypatch.setattr(keeper._clock, "monotonic", lambda: now)
        files.fail("sync", only=lambda path: path.suffix == ".new" and "log" in path.parts)
        tries = []
        for _ in range(1200):
            before = files.counts["sync"]
            keeper._spare()
            if files.counts["sync"] > before:
                tries.append(now)
            now += 0.5
        monkeypatch.undo()
        assert 5 < len(tries) < 20
        assert tries[-1] - tries[-2] == 60
        files.heal()
        keeper._spare_retry = 0.0
        keeper._spare()
        assert not store.log.writer.wants_spare


@pytest.mark.parametrize("kind", [MEMORY, STAGING, RECORDS], ids=["memory", "staging", "records"])
def test_a_process_without_descriptors_loses_nothing(kind: Kind, tmp_path: Path) -> None:
    """Strangers who held connections to a service open took every descriptor, and the next segment of the log ended in
    poison. Commits go on in what is prepared, are refused where that ends, and go on afterwards."""
    with kind.open(tmp_path / "store", settings=SMALL) as store:
        until(lambda: not store.log.writer.wants_spare)
        for n in range(3):
            commit(kind, store, n)
        before, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 3, before[1]))
        done = refused = 0
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            for n in range(3, 4000):
                try:
                    commit(kind, store, n)
                    done += 1
                except RolledBack:
                    refused += 1
                    if refused > 3:
                        break
            with pytest.raises(LimitReached):
                store.checkpoint()
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert done > 10
        assert refused
        assert not store.poisoned
        for n in range(4000, 4010):
            commit(kind, store, n)
        store.checkpoint()
        last = store.published.txid
        assert last == 3 + done + 10
    with kind.open(tmp_path / "store", settings=SMALL) as store:
        assert store.published.txid == last
        assert store.recovery.clean
        store.log.verify()


@pytest.mark.parametrize("kind", [MEMORY, STAGING, RECORDS], ids=["memory", "staging", "records"])
def test_a_checkpoint_without_room_waits_and_at_the_hard_bound_commits_get_disk_full(kind: Kind, tmp_path: Path,
                                                                                     files: FaultyFiles) -> None:
    settings = Settings(heartbeat_s=0, checkpoint_soft_bytes=1000, checkpoint_hard_bytes=20_000)
    with kind.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        commit(kind, store, 0)
        files.fail("pwrite", "reserve", code=errno.ENOSPC, only=lambda path: "state" in path.parts)
        if kind is RECORDS:  # its files grow by reserving, which says so itself
            def full(what: str, path: Path) -> None:
                if what in ("reserve", "create") and "state" in path.parts:
                    raise DiskFull("injected") if what == "reserve" else OSError(errno.ENOSPC, "injected")

            files.before = full
        with pytest.raises(DiskFull):
            store.checkpoint()
        n = 0
        with pytest.raises(DiskFull, match="no room for a checkpoint"):
            for n in range(1, 10_000):
                commit(kind, store, n)
        assert n > 20
        assert not store.poisoned
        assert store.status()["checkpoint_blocked"]
        assert kind.numbers(store) == set(range(n))
        files.heal()
        until(lambda: store.status()["checkpoint_blocked"] is None)
        commit(kind, store, n)
        assert kind.numbers(store) == set(range(n + 1))
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == set(range(n + 1))


def test_closing_without_room_keeps_everything(tmp_path: Path, files: FaultyFiles) -> None:
    store = MEMORY.open(tmp_path / "store", settings=QUIET, env=Env(files))
    commit(MEMORY, store, 1, 2)
    files.fail("pwrite", code=errno.ENOSPC, only=lambda path: "state" in path.parts)
    store.close()
    files.heal()
    with MEMORY.open(tmp_path / "store") as store:
        assert MEMORY.numbers(store) == {1, 2}
        assert store.recovery.clean, "sealing needs no room"
        assert store.recovery.replayed == 1


@pytest.mark.parametrize("what", ["create", "pwrite", "sync", "rename", "sync_directory", "lock"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["eio", "enospc"])
def test_an_opening_that_fails_anywhere_leaves_nothing_locked(kind: Kind, what: str, code: int, tmp_path: Path,
                                                              files: FaultyFiles) -> None:
    """At the first, second, third … such operation; then a plain opening works, and what was committed is there."""
    for existing in (False, True):
        for after in range(40):
            where = tmp_path / f"{existing}-{after}"
            if existing:
                with kind.open(where, settings=SMALL) as store:
                    commit(kind, store, 1)
            files.fail(what, after=after, code=code)
            raised: Exception | None = None
            try:
                store = kind.open(where, settings=SMALL, env=Env(files))
            except (OSError, HoldfastError) as error:
                raised = error
            files.heal()
            if raised is None:
                store.close()
            elif code == errno.ENOSPC:
                assert isinstance(raised, DiskFull)
            with kind.open(where, settings=SMALL) as store:
                assert kind.numbers(store) == ({1} if existing else set())
                commit(kind, store, 2)
            if raised is None:
                break
        else:
            raise AssertionError("it never opened")


# --- the unsynced view -----------------------------------------------------------------------------------------------


def test_what_is_staged_is_taken_back_on_poison(tmp_path: Path, files: FaultyFiles) -> None:
    store = STAGING.open(tmp_path / "store", settings=QUIET, env=Env(files))
    commit(STAGING, store, 0)
    files.fail("datasync", only=is_log)
    with pytest.raises(OutcomeUnknown):
        commit(STAGING, store, 1)
    files.heal()
    with pytest.raises(StorePoisoned):
        store.snapshot(unsynced=True)
    assert STAGING.numbers(store) == {0}
    store.close()
    with pytest.raises(StoreClosed):
        store.snapshot()


def test_a_state_that_is_damaged_is_named(tmp_path: Path) -> None:
    for kind, name in ((MEMORY, "state"), (STAGING, "state"), (RECORDS, "position")):
        where = tmp_path / kind.engine.name
        with kind.open(where) as store:
            commit(kind, store, 1)
        path = where / "gen-000001" / "state" / name
        assert is_state(path) or name == "position"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(HoldfastError, match=name):
            kind.open(where)
        # And nothing is left locked or changed by the attempt.
        assert not Log.open(where / "gen-000001" / "log", read_only=True, env=Env()).recovery.cut_bytes


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENOSPC])
def test_a_promise_that_finds_no_segment_poisons_nothing(code: int, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was written: the earlier promise stands. Being asked by a backup poisoned the store."""
    with STAGING.open(tmp_path / "store") as store:
        commit(STAGING, store, 1)
    with STAGING.open(tmp_path / "store") as store:
        def fails(capacity: int) -> None:
            raise OSError(code, "injected")

        monkeypatch.setattr(store.log.writer, "make_room", fails)
        assert store.complete_until_us() == store.log.complete_us
        monkeypatch.undo()
        assert not store.poisoned
        commit(STAGING, store, 2)
