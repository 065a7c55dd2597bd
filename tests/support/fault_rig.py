"""What makes real faults on a real machine: system calls that fail, are cut short or end the process; power cuts; full
disks. (Processes killed at random are part of the contract suite: `holdfast.engine.testing.engine.process_kills`.)

Most need root, Linux and a tool. Where one cannot be made the test says so by the fault's name and is skipped; with
HOLDFAST_REQUIRE_FAULTS=1 in the environment it fails instead. See docs/faults.md.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from workloads import WORKLOADS

from holdfast.engine.testing import Contract, Operation
from holdfast.engine.testing.engine.process_kills import Kills, told
from holdfast.engine.testing.support.children import Child, Journal, Server, ended
from holdfast.engine.testing.support.contract import scratch
from holdfast.engine.testing.support.worker import QUIET, drive

_SHUTDOWN = 0x8004587D
_LOG_FLUSHED, _LOG_NOT_FLUSHED = 1, 2
_WRITE_BACK_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
_PAGE = 4096


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


def served(engine: str, **how: Any) -> Server:
    """A server for one of the kit's workloads."""
    contract = type(engine, (Contract,), {"workload": staticmethod(WORKLOADS[engine])})
    return Server(contract(), **how)


def goes_on(server: Server, directory: Path, journal: Journal, script: Sequence[list[Operation]]) -> None:
    """The store opens as one of the states that the journal allows, and goes on."""
    child = server.start(drive, journal.plan(directory, script, 3))
    code = child.end(journal)
    assert code == 0, child.how(code)


# --- system calls ----------------------------------------------------------------------------------------------------

SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range")
WRITES = ("pwrite64", "pwritev", "write", "writev")
OTHERS = ("ftruncate", "fallocate", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "openat")
_CALL = re.compile(r"^(\d+)\s+(\w+)\((.*)", re.S)
_RESULT = re.compile(r"\) = (-?\d+)")
TRANSACTIONS = 12


@cache
def no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "0.3"]) as somebody:
        return _run(*_strace("/dev/null", "trace=fsync", "inject=fsync:error=EIO:when=1"), "-p", str(somebody.pid))


def _strace(out: str, *expressions: str) -> list[str]:
    return ["strace", "-f", "-y", "-qq", "-s", "0", "-o", out, *(part for e in expressions for part in ("-e", e))]


@dataclass(frozen=True)
class Call:
    """A system call of a run that is always the same.

    Attributes:
        name: the call's.
        nth: which of its thread's calls of that name, from 1.
        path: what it was about, below the store's directory.
        result: what it returned, or -1.
    """

    name: str
    nth: int
    path: str
    result: int


@dataclass
class Traced:
    """Runs of one engine under strace, each like the one before it: creating a store, or recovering one whose process
    was killed. All that the child does is done in one thread, so the n-th call of a name is the same one in most runs.

    Attributes:
        server: forks the children.
        script: what they write.
        base: where their stores stand.
        killed: recovering.
    """

    server: Server
    script: Sequence[list[Operation]]
    base: Path
    killed: bool

    def __post_init__(self) -> None:
        self._made = 0
        self._seed, self._journal = self.base / f"seed {self.killed}", Journal()
        if self.killed:
            journal = self._journal
            child = self.server.start(drive, self._plan(self._seed, journal, count=30))
            for message in child.messages():
                journal.note(message)
                if journal.acknowledged == 23:
                    break
            child.kill()
            child.end(journal)

    def __str__(self) -> str:
        return "recovering" if self.killed else "creating"

    def _plan(self, directory: Path, journal: Journal, *, count: int = TRANSACTIONS, faults: bool = False) -> Any:
        return journal.plan(directory, self.script, count, threads=None, settings=QUIET, faults=faults)

    def _begun(self) -> tuple[Path, Journal]:
        self._made += 1
        directory = self.base / f"store {self.killed} {self._made}"
        if not self.killed:
            return directory, Journal()
        shutil.copytree(self._seed, directory)
        return directory, Journal(list(self._journal.states or ()), next_number=self._journal.next_number)

    def calls(self) -> list[Call]:
        """Those that touch the store's directory, in a run without faults."""
        directory, journal = self._begun()
        code, calls, _ = self._under(directory, journal, f"trace={','.join(SYNCS + WRITES + OTHERS)}")
        assert (code, journal.acknowledged) == (0, TRANSACTIONS)
        shutil.rmtree(directory)
        return calls

    def run(self, call: Call, fault: str) -> tuple[Call | None, Journal]:
        """A run in which one call meets a fault (as strace says it), then one without. Which call has met it, if any
        (threads beside the first do not always do the same), and what was said."""
        directory, journal = self._begun()
        with told(f"{call}: {fault}, {self}"):
            code, _, met = self._under(directory, journal, f"trace={call.name}",
                                       f"inject={call.name}:{fault}:when={call.nth}")
            if "SIGKILL" in fault and code == -signal.SIGKILL:
                met = call  # or its like in another thread: of a process that is gone, strace cannot say
            else:
                assert code == 0, ended("the process", code)
            goes_on(self.server, directory, journal, self.script)
        shutil.rmtree(directory)
        return met, journal

    def _under(self, directory: Path, journal: Journal, *expressions: str) -> tuple[int, list[Call], Call | None]:
        """How a child ends under strace, its calls that touched the directory, and the first that was tampered with."""
        with tempfile.NamedTemporaryFile("r") as out:
            child = self.server.start(drive, self._plan(directory, journal, faults=True))
            assert next(child.messages()) == ("waiting",)
            with subprocess.Popen([*_strace(out.name, *expressions), "-p", str(child.pid)], stderr=subprocess.PIPE,
                                  text=True) as tracer:
                code = child.end(journal)
                said = tracer.communicate(timeout=60)[1].splitlines()
            # Where threads die in the middle of calls, strace may lose its step, take entries for exits, and say so at
            # each. Its record is then of no use; how the child ended, and what it left, is what it is.
            stumbled = [line for line in said if "ptrace_syscall_info.op ==" in line]
            assert said == stumbled, f"strace: {said}"
            counted: Counter[tuple[str, str]] = Counter()
            calls: list[Call] = []
            begun: dict[str, Call] = {}
            met = None
            for line in out:
                thread = line.split(" ", 1)[0]
                if call := _CALL.match(line):
                    thread, name, rest = call.groups()
                    counted[thread, name] += 1
                    begun.pop(thread, None)
                    if (at := rest.find(f"{directory}/")) >= 0 and ("O_CREAT" in rest or name != "openat"):
                        path = re.split('[">]', rest[at + len(str(directory)) + 1 :])[0]
                        result = _RESULT.search(rest)
                        begun[thread] = Call(name, counted[thread, name], path, int(result[1]) if result else -1)
                        calls.append(begun[thread])
                if "(INJECTED)" in line and met is None:
                    met = begun.get(thread)
            return code, calls, None if stumbled else met


