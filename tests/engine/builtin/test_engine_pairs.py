"""What is particular to engines over foreign databases, beyond the contract suites: on SQLite and on RocksDB."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workloads
from workloads import WORKLOADS

from holdfast.engine.builtin.wrapped.overlay import PairsEngine
from holdfast.engine.contract.engine import Context
from holdfast.engine.errors import Damaged, DiskFull, InvalidInput, NotFound, StoreClosed, UnsupportedFormat
from holdfast.engine.model.positions import Position
from holdfast.engine.testing.support.contract import scratch
from holdfast.engine.testing.support.driver import ORIGIN, Driver
from holdfast.engine.testing.support.leak_detection import descriptors
from holdfast.engine.testing.support.workload import text_of


@pytest.fixture(params=["sqlite", "rocksdb"])
def it(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with scratch() as place:
        driver = Driver(WORKLOADS[request.param](), place / "state")
        yield driver
        driver.close()


def engine_of(it: Driver) -> PairsEngine:
    assert isinstance(it.engine, PairsEngine)
    return it.engine


def put(it: Driver, **values: bytes) -> None:
    it.commit([("put", key.encode(), value) for key, value in values.items()])


def kept(it: Driver) -> dict[str, bytes]:
    return {str(p.relative_to(it.directory)): p.read_bytes() for p in sorted(it.directory.rglob("*")) if p.is_file()}


def test_a_flipped_byte_of_the_image_is_found_or_harmless(it: Driver) -> None:
    it.commit([("put", b"key%d" % i, text_of(i, 400)) for i in range(40)])
    it.checkpoint()
    image, content = it.image(), it.expected(1)
    copy = it.copied(image)
    found: Counter[str] = Counter()
    for name, data in image.items():
        for at in {*range(0, min(100, len(data)), 5), *range(100, len(data), 1 + len(data) // 40)}:
            flipped = bytes([data[at] ^ (0x41, 0x01, 0x80)[at % 3]])
            (copy / name).write_bytes(data[:at] + flipped + data[at + 1 :])
            found[_found(it, copy, content)] += 1
        (copy / name).write_bytes(data)
    assert found["opening"]
    assert found["reading"]


def _found(it: Driver, directory: Path, content: dict[bytes, bytes]) -> str:
    """Where it is found what is wrong with a copy, or `harmless`. Fails where the copy shows another content and its
    check is content."""
    try:
        engine = it.work.engine.open(directory, it.context, read_only=True, at=it.engine.position)
    except (Damaged, UnsupportedFormat):
        return "opening"
    try:
        with engine.view() as view:
            findings = list(view.check())
            try:
                shown = dict(view.items())
                assert all(findings or view.get(key) == value for key, value in content.items())
            except Damaged:
                assert findings, "what is found by reading is not found by check()"
                return "reading"
            assert shown == content
            return "check" if findings else "harmless"
    finally:
        engine.close()


def test_views_and_transactions_outlive_checkpoints(it: Driver) -> None:
    put(it, a=b"1", b=b"1")
    view, tx = it.engine.view(), it.engine.begin()
    it.checkpoint()
    later = it.engine.view()
    put(it, a=b"2", c=b"2")
    it.checkpoint()
    for old in (view, later):
        assert list(old.items()) == [(b"a", b"1"), (b"b", b"1")]
        assert (old.get(b"a"), old.get(b"c"), old.txid) == (b"1", None, 1)
    assert tx.get(b"b") == b"1"
    it.compare_state()
    engine = engine_of(it)
    assert len(engine._bases) == 3
    for held in (view, later, tx, view):
        held.close()
    assert len(engine._bases) == 1


def test_no_pair_is_the_document_of_the_position(it: Driver) -> None:
    """The RocksDB engine has it under the empty key. Transactions read it as a value, and could delete it."""
    it.commit([("put", b"a", b"1")])
    it.checkpoint()
    tx = it.engine.begin()
    assert tx.get(b"") is None
    with pytest.raises(NotFound):
        tx.delete(b"")
    tx.close()
    with it.engine.view() as view:
        assert view.get(b"") is None
    it.reopen()
    it.compare_state()


def test_closed_views_and_views_of_a_closed_engine_say_so(it: Driver) -> None:
    put(it, a=b"1", b=b"1")
    it.checkpoint()
    closed, kept, begun = it.engine.view(), it.engine.view(), it.engine.view()
    items = begun.items()
    next(items)
    begun.close()
    with pytest.raises(StoreClosed):
        next(items)
    closed.close()
    it.close()
    for view in (closed, kept):
        for read in (lambda v: v.get(b"a"), lambda v: list(v.items()), lambda v: list(v.check()), lambda v: v.digest()):
            with pytest.raises(StoreClosed):
                read(view)
    kept.close()
    it.engine.close()


def test_only_what_is_published_is_checkpointed(it: Driver) -> None:
    put(it, a=b"1")
    staged = it.tx([("put", b"a", b"2"), ("put", b"b", b"2")], stage=True)
    assert staged is not None
    it.checkpoint()
    assert it.engine.pending_bytes() == len(staged.payload)
    it.compare_state()
    it.publish(2)
    it.compare_state()
    it.checkpoint()
    assert it.engine.pending_bytes() == 0
    it.reopen()
    it.compare_state()


def test_a_staged_value_that_was_written_before_stands_above_what_is_written_next(it: Driver) -> None:
    put(it, a=b"1")
    it.commit([("delete", 0)])
    assert it.tx([("put", b"a", b"3")], stage=True)
    assert it.tx([("delete", 0)], stage=True)  # staged as it was published before: as no value
    it.checkpoint()
    it.publish(3)
    it.checkpoint()
    assert it.tx([("put", b"a", b"5")], stage=True)  # compares what the transaction has with the model
    it.publish(5)
    it.compare_state()


def test_commits_go_on_during_a_checkpoint(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    put(it, a=b"1", b=b"1")
    engine, write = engine_of(it), engine_of(it)._write

    def slow(changes: Any, position: Position) -> None:
        write(changes, position)
        thread = threading.Thread(target=lambda: it.commit([("put", b"a", b"2"), ("delete", 1), ("put", b"c", b"2")]))
        thread.start()
        thread.join()

    monkeypatch.setattr(engine, "_write", slow)
    engine.checkpoint(it.position(1))
    monkeypatch.undo()
    assert engine.position == it.position(1)
    assert engine.pending_bytes() == len(it.records[1].payload)
    it.compare_state()
    it.checkpoint()
    it.compare_state()
    it.reopen()
    it.compare_state()


def test_an_image_leaves_nothing_and_what_a_killed_one_left_is_swept(it: Driver) -> None:
    put(it, a=b"1")
    it.checkpoint()
    image = it.engine.image()
    (place,) = [p for p in it.directory.iterdir() if p.is_dir()]
    for file in image.files:
        assert len(image.read(file.name, 0, file.size)) == file.size
    assert str(place) not in " ".join(descriptors().values()), "each lease held all its files open"
    image.close()
    assert not [p for p in it.directory.iterdir() if p.is_dir()]
    it.close()
    (it.directory / "image-0123").mkdir()
    (it.directory / "image-0123" / "file").write_bytes(b"")
    it.work.engine.open(it.directory, it.context, read_only=True).close()
    assert (it.directory / "image-0123" / "file").exists()
    it.work.engine.open(it.directory, it.context).close()
    assert not (it.directory / "image-0123").exists()


def test_an_image_without_room_is_refused_and_leaves_nothing(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(place: Path) -> Position:
        place.mkdir()
        (place / "half").write_bytes(b"")
        raise OSError(errno.ENOSPC, "no room")

    before = kept(it).keys()
    monkeypatch.setattr(engine_of(it), "_copy", full)
    with pytest.raises(DiskFull):
        it.engine.image()
    assert kept(it).keys() == before
    monkeypatch.undo()
    assert it.image()


def test_a_copy_of_less_than_it_should_hold_is_refused(it: Driver) -> None:
    put(it, a=b"1")
    it.checkpoint()
    image = it.image()
    for wrong in (Position(2, b"c" * 16), Position(1, b"c" * 16)):
        with pytest.raises(Damaged, match="should be at"):
            it.work.engine.open(it.copied(image), it.context, at=wrong)
    it.recovered(it.copied(image), at=it.end).close()


def test_a_read_only_opening_leaves_no_trace(it: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of what a killed process left, nor of what was closed in order; nor among temporary files."""
    temporary = it.directory.with_name("temporary")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    put(it, a=b"1")
    it.checkpoint()
    left = it.killed()
    it.close()
    for directory in (left, it.directory):
        before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir()}
        engine = it.recovered(directory, read_only=True)
        it.compare_state(engine)
        engine.close()
        assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir()} == before
        assert not list(temporary.iterdir())
    garbage = it.copied(dict.fromkeys(kept(it), b"no such thing"))
    with pytest.raises(Damaged):
        it.work.engine.open(garbage, it.context, read_only=True)
    assert not list(temporary.iterdir())


