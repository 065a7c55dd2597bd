"""What a store does in the background, at the same time as commits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_kinds import QUIET, STAGING, commit

from holdfast.engine.store.settings import Settings


def test_heartbeats_and_commits_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take turns, whoever comes first; the log stays one that opens."""
    with STAGING.open(tmp_path / "store", settings=QUIET) as store:
        stop = threading.Event()

        def beat() -> None:
            while not stop.is_set():
                store.group_commit.heartbeat()

        with ThreadPoolExecutor(9) as pool:
            beating = pool.submit(beat)
            list(pool.map(lambda n: commit(STAGING, store, n), range(200)))
            stop.set()
            beating.result(30)
        store.log.verify()
        assert len(list(store.log.read(0))) == 200
        times = [r.time_us for r in store.log.read(0)]
        assert times == sorted(times)


def test_rotation_and_pruning_at_once(tmp_path: Path) -> None:
    """Both replace the list of segments, one in the thread that syncs, one in the background."""
    settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs="1 transactions")
    with STAGING.open(tmp_path / "store", settings=settings) as store:
        stop = threading.Event()

        def prune() -> None:
            while not stop.is_set():
                store.checkpoint()
                store.prune()

        with ThreadPoolExecutor(2) as pool:
            pruning = pool.submit(prune)
            for n in range(150):
                with store.transaction() as tx:
                    tx.put(b"%d" % (n % 3), bytes(30_000))
            stop.set()
            pruning.result(30)
        assert store.log.segments()[-1].last == 150
        store.log.verify()
    with STAGING.open(tmp_path / "store") as store:
        assert STAGING.numbers(store) == {0, 1, 2}
