"""An engine alone, without a store: transactions, payloads, views and digests.

If a check fails here, the fault is in the engine and nowhere else, so look at these first. They use `Driver`, which
keeps a model of every transaction. The durable state is checked in `states`.
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ...contract.engine import Abilities, Context
from ...contract.options import Option
from ...contract.transaction import end, freeze
from ...contract.view import View
from ...errors import HoldfastError
from ..disks.quiet import quiet_env
from ..support.another_time import another_time
from ..support.contract import Contract, check, scratch
from ..support.driver import ORIGIN, Driver, driven
from ..support.raising import raises, refuses_changes
from ..support.workload import Operation, Workload, of_each_kind

Step = list[Operation] | str | tuple[str, list[Operation]]
"""A transaction's operations; `checkpoint` or `reopen`; or `roll back` with operations."""


def several(work: Workload, at_most: int, at_least: int = 1) -> st.SearchStrategy[list[list[Operation]]]:
    """The operations of some transactions."""
    return st.lists(work.operations(), min_size=at_least, max_size=at_most)


def histories(work: Workload, at_most: int = 8) -> st.SearchStrategy[list[Step]]:
    some = work.operations()
    return st.lists(st.one_of(some, some, st.sampled_from(("checkpoint", "reopen")),
                              st.tuples(st.just("roll back"), some)), min_size=1, max_size=at_most)


def take(it: Driver, step: Step) -> None:
    if step == "checkpoint":
        it.checkpoint()
    elif step == "reopen":
        it.reopen()
    elif isinstance(step, tuple):
        it.roll_back(step[1])
    else:
        assert isinstance(step, list)
        it.commit(step)


def begun(it: Driver, count: int = 3) -> None:
    """Something to change, in one transaction."""
    it.commit([operation for n in range(count) for operation in it.work.numbered(n)])


def _goes_on(it: Driver, copied: Path, operations: list[Operation]) -> None:
    """Have a copy of an image take the records after it, and then a transaction of its own."""
    with closing(it.recovered(copied, at=it.engine.position)) as copy, closing(copy.begin()) as tx:
        it.work.run(tx, it.models[-1].copy(), operations)


class Held:
    """Views that are held open, with what they showed at first."""

    def __init__(self, it: Driver) -> None:
        self._it = it
        self._views: list[tuple[View, bytes | None, str]] = []

    def take(self, view: View, what: str) -> None:
        self._it.compare(view, what)
        self._views.append((view, view.digest(), f"{what}, held since,"))

    def keep(self, view: View, what: str) -> None:
        """Take a view and do not look at it yet: what it shows must not depend on when it is first read."""
        self._views.append((view, None, f"{what}, held since and not read before,"))

    def look(self, after: str) -> None:
        for n, (view, digest, what) in enumerate(self._views):
            self._it.compare(view, f"{what} looked at {after},")
            now = view.digest()
            assert digest in (None, now), f"{what} has another digest {after}, and the same content"
            self._views[n] = view, now, what

    def let_go(self) -> None:
        """Close them one by one, and look at those that are left."""
        while self._views:
            view, _, what = self._views.pop(0)
            view.close()
            self.look(f"after {what} was closed")


