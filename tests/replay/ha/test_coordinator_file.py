"""The coordinator in a directory: the contract, several processes, holders that are killed or stopped, full and failing
disks, directories that move, and network file systems."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.engine.env import REAL, Directory, Files
from holdfast.engine.errors import Unsupported
from holdfast.replay.ha.coordinator import ABSENT, Coordinator
from holdfast.replay.ha.coordinators.file import FileCoordinator, file_system
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from holdfast.replay.testing.coordinator import CoordinatorContract


class _FailingFiles(Files):
    """Files whose next rename or sync of a directory fails."""

    rename_fails = sync_fails = 0

    def rename(self, old: Path, new: Path) -> None:
        if self.rename_fails:
            self.rename_fails, code = 0, self.rename_fails
            raise OSError(code, os.strerror(code))
        super().rename(old, new)

    def open_directory(self, path: Path) -> Directory:
        directory = super().open_directory(path)
        if self.sync_fails:
            self.sync_fails = 0
            return _Unsynced(directory)
        return directory


class _Unsynced(Directory):
    def __init__(self, of: Directory) -> None:
        super().__init__(of.path, of._fd)

    def sync(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


class TestFile(CoordinatorContract):
    @pytest.fixture(autouse=True)
    def a_directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path
        self.files = _FailingFiles()

    def make(self) -> Coordinator:
        return FileCoordinator(self.directory, "social", env=replace(REAL, files=self.files))

    def lose_answers(self, coordinator: Coordinator) -> None:
        self.files.sync_fails = 1


def test_clusters_do_not_see_each_other(tmp_path: Path) -> None:
    with FileCoordinator(tmp_path, "a") as a, FileCoordinator(tmp_path, "b") as b:
        a.swap(ABSENT, b"of a", 1)
        assert b.read(1) == (None, ABSENT)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["failing", "full"])
def test_a_write_that_fails_before_its_end_changed_nothing(code: int, tmp_path: Path) -> None:
    files = _FailingFiles()
    with FileCoordinator(tmp_path, "social", env=replace(REAL, files=files)) as one:
        first = one.swap(ABSENT, b"first", 1)
        files.rename_fails = code
        with pytest.raises(CoordinatorUnavailable, match="no room" if code == errno.ENOSPC else "Input/output"):
            one.swap(first, b"second", 1)
        assert one.read(1) == (b"first", first)
        one.swap(first, b"second", 1)


def test_who_reads_makes_durable_what_was_left(tmp_path: Path) -> None:
    """A writer may be killed between its rename and its sync of the directory. A reader syncs it before it answers,
    once for each document."""
    synced = []

    class Counting(Files):
        def sync_directory(self, path: Path) -> None:
            synced.append(path)
            super().sync_directory(path)

    with FileCoordinator(tmp_path, "social", env=replace(REAL, files=Counting())) as one:
        FileCoordinator(tmp_path, "social").swap(ABSENT, b"first", 1)
        synced.clear()
        one.read(1)
        one.read(1)
        assert len(synced) == 1


_WORKER = """
import sys
from pathlib import Path
from holdfast.engine.env import REAL, Files
from holdfast.replay.ha.coordinator import ABSENT
from holdfast.replay.ha.coordinators.file import FileCoordinator
from holdfast.replay.ha.errors import SwapConflict

directory, job = Path(sys.argv[1]), sys.argv[2]
if job == "hold":
    class Slow(Files):
        def write_durably(self, path, data):
            print("held", flush=True)
            sys.stdin.read(1)
            super().write_durably(path, data)
    from dataclasses import replace
    coordinator = FileCoordinator(directory, "social", env=replace(REAL, files=Slow()))
    data, version = coordinator.read(5)
    coordinator.swap(version, b"of the holder", 5)
    print("swapped", flush=True)
else:
    coordinator = FileCoordinator(directory, "social")
    print("ready", flush=True)
    sys.stdin.read(1)
    for _ in range(int(job)):
        while True:
            data, version = coordinator.read(30)
            try:
                coordinator.swap(version, b"%d" % (int(data or b"0") + 1), 30)
            except SwapConflict:
                continue
            break
