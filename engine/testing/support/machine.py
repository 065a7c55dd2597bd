"""A state machine over a whole store: any engine, its log, crashes and reopenings, with a model beside them.

The model is a list: `models[n]` is the content after transaction n. Everything that a store shows is compared with the
model at the transaction that it says it shows, by content, by the engine's own check, and by digest, which must be the
same wherever the same transaction is looked at.

What only a crash can do is done to a crash image (`crash_images.py`): a copy of the directory of a store that runs,
with the end of its log changed as an unlucky disk might. The machine continues in the image.

`machine_for(work)` makes the Hypothesis machine for a workload. Rules are plain methods too, so a fixed history may
call them one by one; a subclass with more rules (backups, say) overrides `known_outside`, and `move` if it keeps more.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ...contract.engine import BulkEngine
from ...contract.transaction import Durability
from ...contract.view import View
from ...errors import StoreLocked
from .contract import scratch
from .crash_images import TAILS, unlucky
from .modelled import DURABILITIES, PATIENCE_S, SETTINGS, Modelled, Refused
from .raising import raises
from .workload import Operation, Workload

KEPT_LOGS = ("for ever", "1 transactions")

OPERATIONS: st.SearchStrategy[list[Operation]] = st.runner().flatmap(lambda machine: machine.drawn)
"""The operations of one transaction of the machine's own workload."""
Write = tuple[list[Operation], Durability]
WRITES: st.SearchStrategy[Write | None] = st.none() | st.tuples(OPERATIONS, st.sampled_from(DURABILITIES))
"""Most rules begin with these. In each run Hypothesis leaves out some rules. If it left out transactions, the others
would have nothing to do."""


