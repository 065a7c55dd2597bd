"""What a library syncs: the system calls of a checkpoint, as strace sees them.

An engine that does its file operations through the environment runs on a simulated disk, which loses what was not
synced. A library cannot. Its process can be killed, but the page cache survives that, so an engine whose library was
told not to sync (SQLite's `synchronous=OFF`) passes every kill, and loses its state with the power. So the calls of one
checkpoint are traced: the file to which it wrote most must have been synced when it returned.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from unittest import SkipTest

from ...env import REAL
from ..support.attended import doing
from ..support.children import NotFoundElsewhere, Server
from ..support.contract import BELOW_ENV, Contract, check, scratch
from ..support.forks import Say
from ..support.growth import Life
from ..support.not_tried import not_tried
from ..support.worker import wait_for_tracer
from ..support.workload import Workload

_WHAT = "whether what a checkpoint writes is synced"
_BYTES, _THINGS = 1 << 20, 200
"""A checkpoint of so many bytes, or things, so that what a library notes beside them is less."""
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_SYNCS = ("fsync", "fdatasync", "syncfs", "sync")
_SYNCHRONOUS = ("O_SYNC", "O_DSYNC", "RWF_SYNC", "RWF_DSYNC")
_CALL = re.compile(r"(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")
_FD = re.compile(r"\d+<([^>]*)>")
_NAME = re.compile(r'"([^"]*)"')
_RESULT = re.compile(r"\) += (-?\d+)")
_TRACER_S = 60


class SyncChecks(Contract):
    """See the module's text."""

    @check(BELOW_ENV)
    def test_what_a_checkpoint_writes_is_synced(self, work: Workload) -> None:
        """When a checkpoint returns, the file to which the engine's library has written most is synced. Otherwise a
        power cut takes back what the engine says is durable, and the log before it may be pruned by then. strace must
        be there to see it."""
        strace = shutil.which("strace")
        if strace is None:
            not_tried(_WHAT, "strace is not installed")
            raise SkipTest("strace is not installed")
        try:
            server = Server(self)
        except NotFoundElsewhere as error:
            not_tried(_WHAT, str(error))
            raise SkipTest(str(error)) from error
        with scratch() as place, server, tempfile.NamedTemporaryFile("r") as out:
            directory = place / "state"
            child = server.start(checkpointed, directory)
            assert next(child.messages()) == ("waiting",), child.how(child.discard())
            synchronous = _synchronous(child.pid)
            doing("wait for strace")
            tracer = subprocess.Popen(
                [strace, "-f", "-y", "-qq", "-s", "0", "-o", out.name,
                 "-e", f"trace={','.join((*_WRITES, *_SYNCS, 'openat', 'rename', 'renameat', 'renameat2'))}",
                 "-p", str(child.pid)], stderr=subprocess.PIPE, text=True)
            with tracer:
                while tracer.poll() is None and not _is_traced(child.pid):
                    REAL.clock.sleep(0.005)
                if tracer.returncode is not None:
                    child.discard()
                    complaint = tracer.communicate()[1].strip()
                    not_tried(_WHAT, f"strace may not trace here: {complaint}")
                    raise SkipTest(complaint)
                said = [message[0] for message in child.messages()]
                code = child.discard()
                tracer.communicate(timeout=_TRACER_S)
            assert code == 0, child.how(code)
            assert "checkpointed" in said, "the process ended without a word before its checkpoint had returned"
            written, synced = _calls(out, directory, synchronous)
        if not written:
            not_tried(_WHAT, "strace saw no write to a file of the state: it is written through a map, or a ring")
            return
        most, count = written.most_common(1)[0]
        assert most in synced, (
            f"a checkpoint wrote {count:,} bytes to {Path(most).name} and returned, and strace saw no fsync or "
            "fdatasync of it: a power cut takes back what the checkpoint says is durable. Tell the library to sync, as "
            "with SQLite's PRAGMA synchronous=FULL")


def checkpointed(work: Workload, say: Say, directory: Path) -> None:
    """In another process: make a checkpoint under a tracer, of a state that has grown since the last one."""
    with closing(Life(work, directory)) as life:
        life.commit(work.numbered(0))
        life.checkpoint()
        sized = work.sized(_BYTES, 1)
        if sized is None:
            for number in range(1, _THINGS):
                life.commit(work.numbered(number))
        else:
            life.commit(sized)
        wait_for_tracer(say)
        life.checkpoint()
        say("checkpointed")


def _is_traced(pid: int) -> bool:
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended, so it was
        return True


def _synchronous(pid: int) -> set[str]:
    """The files that a process has open so that each write is synced at once."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError, ValueError):  # it may be closed meanwhile
            flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & os.O_DSYNC:
                found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def _calls(trace: Iterable[str], directory: Path, synchronous: set[str]) -> tuple[Counter[str], set[str]]:
    """Of the calls up to the message that the checkpoint has returned: how many bytes were written to each file below a
    directory that is there still, and which files were synced after the last write. `synchronous`: files of which each
    write is synced."""
    below = f"{REAL.files.resolve(directory)}/"
    written: Counter[str] = Counter()
    synced: set[str] = set()
    moved: set[str] = set()
    begun: dict[str, tuple[str, str]] = {}
    for line in trace:
        if call := _CALL.match(line):
            thread, name, rest = call.groups()
            if "<unfinished" in rest:
                begun[thread] = name, rest
                if name in _WRITES and (fd := _FD.match(rest)):
                    synced.discard(fd[1])  # a sync that ends meanwhile may have come too early
                continue
        elif resumed := _RESUMED.match(line):
            thread, end = resumed.groups()
            name, rest = begun.pop(thread, ("", ""))
            rest += end
        else:
            continue
        result = _RESULT.search(rest)
        count = int(result[1]) if result else -1
        if name.startswith("rename"):
            moved.update(_NAME.findall(rest)[:1])
        if name == "sync":
            synced.update(written)
        elif name == "openat" and any(flag in rest for flag in _SYNCHRONOUS) and (
                fd := _FD.search(rest, rest.find("="))):
            synchronous.add(fd[1])
        if count < 0 or not (fd := _FD.match(rest)):
            continue
        path = fd[1]
        if path.startswith("pipe:") and name in _WRITES:
            break
        if path.startswith(below) and name in _WRITES:
            written[path] += count
            synced.discard(path)
            if path in synchronous or any(flag in rest for flag in _SYNCHRONOUS):
                synced.add(path)
        elif name == "syncfs":
            synced.update(written)
        elif name in _SYNCS:
            synced.add(path)
    there = Counter({path: count for path, count in written.items() if path in moved or Path(path).exists()})
    return there, synced
