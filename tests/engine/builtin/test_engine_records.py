"""What is the records engine's own, beyond the contract suite: what views keep, chains, marks, damage."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workloads import RecordsWorkload

from holdfast.engine.builtin.inplace import records
from holdfast.engine.builtin.inplace.cells import CELL, Key
from holdfast.engine.builtin.inplace.records import MAX_VALUE, OVERFLOW, VALUES, RecordsEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.transaction import end
from holdfast.engine.contract.view import View
from holdfast.engine.env import Env, Files
from holdfast.engine.errors import Damaged, DiskFull, InvalidInput, NotFound, StoreClosed, UnsupportedFormat
from holdfast.engine.model.records import Record
from holdfast.engine.testing import Operation
from holdfast.engine.testing.disks.quiet import quiet_env
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simops import Op
from holdfast.engine.testing.support.driver import ORIGIN, Driver
from holdfast.engine.testing.support.workload import text_of

WORK = RecordsWorkload()
Step = str | tuple[str, Any] | list[Operation]


@pytest.fixture
def it(tmp_path: Path) -> Driver:
    return Driver(WORK, tmp_path / "state")


def insert(it: Driver, *values: bytes) -> None:
    it.commit([("insert", value) for value in values])


def file_bytes(it: Driver) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in it.directory.iterdir()}


# --- views ------------------------------------------------------------------------------------------------------------


@given(todo=st.lists(st.one_of(
    st.sampled_from(("checkpoint", "failed checkpoint", "view", "reopen")),
    st.tuples(st.just("close"), st.integers(0, 9)), st.tuples(st.just("roll back"), WORK.operations()),
    WORK.operations(), WORK.operations()), max_size=24))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_views_stand_still_over_files_written_in_place(
        tmp_path_factory: pytest.TempPathFactory, todo: list[Step]) -> None:
    files = FailingFiles()
    it = Driver(WORK, tmp_path_factory.mktemp("records") / "state", Env(files=files))
    views: list[tuple[View, bytes]] = []
    for step in todo:
        if step == "checkpoint":
            it.checkpoint()
        elif step == "failed checkpoint":  # after the records were written, before the position is
            files.refuse = "position"
            if it.engine.position != it.end:
                with pytest.raises(DiskFull):
                    it.checkpoint()
            files.refuse = ""
        elif step == "view":
            view = it.engine.view()
            views.append((view, view.digest()))
        elif step == "reopen":
            for view, _ in views:
                view.close()
            views.clear()
            it.reopen()
        elif isinstance(step, tuple):
            if step[0] == "roll back":
                it.roll_back(step[1])
            elif views:
                views.pop(step[1] % len(views))[0].close()
        else:
            assert isinstance(step, list)
            it.commit(step)
        it.compare_state()
        for view, digest in views:
            it.compare(view)
            assert view.digest() == digest
    for view, _ in views:
        view.close()
    assert isinstance(it.engine, RecordsEngine)
    assert it.engine._cells._kept == {}
    it.checkpoint()
    assert it.engine._cells._dirty == {}
    it.engine.close()


class FailingFiles(Files):
    """Has no room to replace a file named `refuse`."""

    refuse = ""

    def rename(self, old: Path, new: Path) -> None:
        if new.name == self.refuse:
            raise OSError(errno.ENOSPC, "no room")
        super().rename(old, new)


def test_a_view_keeps_only_what_it_needs(it: Driver) -> None:
    assert isinstance(it.engine, RecordsEngine)
    insert(it, *(text_of(i, 10) for i in range(10)))
    it.checkpoint()
    it.commit([("update", 3, b"x")])
    it.checkpoint()
    assert it.engine._cells._kept == {}  # nobody looks
    with it.engine.view() as view:
        it.commit([("update", 3, b"y")])
        it.commit([("update", 4, b"y")])
        it.checkpoint()
        once = {key: list(entries) for key, entries in it.engine._cells._kept.items()}
        assert set(once) == {(VALUES, 4), (VALUES, 5)}
        for value in (b"z", b"zz"):  # what no view can see is not kept, however often it is overwritten
            it.commit([("update", 3, value)])
            it.checkpoint()
        assert it.engine._cells._kept == once
        it.compare(view)
    assert it.engine._cells._kept == {}


def test_pending_bytes_follow_what_is_not_checkpointed(it: Driver) -> None:
    assert it.engine.pending_bytes() == 0
    insert(it, text_of(1, 2000))
    more = it.engine.pending_bytes()
    assert more > 2000
    it.commit([("update", 0, text_of(2, 2000))])
    assert it.engine.pending_bytes() == more  # the same records again, and no view that needs the old ones
    with it.engine.view():
        it.commit([("update", 0, text_of(3, 2000))])
        assert it.engine.pending_bytes() > more
        it.checkpoint()
        assert it.engine.pending_bytes() == 0


def test_closed_views_and_engines_say_so(it: Driver) -> None:
    insert(it, b"value")
    view = it.engine.view()
    view.close()
    view.close()
    for use in (lambda: view.get(1), view.digest, lambda: list(view.items()), lambda: list(view.check())):
        with pytest.raises(StoreClosed):
            use()
    view = it.engine.view()
    it.engine.close()
    with pytest.raises(StoreClosed):
        view.get(1)
    with pytest.raises(StoreClosed):
        it.engine.view()
    view.close()


# --- transactions -----------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_and_changes_nothing(it: Driver) -> None:
    insert(it, b"value")
    tx = it.engine.begin()
    for value in ("text", None, bytearray(b"x"), b"x" * (MAX_VALUE + 1)):
        with pytest.raises(InvalidInput):
            tx.insert(value)
        with pytest.raises(InvalidInput):
            tx.update(1, value)
    for number in (0, -1, "1", 1.0, True, None):
        for call in (tx.delete, tx.get, lambda n: tx.update(n, b""), it.engine.view().get):
            with pytest.raises(InvalidInput):
                call(number)
    for number in (2, 1 << 70):
        for call in (tx.delete, lambda n: tx.update(n, b"")):
            with pytest.raises(NotFound):
                call(number)
        assert tx.get(number) is None
        assert it.engine.view().get(number) is None
    assert tx.payload() == b""
    end(tx, "committed")
    for call in (lambda _: tx.insert(b""), tx.delete, lambda n: tx.update(n, b"")):
        with pytest.raises(StoreClosed):
            call(1)


def test_the_largest_value_comes_back(it: Driver) -> None:
    insert(it, text_of(1, 1000) * 1048 + b"x" * 576)
    assert len(it.models[-1].values[1]) == MAX_VALUE
    it.checkpoint()
    it.compare_state()
    it.reopen()
    it.compare_state()


def test_a_deleted_number_never_comes_back(it: Driver) -> None:
    for _ in range(5):
        insert(it, b"one", b"two")
        it.commit([("delete", 0), ("delete", 0)])
        it.checkpoint()
        it.reopen()
    tx = it.engine.begin()
    assert tx.insert(b"") == 11
    tx.delete(11)
    assert tx.insert(b"") == 12


def test_overflow_records_are_used_again(it: Driver) -> None:
    insert(it, text_of(1, 3000))
    it.checkpoint()
    sizes = {(it.directory / "overflow").stat().st_size}
    for i in range(60):
        it.commit([("delete", 0), ("insert", text_of(i, 3000))])
        it.checkpoint()
        sizes.add((it.directory / "overflow").stat().st_size)
    it.compare_state()
    assert len(sizes) == 1
    assert isinstance(it.engine, RecordsEngine)
    marks = it.engine.begin()._reader.marks(OVERFLOW)
    assert marks.next == 1 + -(-(3000 - 47) // 50)


def test_a_call_that_fails_half_way_leaves_the_transaction_as_it_was(it: Driver) -> None:
    insert(it, text_of(1, 400), text_of(2, 10))
    it.commit([("delete", 0)])
    it.checkpoint()
    it.reopen()
    change(it, OVERFLOW, 3, lambda cell: b"\xff" * 10 + cell[10:])
    tx = it.engine.begin()
    tx.update(2, b"first")
    before = tx.payload()
    with pytest.raises(Damaged, match="overflow at byte 256"):
        tx.insert(text_of(3, 600))
    with pytest.raises(Damaged):
        tx.update(2, text_of(3, 600))
    assert tx.payload() == before
    assert tx.get(2) == b"first"


# --- damage -----------------------------------------------------------------------------------------------------------


def change(it: Driver, file: int, number: int, how: Callable[[bytes], bytes]) -> None:
    """Change a record's bytes on disk; nobody has it in memory."""
    path = it.directory / ("values", "overflow")[file]
    data = path.read_bytes()
    at = CELL * (1 + number)
    changed = how(data[at : at + CELL])
    assert len(changed) == CELL
    path.write_bytes(data[:at] + changed + data[at + CELL :])


