"""The environment holds: whatever the kit does to the outside world goes through it, so that a simulation can take its
place."""

from __future__ import annotations

import ast
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from staging_memory import StagingMemory
from store_kinds import GRAPH, MEMORY, RECORDS, Kind, commit
from turns import Turns

import holdfast.engine
from holdfast import backup
from holdfast.engine import Condition, LogRange, Plugin, Settings, Store
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.contract.plugin import StoreHandle
from holdfast.engine.env import Env, Files
from holdfast.engine.env.anchored import AnchoredFiles
from holdfast.engine.store.callbacks import Callbacks, Outcome
from holdfast.engine.testing.disks.quiet import SeededRandomness, quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.toolkit.keyed_transaction import changes_of

PRIMARY, STANDBY, TARGET = Path("/primary"), Path("/standby"), Path("/target")
WRITERS, WRITES = 3, 25
WRAPPED = [Kind(engine, MEMORY.write, MEMORY.shown) for engine in (SqliteEngine, RocksEngine)]
SETTINGS = Settings(segment_bytes=128 << 10, checkpoint_soft_bytes=64 << 10, keep_logs="256 KiB")


class Follow(Plugin):
    """Writes every transaction to a second store before it is acknowledged."""

    def __init__(self, other: Store[Any, Any]) -> None:
        self._other = other

    def opened(self, store: StoreHandle) -> None:
        self._clock = store.env.clock
        self._asked: deque[tuple[LogRange, Future[None]]] = deque()
        self._changed = store.env.scheduler.condition()
        self._ends = False
        self._task = store.env.scheduler.spawn("follow", self._run)

    def logged(self, batch: LogRange) -> Condition:
        met: Future[None] = Future()
        with self._changed:
            self._asked.append((batch, met))
            self._changed.notify()
        return Condition(met=met, timeout=30, gates_publication=True, name="the second store")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._ends)
                if not self._asked:
                    return
                batch, met = self._asked.popleft()
            self._clock.sleep(0.003)  # the way there
            for record in batch.records:
                with self._other.transaction() as tx:
                    for key, value in changes_of(record):
                        assert value is not None
                        tx.put(key, value)
            self._clock.sleep(0.003)  # and back
            met.set_result(None)

    def closing(self, store: StoreHandle) -> None:
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._task.join()


@dataclass
class Life:
    """What became of one: who had the turn when, the disk after it, what the primary and the standby showed, and of
    which transactions callbacks heard."""

    story: list[str]
    seconds: float
    disk: SimDisk
    status: dict[str, Any]
    primary: dict[bytes, bytes]
    standby: dict[bytes, bytes]
    called: list[int]
    report: backup.Report


def live(seed: int, *, followed: bool) -> Life:
    """Half an hour, by their clock, of a primary with three writers, a backup beside them, and a second store, which
    the primary's commits wait for if it is `followed`."""
    turns = Turns(seed)
    disk = SimDisk()
    env = Env(disk, turns.clock, SeededRandomness(seed), turns)
    standby = Store.open(STANDBY, StagingMemory, settings=SETTINGS, env=env)
    store = Store.open(PRIMARY, StagingMemory, settings=SETTINGS, env=env,
                       plugins=[Follow(standby)] if followed else [])
    called: list[int] = []

    def write(writer: int) -> None:
        for n in range(WRITES):
            with store.transaction("pipelined" if n % 5 == 4 else "synced") as tx:
                tx.put(b"%d-%d" % (writer, n), bytes(4000))
            if n % 5 == 4:
                tx.outcome.add_done_callback(lambda done: called.append(done.result()))
                assert tx.outcome.result(60) == tx.txid
            turns.clock.sleep(70)

    tasks = [turns.spawn(f"writer {n}", partial(write, n)) for n in range(WRITERS)]
    turns.clock.sleep(500)
    report = backup.run(store, TARGET, engine=StagingMemory, env=env)
    assert all(task.join(3600) for task in tasks)
    status = store.status()
    with store.snapshot() as one, standby.snapshot() as other:
        shown, copied = dict(one.items()), dict(other.items())
    store.close()
    standby.close()
    assert not turns.failed
    assert not turns.running()
    return Life(turns.story, turns.seconds, disk, status, shown, copied, called, report)


