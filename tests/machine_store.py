"""A state machine over a whole store: any engine, its log, crashes, backups and restores, with a model beside them.

`machine(adapter)` makes the Hypothesis machine for an engine. The model is a list: `models[n]` is the content after
transaction n. Everything that a store, a copy or a restored twin of it shows is compared with the model at the
transaction that it says it shows, by content, by the engine's own check, and by digest, which must be the same wherever
the same transaction is looked at.

What only a crash can do is done to a crash image: a copy of the directory of a store that runs. Its log's end may then
be changed as an unlucky disk would have it: bytes behind the end, or the last group torn, as if the crash had come
while that was written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine_adapters import EngineAdapter, Operation

from holdfast import backup
from holdfast.engine.contract import StagingEngine, View
from holdfast.engine.errors import OtherBranch, RestorePointOutOfRange
from holdfast.engine.log.format import BadBytes, read_footer, read_groups, read_header
from holdfast.engine.seams import REAL
from holdfast.engine.settings import Durability, Settings
from holdfast.engine.source.local import LocalSource
from holdfast.engine.store import Store
from holdfast.replay import files

DURABILITIES: tuple[Durability, ...] = ("synced", "pipelined", "relaxed")
KEPT_LOGS = ("for ever", "1 transactions")
TAILS = ("as it is", "noise behind", "torn")


class Refused(Exception):
    """Raised inside a transaction, to roll it back."""


class BusySource(LocalSource):
    """A source whose store goes on changing while its image is read: in the middle of each file, and at its end."""

    def __init__(self, store: Store[Any, Any], step: Callable[[], None]) -> None:
        super().__init__(store)
        self._step = step

    def read_image(self, lease_id: str, name: str, offset: int, length: int) -> bytes:
        first = super().read_image(lease_id, name, offset, length // 2)
        self._step()
        return first + super().read_image(lease_id, name, offset + length // 2, length - length // 2)


def machine(adapter: EngineAdapter) -> type[Any]:
    """A `RuleBasedStateMachine` for one engine; its rules may also be called one by one."""
    operations = adapter.operations()

    class StoreMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.root = Path(tempfile.mkdtemp(prefix="holdfast-machine-"))
            self.made = 0
            self.models: list[Any] = [adapter.new_model()]
            self.digests: dict[int, bytes] = {}
            self.acknowledged = 0
            self.views: list[View] = []
            self.promises: list[tuple[int, Future[int]]] = []
            self.target: Path | None = None
            self.backed_up: list[Any] = []  # the models that the target must be able to show
            self.store: Store[Any, Any]

        @initialize(keep_logs=st.sampled_from(KEPT_LOGS))
        def create(self, keep_logs: str) -> None:
            self.settings = Settings(segment_bytes=128 << 10, keep_logs=keep_logs, heartbeat_s=0, relaxed_ms=20)
            self.path = self.fresh("store")
            self.open()

        def fresh(self, name: str) -> Path:
            self.made += 1
            return self.root / f"{name}-{self.made}"

        def open(self) -> None:
            self.store = Store.open(self.path, adapter.engine, options=adapter.options, settings=self.settings)

        def teardown(self) -> None:
            try:
                if hasattr(self, "store"):
                    self.close()
            finally:
                shutil.rmtree(self.root)

        def close(self) -> None:
            for view in self.views:
                view.close()
            self.views.clear()
            self.store.close()
            self.keep_promises()

        def keep_promises(self) -> None:
            for txid, promise in self.promises:
                assert promise.result(10) == txid
            self.promises.clear()

        def compare(self, view: View, models: list[Any]) -> None:
            """A view, with the model of its transaction."""
            txid = view.txid
            assert adapter.content(view) == adapter.expected(models[txid])
            assert list(view.check()) == []
            digest = view.digest()
            if models is self.models:
                assert self.digests.setdefault(txid, digest) == digest

        def compare_closed(self, path: Path, txid: int, models: list[Any]) -> None:
            """A store or backup that nobody has open, with the model at `txid`. Looking changes nothing."""
            before = tree(path)
            with Store.open(path, adapter.engine, options=adapter.options, settings=self.settings,
                            read_only=True) as store, store.snapshot() as view:
                assert view.txid == txid
                self.compare(view, models)
            assert tree(path) == before

        # --- transactions ------------------------------------------------------------------------------------------

        @rule(operations=operations, durability=st.sampled_from(DURABILITIES))
        def commit(self, operations: list[Operation], durability: Durability) -> None:
            model = self.models[-1].copy()
            with self.store.transaction(durability) as tx:
                adapter.run(tx, model, operations)
            if tx.txid is None:
                assert adapter.expected(model) == adapter.expected(self.models[-1])
                return
            assert tx.txid == len(self.models)
            self.models.append(model)
            if durability == "synced":
                self.acknowledged = tx.txid
            elif durability == "pipelined":
                self.promises.append((tx.txid, tx.outcome))
            self.note_promises()

        @rule(several=st.lists(operations, min_size=2, max_size=4), durability=st.sampled_from(DURABILITIES))
        def commit_several(self, several: list[list[Operation]], durability: Durability) -> None:
            for operations in several:
                self.commit(operations, durability)

        def note_promises(self) -> None:
            done = [txid for txid, promise in self.promises if promise.done()]
            self.acknowledged = max([self.acknowledged, *done])

        @rule(operations=operations)
        def roll_back(self, operations: list[Operation]) -> None:
            with pytest.raises(Refused), self.store.transaction() as tx:
                adapter.run(tx, self.models[-1].copy(), operations)
                raise Refused

        @rule(durability=st.sampled_from(DURABILITIES))
        def commit_nothing(self, durability: Durability) -> None:
            with self.store.transaction(durability) as tx:
                pass
            assert tx.txid is None
            assert self.store.published.txid == len(self.models) - 1  # what it read is there to stay
            self.acknowledged = len(self.models) - 1

        @rule()
        def wait(self) -> None:
            self.store.wait(len(self.models) - 1)
            self.acknowledged = len(self.models) - 1
            self.keep_promises()

        # --- views -------------------------------------------------------------------------------------------------

        @rule(unsynced=st.booleans())
        def look(self, unsynced: bool) -> None:
            self.note_promises()
            unsynced = unsynced and isinstance(self.store.engine, StagingEngine)
            view = self.store.snapshot(unsynced=unsynced)
            assert view.txid == len(self.models) - 1 if unsynced else view.txid >= self.acknowledged
            self.compare(view, self.models)
            self.views.append(view)

        @precondition(lambda self: self.views)
        @rule(index=st.integers(0, 9))
        def look_again(self, index: int) -> None:
            view = self.views.pop(index % len(self.views))
            self.compare(view, self.models)
            view.close()

        @invariant()
        def stages_are_in_order(self) -> None:
            if hasattr(self, "store"):
                p = self.store.positions()
                if p.durable == p.appended:  # nothing moves while it is looked at
                    assert p.durable >= p.acknowledged >= p.published >= p.checkpointed
                assert p.appended == len(self.models) - 1
                assert p.acknowledged >= self.acknowledged

        # --- checkpoints, closing, crashes ---------------------------------------------------------------------------

        @rule()
        def checkpoint(self) -> None:
            before = self.store.published
            assert self.store.checkpoint().txid >= before.txid
            assert self.store.positions().checkpointed >= before.txid

        @rule()
        def reopen(self) -> None:
            self.close()
            if adapter.engine.abilities.replays_in_memory:
                self.compare_closed(self.path, len(self.models) - 1, self.models)
            self.open()
            assert self.store.recovery.clean
            assert self.store.recovery.cut_bytes == 0
            self.found(len(self.models) - 1)

        @rule(tail=st.sampled_from(TAILS), noise=st.binary(min_size=1, max_size=300), share=st.floats(0, 1))
        def crash(self, tail: str, noise: bytes, share: float) -> None:
            """Go on in a crash image."""
            self.note_promises()
            at_least = self.acknowledged
            image = self.fresh("store")
            checkpointed = self.store.positions().checkpointed
            copy_running(self.path, image)
            for view in self.views:
                view.close()
            self.views.clear()
            self.promises.clear()
            self.store.close()
            self.path = image
            outside = max(checkpointed, len(self.backed_up) - 1)  # what others know of was synced long ago
            if tail != "as it is":
                at_least = min(at_least, unlucky(image, tail, noise, share, outside))
            self.open()
            found = self.store.published.txid
            assert at_least <= found < len(self.models)
            del self.models[found + 1 :]
            self.digests = {txid: digest for txid, digest in self.digests.items() if txid <= found}
            self.found(found)

        def found(self, txid: int) -> None:
            """The store was opened, and everything up to `txid` must be there."""
            self.acknowledged = txid
            with self.store.snapshot() as view:
                assert view.txid == txid
                self.compare(view, self.models)

        # --- backups -------------------------------------------------------------------------------------------------

        @rule(during=st.lists(st.one_of(st.none(), operations), max_size=3))
        def back_up(self, during: list[list[Operation] | None]) -> None:
            """Full or incremental, as the target has it, while transactions and checkpoints (None) go on."""
            left = list(during)

            def step() -> None:
                if left:
                    operations = left.pop()
                    if operations is None:
                        self.checkpoint()
                    else:
                        self.commit(operations, "synced")

            self.note_promises()
            at_least, first, base = self.acknowledged, self.target is None, self.store.log.base.txid
            self.target = self.target or self.fresh("backup")
            # One reader, so that one seed is one history.
            with patch.object(files, "READERS", 1), BusySource(self.store, step) as source:
                report = backup.run(source, self.target, engine=adapter.engine, fold=None)
            pruned = len(self.backed_up) - 1 < base
            assert report.kind == ("full" if first or pruned else "incremental")
            assert bool(report.why) == (pruned and not first)
            assert at_least <= report.to_txid < len(self.models)
            assert report.bounds.last == report.to_txid
            self.backed_up = self.models[: report.to_txid + 1]

        @precondition(lambda self: self.target)
        @rule()
        def verify(self) -> None:
            assert self.target is not None
            last = len(self.backed_up) - 1
            report = backup.verify(self.target, engine=adapter.engine)
            assert report.bounds.last == last
            digest = bytes.fromhex(report.digest)
            assert self.digests.setdefault(last, digest) == digest
            self.compare_closed(self.target, last, self.backed_up)

        @rule()
        def prune(self) -> None:
            self.store.prune()
            assert self.store.log.base.txid <= self.store.positions().checkpointed

        @precondition(lambda self: self.target)
        @rule(operations=operations)
        def lose_the_target_s_log(self, operations: list[Operation]) -> None:
            """What is kept for the target goes, if its registration does; the next backup may have to be a full one."""
            self.reopen()  # which seals the log so far, so that all of it may go
            self.commit(operations, "synced")
            self.checkpoint()
            for consumer in self.store.log.consumers.list():
                self.store.log.consumers.drop(consumer.id)
            self.prune()

        @precondition(lambda self: self.target)
        @rule()
        def forget_target(self) -> None:
            self.target, self.backed_up = None, []

        @precondition(lambda self: self.target)
        @rule(share=st.floats(0, 1), by_time=st.booleans(), go_on=st.booleans())
        def restore(self, share: float, by_time: bool, go_on: bool) -> None:
            assert self.target is not None
            bounds = backup.info(self.target).bounds
            assert bounds.last == len(self.backed_up) - 1
            txid = bounds.first + round(share * (bounds.last - bounds.first))
            at = None
            if by_time and txid > bounds.first:  # the last transaction of that microsecond is meant
                times = {record.txid: record.time_us for record in backup.transactions(self.target)}
                at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=times[txid])
                txid = max(n for n, time in times.items() if time <= times[txid])
            place = self.fresh("restored")
            report = backup.restore(self.target, place, to_txid=None if at else txid, at=at, engine=adapter.engine)
            assert report.txid == txid
            self.compare_closed(place, txid, self.backed_up)
            if go_on:
                self.go_on_in(place, txid)

        @precondition(lambda self: self.target)
        @rule(outside=st.sampled_from((-1, 1)))
        def restore_outside(self, outside: int) -> None:
            assert self.target is not None
            bounds = backup.info(self.target).bounds
            txid = bounds.last + 1 if outside > 0 else bounds.first - 1
            place = self.fresh("restored")
            with pytest.raises(RestorePointOutOfRange):
                backup.restore(self.target, place, to_txid=txid, engine=adapter.engine)
            assert not place.exists()

        @precondition(lambda self: self.target)
        @rule()
        def boot_a_copy_of_the_target(self) -> None:
            """A backup is a store: open it for writing, and go on there."""
            assert self.target is not None
            place = self.fresh("booted")
            shutil.copytree(self.target, place)
            self.go_on_in(place, len(self.backed_up) - 1)

        def go_on_in(self, place: Path, txid: int) -> None:
            """`place`, a twin of the store as of `txid`, is the store from now on, on a branch of its own."""
            assert self.target is not None
            self.close()
            branch = self.store.history.branch.id
            self.path = place
            self.models = self.backed_up[: txid + 1]
            self.digests = {n: digest for n, digest in self.digests.items() if n <= txid}
            self.open()
            assert self.store.history.branch.id != branch
            self.found(txid)
            before = tree(self.target)
            with pytest.raises(OtherBranch):
                backup.run(self.store, self.target, engine=adapter.engine)
            assert tree(self.target) == before
            self.forget_target()

    StoreMachine.__name__ = StoreMachine.__qualname__ = f"{adapter.engine.name.title()}StoreMachine"
    return StoreMachine


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a directory, but for the note of who holds its lock."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "LOCK"}


def copy_running(store: Path, image: Path) -> None:
    """Copy the directory of a store that runs, as it was at one moment: again, until nothing changed meanwhile."""
    for _ in range(100):
        shutil.rmtree(image, ignore_errors=True)
        with suppress(shutil.Error, FileNotFoundError):
            shutil.copytree(store, image)
            if tree(image) == tree(store):
                return
    raise AssertionError("the store does not come to rest")


def unlucky(store: Path, tail: str, noise: bytes, share: float, outside: int) -> int:
    """Change the end of a crash image's log as a disk might have left it; the last transaction that is surely there.

    Args:
        tail: `noise behind`: bytes that make no sense follow the last group. `torn`: of the last group, the bytes from
            `share` of it on are not there, unless it holds transactions up to `outside`, which were synced before.
    """
    log = store / (store / "CURRENT").read_text().strip() / "log"
    segment = max(path for path in log.glob("*.seg") if path.name[:12].isdigit())
    file = REAL.files.open(segment)
    try:
        header, start = read_header(file)
        if read_footer(file) is not None:
            return 1 << 62  # sealed: nothing was being written
        ends = [(start, header.base.txid)]
        with suppress(BadBytes):
            for group in read_groups(file, header.seed, start, file.size(), header.base):
                ends.append((group.end, group.records[-1].txid if group.records else ends[-1][1]))
    finally:
        file.close()
    at, last = ends[-1]
    if tail == "torn" and len(ends) > 1 and ends[-2][1] >= outside:
        before, last = ends[-2]
        at, noise = before + round(share * (at - before)), b""
    data = bytearray(segment.read_bytes())
    data[at:] = bytes(len(data) - at)
    data[at : at + len(noise)] = noise
    segment.write_bytes(data)
    return last
