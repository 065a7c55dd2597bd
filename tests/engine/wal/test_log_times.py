"""Commit times after the clock was wrong: there is a way back, and a time keeps its meaning."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import World
from store_kinds import until

from holdfast import backup
from holdfast.engine import MemoryEngine, Settings, Store
from holdfast.engine.env import Clock, Env
from holdfast.engine.errors import StoreLocked
from holdfast.engine.source.http.limits import Counters
from holdfast.engine.source.http.status import metrics, page
from holdfast.engine.source.local import LocalSource
from holdfast.engine.testing.disks.quiet import SetClock
from holdfast.engine.wal.log import AHEAD_US, FLOOR_US
from holdfast.engine.wal.retention import BELIEVE_S, KeepLogs, plan_pruning

DAY = AHEAD_US
YEARS = 9 * 365 * DAY


def _at(eras: list[list[int]], time_us: int) -> int:
    """What `txid_at` should say: `eras` are commit times, the newest last, and transactions are numbered through."""
    end = sum(map(len, eras))
    for era in reversed(eras):
        if found := sum(t <= time_us for t in era):
            return end - len(era) + found
        end -= len(era)
    return 0


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["commit", "commit", "beat", "open"]),
                                st.sampled_from([0, 1, 1000, 10**9, -(10**9), 3 * DAY, -3 * DAY, YEARS, -YEARS])),
                      min_size=1, max_size=25))
def test_times_against_plain_lists(steps: list[tuple[str, int]]) -> None:
    """Clocks that step either way, commits, heartbeats and openings. Within an era times only grow; each time means
    what the lists say, here and in a copy of the log that is made record by record; and what a time meant once that the
    log was complete up to, it means until another era begins."""
    world, copy = World(step_us=0), World(step_us=0)
    world.clock.time_us = copy.clock.time_us = FLOOR_US + YEARS * 3
    eras: list[list[int]] = [[]]
    meant: dict[int, int] = {}
    for kind, step in steps:
        world.clock.time_us += step
        if kind == "open":
            if world.reopen().begin_era():
                eras.append([])
                meant.clear()
        elif kind == "beat":
            if (batch := world.log.writer.heartbeat(start=True)) is not None:
                world.log.writer.write(batch)
        else:
            (record,) = world.commit(bytes(30_000))
            eras[-1].append(record.time_us)
        assert all(a < b for era in eras for a, b in pairwise(era))
        meant.update({t: world.log.txid_at(t) for t in (world.log.complete_us, world.log.complete_us - 1)})
        assert {t: world.log.txid_at(t) for t in meant} == meant
    for record in world.log.read(0):
        copy.log.writer.append_record(record)
    copy.log.writer.sync()
    times = {t + d for era in eras for t in era for d in (-1, 0, 1)} | {0}
    for log in (world.log, world.reopen(), copy.log, copy.reopen()):
        assert {t: log.txid_at(t) for t in times} == {t: _at(eras, t) for t in times}


class Stepped(Clock):
    """The machine's clock, and so much."""

    def __init__(self, by_us: int = 0) -> None:
        self.by_us = by_us

    def now_us(self) -> int:
        return super().now_us() + self.by_us


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)


def _commit(store: Store[Any, Any], key: bytes) -> None:
    with store.transaction() as tx:
        tx.put(key, b"v")


