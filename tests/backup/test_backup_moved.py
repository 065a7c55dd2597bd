"""A target, or what a backup is restored to, whose path leads elsewhere in the middle of a run: it was renamed, or
unmounted, and perhaps another directory has its name now.

A run wrote what came next into that other directory; an incremental called its target damaged, since a segment had
"disappeared"; and a restore that failed of it swept the other directory clean.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backup_worlds import digest, digest_at, open_store, tree, write

from holdfast import backup
from holdfast.backup.testing.fault_injection import WatchedSource
from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.env import Directory, Env, Files
from holdfast.engine.errors import DirectoryMoved
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store[Any, Any]]:
    with open_store(tmp_path / "store") as opened:
        write(opened, 1, 30)
        opened.checkpoint()
        write(opened, 2, 30)
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A backup of another store, which is to stay what it is."""
    with open_store(tmp_path / "another store") as opened:
        write(opened, 3, 3)
        backup.run(opened, tmp_path / "other")
    return tmp_path / "other"


class Moving:
    """Gives the name of `path` to `other`, when `what` happens for the `at`th time."""

    def __init__(self, path: Path, other: Path, at: int, what: str = "") -> None:
        self.path, self.other, self.left, self.what, self.done = path, other, at, what, False

    def __call__(self, what: str, *_: object) -> None:
        if self.done or (self.what and what != self.what) or not self.path.is_dir():
            return
        self.left -= 1
        if self.left == 0:
            self.done = True
            os.rename(self.path, self.path.with_name("moved"))
            os.rename(self.other, self.path)


class Looked(Files):
    """A disk with `before` called, with the path, before each look at what a held directory's path leads to."""

    def __init__(self, before: Callable[[str], None]) -> None:
        self.before = before

    def open_directory(self, path: Path) -> Directory:
        outer = self

        class Held(Directory):
            def is_at_path(self) -> bool:
                outer.before(str(path))
                return super().is_at_path()

        return Held(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY))


@pytest.mark.parametrize("what", ["image", "confirm", "log", "record"])
def test_a_full_backup_writes_into_no_other_directory(what: str, store: Store[Any, Any], other: Path,
                                                      tmp_path: Path) -> None:
    before, target = tree(other), tmp_path / "target"
    with pytest.raises(DirectoryMoved, match="renamed") as told:
        backup.run(WatchedSource(LocalSource(store), Moving(target, other, 1, what)), target, engine=MemoryEngine)
    assert "run it again" in told.value.hint
    assert tree(target) == before
    backup.run(store, tmp_path / "moved")
    assert digest_at(tmp_path / "moved", MemoryEngine) == digest(store)
    assert not store.leases.list()


@pytest.mark.parametrize("what", ["lease", "log", "record"])
def test_an_incremental_is_not_damaged_by_it(what: str, store: Store[Any, Any], other: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    backup.run(store, target)
    write(store, 4, 30)
    before = tree(other)
    with pytest.raises(DirectoryMoved):
        backup.run(WatchedSource(LocalSource(store), Moving(target, other, 1, what)), target, engine=MemoryEngine)
    assert tree(target) == before
    report = backup.run(store, tmp_path / "moved")
    assert report.kind == "incremental"
    assert digest_at(tmp_path / "moved", MemoryEngine) == digest(store)


def test_wherever_in_a_run_it_is(store: Store[Any, Any], other: Path, tmp_path: Path) -> None:
    """Before each use of a name. What is there then is not touched, and what was moved is gone on with."""
    before, moved, target = tree(other), tmp_path / "moved", tmp_path / "target"

    def moves(run: Callable[[Env], object], path: Path) -> Iterator[int]:
        for at in range(1, 1000):
            moving = Moving(path, other, at, str(path))
            try:
                run(Env(files=Looked(moving)))
            except DirectoryMoved:
                assert moving.done
            if not moving.done:
                return
            if tree(path) == before:  # else it was moved when all was done, but for giving back the lock
                yield at
            os.rename(path, other)
            os.rename(moved, path)

    def restore_anew(env: Env) -> None:
        shutil.rmtree(tmp_path / "restored", ignore_errors=True)
        backup.restore(target, tmp_path / "restored", env=env)

    ways: list[tuple[Callable[[Env], object], Path]] = [
        (lambda env: backup.run(store, target, env=env), target),
        (lambda env: backup.run(store, target, env=env), target),
        (lambda env: backup.run(store, target, full=True, policy=backup.Policy(keep_points="none"),
                                env=env), target),
        (lambda env: backup.verify(target, env=env), target),
        (restore_anew, tmp_path / "restored"),
        (lambda env: backup.restore(target, tmp_path / "restored", force=True, env=env), tmp_path / "restored")]
    for number, (run, path) in enumerate(ways):
        if number < 3:
            write(store, 5 + number, 5)
        count = sum(1 for _ in moves(run, path))
        assert count >= 2
        run(Env())
    assert digest_at(target, MemoryEngine) == digest(store)
    assert digest_at(tmp_path / "restored", MemoryEngine) == digest(store)


def test_a_restore_that_fails_leaves_what_is_not_its_own(store: Store[Any, Any], tmp_path: Path) -> None:
    """Somebody put a file into the directory meanwhile, and it went with the rests."""
    backup.run(store, tmp_path / "target")
    dest = tmp_path / "restored"
    dest.mkdir()

    def progress(stage: str, done: int, total: int) -> None:
        (dest / "letter").write_text("dear Ada")
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        backup.restore(tmp_path / "target", dest, progress=progress)
    assert sorted(path.name for path in dest.iterdir()) == ["LOCK", "letter"]
