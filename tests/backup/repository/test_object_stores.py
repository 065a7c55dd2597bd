"""Storage in a directory, and what is said of all storage: names, addresses, puts of one's own."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from memory_objects import MemoryObjectStore

from holdfast.backup.repository.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
    StorageUnsuitable,
)
from holdfast.backup.repository.storage.cloud import CloudObjectStore
from holdfast.backup.repository.storage.interface import MAX_NAME_BYTES, ObjectStore, StoredObject
from holdfast.backup.repository.storage.local import LEFTOVER_US, TEMPORARY, LocalObjectStore
from holdfast.backup.repository.storage.probe import probe
from holdfast.backup.repository.storage.putting import PAUSE_S, TRIES, put_own
from holdfast.backup.repository.storage.url import GROUP, open_storage
from holdfast.backup.testing import ObjectStoreContract
from holdfast.engine.env import REAL, Env
from holdfast.engine.errors import DirectoryMoved, DiskFull, HoldfastError, InvalidInput, Unsupported
from holdfast.engine.testing.disks.faulty import FaultyFiles
from holdfast.engine.testing.disks.quiet import SetClock

NO_TIME = replace(REAL, clock=SetClock())


class TestLocal(ObjectStoreContract):
    @pytest.fixture(autouse=True)
    def a_directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "some" / "repository"

    def open(self) -> ObjectStore:
        return LocalObjectStore(self.directory)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalObjectStore]:
    with LocalObjectStore(tmp_path / "repository") as store:
        yield store


def test_nothing_is_left_beside_an_object(local: LocalObjectStore, tmp_path: Path) -> None:
    """And nothing is made by reading."""
    with pytest.raises(ObjectMissing):
        local.get("a/b")
    assert not (tmp_path / "repository").exists()
    local.put("a/b", b"content")
    with pytest.raises(ObjectExists):
        local.put("a/b", b"other")
    assert os.listdir(tmp_path / "repository" / TEMPORARY) == []
    local.delete("a/b")
    assert os.listdir(tmp_path / "repository") == [TEMPORARY]


def test_leftovers_go_a_day_later(tmp_path: Path) -> None:
    folder = tmp_path / TEMPORARY
    folder.mkdir()
    for name, age_us in (("old", LEFTOVER_US + 60_000_000), ("young", LEFTOVER_US - 60_000_000)):
        (folder / name).write_bytes(b"half")
        then_ns = (REAL.clock.now_us() - age_us) * 1000
        os.utime(folder / name, ns=(then_ns, then_ns))
    with LocalObjectStore(tmp_path) as store:
        assert list(store.list("")) == []
        store.put("a", b"content")
    assert os.listdir(folder) == ["young"]


def test_a_temporary_file_that_was_taken_for_a_leftover_is_written_again(tmp_path: Path, files: FaultyFiles) -> None:
    removed: list[Path] = []

    def before(kind: str, path: Path) -> None:
        if kind == "sync" and not removed:
            removed.append(path)
            path.unlink()

    with LocalObjectStore(tmp_path, env=Env(files)) as store:
        files.before = before
        store.put("a/b", b"content")
        assert store.get("a/b") == b"content"
    assert removed


def test_a_folder_that_another_one_removes_is_made_again(tmp_path: Path) -> None:
    with LocalObjectStore(tmp_path) as one, LocalObjectStore(tmp_path) as other:
        one.put("a/b/c", b"first")
        other.delete("a/b/c")
        assert not (tmp_path / "a").exists()
        one.put("a/b/c", b"second")
        assert other.get("a/b/c") == b"second"


def test_an_object_is_no_folder_and_a_folder_no_object(local: LocalObjectStore) -> None:
    local.put("a/b", b"")
    for name in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(InvalidInput):
            local.put(name, b"")
        with pytest.raises(ObjectMissing):
            local.get(name)
        local.delete(name)
    assert [found.name for found in local.list("")] == ["a/b"]


def test_strange_files_are_not_listed(local: LocalObjectStore, tmp_path: Path) -> None:
    local.put("a/b", b"")
    for name in ("README.TXT", ".hidden", "a/b~", "a/C"):
        (tmp_path / "repository" / name).write_bytes(b"?")
    assert [found.name for found in local.list("")] == ["a/b"]


def test_a_directory_that_moved_takes_nothing(tmp_path: Path) -> None:
    with LocalObjectStore(tmp_path / "here") as store:
        store.put("a/b", b"content")
        (tmp_path / "here").rename(tmp_path / "there")
        (tmp_path / "here").mkdir()
        for call in (lambda: store.put("a/c", b""), lambda: store.get("a/b"), lambda: store.delete("a/b"),
                     lambda: list(store.list(""))):
            with pytest.raises(DirectoryMoved):
                call()
        assert os.listdir(tmp_path / "here") == []


@pytest.mark.parametrize(("kind", "code", "error"), [
    ("pwrite", errno.ENOSPC, DiskFull), ("sync", errno.EDQUOT, DiskFull), ("create", errno.EACCES, HoldfastError),
    ("sync", errno.EIO, HoldfastError), ("sync_directory", errno.EIO, StorageUnavailable),
    ("sync_directory", errno.ENOSPC, StorageUnavailable)])
def test_an_error_of_the_disk_is_told(tmp_path: Path, files: FaultyFiles, kind: str, code: int,
                                      error: type[Exception]) -> None:
    """What failed before the object had its name leaves nothing. What failed after that may have left it."""
    with LocalObjectStore(tmp_path, env=Env(files)) as store:
        store.put("a/b", b"there")
        files.fail(kind, code=code)
        with pytest.raises(error):
            store.put("a/c", b"content")
        files.before = lambda kind, path: None
        assert os.listdir(tmp_path / TEMPORARY) == []
        if error is StorageUnavailable:
            assert store.get("a/c") == b"content"
        else:
            store.put("a/c", b"content")


def test_a_taken_name_is_not_reported_before_it_is_durable(tmp_path: Path, files: FaultyFiles) -> None:
    """Nor read. The one who linked it may have died before its sync."""
    with LocalObjectStore(tmp_path) as other:
        other.put("a/b", b"there")
    with LocalObjectStore(tmp_path, env=Env(files)) as store:
        files.fail("sync_directory", only=lambda path: path.name == "a")
        with pytest.raises(StorageUnavailable):
            store.put("a/b", b"mine")
        with pytest.raises(HoldfastError):
            store.get("a/b")
        files.before = lambda kind, path: None
        assert store.get("a/b") == b"there"


def test_a_get_syncs_a_folder_once_until_it_changes(tmp_path: Path) -> None:
    files = FaultyFiles()
    store = LocalObjectStore(tmp_path, env=Env(files, SetClock(REAL.clock.now_us() + 10_000_000)))
    with store:
        for number in range(3):
            store.put(f"a/{number}", b"")
        files.counts.clear()
        for number in range(3):
            store.get(f"a/{number}")
        assert files.counts["sync_directory"] == 1
        (tmp_path / "a" / "3").write_bytes(b"")
        os.utime(tmp_path / "a", ns=(REAL.clock.now_us() * 1000 + 1,) * 2)
        store.get("a/3")
        assert files.counts["sync_directory"] == 2
    with LocalObjectStore(tmp_path, env=Env(files)) as store:  # it changed just now, and might again unseen
        os.utime(tmp_path / "a")
        files.counts.clear()
        store.get("a/1")
        store.get("a/2")
        assert files.counts["sync_directory"] == 2


class NoLinks(FaultyFiles):
    def link(self, old: Path, new: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(old))


def test_a_file_system_without_links_is_refused(tmp_path: Path) -> None:
    with LocalObjectStore(tmp_path, env=Env(NoLinks())) as store, pytest.raises(StorageUnsuitable, match="hard links"):
        probe(store, REAL)
    assert os.listdir(tmp_path / TEMPORARY) == []


# --- addresses -------------------------------------------------------------------------------------------------------


def test_addresses_of_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = (tmp_path / "with space").as_uri()
    for address in (tmp_path / "with space", str(tmp_path / "with space"), "with space", uri,
                    uri.replace("file:///", "file://localhost/")):
        with open_storage(address) as store:
            assert isinstance(store, LocalObjectStore)
            assert store.url == uri


@pytest.mark.parametrize("address", ["", "a\0b", "file://host/path", "file:///a?b", "file:///a#b", "ftp://host/a", "s3://",
                                     "s3:///prefix", "s3://bucket/a//b", "s3://bucket/a?b=c", "gs://bucket/a%20b", 7])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput):
        open_storage(address)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(InvalidInput) as caught:
        open_storage("s3://key:secret@bucket/prefix")
    assert "secret" not in str(caught.value)


def test_buckets_need_the_extra_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for scheme in ("s3", "gs", "az"):
        with pytest.raises(Unsupported, match=r"pip install 'holdfast\[s3\]'"):
            open_storage(f"{scheme}://bucket/prefix")


def test_a_wrong_setting_of_a_bucket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StorageUnsuitable, match="Account must be specified"):
        open_storage("az://container/prefix")


def test_the_url_of_a_bucket_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    for address in ("s3://bucket", "s3://bucket/", "s3://bucket/a/b", "s3://bucket/a/b/"):
        with open_storage(address) as store:
            assert isinstance(store, CloudObjectStore)
            assert store.url == address.rstrip("/")


class Installed(MemoryObjectStore):
    def __init__(self, url: str, *, env: Env) -> None:
        super().__init__({})
        self.url, self.env = url, env


def test_storage_of_another_author_is_found_by_its_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("mine", f"{__name__}:Installed", GROUP)])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == GROUP else EntryPoints())
    store = open_storage("mine://somewhere/else", NO_TIME)
    assert isinstance(store, Installed)
    assert (store.url, store.env) == ("mine://somewhere/else", NO_TIME)
    with pytest.raises(InvalidInput, match="installed: mine"):
        open_storage("ftp://somewhere/else")


# --- puts of one's own -----------------------------------------------------------------------------------------------


class Unsure(MemoryObjectStore):
    """Puts end as `fates` say: `lost` and `gone` have no answer, after the put and instead of it."""

    def __init__(self, *fates: str) -> None:
        super().__init__({})
        self.fates = list(fates)
        self.puts = 0

    def put(self, name: str, data: bytes) -> None:
        self.puts += 1
        fate = self.fates.pop(0) if self.fates else "done"
        if fate != "gone":
            super().put(name, data)
        if fate != "done":
            raise StorageUnavailable("no answer")


class Waited(SetClock):
    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.mark.parametrize("fates", [(), ("lost",), ("gone",), ("gone", "lost"), ("gone",) * (TRIES - 1)])
def test_a_put_of_ones_own_is_there_in_the_end(fates: tuple[str, ...]) -> None:
    store, clock = Unsure(*fates), Waited()
    put_own(store, "a", b"mine", replace(REAL, clock=clock))
    assert store.get("a") == b"mine"
    assert clock.pauses == [PAUSE_S * 2**n for n in range(len(fates))]


def test_a_put_of_ones_own_gives_up() -> None:
    store = Unsure(*("gone",) * 99)
    with pytest.raises(StorageUnavailable, match=f"no answer .tried {TRIES} times"):
        put_own(store, "a", b"mine", replace(REAL, clock=Waited()))
    assert store.puts == TRIES


def test_a_put_of_ones_own_does_not_take_what_others_put_for_it() -> None:
    store = Unsure()
    store.put("a", b"theirs")
    with pytest.raises(ObjectExists, match="other content"):
        put_own(store, "a", b"mine", NO_TIME)
    assert store.get("a") == b"theirs"


def test_a_refusal_of_ones_own_is_not_tried_again() -> None:
    class Refuses(MemoryObjectStore):
        puts = 0

        def put(self, name: str, data: bytes) -> None:
            self.puts += 1
            raise StorageDenied("no")

    store = Refuses({})
    with pytest.raises(StorageDenied):
        put_own(store, "a", b"mine", NO_TIME)
    assert store.puts == 1


# --- broken storage, each caught by the check that is about what it breaks --------------------------------------------


class Overwrites(MemoryObjectStore):
    def put(self, name: str, data: bytes) -> None:
        self.delete(name)
        super().put(name, data)


class LooksFirst(MemoryObjectStore):
    """Looks whether the name is free, and takes it a moment later."""

    def put(self, name: str, data: bytes) -> None:
        if name in self.objects:
            raise ObjectExists(name)
        REAL.clock.sleep(0.01)
        self.delete(name)
        super().put(name, data)


class TakesTheSameForItsOwn(MemoryObjectStore):
    def put(self, name: str, data: bytes) -> None:
        if self.objects.get(name, (None, 0))[0] != data:
            super().put(name, data)


class CutsRanges(MemoryObjectStore):
    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = super().get(name)
        return super().get(name, offset, length) if offset < 0 or (length or 0) < 0 else data[offset:][:length]


class EmptyIsMissing(MemoryObjectStore):
    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if super().get(name) == b"":
            raise ObjectMissing(name)
        return super().get(name, offset, length)


class CutsLarge(MemoryObjectStore):
    def put(self, name: str, data: bytes) -> None:
        super().put(name, data[: 32 << 20] if isinstance(data, bytes) else data)


class MissingIsEmpty(MemoryObjectStore):
    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            return super().get(name, offset, length)
        except ObjectMissing:
            return b""


class ListsFolders(MemoryObjectStore):
    def list(self, prefix: str) -> Iterator[StoredObject]:
        return super().list(prefix if prefix in ("", *self.objects) else prefix.rstrip("/") + "/")


class ListsAsPut(MemoryObjectStore):
    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter(sorted(super().list(prefix), key=lambda found: found.modified_us))


class KeepsTheName(MemoryObjectStore):
    """A removed name stays taken."""

    def __init__(self, objects: dict[str, tuple[bytes, int]]) -> None:
        super().__init__(objects)
        self.once: set[str] = set()

    def put(self, name: str, data: bytes) -> None:
        if name in self.once:
            raise ObjectExists(name)
        super().put(name, data)
        self.once.add(name)


class TakesAnyName(MemoryObjectStore):
    def delete(self, name: str) -> None:
        self.objects.pop(name, None)


class MixesThreads(MemoryObjectStore):
    """Threads that read at once get what another one reads."""

    last = ""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.last = name
        REAL.clock.sleep(0.002)
        return super().get(self.last, offset, length)


class ListsLate(MemoryObjectStore):
    def list(self, prefix: str) -> Iterator[StoredObject]:
        return (found for found in super().list(prefix) if found.modified_us < REAL.clock.now_us() - 200_000)


CAUGHT: list[tuple[type[MemoryObjectStore], str]] = [
    (Overwrites, "test_a_name_is_put_once"),
    (TakesTheSameForItsOwn, "test_a_name_is_put_once"),
    (LooksFirst, "test_of_several_who_put_a_name_one_does"),
    (MixesThreads, "test_threads_put_and_get_at_once"),
    (CutsRanges, "test_a_range_is_exact_or_refused"),
    (EmptyIsMissing, "test_an_object_may_be_empty"),
    (CutsLarge, "test_a_large_object_is_whole"),
    (MissingIsEmpty, "test_a_missing_object_is_missing"),
    (ListsFolders, "test_a_list_is_by_prefix_and_in_order"),
    (ListsAsPut, "test_a_list_is_by_prefix_and_in_order"),
    (KeepsTheName, "test_a_removed_object_is_gone_and_its_name_is_free"),
    (TakesAnyName, "test_names_are_refused"),
    (Overwrites, "test_a_probe_finds_it_suitable"),
    (ListsLate, "test_a_probe_finds_it_suitable"),
    (MissingIsEmpty, "test_it_is_a_dictionary_that_forgets_no_first_value"),
]


@pytest.mark.parametrize(("broken", "check"), CAUGHT, ids=lambda what: getattr(what, "__name__", what))
def test_broken_storage_is_caught(broken: type[MemoryObjectStore], check: str) -> None:
    place: dict[str, tuple[bytes, int]] = {}

    class OnIt(ObjectStoreContract):
        def open(self) -> ObjectStore:
            return broken(place)

    with pytest.raises((AssertionError, HoldfastError, pytest.fail.Exception)):
        getattr(OnIt(), check)()


def test_each_check_catches_one() -> None:
    checks = {name for name in dir(ObjectStoreContract) if name.startswith("test_")}
    assert checks == {check for _, check in CAUGHT}


class TestMemory(ObjectStoreContract):
    """What the broken ones are made of holds."""

    @pytest.fixture(autouse=True)
    def a_place(self) -> None:
        self.place: dict[str, tuple[bytes, int]] = {}

    def open(self) -> ObjectStore:
        return MemoryObjectStore(self.place)


def test_the_longest_name_fits_a_file(local: LocalObjectStore) -> None:
    local.put("x" * MAX_NAME_BYTES, b"")
    assert local.get("x" * MAX_NAME_BYTES) == b""


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_large_object_is_synced_in_small_parts(tmp_path: Path, size: int) -> None:
    """A sync of a whole pack holds up every commit on the same disk."""
    files = FaultyFiles()
    done: list[str] = []

    def before(kind: str, path: Path) -> None:
        if kind in ("pwrite", "datasync", "sync"):
            done.append(kind)

    files.before = before
    store = LocalObjectStore(tmp_path / "objects", env=Env(files=files))
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    store.put("some/object", data)
    parts = max(1, -(-size // (1 << 20)))
    assert done == ["pwrite", "datasync"] * (parts - 1) + ["pwrite", "sync"]
    assert store.get("some/object") == data
