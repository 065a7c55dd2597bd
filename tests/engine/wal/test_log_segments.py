"""How many segments there are: openings leave none behind, cost the same whatever their number, and miss one that is
gone, the newest too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from log_world import GROWING, HERE, HISTORY, SMALL, World, contents

from holdfast.engine.errors import Damaged
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.segment import Segment, ordinals_of
from holdfast.engine.wal.writer import LogOptions

OPTIONS = pytest.mark.parametrize("options", [SMALL, GROWING], ids=["preallocated", "growing"])


def segments_of(disk: SimDisk) -> list[Path]:
    return [HERE / name for name in disk.list(HERE) if name.endswith(".seg") and name[0].isdigit()]


@OPTIONS
def test_openings_leave_no_segments(options: LogOptions) -> None:
    """Each opening began a segment of its own, so a store that is opened by a job each minute, and a target that gets
    an incremental each minute, had 1,440 files a day, and each was opened at each opening."""
    world = World(options)
    for n in range(1, 201):
        world.commit(b"%d" % n * 40)
        world.reopen(close=n % 3 > 0)  # or killed
    assert contents(world.log) == [(n, b"%d" % n * 40) for n in range(1, 201)]
    world.log.verify()
    assert len(segments_of(world.disk)) == 1
    world.fill(30)
    assert [s.first for s in world.log.segments()] == [1, *(s.last + 1 for s in world.log.segments()[:-1])]


def test_a_large_last_segment_is_not_gone_on_with() -> None:
    """It would have to be written again."""
    world = World()
    world.fill(4)
    world.reopen()
    world.commit(b"five")
    assert [(s.first, s.last) for s in world.log.segments()] == [(1, 4), (5, 5)]


def test_a_damaged_last_segment_is_not_gone_on_with() -> None:
    """What is wrong in it would get a checksum that says it is right."""
    world = World()
    world.commit(b"one" * 100)
    world.log.close()
    (path,) = segments_of(world.disk)
    file = world.disk.open(path, "write")
    file.pwrite(b"?", Segment.load(world.disk, path).data_end - 1)
    file.sync()
    world.log = Log.open(HERE, options=SMALL, env=world.env)
    world.commit(b"two")
    assert len(segments_of(world.disk)) == 2
    with pytest.raises(Damaged) as caught:
        world.log.verify()
    assert caught.value.path == str(path)


def test_another_branch_or_epoch_begins_a_segment() -> None:
    world = World()
    world.commit(b"one")
    world.reopen().writer.extend_history(HISTORY.extended(b"another branch 1", world.log.end))
    world.commit(b"two")
    world.reopen().writer.extend_history(world.log.history, epoch=4)
    world.commit(b"three")
    assert [(s.first, s.last, s.epoch) for s in world.log.segments()] == [(1, 1, 0), (2, 2, 0), (3, 3, 4)]
    world.reopen()
    world.commit(b"four")
    assert [s.last for s in world.log.segments()] == [1, 2, 4]


def test_who_reads_a_segment_that_is_gone_on_with_is_not_disturbed() -> None:
    world = World()
    world.commit(b"one", b"two")
    world.log.close()
    reader = Log.open(HERE, read_only=True, options=SMALL, env=world.env)
    reading = reader.read(0)
    assert next(reading).txid == 1
    world.log = Log.open(HERE, options=SMALL, env=world.env)
    world.commit(b"three")
    assert [r.txid for r in reading] == [2]
    assert contents(reader) == [(1, b"one"), (2, b"two")]


# --- what an opening costs -------------------------------------------------------------------------------------------


class CountingDisk(SimDisk):
    """Counts what is opened, and what is asked of paths."""

    opened = 0

    def _find(self, path: Path) -> int | None:
        self.opened += 1
        return super()._find(path)

    def open(self, path: Path, mode: object = "read") -> object:  # type: ignore[override]
        self.opened += 1
        return super().open(path, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_an_opening_costs_the_same_however_many_segments(clean: bool, read_only: bool) -> None:
    """It read header and footer of each: 169 ms with 1,103 of them."""
    costs = []
    for count in (15, 300):
        world = World()
        world.disk = CountingDisk()
        world.env = type(world.env)(world.disk, world.env.clock, world.env.randomness, world.env.scheduler)
        world.log = Log.create(HERE, HISTORY, world.log.base, engine="memory", options=SMALL, env=world.env)
        world.fill(count)
        end = world.log.end
        if clean:
            world.log.close()
        before = world.disk.opened
        log = Log.open(HERE, engine_position=end, read_only=read_only, options=SMALL, env=world.env)
        assert log.status()["bytes"] == log.size() > log.size_after(end.txid // 2) > count * 10_000
        assert log.attached(end.txid - 1) == []
        costs.append(world.disk.opened - before)
    few, many = costs
    assert many <= few + 12  # a few steps more of a bisection
    assert few < 40


def test_sizes_and_attachments_add_up_after_pruning() -> None:
    world = World()
    world.fill(30)
    for again in (False, True):
        if again:
            world.log.prune(world.log.segments()[:4])
        for log in (world.log, Log.open(HERE, read_only=True, engine_position=world.log.end, options=SMALL,
                                        env=world.env)):
            sizes = [(s.last, s.size) for s in log.segments()]
            assert log.size() <= sum(size for _, size in sizes)
            for txid in (log.base.txid, 17, 29, 30):
                held = sum(size for last, size in sizes if last > txid)
                assert log.size_after(txid) <= held <= log.size_after(txid) + SMALL.segment_bytes + 400 * len(sizes)


# --- one that is gone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_newest_segment_that_is_gone_is_missed(clean: bool, reopened: bool, read_only: bool) -> None:
    """A store that was killed, and whose newest segment was lost, opened as clean, ten transactions short: the segment
    before was sealed, and looked like the end of the log."""
    world = World()
    world.fill(5)
    if reopened:
        world.reopen()  # the last one is sealed, and not followed yet
    world.fill(5)
    assert len(segments_of(world.disk)) > 1
    if clean:
        world.log.close()
    disk = world.disk.killed()
    gone = segments_of(disk)[-1]
    disk.unlink(gone)
    env = type(world.env)(disk, world.env.clock, world.env.randomness, world.env.scheduler)
    for _ in range(2):  # it is not forgotten by an opening that failed
        with pytest.raises(Damaged, match="missing") as caught:
            Log.open(HERE, read_only=read_only, options=SMALL, env=env)
        assert caught.value.path == str(gone)


def test_a_newest_segment_without_records_may_be_as_if_it_had_never_been() -> None:
    """A crash between its beginning and the seal of the one before leaves either, and nothing was acknowledged."""
    world = World()
    world.fill(5)
    for op in range(12):
        disk = world.disk.killed()
        env = type(world.env)(disk, world.env.clock, world.env.randomness, world.env.scheduler)
        log = Log.open(HERE, options=SMALL, env=env)
        left = op

        def stop(_: object) -> None:
            nonlocal left
            if not left:
                raise OSError(5, "injected")
            left -= 1

        disk.before = stop
        try:
            log.writer.append(bytes(90_000), 1)
            log.writer.sync()
        except OSError:
            pass
        disk.before = lambda _: None
        log.abandon()
        assert contents(Log.open(HERE, options=SMALL, env=env))[:5] == contents(world.log)[:5]


def test_a_segment_cut_within_its_header_is_damaged() -> None:
    """The zeros behind the header's document were not looked at. A run then sealed the file with a checksum of fewer
    bytes than it had, said that all was well, and from then on the target was damaged."""
    world = World(GROWING)
    path = segments_of(world.disk)[0]
    world.log.close()
    world.disk.open(path, "write").truncate(400)
    with pytest.raises(Damaged) as caught:
        Log.open(HERE, options=GROWING, env=world.env)
    assert caught.value.path == str(path)


def test_the_index_stays_small_and_dense() -> None:
    """A place was found by reading up to 256 KiB: thousands of small transactions, for each piece of log that was asked
    for, each lease, each incremental."""
    for payload, count in ((bytes(40), 1500), (bytes(60_000), 3)):
        world = World(LogOptions(segment_bytes=4 << 20))
        for _ in range(count):
            world.commit(payload)
        for log in (world.log, world.reopen()):
            index = [entry.offset for entry in log.segment_of(1).index]
            assert all(b - a < (64 << 10) + (16 << 10) for a, b in pairwise(index))
            assert len(index) == (12 if count > 3 else 3)


def test_the_index_of_a_large_segment_has_a_bound() -> None:
    world = World(LogOptions(segment_bytes=16 << 20))
    for _ in range(1760):
        world.commit(bytes(17_000))
    *_, info = world.log.segments()
    assert contents(world.log, 700)[0][0] == 701
    index = world.log.segment_of(1760).index
    assert 200 <= len(index) <= 400
    assert max(b.offset - a.offset for a, b in pairwise(index)) < info.size // 100
    for entry in index:
        assert next(world.log.read(entry.txid - 1)).txid == entry.txid
    world.reopen().verify()


def test_only_whole_names_are_segments() -> None:
    names = ["000000000007.seg", "x000000000008.seg", "000000000009.seg.new", "00000000010.seg", "\u0661" * 12 + ".seg",
             "spare-1.seg", "000000000011.seg", "a\n000000000012.seg"]
    assert ordinals_of(names) == [7, 11]
    assert ordinals_of([]) == []
