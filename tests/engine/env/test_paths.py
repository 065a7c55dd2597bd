"""Paths: what is given is meant where the process is then, and what is open stays what it is, whatever becomes of its
path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from staging_memory import StagingMemory
from store_kinds import until

from holdfast import backup
from holdfast.engine import GraphEngine, MemoryEngine, Settings, Store
from holdfast.engine.builtin.inplace.records import RecordsEngine
from holdfast.engine.builtin.wrapped.rocksdb import RocksEngine
from holdfast.engine.builtin.wrapped.sqlite import SqliteEngine
from holdfast.engine.env import Env
from holdfast.engine.errors import Damaged, DirectoryMoved, HoldfastError, InvalidInput
from holdfast.engine.testing.disks.faulty import FaultyFiles

SMALL = Settings(segment_bytes=128 << 10, heartbeat_s=0)
ENGINES = [MemoryEngine, SqliteEngine, RocksEngine]


@pytest.fixture(autouse=True)
def _back() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


def _put(store: Store[Any, Any], *numbers: int, size: int = 10) -> None:
    for n in numbers:
        with store.transaction() as tx:
            tx.put(b"%d" % n, bytes(size))


def _count(path: Path, engine: Any = MemoryEngine) -> int:
    with Store.open(path, engine, create=False) as store:
        return store.durable.txid


def _snapshot(top: Path) -> dict[str, bytes]:
    return {str(p.relative_to(top)): p.read_bytes() for p in sorted(top.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_a_relative_path_is_meant_where_it_was_given(engine: Any, tmp_path: Path) -> None:
    """A daemon changes its directory after it has opened its store. The log of one store went on in another one that
    has the same relative path there, every commit acknowledged, and neither could be opened again."""
    for name in "ab":
        (tmp_path / name).mkdir()
    os.chdir(tmp_path / "b")
    with Store.open("social.db", engine, settings=SMALL) as store:
        _put(store, 1, 2, 3)
    before = _snapshot(tmp_path / "b")
    os.chdir(tmp_path / "a")
    with Store.open("social.db", engine, settings=SMALL) as store:
        _put(store, 1)
        os.chdir(tmp_path / "b")
        _put(store, *range(2, 40), size=20_000)  # more than a segment
        store.checkpoint()
        backup.run(store, "backup")
        os.chdir(tmp_path)
        with store.snapshot() as view:
            assert view.get(b"39") == bytes(20_000)
    assert _snapshot(tmp_path / "b" / "social.db") == {k.removeprefix("social.db/"): v for k, v in before.items()}
    assert (_count(tmp_path / "a" / "social.db", engine), _count(tmp_path / "b" / "social.db", engine)) == (39, 3)
    assert backup.verify(tmp_path / "b" / "backup").transactions == 0


def test_a_log_is_listed_where_it_was_asked_for(tmp_path: Path) -> None:
    """Its records are read when they are asked for one by one, perhaps after the process went elsewhere."""
    with Store.open(tmp_path / "s", MemoryEngine) as store:
        _put(store, 1, 2)
    os.chdir(tmp_path)
    listed = backup.transactions("s")
    os.chdir("/")
    assert [r.txid for r in listed] == [1, 2]


_NO_PATHS: dict[str, Any] = {
    "empty": "", "none": None, "number": 5, "bytes": b"store", "nul": "a\0b", "long name": "x" * 300,
    "long path": "/".join(["y" * 200] * 25), "loop": Path("loop"), "below a loop": "loop/x", "below a file": "file/x",
    "below /proc": "/proc/x"}


@pytest.mark.parametrize("given", _NO_PATHS.values(), ids=_NO_PATHS)
def test_what_cannot_be_a_path_is_told_in_words(given: Any, tmp_path: Path) -> None:
    """Each call that takes a path let the system's errors out, a `ValueError` or `TypeError` of Python's, or took an
    empty one for the current directory."""
    with Store.open(tmp_path / "store", MemoryEngine) as store:
        backup.run(store, tmp_path / "backup")
        os.chdir(tmp_path)
        Path("loop").symlink_to("loop")
        Path("file").write_text("")
        before = sorted(os.listdir())
        calls: list[Callable[[], object]] = [
            lambda: Store.open(given, MemoryEngine), lambda: Store.open(given, MemoryEngine, read_only=True),
            lambda: backup.run(store, given), lambda: backup.verify(given), lambda: backup.info(given),
            lambda: list(backup.transactions(given)), lambda: backup.restore(given, "restored"),
            lambda: backup.restore("backup", given), lambda: backup.restore("backup", given, force=True)]
        for call in calls:
            with pytest.raises(HoldfastError) as told:
                call()
            assert not isinstance(told.value, Damaged)
            assert told.value.hint
        assert sorted(os.listdir()) == before


@pytest.mark.parametrize("engine", [GraphEngine, *ENGINES])
def test_a_path_need_not_be_text(engine: Any, tmp_path: Path) -> None:
    """LMDB and SQLite were given a path of bytes that are not characters as text, which it cannot be. RocksDB takes
    nothing else, and that was told as damage."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff"))
    if engine is RocksEngine:
        with pytest.raises(InvalidInput, match="only if it is text"):
            Store.open(place / "store", engine)
        assert not (place / "store").exists()
        return
    with Store.open(place / "store", engine) as store:
        backup.run(store, place / "backup")
    backup.verify(place / "backup")
    backup.restore(place / "backup", place / "restored")
    with Store.open(place / "restored", engine, create=False) as store, store.snapshot() as view:
        assert list(view.check()) == []


