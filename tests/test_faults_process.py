"""Real processes under real faults: killed at random, failing system calls, power cuts under ext4, full disks.

The journal of what was acknowledged is kept by the parent. Everything in it must be there afterwards, for every engine,
and nothing half. What a machine cannot do, its test says by name (`fault_rig.require`).
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fault_rig import (
    TESTS,
    Journal,
    Worker,
    assert_recovered,
    ext4,
    no_mounts,
    no_strace,
    require,
    strace,
    tmpfs,
)
from fault_worker import STRIDE
from store_kinds import STAGING

from holdfast.engine.errors import Damaged

ENGINES = ["memory", "staging", "records", "graph"]


@pytest.mark.parametrize("kind", ENGINES)
def test_killed_at_random(kind: str, tmp_path: Path) -> None:
    """Several times the same store: each recovery may be of a recovery that was killed."""
    journal, drawn = Journal(), random.Random(kind)
    for round in range(5):
        worker = Worker(kind, tmp_path / "store", (round * 10 + 1) * STRIDE)
        worker.listen(journal, until=len(journal.acknowledged) + drawn.choice((0, 1, 30, 150, 400)))
        worker.process.kill()
        assert worker.end(journal)[0] == -signal.SIGKILL
        if round % 2:
            assert_recovered(kind, tmp_path / "store", journal)
    assert_recovered(kind, tmp_path / "store", journal)
    assert len(journal.acknowledged) > 5


@pytest.mark.parametrize("kind", ENGINES)
def test_killed_while_opening(kind: str, tmp_path: Path) -> None:
    """Before it said a word: creation and recovery are cut off anywhere."""
    journal, drawn = Journal(), random.Random(kind)
    for round in range(3):
        worker = Worker(kind, tmp_path / "store", (round * 10 + 1) * STRIDE)
        try:
            worker.process.wait(0.25 + drawn.random() * 0.3)
        except subprocess.TimeoutExpired:
            worker.process.kill()
        assert worker.end(journal)[0] == -signal.SIGKILL
    assert_recovered(kind, tmp_path / "store", journal, create=True)


# --- failing system calls --------------------------------------------------------------------------------------------


@pytest.mark.fault("strace")
@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("inject", ["fdatasync:error=EIO:when=25", "pwrite64:error=EIO:when=90",
                                    "fdatasync:error=ENOSPC:when=25"])
def test_a_system_call_fails_once(kind: str, inject: str, tmp_path: Path) -> None:
    """Once: a later one would succeed, so whoever goes on as if nothing had happened loses something."""
    require("strace", no_strace())
    journal = Journal()
    code, said = Worker(kind, tmp_path / "store", 10 * STRIDE, count=150, under=strace(inject)).end(journal)
    assert code == 0, said
    assert journal.opened
    if journal.shown is not None:  # poisoned: reads went on, and showed what was acknowledged and no more
        assert journal.acknowledged <= journal.shown
        assert journal.shown <= journal.acknowledged | journal.unknown
    assert {name for name, _ in journal.errors} <= {"OutcomeUnknown", "StorePoisoned", "DiskFull", "RolledBack"}
    if "fdatasync" in inject:
        assert journal.errors, "the fault was never met"
    assert_recovered(kind, tmp_path / "store", journal)


@pytest.mark.fault("strace")
@pytest.mark.parametrize("kind", ENGINES)
def test_killed_in_the_middle_of_a_sync(kind: str, tmp_path: Path) -> None:
    require("strace", no_strace())
    journal = Journal()
    for round, inject in enumerate(("fdatasync:signal=SIGKILL:when=6", "fsync:signal=SIGKILL:when=20",
                                    "ftruncate:signal=SIGKILL:when=3")):
        worker = Worker(kind, tmp_path / "store", (round * 10 + 1) * STRIDE, count=200, under=strace(inject))
        worker.end(journal)
        assert_recovered(kind, tmp_path / "store", journal, create=True)


# --- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("power-cut")
@pytest.mark.parametrize("kind", ENGINES)
def test_power_cuts(kind: str, tmp_path: Path) -> None:
    """Under ext4: what was not synced is gone, names included. Some cuts hit while a recovery's work is not synced."""
    journal, drawn = Journal(), random.Random(kind)
    with ext4(tmp_path, 64 << 20, "power-cut") as disk:
        for round in range(4):
            worker = Worker(kind, disk.path / "store", (round * 10 + 1) * STRIDE)
            worker.listen(journal, until=len(journal.acknowledged) + drawn.choice((1, 40, 200)))
            disk.cut()
            worker.process.kill()
            worker.end(journal)
            disk.remount()
            assert_recovered(kind, disk.path / "store", journal)
            if round % 2:
                disk.cut()
                disk.remount()
        assert_recovered(kind, disk.path / "store", journal)


