"""Readers in other processes: leases on a store's log across process boundaries.

A process that opens a store read-only while another one writes it keeps a file in the store's `readers` directory,
locked with `flock` as long as it reads. The file's name says after which transaction the reader needs the log. The
writer lists these files before it prunes. If a file is not locked, its process has ended, and the writer removes the
file. So a reader that was killed holds back no log.

Creating such a file and pruning both take the directory's lock, briefly. So no log is pruned between a reader's look at
the log and its file, and the writer never takes a file that is not locked yet for a dead reader's.

A reader that runs as another user, root included, gets no lease, because the writer could not remove its file. It may
get `LogPruned`, and opens the store again.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..env import DirectoryLock, Env
from ..errors import StoreLocked

logger = logging.getLogger("holdfast.leases")

DIRECTORY = "readers"
PATIENCE_S = 5.0
"""How long to wait for the directory's lock, seconds. A process that holds it longer than that hangs."""
_NAME = re.compile(r"after-(\d{20})-[0-9a-f]{16}")


@contextmanager
def _alone(directory: Path, owner: str, env: Env) -> Iterator[None]:
    """Hold the directory's lock. Raises `StoreLocked` if it is not free within `PATIENCE_S`."""
    deadline = env.clock.monotonic() + PATIENCE_S
    while True:
        try:
            lock = env.files.lock(directory / "LOCK", owner)
            break
        except StoreLocked:
            if env.clock.monotonic() >= deadline:
                raise
            env.clock.sleep(0.005)
    try:
        yield
    finally:
        lock.release()


class ReaderLease:
    """Keeps the log of the store in `root` after a transaction for this process, until `release`."""

    def __init__(self, root: Path, owner: str, env: Env) -> None:
        """All log that is there now is kept, until `advance` is called. Raises `StoreLocked` if another process held
        the lock of `readers` for longer than `PATIENCE_S`."""
        self._directory = root / DIRECTORY
        self._owner = owner
        self._env = env
        self._file: tuple[Path, DirectoryLock] | None = None
        self._after = 0
        if not env.files.is_ours(root):
            logger.info("%s belongs to another user, so this process gets no lease on its log", root)
            return
        try:
            env.files.make_directory(self._directory)
            self._keep(0)
        except (PermissionError, FileNotFoundError) as error:
            logger.info("this process gets no lease on the log of %s: %s", root, error)
        except OSError as error:  # read-only, or full
            logger.warning("this process gets no lease on the log of %s, which may be pruned while it reads: %s", root,
                           error)

    def advance(self, txid: int) -> None:
        """From now on, only the log after `txid` is needed. If this cannot be recorded, the lease stays as it was."""
        if self._file is None or txid == self._after:
            return
        try:
            self._keep(txid)
            self._after = txid
        except (OSError, StoreLocked) as error:
            logger.warning("%s keeps more log than it needs to: %s", self._directory.parent, error)

    def _keep(self, txid: int) -> None:
        path = self._directory / f"after-{txid:020d}-{self._env.randomness.token(8).hex()}"
        with _alone(self._directory, self._owner, self._env):
            lock = self._env.files.lock(path, self._owner)
        self.release()
        self._file = path, lock

    def release(self) -> None:
        """End the lease. May be called twice."""
        if self._file is not None:
            (path, lock), self._file = self._file, None
            with contextlib.suppress(OSError):
                self._env.files.unlink(path, missing_ok=True)
            lock.release()

    def abandon(self) -> None:
        """In a forked child: drop the descriptor; the lease is the parent's."""
        if self._file is not None:
            self._file[1].abandon()
            self._file = None


class Reader(NamedTuple):
    """A reading process: its file, and the transaction after which it needs the log."""

    path: Path
    after: int


@contextmanager
def readers_in(root: Path, owner: str, env: Env) -> Iterator[list[Reader]]:
    """For the writer: every reading process. No reader is admitted within the block. Raises `StoreLocked` if another
    process held the lock of `readers` for longer than `PATIENCE_S`."""
    directory, files = root / DIRECTORY, env.files
    if not files.is_directory(directory):
        yield []  # a reader that comes now and misses log looks again
        return
    if not files.is_ours(directory):
        logger.warning("%s belongs to another user: readers are not known, and no log is kept for them", directory)
        yield []
        return
    with _alone(directory, owner, env):
        readers = []
        for name in files.list(directory):
            if match := _NAME.fullmatch(name):
                if files.is_locked(directory / name):
                    readers.append(Reader(directory / name, int(match[1])))
                else:
                    files.unlink(directory / name, missing_ok=True)
        yield readers
