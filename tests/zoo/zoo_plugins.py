"""Animals among plugins, and the healthy ones that they are made from."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from zoo import animal

from holdfast.engine.contract.plugin import Condition, Plugin, StoreHandle
from holdfast.engine.contract.transaction import Transaction
from holdfast.engine.errors import HoldfastError, InvalidInput
from holdfast.engine.model.positions import Position
from holdfast.engine.model.records import LogRange, Record, SegmentInfo
from holdfast.engine.store.store import Store
from holdfast.engine.toolkit.keyed_transaction import changes_of


class Counter(Plugin):
    """Counts what it sees: a healthy observer."""

    def __init__(self) -> None:
        self.seen = 0

    def published(self, records: Sequence[Record]) -> None:
        self.seen += len(records)


class Replicated(Plugin):
    """Holds each commit until a thread of its own, which stands for a replica, has it: healthy."""

    def __init__(self) -> None:
        self.waiting: list[Future[Any]] = []
        self.news, self.ended = threading.Condition(), False

    def opened(self, store: StoreHandle) -> None:
        self.ended = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(lambda: self.waiting or self.ended)
                if not self.waiting:
                    return
                met = self.waiting.pop(0)
            met.set_result(None)

    def logged(self, batch: LogRange) -> Condition | None:
        met: Future[Any] = Future()
        with self.news:
            self.waiting.append(met)
            self.news.notify()
        return Condition(met=met, timeout=10.0, gates_publication=True, name="the replica")

    def closing(self, store: StoreHandle) -> None:
        with self.news:
            self.ended = True
            self.news.notify()
        if hasattr(self, "thread"):
            self.thread.join()


class Archive(Plugin):
    """Keeps the log until it is archived: healthy."""

    archived = False

    def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
        return None if self.archived else f"{len(segments)} segments are not archived yet"

    def end_veto(self) -> None:
        self.archived = True


class Strict(Plugin):
    """Refuses transactions, and loads, that set a forbidden key: healthy."""

    def committing(self, tx: Transaction) -> None:
        if b"forbidden" in (tx.payload() if tx.bulk is None else tx.bulk):
            raise InvalidInput("that key is forbidden")


# --- what they leave behind ----------------------------------------------------------------------------------------


@animal(caught_by="PluginContract.test_closing_lets_go_of_everything", holds=True, gates=True)
class LeakedThread(Replicated):
    """The thread that it starts goes on after the store is closed: a service that cannot be stopped, only
    killed."""

    def closing(self, store: StoreHandle) -> None: ...


@animal(caught_by="PluginContract.test_closing_lets_go_of_everything")
class LeakedPipe(Counter):
    """What it opens it does not close: two descriptors for each opening of the store."""

    def opened(self, store: StoreHandle) -> None:
        self.pipe = os.pipe()


@animal(caught_by="PluginContract.test_it_lets_go_where_another_cannot_start", holds=True, gates=True)
class NeedsACommitToClose(Replicated):
    """Closing waits for what the first commit would have begun. Where another plugin cannot start there is none, and
    its thread stays."""

    def closing(self, store: StoreHandle) -> None:
        if store.published.txid:
            super().closing(store)


@animal(caught_by="PluginContract.test_one_store_after_another")
class RemembersLastStore(Counter):
    """It keeps where it stood from one store to the next, and takes the second store's transactions for old ones."""

    last = 0

    def published(self, records: Sequence[Record]) -> None:
        if records[0].txid != self.last + 1 and self.last:
            raise RuntimeError(f"transaction {records[0].txid} came after {self.last}")
        self.last = records[-1].txid


@animal(caught_by="PluginContract.test_two_stores_at_once")
class OneForAll(Counter):
    """What it counts belongs to the class: two stores in one process count together."""

    stores: ClassVar[list[Any]] = []

    def opened(self, store: StoreHandle) -> None:
        if self.stores:
            raise RuntimeError("there is a store already")
        self.stores.append(store)

    def closing(self, store: StoreHandle) -> None:
        self.stores.clear()


@animal(caught_by="PluginContract.test_it_stays_where_it_was_opened")
class WritesWhereTheProcessIs(Counter):
    """It notes what it has seen in a file that it names by a relative path, each time. A daemon changes its directory,
    and the notes stand in two files, neither of them whole."""

    path = Path("seen")

    def published(self, records: Sequence[Record]) -> None:
        super().published(records)
        self.path.write_text(str(self.seen))


