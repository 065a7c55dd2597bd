"""Who may open what beside whom: other processes, this one twice, readers, children of a fork."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import store_kinds
from store_kinds import GRAPH, MEMORY, QUIET, RECORDS, STAGING, Kind, commit

from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.env import Files
from holdfast.engine.errors import InvalidInput, StoreClosed, StoreExists, StoreLocked, StoreNotFound, WrongEngine
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.settings import Settings


def fingerprint(directory: Path) -> dict[str, tuple[int, str]]:
    """Every file below, its time of change and a digest of its bytes."""
    return {str(p.relative_to(directory)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in sorted(directory.rglob("*")) if p.is_file()}


# --- another writer --------------------------------------------------------------------------------------------------


def test_a_second_opening_is_told_who_has_it(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store") as store:
        commit(kind, store, 1)
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            kind.open(tmp_path / "store")
        commit(kind, store, 2)
        assert kind.numbers(store) == {1, 2}
    kind.open(tmp_path / "store").close()


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_kinds import KINDS
kind = KINDS[sys.argv[3]]
with kind.open(Path(sys.argv[1])) as store:
    with store.transaction() as tx:
        kind.write(tx, 1)
    print("open", flush=True)
    n = 1
    while sys.stdin.readline():
        n += 1
        with store.transaction() as tx:
            kind.write(tx, n)
        print("done", flush=True)
"""


