"""What stands beside the log's segments: attachments, and who consumes the log."""

from __future__ import annotations

import pytest
from log_world import GROWING, HERE, SMALL, START, World

from holdfast.engine.errors import Damaged, DiskFull, InvalidInput, UnsupportedFormat
from holdfast.engine.model import document
from holdfast.engine.model.records import Record
from holdfast.engine.testing.disks.simfates import Dropped
from holdfast.engine.testing.disks.simops import Op
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.retention import KeepLogs, plan_pruning
from holdfast.engine.wal.slots import MAX_SLOTS, UNKNOWN, Slot

# --- attachments -----------------------------------------------------------------------------------------------------


def attach(world: World, data: bytes) -> Record:
    writer = world.log.new_attachment()
    writer.write(data[:5])
    writer.write(data[5:])
    record = world.log.writer.append(b"bulk", 1, writer.finish())
    world.log.writer.sync()
    return record


def test_attachments_survive_and_are_read_again() -> None:
    world = World()
    record = attach(world, b"some bulk data")
    assert record.attachment is not None
    path = world.log.attachment_path(record.attachment.name)
    data = world.disk.read(path)
    assert data.startswith(b"some bulk data")
    assert len(data) == record.attachment.size
    for log in (world.log, world.reopen(), world.reopen(close=False)):
        assert log.attached() == [1]
        assert next(log.read(0)).attachment == record.attachment
        log.verify()


def test_rubbish_is_swept_and_what_is_named_is_missed() -> None:
    world = World()
    record = attach(world, b"some bulk data")
    assert record.attachment is not None
    abandoned = world.log.new_attachment()
    abandoned.write(b"never finished")
    finished = world.log.new_attachment()
    finished.write(b"never named")
    finished.finish()
    world.reopen()
    directory = HERE / "attachments"
    assert world.disk.list(directory) == [record.attachment.name]
    world.log.close()
    path = directory / record.attachment.name
    world.disk.open(path, "write").truncate(3)
    with pytest.raises(Damaged, match="missing or truncated"):
        Log.open(HERE, options=SMALL, env=world.env)
    world.disk.unlink(path)
    with pytest.raises(Damaged, match="missing or truncated"):
        Log.open(HERE, options=SMALL, env=world.env)


def test_a_flipped_byte_in_an_attachment_is_found() -> None:
    world = World()
    record = attach(world, b"some bulk data")
    assert record.attachment is not None
    path = world.log.attachment_path(record.attachment.name)
    whole = world.disk.read(path)
    for offset in range(len(whole)):
        world.disk.open(path, "write").pwrite(bytes([whole[offset] ^ 1]), offset)
        with pytest.raises(Damaged):
            world.log.verify()
        world.disk.open(path, "write").pwrite(whole[offset : offset + 1], offset)
    world.log.verify()


def test_a_copied_attachment_is_checked() -> None:
    world, copy = World(), World(GROWING)
    record = attach(world, b"some bulk data")
    assert record.attachment is not None
    data = world.disk.read(world.log.attachment_path(record.attachment.name))
    for wrong in (data[:-1], data + b"x", b"X" + data[1:]):
        writer = copy.log.import_attachment(record.attachment)
        writer.write(wrong)
        with pytest.raises(Damaged):
            writer.finish()
        assert copy.disk.list(HERE / "attachments") == []
    writer = copy.log.import_attachment(record.attachment)
    writer.write(data)
    assert writer.finish() == record.attachment
    copy.log.writer.append_record(record)
    copy.log.writer.sync()
    copy.reopen().verify()


def test_attachments_go_with_their_segment() -> None:
    world = World()
    record = attach(world, b"old")
    world.fill(6)
    kept = attach(world, b"new")
    world.fill(6)
    assert record.attachment is not None
    assert kept.attachment is not None
    world.log.prune([s for s in world.log.segments() if s.last < kept.txid])
    assert world.disk.list(HERE / "attachments") == [kept.attachment.name]
    world.reopen().verify()


def test_attachments_without_room_leave_nothing() -> None:
    world = World()
    world.commit(b"one")
    for moment in ("names", "write", "sync"):
        def full(op: Op, moment: str = moment) -> None:
            if op.kind == moment:
                raise OSError(28, "injected")

        world.disk.before = full if moment == "names" else lambda op: None
        with pytest.raises(DiskFull):
            writer = world.log.new_attachment()
            world.disk.before = full
            writer.write(b"data")
            writer.finish()
        world.disk.before = lambda op: None
    assert world.disk.list(HERE / "attachments") == []


def test_names_of_attachments_are_the_kits() -> None:
    world = World()
    for name in ("../../etc/passwd", "x.att", "0" * 32, "0" * 32 + ".att/..", ""):
        with pytest.raises(InvalidInput):
            world.log.attachment_path(name)


