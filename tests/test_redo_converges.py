"""Redo converges: whatever a copy or a crash leaves, applying the log from the recorded position gives the state.

The engines run on a file system that notes every write. Copies take pieces of each file at different moments, in the
middle of checkpoints too; crashes drop, keep and tear what was not synced.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Harness
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_adapters import EngineAdapter, MemoryAdapter, Operation, RecordsAdapter
from recording_files import RecordingFiles, after_crash

from holdfast.engine.contract import Image
from holdfast.engine.history import Position
from holdfast.engine.seams import Seams

ADAPTERS = [pytest.param(MemoryAdapter(), id="memory"), pytest.param(RecordsAdapter(), id="records")]
COMMON = settings(max_examples=60, deadline=None,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
Steps = list[list[Operation] | None]


@contextmanager
def harness(adapter: EngineAdapter) -> Iterator[tuple[Harness, RecordingFiles]]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "state"
        files = RecordingFiles(root)
        it = Harness(adapter, root, Seams(files=files))
        yield it, files
        it.engine.close()


def put_down(it: Harness, contents: dict[str, bytes]) -> Path:
    path = it.directory.with_name("copy")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in contents.items():
        (path / name).write_bytes(data)
    return path


def steps(adapter: EngineAdapter) -> st.SearchStrategy[Steps]:
    """Transactions, and checkpoints (None) between them."""
    return st.lists(st.one_of(st.none(), adapter.operations(), adapter.operations()), min_size=1, max_size=12)


def run(it: Harness, todo: Steps) -> None:
    for operations in todo:
        if operations is None:
            it.checkpoint()
        else:
            it.commit(operations)


class MovingCopy:
    """Copies an image as slowly as can be: `sample` reads the whole image once more, and the copy takes each of its
    pieces from some sample."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.samples: list[dict[str, bytes]] = []
        self.sample()

    def sample(self) -> None:
        now = {file.name: self.image.read(file.name, 0, file.size) for file in self.image.files}
        if not self.samples or now != self.samples[-1]:
            self.samples.append(now)

    def assemble(self, data: st.DataObject) -> dict[str, bytes]:
        contents = {}
        for file in self.image.files:
            cuts = sorted(data.draw(st.lists(st.integers(0, file.size), max_size=6), label=f"cuts of {file.name}"))
            edges = [0, *cuts, file.size]
            picks = st.integers(0, len(self.samples) - 1)
            pieces = [self.samples[data.draw(picks, label="sample")][file.name][a:b]
                      for a, b in pairwise(edges)]
            contents[file.name] = b"".join(pieces)
        return contents


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_copy_torn_anywhere_converges(adapter: EngineAdapter) -> None:
    @COMMON
    @given(before=steps(adapter), during=steps(adapter), data=st.data())
    def property(before: Steps, during: Steps, data: st.DataObject) -> None:
        with harness(adapter) as (it, files):
            run(it, before)
            image = it.engine.image()
            p0 = image.position
            assert p0 == it.engine.position
            copy = MovingCopy(image)
            files.after_each = lambda event: copy.sample()  # every write is a moment at which a piece may be read
            run(it, [*during, None])
            files.after_each = None
            if adapter.engine.abilities.image == "stable":
                assert len(copy.samples) == 1
            p1 = it.end
            contents = copy.assemble(data)
            image.close()
            run(it, before[:3])  # a copy may be replayed beyond p1, and to p1 exactly
            path = put_down(it, contents)
            for upto in (p1, it.end):
                read_only = data.draw(st.booleans(), label="read_only")
                opened = it.recovered(path, adopt=p0, upto=upto.txid, read_only=read_only)
                it.compare_state(opened, upto.txid)
                opened.close()
            assert {name: (path / name).read_bytes() for name in contents} == contents
            check_replay_interrupted(it, path, p0, p1, data)

    property()


def check_replay_interrupted(it: Harness, path: Path, p0: Position, p1: Position, data: st.DataObject) -> None:
    """A copy's replay may checkpoint on its way and start again from p0: the state is then ahead of redo's start."""
    on_the_way = data.draw(st.integers(p0.txid, p1.txid), label="checkpoint at")
    opened = it.recovered(path, adopt=p0, upto=on_the_way)
    opened.checkpoint(it.position(on_the_way))
    opened.close()
    again = it.recovered(path, adopt=p0)
    it.compare_state(again)
    again.checkpoint(it.end)
    again.close()
    settled = it.recovered(path)
    assert settled.position == it.end
    it.compare_state(settled)
    settled.close()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_power_cut_anywhere_converges(adapter: EngineAdapter) -> None:
    @COMMON
    @given(todo=steps(adapter), data=st.data())
    def property(todo: Steps, data: st.DataObject) -> None:
        with harness(adapter) as (it, files):
            created = len(files.events)
            durable_at: list[int] = []  # the number of committed transactions at each event after creation

            def note(event: Any) -> None:
                durable_at.append(len(it.records))

            files.after_each = note
            run(it, [*todo, None])
            files.after_each = None
            cut = data.draw(st.integers(0, len(files.events) - created), label="events before the cut")

            def keep(written: bytes) -> list[tuple[int, int]]:
                edges = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=4), label="kept ranges"))
                return list(zip(edges[::2], edges[1::2], strict=False))

            contents = after_crash(files.events[: created + cut], keep, lambda: data.draw(st.booleans(), label="kept"))
            path = put_down(it, contents)
            logged = durable_at[cut - 1] if cut else 0
            opened = it.recovered(path, upto=max(logged, 0))
            it.compare_state(opened, logged)
            if adapter.engine.abilities.atomic:  # needs no redo to be right
                as_found = adapter.engine.open(path, it.context, read_only=True)
                it.compare_state(as_found, as_found.position.txid)
                as_found.close()
            opened.apply(it.records[logged:])
            opened.checkpoint(it.end)
            it.compare_state(opened)
            opened.close()

    property()


def test_the_copy_test_sees_torn_records() -> None:
    """The rig can fail: a copy that is torn, and not replayed, is not the state. Otherwise it tests nothing."""
    with harness(RecordsAdapter()) as (it, files):
        run(it, [[("insert", b"a" * 400)], None])
        copy = MovingCopy(it.engine.image())
        files.after_each = lambda event: copy.sample()
        run(it, [[("update", 0, b"b" * 700)], None])
        assert len(copy.samples) > 2
        first, last = copy.samples[0]["values"], copy.samples[-1]["values"]
        path = put_down(it, copy.samples[0] | {"values": first[:140] + last[140:]})
        opened = it.adapter.engine.open(path, it.context, adopt=copy.image.position)
        with opened.view() as view:
            assert list(view.check()) != []
        opened.close()
        copy.image.close()