# --- power cuts ------------------------------------------------------------------------------------------------------


@cache
def no_mounts() -> str | None:
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "mounting needs root"
    return None if shutil.which("mkfs.ext4") else "mkfs.ext4 is not installed"


@cache
def no_eatmydata() -> str | None:
    return None if lying_sync() else "libeatmydata is not installed"


@cache
def lying_sync() -> str | None:
    """The library under which syncs do nothing, if it is there."""
    found = sorted(Path("/usr/lib").glob("**/libeatmydata.so*"))
    return str(found[0]) if found else None


class Ext4:
    """A loop-mounted ext4 whose power can be cut. What it has written lies in `image`."""

    def __init__(self, base: Path, image: Path, size: int, name: str) -> None:
        require(name, no_mounts())
        self.image, self.path = image, base / "disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        require(name, _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image)))
        require(name, _run("mount", "-o", "loop", str(self.image), str(self.path)))

    def write_back(self, drawn: random.Random) -> None:
        """Some pages reach the disk by themselves, as they may at any time, and others do not."""
        libc = ctypes.CDLL(None, use_errno=True)
        for path in sorted(self.path.rglob("*")):
            with suppress(OSError):  # it may be gone, or be no file
                if path.is_file() and drawn.random() < 0.5:
                    fd = os.open(path, os.O_RDONLY)
                    try:
                        pages = max(1, os.fstat(fd).st_size // _PAGE)
                        for _ in range(drawn.choice((1, 3, 10))):
                            at = drawn.randrange(pages) * _PAGE
                            libc.sync_file_range(fd, ctypes.c_int64(at), ctypes.c_int64(drawn.choice((1, 8)) * _PAGE),
                                                 _WRITE_BACK_AND_WAIT)
                    finally:
                        os.close(fd)

    def cut(self, *, names_kept: bool = False) -> None:
        """From now on nothing reaches the disk; what did not before is lost with the next mount. With `names_kept` the
        file system's own log does at the last moment: names and sizes, not what the files hold."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _LOG_FLUSHED if names_kept else _LOG_NOT_FLUSHED))
        finally:
            os.close(fd)

    def remount(self) -> None:
        assert _run("umount", str(self.path)) is None
        assert _run("mount", "-o", "loop", str(self.image), str(self.path)) is None

    def close(self) -> None:
        assert _run("umount", str(self.path)) is None


@contextmanager
def ext4(base: Path, size: int, name: str) -> Iterator[Ext4]:
    """Its image is in memory where there is room: what a sync has written is there after a cut, wherever it lies, and a
    real disk would only be waited for."""
    with scratch() as memory:
        disk = Ext4(base, memory / "disk.img", size, name)
        try:
            yield disk
        finally:
            disk.close()


def last_words(child: Child, journal: Journal) -> int:
    """End a child whose disk is gone, and note what it said until then; how it ended, as `Child.end` says it. A read
    that failed may have ended it before: what it could no longer do is not the store's fault."""
    child.kill()
    for message in child.messages():
        if message[0] != "broken":
            journal.note(message)
    return child.discard()


class PowerCuts(Kills):
    """Rounds in which the power is cut under a child. Its process goes on for a moment, and may notice.

    Attributes:
        cuts: how many.
    """

    def __init__(self, server: Server, script: list[list[Operation]], drawn: random.Random, disk: Ext4) -> None:
        super().__init__(server, script, drawn)
        self.disk = disk
        self.cuts = 0

    def strike(self, child: Child, journal: Journal) -> int:
        if self.drawn.random() < 0.5:
            self.disk.write_back(self.drawn)
        self.disk.cut(names_kept=self.drawn.random() < 0.4)
        self.cuts += 1
        time.sleep(self.drawn.choice((0, 0, 0.005)))
        code = last_words(child, journal)
        self.disk.remount()
        return code if code < 0 else 0


# --- full disks ------------------------------------------------------------------------------------------------------


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