def sealed(file: int, number: int, cell: bytes) -> Callable[[bytes], bytes]:
    """A record with a right checksum: what only a wrong program writes."""
    key: Key = (file, number)
    return lambda old: records._close(key, cell)


def filled(it: Driver) -> None:
    """Value 1 in overflow records 1 to 3, value 2 in 4 to 6, value 3 deleted (7 and 8 free), value 4 short."""
    insert(it, text_of(1, 190), text_of(2, 190), text_of(3, 140), b"four")
    it.commit([("delete", 2)])
    it.checkpoint()
    it.compare_state()
    it.reopen()


_CHAIN, _VALUE, _MARKS = records._CHAIN, records._VALUE, records._MARKS

PLANTED = [
    ("values: record 2 does not match its checksum", VALUES, 2, lambda cell: cell[:30] + b"!" + cell[31:]),
    ("values at byte 320: record 4 does not match", VALUES, 4, lambda cell: bytes(CELL)),
    ("overflow at byte 384: record 5 does not match", OVERFLOW, 5, lambda cell: cell[:-1] + b"!"),
    ("values at byte 64: record 0 does not match", VALUES, 0, lambda cell: b"!" + cell[1:]),
    ("overflow at byte 64: record 0 does not match", OVERFLOW, 0, lambda cell: b"!" + cell[1:]),
    ("record 7 does not match", OVERFLOW, 7, lambda cell: b"!" + cell[1:]),
    ("record 1 is in value 1 and in value 2", VALUES, 2, sealed(VALUES, 2, _VALUE.pack(190, 1, 2, b"x" * 47))),
    ("record 4 is in no chain", VALUES, 2, sealed(VALUES, 2, _VALUE.pack(4, 0, 2, b"four"))),
    ("value 1 of 190 bytes has a broken chain, at overflow record 0", OVERFLOW, 3,
     sealed(OVERFLOW, 3, _CHAIN.pack(0, 2, 1, b"x"))),
    ("value 1 of 190 bytes has a broken chain, at overflow record 9", OVERFLOW, 3,
     sealed(OVERFLOW, 3, _CHAIN.pack(9, 2, 43, b"x"))),
    ("value 1 of 190 bytes has a broken chain, at overflow record 2", OVERFLOW, 2,
     sealed(OVERFLOW, 2, _CHAIN.pack(3, 1, 0, b""))),
    ("value 1 of 4,000,000,000 bytes has a broken chain", VALUES, 1,
     sealed(VALUES, 1, _VALUE.pack(4_000_000_000, 1, 2, b"x" * 47))),
    ("record 4 is in value 2 and in the free chain", OVERFLOW, 0, sealed(OVERFLOW, 0, _MARKS.pack(9, 4))),
    ("record 7 is in the free chain and in the free chain", OVERFLOW, 8,
     sealed(OVERFLOW, 8, _CHAIN.pack(7, 1, 0, b""))),
    ("record 7 is in the free chain and in use", OVERFLOW, 7, sealed(OVERFLOW, 7, _CHAIN.pack(8, 2, 1, b"x"))),
    ("record 8 is in the free chain and was never used", OVERFLOW, 0, sealed(OVERFLOW, 0, _MARKS.pack(8, 7))),
    ("record 6, in value 2, is beyond the mark 6", OVERFLOW, 0, sealed(OVERFLOW, 0, _MARKS.pack(6, 0))),
    ("values: the marks say that 99,999 records were used", VALUES, 0, sealed(VALUES, 0, _MARKS.pack(99_999, 0))),
]


