"""What a process holds and must release: threads, descriptors, sockets."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_DESCRIPTORS = "/dev/fd"  # Linux and macOS


class Leftovers:
    """What is held now; `new` says what came since."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._descriptors = descriptors()

    def new(self, wait_s: float) -> list[str]:
        """What is held now and was not then, in words; what goes within `wait_s` seconds is not counted."""
        gc.collect()  # this releases what nobody can reach any more
        deadline = time.monotonic() + wait_s
        while True:
            found = [f"the thread {thread.name!r}" for thread in threading.enumerate()
                     if thread not in self._threads and thread is not threading.current_thread()]
            found += [f"descriptor {fd}, {what}" for fd, what in sorted(descriptors().items())
                      if self._descriptors.get(fd) != what]
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.005)

    @property
    def some(self) -> bool:
        """Whether anything came since, at a glance: nobody may refer to it any more."""
        return self.threads_came or bool(self.new_descriptors())

    @property
    def threads_came(self) -> bool:
        return not self._threads.issuperset(threading.enumerate())

    def new_descriptors(self) -> dict[int, str]:
        return {fd: what for fd, what in descriptors().items() if self._descriptors.get(fd) != what}


_SCRATCH = "/holdfast-"
"""In the paths of all that the suites make."""


@contextmanager
def nothing_left(wait_s: float = 1.0) -> Iterator[None]:
    """Threads that are started in the block, and descriptors that are opened in it of files that the suites made, must
    be gone soon after its end. Raises `AssertionError`, unless the block raises. Quick if nothing is left."""
    before = Leftovers()
    yield
    if before.threads_came or any(_SCRATCH in what for what in before.new_descriptors().values()):
        left = [what for what in before.new(wait_s) if _SCRATCH in what or not what.startswith("descriptor")]
        assert not left, f"at the end of the check all is closed, and there is still {', '.join(left)}"


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and what each is."""
    found = {}
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ():
        fd = int(name)
        try:
            status = os.fstat(fd)
        except OSError:  # the listing's own
            continue
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            found[fd] = f"{stat.filemode(status.st_mode)} {status.st_dev}:{status.st_ino}"
    return found


def network_sockets(fds: dict[int, str]) -> dict[int, str]:
    """Those of `fds` that are sockets of a network, and the state of each: listening or not, shut or not."""
    found = {}
    for fd in fds:
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) if hasattr(
                    socket, "SO_ACCEPTCONN") else 0
                poll = select.poll()
                poll.register(sock, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
                shut = bool(poll.poll(0)) and bool(listens or sock.type == socket.SOCK_STREAM)
                found[fd] = f"{'listening' if listens else 'not listening'}, {'shut' if shut else 'open'}"
        except OSError:  # closed meanwhile
            continue
    return found


class Memory(NamedTuple):
    """What is in use.

    Attributes:
        objects: blocks of Python's allocator: each small object is one.
        library: bytes that the C library has given out, to large objects and to code in C. 0 if it does not tell.
        process: bytes that the process has of the machine's memory. 0 if the system does not tell.
    """

    objects: int
    library: int
    process: int


def memory_in_use() -> Memory:
    """When nobody refers to it any more, nothing counts. Use it within `collected`."""
    gc.collect()
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    library = 0
    if tell is not None:
        tell.restype = _Allocated
        told = tell()
        library = told.uordblks + told.hblkhd
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        pages = 0
    return Memory(sys.getallocatedblocks(), library, pages * os.sysconf("SC_PAGE_SIZE"))


@contextmanager
def collected() -> Iterator[None]:
    """In the block, the garbage collector looks only at what is made in it, so that it is quick."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Allocated(ctypes.Structure):
    """What glibc tells of its heaps (`struct mallinfo2`)."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]