class StoreMachine(Modelled, RuleBasedStateMachine):
    """See the module's text.

    Attributes:
        drawn: the workload's operations.
        acknowledged: the last transaction that nothing but a broken disk may take away.
        views: held open.
        promises: futures of pipelined commits, with their txids.
    """

    drawn: ClassVar[st.SearchStrategy[list[Operation]]]

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        self._outer = sys.exception()
        self._places = ExitStack()
        Modelled.__init__(self, self.work, self._places.enter_context(scratch()))
        self.acknowledged = 0
        self.views: list[View] = []
        self.promises: list[tuple[int, Future[int]]] = []
        self.bulks = 0

    # --- the store -------------------------------------------------------------------------------------------------

    @initialize(keep_logs=st.sampled_from(KEPT_LOGS))
    def create(self, keep_logs: str) -> None:
        self.settings = replace(SETTINGS, keep_logs=keep_logs)
        self.open()

    def close(self) -> None:
        self.close_views()
        self.store.close()
        self.keep_promises()

    def close_views(self) -> None:
        for view in self.views:
            view.close()
        self.views.clear()

    def teardown(self) -> None:
        failing = sys.exception() is not self._outer
        try:
            if hasattr(self, "store"):
                self.close()
        except Exception:
            if not failing:  # report what was found first
                raise
        finally:
            self._places.close()

    def keep_promises(self) -> None:
        for txid, promise in self.promises:
            assert promise.result(PATIENCE_S) == txid, f"the future of transaction {txid} gave another txid"
        self.promises.clear()

    def note_promises(self) -> None:
        done = [txid for txid, promise in self.promises if promise.done()]
        self.acknowledged = max([self.acknowledged, *done])

    def found(self, txid: int) -> None:
        """The store was opened, and everything up to `txid` must be there."""
        self.acknowledged = txid
        super().found(txid)

    def move(self, path: Path, txid: int) -> None:
        """Go on with the store at `path`, in which nothing after `txid` ever was. Nothing is open."""
        self.path = path
        del self.models[txid + 1 :]
        self.digests = {n: digest for n, digest in self.digests.items() if n <= txid}

    def known_outside(self) -> int:
        """The last transaction that something besides the log knows of, so it was synced long ago."""
        return self.store.positions().checkpointed

    # --- transactions ------------------------------------------------------------------------------------------------

    @rule(operations=OPERATIONS, durability=st.sampled_from(DURABILITIES))
    def commit(self, operations: list[Operation], durability: Durability) -> None:
        tx = self.transact(operations, durability)
        if tx.txid is None:
            return
        if durability == "synced":
            self.acknowledged = tx.txid
        elif durability == "pipelined":
            self.promises.append((tx.txid, tx.outcome))
        self.note_promises()

    @rule(several=st.lists(OPERATIONS, min_size=2, max_size=4), durability=st.sampled_from(DURABILITIES))
    def commit_several(self, several: list[list[Operation]], durability: Durability) -> None:
        for operations in several:
            self.commit(operations, durability)

    def begin_with(self, write: Write | None) -> None:
        if write is not None:
            self.commit(*write)

    @rule(operations=OPERATIONS, write=WRITES)
    def roll_back(self, operations: list[Operation], write: Write | None = None) -> None:
        self.begin_with(write)
        with raises(Refused, "a block"), self.store.transaction() as tx:
            self.work.run(tx, self.models[-1].copy(), operations)
            raise Refused

    @rule(durability=st.sampled_from(DURABILITIES), write=WRITES)
    def commit_nothing(self, durability: Durability, write: Write | None = None) -> None:
        self.begin_with(write)
        with self.store.transaction(durability) as tx:
            pass
        assert tx.txid is None, "a transaction without changes was logged"
        last = self.last
        published = self.store.published.txid
        assert published == last, f"a transaction that read {last} ended while {published} was published"
        self.acknowledged = last

    @precondition(lambda self: issubclass(self.work.engine, BulkEngine))
    @rule()
    def load_in_bulk(self) -> None:
        self.bulks += 1
        self.acknowledged = self.bulk(self.bulks)

    @rule(write=WRITES)
    def wait(self, write: Write | None = None) -> None:
        self.begin_with(write)
        self.store.wait(self.last, PATIENCE_S)
        self.acknowledged = self.last
        self.keep_promises()

    # --- views -------------------------------------------------------------------------------------------------------

    @rule(unsynced=st.booleans(), write=WRITES)
    def look(self, unsynced: bool, write: Write | None = None) -> None:
        self.begin_with(write)
        self.note_promises()
        unsynced = unsynced and self.watermarks
        view = self.store.snapshot(unsynced=unsynced)
        self.views.append(view)
        if unsynced:
            assert view.txid == self.last, f"an unsynced view is at {view.txid}, not {self.last}"
        else:
            assert view.txid >= self.acknowledged, f"a view is at {view.txid}, below {self.acknowledged}"
        self.compare(view)

    @rule(unsynced=st.booleans(), write=WRITES)
    def hold(self, unsynced: bool, write: Write | None = None) -> None:
        """A view that nobody looks at until later."""
        self.begin_with(write)
        self.views.append(self.store.snapshot(unsynced=unsynced and self.watermarks))

    @precondition(lambda self: self.views)
    @rule(index=st.integers(0, 9), write=WRITES)
    def look_again(self, index: int, write: Write | None = None) -> None:
        self.begin_with(write)
        view = self.views.pop(index % len(self.views))
        self.compare(view)
        view.close()

    @precondition(lambda self: self.work.engine.abilities.shared_readers)
    @rule(write=WRITES)
    def look_beside(self, write: Write | None = None) -> None:
        """Read-only, while the store writes: what is known to be durable. Some libraries open a directory only once in
        a process, and say so."""
        self.begin_with(write)
        try:
            beside = self.opened(self.path, read_only=True)
        except StoreLocked:
            return
        with beside, beside.snapshot() as view:
            # A reader cannot know that the last group is durable.
            assert self.store.positions().checkpointed <= view.txid < len(self.models), f"a reader beside: {view.txid}"
            self.compare(view)

    @invariant()
    def stages_are_in_order(self) -> None:
        if hasattr(self, "store"):
            p = self.store.positions()
            if p.durable == p.appended:  # nothing moves while it is looked at
                assert p.durable >= p.acknowledged >= p.published >= p.checkpointed, f"watermarks out of order: {p}"
            assert p.appended == self.last, f"{p}, and the last transaction is {self.last}"
            assert p.acknowledged >= self.acknowledged, f"{p}, and {self.acknowledged} was acknowledged"

    # --- checkpoints, pruning, closing, crashes ----------------------------------------------------------------------

    @rule(write=WRITES)
    def checkpoint(self, write: Write | None = None) -> None:
        self.begin_with(write)
        before = self.store.published.txid
        reached = self.store.checkpoint().txid
        assert reached >= before, f"a checkpoint reached {reached}, and {before} was published"
        assert self.store.positions().checkpointed >= before

    @rule(write=WRITES)
    def prune(self, write: Write | None = None) -> None:
        self.begin_with(write)
        self.store.prune()
        base, checkpointed = self.store.log.base.txid, self.store.positions().checkpointed
        assert base <= checkpointed, f"the log begins after {base}, and the state holds only {checkpointed}"

    @rule(write=WRITES)
    def reopen(self, write: Write | None = None) -> None:
        self.begin_with(write)
        self.close()
        if self.work.engine.abilities.replays_in_memory:
            self.compare_closed(self.path, self.last)
        self.open()
        recovery = self.store.recovery
        assert recovery.clean, f"the store was closed, and is not clean: {recovery}"
        assert recovery.cut_bytes == 0, f"the store was closed, and its log was cut: {recovery}"
        self.found(self.last)

    @rule(tail=st.sampled_from(TAILS), noise=st.binary(min_size=1, max_size=300), share=st.floats(0, 1),
          write=WRITES)
    def crash(self, tail: str, noise: bytes, share: float, write: Write | None = None) -> None:
        """Go on in a crash image."""
        self.begin_with(write)
        self.note_promises()
        at_least = self.acknowledged
        outside, image = self.known_outside(), self.crash_image()
        self.close_views()
        self.promises.clear()
        self.store.close()
        at_least = min(at_least, unlucky(image, tail, noise, share, outside))
        last, self.path = self.last, image
        self.open()
        found = self.store.published.txid
        assert at_least <= found <= last, f"after a crash, {found} of {last} are there; at least {at_least} must be"
        self.move(image, found)
        self.found(found)


def machine_for(work: Workload, base: type[StoreMachine] = StoreMachine) -> type[StoreMachine]:
    """The machine `base` for a workload."""
    name = f"{work.engine.name.title().replace('-', '')}{base.__name__}"
    return type(name, (base,), {"work": work, "drawn": work.operations(), "__module__": base.__module__})
