"""The four ends of a commit, on a real store: committed, rolled back, condition not met, outcome unknown.

Each end is brought about on purpose: by returning, by an exception, by a plugin that refuses, by a full disk, by a
condition that is late or fails, by a write or sync of log bytes that fails. Then the store is looked at: at once,
through views that were open before, in a crash image, and after reopening; and it must take the next transaction, or
say why not.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any, Literal

from hypothesis import strategies as st

from ...contract.plugin import Plugin
from ...contract.transaction import Transaction
from ...env import Env
from ...errors import CommitDiskFull, CommitPoisoned, ConditionNotMet, OutcomeUnknown, RolledBack, StorePoisoned
from ...store.store import Store
from ..disks.faulty import FaultyFiles, is_log
from ..disks.quiet import quiet_env
from ..support.contract import Contract, check
from ..support.crash_images import group_ends, segments_of
from ..support.holding import Holding
from ..support.modelled import PATIENCE_S, Modelled, Refused, kept_with
from ..support.raising import raises
from ..support.workload import Operation, Workload

SOON_S = 10.0
"""Seconds by which a call that waits for nobody has returned."""


class Vetoing(Plugin):
    """Refuses at one moment, while it is told to. `bulk` is the load that it refused last, if it was one."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.refuses = False
        self.bulk: Any = None

    def committing(self, tx: Transaction) -> None:
        self._refuse("committing", tx)

    def final(self, tx: Transaction) -> None:
        self._refuse("final", tx)

    def _refuse(self, moment: str, tx: Transaction) -> None:
        if self.refuses and moment == self.moment:
            self.bulk = tx.bulk
            raise Refused


def _is_new_log(path: Path) -> bool:
    """Whether it is a segment that is being allocated, which has no name of its own yet."""
    return path.suffix == ".new" and path.parent.name == "log"


def _comes_back(doing: Future[Any], who: str) -> None:
    if not wait([doing], SOON_S).done:
        raise AssertionError(f"{who} waits for a callback of a commit's outcome that does not come back")
    doing.result()


def is_undone(kept: Modelled, attempt: Callable[[], object], ends: type[Exception], what: str,
               mend: Callable[[], object] = lambda: None) -> None:
    """`attempt` fails, as `ends` says, and leaves no trace; after `mend`, the store goes on."""
    last, view = kept.last, kept.store.snapshot()
    kept.compare(view)
    try:
        with raises(ends, what):
            attempt()
        for _ in range(2):  # the second time after something else was begun
            assert kept.store.positions().appended == last, f"{what} was logged"
            kept.shows(last, f"after {what}, the store")
            if kept.watermarks:
                kept.shows(last, f"after {what}, an unsynced view", unsynced=True)
            kept.compare(view)
            with kept.store.transaction():
                pass
        mend()
        kept.recovered(kept.crash_image(), last)
        kept.write(2)
        kept.write(1)
        kept.compare(view)
        kept.shows(last + 2)
        kept.recovered(kept.crash_image(), last + 2)
    finally:
        view.close()
    kept.reopen()
    kept.write(3)
    kept.shows(last + 3)


