"""A coordinator in a directory, for several processes on one machine.

The directory of a cluster has two files: `document`, replaced whole and durably, and `lock`. A lock by `flock` guards
the reading, comparing and replacing of one swap, and nothing else: it survives SIGSTOP and passes to forked children,
so holding it must not mean being primary. Whoever waits for it gives up after its timeout.

What no timeout bounds is the disk: a call returns when the disk does. Network file systems are refused, because their
locks and renames do not promise what this needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ....engine.env import REAL, DirectoryLock, Env, Files
from ....engine.env.anchored import AnchoredFiles
from ....engine.env.system import system_errors
from ....engine.errors import HoldfastError, StoreLocked, Unsupported
from ....engine.model import document
from ..coordinator import ABSENT, Coordinator, Version, check_data
from ..errors import CoordinatorUnavailable, SwapConflict, SwapUnknown

MAGIC, FORMAT = b"HFCOORDN", 1
"""Of the file `document`. Its body has `number` and `mark`, which make the version, and `data`."""

_MARK_BYTES = 16
_POLL_S = 0.01
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs"})
_NETWORK = frozenset({"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs",
                      "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf",
                      "virtiofs", "vmhgfs"})


class FileCoordinator(Coordinator):
    """The document of one cluster in `directory`/`cluster`. A swap costs two syncs, a read one if the document has
    changed."""

    def __init__(self, directory: Path, cluster: str, *, env: Env = REAL) -> None:
        """Makes the directories if they are missing.

        Raises:
            Unsupported: `directory` is on a network file system.
            HoldfastError: it cannot be made.
        """
        self._directory = env.files.absolute(directory) / cluster
        with system_errors(f"cannot use {self._directory} as a coordinator"):
            kind = file_system(env.files, self._directory)
            if kind in _NETWORK or (kind.startswith("fuse") and kind not in _LOCAL_FUSE):
                raise Unsupported(f"{self._directory} is on a network file system ({kind}), and a coordinator's files "
                                  "need a local one", hint="use a local directory, or etcd for several machines")
            env.files.make_directory(self._directory)
            self._files = AnchoredFiles(env.files, self._directory, hint="put it back, and open the coordinator again")
        self._env = env
        self._document, self._lock_file = self._directory / "document", self._directory / "lock"
        self._durable: Version | None = None
        self._closed = False

    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        self._check(timeout)
        with self._outage():
            data, version = self._load()
            if version != self._durable:  # who wrote it may have been killed before its own sync of the directory
                self._files.sync_directory(self._directory)
                self._durable = version
            return data, version

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        check_data(data)
        self._check(timeout)
        with self._outage():
            lock = self._lock(self._env.clock.monotonic() + timeout)
            try:
                _, found = self._load()
                if found != version:
                    raise SwapConflict(f"the cluster document has version {found.number}, not {version.number}, "
                                       "or was written anew")
                new = Version(found.number + 1, self._env.randomness.token(_MARK_BYTES))
                body = {"number": new.number, "mark": new.mark, "data": data}
                try:
                    document.write(self._files, self._document, MAGIC, FORMAT, body)
                except (OSError, HoldfastError) as error:
                    self._unwritten(found, error)
                self._durable = new
                return new
            finally:
                lock.release()

    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        self._check(timeout)
        clock = self._env.clock
        end = clock.monotonic() + timeout
        while True:
            data, found = self.read(timeout)
            if found != version:
                return data, found
            left = end - clock.monotonic()
            if left <= 0:
                return None
            clock.sleep(min(left, _POLL_S))

    def close(self) -> None:
        self._closed = True
        self._files.let_go()

    def _check(self, timeout: float) -> None:
        if self._closed:
            raise CoordinatorUnavailable("this coordinator was closed", hint="open it again")
        if timeout <= 0:
            raise CoordinatorUnavailable("there was no time left to ask the coordinator")

    def _load(self) -> tuple[bytes | None, Version]:
        try:
            body = document.read(self._files, self._document, MAGIC, FORMAT)
        except FileNotFoundError:
            return None, ABSENT
        data: bytes = body["data"]
        return data, Version(body["number"], body["mark"])

    def _lock(self, end: float) -> DirectoryLock:
        clock = self._env.clock
        while True:
            try:
                return self._files.lock(self._lock_file, f"process {os.getpid()}")
            except StoreLocked as error:
                left = end - clock.monotonic()
                if left <= 0:
                    raise CoordinatorUnavailable(
                        f"{error.message}, and was for the whole time", hint="see what that process does; if it is "
                        "stopped, continue or kill it") from error
                clock.sleep(min(left, _POLL_S / 10))

    def _unwritten(self, before: Version, error: Exception) -> None:
        """Raise what a failed write means. The lock is held, so what is there now is from us or was there before."""
        try:
            _, found = self._load()
        except (OSError, HoldfastError):
            found = None
        if found == before:
            raise error
        raise SwapUnknown(f"writing {self._document} failed at its end, so it may be lost when the power is: "
                          f"{error}") from error

    @contextmanager
    def _outage(self) -> Iterator[None]:
        """Turn whatever goes wrong into `CoordinatorUnavailable`."""
        doing = f"the coordinator's directory {self._directory} cannot be used"
        try:
            with system_errors(doing):
                yield
        except (CoordinatorUnavailable, SwapConflict, SwapUnknown):
            raise
        except HoldfastError as error:
            raise CoordinatorUnavailable(error.message, hint=error.hint) from error
        except OSError as error:
            raise CoordinatorUnavailable(f"{doing}: {error}") from error


def file_system(files: Files, path: Path) -> str:
    """The kind of the file system that `path` is on, or would be on if it were made; empty if that cannot be told."""
    here = os.fsencode(files.resolve(path))
    try:
        lines = files.read(Path("/proc/self/mountinfo")).splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        mount, _, rest = line.partition(b" - ")
        place = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), mount.split()[4])
        if (here == place or here.startswith(place.rstrip(b"/") + b"/")) and len(place) >= best:
            best, kind = len(place), rest.split()[0].decode("ascii", "replace")  # a later mount hides an earlier one
    return kind