def test_a_relative_path_from_nowhere_is_refused(tmp_path: Path) -> None:
    """The directory of the process was removed: there is nothing that a relative path could mean."""
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for call in (lambda: Store.open("s", MemoryEngine), lambda: backup.verify("b"), lambda: backup.info("s")):
        with pytest.raises(InvalidInput, match="does not exist any more"):
            call()
    Store.open(tmp_path / "s", MemoryEngine).close()


def _renamed(top: Path, path: Path) -> Callable[[], object]:
    path.rename(top / "elsewhere")
    return lambda: (top / "elsewhere").rename(path)


def _replaced(top: Path, path: Path) -> Callable[[], object]:
    path.rename(top / "elsewhere")
    (top / "other").rename(path)

    def back() -> None:
        path.rename(top / "other")
        (top / "elsewhere").rename(path)

    return back


def _parent_renamed(top: Path, path: Path) -> Callable[[], object]:
    path.parent.rename(top / "elsewhere")
    return lambda: (top / "elsewhere").rename(path.parent)


def _link_switched(top: Path, path: Path) -> Callable[[], object]:
    link, behind = path.parent.parent / "link", path.parent
    (top / "away").mkdir()
    (top / "other").rename(top / "away" / path.name)
    link.unlink()
    link.symlink_to(top / "away")

    def back() -> None:
        link.unlink()
        link.symlink_to(behind)
        (top / "away" / path.name).rename(top / "other")

    return back


def _log_renamed(top: Path, path: Path) -> Callable[[], object]:
    log = path / "gen-000001" / "log"
    log.rename(top / "elsewhere")
    return lambda: (top / "elsewhere").rename(log)


MOVES = [_renamed, _replaced, _parent_renamed, _link_switched, _log_renamed]


@pytest.mark.parametrize("engine", [*ENGINES, RecordsEngine, GraphEngine], ids=lambda e: e.name)
@pytest.mark.parametrize("move", MOVES)
def test_what_has_the_name_now_gets_nothing(move: Callable[[Path, Path], Callable[[], object]], engine: Any,
                                            tmp_path: Path) -> None:
    """Under an open store its directory is renamed, and another store put in its place. The next segment, a checkpoint,
    a document would go there. Commits go on as long as the open segment has room, since that is the right file; then
    they are rolled back, nothing is poisoned, and when the directory is back all goes on."""
    path = tmp_path / "parent" / "store"
    path.parent.mkdir()
    (tmp_path / "link").symlink_to(path.parent)
    with Store.open(tmp_path / "other", MemoryEngine, settings=SMALL) as other:
        _put(other, 1)
    before = _snapshot(tmp_path / "other")
    opened = tmp_path / "link" / "store" if move is _link_switched else path
    with Store.open(opened, engine, settings=SMALL) as store:
        _commit(store, engine, 1)
        back = move(tmp_path, path)
        acked = 1
        with pytest.raises(DirectoryMoved, match="renamed, replaced or unmounted"):
            for n in range(2, 40):
                _commit(store, engine, n)
                acked = n
        assert acked > 1
        for call in (store.checkpoint, store.image, store.prune,
                     lambda: store.log.slots.register("a", "b", store.durable)):
            with pytest.raises(DirectoryMoved):
                call()
        assert not store.poisoned
        back()
        assert _snapshot(tmp_path / "other") == before
        _commit(store, engine, acked + 1)
        store.checkpoint()
        backup.run(store, tmp_path / "backup")
    assert _count(path, engine) == acked + 1
    assert _count(tmp_path / "other") == 1


