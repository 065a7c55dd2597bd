"""Objects as files of a directory.

An object is written to a temporary file, synced, and linked to its name. A link never replaces anything, so of several
who put one name, one succeeds. Then the directory is synced, since only this makes the name durable. Between link and
sync the process may die. So whoever finds a name that somebody else linked syncs the directory too, before it is
believed.

Temporary files are in `.tmp`, a name that no object has. What killed processes left there is removed a day later. If
one was in use after all, its put fails and can be repeated.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ....engine.env import REAL, Env, Files, is_disk_full
from ....engine.env.anchored import AnchoredFiles
from ....engine.env.system import system_errors
from ....engine.errors import HoldfastError, InvalidInput
from ..errors import ObjectExists, ObjectMissing, StorageUnavailable, StorageUnsuitable
from .interface import ObjectStore, StoredObject, check_name, check_object, check_prefix, check_range, too_short

TEMPORARY = ".tmp"
"""Folder of the files that have no name yet."""

LEFTOVER_US = 24 * 3600 * 1_000_000
"""Age from which on a temporary file is taken for one that a killed process left, microseconds."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})
_NO_SYNCS = frozenset({errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP})
"""Of a directory that nobody writes to, such as a disc's."""
_NO_OBJECT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_TICK_US = 2_000_000
"""Longer than the step of any file system's time stamps. FAT's is two seconds, and it has no links."""
_FOLDERS_MADE_AGAIN = 3
_PART = 1 << 20


