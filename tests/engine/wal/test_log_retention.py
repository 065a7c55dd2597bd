"""Which segments may go: what `keep_logs` says, the plans that follow from it, and how they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import HISTORY, World, contents

from holdfast.engine.errors import LogPruned, SettingError
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import SegmentInfo
from holdfast.engine.testing.disks.quiet import SetClock
from holdfast.engine.testing.disks.simops import Op
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.retention import BELIEVE_S, CautiousClock, KeepLogs, PrunePlan, plan_pruning
from holdfast.engine.wal.segment import Segment
from holdfast.engine.wal.slots import Slot


@pytest.mark.parametrize(("said", "meant"), [
    ("7 days, 4 GiB", KeepLogs(bytes=4 << 30, hours=168.0)),
    ("for ever", KeepLogs()),
    (" Forever ", KeepLogs()),
    ("1.5 hours", KeepLogs(hours=1.5)),
    ("100000 transactions", KeepLogs(transactions=100_000)),
    ("500 MB,1 day", KeepLogs(bytes=500_000_000, hours=24.0)),
])
def test_keep_logs_is_read(said: str, meant: KeepLogs) -> None:
    assert KeepLogs.parse(said) == meant


@pytest.mark.parametrize("said", ["", "7", "seven days", "7 days 4 GiB", "-1 days", "4 GiBs", "7 days,"])
def test_keep_logs_that_is_not_understood_is_refused(said: str) -> None:
    with pytest.raises(SettingError):
        KeepLogs.parse(said)


HOUR = 3_600_000_000


@st.composite
def logs(draw: st.DrawFn) -> list[SegmentInfo]:
    """Some segments, oldest first, the last one open; empty ones among them."""
    segments = []
    txid = draw(st.integers(0, 5))
    time_us = 0
    for ordinal in range(1, draw(st.integers(1, 8)) + 1):
        count = draw(st.integers(0, 4))
        first_time = time_us
        time_us += draw(st.integers(0, 3)) * HOUR
        segments.append(SegmentInfo(Path(f"/{ordinal}"), ordinal, txid + 1, txid + count, first_time, time_us, time_us,
                                    draw(st.integers(1, 100)), True, 0, HISTORY))
        txid += count
    return segments


def slots(last: int) -> st.SearchStrategy[list[Slot]]:
    one = st.builds(lambda i, txid, seen: Slot(str(i), "", Position(txid, b""), seen * HOUR),
                    st.integers(0, 99), st.integers(0, last), st.integers(0, 20))
    return st.lists(one, max_size=4, unique_by=lambda c: c.id)


def planned(segments: list[SegmentInfo], **how: Any) -> PrunePlan:
    return plan_pruning(iter(segments[:-1]), size=sum(s.size for s in segments), base=segments[0].first - 1,
                        newest=segments[-1].last,
                        held=lambda txid: sum(s.size for s in segments if s.last > txid), **how)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), segments=logs(),
       keep=st.builds(KeepLogs, bytes=st.none() | st.integers(0, 400), hours=st.none() | st.floats(0, 12),
                      transactions=st.none() | st.integers(0, 12)),
       slot_bytes=st.integers(0, 400), slot_hours=st.floats(0, 20), age=st.integers(0, 12))
def test_plans_keep_the_rules(data: st.DataObject, segments: list[SegmentInfo], keep: KeepLogs, slot_bytes: int,
                              slot_hours: float, age: int) -> None:
    last = segments[-1].last
    floor = data.draw(st.integers(0, last))
    registered = data.draw(slots(last))
    now = segments[-1].last_time_us + age * HOUR
    plan = planned(segments, keep=keep, floor=floor, slots=registered, slot_bytes=slot_bytes,
                   slot_hours=slot_hours, now_us=now)
    # Oldest first, never the last.
    count = len(plan.segments)
    assert list(plan.segments) == segments[:count]
    assert count < len(segments)
    kept = segments[count:]
    # Never what somebody needs.
    needs = [floor, *(c.position.txid for c in registered if c not in plan.dropped)]
    assert all(s.last <= min(needs) for s in plan.segments)
    # A slot is dropped if, and only if, it is behind and lags beyond a bound.
    for slot in registered:
        held = sum(s.size for s in segments if s.last > slot.position.txid)
        lags = (held > slot_bytes or now - slot.seen_us > slot_hours * HOUR
                or slot.position.txid < segments[0].first - 1)
        assert (slot in plan.dropped) == (lags and last > slot.position.txid)
    # What went was over a bound, and the first that stays is needed or within all of them.
    def over(segment: SegmentInfo, total: int) -> bool:
        return ((keep.bytes is not None and total > keep.bytes)
                or (keep.hours is not None and now - segment.last_time_us > keep.hours * HOUR)
                or (keep.transactions is not None and last - segment.last >= keep.transactions))

    total = sum(s.size for s in segments)
    for segment in plan.segments:
        assert over(segment, total)
        total -= segment.size
    if len(kept) > 1:
        assert kept[0].last > min(needs) or not over(kept[0], total)


def test_for_ever_is_for_ever() -> None:
    segment = SegmentInfo(Path("/1"), 1, 1, 9, 0, 0, 0, 1 << 40, True, 0, HISTORY)
    plan = planned([segment, segment], keep=KeepLogs.parse("for ever"), floor=99, slots=[], slot_bytes=1,
                   slot_hours=1, now_us=1 << 60)
    assert plan.segments == ()


@pytest.mark.parametrize("error", [OSError(5, "injected"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("step", range(4))
def test_pruning_that_is_cut_off_leaves_no_hole(error: BaseException, step: int) -> None:
    """What was to be deleted and is still there was forgotten; the next pruning deleted what came after it, and the log
    had a hole and did not open."""
    world = World()
    world.fill(30)
    segments = world.log.segments()
    assert len(segments) > 6
    steps = 0

    def cut_off(op: Op) -> None:
        nonlocal steps
        steps += 1
        if steps > step:
            raise error

    world.disk.before = cut_off
    with pytest.raises(type(error)):
        world.log.prune(segments[:3])
    world.disk.before = lambda op: None
    left = [s.path for s in world.log.segments()]
    assert left[0] == segments[(step + 1) // 2].path
    assert left == [path for s in segments if world.disk.exists(path := s.path)]
    world.log.prune(world.log.segments()[:4])
    world.reopen().verify()


def pruned_between(monkeypatch: pytest.MonkeyPatch, world: World, count: int) -> None:
    """The next reader finds its segment just after that many have gone."""
    original = Log.segment_of

    def first_pruned(self: Log, txid: int) -> Segment:
        monkeypatch.undo()
        world.log.prune(world.log.segments()[:count])
        return original(self, txid)

    monkeypatch.setattr(Log, "segment_of", first_pruned)


def test_a_reader_that_is_overtaken_by_pruning_skips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding that its first record is there and looking for the segment, the segment went: it read on in the
    next one as if nothing were missing."""
    world = World()
    world.fill(30)
    pruned_between(monkeypatch, world, 3)
    with pytest.raises(LogPruned):
        contents(world.log)
    pruned_between(monkeypatch, world, 2)
    with pytest.raises(LogPruned):
        world.log.chain_at(world.log.base.txid + 1)