@animal(caught_by="PluginContract.test_any_history_is_lived_through")
class WantsCleanStores(Counter):
    """It refuses to start on a store that was not closed properly: after a crash, when it is needed most, nothing
    opens."""

    def opened(self, store: StoreHandle) -> None:
        assert isinstance(store, Store)
        if not store.recovery.clean:
            raise RuntimeError("that store was not closed properly")


# --- what they do to commits ---------------------------------------------------------------------------------------


@animal(caught_by="PluginContract.test_final_leaves_the_transaction_alone", on="memory")
class ChangesTheFinalTransaction(Plugin):
    """It adds to the transaction after everybody has agreed to it: what is logged is not what the others saw."""

    def final(self, tx: Transaction) -> None:
        tx.changes[b"checked by"] = b"me"  # type: ignore[attr-defined]


@animal(caught_by="PluginContract.test_an_observer_changes_nothing", on="memory")
class UndeclaredAddition(Plugin):
    """It stamps every transaction and does not say that it adds anything: a store with it is not the store without
    it."""

    def committing(self, tx: Transaction) -> None:
        tx.changes[b"seen by"] = b"me"  # type: ignore[attr-defined]


@animal(caught_by="PluginContract.test_it_commits_nothing_within_a_hook", stuck_s=1.0)
class CommitsWithin(Plugin):
    """It commits a transaction of its own for each that is committed, and waits for itself."""

    def opened(self, store: StoreHandle) -> None:
        self.store = store

    def committing(self, tx: Transaction) -> None:
        def write() -> None:
            with suppress(HoldfastError), self.store.transaction():
                pass

        if tx.payload():
            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            thread.join(3.0)  # for ever, but for the zoo's sake


@animal(caught_by="PluginContract.test_conditions_come_to_an_end", holds=True, gates=True, stuck_s=1.0)
class NeverMet(Replicated):
    """The replica is gone and nobody notices: the condition is never met, and its time-out is a day."""

    def logged(self, batch: LogRange) -> Condition | None:
        return Condition(met=Future(), timeout=86400.0, gates_publication=True, name="the replica")