@contextmanager
def real_ones_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done meanwhile past the environment: any wait and any thread of the interpreter's own; and a look at its
    clocks, a lock of its own, or a temporary file, if it is the kit that asks for it."""
    done: list[str] = []

    def counted(real: Callable[..., Any], name: str, by_whomever: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if by_whomever or caller.startswith("holdfast."):
                done.append(f"{name} by {caller}")
            assert not by_whomever, f"{name} by {caller} would wait for others to go on, who wait for their turn"
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, names, by_whomever in (
            (threading.Thread, ("start", "join"), True), (threading.Condition, ("wait",), True),
            (threading.Event, ("wait",), True), (time, ("sleep",), True),
            (threading, ("Lock", "RLock", "get_ident", "current_thread"), False),
            (time, ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"), False),
            (tempfile, ("mkdtemp", "mkstemp"), False),
        ):
            for name in names:
                patch.setattr(owner, name, counted(getattr(owner, name), f"{owner.__name__}.{name}", by_whomever))
        yield done


@pytest.mark.parametrize("followed", [True, False])
def test_a_cluster_lives_in_one_simulated_process(monkeypatch: pytest.MonkeyPatch, followed: bool) -> None:
    """Maintenance waited on an event of its own making, whoever waited for an outcome on a condition of the
    interpreter's, and the lock for closing was re-entrant and came past the environment. So no simulation could have a
    store
    whose threads were its own: half an hour took half an hour, and went another way each time."""
    with real_ones_counted(monkeypatch) as past:
        one = live(1, followed=followed)
        assert past == []
    assert one.seconds > 1700
    keys = {b"%d-%d" % (writer, n) for writer in range(WRITERS) for n in range(WRITES)}
    assert one.primary.keys() == keys
    assert one.standby == (one.primary if followed else {})
    assert len(one.called) == WRITERS * WRITES // 5
    assert one.report.verified
    # What maintenance does, and when, went by the simulated clock.
    assert one.status["checkpoints"] > 1
    assert one.status["log"]["first"] > 1
    names = {line.split(" ", 1)[1] for line in one.story}
    assert {"holdfast-keep", "holdfast-sync", "holdfast-callbacks", "holdfast-lease", "holdfast-read-ahead"} <= names
    assert {"holdfast-ack", "follow"} <= names or not followed

    again, other = live(1, followed=followed), live(2, followed=followed)
    assert again.story == one.story
    assert again.disk.digest() == one.disk.digest()
    assert other.story != one.story
    assert other.primary == one.primary


@pytest.mark.timeout(30)
def test_what_cannot_go_on_is_told() -> None:
    """Of the simulation itself: who waits for ever is named."""
    turns = Turns(1)
    never = turns.event()
    task = turns.spawn("in vain", never.wait)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="in vain"):
        task.join()
    never.set()
    assert task.join(1)


MADE_OF_OTHERS = {"absolute", "copy_file", "look", "make_directory", "sync_directory", "write_durably", "write_held"}


@pytest.mark.parametrize("kind", [AnchoredFiles, SimDisk])
def test_who_stands_in_for_files_has_all_of_them(kind: type[Files]) -> None:
    """A method that is added to the environment and not to those who stand in it reaches the real disk from a simulated
    one, and another directory from a store whose own was moved."""
    assert {name for name in vars(Files) if not name.startswith("_")} - MADE_OF_OTHERS <= set(vars(kind))


BARE = {"chmod", "exists", "expanduser", "glob", "hardlink_to", "is_dir", "is_file", "iterdir", "lchmod", "lstat",
        "mkdir", "read_bytes", "read_text", "rglob", "rmdir", "samefile", "symlink_to", "touch", "write_bytes",
        "write_text"}
"""Methods of `pathlib.Path` that go to the disk, and which nothing else in the kit has, but for `Files.exists`."""


def test_no_module_goes_to_the_disk_past_the_environment() -> None:
    """The linter knows modules and functions. What it does not see: `open`, and methods of paths. RocksDB's read-only
    opening listed and linked files by them."""
    kit = Path(holdfast.engine.__file__).parent.parent
    past = []
    for layer in ("engine", "replay", "backup"):
        for module in (kit / layer).rglob("*.py"):
            parts = module.relative_to(kit).parts
            if "testing" not in parts and parts[:2] != ("engine", "env"):
                past += [f"{module.relative_to(kit)}:{node.lineno}" for node in ast.walk(ast.parse(module.read_text()))
                         if isinstance(node, ast.Call) and _goes_to_the_disk(node.func)]
    assert past == []


def _goes_to_the_disk(called: ast.expr) -> bool:
    if isinstance(called, ast.Attribute):
        return called.attr in BARE and "files" not in ast.unparse(called.value)
    return isinstance(called, ast.Name) and called.id == "open"


@pytest.mark.parametrize("kind", [MEMORY, RECORDS, GRAPH, *WRAPPED], ids=lambda kind: kind.engine.name)
def test_every_engine_lives_by_simulated_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Kind) -> None:
    """On real files, in a process whose threads are simulated: no engine, nor the backup of one, waits, starts a thread
    or makes a directory past the environment. RocksDB's read-only openings made theirs themselves."""
    turns = Turns(3)
    env = Env(Files(), turns.clock, SeededRandomness(3), turns)

    def write(store: Store[Any, Any], first: int) -> None:
        for n in range(first, first + 15):
            commit(kind, store, n)
            turns.clock.sleep(20)

    with real_ones_counted(monkeypatch) as past:
        with kind.open(tmp_path / "store", env=env) as store:
            tasks = [turns.spawn(f"writer {n}", partial(write, store, 100 * n)) for n in range(2)]
            turns.clock.sleep(50)
            report = backup.run(store, tmp_path / "target", engine=kind.engine, env=env)
            assert all(task.join(600) for task in tasks)
            store.checkpoint()
            assert len(kind.numbers(store)) == 30
        backup.verify(tmp_path / "target", engine=kind.engine, env=env)
        for path, least in ((tmp_path / "store", 30), (tmp_path / "target", report.to_txid)):
            with kind.open(path, create=False, read_only=True, env=env) as store:
                assert len(kind.numbers(store)) >= least
        assert [line for line in past if not line.endswith(" by holdfast.engine.env.files")] == []
    assert not turns.failed
    assert not turns.running()


def test_in_a_quiet_run_a_wait_with_a_time_out_is_over_at_once() -> None:
    """By the clock of that run. Who waits there for an outcome that nobody resolves would wait for ever otherwise."""
    env = quiet_env(SimDisk())
    before = env.clock.monotonic()
    with pytest.raises(TimeoutError):
        Outcome(Callbacks(env)).result(3600)
    assert env.clock.monotonic() == pytest.approx(before + 3600)
    assert not env.scheduler.event().wait(5)
    with pytest.raises(AssertionError, match="for ever"):
        env.scheduler.event().wait()
