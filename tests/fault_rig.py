"""What makes real faults on a real machine: killed processes, injected system call errors, power cuts, small disks.

Most need root, Linux and a tool. Where one cannot be made the test says so by the fault's name and is skipped; with
HOLDFAST_REQUIRE_FAULTS=1 in the environment it fails instead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fault_worker import STRIDE
from store_kinds import KINDS

TESTS = Path(__file__).parent
_SHUTDOWN, _WITHOUT_LOG_FLUSH = 0x8004587D, 2


def require(name: str, why_not: str | None) -> None:
    """Skip, or fail, where the fault `name` cannot be made here, because of `why_not`."""
    if why_not is not None:
        said = f"fault {name!r} cannot be made here: {why_not}"
        if os.environ.get("HOLDFAST_REQUIRE_FAULTS") == "1":
            pytest.fail(said)
        pytest.skip(said)


def _run(*command: str) -> str | None:
    """None where it went well, else what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip() or f"{command[0]} failed")


@cache
def no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed"
    return _run("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync",
                "-e", "inject=fdatasync:error=EIO:when=1", "true")


@cache
def no_mounts() -> str | None:
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "mounting needs root"
    return None if shutil.which("mkfs.ext4") else "mkfs.ext4 is not installed"


@contextmanager
def tmpfs(where: Path, size: int) -> Iterator[Path]:
    """A small file system in memory. Skips or fails where it cannot be made."""
    require("small tmpfs", no_mounts())
    where.mkdir()
    require("small tmpfs", _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)))
    try:
        yield where
    finally:
        assert _run("umount", str(where)) is None


class Ext4:
    """A loop-mounted ext4 whose power can be cut."""

    def __init__(self, base: Path, size: int, name: str) -> None:
        require(name, no_mounts())
        self.image, self.path = base / "disk.img", base / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        require(name, _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image)))
        require(name, _run("mount", "-o", "loop", str(self.image), str(self.path)))

    def cut(self) -> None:
        """From now on nothing reaches the disk; what was not synced is lost with the next mount."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(fd)

    def remount(self) -> None:
        assert _run("umount", str(self.path)) is None
        assert _run("mount", "-o", "loop", str(self.image), str(self.path)) is None

    def close(self) -> None:
        assert _run("umount", str(self.path)) is None


@contextmanager
def ext4(base: Path, size: int, name: str) -> Iterator[Ext4]:
    disk = Ext4(base, size, name)
    try:
        yield disk
    finally:
        disk.close()


@dataclass
class Journal:
    """What workers said: kept outside of the stores they wrote."""

    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    errors: list[tuple[str, int]] = field(default_factory=list)
    shown: set[int] | None = None
    opened: bool = False

    def note(self, line: str) -> None:
        what, *rest = line.split()
        if what == "open":
            self.opened = True
        elif what == "+":
            self.acknowledged.add(int(rest[0]))
        elif what == "!":
            self.errors.append((rest[0], int(rest[1])))
            if rest[0] == "OutcomeUnknown":
                self.unknown.add(int(rest[1]))
        elif what == "=":
            self.shown = {int(n) for n in rest}


class Worker:
    """A running `fault_worker`."""

    def __init__(self, kind: str, directory: Path, first: int, *, threads: int = 3, count: int = STRIDE,
                 under: Sequence[str] = ()) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `end`; a full pipe would stop the worker
        self.process = subprocess.Popen(
            [*under, sys.executable, "-W", "error", str(TESTS / "fault_worker.py"), kind, str(directory), str(first),
             str(threads), str(count)], stdout=subprocess.PIPE, stderr=self._said, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))})

    def listen(self, journal: Journal, *, until: int | None = None) -> None:
        """Note what it says until it is open and so many numbers are acknowledged, or it ends."""
        assert self.process.stdout is not None
        opened = False
        for line in self.process.stdout:
            if line.endswith("\n"):  # else it was killed in the middle of saying so
                journal.note(line)
            opened = opened or line == "open\n"
            if until is not None and opened and len(journal.acknowledged) >= until:
                break

    def end(self, journal: Journal) -> tuple[int, str]:
        """Note the rest and wait for the end: exit code (negative: the signal) and standard error."""
        self.listen(journal)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        with self._said as file:
            file.seek(0)
            return code, file.read()


def strace(*inject: str) -> list[str]:
    """A prefix for a command: injects such as `fdatasync:error=EIO:when=3+`."""
    calls = ",".join(sorted({call for i in inject for call in i.split(":")[0].split(",")}))
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={calls}",
            *(part for i in inject for part in ("-e", f"inject={i}"))]


def assert_recovered(kind_name: str, directory: Path, journal: Journal, *, create: bool = False) -> None:
    """Reopens: every acknowledged number is there; of each thread's numbers a prefix, and at most one more than it was
    told; the engine's check and the log are clean; then it takes another commit."""
    kind = KINDS[kind_name]
    with kind.open(directory, create=create) as store:
        found = {n for n in kind.numbers(store) if n >= 0}
        lost = journal.acknowledged - found
        assert not lost, f"acknowledged and lost: {sorted(lost)[:10]}"
        for first in {n - n % STRIDE for n in found}:
            mine = sorted(n for n in found if n - n % STRIDE == first)
            assert mine == list(range(first, first + len(mine))), "a hole"
        one_more = found - journal.acknowledged
        per_thread: dict[Any, int] = {}
        for n in one_more:
            per_thread[n - n % STRIDE] = per_thread.get(n - n % STRIDE, 0) + 1
        assert all(count == 1 for count in per_thread.values()), "more than one that nobody was told of"
        journal.acknowledged |= found  # they are durable now, and must stay
        store.log.verify()
        with store.transaction() as tx:
            extra = 10**9 + len(found)
            kind.write(tx, extra - extra % STRIDE)
        journal.acknowledged.add(extra - extra % STRIDE)
