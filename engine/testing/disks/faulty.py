"""The real file system, with faults: each operation is counted, and may fail or wait."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Literal

from ...env import Directory, DirectoryLock, File, Files

Kind = Literal["create", "pread", "pwrite", "datasync", "sync", "truncate", "reserve", "make_directory", "rename",
               "exchange", "unlink", "remove_tree", "open_directory", "sync_directory"]
Before = Callable[[str, Path], None]


class FaultyFile(File):
    __slots__ = ("_files",)

    def __init__(self, path: Path, fd: int, files: FaultyFiles) -> None:
        super().__init__(path, fd)
        self._files = files

    def pread(self, length: int, offset: int) -> bytes:
        self._files.about_to("pread", self.path)
        data = super().pread(length, offset)
        self._files.read_bytes += len(data)
        return data

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._files.about_to("pwrite", self.path)
        self._files.unsynced.add(self.path)
        super().pwrite(data, offset)

    def datasync(self) -> None:
        self._files.about_to("datasync", self.path)
        super().datasync()
        self._files.unsynced.discard(self.path)

    def sync(self) -> None:
        self._files.about_to("sync", self.path)
        super().sync()
        self._files.unsynced.discard(self.path)

    def truncate(self, size: int) -> None:
        self._files.about_to("truncate", self.path)
        self._files.unsynced.add(self.path)
        super().truncate(size)

    def reserve(self, size: int) -> None:
        self._files.about_to("reserve", self.path)
        super().reserve(size)


class FaultyDirectory(Directory):
    __slots__ = ("_files", "_held")

    def __init__(self, held: Directory, files: FaultyFiles) -> None:
        super().__init__(held.path, -1)
        self._held = held
        self._files = files

    def sync(self) -> None:
        self._files.about_to("sync_directory", self.path)
        self._held.sync()

    def rename(self, old: str, new: str) -> None:
        self._files.about_to("rename", self.path / new)
        self._held.rename(old, new)

    def is_at_path(self) -> bool:
        return self._held.is_at_path()

    def close(self) -> None:
        self._held.close()


class FaultyFiles(Files):
    """`before` is called with what is about to be done, and to which path; what it raises, the operation raises.

    Attributes:
        counts: how often each kind of operation was begun.
        read_bytes: how many bytes were read.
        unsynced: the files that were written to since they were last synced.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.read_bytes = 0
        self.unsynced: set[Path] = set()
        self.before: Before = lambda kind, path: None

    def about_to(self, kind: str, path: Path) -> None:
        """Count, and call `before`."""
        self.counts[kind] += 1
        self.before(kind, path)

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        if mode == "create":
            self.about_to("create", path)
        return FaultyFile(path, super().open(path, mode).fileno(), self)

    def read(self, path: Path) -> bytes:
        self.about_to("pread", path)
        data = super().read(path)
        self.read_bytes += len(data)
        return data

    def rename(self, old: Path, new: Path) -> None:
        self.about_to("rename", new)
        super().rename(old, new)

    def exchange(self, one: Path, other: Path) -> None:
        self.about_to("exchange", other)
        super().exchange(one, other)

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        self.about_to("unlink", path)
        super().unlink(path, missing_ok=missing_ok)

    def remove_tree(self, path: Path) -> None:
        self.about_to("remove_tree", path)
        super().remove_tree(path)

    def open_directory(self, path: Path) -> Directory:
        self.about_to("open_directory", path)
        return FaultyDirectory(super().open_directory(path), self)

    def lock(self, path: Path, owner: str) -> DirectoryLock:
        self.about_to("lock", path)
        return super().lock(path, owner)

    # --- faults

    def fail(self, *kinds: str, after: int = 0, code: int = errno.EIO,
             only: Callable[[Path], bool] | None = None) -> None:
        """From now on `kinds` fail with `code`, once `after` more of them went well."""
        left = after

        def before(kind: str, path: Path) -> None:
            nonlocal left
            if kind in kinds and (only is None or only(path)):
                if left <= 0:
                    raise OSError(code, os.strerror(code), str(path))
                left -= 1

        self.before = before

    def heal(self) -> None:
        self.before = lambda kind, path: None

    def hold(self, *kinds: str, only: Callable[[Path], bool] | None = None) -> Held:
        """From now on `kinds` wait until the answer's `go` is set."""
        held = Held()

        def before(kind: str, path: Path) -> None:
            if kind in kinds and (only is None or only(path)):
                held.reached.set()
                assert held.go.wait(60), f"{kind} of {path.name} was held up, and nobody released it within 60 s"

        self.before = before
        return held


class ReadOnlyFiles(Files):
    """The real file system, of which a part is mounted read-only: that below `directory`. Permissions would not do, as
    root has them all.

    Attributes:
        refused: what was to be opened and not only read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.refused: list[Path] = []

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        if mode != "read" and self._directory in path.parents:
            self.refused.append(path)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return super().open(path, mode)


class Held:
    """`reached` is set when somebody waits; set `go` to let everybody go."""

    def __init__(self) -> None:
        self.reached = Event()
        self.go = Event()


def is_log(path: Path) -> bool:
    """Whether it is a segment, or a spare."""
    return path.suffix == ".seg"


def is_state(path: Path) -> bool:
    """Whether it is the state file of an engine that has one."""
    return path.name == "state"
