"""A cursor over the log, and a log that is followed from another process: what is new costs what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import GROWING, HERE, HISTORY, SMALL, World, contents

from holdfast.engine.env import File
from holdfast.engine.errors import AheadOfSource, Damaged, Diverged, HoldfastError, LogPruned
from holdfast.engine.model.positions import Position
from holdfast.engine.testing import current_profile
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.wal.log import Log


class Metered(SimDisk):
    """Counts what is read."""

    bytes_read = opened = 0

    def open(self, path: Path, mode: Any = "read") -> File:
        self.opened += 1
        return MeteredFile(super().open(path, mode), self)


class MeteredFile(File):
    def __init__(self, file: File, disk: Metered) -> None:
        self.path, self._file, self._disk = file.path, file, disk
        for name in ("pwrite", "size", "datasync", "sync", "truncate", "close"):
            setattr(self, name, getattr(file, name))

    def pread(self, length: int, offset: int) -> bytes:
        data = self._file.pread(length, offset)
        self._disk.bytes_read += len(data)
        return data


class MeteredWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.disk: Metered = Metered()
        self.env = replace(self.env, files=self.disk)
        self.log = Log.create(HERE, HISTORY, self.log.base, engine="memory", options=SMALL, env=self.env)

    def reader(self) -> Log:
        return Log.open(HERE, read_only=True, options=SMALL, env=self.env)

    def cost(self, step: Any) -> tuple[int, int]:
        before = self.disk.bytes_read, self.disk.opened
        step()
        return self.disk.bytes_read - before[0], self.disk.opened - before[1]


def test_a_cursor_reads_what_is_new_and_no_more() -> None:
    """To read the one record at a segment's end took 21 ms where the segment was full, and a plugin that read each
    commit's got slower with each."""
    world = MeteredWorld()
    cursor = world.log.cursor(0)
    costs = []
    for n in range(1, 401):
        world.commit(b"%d" % n * 100)
        costs.append(world.cost(lambda n=n: costs_of(list(cursor.read()), n)))
    assert max(costs) <= (2000, 1)
    world.fill(10)
    assert [r.txid for r in cursor.read()] == list(range(401, 411))
    assert list(cursor.read()) == []


def costs_of(records: list[Any], txid: int) -> None:
    assert [r.txid for r in records] == [txid]


def test_a_reading_may_be_left_anywhere() -> None:
    world = World()
    world.commit(*(b"%d" % n for n in range(1, 11)))  # one group
    world.commit(b"11")
    cursor = world.log.cursor(0)
    for record in cursor.read(9):
        if record.txid == 4:
            break
    assert cursor.txid == 4
    assert cursor.chain == world.log.chain_at(4)
    assert [r.txid for r in cursor.read(6)] == [5, 6]
    assert [r.txid for r in cursor.read()] == [7, 8, 9, 10, 11]
    with pytest.raises(AheadOfSource):
        next(cursor.read(12))


def test_a_cursor_with_a_chain_follows_on_that_alone() -> None:
    world = World()
    world.commit(*(b"%d" % n for n in range(1, 6)))
    for txid in range(5):
        assert [r.txid for r in world.log.cursor(Position(txid, world.log.chain_at(txid))).read()][:1] == [txid + 1]
        with pytest.raises(Diverged):
            list(world.log.cursor(Position(txid, bytes(16))).read())


def test_pruning_under_a_cursor_is_said() -> None:
    world = World()
    world.fill(20)
    reader = Log.open(HERE, read_only=True, engine_position=world.log.end, options=SMALL, env=world.env)
    cursors = [world.log.cursor(2), reader.cursor(2)]
    begun = [cursor.read() for cursor in cursors]
    assert [next(reading).txid for reading in begun] == [3, 3]
    world.log.prune(world.log.segments()[:3])
    for reading, cursor in zip(begun, cursors, strict=True):
        with pytest.raises(LogPruned):
            list(reading)  # the rest of a segment that is open is still there
        with pytest.raises(LogPruned):
            list(cursor.read())
    kept = world.log.base.txid
    assert [r.txid for r in reader.cursor(kept).read()] == list(range(kept + 1, 21))


def test_a_lost_segment_under_a_cursor_is_damage() -> None:
    world = World()
    world.fill(20)
    lost = world.log.segments()[2].path
    for read_only in (False, True):
        log = Log.open(HERE, read_only=True, options=SMALL, env=world.env) if read_only else world.log
        log.segments()
        world.disk.rename(lost, lost.with_name("elsewhere"))
        with pytest.raises(Damaged) as caught:
            list(log.cursor(0).read())
        assert caught.value.path == str(lost)
        world.disk.rename(lost.with_name("elsewhere"), lost)


# --- followed from another process -----------------------------------------------------------------------------------


