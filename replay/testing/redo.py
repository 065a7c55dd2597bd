"""Redo converges: whatever a copy or a crash leaves, applying the records from its position on gives the state.

The engine runs without a store (`Driver`), so all records are there, and only its state is torn. An engine above the
environment runs on a simulated disk: its image is read once more at every operation of a checkpoint, and copies are put
together of pieces of all these readings; and every power cut is tried. One below the environment is read between its
checkpoints, which is all that a stable image needs, and killed elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st

from ...engine.contract.engine import Context
from ...engine.contract.image import Image
from ...engine.model.positions import Position
from ...engine.testing.disks.quiet import quiet_env
from ...engine.testing.disks.simdisk import SimDisk
from ...engine.testing.disks.simfates import power_cuts
from ...engine.testing.disks.simops import Op
from ...engine.testing.engine.transactions import begun, several
from ...engine.testing.support.contract import ABOVE_ENV, Contract, check
from ...engine.testing.support.crash_images import read_image
from ...engine.testing.support.driver import Driver, driven
from ...engine.testing.support.interleave import Beside
from ...engine.testing.support.workload import Operation, Workload

Todo = list[list[Operation]]
_STRIPE = 37
"""Bytes of one reading, then bytes of another: no record, page or checksum is that long."""
_PIECES = 6


class RedoChecks(Contract):
    """See the module's text."""

    @check()
    def test_replaying_again_changes_nothing(self, work: Workload) -> None:
        """Records may be applied to a state that holds them already, from any position on, and the result is the same.
        It is the same too if a replay is broken off, checkpointed or not, and begun again."""
        def claim(before: Todo, during: Todo) -> None:
            with driven(work) as it:
                begun(it)
                for operations in before:
                    it.commit(operations)
                it.checkpoint()
                image_position, early = it.engine.position, it.image()
                for operations in [*during, work.numbered(20)]:
                    it.commit(operations)
                it.checkpoint()
                digest, late = it.digest(), it.image()
                for txid in sorted({0, image_position.txid, (image_position.txid + it.end.txid) // 2, it.end.txid}):
                    start = it.position(txid)
                    engine = it.recovered(it.copied(late), at=start)
                    what = f"the state at {it.end}, replayed again from {start},"
                    it.compare_state(engine, what=what)
                    assert it.digest(engine) == digest, f"{what} has another digest"
                    engine.close()
                for reached in range(image_position.txid, it.end.txid + 1):
                    _begin_again(it, it.copied(early), image_position, reached)

        self.prove(claim, examples=15, before=several(work, 2), during=several(work, 3))

    @check()
    def test_redo_converges_from_any_mixture(self, work: Workload) -> None:
        """The pieces of a copy are read at different moments, in the middle of checkpoints too. Replayed from its
        image's position to what was applied by then, or to anything later, it is exactly the state there."""
        def claim(before: Todo, during: Todo, after: Todo, data: st.DataObject) -> None:
            with _sampled(work) as (it, sampling):
                begun(it)
                for operations in before:
                    it.commit(operations)
                it.checkpoint()
                it.commit(work.numbered(30))
                image = it.engine.image()
                copy = Readings(image)
                with sampling(copy.read):
                    for operations in [*during, work.numbered(31)]:
                        it.commit(operations)
                        copy.read()
                        it.checkpoint()
                        copy.read()
                image_position, consistent_from = image.position, it.end
                image.close()
                if work.engine.abilities.image == "stable":
                    assert len(copy.seen) == 1, "the image is declared stable, and its bytes changed in a checkpoint"
                for operations in after:
                    it.commit(operations)
                for what, contents in (*copy.mixtures(), ("of drawn pieces", copy.drawn(data))):
                    path = it.copied(contents)
                    for upto in sorted({consistent_from.txid, it.end.txid}):
                        read_only = upto == consistent_from.txid and work.engine.abilities.replays_in_memory
                        opened = it.recovered(path, at=image_position, upto=upto, read_only=read_only)
                        it.compare_state(
                            opened, upto, f"a copy {what}, taken from {image_position} on and replayed to {upto},")
                        opened.close()

        self.prove(claim, examples=12, before=several(work, 2), during=several(work, 2), after=several(work, 1),
                   data=st.data())

    @check(ABOVE_ENV)
    def test_redo_converges_after_every_power_cut(self, work: Workload) -> None:
        """A power cut at any operation of the disk keeps, drops or tears any of the unsynced ones. The state that it
        leaves opens, never behind the last checkpoint that had returned, and never ahead of what was applied. The
        records after its position bring it to the end. If the engine is atomic, the state is right as it was found."""
        def claim(todo: Todo, apart: list[int]) -> None:
            disk = SimDisk()
            it = Driver(work, _ROOT, quiet_env(disk))
            begun(it)
            it.checkpoint()
            it.reopen()  # the next checkpoint knows of this one by the disk only
            start, first, durable = disk.copy(), len(disk.ops), it.engine.position.txid
            bounds: list[tuple[int, int]] = []
            disk.before = lambda op: bounds.append((durable, it.published))
            for operations, transactions in zip(todo, apart, strict=True):
                it.commit(operations)
                while it.end.txid < durable + transactions:
                    it.commit(work.numbered(40 + it.end.txid))
                it.checkpoint()
                durable = it.engine.position.txid
            it.close()
            bounds.append((durable, it.published))
            seen: set[tuple[bytes, int, int]] = set()
            for n, (there, (least, upto)) in enumerate(zip(start.points(disk.ops[first:]), bounds, strict=True)):
                for cut in power_cuts(there, tries=self.effort.crash_states, salt=n):
                    key = cut.digest(), least, upto
                    if key not in seen:
                        seen.add(key)
                        op = disk.ops[first + n] if first + n < len(disk.ops) else "the end"
                        _look_after_cut(it, cut, least, upto, f"after a power cut before {op}")

        # One, two and three transactions apart: an engine that alternates by odd and even then overwrites its last
        # place.
        self.prove(claim, examples=4, todo=several(work, 3, 3), apart=st.permutations((1, 2, 3)))


_ROOT = Path("/state")
Sampling = Callable[[Callable[[], None]], AbstractContextManager[None]]


def _begin_again(it: Driver, path: Path, image_position: Position, reached: int) -> None:
    """Replay a copy from its position, break off at `reached` after a checkpoint, and begin again."""
    engine = it.recovered(path, at=image_position, upto=reached)
    engine.checkpoint(it.position(reached))
    engine.close()
    again = it.recovered(path, at=image_position)
    what = f"a copy from {image_position}, whose replay was broken off at {reached} and begun again,"
    it.compare_state(again, what=what)
    again.checkpoint(it.end)
    again.close()
    reopened = it.opened(path)
    assert reopened.position == it.end, f"{what} was checkpointed at {it.end}, and opens at {reopened.position}"
    it.compare_state(reopened, what=what)
    reopened.close()


def _look_after_cut(it: Driver, cut: SimDisk, least: int, upto: int, what: str) -> None:
    """Check what a power cut left, if a checkpoint had returned at `least`, and `upto` was applied."""
    context, it.context = it.context, Context(quiet_env(cut), it.work.opened_with)
    try:
        found = it.opened(it.directory)
        at = found.position.txid
        assert at >= least, (
            f"{what}, the state opens at transaction {at}, and a checkpoint had returned at {least}: what was durable "
            "is lost, and the log up to there may be pruned")
        assert at <= upto, f"{what}, the state opens at transaction {at}, and {upto} were applied"
        if it.work.engine.abilities.atomic:
            it.compare_state(found, at, f"the state {what}, of an engine that is declared atomic, before any redo,")
        found.close()
        engine = it.recovered(it.directory, upto=upto)
        it.compare_state(engine, upto, f"the state {what}, recovered,")
        it.feed(engine, it.records[upto:])
        engine.checkpoint(it.end)
        it.compare_state(engine, it.end.txid, f"the state {what}, recovered, continued and checkpointed,")
        engine.close()
    except Exception as error:
        lost = [f"    lost: {change:.200}" for change in cut.lost]
        error.add_note("\n".join([f"{what}, when transaction {least} was durable, and {upto} applied", *lost]))
        raise
    finally:
        it.context = context


@contextmanager
def _sampled(work: Workload) -> Iterator[tuple[Driver, Sampling]]:
    """A driver, and `sampling(read)`: a context in which `read` is called at each operation of its disk."""
    if not work.above_env:
        with driven(work) as it:
            yield it, _never
        return
    disk = SimDisk()
    it = Driver(work, _ROOT, quiet_env(disk))

    @contextmanager
    def sampling(read: Callable[[], None]) -> Iterator[None]:
        beside, reader = Beside(), threading.current_thread()

        def before(op: Op) -> None:
            if threading.current_thread() is reader:
                beside.run(read)

        disk.before = before
        try:
            yield
        finally:
            disk.before = lambda op: None
            beside.finish()

    yield it, sampling
    it.close()


@contextmanager
def _never(read: Callable[[], None]) -> Iterator[None]:
    yield


class Readings:
    """An image, read as a whole again and again; `seen` are the readings that differ from the one before."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.seen: list[dict[str, bytes]] = []
        self.read()

    def read(self) -> None:
        now = read_image(self._image)
        if not self.seen or now != self.seen[-1]:
            self.seen.append(now)

    def mixtures(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Copies that are telling: one reading throughout, files of different ones, stripes, halves."""
        first, last, middle = self.seen[0], self.seen[-1], self.seen[len(self.seen) // 2]
        yield "as first read", first
        if len(self.seen) == 1:
            return
        yield "as last read", last
        for name in first:
            yield f"as first read, but {name} as last read", {**first, name: last[name]}
            yield f"as last read, but {name} as first read", {**last, name: first[name]}
        for one, other in ((first, last), (last, first), (middle, first), (middle, last)):
            yield "in stripes of two readings", {name: _striped(one[name], other[name]) for name in first}
        yield "whose files end as they were first read", {
            name: last[name][: len(last[name]) // 2] + first[name][len(last[name]) // 2 :] for name in first}

    def drawn(self, data: st.DataObject) -> dict[str, bytes]:
        """Each file in pieces of drawn readings, cut at drawn places."""
        contents = {}
        for name, whole in self.seen[0].items():
            places = st.lists(st.integers(0, len(whole)), max_size=_PIECES if len(self.seen) > 1 else 0)
            edges = [0, *sorted(data.draw(places, label=f"cuts of {name}")), len(whole)]
            which = st.integers(0, len(self.seen) - 1)
            contents[name] = b"".join(self.seen[data.draw(which, label="reading")][name][start:stop]
                                      for start, stop in pairwise(edges))
        return contents


def _striped(one: bytes, other: bytes) -> bytes:
    return b"".join((one if at // _STRIPE % 2 else other)[at : at + _STRIPE] for at in range(0, len(one), _STRIPE))
