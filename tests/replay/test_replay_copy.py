"""The copying of files by itself: what it reads and when, what it tells, what it does with what is there already."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from backup_worlds import open_store, write
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.backup.testing.fault_injection import Nth, WatchedSource
from holdfast.engine.contract.image import ImageFile
from holdfast.engine.env import REAL, Env, Files
from holdfast.engine.errors import Damaged, DiskFull, LeaseExpired, SourceRefused, SourceUnavailable
from holdfast.engine.source.local import LocalSource
from holdfast.engine.testing.disks.faulty import FaultyFiles
from holdfast.replay import files as copying
from holdfast.replay.copy import begin, kept_alive
from holdfast.replay.files import DigestedFiles


class Image:
    """Files in memory; counts what is read of them."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content, self.reads = content, 0

    @property
    def listed(self) -> list[ImageFile]:
        return [ImageFile(n, len(c)) for n, c in self.content.items()]

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.content[name][offset : offset + length]


copy_files = partial(copying.copy_files, chunk_bytes=1000)


def present(place: Path) -> dict[str, bytes]:
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}


CONTENT = {"a": bytes(range(256)) * 20, "empty": b"", "deep/er/b": b"x" * 3000, "one": b"1"}


def test_copies_and_reads_back(tmp_path: Path) -> None:
    image, told = Image(CONTENT), list[tuple[str, int, int]]()
    copied = copy_files(image.read, image.listed, tmp_path / "to", env=REAL,
                        progress=lambda *t: told.append(t), stage="work")
    assert present(tmp_path / "to") == CONTENT
    assert [(c.name, c.size, len(c.digests)) for c in copied] == [
        ("a", 5120, 6), ("empty", 0, 0), ("deep/er/b", 3000, 3), ("one", 1, 1)]
    assert [t[1] for t in told] == sorted(t[1] for t in told)
    assert told[-1] == ("work", 8121, 8121)
    with DigestedFiles(tmp_path / "to", copied, 1000, REAL) as back:
        assert back.verify() == 8121
        assert back.read("a", 1000, 2000) == CONTENT["a"][1000:3000]
    (tmp_path / "to" / "empty").write_bytes(b"!")
    with DigestedFiles(tmp_path / "to", copied, 1000, REAL) as back, pytest.raises(Damaged, match="empty"):
        back.verify()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 5000), max_size=4), fail=st.integers(1, 20), lost=st.booleans())
