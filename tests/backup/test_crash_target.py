"""A backup target against every crash and every error of its disk, on a simulated disk: all or nothing.

Each thing that is done to a target (a full backup, an incremental, a compaction, a full one that takes another's place,
a restore, its opening as a store) is recorded once, and cut off at each point between two operations. What is found
then is not a backup, where none was finished before; or it is one, verified, whole, and shows the source's model at its
end, which is not before the last run that returned. A rerun then succeeds, and leaves nothing behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from target_rig import DEST, TARGET, World
from workloads import WORKLOADS

from holdfast.engine.errors import StoreExists, StoreNotFound, TargetPromoted
from holdfast.engine.store.store import Store
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import Dropped

TRIES = current_profile().crash_states // 2
ENGINES = pytest.mark.parametrize("kind", ["memory", "records"])
Scenario = Callable[[World, pytest.MonkeyPatch], Callable[[SimDisk], object]]


def full(world: World, patch: pytest.MonkeyPatch) -> Callable[[SimDisk], object]:
    world.write(3)
    world.source.do(("checkpoint",))
    world.write(2)
    return world.back_up


def incremental(world: World, patch: pytest.MonkeyPatch) -> Callable[[SimDisk], object]:
    full(world, patch)
    world.back_up()
    world.write(3)
    return world.back_up


def compact(world: World, patch: pytest.MonkeyPatch) -> Callable[[SimDisk], object]:
    incremental(world, patch)
    return lambda disk: world.back_up(disk, compact=0, compact_floor=0)


def full_again(world: World, patch: pytest.MonkeyPatch) -> Callable[[SimDisk], object]:
    """The source has lost the log for an incremental: a new generation, which takes the old one's place."""
    full(world, patch)
    world.back_up()
    world.write(2)
    store = world.source.store
    for slot in store.log.slots.list():
        store.log.slots.drop(slot.id)
    world.source.do(("close",), ("open",), ("epoch",))
    world.follow()
    world.write(1)
    world.source.do(("checkpoint",), ("prune",))
    assert world.acked is not None
    assert world.source.store.log.base.txid > world.acked
    return world.back_up


def full_again_and_kept(world: World, patch: pytest.MonkeyPatch) -> Callable[[SimDisk], object]:
    """Likewise, and the old one stays for its restore points."""
    world.keep = "7 days"
    return full_again(world, patch)


def compact_of_a_part(world: World, patch: pytest.MonkeyPatch) -> Callable[[SimDisk], object]:
    """The log is compacted up to a segment's end; the segments after that are carried over."""
    full(world, patch)
    world.back_up()
    for _ in range(3):
        world.write(2)
        log = world.source.store.log
        log.writer.extend_history(log.history, log.epoch + 1)  # a segment ends here, in the target too
    world.write(1)
    until = log.time_of(log.end.txid - 3)
    patch.setattr(sys.modules["holdfast.backup.run"], "cutoff_us", lambda keep, now_us: until)
    return lambda disk: world.back_up(disk, compact=0, compact_floor=0)


SCENARIOS = pytest.mark.parametrize("scenario", [full, incremental, compact, compact_of_a_part, full_again,
                                                  full_again_and_kept])


@ENGINES
@SCENARIOS
def test_a_run_is_cut_off(kind: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(WORKLOADS[kind]())
    what = scenario(world, monkeypatch)
    end = world.source.last
    for left, done in world.crashes(what, TRIES):
        world.is_whole(left, end if done else world.acked)
        assert world.back_up(left).to_txid == end
        world.is_tidy(left)
        assert world.is_whole(left.crashed(Dropped()), end) == end


@SCENARIOS
def test_the_rerun_is_cut_off_too(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a crash leaves, some: the rerun, which clears up or goes on, is cut off at points of its own."""
    world = World(WORKLOADS["memory"]())
    what = scenario(world, monkeypatch)
    halves = [left for left, done in world.crashes(what, 1) if not done]
    for half in halves[:: 1 + len(halves) // (4 * current_profile().times)]:
        world.disk = half
        for left, _ in world.crashes(world.back_up, 1, thinned=True):
            world.is_whole(left, world.acked)
            assert world.back_up(left).to_txid == world.source.last


@SCENARIOS
def test_a_run_whose_disk_fails(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(WORKLOADS["memory"]())
    what = scenario(world, monkeypatch)
    end = world.source.last
    for fault, left, done in world.faults(what):
        try:
            world.is_whole(left, end if done else world.acked)
            assert world.back_up(left).to_txid == end
            world.is_tidy(left)
            assert world.is_whole(left.crashed(Dropped()), end) == end
        except Exception as error:
            error.add_note(f"the disk's fault: {fault}")
            raise


def _restored(world: World, *, force: bool) -> int:
    """A backup, and where `force`, a store at the destination. The backup's end."""
    world.acked = end = world.source.last
    if force:
        world.restore(world.disk, to_txid=end - 1)
    return end


def _looked_at(world: World, left: SimDisk, end: int, *, force: bool, done: bool) -> None:
    """The destination is what it was before, or the whole restored store; the backup is as it was; and it can be
    restored then, durably."""
    assert world.is_whole(left, end) == end
    try:
        found = Store.open(DEST, world.work.engine, create=False, read_only=True, env=world.env(left))
    except StoreNotFound:
        assert not force, "what was there before is gone"
        assert not done
    else:
        assert found.published.txid in ((end,) if done or not force else (end - 1, end))
        world.shows(left, DEST, found.published.txid, read_only=True)
    try:
        assert world.restore(left, force=force).txid == end
    except StoreExists:
        assert not force
    else:
        assert left.list(DEST.parent) == [DEST.name]
        left = left.crashed(Dropped())
    world.shows(left, DEST, end)


@ENGINES
@pytest.mark.parametrize("force", [False, True])
def test_a_restore_is_cut_off(kind: str, force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(WORKLOADS[kind]())
    incremental(world, monkeypatch)(world.disk)
    end = _restored(world, force=force)
    for left, done in world.crashes(lambda disk: world.restore(disk, force=force), TRIES):
        _looked_at(world, left, end, force=force, done=done)


@pytest.mark.parametrize("force", [False, True])
def test_a_restore_whose_disk_fails(force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(WORKLOADS["memory"]())
    incremental(world, monkeypatch)(world.disk)
    end = _restored(world, force=force)
    for fault, left, done in world.faults(lambda disk: world.restore(disk, force=force)):
        try:
            _looked_at(world, left, end, force=force, done=done)
        except Exception as error:
            error.add_note(f"the disk's fault: {fault}")
            raise


def test_its_opening_for_writing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a backup still, or is promoted; either way it opens for writing, at its end, and is not a backup then."""
    world = World(WORKLOADS["memory"]())
    incremental(world, monkeypatch)(world.disk)
    world.acked = end = world.source.last
    promoted = 0
    for left, _ in world.crashes(lambda disk: world.shows(disk, TARGET, end).close(), TRIES):
        try:
            assert world.is_whole(left, end) == end
        except TargetPromoted:
            promoted += 1
        world.shows(left, TARGET, end).close()
        with pytest.raises(TargetPromoted):
            world.back_up(left)
    assert promoted
