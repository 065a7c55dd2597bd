"""Who holds a store: whoever is refused is told by whom, or that the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
from pathlib import Path
from typing import Any

import pytest

from holdfast import backup
from holdfast.engine import GraphEngine, MemoryEngine, Store
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.errors import LocksUnsupported, StoreLocked

NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _fill(path: Path) -> None:
    with Store.open(path, MemoryEngine) as store:
        with store.transaction() as tx:
            tx.put(b"k", b"v")
        backup.run(store, path.parent / "b")


@pytest.mark.parametrize("number", NONE, ids=lambda n: errno.errorcode[n])
def test_a_file_system_without_locks_is_not_in_use(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    """On a network mount without a lock service everything was "in use by process N", dead for weeks, verify and
    restore too. Writing is refused, and why; what only reads, and a restore into a new directory, goes on."""
    _fill(tmp_path / "s")

    def none(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    for call in (lambda: Store.open(tmp_path / "s", MemoryEngine), lambda: Store.open(tmp_path / "new", MemoryEngine),
                 lambda: backup.restore(tmp_path / "b", tmp_path / "s", force=True)):
        with pytest.raises(LocksUnsupported, match="has no locks"):
            call()
    assert not (tmp_path / "new").exists()
    backup.verify(tmp_path / "b")
    assert backup.restore(tmp_path / "b", tmp_path / "r").txid == 1
    with Store.open(tmp_path / "s", MemoryEngine, read_only=True) as store, store.snapshot() as view:
        assert view.get(b"k") == b"v"
    backup.info(tmp_path / "s")
    assert {"without a lock" in r.getMessage() for r in caplog.records} == {True}
    monkeypatch.undo()
    Store.open(tmp_path / "r", MemoryEngine, create=False).close()


@pytest.mark.parametrize("read_only", [False, True])
def test_who_opens_twice_is_told_that_it_is_himself(read_only: bool, tmp_path: Path) -> None:
    """"In use by process N", where N was the reader of the message. In a container two processes may have the same
    number, so the number does not decide it."""
    _fill(tmp_path / "s")
    with Store.open(tmp_path / "s", MemoryEngine, read_only=read_only):
        with pytest.raises(StoreLocked, match="this very process") as caught:
            Store.open(tmp_path / "s", MemoryEngine)
        assert "close it first" in caught.value.hint
        (tmp_path / "link").symlink_to(tmp_path / "s")
        with pytest.raises(StoreLocked, match="this very process"):
            Store.open(tmp_path / "link", MemoryEngine)
    with Store.open(tmp_path / "s", MemoryEngine):
        pass


def test_another_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    """Its number stands in the file; the lock is not of this process."""
    _fill(tmp_path / "s")
    fd = os.open(tmp_path / "s" / "LOCK", os.O_RDWR)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()} "):
            Store.open(tmp_path / "s", MemoryEngine)
    finally:
        os.close(fd)


def _forget(held: list[Any]) -> None:
    held.clear()
    gc.collect()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("engine", [MemoryEngine, RecordsEngine, GraphEngine], ids=lambda e: e.name)
def test_a_forgotten_store_is_closed_and_said(engine: Any, read_only: bool, tmp_path: Path) -> None:
    """A store that was dropped without `close` was held until the process ended, by its own threads. What was not yet
    synced of it is there when it is opened again."""
    store = Store.open(tmp_path / "s", engine)
    if engine is MemoryEngine:
        with store.transaction("relaxed") as tx:
            tx.put(b"k", b"v")
    if read_only:
        store.close()
        store = Store.open(tmp_path / "s", engine, read_only=True)
    held = [store]
    del store
    with pytest.warns(ResourceWarning, match=r"/s was never closed"):
        _forget(held)
    with Store.open(tmp_path / "s", engine, create=False) as again:
        assert again.recovery.clean
        assert again.durable.txid == (1 if engine is MemoryEngine else 0)


def test_a_forgotten_transaction_does_not_hold_up_the_closing(tmp_path: Path) -> None:
    """Whoever held the writer lock is gone with the store."""
    scope = Store.open(tmp_path / "s", MemoryEngine).transaction()
    scope.__enter__().put(b"k", b"v")
    held = [scope]
    del scope
    with pytest.warns(ResourceWarning, match="never closed"):
        _forget(held)
    with Store.open(tmp_path / "s", MemoryEngine, create=False) as again:
        assert again.durable.txid == 0


def test_a_store_that_was_closed_says_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    store = Store.open(tmp_path / "s", MemoryEngine)
    store.close()
    del store
    gc.collect()
    assert not recwarn.list