@pytest.mark.parametrize(("finding", "file", "number", "how"), PLANTED, ids=[p[0] for p in PLANTED])
def test_check_finds_planted_corruption(it: Driver, finding: str, file: int, number: int,
                                        how: Callable[[bytes], bytes]) -> None:
    filled(it)
    change(it, file, number, how)
    with it.engine.view() as view:
        findings = list(view.check())
    assert any(finding.split(": ")[-1] in found for found in findings), findings


def test_every_flipped_byte_below_the_marks_is_found(it: Driver) -> None:
    filled(it)
    it.engine.close()
    used = {"values": CELL * 6, "overflow": CELL * 10, "position": len(file_bytes(it)["position"])}
    for name, size in used.items():
        path = it.directory / name
        whole = path.read_bytes()
        for at in range(size):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                engine = RecordsEngine.open(it.directory, it.context)
            except (Damaged, UnsupportedFormat):
                continue
            with engine.view() as view:
                assert list(view.check()), f"{name} at {at}"
            engine.close()
        path.write_bytes(whole)


def test_reading_a_damaged_record_raises(it: Driver) -> None:
    filled(it)
    change(it, OVERFLOW, 2, lambda cell: bytes(CELL))
    with it.engine.view() as view:
        with pytest.raises(Damaged, match="overflow at byte 192"):
            view.get(1)
        with pytest.raises(Damaged):
            view.digest()
        assert view.get(2) == it.models[-1].values[2]
    with pytest.raises(Damaged):
        it.engine.begin().get(1)