def test_unknown_options_and_formats_are_refused(it: Driver, tmp_path: Path) -> None:
    kind: Any = it.work.engine
    with pytest.raises(InvalidInput, match="colour"):
        kind.create(tmp_path, ORIGIN, Context(options={"colour": 1}))
    with pytest.raises(InvalidInput, match="colour"):
        kind.open(tmp_path, Context(options={"colour": 1}))
    newer: Any = type("Newer", (kind,), {"state_format": kind.state_format + 1})
    newer.create(tmp_path, ORIGIN, it.context)
    with pytest.raises(UnsupportedFormat, match=f"version {kind.state_format + 1}"):
        kind.open(tmp_path, it.context)


CHILD = """
import gc, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from workloads import WORKLOADS
from holdfast.engine.testing.support.driver import Driver

it = Driver(WORKLOADS[{name!r}](), Path({place!r}))
it.commit([("put", b"a", b"1")])
it.checkpoint()
view = it.engine.view()
go, gone = os.pipe()
child = os.fork()
if not child:
    os.read(go, 1)
    del it, view
    gc.collect()
    sys.exit()
view.close()
it.reopen()  # by now the child has what is another's
it.commit([("put", b"b", b"2")])
it.engine._tidy = lambda: None
it.checkpoint()
before = sorted(os.listdir(it.directory))
os.write(gone, b"!")
assert os.waitpid(child, 0)[1] == 0
assert sorted(os.listdir(it.directory)) == before, "the child tidied up"
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_child_leaves_the_database_alone(it: Driver) -> None:
    place = it.directory.with_name("forked")
    name = it.work.engine.name
    program = CHILD.format(tests=str(Path(workloads.__file__).parent), name=name, place=str(place))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    engine: Any = it.work.engine.open(place, it.context)
    assert engine.position.txid == 2
    with engine.view() as view:
        assert dict(view.items()) == {b"a": b"1", b"b": b"2"}
    engine.close()
    shutil.rmtree(place)


def test_reading_all_takes_little_memory_however_large_the_values(it: Driver) -> None:
    for start in range(0, 60, 20):
        it.commit([("put", b"key%d" % i, bytes([i]) * (1 << 20)) for i in range(start, start + 20)])
        it.checkpoint()
    with it.engine.view() as view:
        tracemalloc.start()
        try:
            assert sum(1 for _ in view.items()) == 60
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_a_view_that_a_forked_child_closes_is_let_alone(it: Driver) -> None:
    put(it, a=b"1")
    it.checkpoint()
    engine, view = engine_of(it), it.engine.view()
    put(it, a=b"2")
    it.checkpoint()
    with engine._lock:  # as another thread may hold it, which the child does not have
        child = os.fork()
        if not child:
            signal.alarm(10)
            view.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert dict(view.items()) == {b"a": b"1"}
    view.close()