# --- slots -------------------------------------------------------------------------------------------------------


def test_slots_are_durable_and_only_move_forward() -> None:
    world = World()
    one, two = world.commit(b"one", b"two")
    world.log.slots.register("a" * 32, "backup of a", two.position)
    world.log.slots.register("a" * 32, "backup of a", one.position)
    world.log.slots.register("b" * 32, "backup of b", one.position)
    slots = world.reopen().slots
    assert [(c.id[0], c.name, c.position) for c in slots.list()] == [
        ("b", "backup of b", one.position), ("a", "backup of a", two.position)]
    assert slots.drop("b" * 32)
    assert not slots.drop("b" * 32)
    assert [c.id[0] for c in world.reopen().slots.list()] == ["a"]


def test_slots_have_bounds() -> None:
    world = World()
    for id, name in (("", "x"), ("x" * 65, "x"), ("x", "n" * 501)):
        with pytest.raises(InvalidInput):
            world.log.slots.register(id, name, START)
    world.log.slots._all = {str(i): Slot(str(i), "", START, 0) for i in range(MAX_SLOTS)}
    with pytest.raises(InvalidInput, match="already"):
        world.log.slots.register("one more", "", START)


def test_damaged_slots_are_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    """One flipped bit in a list of those for whom log is kept, and the store did not open, read-only neither; the
    advice was to restore it from a backup. Nobody's log goes for it before they had time to come again."""
    world = World()
    world.commit(b"one")
    world.log.slots.register("a" * 32, "backup of a", START)
    world.log.close()
    path = HERE / "CONSUMERS"
    whole = world.disk.read(path)
    for offset in range(len(whole)):
        disk = world.disk.killed()
        disk.open(path, "write").pwrite(bytes([whole[offset] ^ 4]), offset)
        damaged = disk.read(path)
        env = type(world.env)(disk, world.env.clock, world.env.randomness, world.env.scheduler)
        caplog.clear()
        log = Log.open(HERE, read_only=True, options=SMALL, env=env)
        assert [(c.id, c.position) for c in log.slots.list()] == [(UNKNOWN, START)]
        assert "CONSUMERS" in caplog.text
        assert disk.read(path) == damaged
        Log.open(HERE, options=SMALL, env=env).close()
        assert disk.read(HERE / "CONSUMERS.damaged-1") == damaged
        for left in (disk.crashed(Dropped()), disk.killed()):
            env = type(world.env)(left, world.env.clock, world.env.randomness, world.env.scheduler)
            log = Log.open(HERE, options=SMALL, env=env)
            (unknown,) = log.slots.list()
            assert (unknown.id, unknown.position) == (UNKNOWN, START)
            assert "damaged-1" in unknown.name
            assert log.slots.drop(UNKNOWN)
            log.close()
            assert not left.exists(HERE / "CONSUMERS.damaged-2")


def test_who_is_unknown_keeps_log_within_the_bounds() -> None:
    world = World()
    world.fill(20)
    world.disk.open(HERE / "CONSUMERS", "create").pwrite(b"rubbish", 0)
    log = world.reopen()
    plans = [plan_pruning(log.oldest(), size=log.size(), base=log.base.txid, newest=log.end.txid, held=log.size_after,
                          floor=20, keep=KeepLogs(transactions=1), slots=log.slots.list(), slot_bytes=most,
                          slot_hours=24, now_us=world.clock.now_us()) for most in (1 << 40, 1)]
    assert [bool(plan.segments) for plan in plans] == [False, True]
    assert [[c.id for c in plan.dropped] for plan in plans] == [[], [UNKNOWN]]


def test_slots_of_another_version_are_refused_by_name() -> None:
    """They are not damage: a later release wrote them, and this one would write over what it does not understand."""
    world = World()
    world.log.close()
    document.write(world.disk, HERE / "CONSUMERS", b"HFCONSUM", 2, {"slots": []})
    with pytest.raises(UnsupportedFormat, match="version 2"):
        Log.open(HERE, options=SMALL, env=world.env)


def test_what_is_none_of_the_logs_keeps_nobody_out() -> None:
    """An operator's directories and files among the log's own: `copy.new/` ended an opening, and so did `spare-old`."""
    world = World()
    world.commit(b"one")
    attach(world, b"some bulk data")
    world.log.close()
    for name in ("copy.new", "spare-1.seg.d", "attachments/old"):
        world.disk.make_directory(HERE / name)
    for name in ("spare-old.seg", "notes", "attachments/notes"):
        world.disk.open(HERE / name, "create").close()
    before = [world.disk.list(HERE), world.disk.list(HERE / "attachments")]
    assert Log.open(HERE, options=SMALL, env=world.env).end.txid == 2
    assert [world.disk.list(HERE), world.disk.list(HERE / "attachments")] == before