@animal(caught_by="PluginContract.test_conditions_are_cumulative", on="staging", holds=True, gates=True)
class MeetsOutOfOrder(Replicated):
    """It meets the newest condition first and the older ones afterwards: what was acknowledged says nothing about what
    came before it."""

    def run(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(lambda: len(self.waiting) > 1 or self.ended, 0.2)
                if self.ended and not self.waiting:
                    return
                newest_first, self.waiting = self.waiting[::-1], []
            for met in newest_first:
                met.set_result(None)


@animal(caught_by="PluginContract.test_hooks_are_prompt", holds=True, gates=True, prompt_s=0.2)
class BlocksInLogged(Replicated):
    """It waits for the replica within the hook, instead of returning a condition: no commit overtakes a slow
    network."""

    def logged(self, batch: LogRange) -> Condition | None:
        threading.Event().wait(0.3)
        return super().logged(batch)


@animal(caught_by="PluginContract.test_a_transaction_costs_no_more_after_many", on="memory", holds=True, gates=True)
class ReadsAllOfTheLog(Replicated):
    """A thread reads the log from the beginning for each range, to find what the replica lacks. In the first week
    nobody notices; after a year each commit waits for gigabytes to be read."""

    def opened(self, store: StoreHandle) -> None:
        self.log = store.log
        super().opened(store)

    def logged(self, batch: LogRange) -> Condition | None:
        thread = threading.Thread(target=lambda: sum(1 for _ in self.log.cursor(0).read()))
        thread.start()
        thread.join()
        return super().logged(batch)


@animal(caught_by="PluginContract.test_a_transaction_costs_no_more_after_many", on="memory")
class AddsUpAgain(Counter):
    """It keeps what it has seen, and adds it all up again for each transaction: a figure for a dashboard, of which
    somebody wrote a list where a sum would do."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def published(self, records: Sequence[Record]) -> None:
        self.sizes += [len(record.payload) for record in records]
        self.seen = sum(size for size in self.sizes)


@animal(caught_by="PluginContract.test_observing_hooks_do_not_raise")
class RaisesInObserver(Counter):
    """An observer that fails on its third record. The store goes on, nobody reads the log, and what it should have
    observed is lost."""

    def published(self, records: Sequence[Record]) -> None:
        super().published(records)
        if self.seen >= 3:
            raise ValueError("an index out of range")


@animal(caught_by="PluginContract.test_observing_hooks_do_not_raise", on="staging")
class TakesLoadsForChanges(Counter):
    """It takes the payload of each record for changes. That of a bulk load only says which file they are in: the store
    goes on, and the index that it should have kept lacks a million entries."""

    def published(self, records: Sequence[Record]) -> None:
        self.seen += sum(len(list(changes_of(record))) for record in records)


@animal(caught_by="PluginContract.test_observing_hooks_do_not_raise")
class RaisesAtCheckpoints(Counter):
    """It raises at each checkpoint after the first, since it makes a file at each and one of that name is there."""

    before: Position | None = None

    def checkpointed(self, position: Position) -> None:
        if self.before is not None:
            raise ValueError("a second checkpoint")
        self.before = position


@animal(caught_by="PluginContract.test_pruning_gets_on", vetoes=True, end_veto=lambda suite, plugin: plugin.end_veto())
class VetoesForEver(Archive):
    """It keeps the log for what is not archived yet, and never learns that it is: the disk fills with log."""

    def end_veto(self) -> None: ...


@animal(caught_by="PluginContract.test_a_fault_is_borne")
class FailsAtFaults(Counter):
    """When the store is poisoned it tries to write that down into the store."""

    def opened(self, store: StoreHandle) -> None:
        self.store = store

    def fault(self, error: BaseException) -> None:
        with self.store.transaction():
            pass


@animal(caught_by="PluginContract.test_conditions_are_sound", holds=True)
class WaitsForEver(Replicated):
    """The condition has no end: a time-out of zero would mean "at once", so its author took infinity."""

    def logged(self, batch: LogRange) -> Condition | None:
        condition = super().logged(batch)
        assert condition is not None
        return replace(condition, timeout=float("inf"))


@animal(caught_by="PluginContract.test_nothing_is_shown_before_its_condition", holds=True, gates=True)
class GatesNothing(Replicated):
    """It is to keep readers from seeing what the replica does not have, and its conditions do not gate publication."""

    def logged(self, batch: LogRange) -> Condition | None:
        condition = super().logged(batch)
        assert condition is not None
        return replace(condition, gates_publication=False)


@animal(
    caught_by="PluginContract.test_a_refusal_leaves_nothing", on="memory", refuses=True,
    refused=lambda suite: [("put", b"forbidden", b"")])
class RefusesOnce(Strict):
    """It refuses a transaction the first time, and lets the same one through when it is tried again."""

    refused = False

    def committing(self, tx: Transaction) -> None:
        if not self.refused:
            self.refused = b"forbidden" in tx.payload()
            super().committing(tx)


@animal(
    caught_by="PluginContract.test_a_refused_bulk_load_leaves_nothing", on="staging", refuses=True,
    refused_load=lambda suite: {b"forbidden": b""})
class LetsLoadsPass(Strict):
    """It looks at what a transaction will be logged as, and the transaction of a bulk load is empty: who may not set a
    key in a transaction loads it."""

    def committing(self, tx: Transaction) -> None:
        if b"forbidden" in tx.payload():
            raise InvalidInput("that key is forbidden")


@animal(caught_by="PluginContract.test_what_is_rolled_back_is_forgotten", on="memory")
class RemembersRolledBack(Plugin):
    """It refuses what it has seen before, to guard against commits that are sent twice, and counts what was rolled back
    as seen: a retry never succeeds."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def committing(self, tx: Transaction) -> None:
        payload = tx.payload()
        if payload and payload in self.seen:
            raise InvalidInput("that transaction was here before")
        self.seen.add(payload)


@animal(caught_by="PluginContract.test_additions_are_logged", on="memory", adds=True)
class AddsBehindTheLog(Plugin):
    """What it adds goes straight into the engine's state, past the log: it is there until the store is opened again."""

    def opened(self, store: StoreHandle) -> None:
        assert isinstance(store, Store)
        self.engine = store.engine

    def committing(self, tx: Transaction) -> None:
        self.engine._state[b"seen by"] = b"me"  # type: ignore[attr-defined]


@animal(caught_by="PluginContract.test_a_fork_is_borne", holds=True, gates=True)
class SaysGoodbyeTwice(Replicated):
    """In a forked child it closes as it does in its parent: it waits for a thread that is not there."""

    def forked(self) -> None:
        os.kill(os.getppid(), 0)
        if not self.thread.is_alive():
            raise RuntimeError("the replica's thread is gone")
