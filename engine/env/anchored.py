"""The files of one directory that is held open: what is created goes into that very directory, or nowhere.

A directory can be renamed, replaced or unmounted under an open store. Its path then leads elsewhere, perhaps into
another store. So the store's directories are held open, and before a name in them is used, `look` compares what their
paths lead to now with what is held. Reads and writes use open files and need no check, so commits cost nothing more.

The directory may still move between the check and the use of a name. So calls that create or rename something check
again afterwards. If that fails, something was created in the wrong place, but nothing is built on it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ..errors import DirectoryMoved
from . import Directory, DirectoryLock, File, Files


class AnchoredFiles(Files):
    """The files of `files`, but paths below `root` work only while `root` is the directory it was when this was made.

    Every method may raise `DirectoryMoved`.
    """

    def __init__(self, files: Files, root: Path, hint: str = DirectoryMoved.hint) -> None:
        """`hint`: what to do if the directory has moved, for the error."""
        self._files = files
        self._hint = hint
        self._within = str(root).rstrip("/") + "/"
        self._held: list[Directory] = []
        self.hold_too(root)

    def hold_too(self, path: Path) -> None:
        """Also hold `path`, the root or a directory below it."""
        self._held.append(self._files.open_directory(path))

    def let_go(self) -> None:
        """Release all directories. May be called twice."""
        while self._held:
            self._held.pop().close()

    def look(self, path: Path) -> None:
        if f"{path}/".startswith(self._within):
            for held in self._held:
                if not held.is_at_path():
                    raise DirectoryMoved(f"{held.path} is no longer the directory that was opened: it was renamed, "
                                         "replaced or unmounted", hint=self._hint)
        self._files.look(path)

    def open_directory(self, path: Path) -> Directory:
        self.look(path)
        directory = self._files.open_directory(path)
        try:
            self.look(path)
        except DirectoryMoved:
            directory.close()
            raise
        return directory

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        self.look(path)
        file = self._files.open(path, mode)
        try:
            self.look(path)
        except DirectoryMoved:
            file.close()
            raise
        return file

    def read(self, path: Path) -> bytes:
        self.look(path)
        return self._files.read(path)

    def write_durably(self, path: Path, data: bytes) -> None:
        self.look(path)
        self._files.write_durably(path, data)
        self.look(path)

    def exists(self, path: Path) -> bool:
        self.look(path)
        return self._files.exists(path)

    def is_ours(self, path: Path) -> bool:
        return self._files.is_ours(path)

    def is_directory(self, path: Path) -> bool:
        self.look(path)
        return self._files.is_directory(path)

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        return self._files.resolve(path)

    def size(self, path: Path) -> int:
        self.look(path)
        return self._files.size(path)

    def modified_us(self, path: Path) -> int:
        self.look(path)
        return self._files.modified_us(path)

    def list(self, path: Path) -> list[str]:
        self.look(path)
        return self._files.list(path)

    def make_directory(self, path: Path) -> None:
        self.look(path)
        self._files.make_directory(path)

    def make_private_directory(self, path: Path) -> None:
        self.look(path)
        self._files.make_private_directory(path)

    def make_scratch_directory(self) -> Path:
        return self._files.make_scratch_directory()

    def remove_directory(self, path: Path) -> None:
        self.look(path)
        self._files.remove_directory(path)

    def rename(self, old: Path, new: Path) -> None:
        self.look(new)
        self._files.rename(old, new)
        self.look(new)

    def can_be_swapped(self, path: Path) -> bool:
        return self._files.can_be_swapped(path)

    def exchange(self, one: Path, other: Path) -> None:
        self.look(one)
        self._files.exchange(one, other)

    def link(self, old: Path, new: Path) -> None:
        self.look(new)
        self._files.link(old, new)

    def symlink(self, old: Path, new: Path) -> None:
        self.look(new)
        self._files.symlink(old, new)

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        self.look(path)
        self._files.unlink(path, missing_ok=missing_ok)

    def remove_tree(self, path: Path) -> None:
        self.look(path)
        for held in [h for h in self._held if h.path == path or path in h.path.parents]:
            self._held.remove(held)  # it is removed on purpose
            held.close()
        self._files.remove_tree(path)

    def sync_directory(self, path: Path) -> None:
        self.look(path)
        self._files.sync_directory(path)

    def free(self, path: Path) -> int:
        return self._files.free(path)

    def capacity(self, path: Path) -> int:
        return self._files.capacity(path)

    def lock(self, path: Path, owner: str) -> DirectoryLock:
        self.look(path)
        return self._files.lock(path, owner)

    def write_held(self, path: Path, data: bytes) -> DirectoryLock:
        self.look(path)
        return self._files.write_held(path, data)

    def is_locked(self, path: Path) -> bool:
        self.look(path)
        return self._files.is_locked(path)

    def lock_shared(self, path: Path) -> DirectoryLock | None:
        self.look(path)
        return self._files.lock_shared(path)
