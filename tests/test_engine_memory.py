"""The memory engine, by the contract alone; and the helpers that it stands on."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from engine_harness import ORIGIN, Harness
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_adapters import MemoryAdapter, Operation

from holdfast.engine import helpers
from holdfast.engine.contract import Context, Image
from holdfast.engine.errors import (
    Damaged,
    DiskFull,
    InvalidInput,
    NotFound,
    StoreClosed,
    UnsupportedFormat,
    UpgradeRequired,
)
from holdfast.engine.history import Position, Record
from holdfast.engine.memory import MAX_KEY, MAX_VALUE, MemoryEngine
from holdfast.engine.seams import File, Files, Seams

ADAPTER = MemoryAdapter()


@pytest.fixture
def it(tmp_path: Path) -> Harness:
    return Harness(ADAPTER, tmp_path / "state")


Step = str | tuple[str, list[Operation]] | list[Operation]


@given(todo=st.lists(st.one_of(
    st.sampled_from(("checkpoint", "reopen", "view")), st.tuples(st.just("roll back"), ADAPTER.operations()),
    ADAPTER.operations()), max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_views_and_reopening_against_the_model(tmp_path_factory: pytest.TempPathFactory, todo: list[Step]) -> None:
    it = Harness(ADAPTER, tmp_path_factory.mktemp("memory") / "state")
    views = []
    for step in todo:
        if step == "checkpoint":
            it.checkpoint()
        elif step == "reopen":
            it.reopen()
        elif step == "view":
            views.append((it.engine.view(), it.engine.view().digest()))
        elif isinstance(step, tuple):
            it.roll_back(step[1])
        else:
            assert isinstance(step, list)
            it.commit(step)
        it.compare_state()
    for view, digest in views:
        it.compare(view)
        assert view.digest() == digest


def test_bad_input_is_refused_and_changes_nothing(it: Harness) -> None:
    it.commit([("put", b"k", b"v")])
    tx = it.engine.begin()
    for key, value in ((b"", b""), (b"x" * (MAX_KEY + 1), b""), ("k", b""), (b"k", "v"), (b"k", b"x" * (MAX_VALUE + 1)),
                       (bytearray(b"k"), b""), (None, b"")):
        with pytest.raises(InvalidInput):
            tx.put(key, value)
    with pytest.raises(InvalidInput):
        tx.delete("k")
    with pytest.raises(NotFound):
        tx.delete(b"nobody")
    assert tx.payload() == b""
    tx.put(b"x" * MAX_KEY, b"y" * MAX_VALUE)
    tx.delete(b"k")
    with pytest.raises(NotFound):
        tx.delete(b"k")
    tx.seal("committed")
    with pytest.raises(StoreClosed):
        tx.put(b"k", b"v")
    with pytest.raises(StoreClosed):
        tx.delete(b"x" * MAX_KEY)


def test_an_empty_draft_has_an_empty_payload(it: Harness) -> None:
    tx = it.engine.begin()
    assert tx.get(b"k") is None
    assert tx.payload() == b""


def test_unknown_options_are_refused(it: Harness, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="colour"):
        MemoryEngine.open(it.directory, Context(options={"colour": 1}))
    with pytest.raises(InvalidInput, match="colour"):
        MemoryEngine.create(tmp_path, ORIGIN, Context(options={"colour": 1}))


def test_every_flipped_byte_of_the_state_is_found(it: Harness) -> None:
    it.commit([("put", b"k", b"v")])
    it.checkpoint()
    path = it.directory / "state"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with pytest.raises((Damaged, UnsupportedFormat, UpgradeRequired)):
            MemoryEngine.open(it.directory, it.context)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged):
            MemoryEngine.open(it.directory, it.context)
    path.unlink()
    with pytest.raises(Damaged, match="missing"):
        MemoryEngine.open(it.directory, it.context)


def test_other_state_formats_are_named(it: Harness) -> None:
    path = it.directory / "state"
    helpers.write_state(it.context.seams.files, path, b"HFMEMORY", 2, ORIGIN, b"\x80")
    with pytest.raises(UnsupportedFormat, match="state format 2"):
        MemoryEngine.open(it.directory, it.context)
    helpers.write_state(it.context.seams.files, path, b"HFMEMORY", 0, ORIGIN, b"\x80")
    with pytest.raises(UpgradeRequired, match="state format 0"):
        MemoryEngine.open(it.directory, it.context)


def test_a_state_that_is_no_dictionary_is_damage(it: Harness) -> None:
    helpers.write_state(it.context.seams.files, it.directory / "state", b"HFMEMORY", 1, ORIGIN, b"\x81")
    with pytest.raises(Damaged, match="no dictionary"):
        MemoryEngine.open(it.directory, it.context)


def test_the_image_outlives_replacement_and_deletion(it: Harness) -> None:
    it.commit([("put", b"k", b"old")])
    it.checkpoint()
    with_old = (it.directory / "state").read_bytes()
    image = it.engine.image()
    it.commit([("put", b"k", b"new" * 1000)])
    it.checkpoint()
    (it.directory / "state").unlink()
    (file,) = image.files
    assert (image.position, file.name, file.size) == (it.position(1), "state", len(with_old))
    assert image.read("state", 0, file.size) == with_old
    assert image.read("state", 5, 7) == with_old[5:12]
    for name, offset, length in (("nothing", 0, 1), ("state", 0, file.size + 1), ("state", -1, 1), ("state", 1, -1)):
        with pytest.raises(InvalidInput):
            image.read(name, offset, length)
    image.close()
    image.close()
    with pytest.raises(StoreClosed):
        image.read("state", 0, 1)


def test_an_image_made_during_a_checkpoint_is_of_the_position_it_says(tmp_path: Path) -> None:
    images: list[Image] = []
    threads: list[threading.Thread] = []

    class Busy(Files):
        busy = False

        def rename(self, old: Path, new: Path) -> None:
            super().rename(old, new)
            if self.busy:
                threads.append(threading.Thread(target=lambda: images.append(running.engine.image())))
                threads[-1].start()
                threads[-1].join(0.2)  # the new file is in place, and its position not yet the engine's

    files = Busy()
    running = Harness(ADAPTER, tmp_path / "state", Seams(files=files))
    running.commit([("put", b"k", b"v")])
    files.busy = True
    running.checkpoint()
    for thread in threads:
        thread.join()
    assert images
    for number, image in enumerate(images):
        copy = tmp_path / f"copy{number}"
        copy.mkdir()
        (copy / "state").write_bytes(image.read("state", 0, image.files[0].size))
        assert MemoryEngine.open(copy, running.context).position == image.position
        image.close()


def test_closing_an_image_waits_for_a_read_in_flight(it: Harness) -> None:
    image = it.engine.image()
    size = image.files[0].size
    seen = []

    class Slow(File):
        def pread(self, length: int, offset: int) -> bytes:
            image.close()  # while the read is going on
            return super().pread(length, offset)

        def close(self) -> None:
            seen.append("closed")
            super().close()

    assert isinstance(image, helpers.FileImage)
    image._open["state"] = Slow(image._open["state"].path, image._open["state"].fileno())
    assert len(image.read("state", 0, size)) == size
    assert seen == ["closed"]


def test_a_checkpoint_without_room_changes_nothing_and_works_later(tmp_path: Path) -> None:
    class Full(Files):
        full = False

        def rename(self, old: Path, new: Path) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "no room")
            super().rename(old, new)

    files = Full()
    it = Harness(ADAPTER, tmp_path / "state", Seams(files=files))
    it.commit([("put", b"k", b"v")])
    before = (it.directory / "state").read_bytes()
    files.full = True
    with pytest.raises(DiskFull):
        it.checkpoint()
    assert it.engine.position == ORIGIN
    assert it.engine.pending_bytes() > 0
    assert (it.directory / "state").read_bytes() == before
    files.full = False
    it.checkpoint()
    assert it.engine.pending_bytes() == 0
    assert it.engine.checkpoint(it.position(1)) == it.end


def test_a_checkpoint_may_go_further_than_asked_and_says_so(it: Harness) -> None:
    for key in (b"a", b"b", b"c"):
        it.commit([("put", key, b"")])
    it.checkpoint(2)
    opened = MemoryEngine.open(it.directory, it.context)
    it.compare_state(opened, opened.position.txid)
    before = it.engine.position
    it.checkpoint(1)  # behind where it is: nothing happens
    assert it.engine.position == before


def test_a_read_only_engine_replays_in_memory(it: Harness) -> None:
    before = (it.directory / "state").read_bytes()
    it.commit([("put", b"k", b"v")])
    opened = it.recovered(it.directory, read_only=True)
    it.compare_state(opened)
    assert (it.directory / "state").read_bytes() == before
    assert [p.name for p in it.directory.iterdir()] == ["state"]


def test_a_payload_that_is_no_list_of_changes_is_damage(it: Harness) -> None:
    for payload in (b"\x05", b"\x91\x05", b"\x91"):
        with pytest.raises(Damaged, match="transaction 1"):
            MemoryEngine.open(it.directory, it.context).apply([Record.make(ORIGIN.chain, 1, 0, 0, 1, payload)])


def test_adopting_overrides_the_position_held(it: Harness) -> None:
    it.commit([("put", b"k", b"v")])
    p0 = Position(41, b"c" * 16)
    opened = MemoryEngine.open(it.directory, it.context, adopt=p0)
    assert opened.position == p0
    assert opened.view().txid == 41


def test_the_digest_tells_contents_apart(it: Harness) -> None:
    def digest(*items: tuple[bytes, bytes]) -> bytes:
        it.reopen()
        tx = it.engine.begin()
        for key, value in items:
            tx.put(key, value)
        it.engine.apply([Record.make(ORIGIN.chain, 1, 0, 0, 1, tx.payload())])
        found: bytes = it.engine.view().digest()
        assert len(found) == 16
        return found

    one, two = (b"a", b"1"), (b"b", b"2")
    assert digest(one, two) == digest(two, one)
    digests = [digest(), digest(one), digest(two), digest(one, two), digest((b"a", b"")), digest((b"a1", b"")),
               digest((b"a", b"2"), (b"b", b"1"))]
    assert len(set(digests)) == len(digests)
    assert helpers.unordered_digest([b"x", b"x"]) != helpers.unordered_digest([b"y", b"y"])
    assert helpers.unordered_digest([], 1, 2) != helpers.unordered_digest([], 2, 1)