def test_missing_and_foreign_files_are_named(it: Driver) -> None:
    it.engine.close()
    contents = file_bytes(it)
    for name in contents:
        (it.directory / name).unlink()
        with pytest.raises(Damaged, match="missing"):
            RecordsEngine.open(it.directory, it.context)
        (it.directory / name).write_bytes(b"something else " * 20)
        with pytest.raises(Damaged, match="starts with"):
            RecordsEngine.open(it.directory, it.context)
        (it.directory / name).write_bytes(contents[name])
    with pytest.raises(InvalidInput, match="colour"):
        RecordsEngine.open(it.directory, Context(options={"colour": 1}))


# --- checkpoints and images -------------------------------------------------------------------------------------------


def test_without_room_to_grow_no_record_is_touched() -> None:
    disk = SimDisk()
    it = Driver(WORK, Path("/state"), quiet_env(disk))
    insert(it, text_of(1, 400))

    def contents() -> dict[str, bytes]:
        return {name: disk.read(it.directory / name).rstrip(b"\0") for name in disk.list(it.directory)}

    before = contents()

    def no_room(op: Op) -> None:
        if op.kind == "truncate":
            raise DiskFull("no room")

    disk.before = no_room
    with pytest.raises(DiskFull):
        it.checkpoint()
    disk.before = lambda op: None
    assert contents() == before
    assert it.engine.position == ORIGIN
    it.compare_state()
    it.checkpoint()
    it.reopen()
    it.compare_state()


def test_an_image_moves_and_keeps_its_sizes(it: Driver) -> None:
    insert(it, text_of(1, 400))
    it.checkpoint()
    image = it.engine.image()
    sizes = {file.name: file.size for file in image.files}
    assert sizes == {name: len(data) for name, data in file_bytes(it).items()}
    before = {name: image.read(name, 0, size) for name, size in sizes.items()}
    it.commit([("insert", text_of(i, 2000)) for i in range(40)])
    it.commit([("update", 0, text_of(9, 400))])
    it.checkpoint()
    after = {name: image.read(name, 0, size) for name, size in sizes.items()}
    assert after["values"] != before["values"]
    assert after["overflow"] != before["overflow"]
    assert after["position"] == before["position"]
    assert (it.directory / "overflow").stat().st_size > sizes["overflow"]
    image.close()


def test_a_failed_write_leaves_readers_right() -> None:
    """The store is poisoned by it, and goes on being read."""
    disk = SimDisk()
    it = Driver(WORK, Path("/state"), quiet_env(disk))
    insert(it, text_of(1, 400), text_of(2, 400))
    it.checkpoint()
    with it.engine.view() as old:
        it.commit([("update", 0, text_of(3, 500)), ("update", 1, text_of(4, 30))])

        def fail(op: Op) -> None:
            if op.kind == "sync":
                raise OSError(errno.EIO, "the disk is gone")

        disk.before = fail
        with pytest.raises(OSError, match="gone"):
            it.checkpoint()
        disk.before = lambda op: None
        assert it.engine.position == it.position(1)
        it.compare(old)
        it.compare_state()
    it.reopen()
    it.compare_state()


def test_redo_reads_nothing(it: Driver) -> None:
    """Records to be redone may be torn to anything; marks and free chain included."""
    image_position = it.end
    filled(it)
    it.engine.close()
    for name in ("values", "overflow"):
        path = it.directory / name
        path.write_bytes(path.read_bytes()[:CELL] + b"\xee" * (CELL * 12))
    opened = it.recovered(it.directory, at=image_position)
    it.compare_state(opened)
    opened.close()


def test_the_digest_is_of_content_and_mark(it: Driver) -> None:
    def digest() -> bytes:
        with it.engine.view() as view:
            found: bytes = view.digest()
        return found

    insert(it, text_of(1, 400), text_of(2, 400))
    first = digest()
    it.commit([("update", 0, b"other"), ("update", 1, text_of(3, 100))])
    assert digest() != first
    it.commit([("update", 1, text_of(2, 400)), ("update", 0, text_of(1, 400))])
    assert digest() == first  # in other overflow records now
    it.checkpoint()
    assert digest() == first
    it.commit([("insert", b""), ("delete", 2)])
    assert digest() != first  # the next writer gets another number


def test_a_payload_that_is_no_list_of_changes_is_damage(it: Driver) -> None:
    for payload in (b"\x05", b"\x91\x05"):
        with pytest.raises(Damaged, match="transaction 1"):
            it.engine.apply([Record.make(ORIGIN.chain, 1, 0, 0, 1, payload)])
    it.compare_state()