@pytest.fixture
def held_elsewhere(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    children = []

    def hold(name: str) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "store"),
                                  str(Path(store_kinds.__file__).parent), name], text=True, stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        return child

    yield hold
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def test_another_process_is_named_and_its_death_frees_the_store(tmp_path: Path, held_elsewhere: Any) -> None:
    child = held_elsewhere("memory")
    with pytest.raises(StoreLocked, match=f"process {child.pid}"):
        MEMORY.open(tmp_path / "store")
    child.kill()
    child.wait()
    with MEMORY.open(tmp_path / "store") as store:
        assert MEMORY.numbers(store) == {1}
        assert not store.recovery.clean


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_is_of_the_directory_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  shared: bool) -> None:
    """A forced restore swaps two directories. Who opened the lock file before that and locked it after had the lock of
    the directory that was gone: a second writer could then lock the one that is there."""
    files, real = Files(), fcntl.flock
    take = files.lock_shared if shared else lambda path: files.lock(path, "the late one")
    for name in ("here", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "LOCK").touch()

    def swap_first(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        files.exchange(tmp_path / "here", tmp_path / "new")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", swap_first)
    lock = take(tmp_path / "here" / "LOCK")
    assert lock is not None
    with pytest.raises(StoreLocked):
        files.lock(tmp_path / "here" / "LOCK", "another writer")
    assert not files.is_locked(tmp_path / "new" / "LOCK")
    lock.release()


# --- where there is nothing, or something else -----------------------------------------------------------------------


def test_where_there_is_no_store(kind: Kind, tmp_path: Path) -> None:
    for how in ({"create": False}, {"read_only": True}):
        with pytest.raises(StoreNotFound):
            kind.open(tmp_path / "none", **how)
    assert not (tmp_path / "none").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(StoreExists):
        kind.open(tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["letter.txt"]
    (tmp_path / "file").write_text("no directory")
    with pytest.raises((StoreExists, StoreNotFound)):
        kind.open(tmp_path / "file")


def test_another_engines_store_is_refused(tmp_path: Path) -> None:
    MEMORY.open(tmp_path / "store").close()
    before = fingerprint(tmp_path / "store")
    for read_only in (False, True):
        with pytest.raises(WrongEngine, match="memory"):
            RECORDS.open(tmp_path / "store", read_only=read_only)
    after = fingerprint(tmp_path / "store")
    assert {k: v for k, v in after.items() if k != "LOCK"} == {k: v for k, v in before.items() if k != "LOCK"}


# --- read-only -------------------------------------------------------------------------------------------------------


def test_read_only_changes_no_byte_and_takes_no_write(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        for n in range(3):
            commit(kind, store, n)
        store.checkpoint()
        commit(kind, store, 3)
    before = fingerprint(tmp_path / "store")
    with kind.open(tmp_path / "store", read_only=True) as store:
        assert kind.numbers(store) == {0, 1, 2, 3}
        for call in (lambda: commit(kind, store, 9), store.checkpoint, store.prune):
            with pytest.raises(InvalidInput, match="read-only"):
                call()
    assert fingerprint(tmp_path / "store") == before


def test_a_crashed_store_is_read_without_changing_a_byte(kind: Kind, tmp_path: Path) -> None:
    """Up to what is known to be durable: the last group is not, since nothing was written behind it."""
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        for n in range(3):
            commit(kind, store, n)
        shutil.copytree(tmp_path / "store", tmp_path / "crashed")
    before = fingerprint(tmp_path / "crashed")
    for _ in range(2):
        with kind.open(tmp_path / "crashed", read_only=True) as store:
            assert kind.numbers(store) == {0, 1}
    assert fingerprint(tmp_path / "crashed") == before
    with kind.open(tmp_path / "crashed") as store:
        assert kind.numbers(store) == {0, 1, 2}


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_reading_beside_a_writer_in_another_process(kind: Kind, tmp_path: Path, held_elsewhere: Any) -> None:
    writer = held_elsewhere("staging" if kind is STAGING else "graph")

    def write() -> None:
        writer.stdin.write("commit\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "done\n"

    write()
    write()
    with kind.open(tmp_path / "store", read_only=True) as reader:
        assert kind.numbers(reader) == {1, 2}  # what is shown to be durable by what stands behind it
        with reader.snapshot() as view:
            write()
            write()
            assert kind.numbers(reader) == {1, 2}
            reader.refresh()
            assert kind.numbers(reader) == {1, 2, 3, 4}
            assert kind.of(view) == {1, 2}
    with kind.open(tmp_path / "store", read_only=True) as reader:
        assert kind.numbers(reader) == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", [STAGING, GRAPH], ids=["staging", "graph"])
def test_reading_beside_a_writer_in_this_process(kind: Kind, tmp_path: Path) -> None:
    """An engine whose library cannot do that says that the store is in use, and not that it is damaged."""
    with kind.open(tmp_path / "store", settings=QUIET) as store:
        commit(kind, store, 0)
        commit(kind, store, 1)
        if kind is GRAPH:
            with pytest.raises(StoreLocked, match="this process"):
                kind.open(tmp_path / "store", read_only=True)
        else:
            with kind.open(tmp_path / "store", read_only=True) as reader:
                assert kind.numbers(reader) == {0}
        commit(kind, store, 2)
        assert kind.numbers(store) == {0, 1, 2}


def test_readers_beside_a_busy_writer_never_see_damage(tmp_path: Path) -> None:
    """A segment that is pruned or half-written between two looks of a reader seemed gone or damaged."""
    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions",
                        checkpoint_soft_bytes=40_000)
    stop = threading.Event()
    with STAGING.open(tmp_path / "store", settings=settings) as store:
        def write() -> None:
            n = 0
            while not stop.is_set():
                with store.transaction() as tx:
                    tx.put(b"%d" % (n % 5), bytes(20_000))
                n += 1
                if n % 7 == 0:
                    store.checkpoint()
                    store.prune()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            shown = 0
            for _ in range(60):
                with STAGING.open(tmp_path / "store", read_only=True) as reader:
                    assert reader.published.txid >= shown
                    shown = reader.published.txid
                    assert STAGING.numbers(reader) <= set(range(5))
        finally:
            stop.set()
            writer.join()
    assert shown > 5


@pytest.mark.parametrize("kind", [MEMORY, RECORDS], ids=["memory", "records"])
def test_an_engine_that_cannot_be_shared_says_so(kind: Kind, tmp_path: Path) -> None:
    with kind.open(tmp_path / "store") as store:
        commit(kind, store, 1)
        with pytest.raises(StoreLocked, match="does not allow readers beside it"):
            kind.open(tmp_path / "store", read_only=True)
    kind.open(tmp_path / "store", read_only=True).close()


# --- fork ------------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child; fail with what it failed with."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(write, b"ok")
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    assert said == "ok", said


def test_a_store_carried_across_a_fork_refuses_to_work_and_the_parents_stands(kind: Kind, tmp_path: Path) -> None:
    told = []

    class Forked(Plugin):
        def forked(self) -> None:
            told.append(os.getpid())

    with kind.open(tmp_path / "store", settings=QUIET, plugins=[Forked()]) as store:
        commit(kind, store, 1)
        parent = os.getpid()

        def child() -> None:
            assert told == [os.getpid()]
            before = sorted(os.listdir(store.log.directory))
            for call in (lambda: commit(kind, store, 66), store.snapshot, store.checkpoint, store.prune,
                         store.complete_until_us, LocalSource(store).info):
                with pytest.raises(StoreClosed, match=f"fork; it is open in process {parent}"):
                    call()
            assert sorted(os.listdir(store.log.directory)) == before, "that is the parent's"
            store.close()
            with pytest.raises(StoreLocked, match=f"process {parent}"):
                kind.open(tmp_path / "store")

        in_child(child)
        assert told == []
        with pytest.raises(StoreLocked):
            kind.open(tmp_path / "store")
        commit(kind, store, 2)
        assert kind.numbers(store) == {1, 2}
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == {1, 2}
        assert store.recovery.clean


def test_a_child_that_lives_on_keeps_no_lock(tmp_path: Path) -> None:
    store = MEMORY.open(tmp_path / "store")
    hold_read, hold_write = os.pipe()
    ready_read, ready_write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(hold_write)
        os.write(ready_write, b"!")
        os.read(hold_read, 1)
        os._exit(0)
    try:
        os.read(ready_read, 1)
        store.close()
        MEMORY.open(tmp_path / "store").close()
    finally:
        os.close(hold_write)
        os.waitpid(pid, 0)
        for fd in (hold_read, ready_read, ready_write):
            os.close(fd)


def test_a_child_that_exits_takes_no_scratch_copy_with_it(tmp_path: Path) -> None:
    """More log than fits in memory is replayed into a copy of the state. That went with the first child that exited,
    while its parent still read it."""
    with RECORDS.open(tmp_path / "store", settings=QUIET) as store:
        for n in (1, 2, 3):
            commit(RECORDS, store, n)
        shutil.copytree(tmp_path / "store", tmp_path / "crashed")
    with RECORDS.open(tmp_path / "crashed", read_only=True, settings=Settings(replay_memory_bytes=1)) as reader:
        scratch = reader._opened.scratch
        assert scratch is not None
        in_child(atexit._run_exitfuncs)
        assert (scratch.path / "state").is_dir()
        assert RECORDS.numbers(reader) >= {1, 2}
    assert not scratch.path.exists()


def test_a_fork_while_others_commit(tmp_path: Path) -> None:
    """The child finds locks that threads of the parent held. It must not need them."""
    with STAGING.open(tmp_path / "store", settings=QUIET) as store:
        stop = threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                commit(STAGING, store, n := n + 1)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                def child() -> None:
                    with pytest.raises(StoreClosed):
                        store.snapshot()
                    with pytest.raises(StoreClosed):
                        store.transaction().__enter__()
                    store.close()

                in_child(child)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        last = store.positions().published
    with STAGING.open(tmp_path / "store") as store:
        assert store.published.txid == last
        assert store.recovery.clean
