"""The log in ordinary weather: what is appended is read again, by txid and by time; segments come and go.

Crashes and damage are in `test_log_recovery`.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import GROWING, HERE, HISTORY, SMALL, START, STORE_ID, World, contents

from holdfast.engine.errors import AheadOfSource, DiskFull, InvalidInput, LogPruned, SettingError
from holdfast.engine.model.positions import Branch, History
from holdfast.engine.model.records import Record
from holdfast.engine.testing.disks.simops import Op
from holdfast.engine.wal.segment import INDEX_EVERY
from holdfast.engine.wal.writer import LogOptions

# --- append and read -------------------------------------------------------------------------------------------------


def test_what_is_appended_is_read_after_sync_and_not_before() -> None:
    world = World()
    record = world.log.writer.append(b"one", 7)
    assert contents(world.log) == []
    assert world.log.end == START
    world.log.writer.sync()
    (read,) = world.log.read(0)
    assert (read.txid, read.payload, read.payload_version, read.chain) == (1, b"one", 7, record.chain)
    assert world.log.end == record.position


@pytest.mark.parametrize("options", [SMALL, GROWING], ids=["preallocated", "growing"])
def test_rotations(options: LogOptions) -> None:
    """Many segments of the least size, read across their borders from anywhere, open and reopened."""
    world = World(options)
    made = [(r.txid, r.payload) for r in world.fill(60)]
    segments = world.log.segments()
    assert len(segments) > 10
    assert [s.sealed for s in segments] == [True] * (len(segments) - 1) + [False]
    assert all(a.last + 1 == b.first for a, b in pairwise(segments))
    for log in (world.log, world.reopen(), world.reopen(close=False)):
        assert contents(log) == made
        for after in (0, 3, 17, 59, 60):
            assert contents(log, after) == made[after:]
        assert contents(log, 10, 30) == made[10:30]
        log.verify()
    assert all(s.sealed for s in world.log.segments())


def test_a_clean_close_leaves_nothing_to_recover_and_no_empty_segments() -> None:
    world = World()
    world.commit(b"one")
    for _ in range(3):
        assert world.reopen().recovery.clean
        assert world.log.recovery.cut_bytes == 0
    assert len(world.log.segments()) == 1
    world.commit(b"two")
    world.reopen()
    assert [(s.first, s.last) for s in world.log.segments()] == [(1, 2)]


def test_reading_needs_what_is_there() -> None:
    world = World()
    world.commit(b"one", b"two")
    world.log.writer.append(b"three", 1)
    with pytest.raises(AheadOfSource):
        list(world.log.read(0, 3))
    with pytest.raises(AheadOfSource):
        world.log.chain_at(3)
    with pytest.raises(AheadOfSource):
        world.log.time_of(3)


def test_chains() -> None:
    world = World()
    records = world.fill(12)
    assert world.log.chain_at(0) == START.chain
    chain = START.chain
    for record in records:
        assert world.log.chain_at(record.txid) == record.chain
        assert Record.decode(chain, record.header, record.payload).chain == record.chain
        chain = record.chain


def test_records_larger_than_a_segment_or_a_group() -> None:
    world = World()
    big = bytes(range(256)) * 2000
    world.commit(b"one", big, b"three")
    world.commit(big)
    assert [p for _, p in contents(world.log)] == [b"one", big, b"three", big]
    assert [p for _, p in contents(world.reopen())] == [b"one", big, b"three", big]


def test_payloads_over_the_bound_are_refused_wherever_they_would_go() -> None:
    """The bound held only for a payload that needed a new segment: a smaller segment's rest took anything."""
    world = World(LogOptions(segment_bytes=128 << 10, max_record_bytes=1000))
    world.commit(bytes(1000))
    for _ in range(2):
        with pytest.raises(InvalidInput, match="max_record_bytes"):
            world.log.writer.append(bytes(1001), 1)
    (record,) = world.commit(b"two")
    assert record.txid == 2
    # A copy of another log's record is that log's business.
    other = World()
    other.log.writer.append_record(next(world.log.read(0)))
    large = other.log.writer.append(bytes(5000), 1)
    assert large.txid == 2


