"""The log by itself against every crash and every error of the disk, on a simulated disk.

A script is run once and every operation it does to the disk is recorded. Then the power is cut at each point between
two operations, and everything, or much, of what that may leave is opened: it must hold exactly the transactions 1 to n
of the script, n at least the last one whose `sync` had returned. What recovery itself does to the disk is cut off at
each of its points in turn, and each operation is made to fail.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_script import (
    DIRECTORY,
    GROWING,
    SMALL,
    Script,
    assert_prefix,
    begin,
    everything,
    go_through,
    made_at,
    opened,
    payload,
)

from holdfast.engine.errors import DiskFull
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import FATES, Drawn, Dropped, power_cuts
from holdfast.engine.testing.disks.simfaults import Injected, faults_of
from holdfast.engine.testing.disks.simops import Op
from holdfast.engine.testing.support.counters import count
from holdfast.engine.wal.writer import LogOptions

SCRIPTS = {True: everything(SMALL), False: everything(GROWING)}
OPTIONS = pytest.mark.parametrize("options", [SMALL, GROWING], ids=["preallocated", "growing"])
TRIES = 2 * current_profile().crash_states


class Tried:
    """Disks that were opened after a crash, each once. `with` it, and they are counted."""

    def __init__(self, script: Script, options: LogOptions) -> None:
        self.script, self.options = script, options
        self.found: dict[bytes, int] = {}

    def __enter__(self) -> Tried:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            count("crash states", "log", len(self.found))

    def survives(self, disk: SimDisk, ops: int, least: int | None = None) -> int:
        """Opens, holds a prefix, and goes on; and what it goes on with survives the next cut."""
        key = disk.digest()
        if key not in self.found:
            log = opened(disk, self.options)
            self.found[key] = assert_prefix(log, self.script, ops)
            log.verify()
            log.writer.append(b"after the crash", 1)
            log.writer.sync()
            again = opened(disk.crashed(Dropped()), self.options, seed=2)
            assert assert_prefix(again, self.script, ops, grown=b"after the crash") == self.found[key]
            again.verify()
        assert self.found[key] >= (self.script.acked_at(ops) if least is None else least)
        return self.found[key]


def after(ops: list[Op]) -> SimDisk:
    disk = SimDisk()
    for op in ops:
        disk.apply(op)
    return disk


@OPTIONS
def test_power_cut_at_every_point(options: LogOptions) -> None:
    script = SCRIPTS[options.preallocate]
    created = made_at(script)
    with Tried(script, options) as tried:
        for ops, at in enumerate(SimDisk().points(script.disk.ops)):
            if ops >= created:
                for left in power_cuts(at, tries=TRIES, salt=ops):
                    tried.survives(left, ops)


def test_power_cut_while_segments_are_not_at_their_full_size_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first after an opening is half as large here. The small ones are of full size from the start elsewhere."""
    monkeypatch.setattr("holdfast.engine.wal.preallocation._FIRST", SMALL.segment_bytes // 2)
    script = everything(SMALL)
    sizes = {len(op.data) for op in script.disk.ops if op.kind == "write" and "spare" in op.label and not any(op.data)}
    assert len(sizes) > 1, sizes
    created = made_at(script)
    with Tried(script, SMALL) as tried:
        for ops, at in enumerate(SimDisk().points(script.disk.ops)):
            if ops >= created:
                for left in power_cuts(at, tries=2, salt=ops):
                    tried.survives(left, ops)


@settings(max_examples=current_profile().examples(150), deadline=None)
@given(data=st.data(), options=st.sampled_from([SMALL, GROWING]))
def test_power_cut_with_any_fate(data: st.DataObject, options: LogOptions) -> None:
    script = SCRIPTS[options.preallocate]
    ops = data.draw(st.integers(made_at(script), len(script.disk.ops)))
    random = data.draw(st.randoms(use_true_random=False))
    disk = after(script.disk.ops[:ops]).crashed(Drawn(random))
    n = assert_prefix(opened(disk.copy(), options), script, ops)
    # Recovery is cut off too, and then once more; what it had found stays found.
    for seed in (2, 3):
        recovering = disk.copy()
        assert assert_prefix(opened(recovering, options, seed), script, ops) == n
        cut = data.draw(st.integers(0, len(recovering.ops)))
        for op in recovering.ops[:cut]:
            disk.apply(op)
        disk = disk.crashed(Drawn(random))
    assert assert_prefix(opened(disk, options, 4), script, ops) == n


@pytest.mark.parametrize("first", ["all kept", "first sectors", "last sectors"])
def test_crash_at_every_point_of_recovery(first: str) -> None:
    """After each write of the script, and then at every point of the recovery from there."""
    script = SCRIPTS[True]
    with Tried(script, SMALL) as tried:
        for ops in range(made_at(script), len(script.disk.ops)):
            if script.disk.ops[ops - 1].kind != "write":
                continue
            crashed = after(script.disk.ops[:ops]).crashed(FATES[first]())
            recovering = crashed.copy()
            n = assert_prefix(opened(recovering, SMALL), script, ops)
            for point, at in enumerate(crashed.points(recovering.ops)):
                for left in power_cuts(at, tries=TRIES, salt=point):
                    assert tried.survives(left, ops, least=n) == n


def test_kill_then_power_cut() -> None:
    """A killed process leaves all it wrote in the page cache. The next one builds on that; then the power goes. What
    was acknowledged by either is there."""
    script = SCRIPTS[True]
    states = 0
    for ops, at in enumerate(SimDisk().points(script.disk.ops)):
        if ops < made_at(script) or script.disk.ops[ops - 1].kind not in ("write", "truncate", "names"):
            continue
        disk = at.killed()
        log = opened(disk, SMALL)
        n = assert_prefix(log, script, ops)
        log.writer.append(b"by the next process", 1)
        log.writer.sync()
        for left in {cut.digest(): cut for cut in power_cuts(disk, tries=TRIES, salt=ops)}.values():
            states += 1
            again = opened(left, SMALL, seed=2)
            assert assert_prefix(again, script, ops, grown=b"by the next process") == n
    count("crash states", "log", states)


def test_what_is_in_the_page_cache_only_is_written_again() -> None:
    """After a sync that failed the page cache shows a group that is not on the disk, and calls it clean: syncing again
    does nothing. Recovery holds on to the group, so it writes it again, before the footer says that it is there."""
    script = begin()
    script.append(b"one", payload(2, 2000))

    def fail(op: Op) -> None:
        if op.kind == "sync":
            script.disk.fail_sync(op.inode)
            raise OSError(5, "injected")

    script.disk.before = fail
    script.records.append(script.log.writer.append(payload(3, 3000), 1))
    with pytest.raises(OSError):
        script.log.writer.sync()
    left = script.disk.killed()
    recovering = left.copy()
    assert opened(recovering, SMALL).end.txid == 3
    for ops, at in enumerate(left.points(recovering.ops)):
        for cut in power_cuts(at, tries=TRIES, salt=ops):
            log = opened(cut, SMALL, seed=2)
            log.verify()
            assert log.end.txid == 3 if ops == len(recovering.ops) else log.end.txid in (2, 3)


@OPTIONS
@pytest.mark.parametrize("lasting", [False, True])
def test_every_operation_fails(options: LogOptions, lasting: bool) -> None:
    """Once, with the log given up then, as its owner does; or from then on, so that what cleans up fails as well."""
    created = made_at(SCRIPTS[options.preallocate])
    states = 0
    for fault in faults_of(SCRIPTS[options.preallocate].disk.ops):
        if fault.at < created or fault.lasting != lasting:
            continue
        disk = SimDisk()
        injected = Injected(disk, fault)
        script = begin(options, disk)
        with pytest.raises((DiskFull, OSError)):
            go_through(script, options)
        assert injected.struck
        script.log.abandon()
        injected.heal()
        ops = len(script.disk.ops)
        for left in (script.disk.crashed(Dropped()), script.disk.killed()):
            states += 1
            log = opened(left, options)
            n = assert_prefix(log, script, ops)
            log.writer.append(b"after it", 1)
            log.writer.sync()
            again = opened(left.crashed(Dropped()), options, seed=2)
            assert assert_prefix(again, script, ops, grown=b"after it") == n
    count("crash states", "log", states)


def test_a_segment_without_room_logs_nothing_and_is_tried_again() -> None:
    """Wherever a disk is full while the next segment's room is taken: nothing is logged, nothing is left, and with room
    the same record goes in."""
    filling = [payload(n, 30_000) for n in range(1, 5)]
    clean = begin()
    for text in filling:
        clean.append(text)
    rooms = [i for i, op in enumerate(clean.disk.ops) if "spare-2" in op.label]
    for fault in faults_of(clean.disk.ops):
        if fault.kind not in ("ENOSPC", "short write") or fault.lasting or fault.at not in rooms[:5]:
            continue
        disk = SimDisk()
        injected = Injected(disk, fault)
        script = begin(SMALL, disk)
        for text in filling[:3]:
            script.append(text)
        names = disk.list(DIRECTORY)
        with pytest.raises(DiskFull):
            script.log.writer.append(filling[3], 1)
        assert injected.struck
        assert disk.list(DIRECTORY) == names
        assert script.log.writer.appended == script.records[-1].position
        script.append(filling[3])
        script.append(b"and more")
        log = opened(disk.crashed(Dropped()), SMALL)
        assert assert_prefix(log, script, len(disk.ops)) == 5