@pytest.mark.fault("power-cut")
@pytest.mark.fault("strace")
def test_power_cuts_see_a_lying_fsync(tmp_path: Path) -> None:
    """The rig's own control: with syncs that do nothing, acknowledged writes must be lost. A rig that finds them all
    tests nothing."""
    require("power-cut", no_mounts())
    require("strace", no_strace())
    journal = Journal()
    with ext4(tmp_path, 64 << 20, "power-cut") as disk:
        STAGING.open(disk.path / "store").close()
        worker = Worker("staging", disk.path / "store", STRIDE, under=strace("fsync,fdatasync:retval=0"))
        worker.listen(journal, until=50)
        disk.cut()
        subprocess.run(["kill", "-KILL", *_children(worker.process.pid)], check=True)
        worker.end(journal)
        disk.remount()
        with pytest.raises((AssertionError, Damaged), match=r"acknowledged and lost|the log"):
            assert_recovered("staging", disk.path / "store", journal)


def _children(pid: int) -> list[str]:
    """The processes that strace started. (Killing strace itself would let them go on.)"""
    return [c for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]


# --- full disks ------------------------------------------------------------------------------------------------------

FULL = """
    import os, sys
    from pathlib import Path
    from holdfast.engine.errors import DiskFull, RolledBack
    from holdfast.engine.settings import Settings
    from store_kinds import KINDS

    kind, disk = KINDS[sys.argv[1]], Path(sys.argv[2])
    settings = Settings(segment_bytes=128 << 10, checkpoint_soft_bytes=100_000, checkpoint_hard_bytes=400_000,
                        keep_logs="1 transactions", heartbeat_s=0)

    def fill(leave):
        stat = os.statvfs(disk)
        with open(disk / "ballast", "wb", buffering=0) as file:
            left = stat.f_bavail * stat.f_frsize - leave
            try:
                while left > 0:
                    left -= file.write(bytes(min(left, 65536)))
            except OSError:
                pass

    def write(n):
        with store.transaction() as tx:
            kind.write(tx, n)
            for i in range(1, 100):
                kind.write(tx, -(n * 100 + i))

    n = 0
    with kind.open(disk / "store", settings=settings) as store:
        write(n)
        for _ in range(2):
            fill(300_000)
            try:
                for n in range(n + 1, 5000):
                    write(n)
                raise SystemExit("the disk never was full")
            except DiskFull as error:
                assert isinstance(error, RolledBack)
            assert not store.poisoned, store.committer.poison
            for _ in range(3):
                assert {m for m in kind.numbers(store) if m >= 0} == set(range(n))
                try:
                    write(n)
                except DiskFull:
                    continue
                n += 1
            (disk / "ballast").unlink()
            import time
            until = time.monotonic() + 30
            while True:
                try:
                    write(n)
                    break
                except DiskFull:  # until the checkpoint that waits for room has been tried again
                    assert time.monotonic() < until
                    time.sleep(0.1)
            assert {m for m in kind.numbers(store) if m >= 0} == set(range(n + 1))
        fill(300_000)
    (disk / "ballast").unlink()
    with kind.open(disk / "store", settings=settings) as store:
        assert {m for m in kind.numbers(store) if m >= 0} == set(range(n + 1))
    fill(0)
    try:
        kind.open(disk / "store", settings=settings).close()
        raise SystemExit("it opened on a full disk")
    except DiskFull:
        pass
    try:
        kind.open(disk / "another", settings=settings).close()
        raise SystemExit("it opened on a full disk")
    except DiskFull:
        pass
    (disk / "ballast").unlink()
    with kind.open(disk / "store", settings=settings) as store:
        write(n + 1)
        assert {m for m in kind.numbers(store) if m >= 0} == set(range(n + 2))
    print("well")
"""


def run_on_full_disk(kind: str, disk: Path) -> None:
    """In a process of its own: a full disk under a memory map is a signal."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FULL), kind, str(disk)], capture_output=True,
                          text=True, cwd=TESTS, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["well"]), (
        f"ended with {done.returncode}\n{done.stderr[-3000:]}")


@pytest.mark.fault("small tmpfs")
@pytest.mark.parametrize("kind", ENGINES)
def test_a_full_tmpfs(kind: str, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 8 << 20) as disk:
        run_on_full_disk(kind, disk)


@pytest.mark.fault("small ext4")
@pytest.mark.parametrize("kind", ENGINES)
def test_a_full_ext4(kind: str, tmp_path: Path) -> None:
    with ext4(tmp_path, 12 << 20, "small ext4") as disk:
        run_on_full_disk(kind, disk.path)