def test_a_time_is_looked_up_while_the_log_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended with the system's own words for a file that is gone."""
    world = World()
    records = world.fill(30)
    original = Segment.groups

    def first_pruned(self: Segment, *args: object) -> object:
        monkeypatch.undo()
        world.log.prune(world.log.segments()[:3])
        return original(self, *args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(Segment, "groups", first_pruned)
    assert world.log.txid_at(records[1].time_us) == world.log.base.txid > 2


def test_a_wall_clock_that_leaps_ages_nothing_at_once() -> None:
    """For a moment it was two weeks ahead: slots were dropped, and the log that they needed was deleted."""
    wall = SetClock(step_us=0)
    clock = CautiousClock(wall)
    for _ in range(3):
        wall.time_us += 30_000_000
        wall.seconds += 30
        assert clock.now_us() == wall.time_us
    wall.time_us += 14 * 24 * HOUR
    before = clock.now_us()
    assert before == wall.time_us - 14 * 24 * HOUR, "nothing is a day older"
    wall.seconds += BELIEVE_S - 1
    wall.time_us += int(BELIEVE_S - 1) * 1_000_000
    assert clock.now_us() - before == int(BELIEVE_S - 1) * 1_000_000, "not believed yet"
    wall.time_us -= 14 * 24 * HOUR
    assert clock.now_us() == wall.time_us, "put right"
    wall.time_us += 14 * 24 * HOUR
    clock.now_us()
    wall.seconds += BELIEVE_S
    assert clock.now_us() == wall.time_us, "believed in the end"
    wall.time_us -= 14 * 24 * HOUR
    assert clock.now_us() == wall.time_us, "going back deletes nothing"


def test_a_plan_looks_at_no_segment_behind_the_first_that_stays() -> None:
    """It summed up the sizes of all, for each slot once more."""
    world = World()
    world.fill(40)
    world.reopen()
    looked = []

    def oldest() -> Iterator[SegmentInfo]:
        for info in world.log.oldest():
            looked.append(info.ordinal)
            yield info

    plan = plan_pruning(oldest(), size=world.log.size(), base=0, newest=40, held=world.log.size_after,
                        keep=KeepLogs(transactions=30), floor=40, slots=[], slot_bytes=1, slot_hours=1,
                        now_us=0)
    assert [s.ordinal for s in plan.segments] == looked[:-1]
    assert len(looked) < 5