class OutcomeChecks(Contract):
    """What each end of a commit means."""

    @check()
    def test_what_is_committed_is_in_every_crash_image(self, work: Workload) -> None:
        """A transaction whose commit has returned is there after a crash at any later moment, whole, with all before it
        and nothing else, whether a checkpoint was made since or not.

        Garbage behind the log's end takes nothing away.
        """
        def claim(several: list[list[Operation]], checkpoints: int) -> None:
            with kept_with(work, several[0]) as kept:
                for number, operations in enumerate(several, 1):
                    kept.transact(operations)
                    kept.write(number)
                    kept.recovered(kept.crash_image(), kept.last)
                    if number == checkpoints:
                        kept.store.checkpoint()
                        kept.recovered(kept.crash_image(), kept.last)
                assert kept.write(99, "pipelined").outcome.result(PATIENCE_S) == kept.last
                image = kept.crash_image()
                segment = segments_of(image)[-1]
                end = group_ends(segment)[0][-1].offset  # as the format says: a payload may end in any bytes
                with segment.open("r+b") as file:
                    file.seek(end)
                    file.write(b"noise")
                recovery = kept.recovered(image, kept.last)
                assert recovery.cut_bytes, f"noise at the log's end was cut, and is not reported: {recovery}"

        self.prove(claim, examples=4, several=st.lists(work.operations(), min_size=1, max_size=3),
                   checkpoints=st.integers(0, 3))

    @check()
    def test_an_exception_in_the_block_rolls_back(self, work: Workload) -> None:
        """A transaction whose block raises leaves nothing: content, digest and positions are as before."""
        def claim(before: list[Operation], during: list[Operation]) -> None:
            with kept_with(work, before) as kept:
                def attempt() -> None:
                    with kept.store.transaction() as tx:
                        work.run(tx, kept.models[-1].copy(), [*during, *work.numbered(1)])
                        raise Refused

                is_undone(kept, attempt, Refused, "a rolled back transaction")

        self.prove(claim, examples=8, before=work.operations(), during=work.operations())

    @check()
    def test_a_veto_rolls_back(self, work: Workload) -> None:
        """A transaction that a plugin refuses, before or after the last addition, ends `RolledBack` and leaves
        nothing."""
        def claim(before: list[Operation], during: list[Operation], moment: str) -> None:
            veto = Vetoing(moment)
            with kept_with(work, before, plugins=[veto]) as kept:
                def attempt() -> None:
                    veto.refuses = True
                    try:
                        kept.transact([*during, *work.numbered(1)])
                    finally:
                        veto.refuses = False  # it is asked about transactions without changes too

                is_undone(kept, attempt, RolledBack, f"a commit that was refused in {moment!r}")

        self.prove(claim, examples=6, before=work.operations(), during=work.operations(),
                   moment=st.sampled_from(("committing", "final")))

    @check()
    def test_a_full_disk_rolls_back(self, work: Workload) -> None:
        """A commit for which no log can be allocated raises `DiskFull` with nothing logged. Once there is room, the
        store goes on."""
        def claim(before: list[Operation], during: list[Operation], what: str) -> None:
            files = FaultyFiles()
            with kept_with(work, before, env=quiet_env(files)) as kept:
                kept.reopen()  # so that the next transaction needs room for a segment

                def attempt() -> None:
                    files.fail(what, code=errno.ENOSPC, only=_is_new_log)
                    kept.transact([*during, *work.numbered(1)])

                is_undone(kept, attempt, CommitDiskFull, "a commit without room for its log", files.heal)
                assert not kept.store.poisoned

        self.prove(claim, examples=4, before=work.operations(), during=work.operations(),
                   what=st.sampled_from(("create", "pwrite")))

    @check()
    def test_an_unknown_outcome_is_found_out_by_reopening(self, work: Workload) -> None:
        """After a failed write or sync of log bytes the store is poisoned: the commit raises `OutcomeUnknown`, later
        ones are refused, and views and reads go on as they were. Reopening shows everything before the transaction, and
        either all of the transaction or nothing of it."""
        def claim(before: list[Operation], during: list[Operation], what: str, more: int) -> None:
            files = FaultyFiles()
            with kept_with(work, before, env=quiet_env(files)) as kept:
                last, view = kept.last, kept.store.snapshot()
                published = kept.store.published
                for number in range(more if kept.watermarks else 0):
                    kept.write(number + 10, "relaxed")
                files.fail(what, only=is_log)
                with raises(OutcomeUnknown, f"a commit whose log could not be written ({what})"):
                    kept.transact([*during, *work.numbered(1)])
                files.heal()
                kept.models.append(kept.tried)
                assert kept.store.poisoned, "the store is not poisoned"
                for _ in range(2):
                    with raises(CommitPoisoned, "a commit to a poisoned store"):
                        kept.write(2)
                    with raises(StorePoisoned, "a checkpoint of a poisoned store"):
                        kept.store.checkpoint()
                    assert kept.store.published == published, "what is published changed"
                    kept.shows(last, "a poisoned store")
                    kept.compare(view)
                if kept.watermarks:
                    with raises(StorePoisoned, "an unsynced view of a poisoned store"):
                        kept.store.snapshot(unsynced=True)
                view.close()
                kept.recovered(kept.crash_image(), last, kept.last)
                kept.store.close()
                kept.open()
                found = kept.store.published.txid
                assert last <= found <= kept.last, f"{found} of {kept.last} are there; {last} were acknowledged"
                del kept.models[found + 1 :]
                kept.digests.clear()
                kept.found(found)
                kept.write(3)
                kept.shows(found + 1)

        self.prove(claim, examples=8, before=work.operations(), during=work.operations(),
                   what=st.sampled_from(("pwrite", "datasync")), more=st.integers(0, 2))

    @check()
    def test_a_late_condition_is_told_and_loses_nothing(self, work: Workload) -> None:
        """A commit whose condition is late or fails raises `ConditionNotMet`: the transaction is durable here, and in
        each crash image. If the condition gates publication, views show the transaction only once it is met. If it does
        not, views show it at once."""
        def claim(before: list[Operation], during: list[Operation], gates: bool,
                  answer: Literal["failed", "open"]) -> None:
            plugin = Holding(gates=gates)
            with kept_with(work, before, plugins=[plugin]) as kept, plugin:
                last, view = kept.last, kept.store.snapshot()
                seen: list[int] = []
                plugin.look = lambda batch: seen.append(_txid(kept.store))
                plugin.answer = answer
                with raises(ConditionNotMet, f"a commit whose condition is {answer}") as told:
                    kept.transact([*during, *work.numbered(1)])
                kept.models.append(kept.tried)
                assert told.error.txid == kept.last
                assert seen == [last], f"while its condition was asked for, a view showed {seen}, not {last}"
                assert kept.store.durable.txid == kept.last, "what only waits for a condition is not durable"
                kept.shows(last if gates else kept.last, "before the condition is met, the store")
                if kept.watermarks:
                    kept.shows(kept.last, "an unsynced view", unsynced=True)
                kept.recovered(kept.crash_image(), kept.last)
                plugin.let_go()
                if kept.watermarks:
                    kept.write(2)  # meets the conditions before it, those that failed too
                kept.store.wait(kept.last, PATIENCE_S)
                kept.store.wait_published(kept.last - 1, PATIENCE_S)
                kept.shows(kept.last, "after the condition is met, the store")
                kept.compare(view)
                view.close()
                kept.reopen()
                kept.write(3)

        # A failed condition that gates publication holds a store that does not stage until it is closed.
        kinds = [(gates, answer) for gates in (True, False) for answer in ("open", "failed")
                 if work.watermarks or (gates, answer) != (True, "failed")]
        for gates, answer in kinds:
            self.prove(claim, examples=2, before=work.operations(), during=work.operations(), gates=st.just(gates),
                       answer=st.just(answer))

    @check()
    def test_a_slow_callback_holds_up_nobody(self, work: Workload) -> None:
        """While a callback of a commit's outcome does not return, its own commit is acknowledged, others are made,
        shown and checkpointed, and the thread that added the callback goes on."""
        def claim(during: list[Operation]) -> None:
            files, called, go = FaultyFiles(), Event(), Event()

            def slow(outcome: Future[int]) -> None:
                called.set()
                go.wait(PATIENCE_S)

            with ThreadPoolExecutor(2) as pool, kept_with(work, [], env=Env(files)) as kept:
                def goes_on() -> None:
                    kept.transact([*during, *work.numbered(2)])
                    kept.store.checkpoint()
                    kept.shows(kept.last)

                held = files.hold("datasync", only=is_log) if kept.watermarks else None  # so that it is added in time
                try:
                    tx = kept.write(1, "pipelined")
                    adding = pool.submit(tx.outcome.add_done_callback, slow)
                    if held is not None:
                        adding.result(PATIENCE_S)
                        files.heal()
                        held.go.set()
                    assert called.wait(PATIENCE_S), "the callback of a commit's outcome was not called"
                    _comes_back(adding, "whoever adds a callback")
                    _comes_back(kept.write(3, "pipelined").outcome, "the outcome of another commit")
                    _comes_back(pool.submit(goes_on), "another commit")
                finally:
                    files.heal()
                    if held is not None:
                        held.go.set()
                    go.set()

        self.prove(claim, examples=1, during=work.operations())

def _txid(store: Store[Any, Any]) -> int:
    with store.snapshot() as view:
        txid: int = view.txid
    return txid
