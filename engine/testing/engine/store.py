"""An engine under a real store: histories, snapshots, ids, closing, threads, and one history for one seed.

Each check here opens stores in a scratch directory, with a model beside them (`support/modelled.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ...contract.engine import BulkEngine, Context
from ...contract.transaction import Durability
from ...env import Env, Files
from ...errors import ConditionNotMet
from ...model.records import Record
from ..disks.faulty import FaultyFiles, is_log
from ..disks.quiet import quiet_env
from ..support.concurrency import Crowd
from ..support.contract import BULK, STAGING, Contract, check, scratch
from ..support.crash_images import log_of, read_image, state_of, tree
from ..support.holding import Holding
from ..support.machine import machine_for
from ..support.modelled import DURABILITIES, PATIENCE_S, Modelled, Refused, difference, kept_with
from ..support.raising import raises, refuses_changes
from ..support.working_directory import back_again, go_to_one_of_two
from ..support.workload import Operation, Workload, of_each_kind

COMPARED = 8
"""Of the states that threads have seen, one in this many is compared by its content too."""


class StoreChecks(Contract):
    """What a store of the engine shows, through any sequence of events."""

    @check()
    def test_any_history_of_a_store(self, work: Workload) -> None:
        """Through any history of transactions of each durability, roll-backs, bulk loads, views held open, checkpoints,
        pruning, reopenings and crashes, a store shows what was written, and nothing else."""
        self.prove_machine(machine_for(work), examples=10)

    @check()
    def test_a_whole_life_of_a_store(self, work: Workload) -> None:
        """The same through one fixed history that has every kind of step, with any content."""
        machine = machine_for(work)

        def claim(data: st.DataObject) -> None:
            def some() -> list[Operation]:
                return data.draw(machine.drawn)

            m = machine()
            try:
                m.create("1 transactions")
                m.commit_several([some(), some(), some()], "synced")
                m.look(unsynced=False)
                m.hold(unsynced=False)
                m.checkpoint()
                m.roll_back(some())
                m.commit_several([some(), some()], "relaxed")
                m.look(unsynced=True)
                m.look_beside()
                m.look_again(1)
                m.look_again(0)
                m.commit_several([some(), some()], "pipelined")
                m.commit_nothing("synced")
                m.wait()
                m.crash("as it is", b"!", 0.0)
                m.commit_several([some(), some()], "synced")
                m.crash("noise behind", b"noise" * 20, 0.0)
                if issubclass(work.engine, BulkEngine):
                    m.load_in_bulk()
                m.commit_several([some(), some()], "synced")
                m.crash("torn", b"!", 0.6)
                m.reopen()
                m.commit(some(), "relaxed")
                m.reopen()
                m.look(unsynced=False)
                m.commit(some(), "synced")
                m.checkpoint()
                m.prune()
                m.look_again(0)
                m.crash("as it is", b"!", 0.0)
                m.stages_are_in_order()
            finally:
                m.teardown()

        self.prove(claim, examples=5, data=st.data())

    @check()
    def test_a_snapshot_stays_as_it_is(self, work: Workload) -> None:
        """A snapshot shows the content at its transaction, and shows the same after any later transactions and
        checkpoints, however many snapshots are held, until it is closed."""
        def claim(several: list[tuple[list[Operation], bool]]) -> None:
            with kept_with(work, []) as kept:
                held, passing = [kept.store.snapshot()], kept.store.snapshot()
                for number, (operations, checkpointed) in enumerate(several, 1):
                    kept.write(number)
                    held += [kept.store.snapshot(), kept.store.snapshot()]
                    kept.transact(operations)
                    if checkpointed:
                        kept.store.checkpoint()
                    passing.close()
                    passing = kept.store.snapshot()
                    for view in [*held, passing]:
                        kept.compare(view)
                passing.close()
                for number in (98, 99):
                    kept.write(number)
                    kept.store.checkpoint()
                while held:
                    for view in held:
                        kept.compare(view)
                    held.pop().close()

        steps = st.tuples(work.operations(), st.booleans())
        self.prove(claim, examples=6, several=st.lists(steps, min_size=3, max_size=5))

    @check()
    def test_what_is_closed_is_clean(self, work: Workload) -> None:
        """A store that was closed opens clean, whatever was not yet synced or checkpointed: everything is there,
        nothing was cut, and nothing has to be replayed."""
        def claim(several: list[list[Operation]], durability: Durability) -> None:
            with kept_with(work, []) as kept:
                for operations in several:
                    kept.transact(operations, durability)
                    kept.write(kept.last, durability)
                    kept.reopen()
                    recovery = kept.store.recovery
                    assert recovery.clean, f"it was closed, and is not clean: {recovery}"
                    assert not recovery.cut_bytes, f"it was closed, and its log was cut: {recovery}"
                    assert not recovery.replayed, f"it was closed, and {recovery.replayed} had to be replayed"

        self.prove(claim, examples=5, several=st.lists(work.operations(), min_size=1, max_size=3),
                   durability=st.sampled_from(DURABILITIES))

    @check()
    def test_no_id_returns(self, work: Workload) -> None:
        """An id that a durable transaction got is never given out again: not after its object was deleted, not after
        reopening, not after a crash, with or without a checkpoint in between."""
        def claim(several: list[tuple[list[Operation], str]]) -> None:
            with kept_with(work, []) as kept:
                for number, (operations, then) in enumerate(several, 1):
                    kept.write(number)
                    kept.transact(operations)
                    with raises(Refused, "a block"), kept.store.transaction() as tx:
                        work.run(tx, kept.models[-1].copy(), work.numbered(number + 100))
                        raise Refused
                    if "checkpoint" in then:
                        kept.store.checkpoint()
                    if "crash" in then:
                        image = kept.crash_image()
                        kept.store.close()
                        kept.path = image
                        kept.open()
                    else:
                        kept.reopen()
                    kept.found(kept.last)
                kept.write(99)

        steps = st.tuples(work.operations(), st.sampled_from(("crash", "checkpoint and crash", "close")))
        self.prove(claim, examples=12, several=st.lists(steps, min_size=2, max_size=4))

    @check()
    def test_many_threads_see_one_history(self, work: Workload) -> None:
        """While several threads write, read and checkpoint, each view shows the state that the log up to its
        transaction gives when it is replayed into a new store, and after reopening everything is there."""
        def claim(before: list[Operation], durability: Durability) -> None:
            with scratch() as root, Modelled(work, root) as kept:
                kept.transact(before)
                kept.write(0)
                Crowd(kept, durability).run()
                kept.store.wait(kept.last, PATIENCE_S)
                records = list(kept.store.log.read(0))
                kept.shows(kept.last)
                self._replay(kept, records, root / "replayed")
                kept.reopen()

        for durability in DURABILITIES:
            self.prove(claim, examples=1, before=work.operations(), durability=st.just(durability))

    @staticmethod
    def _replay(kept: Modelled, records: list[Record], directory: Path) -> None:
        """Replay the log into a new state. At each transaction that a view has shown, it must be the same."""
        seen = sorted(txid for txid in kept.digests if txid)
        start = kept.store.history.branches[0].start
        context = Context(Env(), kept.work.opened_with)
        directory.mkdir()
        kept.engine.create(directory, start, context)
        engine = kept.engine.open(directory, context)
        try:
            applied = 0
            for number, txid in enumerate(seen):
                engine.apply(records[applied:txid])
                with engine.view() as view:
                    assert view.txid == txid, f"after replay up to {txid} a view shows {view.txid}"
                    (kept.note if number % COMPARED else kept.compare)(view)
                applied = txid
        finally:
            engine.close()

    @check()
    def test_one_seed_one_history(self, work: Workload) -> None:
        """The same operations, clock and randomness give the same log, byte for byte, the same digests and, if the
        engine writes through the environment, the same state files."""
        def claim(several: list[tuple[list[Operation], bool]], reopened: bool) -> None:
            def live(root: Path) -> tuple[dict[str, bytes], dict[str, bytes], bytes]:
                with Modelled(work, root, env=quiet_env(Files())) as kept:
                    for number, (operations, relaxed) in enumerate(several):
                        kept.transact(operations, "relaxed" if relaxed and kept.watermarks else "synced")
                        kept.write(number)
                        if number == 1:
                            kept.store.checkpoint()
                    if reopened:
                        kept.reopen()
                        kept.write(99)
                    with kept.store.snapshot() as view:
                        digest = view.digest()
                return tree(log_of(kept.path)), tree(state_of(kept.path)), digest

            with scratch() as one, scratch() as other:
                (log, state, digest), (log2, state2, digest2) = live(one), live(other)
            assert digest == digest2, "two runs of the same history end with two digests"
            assert log.keys() == log2.keys(), f"two runs of the same history have other logs: {set(log) ^ set(log2)}"
            for name, data in log.items():
                at = _first_difference(data, log2[name])
                assert at is None, f"two runs of the same history differ from byte {at} of the log's {name} on"
            if work.above_env:
                assert state == state2, "two runs of the same history leave other state files: " + ", ".join(
                    name for name in {**state, **state2} if state.get(name) != state2.get(name))

        steps = st.tuples(work.operations(), st.booleans())
        self.prove(claim, examples=5, several=st.lists(steps, min_size=1, max_size=4), reopened=st.booleans())

    @check()
    def test_a_transaction_that_ended_takes_no_more(self, work: Workload) -> None:
        """A transaction that was committed or rolled back refuses changes of every kind."""
        some = of_each_kind(work)

        def claim(operations: list[Operation], commits: bool) -> None:
            with scratch() as root, Modelled(work, root) as kept:
                kept.write(0)
                if commits:
                    tx = kept.transact([*operations, *work.numbered(1)])
                else:
                    with raises(Refused, "a block"), kept.store.transaction() as tx:
                        kept.tried = kept.models[-1].copy()
                        work.run(tx, kept.tried, [*operations, *work.numbered(1)])
                        raise Refused
                refuses_changes(work, tx, kept.tried, some, "a transaction that has ended", answers=False)
                kept.shows(kept.last)
                kept.write(2)
                kept.shows(kept.last)

        self.prove(claim, examples=3, operations=work.operations(), commits=st.booleans())

    @check()
    def test_nothing_is_visible_before_it_is_synced(self, work: Workload) -> None:
        """While the log is written and synced, and while plugins are asked, views show what was acknowledged before.
        They show nothing of the transactions in progress, whatever durability these asked for."""
        def claim(several: list[list[Operation]], durability: Durability) -> None:
            files, plugin = FaultyFiles(), Holding(gates=False)
            with kept_with(work, several[0], env=Env(files), plugins=[plugin]) as kept:
                seen: list[tuple[str, int, int, Any]] = []

                def look(when: str, at_most: int) -> None:
                    with kept.store.snapshot() as view:
                        seen.append((when, at_most, view.txid, work.content(view)))

                def before(what: str, path: Path) -> None:
                    if is_log(path) and what in ("pwrite", "datasync"):
                        look(f"before the {what} of the log after transaction", kept.store.durable.txid)

                files.before = before
                plugin.look = lambda batch: look("while a plugin was asked about what comes after", batch.first - 1)
                for number, operations in enumerate(several, 1):
                    kept.transact([*operations, *work.numbered(number)], durability)
                kept.store.wait(kept.last, PATIENCE_S)
                files.heal()
                plugin.look = lambda batch: None
                assert len(seen) >= 3, f"the log was looked at only {len(seen)} times"
                for when, at_most, txid, content in seen:
                    assert txid <= at_most, f"{when} {at_most}, a view is at {txid}"
                    where = difference(content, work.expected(kept.models[txid]))
                    assert not where, f"{when} {at_most}, a view at {txid} is not what was written: {where}"
                kept.shows(kept.last)

        self.prove(claim, examples=6, several=st.lists(work.operations(), min_size=2, max_size=3),
                   durability=st.sampled_from(DURABILITIES))

    @check(STAGING)
    def test_unsynced_views_show_what_is_appended(self, work: Workload) -> None:
        """`snapshot(unsynced=True)` shows every transaction that is appended, whole, before it is synced, and does not
        change afterwards. An ordinary view does not show it."""
        def claim(several: list[list[Operation]]) -> None:
            files = FaultyFiles()
            with kept_with(work, several[0], env=quiet_env(files)) as kept:  # nobody syncs in the background
                last, views = kept.last, []
                for number, operations in enumerate(several, 1):
                    kept.transact([*operations, *work.numbered(number)], "relaxed")
                    views.append(kept.store.snapshot(unsynced=True))
                    assert views[-1].txid == kept.last, f"an unsynced view is at {views[-1].txid}, not {kept.last}"
                    for view in views:
                        kept.compare(view)
                    kept.shows(last, "while later ones are not synced, the store")
                kept.write(99, "synced")
                kept.shows(kept.last)
                for view in views:
                    kept.compare(view)
                    view.close()

        self.prove(claim, examples=5, several=st.lists(work.operations(), min_size=2, max_size=3))

    @check(BULK)
    def test_a_bulk_load_is_one_transaction_in_its_place(self, work: Workload) -> None:
        """When a bulk load returns, all of it is there, and is so after every later crash. Views made before do not
        show it. Transactions before and after it are there too."""
        def claim(before: list[Operation], after: list[Operation]) -> None:
            with kept_with(work, before) as kept:
                last, view = kept.last, kept.store.snapshot()
                txid = kept.bulk(1)
                kept.shows(txid)
                assert kept.store.positions().checkpointed >= txid, "a bulk load is not in the durable state"
                kept.compare(view)
                kept.recovered(kept.crash_image(), txid)
                kept.transact([*after, *work.numbered(2)])
                kept.bulk(3)
                kept.transact(after)
                kept.recovered(kept.crash_image(), kept.last)
                kept.compare(view)
                assert view.txid == last
                view.close()
                assert kept.attachments() == 2
                kept.reopen()
                kept.write(4)
                kept.shows(kept.last)

        self.prove(claim, examples=4, before=work.operations(), after=work.operations())

    @check(BULK)
    def test_a_bulk_load_that_is_logged_is_there_after_a_crash(self, work: Workload) -> None:
        """A bulk load that is logged and not yet applied is invisible. It is applied, whole, when its condition is met
        or when the store is opened after a crash."""
        def claim(before: list[Operation], after: list[Operation]) -> None:
            plugin = Holding(gates=True)
            with kept_with(work, before, plugins=[plugin]) as kept, plugin:
                last, view = kept.last, kept.store.snapshot()
                plugin.answer = "open"
                with raises(ConditionNotMet, "a bulk load whose condition is open"):
                    kept.bulk(1)
                kept.models.append(kept.tried)
                kept.shows(last, "before the condition is met, the store")
                kept.recovered(kept.crash_image(), kept.last)
                plugin.let_go()
                kept.store.wait_published(last, PATIENCE_S)
                kept.shows(kept.last)
                kept.compare(view)
                view.close()
                kept.transact([*after, *work.numbered(2)])
                kept.reopen()

        self.prove(claim, examples=3, before=work.operations(), after=work.operations())

    @check()
    def test_a_store_stays_where_it_was_opened(self, work: Workload) -> None:
        """A store that was opened by a relative path stays where it is when the process changes its directory. Its
        commits, checkpoints, loads and images are there, and another store, to which the same path leads now, is left
        alone. The same holds if it is open read-only."""
        def claim(before: list[Operation], during: list[Operation]) -> None:
            with scratch() as root, back_again():
                here, elsewhere = go_to_one_of_two(root)
                with Modelled(work, elsewhere) as other:
                    other.write(77)
                untouched = tree(elsewhere)
                with Modelled(work, Path()) as kept:
                    name = kept.path
                    kept.root, kept.path = here, here / name  # for the check itself, which goes elsewhere too
                    assert (elsewhere / name).is_dir()
                    kept.transact(before)
                    kept.write(0)
                    os.chdir(elsewhere)
                    with kept.store.snapshot() as view:
                        kept.transact(during)
                        kept.write(1)
                        kept.store.checkpoint()
                        _is_left_alone(elsewhere, untouched, "a checkpoint")
                        if issubclass(work.engine, BulkEngine):
                            kept.bulk(2)
                            _is_left_alone(elsewhere, untouched, "a bulk load")
                        image = kept.store.image()
                        try:
                            read_image(image)
                        finally:
                            image.close()
                        kept.seal()
                        kept.write(3)
                        kept.compare(view)
                    kept.shows(kept.last)
                    kept.recovered(kept.crash_image(), kept.last)
                    kept.store.checkpoint()
                    kept.store.prune()
                    kept.store.close()
                    _is_left_alone(elsewhere, untouched, "all that a store does")
                    os.chdir(here)
                    with kept.opened(name, read_only=True) as closed:
                        os.chdir(elsewhere)
                        closed.refresh()
                        with closed.snapshot() as view:
                            kept.compare(view)
                            assert view.txid == kept.last, f"it shows transaction {view.txid}, not {kept.last}"
                    kept.open()
                    kept.found(kept.last)
                    _is_left_alone(elsewhere, untouched, "a read-only opening")

        self.prove(claim, examples=3, before=work.operations(), during=work.operations())


def _first_difference(one: bytes, other: bytes) -> int | None:
    if one == other:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _is_left_alone(elsewhere: Path, untouched: dict[str, bytes], what: str) -> None:
    found = tree(elsewhere)
    changed = sorted(name for name in found.keys() | untouched.keys() if found.get(name) != untouched.get(name))
    assert not changed, f"{what} of a store that is elsewhere changed {changed} in the directory that the process is in"
