"""Real processes under real faults: system calls that fail, do nothing, or are a process's last; power cuts under ext4;
full disks. Each on every engine of the kit, with a model of what was written kept outside.

What a machine cannot do, its test says by name (`fault_rig.require`). What is tried how much: docs/faults.md.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_rig import (
    OTHERS,
    SYNCS,
    WRITES,
    Call,
    PowerCuts,
    Traced,
    ext4,
    goes_on,
    last_words,
    lying_sync,
    no_eatmydata,
    no_mounts,
    no_strace,
    require,
    served,
    tmpfs,
)
from fault_worker import full_disk
from workloads import WORKLOADS

from holdfast.engine.testing import Operation, current_profile
from holdfast.engine.testing.engine.process_kills import script
from holdfast.engine.testing.support.children import Journal, Server
from holdfast.engine.testing.support.contract import scratch
from holdfast.engine.testing.support.counters import count
from holdfast.engine.testing.support.profiles import current_seed
from holdfast.engine.testing.support.worker import drive

ENGINES = sorted(WORKLOADS)
BELOW_ENV = [name for name in ENGINES if not WORKLOADS[name]().above_env]
LMDB_FILE = "/data.mdb"


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def drawn(engine: str) -> random.Random:
    return random.Random(f"{engine} {current_seed()}")


@pytest.fixture(scope="module")
def server(engine: str) -> Iterator[Server]:
    with served(engine) as server:
        yield server


# --- system calls ----------------------------------------------------------------------------------------------------

FAULTS = {
    "killed": ("signal=SIGKILL", SYNCS + WRITES + OTHERS),
    "EIO": ("error=EIO", SYNCS + WRITES + OTHERS),
    "ENOSPC": ("error=ENOSPC", (*SYNCS, *WRITES, "fallocate", "rename", "mkdir", "openat")),
    "nothing written": ("retval=0", WRITES),
}
"""What strace injects, and into which calls. A write that returns 0 wrote nothing and says so: the shortest of short
writes, and the only one that an injection can make without a lie."""


def chosen(calls: list[Call], drawn: random.Random, *, every_sync: bool) -> list[Call]:
    """Those that a profile tries: one of each sort in `default`, a few in `ci`, and every sync where that is asked for;
    all in `nightly`."""
    profile = current_profile().name
    if profile == "nightly":
        return calls
    kept = [call for call in calls if every_sync and profile == "ci" and call.name in SYNCS]
    for sync, state in itertools.product((True, False), repeat=2):
        sort = [call for call in calls if (call.name in SYNCS, "/state" in call.path) == (sync, state)]
        kept += drawn.sample(sort, min(1 if profile == "default" else 2, len(sort)))
    return list(dict.fromkeys(kept))


@pytest.fixture(scope="module")
def runs(engine: str, server: Server) -> Iterator[list[tuple[Traced, list[Call]]]]:
    """Creating a store, and recovering one; with the calls that a run without faults makes."""
    require("strace", no_strace())
    with scratch() as path:
        drawn = script(WORKLOADS[engine](), 1)
        traced = [Traced(server, drawn, path, killed) for killed in (False, True)]
        yield [(each, each.calls()) for each in traced]


@pytest.mark.fault("strace")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_system_call_meets_a_fault(engine: str, fault: str, runs: list[tuple[Traced, list[Call]]],
                                     drawn: random.Random) -> None:
    """Once, at the n-th call of its name, in a run that creates a store and in one that recovers it. A later call would
    succeed, so whoever goes on as if nothing had happened loses something; a failed sync is always noticed."""
    injected, names = FAULTS[fault]
    # Of engines above the environment the simulated disk tries every operation.
    every_sync = engine in BELOW_ENV and (fault == "killed" or (engine == "graph" and fault == "EIO"))
    tried = 0
    for traced, calls in runs:
        if fault == "killed" and engine == "graph":
            assert any(call.name in SYNCS and call.path.endswith(LMDB_FILE) for call in calls)
        wanted = [call for call in calls if call.name in names]
        for call in chosen(wanted, drawn, every_sync=every_sync):
            met, journal = traced.run(call, injected)
            if met is None:
                continue
            tried += 1
            # SQLite does not look at what syncs of a directory say, RocksDB not at those of files it has left.
            foreign = engine in ("sqlite", "rocksdb") and "/state" in met.path
            if met.name in SYNCS and fault != "killed" and not foreign:
                assert journal.failures or journal.warnings, f"nobody noticed, {traced}: {fault} at {met}"
    assert tried
    count("failing system calls", engine, tried)


@pytest.mark.fault("strace")
@pytest.mark.parametrize("engine", ["graph"], indirect=True)
def test_lmdb_writes_a_part(engine: str, runs: list[tuple[Traced, list[Call]]], drawn: random.Random) -> None:
    """LMDB takes a write that was cut short for an error, so here the rest may be missing. (The kit writes the rest,
    and would be told a lie.)"""
    tried = 0
    for traced, calls in runs:
        wanted = [call for call in calls if call.name in WRITES and call.path.endswith(LMDB_FILE) and call.result > 512]
        for call in chosen(wanted, drawn, every_sync=False):
            met, journal = traced.run(call, "retval=512")
            if met is None:  # a background thread did something else than before
                continue
            assert met == replace(call, result=512), f"{met} was cut short, not {call}"
            tried += 1
            assert journal.failures, f"nobody noticed, {traced}: cut short at {call}"
    assert tried
    count("failing system calls", engine, tried)


# --- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("power-cut")
def test_power_cuts(engine: str, server: Server, drawn: random.Random, tmp_path: Path) -> None:
    """Under ext4, at any moment: what was not synced is gone, names included, or there in part."""
    require("power-cut", no_mounts())
    # Above the environment the simulated disk tries every crash; here it is shown that the real one is no worse.
    rounds = current_profile().power_cuts // (1 if engine in BELOW_ENV else 4)
    with ext4(tmp_path, 256 << 20, "power-cut") as disk:
        cuts = PowerCuts(server, script(WORKLOADS[engine](), 2), drawn, disk)
        cuts.run(disk.path, max(2, rounds))
    count("power cuts", engine, cuts.cuts)


@pytest.mark.fault("power-cut")
@pytest.mark.fault("eatmydata")
def test_power_cuts_find_syncs_that_lie(engine: str, server: Server, drawn: random.Random, tmp_path: Path) -> None:
    """The rig's own control: where syncs do nothing, acknowledged transactions must be lost. A rig that finds them all
    tests nothing. On a machine that is slow the kernel may have written everything back by itself, so it has three
    goes."""
    require("power-cut", no_mounts())
    require("eatmydata", no_eatmydata())
    plan = script(WORKLOADS[engine](), 3)
    assert any(loses(engine, server, plan, tmp_path / f"{attempt}") for attempt in range(3))


def loses(engine: str, server: Server, plan: list[list[Operation]], place: Path) -> bool:
    """Whether a power cut takes what was acknowledged, where syncs lie."""
    place.mkdir()
    journal = Journal()
    with ext4(place, 64 << 20, "power-cut") as disk, served(
            engine, environment={"LD_PRELOAD": str(lying_sync())}) as lying:
        store = disk.path / "store"
        assert server.start(drive, journal.plan(store, plan, 3)).end(journal) == 0
        child = lying.start(drive, journal.plan(store, plan, 60))
        for message in child.messages():
            journal.note(message)
            if journal.acknowledged > 40:
                break
        disk.cut()
        last_words(child, journal)
        disk.remount()
        try:
            goes_on(server, store, journal, plan)
        except AssertionError as error:
            if re.search(r"acknowledged and are lost|it does not open: Damaged", str(error)):
                return True
            raise
    return False


# --- full disks ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("small tmpfs")
def test_a_full_tmpfs(server: Server, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 8 << 20) as disk:
        fills(server, disk)


@pytest.mark.fault("small ext4")
def test_a_full_ext4(server: Server, tmp_path: Path) -> None:
    with ext4(tmp_path, 12 << 20, "small ext4") as disk:
        fills(server, disk.path)


def fills(server: Server, disk: Path) -> None:
    """In a process of its own: a full disk under a memory map is a signal."""
    code = server.start(full_disk, disk).end(Journal())
    assert code == 0, f"it ended with {code}"