class TransactionChecks(Contract):
    """See the module's text."""

    @check()
    def test_the_engine_says_what_it_is(self, work: Workload) -> None:
        """An engine has a name, state format and payload version, reads the payloads that it writes, declares its
        abilities and options, and refuses options that it does not know."""
        engine = work.engine
        for name in ("name", "state_format", "payload_version", "reads_payloads", "abilities", "options"):
            assert hasattr(engine, name), f"{engine.__name__} has no {name}"
        assert isinstance(engine.name, str), f"the engine's name is {engine.name!r}, which is not a text"
        assert engine.name, "the engine's name is empty"
        assert type(engine.state_format) is int, "state_format is not a number"
        assert isinstance(engine.abilities, Abilities), "abilities is not an Abilities"
        undeclared = [name for name, option in engine.options.items() if not isinstance(option, Option)]
        assert not undeclared, f"the option {undeclared[0]!r} is not an Option"
        writes, reads = engine.payload_version, engine.reads_payloads
        assert writes in reads, f"it writes payloads of version {writes} and reads {sorted(reads)}"
        strange = Context(options={**work.opened_with, "no such option": 1})
        with driven(work) as it:
            it.close()
            empty = it.directory.with_name("empty")
            empty.mkdir()
            with raises(HoldfastError, "open() with the option 'no such option'"):
                engine.open(it.directory, strange).close()
            with raises(HoldfastError, "create() with the option 'no such option'"):
                engine.create(empty, ORIGIN, strange)

    @check()
    def test_transactions_and_views_show_what_the_model_has(self, work: Workload) -> None:
        """A transaction answers as the model does, its own changes included, and a view shows exactly the transactions
        up to its own, through checkpoints, rolled-back transactions and recoveries."""
        def claim(steps: list[Step]) -> None:
            with driven(work) as it:
                it.compare_state()
                begun(it)
                # What is drawn, and then a commit before and after what an engine does seldom.
                for step in (*steps, work.numbered(11), "checkpoint", work.numbered(12), "reopen", work.numbered(13)):
                    take(it, step)
                    it.compare_state()

        self.prove(claim, examples=25, steps=histories(work, 10))

    @check()
    def test_a_held_view_stays_the_same(self, work: Workload) -> None:
        """What a view shows, and its digest, do not change while it is open: not by later transactions that overwrite
        and delete what it shows, not by checkpoints, images, rolled-back transactions, or the closing of other
        views."""
        def claim(todo: list[list[Operation]]) -> None:
            with driven(work) as it:
                held = Held(it)
                held.take(it.engine.view(), "a view of the empty state")
                begun(it)
                held.take(it.engine.view(), "the only view of its state")
                it.commit(work.numbered(3))
                held.look("after another transaction")
                for n, operations in enumerate(todo):
                    for _ in range(2 if n == 0 else 1):
                        held.take(it.engine.view(), f"a view made after transaction {len(it.records)}")
                    held.keep(it.engine.view(), f"a view made after transaction {len(it.records)}")
                    it.commit(operations)
                    held.look("after another transaction")
                    if n % 2 == 0:
                        it.checkpoint()
                        it.image()
                        held.look("after a checkpoint and an image of it")
                    it.roll_back(operations)
                    held.look("after a transaction was rolled back")
                it.compare_state()
                held.let_go()
                it.compare_state()

        self.prove(claim, examples=12, todo=several(work, 3))

    @check()
    def test_a_rolled_back_transaction_leaves_nothing(self, work: Workload) -> None:
        """A transaction that is dropped, before or after its payload was asked for, changes nothing that a view, a
        transaction, a digest or the durable state shows. Later transactions are as if it had never been."""
        def claim(kept: list[list[Operation]], dropped: list[list[Operation]]) -> None:
            with driven(work) as it, driven(work) as other:
                for here in (it, other):
                    begun(here)
                before = it.digest()
                for operations in dropped:
                    it.roll_back(operations + work.numbered(7))
                    it.compare_state(what="a view after a rolled-back transaction")
                    tx = it.engine.begin()
                    assert tx.payload() == b"", "a fresh transaction has a payload, after another was rolled back"
                    tx.close()
                assert it.digest() == before, "the digest is another one after a rolled-back transaction"
                for operations in kept:
                    it.commit(operations)
                    it.roll_back(dropped[0])
                other.follow(it)
                it.compare_state(what="a view after rolled-back transactions and kept ones")
                assert it.digest() == other.digest(), "rolled-back transactions changed what the others do"
                it.checkpoint()
                it.reopen()
                it.compare_state(what="a view after rolled-back transactions, a checkpoint and a reopening")

        self.prove(claim, examples=16, kept=several(work, 3), dropped=several(work, 2))

    @check()
    def test_a_payload_holds_all_its_transaction_changed(self, work: Workload) -> None:
        """`payload()` may be called again as the transaction grows, and then holds everything. It is empty if nothing
        was changed. A transaction that has ended refuses changes of every kind. A new one has all that a `Transaction`
        has, for the kit and for plugins."""
        some = of_each_kind(work)

        def claim(first: list[Operation], second: list[Operation]) -> None:
            with driven(work) as it:
                begun(it)
                empty = it.engine.begin()
                lacking = [name for name in ("txid", "outcome", "bulk") if getattr(empty, name, self) is not None]
                assert not lacking, f"a new transaction has no {', '.join(lacking)}: call Transaction.__init__"
                assert empty.payload() == b"", "a transaction that changed nothing has a payload"
                empty.close()
                model = it.models[-1].copy()
                tx = it.engine.begin()
                work.run(tx, model, first)
                tx.payload()
                work.run(tx, model, second + work.numbered(8))
                tx.payload()
                work.run(tx, model, work.numbered(7))
                payload = tx.payload()
                freeze(tx, "frozen")
                assert tx.payload() == payload, "the payload of a frozen transaction is another one than before"
                it.apply(it.note(payload, model))
                end(tx, "ended")
                refuses_changes(work, tx, model, some, "a transaction that has ended", answers=False)
                it.compare_state(what="a view after a transaction whose payload was asked for on the way")

        self.prove(claim, examples=16, first=work.operations(), second=work.operations())

    @check()
    def test_ids_of_durable_transactions_never_return(self, work: Workload) -> None:
        """An id that a durable transaction gave out is never given out again: not after its object was deleted, not
        after a checkpoint, a recovery or a rolled-back transaction, and not by a copy of an image. The workload asserts
        this for each id."""
        def claim(todo: list[tuple[list[Operation], str]]) -> None:
            with driven(work) as it:
                it.commit(work.numbered(0))
                for n, (operations, then) in enumerate(todo, 1):
                    it.commit(operations)
                    it.roll_back(work.numbered(n))
                    for step in then.split():
                        take(it, step)
                    _goes_on(it, it.copied(it.image()), [*operations, *work.numbered(n)])
                    it.commit(work.numbered(n))
                it.compare_state()

        then = st.sampled_from(("checkpoint reopen", "reopen", "checkpoint"))
        self.prove(claim, examples=30, todo=st.lists(st.tuples(work.operations(), then), min_size=1, max_size=4))

    @check()
    def test_applying_in_batches_is_applying_one_by_one(self, work: Workload) -> None:
        """The state is a function of the transactions applied: the same whether they come one by one, as the engine's
        own transactions, in some batches, or in one."""
        def claim(todo: list[list[Operation]]) -> None:
            with driven(work) as it:
                begun(it)
                for operations in todo:
                    it.commit(operations)
                digest = it.digest()
                for pieces in (1, 2):
                    with driven(work) as other:
                        other.follow(it, pieces)
                        what = f"a view after the same transactions in {pieces} batches"
                        other.compare_state(what=what)
                        assert other.digest() == digest, f"{what} has another digest"

        self.prove(claim, examples=16, todo=several(work, 5, at_least=2))

    @check()
    def test_the_digest_follows_the_content(self, work: Workload) -> None:
        """Equal contents have equal digests, whatever history made them; different contents, down to two values that
        changed places, have different ones."""
        def claim(todo: list[list[Operation]]) -> None:
            seen: list[tuple[Any, bytes, str]] = []

            def note(it: Driver, what: str) -> None:
                seen.append((it.expected(it.published), it.digest(), what))

            def made(what: str, todo: list[list[Operation]]) -> bytes:
                with driven(work) as it:
                    for operations in todo:
                        it.commit(operations)
                        note(it, f"after transaction {len(it.records)} {what}")
                    last = it.digest()
                    it.checkpoint()
                    assert it.digest() == last, f"a checkpoint changed the digest {what}"
                    it.reopen()
                    assert it.digest() == last, f"reopening changed the digest {what}"
                    return last

            first = work.numbered(1)
            apart = made("of transactions one by one", [first, *todo])
            joined = made("of all operations in one transaction", [first + [o for ops in todo for o in ops]])
            made("of operations whose values changed places", [first, *map(_swapped, todo)])
            one = made("of other numbers", [work.numbered(2), work.numbered(3)])
            one_content = seen[-1][0]
            other = made("of the same numbers in another order", [work.numbered(3), work.numbered(2)])
            assert one == other or one_content != seen[-1][0], (
                "one content has two digests: of two things put in in one order, and in the other")
            assert apart == joined, "the same operations in one transaction and in several give different digests"
            for n, (content, digest, what) in enumerate(seen):
                for other, other_digest, other_what in seen[:n]:
                    if content != other:
                        assert digest != other_digest, f"different contents have one digest: {other_what}, and {what}"

        self.prove(claim, examples=16, todo=several(work, 3))

    @check()
    def test_the_same_operations_make_the_same_payloads(self, work: Workload) -> None:
        """One seed, one history, byte for byte: the same operations on the same state, in the same environment, make
        the same payloads, on another day and in another time zone too. So a failure can be shown again."""
        def claim(todo: list[list[Operation]]) -> None:
            payloads = []
            for when in (nullcontext(), another_time(work.engine.__module__)):
                with when, scratch() as place:
                    it = Driver(work, place / "state", quiet_env(Context().env.files))
                    begun(it)
                    for operations in todo:
                        it.commit(operations)
                    payloads.append([record.payload for record in it.records])
                    it.close()
            assert payloads[0] == payloads[1], "the same operations made different payloads; time or chance is in them"

        self.prove(claim, examples=12, todo=several(work, 3))

    @check()
    def test_two_engines_share_nothing(self, work: Workload) -> None:
        """Two engines of one kind, open at once in one process, do not see each other's transactions, and closing one
        does not affect the other. If their directories are exchanged, each path opens with what is there now."""
        def claim(here: list[list[Operation]], there: list[list[Operation]]) -> None:
            with driven(work) as it, driven(work) as other:
                begun(it, 1)
                for n in range(max(len(here), len(there))):
                    for one, todo in ((it, here), (other, there)):
                        if n < len(todo):
                            one.commit(todo[n])
                    it.compare_state(what="a view of one of two engines")
                    other.compare_state(what="a view of the other of two engines")
                other.checkpoint()
                other.close()
                it.commit(work.numbered(5))
                it.checkpoint()
                it.reopen()
                it.compare_state(what="a view of one of two engines, after the other was closed")
                it.close()
                _as_many(it, other)
                it.directory, other.directory = _exchanged(it.directory, other.directory)
                for one in (it, other):
                    one.reopen()
                    one.compare_state(what="a view of a state at the path where another one, as long, was before")

        self.prove(claim, examples=12, here=several(work, 2), there=several(work, 2))


def _as_many(one: Driver, other: Driver) -> None:
    """Let two drivers have as many transactions, all checkpointed, and be closed."""
    for here, there in ((one, other), (other, one)):
        here.reopen()
        while len(here.records) < len(there.records):
            here.commit(here.work.numbered(100 + len(here.records)))
        here.checkpoint()
        here.close()


def _exchanged(one: Path, other: Path) -> tuple[Path, Path]:
    """Exchange two directories. Where each of them is now."""
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)
    return other, one


def _swapped(operations: list[Operation]) -> list[Operation]:
    """The same operations, with the last arguments of those of one kind exchanged."""
    swapped = list(operations)
    for i, j in zip(range(len(swapped)), range(1, len(swapped)), strict=False):
        one, other = swapped[i], swapped[j]
        if one[0] == other[0] and len(one) == len(other) > 1:
            swapped[i], swapped[j] = (*one[:-1], other[-1]), (*other[:-1], one[-1])
    return swapped
