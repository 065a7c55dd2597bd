"""What the system refuses is said as what it is, and never as damage: limits, rights, failing disks."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import lmdb
import pytest

from holdfast import backup
from holdfast.engine import GraphEngine, MemoryEngine, Store, errors
from holdfast.engine.builtin.graph.check import _guarded
from holdfast.engine.builtin.graph.lmdbstate import Base
from holdfast.engine.builtin.wrapped import rocksdb, sqlite
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.env import Env, File, Files
from holdfast.engine.env.system import is_limit, told
from holdfast.engine.errors import AccessDenied, DeviceFailed, DiskFull, HoldfastError, LimitReached, StoreClosed
from holdfast.engine.testing.disks.faulty import FaultyFiles

KINDS = {errno.EMFILE: LimitReached, errno.ENFILE: LimitReached, errno.ENOMEM: LimitReached, errno.EAGAIN: LimitReached,
         errno.EACCES: AccessDenied, errno.EPERM: AccessDenied, errno.EROFS: AccessDenied, errno.EIO: DeviceFailed,
         errno.ESTALE: DeviceFailed, errno.ENOSPC: DiskFull}


class Refusing(Files):
    """A file system that answers the `at`-th opening of a file with an error."""

    def __init__(self, number: int, at: int) -> None:
        self.number = number
        self.at = at
        self.opened = 0

    def _count(self, path: Path) -> None:
        self.opened += 1
        if self.opened == self.at:
            raise OSError(self.number, os.strerror(self.number), str(path))

    def open(self, path: Path, mode: Literal["read", "write", "create"] = "read") -> File:
        self._count(path)
        return super().open(path, mode)

    def read(self, path: Path) -> bytes:
        self._count(path)
        return super().read(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a backup of it."""
    top = tmp_path_factory.mktemp("made")
    with Store.open(top / "s", MemoryEngine) as store:
        for n in range(3):
            with store.transaction() as tx:
                tx.put(f"k{n}".encode(), b"v")
        backup.run(store, top / "b")
        with store.transaction() as tx:
            tx.put(b"k", b"v")
        backup.run(store, top / "b")
    return top


def _open_and_close(path: Path, env: Env, *, read_only: bool) -> None:
    Store.open(path, MemoryEngine, read_only=read_only, env=env).close()


CALLS: dict[str, Callable[[Path, Path, Env], Any]] = {
    "open": lambda top, new, env: _open_and_close(top / "s", env, read_only=False),
    "read": lambda top, new, env: _open_and_close(top / "s", env, read_only=True),
    "restore": lambda top, new, env: backup.restore(top / "b", new, env=env),
    "verify": lambda top, new, env: backup.verify(top / "b", env=env),
    "info": lambda top, new, env: backup.info(top / "b", env=env),
    "log": lambda top, new, env: list(backup.transactions(top / "b", env=env)),
}


@pytest.mark.parametrize("number", KINDS, ids=lambda n: errno.errorcode[n])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_open_refuses_the_call_says_what_it_is(call: str, number: int, made: Path, tmp_path: Path) -> None:
    """A healthy backup was "damaged, restore from a backup" for whoever ran out of descriptors or memory, or had no
    rights. Whichever opening of a file is refused, each call either goes on or names what was refused; and when that is
    over, all is as it was."""
    said = []
    for at in range(1, 200):
        files = Refusing(number, at)
        try:
            CALLS[call](made, tmp_path / f"new-{at}", Env(files=files))
        except HoldfastError as error:
            said.append((at, type(error), str(error)))
        if files.opened < at:
            break
    assert said
    assert [s for s in said if s[1] is not KINDS[number]] == []
    CALLS[call](made, tmp_path / "at-last", Env())


@contextmanager
def _limited(kind: int, to: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (to, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize("engine", [MemoryEngine, GraphEngine, SqliteEngine, RocksEngine], ids=lambda e: e.name)
def test_with_few_descriptors_a_healthy_store_is_not_damaged(engine: Any, tmp_path: Path) -> None:
    """From none left to enough of them: what is said is that descriptors lack, each time."""
    Store.open(tmp_path / "s", engine).close()
    held = len(os.listdir("/dev/fd"))
    said = set()
    for more in range(-3, 40):
        with _limited(resource.RLIMIT_NOFILE, held + more):
            try:
                Store.open(tmp_path / "s", engine).close()
            except LimitReached as error:
                said.add(error.hint)
            else:
                break
    assert said == {"raise its limit on open files (ulimit -n), and try again"}
    Store.open(tmp_path / "s", engine, create=False).close()


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM], ids=lambda n: errno.errorcode[n])
def test_a_check_that_cannot_read_the_pages_finds_nothing(code: int, tmp_path: Path) -> None:
    """A disk that fails ended the graph store's check in a bare `OSError`."""
    files = FaultyFiles()
    with Store.open(tmp_path / "s", GraphEngine, env=Env(files)) as store:
        with store.transaction() as tx:
            tx.add_node("N")
        store.checkpoint()
        files.fail("pread", code=code, only=lambda path: path.name == "data.mdb")
        with store.snapshot() as view, pytest.raises(KINDS[code], match="cannot read the state"):
            list(view.check())
        files.heal()
        with store.snapshot() as view:
            assert list(view.check()) == []


