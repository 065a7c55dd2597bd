"""The limits: how fast this machine and interpreter run a loop that only writes.

In `PlainLoop`, one thread writes a record and syncs it, into a file that was filled with zeros, so that a sync touches
no metadata. No log with one sync per commit can be faster. In the group loops, many threads share one sync: the leanest
group commit that plain Python allows, with one list, one lock per waiter, no checksums and no state. All loops write as
many bytes as a commit of the store puts into its log.

Group commit has two classic forms: one of the waiters syncs for all and then hands over (`LeaderLoop`), or a thread
does nothing but sync (`SyncerLoop`). Which is faster depends on the interpreter and the disk. So both are measured, and
the faster one in a run is the limit of that run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections import deque
from pathlib import Path
from time import perf_counter
from typing import Protocol

sync = os.fdatasync if hasattr(os, "fdatasync") else os.fsync

FILE_BYTES = 16 << 20


class ZeroedFile:
    """A file of `FILE_BYTES`, written with zeros and synced, then written round and round."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        block = bytes(1 << 20)
        for offset in range(0, FILE_BYTES, len(block)):
            os.pwrite(self.fd, block, offset)
        os.fsync(self.fd)
        self._offset = 0

    def append(self, data: bytes) -> None:
        """Write `data` after what was written last, and sync it."""
        if self._offset + len(data) > FILE_BYTES:
            self._offset = 0
        os.pwrite(self.fd, data, self._offset)
        sync(self.fd)
        self._offset += len(data)

    def close(self) -> None:
        os.close(self.fd)


class Waiter:
    """What one thread waits on: a lock that is released when the thread's record is on stable storage."""

    __slots__ = ("leads", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.leads = False


class CommitLoop(Protocol):
    """What the limits have in common."""

    def commit(self, waiter: Waiter) -> None:
        """Return when one record is on stable storage."""

    def close(self) -> None: ...


class PlainLoop:
    """One thread: write, sync, again."""

    def __init__(self, path: Path, record_bytes: int) -> None:
        self._file = ZeroedFile(path)
        self._record = os.urandom(record_bytes)

    def commit(self, waiter: Waiter) -> None:
        self._file.append(self._record)

    def close(self) -> None:
        self._file.close()


class LeaderLoop:
    """The first thread syncs for all that wait by then. Of those that came too late, it wakes one, which leads next."""

    def __init__(self, path: Path, record_bytes: int) -> None:
        self._file = ZeroedFile(path)
        self._record = os.urandom(record_bytes)
        self._mutex = threading.Lock()
        self._waiting: list[tuple[bytes, Waiter]] = []
        self._busy = False

    def commit(self, waiter: Waiter) -> None:
        with self._mutex:
            self._waiting.append((self._record, waiter))
            leads, self._busy = not self._busy, True
        if not leads:
            waiter.lock.acquire()
            if not waiter.leads:
                return
            waiter.leads = False
        with self._mutex:
            group, self._waiting = self._waiting, []
        self._file.append(b"".join([record for record, _ in group]))
        with self._mutex:
            after = self._waiting[0][1] if self._waiting else None
            self._busy = after is not None
        if after is not None:
            after.leads = True
            after.lock.release()
        for _, follower in group:
            if follower is not waiter:
                follower.lock.release()

    def close(self) -> None:
        self._file.close()


class SyncerLoop:
    """A thread that does nothing but sync what waits. Deque operations are atomic under the interpreter lock, so a
    committing thread takes no lock but its own."""

    def __init__(self, path: Path, record_bytes: int) -> None:
        self._file = ZeroedFile(path)
        self._record = os.urandom(record_bytes)
        self._waiting: deque[tuple[bytes, Waiter]] = deque()
        self._idle = False
        self._closed = False
        self._work = threading.Lock()
        self._work.acquire()
        self._thread = threading.Thread(target=self._run, name="bare-syncer", daemon=True)
        self._thread.start()

    def submit(self, waiter: Waiter) -> None:
        """Hand a record over; `waiter`'s lock is released when it is on stable storage."""
        self._waiting.append((self._record, waiter))
        if self._idle:
            self._wake()

    def commit(self, waiter: Waiter) -> None:
        self.submit(waiter)
        waiter.lock.acquire()

    def _wake(self) -> None:
        self._idle = False
        with contextlib.suppress(RuntimeError):  # another thread has released it already
            self._work.release()

    def _run(self) -> None:
        waiting, take = self._waiting, self._waiting.popleft
        while True:
            count = len(waiting)
            if not count:
                if self._closed:
                    return
                # Set the idle flag, then look again: a thread that appends after this look sees the flag and wakes us.
                self._idle = True
                if not waiting and not self._closed:
                    self._work.acquire()
                self._idle = False
                continue
            group = [take() for _ in range(count)]
            self._file.append(b"".join([record for record, _ in group]))
            for _, waiter in group:
                waiter.lock.release()

    def close(self) -> None:
        self._closed = True
        self._wake()
        self._thread.join()
        self._file.close()


def pipelined(loop: SyncerLoop, seconds: float, in_flight: int) -> float:
    """Commits per second of one thread that waits for a record only when `in_flight` others came after it."""
    waiters: deque[Waiter] = deque()
    spare = [Waiter() for _ in range(in_flight)]
    count = 0
    began = perf_counter()
    end = began + seconds
    while perf_counter() < end:
        if spare:
            waiter = spare.pop()
        else:
            waiter = waiters.popleft()
            waiter.lock.acquire()
        loop.submit(waiter)
        waiters.append(waiter)
        count += 1
    for waiter in waiters:
        waiter.lock.acquire()
    return count / (perf_counter() - began)


def copy_and_sync(source: Path, target: Path) -> float:
    """Seconds that `cp -r` takes from one directory to a new one, plus an fsync of all that it made."""
    began = perf_counter()
    subprocess.run(["cp", "-r", "--", str(source), str(target)], check=True)
    for directory, _, files in os.walk(target, topdown=False):
        for name in (*files, "."):
            fd = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    return perf_counter() - began
