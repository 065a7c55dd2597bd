"""Whole stores against every crash, on a simulated disk: engines that use the seams only.

One scripted run, on one thread, is recorded: creation, commits, rotations, checkpoints, a consumer, bulk loads where
the engine takes them, pruning, a close, a reopening, more of it. Then it is cut off at each point between two
operations of the disk, with each of several fates for what was not synced. The store is opened again; what it shows
must be the model after transaction n, n at least the last one acknowledged by then, and the engine's own check clean.
Then it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simdisk import FATES, Drawn, Dropped, Fate, SimDisk, quiet_seams
from staging_memory import StagingMemory

from holdfast.engine.contract import Engine
from holdfast.engine.memory import MemoryEngine, MemoryTransaction
from holdfast.engine.records import RecordsEngine, RecordsTransaction
from holdfast.engine.settings import Settings
from holdfast.engine.store import Store

WHERE = Path("/data/store")
SMALL = Settings(segment_bytes=128 << 10, keep_logs="1 transactions")
ENGINES: list[type[Engine[Any, Any]]] = [MemoryEngine, RecordsEngine, StagingMemory]
Content = dict[Any, bytes]


def text(seed: int, size: int) -> bytes:
    return bytes((seed * 31 + i * (i // 7 + 1)) % 256 for i in range(size))


def change(tx: Any, model: Content, seed: int, size: int) -> Content:
    """One transaction's worth of changes, in the draft and in a copy of the model."""
    model = dict(model)
    if isinstance(tx, RecordsTransaction):
        number = tx.insert(text(seed, 60))
        model[number] = text(seed, 60)
        tx.update(1, text(seed, size))  # one large value, so that the state stays small and the log grows
        model[1] = text(seed, size)
        if seed % 3 == 2:
            tx.delete(number)
            del model[number]
    else:
        assert isinstance(tx, MemoryTransaction)
        for key, value in ((b"%d" % (seed % 5), text(seed, size)), (b"last", b"%d" % seed)):
            tx.put(key, value)
            model[key] = value
        if seed % 4 == 3 and b"0" in model:
            tx.delete(b"0")
            del model[b"0"]
    return model


@dataclass
class Run:
    """A recorded run. `models[n]` is the content after transaction n."""

    disk: SimDisk
    models: list[Content] = field(default_factory=lambda: [{}])
    acknowledged: list[tuple[int, int]] = field(default_factory=list)  # operations done, txid
    made: int = 0

    def commit(self, store: Store[Any, Any], size: int, durability: Any = "synced") -> None:
        seed = len(self.models)
        with store.transaction(durability) as tx:
            self.models.append(change(tx, self.models[-1], seed, size))
        assert tx.txid == seed
        self.acknowledged.append((len(self.disk.ops), seed))

    def commit_together(self, store: Store[Any, Any], *sizes: int) -> None:
        """Several in one group: all but the last are relaxed, and synced along with it."""
        acknowledged = len(self.acknowledged)
        for size in sizes[:-1]:
            self.commit(store, size, "relaxed")
        del self.acknowledged[acknowledged:]
        self.commit(store, sizes[-1])

    def bulk(self, store: Store[Any, Any], size: int) -> None:
        load = {b"bulk": text(len(self.models), size)}
        self.models.append({**self.models[-1], **load})
        assert store.bulk(load) == len(self.models) - 1
        self.acknowledged.append((len(self.disk.ops), len(self.models) - 1))

    def acked_at(self, ops: int) -> int:
        return max((txid for done, txid in self.acknowledged if done <= ops), default=0)


def opened(disk: SimDisk, engine: type[Engine[Any, Any]], seed: int, *, create: bool = False) -> Store[Any, Any]:
    return Store.open(WHERE, engine, create=create, settings=SMALL, seams=quiet_seams(disk, seed=seed))


def recorded(engine: type[Engine[Any, Any]]) -> Run:
    run = Run(SimDisk())
    store = opened(run.disk, engine, 0, create=True)
    run.made = len(run.disk.ops)
    for size in (10, 2000, 20_000):
        run.commit(store, size)
    store.log.prepare_spare()
    store.checkpoint()
    for size in (30_000, 5, 35_000):
        run.commit(store, size)
    store.log.consumers.register("aa", "a backup", store.published)
    if engine is StagingMemory:
        run.commit_together(store, 10, 500, 20)
        run.bulk(store, 3000)
    for size in (15_000, 40_000):
        run.commit(store, size)
    store.checkpoint()
    store.log.consumers.drop("aa")
    assert store.prune() > 0
    run.commit(store, 20)
    store.close()
    store = opened(run.disk, engine, 1)
    run.commit(store, 300)
    store.checkpoint()
    run.commit(store, 70_000)
    if engine is StagingMemory:
        run.bulk(store, 100)
        run.commit_together(store, 600, 20)
    run.commit(store, 30_000)
    store.prune()  # as far as the last checkpoint, and no further
    run.commit(store, 200)
    store.checkpoint()
    store.prune()
    run.commit(store, 30)
    assert store.log.base.txid > 8
    return run  # and is cut off here, if not before