@pytest.mark.parametrize("refusal", [DeviceFailed("the disk failed"), LimitReached("no more memory")], ids=repr)
def test_what_is_refused_in_the_middle_of_a_check_is_no_finding(refusal: HoldfastError) -> None:
    """The graph store's check told it as an inconsistency, and a backup of a healthy store was inconsistent."""
    def findings() -> Iterator[str]:
        yield "something"
        raise refusal

    found = _guarded(findings(), "the state on disk", Base.__new__(Base))
    assert next(found) == "something"
    with pytest.raises(type(refusal)):
        next(found)


def test_what_a_library_is_refused_is_said_as_what_it_is(tmp_path: Path) -> None:
    """A look-up in a wrapped database ended in a bare `OSError` when the disk failed, and in nobody's words."""
    read = sqlite3.OperationalError("disk I/O error")
    read.sqlite_errorcode, read.sqlite_errorname = sqlite3.SQLITE_IOERR, "SQLITE_IOERR_READ"
    with pytest.raises(DeviceFailed, match=r"cannot use .*disk I/O error"), sqlite._told(tmp_path):
        raise read
    for text, kind in (("IO error: While pread: 7.sst: Input/output error", DeviceFailed),
                       ("IO error: While open a file: 7.sst: Too many open files", LimitReached)):
        with pytest.raises(kind, match="cannot use"), rocksdb._told(tmp_path):
            raise Exception(text)
    base = Base.__new__(Base)
    base.state = SimpleNamespace(closed=False, path=tmp_path)  # type: ignore[assignment]
    said = [type(base.failed(cast(lmdb.Error, SimpleNamespace(code=number))))
            for number in (errno.EIO, errno.ENOMEM, errno.EINVAL)]
    assert said == [DeviceFailed, LimitReached, StoreClosed]


def test_errors_of_the_system_by_their_kind() -> None:
    """The message begins with what was being done, and names the file."""
    for number, kind in KINDS.items():
        error = told(OSError(number, os.strerror(number), "/x/CURRENT"), "cannot open /x")
        assert type(error) is kind
        assert error.message.startswith("cannot open /x: ")
        assert error.message.endswith("(/x/CURRENT)")
    for limit in (MemoryError(), RuntimeError("can't start new thread"), OSError(errno.ENFILE, "")):
        assert is_limit(limit)
        assert type(told(limit, "cannot open /x")) is LimitReached
    for other in (RuntimeError("other"), FileNotFoundError(errno.ENOENT, ""), ValueError(), errors.Damaged("x")):
        assert not is_limit(other)
        assert told(other, "cannot open /x") is None


@pytest.mark.parametrize("engine", [MemoryEngine, GraphEngine])
def test_a_bound_on_the_size_of_files_is_a_limit(engine: Any, tmp_path: Path) -> None:
    """Under `ulimit -f` the message was the system's alone, with exit code 1, and a checkpoint poisoned the store."""
    code = f"""
import resource, sys
from pathlib import Path
from holdfast.engine import {engine.__name__}, Store, errors
root = Path(sys.argv[1])
with Store.open(root, {engine.__name__}) as store:
    for n in range(12):
        with store.transaction() as tx:
            tx.{"add_node('N', x=bytes(50_000))" if engine is GraphEngine else "put(b'%d' % n, bytes(50_000))"}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))
    for attempt in (store.checkpoint, lambda: Store.open(root.with_name("new"), {engine.__name__})):
        try:
            attempt()
            print("done")
        except errors.LimitReached as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    store.checkpoint()
    print(store.poisoned, store.positions().checkpointed)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], capture_output=True, text=True, timeout=60,
                          check=False)
    first, second, third = done.stdout.splitlines()
    assert "made no checkpoint" in first
    assert "may not grow so large" in second
    assert "ulimit -f" in second
    assert third == "False 12"


def test_no_more_threads_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit on processes let the opening end in a bare RuntimeError. The store is whole, and not held."""
    env = Env()

    def none(name: str, work: Callable[[], None]) -> Any:
        raise RuntimeError("can't start new thread")

    Store.open(tmp_path / "s", MemoryEngine).close()
    with monkeypatch.context() as patched:
        patched.setattr(env.scheduler, "spawn", none)
        with pytest.raises(LimitReached, match="threads"):
            Store.open(tmp_path / "s", MemoryEngine, env=env)
    Store.open(tmp_path / "s", MemoryEngine).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_right_to_a_file_is_said(made: Path) -> None:
    segment = next((made / "b").rglob("*.seg"))
    segment.chmod(0)
    try:
        with pytest.raises(AccessDenied, match="this user has no permission"):
            backup.verify(made / "b")
    finally:
        segment.chmod(0o600)


def test_the_command_has_an_exit_code_for_limits(made: Path) -> None:
    """Exit code 5 told a nightly job that its backup was lost, where the process had too few descriptors."""
    code = ("from holdfast.backup.cli import main; from holdfast.engine.env import Files\n"
            "def refuse(*_): raise OSError(24, 'Too many open files', 'STORE')\n"
            "Files.open = Files.read = refuse; main()")
    done = subprocess.run([sys.executable, "-c", code, "verify", str(made / "b")], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, "any more files" in done.stderr) == (7, True), done.stderr