def test_a_group_is_bounded() -> None:
    world = World()
    for i in range(20):
        world.log.writer.append(bytes([i]) * 10_000, 1)
    writes_before = len([op for op in world.disk.ops if op.kind == "write"])
    world.log.writer.sync()
    written = [op for op in world.disk.ops if op.kind == "write"][writes_before:]
    assert max(len(op.data) for op in written) <= (128 << 10)
    groups = [op for op in written if op.data[:4] == b"HFG1"]
    assert len(groups) >= 3
    assert all(len(op.data) <= SMALL.group_bytes + 200 for op in groups)


def test_segment_sizes_have_bounds() -> None:
    for size in (1, (128 << 10) - 1, (64 << 20) + 1):
        with pytest.raises(SettingError):
            LogOptions(segment_bytes=size)


def test_one_sync_for_each_group_and_none_for_metadata() -> None:
    """On a preallocated segment, a group is one write within the file and one sync."""
    world = World()
    world.commit(b"one")
    size = world.disk.size(world.log.segments()[0].path)
    for _ in range(5):
        done = len(world.disk.ops)
        world.commit(b"x" * 100, b"y")
        assert [op.kind for op in world.disk.ops[done:]] == ["write", "sync"]
    assert world.disk.size(world.log.segments()[0].path) == size == SMALL.segment_bytes


# --- room ------------------------------------------------------------------------------------------------------------


def no_room(op: Op) -> None:
    if op.kind == "write":
        raise OSError(28, "injected")


def test_a_segment_that_cannot_be_allocated_is_retriable_and_nothing_is_logged() -> None:
    world = World()
    made = world.fill(4)
    world.disk.before = no_room
    for _ in range(3):
        with pytest.raises(DiskFull):
            world.log.writer.append(bytes(90_000), 1)
    assert world.log.writer.appended == made[-1].position
    assert not any(name.startswith("spare") or name.endswith(".new") for name in world.names())
    world.disk.before = lambda op: None
    world.commit(bytes(90_000))
    assert [r.txid for r in world.log.read(0)] == [1, 2, 3, 4, 5]


def test_sealing_needs_no_room() -> None:
    """The footer fits into what the segment took in advance, and closing makes no file larger."""
    world = World()
    world.fill(4, 24_000)
    sizes: list[int] = []

    def watch(op: Op) -> None:
        if op.kind == "write":
            sizes.append(op.offset + len(op.data))

    world.disk.before = watch
    world.log.close()
    assert sizes
    assert max(sizes) <= SMALL.segment_bytes


def test_a_spare_is_used_and_survives_a_reopening() -> None:
    world = World()
    world.commit(b"one")
    assert world.log.writer.wants_spare
    world.log.writer.prepare_spare()
    assert not world.log.writer.wants_spare
    (spare,) = [n for n in world.names() if n.startswith("spare")]
    world.reopen()
    assert spare in world.names()
    writes = len([op for op in world.disk.ops if op.kind == "write" and not any(op.data)])
    world.commit(b"two")
    assert spare not in world.names()
    assert len([op for op in world.disk.ops if op.kind == "write" and not any(op.data)]) == writes, "zero-filled again"
    world.log.verify()


def test_a_spare_that_is_not_zero_or_not_whole_is_thrown_away() -> None:
    world = World()
    world.commit(b"one")
    world.log.close()
    for name, data in (("spare-7.seg", bytes(1000)), ("spare-8.seg", b"x" + bytes((128 << 10) - 1)),
                       ("spare-9.new", bytes(128 << 10))):
        world.disk.open(HERE / name, "create").pwrite(data, 0)
    world.reopen()
    assert [n for n in world.names() if n.startswith("spare")] == []