class LocalObjectStore(ObjectStore):
    """Objects below `directory`, which the first put makes (mode 0700).

    A put costs two syncs, and more in a new folder. A get costs a sync if its folder changed since the last one. The
    directory is held open: if its path leads elsewhere later, because it was renamed or unmounted, calls raise
    `DirectoryMoved`.
    """

    def __init__(self, directory: str | Path, *, env: Env = REAL) -> None:
        """Raises `InvalidInput` if `directory` is not a path."""
        self._root = env.files.absolute(directory)
        self.url = self._root.as_uri()
        self._env = env
        self._lock = env.scheduler.lock()
        self._anchored: AnchoredFiles | None = None
        self._tidied = False
        self._folders: set[Path] = set()
        """Those that are known to be durable."""
        self._changed_us: dict[Path, int] = {}
        """When a folder had changed, as of a sync of it that came later."""

    def put(self, name: str, data: bytes) -> None:
        check_object(name, data)
        with self._told(f"cannot put {self.url}/{name}"):
            for _ in range(_FOLDERS_MADE_AGAIN):
                try:
                    self._put(name, data)
                    return
                except FileNotFoundError as error:  # a folder was empty, and somebody removed it
                    self._folders.clear()
                    last = error
                except (NotADirectoryError, FileExistsError) as error:
                    raise InvalidInput(f"{self.url}/{name} is below another object", hint="use another name") from error
            raise last

    def _put(self, name: str, data: bytes) -> None:
        path, temporary = self._root / name, self._root / TEMPORARY / self._env.randomness.token(16).hex()
        files = self._made(temporary.parent)
        self._made(path.parent)
        if files.exists(path):
            self._refuse(files, path)
        try:
            self._write(files, temporary, data)
            self._link(files, temporary, path)
        finally:
            with contextlib.suppress(OSError, HoldfastError):  # if it stays, it is a leftover
                files.unlink(temporary, missing_ok=True)
        self._sync_name(files, path)

    def _write(self, files: Files, path: Path, data: bytes) -> None:
        file = files.open(path, "create")
        try:
            # A sync of a whole pack would hold up every other one on this disk, such as those of commits.
            for at in range(0, max(1, len(data)), _PART):
                if at:
                    file.datasync()
                file.pwrite(data[at : at + _PART], at)
            file.sync()
        finally:
            file.close()

    def _link(self, files: Files, temporary: Path, path: Path) -> None:
        try:
            files.link(temporary, path)
        except FileExistsError:
            self._refuse(files, path)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise StorageUnsuitable(f"{self._root} is on a file system that makes no hard links: {error.strerror}",
                                        hint="use another file system, or a bucket") from error
            if error.errno == errno.EACCES or is_disk_full(error):
                raise
            raise StorageUnavailable(f"whether {path} was created is not known: {error.strerror}") from error

    def _refuse(self, files: Files, path: Path) -> None:
        """Say that the name is taken, once it is durable."""
        if files.is_directory(path):
            raise InvalidInput(f"{path} is the folder of other objects", hint="use another name")
        self._sync_name(files, path)
        raise ObjectExists(f"{path} is there already")

    def _sync_name(self, files: Files, path: Path) -> None:
        try:
            files.sync_directory(path.parent)
        except (OSError, HoldfastError) as error:
            raise StorageUnavailable(f"{path} was created, but it may be lost when the power is: {error}") from error

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(name, offset, length)
        path = self._root / name
        with self._told(f"cannot get {self.url}/{name}"):
            files = self._files()
            try:
                file = files.open(path)
                try:
                    size = file.size()
                    end = size if length is None else offset + length
                    data = file.pread(max(0, min(end, size) - offset), offset)
                finally:
                    file.close()
            except _NO_OBJECT as error:
                raise ObjectMissing(f"{self.url}/{name} is not there") from error
            if max(offset, end) > size:
                raise too_short(self.url, name, size, offset, length)
            self._believe(files, path.parent)
            return data

    def _believe(self, files: Files, folder: Path) -> None:
        """Make the names that were found in a folder durable, unless no name came since the last time."""
        now_us = self._env.clock.now_us()
        changed_us = files.modified_us(folder)
        if self._changed_us.get(folder) != changed_us:
            try:
                files.sync_directory(folder)
            except OSError as error:
                if error.errno not in _NO_SYNCS:
                    raise
            if now_us - changed_us > _TICK_US:  # else another change may get the same time stamp
                self._changed_us[folder] = changed_us

    def list(self, prefix: str) -> Iterator[StoredObject]:
        check_prefix(prefix)
        return self._listed(prefix)

    def _listed(self, prefix: str) -> Iterator[StoredObject]:
        with self._told(f"cannot list {self.url}/{prefix}"):
            yield from self._below(self._files(), prefix.rpartition("/")[0], prefix)

    def _below(self, files: Files, folder: str, prefix: str) -> Iterator[StoredObject]:
        try:
            names = [f"{folder}/{part}" if folder else part for part in files.list(self._root / folder)]
        except _NO_OBJECT:
            return
        self._believe(files, self._root / folder)
        # With its `/`, a folder stands where the objects in it do.
        for name in sorted(f"{name}/" if files.is_directory(self._root / name) else name for name in names):
            if not (name.startswith(prefix) or prefix.startswith(name)) or not _is_name(name.removesuffix("/")):
                continue
            if name.endswith("/"):
                yield from self._below(files, name.removesuffix("/"), prefix)
            else:
                path = self._root / name
                with contextlib.suppress(FileNotFoundError):
                    found = StoredObject(name, files.size(path), files.modified_us(path))
                    yield found

    def delete(self, name: str) -> None:
        check_name(name)
        path = self._root / name
        with self._told(f"cannot delete {self.url}/{name}"):
            files = self._files()
            with contextlib.suppress(*_NO_OBJECT):
                files.unlink(path, missing_ok=True)
            with contextlib.suppress(OSError):  # an empty folder goes, too; most are not empty
                while (path := path.parent) != self._root:
                    files.remove_directory(path)

    def replaceable(self, name: str, data: bytes) -> bool:
        """Whoever may make files in a directory may also replace those in it, except on a file system that forbids it.
        """
        check_object(name, data)
        path, temporary = self._root / name, self._root / TEMPORARY / self._env.randomness.token(16).hex()
        with self._told(f"cannot replace {self.url}/{name}"):
            files = self._made(temporary.parent)
            self._write(files, temporary, data)
            try:
                files.rename(temporary, path)
            except PermissionError:
                files.unlink(temporary)
                return False
            return True

    def room(self) -> int | None:
        with self._told(f"cannot look at {self.url}"):
            place = self._root
            while not self._env.files.exists(place):
                place = place.parent
            return self._env.files.free(place)

    def close(self) -> None:
        if self._anchored is not None:
            self._anchored.let_go()

    def _files(self) -> Files:
        """The files of the directory, which is held open from now on, if it is there."""
        with self._lock:
            if self._anchored is None:
                try:
                    self._anchored = AnchoredFiles(self._env.files, self._root,
                                                   hint="put it back, and open the storage again")
                except FileNotFoundError:
                    return self._env.files
            return self._anchored

    def _made(self, folder: Path) -> Files:
        """Make a folder, durably. The first time, remove leftovers."""
        files = self._files()
        if folder not in self._folders:
            files.make_directory(folder)
            self._folders.add(folder)
            files = self._files()
        if not self._tidied and folder.name == TEMPORARY:
            self._tidied = True
            for leftover in (folder / name for name in files.list(folder)):
                with contextlib.suppress(FileNotFoundError):
                    if self._env.clock.now_us() - files.modified_us(leftover) > LEFTOVER_US:
                        files.unlink(leftover)
        return files

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            with system_errors(doing):
                yield
        except HoldfastError:
            raise
        except OSError as error:
            raise StorageUnavailable(f"{doing}: {error}", hint="see what is at this path") from error


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidInput:
        return False
    return True
