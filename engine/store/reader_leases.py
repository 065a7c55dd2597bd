"""Readers in other processes: leases on a store's log across process borders.

A process that opens a store read-only while another one writes it keeps a file in the store's `readers` directory,
locked with `flock` for as long as it reads. The file's name says after which transaction it needs the log. The writer
asks for all of them before it prunes. A file that nobody holds locked is of a process that has ended or died, and
is removed; so a reader that is killed holds nothing.

Naming a file and pruning exclude one another by the directory's own lock, so that no log goes between a reader's look
and its file, and no file is taken for a dead one's before it is locked. That lock is held for moments only.

Another user's reader has no lease, root's neither, since the writer could not look after its file: it may be told
`LogPruned`, and opens again.
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
"""How long to wait for the directory's lock. Who holds it longer than that hangs."""
_NAME = re.compile(r"after-(\d{20})-[0-9a-f]{16}")


@contextmanager
def _alone(directory: Path, owner: str, env: Env) -> Iterator[None]:
    """Hold the directory's lock. Raises `StoreLocked` where it is not to be had in time."""
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
    """The log of the store in `root` after a transaction, kept for this process until `release`."""

    def __init__(self, root: Path, owner: str, env: Env) -> None:
        """All of the log that is there now is kept, until `advance` says that less will do.

        Raises:
            StoreLocked: somebody keeps all readers out for seconds.
        """
        self._directory = root / DIRECTORY
        self._owner = owner
        self._env = env
        self._file: tuple[Path, DirectoryLock] | None = None
        self._after = 0
        if not env.files.is_ours(root):
            logger.info("%s is another user's, and gives no leases to this process", root)
            return
        try:
            env.files.make_directory(self._directory)
            self._keep(0)
        except (PermissionError, FileNotFoundError) as error:
            logger.info("%s gives no leases to this process: %s", root, error)
        except OSError as error:  # read-only, or full
            logger.warning("%s gives no leases to this process, so that its log may go: %s", root, error)

    def advance(self, txid: int) -> None:
        """From now on, only the log after `txid` is needed. Where that cannot be said, what was kept is kept."""
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
        """Nothing is needed any more."""
        if self._file is not None:
            (path, lock), self._file = self._file, None
            with contextlib.suppress(OSError):
                self._env.files.unlink(path, missing_ok=True)
            lock.release()

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        if self._file is not None:
            self._file[1].abandon()
            self._file = None


class Reader(NamedTuple):
    """A process that reads: the file it keeps, and the transaction after which it needs the log."""

    path: Path
    after: int


@contextmanager
def readers_in(root: Path, owner: str, env: Env) -> Iterator[list[Reader]]:
    """For the writer: every process that reads. No other comes in before the block ends.

    Raises:
        StoreLocked: one that comes in right now hangs.
    """
    directory, files = root / DIRECTORY, env.files
    if not files.is_directory(directory):
        yield []  # who comes now and finds log gone has looked too early, and looks again
        return
    if not files.is_ours(directory):
        logger.warning("%s is another user's: who reads is not known, and nothing is kept for them", directory)
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