"""


@contextmanager
def _worker(directory: Path, job: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", _WORKER, str(directory), job], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def _says(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{what}\n"


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()


def test_processes_lose_no_swap(tmp_path: Path) -> None:
    with _worker(tmp_path, "20") as one, _worker(tmp_path, "20") as other:
        for process in (one, other):
            _says(process, "ready")
        for process in (one, other):
            _go(process)
        assert (one.wait(60), other.wait(60)) == (0, 0)
    assert FileCoordinator(tmp_path, "social").read(1)[0] == b"40"


def test_a_holder_that_is_stopped_blocks_nobody_beyond_the_timeout(tmp_path: Path) -> None:
    """SIGSTOP keeps the lock. Others read and wait as ever, and a swap ends with its time, naming the holder. When it
    is continued, the holder finishes, because nobody could have written meanwhile."""
    with FileCoordinator(tmp_path, "social") as one:
        first = one.swap(ABSENT, b"first", 1)
        with _worker(tmp_path, "hold") as holder:
            _says(holder, "held")
            holder.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(CoordinatorUnavailable, match=f"in use by process {holder.pid}"):
                one.swap(first, b"second", 0.3)
            assert 0.3 <= time.monotonic() - begun < 1
            assert one.read(0.3) == (b"first", first)
            assert one.wait(first, 0.05) is None
            holder.send_signal(signal.SIGCONT)
            _go(holder)
            _says(holder, "swapped")
            assert one.read(1)[0] == b"of the holder"


def test_a_holder_that_is_killed_holds_no_more(tmp_path: Path) -> None:
    with FileCoordinator(tmp_path, "social") as one:
        first = one.swap(ABSENT, b"first", 1)
        with _worker(tmp_path, "hold") as holder:
            _says(holder, "held")
            (tmp_path / "social" / "document.new").write_bytes(b"half of what it wr")
            holder.kill()
            holder.wait()
        second = one.swap(first, b"second", 1)
        assert one.read(1) == (b"second", second)


def test_a_document_that_was_removed_and_written_anew_is_another_one(tmp_path: Path) -> None:
    with FileCoordinator(tmp_path, "social") as one:
        old = one.swap(ABSENT, b"same", 1)
        (tmp_path / "social" / "document").unlink()
        assert one.wait(old, 1) == (None, ABSENT)
        new = one.swap(ABSENT, b"same", 1)
        assert new.number == old.number
        with pytest.raises(SwapConflict):
            one.swap(old, b"of the old one", 1)


def test_a_damaged_document_is_an_outage_and_is_kept(tmp_path: Path) -> None:
    with FileCoordinator(tmp_path, "social") as one:
        first = one.swap(ABSENT, b"first", 1)
        path = tmp_path / "social" / "document"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        damaged = path.read_bytes()
        for call in (lambda: one.read(1), lambda: one.swap(first, b"second", 1), lambda: one.swap(ABSENT, b"2", 1),
                     lambda: one.wait(first, 1)):
            with pytest.raises(CoordinatorUnavailable, match="does not match its checksum"):
                call()
        assert path.read_bytes() == damaged


def test_a_directory_that_moved_is_an_outage_and_not_an_absent_document(tmp_path: Path) -> None:
    """An unmounted or renamed directory must not look like a cluster that was never made."""
    with FileCoordinator(tmp_path / "d", "social") as one:
        first = one.swap(ABSENT, b"first", 1)
        (tmp_path / "d").rename(tmp_path / "elsewhere")
        for _ in range(2):
            with pytest.raises(CoordinatorUnavailable, match="no longer the directory"):
                one.read(1)
            with pytest.raises(CoordinatorUnavailable):
                one.swap(first, b"second", 1)
            (tmp_path / "d" / "social").mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / "social").rmdir()
        (tmp_path / "d").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "d")
        assert one.read(1) == (b"first", first)


class _Mounts(Files):
    def __init__(self, *lines: str) -> None:
        self._lines = lines

    def read(self, path: Path) -> bytes:
        if path == Path("/proc/self/mountinfo"):
            return "".join(f"{line}\n" for line in self._lines).encode()
        return super().read(path)


_ROOT = "22 1 0:21 / / rw - ext4 /dev/vda rw"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "glusterfs", "virtiofs",
                                  "fuse.sshfs", "fuse.s3fs", "fuse"])
def test_a_network_file_system_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    files = _Mounts(_ROOT, f"30 22 0:40 / {tmp_path} rw shared:1 - {kind} server:/x rw")
    with pytest.raises(Unsupported, match=rf"network file system \({kind}\)"):
        FileCoordinator(tmp_path / "d", "social", env=replace(REAL, files=files))
    assert not (tmp_path / "d").exists()


def test_the_innermost_and_last_mount_counts(tmp_path: Path) -> None:
    here = tmp_path / "with space" / "d"
    spaced = str(tmp_path / "with space").replace(" ", "\\040")
    nfs, local = f"31 22 0:41 / {tmp_path} rw - nfs4 s:/ rw", f"32 31 0:42 / {spaced} rw - xfs /dev/vdb rw"
    assert file_system(_Mounts(_ROOT, local, nfs), here) == "xfs"
    assert file_system(_Mounts(_ROOT, nfs), here) == "nfs4"
    assert file_system(_Mounts(_ROOT, nfs, f"33 31 0:43 / {tmp_path}/with rw - tmpfs t rw"), here) == "nfs4"
    assert file_system(_Mounts(_ROOT, nfs, f"33 31 0:43 / {tmp_path} rw - tmpfs t rw"), here) == "tmpfs"
    assert file_system(Files(), tmp_path) not in ("", "nfs")
    FileCoordinator(here, "social", env=replace(REAL, files=_Mounts(_ROOT, local, nfs))).close()


def test_an_unknown_outcome_says_why(tmp_path: Path) -> None:
    files = _FailingFiles()
    with FileCoordinator(tmp_path, "social", env=replace(REAL, files=files)) as one:
        files.sync_fails = 1
        with pytest.raises(SwapUnknown, match="Input/output error"):
            one.swap(ABSENT, b"first", 1)
        assert one.read(1)[0] == b"first"