@pytest.mark.parametrize("created_ahead", [False, True])
def test_a_clock_that_was_wrong_once_is_not_followed_for_ever(created_ahead: bool, tmp_path: Path,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    """One opening with the clock nine years ahead, before it was set: every commit for nine years would have been given
    that time and some microseconds, and every real time was refused. It is said once, and real times work again."""
    for by_us in (YEARS,) if created_ahead else (0, YEARS):
        with Store.open(tmp_path / "s", MemoryEngine, env=Env(clock=Stepped(by_us))) as store:
            _commit(store, b"a")
            backup.run(store, tmp_path / "b")
    assert ["has leapt" in r.getMessage() for r in caplog.records] == [True] * (not created_ahead)
    caplog.clear()
    with Store.open(tmp_path / "s", MemoryEngine) as store:
        (said,) = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert "days ahead of the clock, so a wrong clock made them" in said.getMessage()
        wrong = store.durable.txid
        assert store.status()["log"]["times_since"] == wrong + 1
        assert store.log.writer.clock_jump_us < -YEARS + DAY
        _commit(store, b"b")
        right = store.log.time_of(store.durable.txid)
        _commit(store, b"mistake")
        for target in ("b", "full"):
            bounds = backup.run(store, tmp_path / target).bounds
            assert abs(bounds.complete_until_us - right) < DAY
            if target == "b":
                assert backup.restore(tmp_path / target, tmp_path / f"at-{target}", at=_moment(right)).txid == wrong + 1
    assert backup.restore(tmp_path / "b", tmp_path / "wrong", to_txid=wrong).txid == wrong
    with Store.open(tmp_path / "s", MemoryEngine) as store:
        assert store.log.txid_at(right) == wrong + 1
        assert len(caplog.records) == 1, "once"


def test_a_clock_that_is_behind_now_does_not_change_what_times_mean(caplog: pytest.LogCaptureFixture) -> None:
    """A machine without a battery starts in 1970, or weeks ago, when the log was written: it is the clock that is wrong
    now, and commits go on at the log's times."""
    world = World(step_us=0)
    world.clock.time_us = FLOOR_US + YEARS
    for _ in range(60):
        world.clock.time_us += DAY // 2
        world.commit(bytes(20_000))
    last = world.log.writer.last_time_us
    for back in (10 * DAY, 3 * DAY + 12345, last):
        world.clock.time_us = last - back
        assert not world.reopen().begin_era()
        (record,) = world.commit(b"x")
        assert last < record.time_us < last + 10
        assert world.log.txid_at(last) == 60
    assert {"behind the log" in r.getMessage() for r in caplog.records} == {True}


def test_an_opening_ahead_prunes_and_drops_nothing(tmp_path: Path) -> None:
    """Opened once 400 days ahead, a store deleted its log and dropped its slots within a minute, though a leap
    while it was open was believed after an hour only."""
    small = Settings(segment_bytes=128 << 10, heartbeat_s=0)
    clock = SetClock(step_us=1)
    with Store.open(tmp_path / "s", MemoryEngine, settings=small, env=Env(clock=clock)) as store:
        for n in range(30):
            with store.transaction() as tx:
                tx.put(b"%d" % n, bytes(20_000))
            if n == 5:
                store.log.slots.register("one", "of a target", store.durable)
    for right, left in ((False, 1), (True, 0)):
        ahead = SetClock(clock.time_us + 400 * DAY, step_us=1)
        how = Settings(segment_bytes=128 << 10, heartbeat_s=0, clock_is_right=right)
        with Store.open(tmp_path / "s", MemoryEngine, settings=how, env=Env(clock=ahead)) as store:
            store.prune()  # unless it did by itself
            assert len(store.log.slots.list()) == left
            assert (store.log.base.txid > 0) is right, "an operator who knows can say so"
            assert (store.status()["clock_doubted_us"] > 399 * DAY) is not right


def test_it_is_believed_when_it_has_lasted(tmp_path: Path) -> None:
    """The store may just have been closed for a year: after an hour the log is as old as it is."""
    clock = SetClock(step_us=1)
    with Store.open(tmp_path / "s", MemoryEngine, env=Env(clock=clock),
                    settings=Settings(segment_bytes=128 << 10, heartbeat_s=0)) as store:
        for n in range(30):
            with store.transaction() as tx:
                tx.put(b"%d" % n, bytes(20_000))
    later = SetClock(clock.time_us + 400 * DAY, step_us=1)
    with Store.open(tmp_path / "s", MemoryEngine, env=Env(clock=later),
                    settings=Settings(segment_bytes=128 << 10, heartbeat_s=0)) as store:
        assert store.prune() == 0
        later.seconds += BELIEVE_S + 1
        later.time_us += int(BELIEVE_S + 1) * 1_000_000
        store.prune()  # unless it did by itself
        assert store.log.base.txid > 0


def test_a_doubted_clock_is_said_wherever_somebody_looks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That a store did not believe the clock stood nowhere: not in its log messages, not in `info`, not in the metrics.
    So nobody could tell why its log was not pruned, or that the clock was wrong."""
    path = tmp_path / "s"
    clock = SetClock(FLOOR_US + YEARS, step_us=0)
    with Store.open(path, MemoryEngine, settings=Settings(heartbeat_s=0), env=Env(clock=clock)) as store:
        with store.transaction() as tx:
            tx.put(b"1", b"")
        assert backup.info(path, env=Env(clock=clock)).clock_doubted == 0
    assert backup.info(path, env=Env(clock=clock)).clock_doubted is None
    ahead = SetClock(clock.time_us + 1 + 400 * DAY, step_us=0)  # the commit was a microsecond after the opening
    env = Env(clock=ahead)

    def told(store: Store[Any, Any]) -> tuple[bool, bool, bool, bool]:
        """Whether status, metrics, the page and `info` say that the clock is doubted by 400 days."""
        source, doubted = LocalSource(store), f"holdfast_clock_doubted_seconds {400 * 86_400}.0\n"
        found = backup.info(path, env=env)
        assert found.clock_doubted in (0, 400 * 86_400)
        assert ("is doubted by the process" in str(found)) is (found.clock_doubted > 0)
        return (store.status()["clock_doubted_us"] == 400 * DAY, doubted in metrics(source, store, Counters()),
                "<th>clock<td>doubted: it is 9600.0 hours ahead" in page(source, store), found.clock_doubted > 0)

    with Store.open(path, MemoryEngine, settings=Settings(heartbeat_s=0), env=env) as store:
        assert told(store) == (True, True, True, True)
        assert "9600.0 hours ahead" in caplog.text
        assert backup.info(path).clock_doubted == 400 * 86_400, "asked by another process, with a clock of its own"
        with pytest.raises(StoreLocked, match=r"this very process"):
            Store.open(path, MemoryEngine)
        ahead.seconds += BELIEVE_S + 31
        ahead.time_us += int(BELIEVE_S + 31) * 1_000_000
        until(lambda: told(store) == (False, False, False, False))
        with store.transaction() as tx:
            tx.put(b"2", b"")
    right = Env(clock=SetClock(clock.time_us + 2 * DAY, step_us=0))
    after = backup.info(path, env=right)
    assert 398 * 86_400 < after.clock_behind < 399 * 86_400
    assert "hours behind the log's last time" in str(after)
    with Store.open(path, MemoryEngine, env=right) as store, store.transaction() as tx:
        tx.put(b"3", b"")
    again = backup.info(path, env=right)
    assert again.times_since == 3
    assert again.clock_behind < 1
    assert "right again from transaction 3 on" in str(again)


def test_segments_of_a_wrong_clock_do_not_stay_until_then() -> None:
    """What is stamped with 2035 is not young for nine years: it is older than what came after it."""
    world = World(step_us=0)
    world.clock.time_us += YEARS
    world.fill(10)
    world.clock.time_us -= YEARS
    assert world.reopen().begin_era()
    world.fill(10)
    segments = world.log.segments()
    now = world.clock.time_us + 10 * DAY
    plan = plan_pruning(iter(segments[:-1]), size=world.log.size(), base=0, newest=20, held=world.log.size_after,
                        keep=KeepLogs(hours=24), floor=20, slots=[], slot_bytes=1, slot_hours=1, now_us=now)
    assert len(plan.segments) == len([s for s in segments[:-1] if s.sealed])