# --- copies of records, branches, heartbeats -------------------------------------------------------------------------


def test_a_copy_has_the_same_bytes() -> None:
    source, copy = World(), World(GROWING)
    source.fill(9)
    for record in source.log.read(0):
        copy.log.writer.append_record(record)
    copy.log.writer.sync()
    assert copy.log.end == source.log.end
    assert [r.header for r in copy.log.read(0)] == [r.header for r in source.log.read(0)]
    assert [r.header for r in copy.reopen().read(0)] == [r.header for r in source.log.read(0)]
    assert copy.log.segments()[-1].size == copy.disk.size(copy.log.segments()[-1].path)


def test_the_size_of_a_growing_log_is_known_while_it_grows() -> None:
    copy = World(GROWING)
    copy.fill(3)
    assert copy.log.size() == copy.disk.size(copy.log.segments()[0].path) > 60_000


def test_what_is_beyond_a_transaction_is_known_without_reading_it() -> None:
    world = World(SMALL)
    records = [world.commit(b"%d" % i * 1000)[0] for i in range(300)]
    sizes = [len(r.payload) for r in records]
    assert len(world.log.segments()) > 3
    world.reopen()
    first = [world.log.beyond(txid) for txid in range(300)]  # which looks at the segments that it needs
    world.disk.open = None  # type: ignore[assignment, method-assign]  # nothing can be read
    for txid in range(300):
        assert world.log.beyond(txid) == first[txid]
        size, time_us = first[txid]
        exact = sum(sizes[txid:])
        assert exact < size < exact * 1.1 + INDEX_EVERY + 4000
        lead = records[max(0, txid - 17)].time_us  # an entry of the index for every 16 KiB
        assert lead <= time_us <= records[txid].time_us
    assert world.log.beyond(300) == (0, 0)


def test_append_record_refuses_what_does_not_follow() -> None:
    source, other = World(), World()
    one, two, three = source.commit(b"one", b"two", b"three")
    strange = other.commit(b"strange")[0]
    copy = World()
    with pytest.raises(InvalidInput, match="cannot follow"):
        copy.log.writer.append_record(two)
    copy.log.writer.append_record(one)
    with pytest.raises(InvalidInput, match="cannot follow"):
        copy.log.writer.append_record(one)
    with pytest.raises(InvalidInput, match="cannot follow"):
        copy.log.writer.append_record(three)
    after_strange = Record.make(strange.chain, 2, 0, 1, 1, b"two")
    with pytest.raises(InvalidInput, match="history"):
        copy.log.writer.append_record(after_strange)
    copy.log.writer.append_record(two)
    newer = Record.make(two.chain, 3, 5, 1, 1, b"epoch 5")
    copy.log.writer.append_record(newer)
    with pytest.raises(InvalidInput, match="history"):
        copy.log.writer.append_record(Record.make(newer.chain, 4, 4, 1, 1, b"epoch 4"))
    copy.log.writer.sync()
    assert [p for _, p in contents(copy.log)] == [b"one", b"two", b"epoch 5"]


def test_a_new_branch_starts_a_segment_that_names_it() -> None:
    world = World()
    world.commit(b"one")
    branched = HISTORY.extended(b"another branch 1", world.log.end)
    world.log.writer.extend_history(branched)
    assert [s.history for s in world.log.segments()] == [HISTORY, branched]
    assert world.reopen(close=False).history == branched, "durable although nothing was written on it"
    world.commit(b"two")
    assert world.reopen().history == branched
    assert [p for _, p in contents(world.log)] == [b"one", b"two"]


def test_a_new_epoch_starts_a_segment_and_never_goes_back() -> None:
    world = World()
    world.commit(b"one")
    world.log.writer.extend_history(world.log.history, epoch=3)
    assert world.reopen(close=False).epoch == 3
    (record,) = world.commit(b"two")
    assert record.epoch == 3
    with pytest.raises(InvalidInput):
        world.log.writer.extend_history(world.log.history, epoch=2)