def test_looking_costs_what_is_new() -> None:
    """A read-only store opened its whole log again to show one commit more: half a second where 60,000 transactions
    stood in the open segment."""
    world = MeteredWorld()
    for n in range(1, 301):
        world.commit(b"%d" % n * 100)
    reader = world.reader()
    cursor = reader.cursor(reader.end)
    costs = []
    for n in range(301, 401):
        world.commit(b"%d" % n * 100)
        costs.append(world.cost(reader.look))
        assert reader.end.txid == n - 1  # nothing says yet that the last one is durable
        costs.append(world.cost(lambda: list(cursor.read())))
        assert cursor.txid == reader.end.txid
    assert max(costs) < (40_000, 3)
    world.log.close()
    assert reader.look().txid == 400


def test_looking_follows_a_log_wherever_it_goes() -> None:
    """Through full segments, closings, openings that go on in the last segment or begin one, kills, a new branch, a
    new epoch, a heartbeat."""
    world = World()
    reader = Log.open(HERE, read_only=True, options=SMALL, env=world.env)
    cursor = reader.cursor(0)

    def seen() -> int:
        reader.look()
        for record in cursor.read():
            original = next(world.log.read(record.txid - 1))
            assert (record.position, record.payload) == (original.position, original.payload)
        assert cursor.txid == reader.end.txid
        return cursor.txid

    world.commit(b"one")
    assert seen() == 0
    beat = world.log.writer.heartbeat()
    assert beat is not None
    world.log.writer.write(beat)
    assert seen() == 1
    world.fill(30)
    assert seen() >= 29
    world.log.close()
    assert seen() == 31
    for n in range(32, 42):
        world.reopen(close=n % 2 > 0)
        world.commit(b"%d" % n)
        assert seen() >= n - 1
    world.log.writer.extend_history(HISTORY.extended(b"another branch 1", world.log.end), epoch=3)
    assert seen() == 41
    assert reader.history == world.log.history
    assert reader.epoch == 3
    world.log.close()
    assert contents(reader) == contents(Log.open(HERE, read_only=True, options=SMALL, env=world.env))
    assert reader.size() == world.log.size()
    reader.verify()


def test_looking_at_a_log_that_went_away() -> None:
    world = World()
    world.commit(b"one")
    reader = Log.open(HERE, read_only=True, options=SMALL, env=world.env)
    world.fill(20)
    world.log.prune(world.log.segments()[:3])
    with pytest.raises(LogPruned):
        reader.look()
    world.disk.remove_tree(HERE)
    Log.create(HERE, HISTORY, world.log.base, engine="memory", options=SMALL, env=world.env)
    with pytest.raises(HoldfastError):
        reader.look()


def test_looking_finds_damage_and_takes_no_torn_group_for_it() -> None:
    world = World()
    world.commit(b"one")
    world.commit(b"two")
    path = world.log.segments()[0].path
    for damaged in (False, True):
        disk = world.disk.killed()
        env = replace(world.env, files=disk)
        reader = Log.open(HERE, read_only=True, options=SMALL, env=env)
        assert reader.end.txid == 1
        writer = Log.open(HERE, options=SMALL, env=env).writer
        writer.append(b"three" * 100, 1)
        writer.sync()
        if damaged:
            writer.append(b"four", 1)
            writer.sync()
        file = disk.open(path, "write")
        at = file.pread(1 << 20, 0).index(b"threethree")
        file.pwrite(b"X", at)
        if damaged:
            with pytest.raises(Damaged):
                reader.look()
        else:
            assert reader.look().txid == 1


@settings(max_examples=current_profile().examples(60), deadline=None)
@given(steps=st.lists(st.sampled_from(["commit", "many", "large", "beat", "close", "kill", "look", "prune", "spare"]),
                      max_size=40), growing=st.booleans())
def test_any_history_is_followed(steps: list[str], growing: bool) -> None:
    """What a reader has shown is what the log holds, whatever the writer did, and it is never behind by more than the
    last group."""
    world = World(GROWING if growing else SMALL)
    reader = Log.open(HERE, read_only=True, options=world.options, env=world.env)
    cursor, shown, ends = reader.cursor(0), list[tuple[int, bytes]](), [0]
    payloads: list[bytes] = []
    for step in steps:
        if step in ("commit", "many", "large"):
            several = {"commit": [b"x" * len(payloads)], "many": [b"y"] * 20, "large": [bytes(50_000)]}[step]
            world.commit(*several)
            payloads += several
            ends.append(len(payloads))
        elif step == "beat" and (beat := world.log.writer.heartbeat()) is not None:
            world.log.writer.write(beat)
        elif step in ("close", "kill"):
            world.reopen(close=step == "close")
        elif step == "spare":
            world.log.writer.prepare_spare()
        elif step == "prune":
            world.log.prune([s for s in world.log.segments() if s.last < reader.last_base])
        elif step == "look":
            reader.look()
            shown += [(r.txid, r.payload) for r in cursor.read()]
            assert cursor.txid == reader.end.txid >= (ends[-2] if len(ends) > 1 else 0)
    world.log.close()
    assert reader.look() == world.log.end
    shown += [(r.txid, r.payload) for r in cursor.read()]
    assert shown == list(enumerate(payloads, 1))
    assert not payloads or cursor.chain == world.log.end.chain
