"""The bounds of a store: on what is not checkpointed, on what is not written, and on the log that is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_kinds import STAGING, Kind, commit, until

from holdfast.engine.env import Env
from holdfast.engine.errors import RolledBack
from holdfast.engine.store.settings import Settings
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_state


def test_the_hard_bound_delays_commits_and_counts_them(tmp_path: Path, files: FaultyFiles) -> None:
    settings = Settings(heartbeat_s=0, checkpoint_soft_bytes=500, checkpoint_hard_bytes=3000)
    with STAGING.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        most = 0
        for n in range(200):
            commit(STAGING, store, n)
            most = max(most, store.engine.pending_bytes())
        assert most < 4000
        held = files.hold("rename", only=is_state)  # a checkpoint that does not come to its end
        with ThreadPoolExecutor(1) as pool:
            def more() -> None:
                for n in range(200, 400):
                    commit(STAGING, store, n)

            done = pool.submit(more)
            until(lambda: store.status()["delayed_commits"] > 0 and store.engine.pending_bytes() >= 3000)
            assert not done.done()
            held.go.set()
            done.result(60)
        assert STAGING.numbers(store) == set(range(400))


def test_a_checkpoint_that_does_not_come_rolls_back_in_the_end(tmp_path: Path, files: FaultyFiles) -> None:
    settings = Settings(heartbeat_s=0, checkpoint_soft_bytes=500, checkpoint_hard_bytes=1000, wait_s=0.2)
    store = STAGING.open(tmp_path / "store", settings=settings, env=Env(files))
    held = files.hold("rename", only=is_state)
    try:
        with pytest.raises(RolledBack, match="catch up"):
            for n in range(1000):
                commit(STAGING, store, n)
        logged = store.log.writer.appended.txid
    finally:
        held.go.set()
        store.close()
    with STAGING.open(tmp_path / "store") as store:
        assert len(STAGING.numbers(store)) == logged


def test_unwritten_bytes_are_bounded(tmp_path: Path, files: FaultyFiles) -> None:
    settings = Settings(heartbeat_s=0, unwritten_bytes=2000, wait_s=0.2)
    with STAGING.open(tmp_path / "store", settings=settings, env=Env(files)) as store:
        held = files.hold("datasync")
        with pytest.raises(RolledBack, match="written"):
            for n in range(1000):
                with store.transaction("pipelined") as tx:
                    STAGING.write(tx, n)
        assert 2000 <= store.log.writer.waiting_bytes < 3000
        assert store.status()["delayed_commits"] > 0
        appended = store.positions().appended
        held.go.set()
        store.wait(appended, timeout=30)
        commit(STAGING, store, 5000)
        assert len(STAGING.numbers(store)) == appended + 1


def test_old_log_goes_once_it_is_checkpointed(kind: Kind, tmp_path: Path) -> None:
    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions")
    with kind.open(tmp_path / "store", settings=settings) as store:
        big = 0
        while len(store.log.segments()) < 4:
            with store.transaction() as tx:
                for _ in range(1500):
                    kind.write(tx, big)
                    big += 1
        assert store.prune() == 0, "nothing is checkpointed"
        store.checkpoint()
        store.prune()  # unless it did by itself
        assert len(store.log.segments()) == 1
        assert kind.numbers(store) == set(range(big))
    with kind.open(tmp_path / "store") as store:
        assert kind.numbers(store) == set(range(big))
