"""Hooks on any engine: what plugins are told of a store's life, and what they may add to transactions.

`PluginContract` (`testing/plugin/`) is the contract for an author's plugin. Here plugins are a means to test a store.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from ...contract.plugin import Plugin, StoreHandle
from ...contract.transaction import Durability, Transaction
from ...model.positions import Position
from ...model.records import LogRange, Record
from ..support.contract import Contract, check, scratch
from ..support.modelled import DURABILITIES, PATIENCE_S, Modelled
from ..support.raising import refuses_changes
from ..support.workload import Operation, Workload


class Listening(Plugin):
    """Notes every moment, and what a view shows then."""

    def __init__(self) -> None:
        self.moments: list[str] = []
        self.transactions: list[bytes] = []
        self.logged_ranges: list[LogRange] = []
        self.records: list[Record] = []
        self.shown: list[int] = []
        self.checkpoints: list[int] = []

    def opened(self, store: StoreHandle) -> None:
        self.store = store
        self.moments.append("opened")

    def closing(self, store: StoreHandle) -> None:
        self.moments.append("closing")

    def committing(self, tx: Transaction) -> None:
        self.moments.append("committing")

    def final(self, tx: Transaction) -> None:
        self.moments.append("final")
        if payload := tx.payload():
            self.transactions.append(payload)

    def logged(self, batch: LogRange) -> None:
        self.logged_ranges.append(batch)

    def published(self, records: Sequence[Record]) -> None:
        self.records += records
        with self.store.snapshot() as view:
            self.shown.append(view.txid - records[-1].txid)

    def checkpointed(self, position: Position) -> None:
        self.checkpoints.append(position.txid)


class Adding(Plugin):
    """Adds to every transaction, and lets another thread try to add more when that is too late."""

    def __init__(self) -> None:
        self.kept: Modelled | None = None
        self.added = 0
        self.payloads: list[bytes] = []
        self.wrong: BaseException | None = None

    def committing(self, tx: Transaction) -> None:
        if self.kept is not None:
            self.added += 1
            self.kept.work.run(tx, self.kept.tried, self.kept.work.numbered(1000 + self.added))

    def final(self, tx: Transaction) -> None:
        if self.kept is not None:
            self.payloads.append(tx.payload())
            self.kept.store.env.scheduler.spawn("late", lambda: self._add_late(tx)).join()
            if self.wrong is not None:
                raise self.wrong

    def _add_late(self, tx: Transaction) -> None:
        assert self.kept is not None
        try:
            refuses_changes(self.kept.work, tx, self.kept.tried, [], "a transaction that is being committed",
                            answers=False)
        except BaseException as error:
            self.wrong = error


class HookChecks(Contract):
    """What hooks see of an engine."""

    @check()
    def test_hooks_are_told_everything_once_and_in_order(self, work: Workload) -> None:
        """Plugins are told of every transaction, every synced range, every published record and every checkpoint, once
        and in order; the payload that they see last is the one that is logged, and a record's publication is told when
        views show it."""
        def claim(several: list[tuple[list[Operation], Durability]]) -> None:
            one, other = Listening(), Listening()
            with scratch() as root, Modelled(work, root, plugins=[one, other]) as kept:
                for number, (operations, durability) in enumerate(several):
                    kept.transact(operations, durability)
                    kept.write(number, durability)
                    if number == 0:
                        kept.store.checkpoint()
                kept.store.wait(kept.last, PATIENCE_S)
                kept.store.wait_published(kept.last - 1, PATIENCE_S)
                kept.store.checkpoint()
                records = list(kept.store.log.read(0))
                kept.store.close()
                for plugin in (one, other):
                    self._was_told_all(plugin, records, 2 * len(several))

        steps = st.tuples(work.operations(), st.sampled_from(DURABILITIES))
        self.prove(claim, examples=6, several=st.lists(steps, min_size=1, max_size=3))

    @staticmethod
    def _was_told_all(plugin: Listening, records: list[Record], transactions: int) -> None:
        last = len(records)
        expected = ["opened", *["committing", "final"] * transactions, "closing"]
        assert plugin.moments == expected, f"the moments were {plugin.moments}, not {expected}"
        assert plugin.transactions == [record.payload for record in records], "what is logged is not what was seen last"
        told = [txid for batch in plugin.logged_ranges for txid in range(batch.first, batch.last + 1)]
        assert told == list(range(1, last + 1)), f"the ranges that were told as logged are {plugin.logged_ranges}"
        published = [record.position for record in plugin.records]
        assert published == [record.position for record in records], f"told as published: {published}"
        assert min(plugin.shown) >= 0, f"publication was told {-min(plugin.shown)} transactions before views show it"
        assert plugin.checkpoints == sorted(plugin.checkpoints), f"checkpoints were told as {plugin.checkpoints}"
        assert plugin.checkpoints[-1] == last, f"the last checkpoint was told as {plugin.checkpoints[-1]}, not {last}"

    @check()
    def test_what_a_plugin_adds_is_part_of_the_transaction(self, work: Workload) -> None:
        """What a plugin adds to a transaction is logged with it, as one transaction, shown with it, and there after a
        crash. While a transaction is being committed, other threads cannot use it."""
        def claim(several: list[list[Operation]]) -> None:
            plugin = Adding()
            with scratch() as root, Modelled(work, root, plugins=[plugin]) as kept:
                kept.write(0)
                plugin.kept = kept
                for number, operations in enumerate(several, 1):
                    kept.transact([*operations, *work.numbered(number)])
                    kept.shows(number + 1)
                    with kept.store.snapshot() as view:
                        added = work.shows(work.content(view), 1000 + number)
                    assert added, f"what the plugin added to transaction {number + 1} is not there"
                    kept.recovered(kept.crash_image(), number + 1)
                plugin.kept = None
                logged = [record.payload for record in kept.store.log.read(1)]
                assert logged == plugin.payloads, "what is logged is not the transaction that was seen last"
                kept.reopen()

        self.prove(claim, examples=5, several=st.lists(work.operations(), min_size=1, max_size=2))