RUNS = {engine: recorded(engine) for engine in ENGINES}


def assert_whole(store: Store[Any, Any], run: Run, acked: int) -> int:
    """What the store shows is the model at its end; that end."""
    n = store.published.txid
    assert acked <= n < len(run.models)
    with store.snapshot() as view:
        assert view.txid == n
        assert dict(view.items()) == run.models[n]
        assert list(view.check()) == []
    assert store.log.end.txid == n
    store.log.verify()
    return n


def assert_survives(disk: SimDisk, engine: type[Engine[Any, Any]], run: Run, ops: int) -> None:
    """Opens, is right, goes on, and what it goes on with survives the next power cut."""
    store = opened(disk, engine, 5, create=ops < run.made)
    n = assert_whole(store, run, run.acked_at(ops))
    with store.transaction() as tx:
        model = change(tx, run.models[n], 99, 500)
    assert tx.txid == n + 1
    after = opened(disk.crashed(Dropped()), engine, 6)
    with after.snapshot() as view:
        assert view.txid == n + 1
        assert dict(view.items()) == model
    after.close()


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_power_cut_at_every_point(engine: type[Engine[Any, Any]], fate: str) -> None:
    run = RUNS[engine]
    for ops, at in enumerate(SimDisk().points(run.disk.ops)):
        if ops and (run.disk.ops[ops - 1].kind == "make" or (at.settled and fate != "all kept")):
            continue  # a file without a name; nothing that could be lost
        assert_survives(at.crashed(FATES[fate]()), engine, run, ops)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), engine=st.sampled_from(ENGINES))
def test_power_cut_with_any_fate(data: st.DataObject, engine: type[Engine[Any, Any]]) -> None:
    run = RUNS[engine]
    ops = data.draw(st.integers(0, len(run.disk.ops)))
    random: Random = data.draw(st.randoms(use_true_random=False))
    at = SimDisk()
    for op in run.disk.ops[:ops]:
        at.apply(op)
    assert_survives(at.crashed(Drawn(random)), engine, run, ops)


@pytest.mark.parametrize("engine", ENGINES)
def test_crash_at_every_point_of_recovery(engine: type[Engine[Any, Any]]) -> None:
    """Of a store whose log ends torn and whose last checkpoint is not durable."""
    run = RUNS[engine]
    assert run.acknowledged[-1][0] == len(run.disk.ops)
    for cut in (1, 2, 12, 40):
        ops = len(run.disk.ops) - cut
        at = SimDisk()
        for op in run.disk.ops[:ops]:
            at.apply(op)
        left = at.crashed(FATES["first sectors"]())
        recovering = left.copy()
        opened(recovering, engine, 7).close()  # recovery, the checkpoint of a close, its seal
        for point in left.points(recovering.ops):
            for fate in ("all dropped", "first sectors", "names only", "later ones only"):
                store = opened(point.crashed(FATES[fate]()), engine, 8)
                assert_whole(store, run, run.acked_at(ops))


@pytest.mark.parametrize("engine", ENGINES)
def test_kill_then_power_cut(engine: type[Engine[Any, Any]]) -> None:
    """What a killed process wrote is in the page cache, and names it made are in memory. The next process finds them,
    and prunes log because of them; a power cut then must not take them back."""
    run = RUNS[engine]
    for ops, at in enumerate(SimDisk().points(run.disk.ops)):
        if ops < run.made or run.disk.ops[ops - 1].kind not in ("names", "write"):
            continue
        disk = at.killed()
        store = opened(disk, engine, 9)
        n = assert_whole(store, run, run.acked_at(ops))
        store.prune()
        for fate in (Dropped(), Fate(), Dropped(data_kept=True)):
            again = opened(disk.crashed(fate), engine, 10)
            assert assert_whole(again, run, n) == n


def test_a_run_syncs_once_for_each_commit() -> None:
    """What the whole is about, and what makes it fast: nothing but one sync of log bytes between two commits."""
    run = RUNS[MemoryEngine]
    (before, _), (after, _) = run.acknowledged[:2]
    assert [op.kind for op in run.disk.ops[before:after]] == ["write", "sync"]
