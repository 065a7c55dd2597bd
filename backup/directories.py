"""The directories of stores and targets: how they are locked, held open and made, and how generations are switched.

An unfinished generation is called `gen-N.partial`. It gets its final name only when it is whole, durable and, if asked
for, checked. After that, `CURRENT` is switched to it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ..engine.env import Clock, Env, Files
from ..engine.env.anchored import AnchoredFiles
from ..engine.errors import LocksUnsupported, SettingError, StoreLocked, TargetInvalid
from ..engine.store.layout import Generation, Layout

logger = logging.getLogger("holdfast.backup")

T = TypeVar("T")

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a lock: until `deadline` (monotonic seconds). If `clock` is None, not at all."""

    clock: Clock | None = None
    deadline: float = 0.0

    def take(self, lock: Callable[[], T]) -> T:
        """Call `lock` until it succeeds, and return its result. Raises the `StoreLocked` of the last attempt."""
        while True:
            try:
                return lock()
            except StoreLocked as error:
                if self.clock is None:
                    raise
                left = self.deadline - self.clock.monotonic()
                if left <= 0:
                    raise StoreLocked(error.message, hint="close the other user first, or wait longer") from None
                self.clock.sleep(min(_LOOK_S, left))


def waited(seconds: float, env: Env) -> Patience:
    """`Patience` for so many seconds from now. Raises `SettingError`."""
    if type(seconds) not in (int, float) or not 0 <= seconds < float("inf"):
        raise SettingError(f"wait is a number of seconds, 0 or more, not {seconds!r}")
    return Patience(env.clock, env.clock.monotonic() + seconds) if seconds else Patience()


@contextmanager
def locked(layout: Layout, what: str, patience: Patience | None = None, *, new: bool = False) -> Iterator[None]:
    """Hold the lock for writing a directory during the block. If its file system has no locks, a `new` one is written
    without, with a warning. `what`: names the holder in errors of others.

    Raises:
        StoreLocked, LocksUnsupported.
    """
    try:
        lock = (patience or Patience()).take(
            lambda: layout.files.lock(layout.lock_path, f"{what} (process {os.getpid()})"))
    except LocksUnsupported as error:
        if not new:
            raise
        logger.warning("%s is written to without a lock: %s", layout.root, error.message)
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_for_reading(layout: Layout, patience: Patience | None = None) -> Iterator[None]:
    """Keep backup runs away from a target while the block reads it. Raises `StoreLocked`."""
    lock = (patience or Patience()).take(lambda: layout.files.lock_shared(layout.lock_path))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def held(layout: Layout, env: Env) -> Iterator[tuple[Layout, Env]]:
    """Hold a directory open for the block. If it is moved, each later use of a path in it raises `DirectoryMoved`. So a
    run neither writes to another directory that took its place, nor reports missing files there as damage. A directory
    that does not exist is not held."""
    if not layout.files.is_directory(layout.root):
        yield layout, env
        return
    anchored = AnchoredFiles(env.files, layout.root, "run it again, with the path that it has now")
    try:
        yield Layout(layout.root, anchored), replace(env, files=anchored)
    finally:
        anchored.let_go()


def make_root(layout: Layout) -> None:
    """Make the directory of a store or target. Raises `TargetInvalid` if something is in the way."""
    try:
        layout.files.make_directory(layout.root)
    except (FileExistsError, NotADirectoryError) as error:
        raise TargetInvalid(f"{layout.root} cannot be made: a file, or a link that leads in a circle, is in its way",
                            hint="choose another directory") from error
    except FileNotFoundError as error:  # for instance below /proc
        raise TargetInvalid(f"{layout.root} cannot be made: {error.strerror}", hint="choose another directory"
                            ) from error


def refuse_inside(path: Path, files: Files) -> None:
    """Check that a directory does not lie inside a store or backup. There it would be in the way when that is replaced,
    or be taken for a part of it. Raises `TargetInvalid`."""
    for parent in files.resolve(path).parents:
        if Layout(parent, files).is_store():
            raise TargetInvalid(f"{path} lies in {parent}, which is a store or backup itself",
                                hint="choose a directory outside of it")


def tree_bytes(path: Path, files: Files) -> int:
    """Bytes of all files below a directory."""
    if not files.is_directory(path):
        return files.size(path) if files.exists(path) else 0
    return sum(tree_bytes(path / name, files) for name in files.list(path))


def partials(layout: Layout) -> list[Generation]:
    """The generations that were not finished."""
    if not layout.files.is_directory(layout.root):
        return []
    return [Generation(layout.root / n) for n in layout.files.list(layout.root)
            if n.startswith("gen-") and n.endswith(".partial")]