@pytest.mark.parametrize("move", [_renamed, _replaced, _parent_renamed])
def test_what_has_a_number_goes_to_the_log_that_gave_it(move: Callable[[Path, Path], Callable[[], object]],
                                                        tmp_path: Path) -> None:
    """A commit was numbered in the next segment, whose name was given when it was written; the directory was renamed
    in between, and the store was poisoned, with the outcome unknown. It goes into the directory that is held open, and
    only what comes after it is refused."""
    path = tmp_path / "parent" / "store"
    path.parent.mkdir()
    with Store.open(tmp_path / "other", MemoryEngine, settings=SMALL) as other:
        _put(other, 1)
    before, files = _snapshot(tmp_path / "other"), FaultyFiles()
    with Store.open(path, StagingMemory, settings=SMALL, env=Env(files)) as store, ThreadPoolExecutor(2) as pool:
        _put(store, 1)
        held = files.hold("datasync")
        first = pool.submit(_put, store, 2)
        assert held.reached.wait(10)
        second = pool.submit(_commit, store, StagingMemory, 3)
        for n in range(4, 20):
            with store.transaction("relaxed") as tx:
                tx.put(b"%d" % n, bytes(20_000))
        until(lambda: store.positions().appended == 19)
        back = move(tmp_path, path)
        held.go.set()
        first.result(10)
        second.result(10)
        store.wait(19)
        assert not store.poisoned
        with pytest.raises(DirectoryMoved):
            for n in range(20, 40):
                _commit(store, StagingMemory, n)
        acked = store.durable.txid
        back()
        assert _snapshot(tmp_path / "other") == before
        _commit(store, StagingMemory, 0)
    assert _count(path, StagingMemory) == acked + 1


def _commit(store: Store[Any, Any], engine: Any, n: int) -> None:
    with store.transaction() as tx:
        if engine is GraphEngine:
            tx.add_node("N", pad="x" * 20_000)
        elif engine is RecordsEngine:
            for _ in range(200):
                tx.insert(bytes(100))
        else:
            tx.put(b"%d" % n, bytes(20_000))


@pytest.mark.parametrize("move", [_renamed, _replaced, _parent_renamed])
def test_a_reader_does_not_follow_another_store(move: Callable[[Path, Path], Callable[[], object]],
                                                tmp_path: Path) -> None:
    """What a store that is open read-only shows next would come from whatever has its path now."""
    path = tmp_path / "parent" / "store"
    path.parent.mkdir()
    with Store.open(tmp_path / "other", MemoryEngine, settings=SMALL) as other:
        _put(other, 1, 2, 3)
    with Store.open(path, MemoryEngine, settings=SMALL) as store:
        _put(store, 1)
    with Store.open(path, MemoryEngine, read_only=True) as reader:
        back = move(tmp_path, path)
        with pytest.raises(DirectoryMoved):
            reader.refresh()
        back()
        assert reader.refresh() == 1


def test_a_store_that_is_closed_where_it_was_moved_to_is_whole(tmp_path: Path) -> None:
    """Closing cannot checkpoint then. What was acknowledged is in the log, wherever its directory is."""
    with Store.open(tmp_path / "s", MemoryEngine, settings=SMALL) as store:
        _put(store, 1, 2)
        (tmp_path / "s").rename(tmp_path / "t")
    assert not (tmp_path / "s").exists()
    assert _count(tmp_path / "t") == 2
