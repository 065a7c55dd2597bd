"""What is the memory engine's own, beyond the contract suite: its errors and its file; and the helpers it stands on."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from workloads import memory

from holdfast.engine import toolkit
from holdfast.engine.builtin.memory import MAX_KEY, MAX_VALUE, MemoryEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.contract.image import Image
from holdfast.engine.contract.transaction import end
from holdfast.engine.env import Env, File, Files
from holdfast.engine.errors import (
    Damaged,
    DiskFull,
    ForeignStore,
    InvalidInput,
    NotFound,
    StoreClosed,
    UnsupportedFormat,
    UpgradeRequired,
)
from holdfast.engine.model.records import Record
from holdfast.engine.store.store import Store
from holdfast.engine.testing.support.driver import ORIGIN, Driver


@pytest.fixture
def it(tmp_path: Path) -> Driver:
    return Driver(memory(), tmp_path / "state")


def test_bad_input_is_refused_and_changes_nothing(it: Driver) -> None:
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
    end(tx, "committed")
    with pytest.raises(StoreClosed):
        tx.put(b"k", b"v")
    with pytest.raises(StoreClosed):
        tx.delete(b"x" * MAX_KEY)


def test_every_flipped_byte_of_the_state_is_found(it: Driver) -> None:
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


def test_other_state_formats_are_named(it: Driver) -> None:
    path = it.directory / "state"
    toolkit.write_state(it.context, path, b"HFMEMORY", 2, ORIGIN, b"\x80")
    with pytest.raises(UnsupportedFormat, match="state format 2"):
        MemoryEngine.open(it.directory, it.context)
    toolkit.write_state(it.context, path, b"HFMEMORY", 0, ORIGIN, b"\x80")
    with pytest.raises(UpgradeRequired, match="state format 0"):
        MemoryEngine.open(it.directory, it.context)


def test_a_state_that_is_no_dictionary_is_damage(it: Driver) -> None:
    toolkit.write_state(it.context, it.directory / "state", b"HFMEMORY", 1, ORIGIN, b"\x81")
    with pytest.raises(Damaged, match="no dictionary"):
        MemoryEngine.open(it.directory, it.context)


def test_the_image_outlives_replacement_and_deletion(it: Driver) -> None:
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
    """The engine does not keep the two apart. The store does."""
    images: list[Image] = []
    threads: list[threading.Thread] = []

    class Busy(Files):
        busy = False

        def rename(self, old: Path, new: Path) -> None:
            super().rename(old, new)
            if self.busy:
                threads.append(threading.Thread(target=lambda: images.append(running.image())))
                threads[-1].start()
                threads[-1].join(0.2)  # the new file is in place, and its position not yet the engine's

    files = Busy()
    with Store.open(tmp_path / "store", MemoryEngine, env=Env(files=files)) as running:
        with running.transaction() as tx:
            tx.put(b"k", b"v")
        files.busy = True
        running.checkpoint()
        files.busy = False
        for thread in threads:
            thread.join()
    assert images
    for number, image in enumerate(images):
        copy = tmp_path / f"copy{number}"
        copy.mkdir()
        (copy / "state").write_bytes(image.read("state", 0, image.files[0].size))
        assert MemoryEngine.open(copy, Context()).position == image.position
        image.close()


def test_closing_an_image_waits_for_a_read_in_flight(it: Driver) -> None:
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

    assert isinstance(image, toolkit.FileImage)
    image._held["state"] = Slow(image._held["state"].path, image._held["state"].fileno())
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
    it = Driver(memory(), tmp_path / "state", Env(files=files))
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


def test_a_payload_that_is_no_list_of_changes_is_damage(it: Driver) -> None:
    for payload in (b"\x05", b"\x91\x05", b"\x91"):
        with pytest.raises(Damaged, match="transaction 1"):
            MemoryEngine.open(it.directory, it.context).apply([Record.make(ORIGIN.chain, 1, 0, 0, 1, payload)])


def test_digests_count_items_and_keep_marks_in_order() -> None:
    assert toolkit.unordered_digest([b"x", b"y"]) == toolkit.unordered_digest([b"y", b"x"])
    assert toolkit.unordered_digest([b"x", b"x"]) != toolkit.unordered_digest([b"y", b"y"])
    assert toolkit.unordered_digest([], 1, 2) != toolkit.unordered_digest([], 2, 1)


def test_a_state_file_says_whose_it_is(it: Driver) -> None:
    """A source that handed out the image of another store, under right checksums, went unnoticed: the position was the
    copy's, and nothing in the state said of which store it was."""
    ours, theirs = (Context(it.context.env, store_id=bytes([n]) * 16) for n in (1, 2))
    toolkit.write_state(ours, it.directory / "state", b"HFMEMORY", 1, ORIGIN, b"\x80")
    MemoryEngine.open(it.directory, ours).close()
    MemoryEngine.open(it.directory, Context()).close()  # without a store, there is nothing to compare
    with pytest.raises(ForeignStore, match="01010101"):
        MemoryEngine.open(it.directory, theirs, at=ORIGIN)


def test_an_engine_that_says_nothing_reads_the_payloads_that_it_writes() -> None:
    class Later(MemoryEngine):
        payload_version = 2

    class Both(Later):
        reads_payloads = frozenset({1, 2})

    assert [kind.reads_payloads for kind in (MemoryEngine, Later, Both)] == [{1}, {2}, {1, 2}]
