"""What a child does on a small file system: fills it, commits at its limit, and goes on when there is room again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.engine.errors import DiskFull
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing import Workload
from holdfast.engine.testing.support.forks import Say

SETTINGS = Settings(segment_bytes=128 << 10, checkpoint_soft_bytes=100_000, checkpoint_hard_bytes=400_000,
                    keep_logs="1 transactions", heartbeat_s=0)
LEFT = 300_000
_BESIDE = 100
"""Things that a transaction adds beside its own number, so that a disk is soon full."""


def full_disk(work: Workload, say: Say, disk: Path) -> None:
    """A store on `disk`, while something else fills it: commits are rolled back, reads go on, and so do commits when
    there is room; the same for opening and for creating."""
    ballast, count = disk / "ballast", 1
    with _opened(work, disk / "store") as store:
        _write(work, store, 0)
        for _ in range(2):
            _fill(disk, ballast, LEFT)
            while _wrote(work, store, count):
                count += 1
                assert count < 5000, "the disk never was full"
            assert not store.poisoned, f"a full disk poisoned the store: {store.group_commit.poison}"
            for _ in range(3):
                _shows(work, store, count)
                count += _wrote(work, store, count)
            ballast.unlink()
            until = time.monotonic() + 30
            while not _wrote(work, store, count):  # until the checkpoint that waits for room has been tried again
                assert time.monotonic() < until, "there is room, and commits are still rolled back"
                time.sleep(0.05)
            count += 1
            _shows(work, store, count)
        _fill(disk, ballast, LEFT)
    ballast.unlink()
    with _opened(work, disk / "store") as store:
        _shows(work, store, count)
    _fill(disk, ballast, 0)
    for name in ("store", "another"):
        try:
            _opened(work, disk / name).close()
        except DiskFull:
            continue
        raise AssertionError(f"{name!r} was opened on a full disk")
    ballast.unlink()
    with _opened(work, disk / "store") as store:
        _write(work, store, count)
        _shows(work, store, count + 1)
    say("closed")


def _opened(work: Workload, directory: Path) -> Store[Any, Any]:
    return Store.open(directory, work.engine, options=work.options, settings=SETTINGS)


def _write(work: Workload, store: Store[Any, Any], number: int) -> None:
    with store.transaction() as tx:
        operations = [work.numbered(number), *(work.numbered((number + 1) * 10_000 + i) for i in range(_BESIDE))]
        work.run(tx, work.new_model(), [operation for one in operations for operation in one])


def _wrote(work: Workload, store: Store[Any, Any], number: int) -> bool:
    try:
        _write(work, store, number)
    except DiskFull:
        return False
    return True


def _shows(work: Workload, store: Store[Any, Any], count: int) -> None:
    """Exactly the first `count` transactions, each whole."""
    with store.snapshot() as view:
        assert list(view.check()) == []
        content = work.content(view)
    for number in range(count + 1):
        for part in (number, (number + 1) * 10_000, (number + 1) * 10_000 + _BESIDE - 1):
            shown = work.shows(content, part)
            assert shown == (number < count), f"transaction {number} of {count}, part {part}: shown is {shown}"


def _fill(disk: Path, ballast: Path, leave: int) -> None:
    stat = os.statvfs(disk)
    left = stat.f_bavail * stat.f_frsize - leave
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        while left > 0:
            left -= file.write(bytes(min(left, 65536)))