def test_goes_on_from_what_was_told_to_be_synced(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], fail: int,
                                                 lost: bool) -> None:
    place = tmp_path_factory.mktemp("copy")
    image = Image({f"f{n}": bytes((n * 7 + i) % 251 for i in range(size)) for n, size in enumerate(sizes)})
    dying, synced = Nth(fail, lambda: SourceUnavailable("gone")), dict[str, list[bytes]]()

    def read(name: str, offset: int, length: int) -> bytes:
        dying("read")
        return image.read(name, offset, length)

    try:
        copy_files(read, image.listed, place, env=REAL, on_synced=lambda d: synced.update(d))
    except SourceUnavailable:
        assert sum(map(len, synced.values())) < sum(-(-s // 1000) for s in sizes)
    if lost and synced:
        (place / min(synced)).unlink(missing_ok=True)
    image.reads = 0
    kept = {n: d for n, d in synced.items() if (place / n).exists()}
    copied = copy_files(image.read, image.listed, place, env=REAL, done=synced)
    assert present(place) == image.content
    assert image.reads == sum(len(c.digests) for c in copied) - sum(map(len, kept.values()))


def test_reads_no_more_than_a_little_ahead(tmp_path: Path) -> None:
    """However slow the disk is."""
    image = Image({"big": bytes(100_000)})
    ahead = []

    def progress(stage: str, done: int, total: int) -> None:
        ahead.append(image.reads - done // 1000)

    copy_files(image.read, image.listed, tmp_path / "to", env=REAL, progress=progress)
    assert max(ahead) <= 4


def test_short_answers_are_damage(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="gave 999 bytes"):
        copy_files(lambda n, o, s: bytes(s - 1), [ImageFile("a", 5000)], tmp_path, env=REAL)


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    image = Image({"a": bytes(10)})

    class Small(Files):
        def free(self, path: Path) -> int:
            return copying.SPARE_BYTES + 9

    with pytest.raises(DiskFull):
        copy_files(image.read, image.listed, tmp_path, env=Env(files=Small()))
    assert image.reads == 0


def test_room_that_is_reserved_is_there(tmp_path: Path) -> None:
    """A copy takes room for the whole of a file before it copies it. The next one, after one that had died half-way,
    asked for that room again."""
    image = Image({"a": bytes(5000)})
    dying = Nth(3, lambda: SourceUnavailable("gone"))

    def read(name: str, offset: int, length: int) -> bytes:
        dying("read")
        return image.read(name, offset, length)

    class Small(Files):
        def free(self, path: Path) -> int:
            return copying.SPARE_BYTES + 5000 - sum(p.stat().st_size for p in tmp_path.iterdir())

    for reading in (read, image.read):
        with contextlib.suppress(SourceUnavailable):
            copy_files(reading, image.listed, tmp_path, env=Env(files=Small()))
    assert present(tmp_path) == image.content


@pytest.mark.parametrize("listed", [[ImageFile("a", -1)], [ImageFile("a", 1), ImageFile("a", 1)], [ImageFile("/a", 1)],
                                    [ImageFile("a", 1), ImageFile("a/b", 1)], [ImageFile("a" * 256, 1)],
                                    [ImageFile("a/../b", 1)], [ImageFile("./a", 1)], [ImageFile("a\\b", 1)]])
def test_improper_lists_are_refused(tmp_path: Path, listed: list[ImageFile]) -> None:
    with pytest.raises(SourceRefused):
        copy_files(lambda n, o, s: bytes(s), listed, tmp_path / "to", env=REAL)
    assert not (tmp_path / "to").exists()


class Renewing(WatchedSource):
    """Notes renewals; the third finds the lease expired, the second nobody there."""

    def __init__(self, source: LocalSource) -> None:
        super().__init__(source)
        self.renewed, self.enough = 0, threading.Event()

    def renew(self, lease_id: str) -> None:
        self.renewed += 1
        if self.renewed == 2:
            raise SourceUnavailable("for a moment")
        if self.renewed == 3:
            self.enough.set()
            raise LeaseExpired("over")
        super().renew(lease_id)


def test_lease_is_kept_alive_until_it_is_over(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        write(store, 1)
        source = Renewing(LocalSource(store))
        grant = source.lease("me", image=True, ttl=0.04)
        before = threading.active_count()
        with kept_alive(source, grant, REAL.scheduler):
            assert source.enough.wait(60)
        assert threading.active_count() <= before, "nothing runs on"
        assert source.renewed == 3
        source.release(grant.id)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_systems_that_cannot_reserve_room_are_copied_to(code: int, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems, with some C libraries, know no fallocate."""
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    image = Image({"a": bytes(5000)})
    copy_files(image.read, image.listed, tmp_path / "to", env=REAL)
    assert (tmp_path / "to" / "a").read_bytes() == bytes(5000)


def test_no_room_to_reserve_is_said_before_a_byte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    image = Image({"a": bytes(5000)})
    with pytest.raises(DiskFull):
        copy_files(image.read, image.listed, tmp_path / "to", env=REAL)
    assert (tmp_path / "to" / "a").stat().st_size == 0


def test_a_copy_in_chunks_of_another_size_is_not_gone_on_with(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        source = LocalSource(store)
        state = begin(source, tmp_path / "copy", "me", bytes(16), env=REAL, ttl=60)
        again = begin(source, tmp_path / "copy", "me", bytes(16), env=REAL, ttl=60)
        assert again.grant.id == state.grant.id
        anew = begin(source, tmp_path / "copy", "me", bytes(16), env=REAL, ttl=60, chunk_bytes=1 << 10)
        assert anew.grant.id != state.grant.id
        for lease in store.leases.list():
            source.release(lease.id)


CHUNK = 4096


def test_what_was_copied_is_kept_when_the_source_goes(tmp_path: Path) -> None:
    """It was said to be kept, and was not before 256 MiB of a file had come."""
    listed = (ImageFile("a", 3 * CHUNK), ImageFile("b", 30 * CHUNK))
    piece = bytes(range(256)) * (CHUNK // 256)
    told: list[dict[str, list[bytes]]] = []

    def read(name: str, offset: int, length: int) -> bytes:
        if (name, offset) == ("b", 20 * CHUNK):
            raise SourceUnavailable("gone")
        return piece[:length]

    with pytest.raises(SourceUnavailable):
        copy_files(read, listed, tmp_path / "state", env=REAL, chunk_bytes=CHUNK, on_synced=told.append)
    steps = [sum(map(len, digests.values())) for digests in told]
    assert steps[-1] == 23, "the last chunk that came was not kept"
    assert max(b - a for a, b in pairwise([0, *steps])) <= 8, f"a killed copy loses more than eight chunks: {steps}"
    assert (tmp_path / "state" / "b").read_bytes()[: 20 * CHUNK] == piece * 20


def test_nothing_is_kept_after_a_sync_has_failed(tmp_path: Path) -> None:
    """The next sync of that file says nothing about the bytes that the failed one was to write."""
    disk, failed = FaultyFiles(), False
    told: list[dict[str, list[bytes]]] = []

    def before(kind: str, path: Path) -> None:
        nonlocal failed
        if kind == "datasync" and not failed:
            failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before = before

    def read(name: str, offset: int, length: int) -> bytes:
        if offset == 4 * CHUNK:  # a sync is under way, or has ended, and nobody has looked yet
            raise SourceUnavailable("gone")
        return bytes(length)

    with pytest.raises((SourceUnavailable, OSError)):
        copy_files(read, [ImageFile("a", 9 * CHUNK)], tmp_path / "state", env=Env(files=disk),
                   chunk_bytes=CHUNK, on_synced=told.append)
    assert failed
    assert told == []


@pytest.mark.parametrize("slow", [True, False])
def test_what_a_slow_source_sends_is_synced_in_small_parts(tmp_path: Path, slow: bool) -> None:
    """A sync of many megabytes holds up every commit on the same disk. If the source takes its time, because its store
    is busy, there is time for many small ones."""
    disk, size = FaultyFiles(), 4 << 20
    unsynced = most = written = 0

    def before(kind: str, path: Path) -> None:
        nonlocal unsynced, most, written
        if kind == "pwrite":
            written += 1
            unsynced += 1
            most = max(most, unsynced)
        elif kind == "datasync":
            unsynced = 0

    disk.before = before

    def read(name: str, offset: int, length: int) -> bytes:
        if slow:
            REAL.clock.sleep(0.1)
        return bytes([offset >> 20]) * length

    copied = copying.copy_files(read, [ImageFile("a", 4 * size)], tmp_path / "state", env=Env(files=disk))
    parts = 4 * size // copying.PART_BYTES
    assert (most == 1, written) == ((True, parts) if slow else (False, 4)), "a small part at a time, or a chunk"
    content = (tmp_path / "state" / "a").read_bytes()
    assert content == b"".join(bytes([n]) * size for n in range(0, 16, 4))
    assert [len(one.digests) for one in copied] == [4]