def test_a_history_that_does_not_go_on_from_here_is_refused() -> None:
    world = World()
    one, two = world.commit(b"one", b"two")
    foreign = History(b"another store id", HISTORY.branches)
    other_start = HISTORY.extended(b"another branch 1", one.position)
    forgotten = History(STORE_ID, (Branch(b"another branch 1", two.position),))
    waiting = HISTORY.extended(b"another branch 1", two.position)
    for history in (foreign, other_start, forgotten):
        with pytest.raises(InvalidInput):
            world.log.writer.extend_history(history)
    world.log.writer.append(b"not yet written", 1)
    with pytest.raises(InvalidInput):
        world.log.writer.extend_history(waiting)
    assert world.log.history == HISTORY


def test_without_room_for_its_segment_a_branch_has_not_begun() -> None:
    world = World()
    world.commit(b"one")
    world.disk.before = no_room
    with pytest.raises(DiskFull):
        world.log.writer.extend_history(HISTORY.extended(b"another branch 1", world.log.end))
    assert world.log.history == HISTORY


def test_heartbeats_say_complete_up_to_and_are_no_transactions() -> None:
    world = World()
    (one,) = world.commit(b"one")
    assert world.log.complete_us == one.time_us
    world.clock.time_us += 5_000_000
    beat = world.log.writer.heartbeat()
    assert beat is not None
    assert world.log.writer.write(beat) == one.position
    complete = world.log.complete_us
    assert complete >= one.time_us + 5_000_000
    world.clock.time_us -= 60_000_000  # even so
    (two,) = world.commit(b"two")
    assert two.time_us > complete
    assert (two.txid, [p for _, p in contents(world.log)]) == (2, [b"one", b"two"])
    assert world.reopen().complete_us >= two.time_us
    world.log.verify()
    assert world.log.writer.heartbeat() is None, "the clock is behind what was promised"
    world.clock.time_us += 120_000_000
    assert world.log.writer.heartbeat() is None, "no segment is open"


def test_a_promise_without_a_record_outlives_the_clock() -> None:
    """A log was opened, said up to when it is complete, and was closed; the segment was removed, since it had no
    record, and what came next was committed before that time."""
    world = World()
    world.commit(b"one")
    world.reopen()
    world.clock.time_us += 5_000_000
    beat = world.log.writer.heartbeat(start=True)
    assert beat is not None
    world.log.writer.write(beat)
    complete = world.log.complete_us
    world.clock.time_us -= 60_000_000
    assert world.reopen().complete_us == complete
    (two,) = world.commit(b"two")
    assert two.time_us > complete


def test_commit_times_always_grow() -> None:
    """With a clock that stands still, two transactions had one commit time, and a copy that ended with the first was
    not complete up to it."""
    world = World(step_us=0)
    times = [record.time_us for record in world.commit(b"one", b"two", b"three")]
    assert times == sorted(set(times))
    assert [world.log.txid_at(time_us) for time_us in times] == [1, 2, 3]


def test_a_record_appended_while_a_heartbeat_is_written() -> None:
    """A heartbeat was composed while it was written, outside of the lock: one that raced with a commit said that a
    transaction came next which stood behind it, and the log did not open any more."""
    world = World()
    world.commit(b"one")
    beat = world.log.writer.heartbeat()
    two = world.log.writer.append(b"two", 1)  # another thread, before the heartbeat is on disk
    assert beat is not None
    world.log.writer.write(beat)
    world.log.writer.sync()
    assert two.time_us >= world.log.segments()[-1].complete_us
    assert [p for _, p in contents(world.reopen(close=False))] == [b"one", b"two"]
    assert world.log.recovery.cut_bytes == 0


