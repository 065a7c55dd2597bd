"""The simulated disk itself: it keeps what is synced, loses what the device profile lets it lose, and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from holdfast.engine.env import File
from holdfast.engine.testing import PROFILES, Profile
from holdfast.engine.testing.disks.simdisk import SimDisk
from holdfast.engine.testing.disks.simfates import FEW, Drawn, Dropped, Fate, power_cuts
from holdfast.engine.testing.disks.simfaults import DiskFault, Injected, Kind, faults_of

FILE = Path("/file")


def made(data: bytes = b"") -> tuple[SimDisk, File]:
    """A disk with one durable file."""
    disk = SimDisk()
    file = disk.open(FILE, "create")
    if data:
        file.pwrite(data, 0)
    file.sync()
    disk.sync_directory(Path("/"))
    return disk, file


def left(disk: SimDisk, tries: int = 40) -> set[bytes | None]:
    """What a power cut may make of the file."""
    return {cut.read(FILE) if cut.exists(FILE) else None for cut in power_cuts(disk, tries=tries, salt=3)}


def test_what_is_synced_stays() -> None:
    disk, _ = made(b"text")
    assert disk.nothing_pending
    assert disk.breadth(FEW) == 1
    assert left(disk) == {b"text"}


def test_a_name_is_durable_with_its_directory_only() -> None:
    disk = SimDisk()
    file = disk.open(FILE, "create")
    file.pwrite(b"text", 0)
    file.sync()
    assert left(disk) == {None, b"text"}
    disk.sync_directory(Path("/"))
    assert left(disk) == {b"text"}


def test_every_subset_of_few_sectors() -> None:
    disk, file = made(bytes(1536))
    file.pwrite(b"\1" * 1536, 0)
    assert disk.breadth(FEW) == 9
    pieces = (b"\0" * 512, b"\1" * 512)
    assert left(disk) == {a + b + c for a in pieces for b in pieces for c in pieces}


def test_a_write_tears_at_sectors_of_the_disk_not_its_own() -> None:
    disk, file = made(bytes(1024))
    file.pwrite(b"\1" * 512, 256)
    assert left(disk) == {bytes(1024), bytes(256) + b"\1" * 256 + bytes(512), bytes(512) + b"\1" * 256 + bytes(256),
                          bytes(256) + b"\1" * 512 + bytes(256)}


def test_later_writes_may_be_there_without_earlier_ones_and_a_file_may_have_grown_without_its_bytes() -> None:
    disk, file = made(b"aa")
    file.pwrite(b"b", 0)
    file.pwrite(b"c", 1)
    file.pwrite(b"d", 2)
    found = left(disk)
    assert {b"aa", b"ba", b"ac", b"aad", b"bcd", b"aa\0"} <= found
    assert len(found) == 2 * 2 * 3


def test_many_states_are_sampled_and_the_telling_ones_are_always_among_them() -> None:
    disk, file = made(bytes(512 * 100))
    file.pwrite(b"\1" * 512 * 100, 0)
    assert disk.breadth(FEW) > FEW
    few = {cut.read(FILE) for cut in power_cuts(disk, tries=3, salt=0)}
    assert few >= {bytes(512 * 100), b"\1" * 512 * 100}
    assert len(left(disk)) > 20


def test_renames_are_whole_and_changes_of_one_name_keep_their_order() -> None:
    disk, _ = made(b"old")
    new, beside = Path("/new"), Path("/beside")
    for text in (b"1", b"2"):
        file = disk.open(beside, "create")
        file.pwrite(text, 0)
        file.sync()
        file.close()
        disk.rename(beside, FILE)
    disk.link(FILE, new)
    assert left(disk) == {b"old", b"1", b"2"}
    for cut in power_cuts(disk, tries=0, salt=0):
        assert cut.exists(FILE)
        assert not cut.exists(new) or cut.read(new) == b"2"


def test_exchange_and_removal() -> None:
    disk = SimDisk()
    for name in "ab":
        disk.make_directory(Path("/", name))
        disk.open(Path("/", name, name), "create").sync()
        disk.sync_directory(Path("/", name))
    disk.exchange(Path("/a"), Path("/b"))
    assert {tuple(cut.list(Path("/a"))) for cut in power_cuts(disk, tries=0, salt=0)} == {("a",), ("b",)}
    disk.sync_directory(Path("/"))
    disk.remove_tree(Path("/a"))
    assert {cut.exists(Path("/a")) for cut in power_cuts(disk, tries=0, salt=0)} == {True, False}


def test_a_failed_sync_leaves_what_is_read_and_not_on_the_disk() -> None:
    disk, file = made(b"old")
    file.pwrite(b"new", 0)
    disk.fail_sync(disk.ops[-1].inode)
    file.sync()  # goes well, and does nothing
    file.pwrite(b"!", 3)
    file.sync()
    assert disk.read(FILE) == b"new!"
    assert disk.crashed(Dropped()).read(FILE) == b"old!"
    assert disk.killed().crashed(Fate()).read(FILE) == b"old!"
    file.pwrite(b"new", 0)  # written again, it is
    file.sync()
    assert left(disk) == {b"new!"}


def test_a_cut_says_what_it_took() -> None:
    disk, file = made(bytes(1024))
    file.pwrite(b"\1" * 1024, 0)
    disk.rename(FILE, Path("/other"))
    assert disk.crashed(Dropped()).lost == ["the rename of file to other", "write of 1,024 bytes at 0 of file"]
    assert disk.crashed(Fate()).lost == []


def test_digests_tell_disks_apart() -> None:
    disk, file = made(b"text")
    before = disk.digest()
    assert disk.crashed(Dropped()).digest() == before
    file.pwrite(b"next", 0)
    pending = disk.digest()
    assert disk.crashed(Dropped()).digest() == before
    assert disk.crashed(Fate()).digest() not in (before, pending), "what is pending may still be lost"
    file.sync()
    assert disk.digest() == disk.crashed(Fate()).digest()


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "short write", "lost sync"])
def test_faults(kind: Kind, lasting: bool) -> None:
    clean, file = made(b"text")
    file.pwrite(b"next", 0)
    file.sync()
    faults = list(faults_of(clean.ops))
    assert len(faults) == len(set(faults))
    for fault in faults:
        if (fault.kind, fault.lasting) != (kind, lasting):
            continue
        disk = SimDisk()
        injected = Injected(disk, fault)
        failures: list[int | None] = []
        for _ in range(2):
            try:
                file = disk.open(FILE, "write" if disk.exists(FILE) else "create")
                file.pwrite(b"text", 0)
                file.sync()
                disk.sync_directory(Path("/"))
                file.pwrite(b"next", 0)
                file.sync()
            except OSError as error:
                failures.append(error.errno)
        expected = errno.EIO if kind in ("EIO", "lost sync") else errno.ENOSPC
        assert failures == [expected] * (2 if lasting else 1), f"{fault}"
        assert str(injected.struck[0]) == str(clean.ops[fault.at])


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_of_each_kind_of_fault_some_are_tried(profile: Profile) -> None:
    """They come in pairs, once and lasting, and in sixes. Every eighth was never one that lasts."""
    clean, file = made(b"text")
    for n in range(60):
        file.pwrite(b"%d" % n, 0)
        file.sync()
    faults = list(faults_of(clean.ops))
    assert {(f.kind, f.lasting) for f in profile.some(faults)} == {(f.kind, f.lasting) for f in faults}


def test_a_short_write_is_there_in_part() -> None:
    disk, file = made(b"text")
    Injected(disk, DiskFault(0, "short write", False))
    with pytest.raises(OSError, match="No space"):
        file.pwrite(b"next", 0)
    assert disk.read(FILE) == b"next"[:2] + b"xt"


def test_drawn_fates_are_among_all() -> None:
    from random import Random

    disk, file = made(bytes(1024))
    file.pwrite(b"\1" * 1024, 0)
    every = left(disk)
    drawn = {disk.crashed(Drawn(Random(n))).read(FILE) for n in range(100)}
    assert drawn == every