def test_a_group_written_late_does_not_promise_what_it_cannot() -> None:
    """What waits in the next group was committed before this one was written. The footer said that nothing after the
    segment was committed before the time of writing."""
    world = World()
    batches = []
    for i in range(8):
        world.log.writer.append(bytes([i]) * 30_000, 1)
    world.clock.time_us += 1_000_000  # a slow disk
    while (batch := world.log.writer.take()) is not None:
        batches.append(world.log.writer.write(batch))
    segments = world.log.segments()
    assert len(segments) > 2
    for segment, following in pairwise(segments):
        assert segment.complete_us <= following.first_time_us


def test_heartbeats_do_not_overrun_a_full_segment() -> None:
    world = World()
    world.fill(4)
    beats = 0
    while (beat := world.log.writer.heartbeat()) is not None:
        world.log.writer.write(beat)
        beats += 1
    assert beats > 10
    segment = world.log.segments()[-1]
    world.log.close()
    assert world.disk.size(segment.path) <= SMALL.segment_bytes
    assert world.reopen().end.txid == 4


# --- time ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(jumps=st.lists(st.sampled_from([0, 0, 1, 1000, -1, -5_000_000, 3_600_000_000]), min_size=1, max_size=25),
       asked=st.lists(st.integers(-2, 30), max_size=8))
def test_time_against_a_plain_list(jumps: list[int], asked: list[int]) -> None:
    """Commit times never run backwards, whatever the clock does; `txid_at` is what a linear search gives, equal times
    and segment borders included."""
    world = World(step_us=0)
    times: list[int] = []
    for n, jump in enumerate(jumps):
        world.clock.time_us += jump
        (record,) = world.commit(bytes(30_000 if n % 3 else 10))
        times.append(record.time_us)
    assert times == sorted(times)
    for log in (world.log, world.reopen()):
        for n, time_us in enumerate(times, 1):
            assert log.time_of(n) == time_us
        wanted = {t + d for t in times for d in (-1, 0, 1)} | {times[i % len(times)] + 7 for i in asked} | {0}
        for time_us in wanted:
            assert log.txid_at(time_us) == sum(t <= time_us for t in times)


def test_a_clock_that_jumped_is_reported() -> None:
    world = World()
    world.clock.time_us += 10**12
    world.commit(b"from the future")
    world.clock.time_us -= 10**12
    world.commit(b"now")
    assert -10**12 <= world.log.status()["clock_jump_us"] < -(10**12) + 10**8


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_pruning_takes_whole_segments_and_what_is_gone_is_a_gap() -> None:
    world = World()
    records = world.fill(20)
    before = contents(world.log)
    doomed = world.log.segments()[:3]
    base = doomed[-1].last
    world.log.prune(doomed)
    assert not any(world.disk.exists(s.path) for s in doomed)
    for log in (world.log, world.reopen()):
        assert log.base == records[base - 1].position
        assert contents(log, base) == before[base:]
        assert log.chain_at(base) == records[base - 1].chain
        assert log.time_of(base) == records[base - 1].time_us
        assert log.txid_at(0) == base
        for call in (lambda log=log: list(log.read(base - 1)), lambda log=log: log.chain_at(base - 1),
                     lambda log=log: log.time_of(base - 1)):
            with pytest.raises(LogPruned):
                call()


def test_only_the_oldest_segments_can_be_pruned_and_never_the_last() -> None:
    world = World()
    world.fill(20)
    segments = world.log.segments()
    with pytest.raises(InvalidInput):
        world.log.prune(segments[1:2])
    world.log.prune(segments)
    assert [s.ordinal for s in world.log.segments()] == [segments[-1].ordinal]


def test_a_reader_that_is_overtaken_by_pruning_gets_a_gap_and_no_hole() -> None:
    world = World()
    world.fill(20)
    reader = world.log.read(0)
    first = next(reader)
    assert first.txid == 1
    world.log.prune(world.log.segments()[:3])
    seen = [first.txid]
    with pytest.raises(LogPruned):
        seen.extend(record.txid for record in reader)
    assert seen == list(range(1, len(seen) + 1))
