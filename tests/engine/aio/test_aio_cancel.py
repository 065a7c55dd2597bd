"""Cancelled tasks, time-outs, a loop that goes away: each transaction has one of its four ends, says which, and the
store shows it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kinds import KINDS, MEMORY, QUIET, STAGING, Kind, commit, until

from holdfast.engine import aio
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.env import Env
from holdfast.engine.errors import ConditionNotMet, OutcomeUnknown, RolledBack, StorePoisoned
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store
from holdfast.engine.testing.disks.faulty import FaultyFiles, is_log

Face = aio.AsyncStore[Any, Any]


class Holds(Plugin):
    """Holds acknowledgements until the test says so."""

    def __init__(self, *, gates: bool, timeout: float = 30.0) -> None:
        self.gates, self.timeout, self.held = gates, timeout, list[Future[None]]()

    def logged(self, batch: LogRange) -> Condition:
        met: Future[None] = Future()
        self.held.append(met)
        return Condition(met=met, timeout=self.timeout, gates_publication=self.gates, name="the test")


async def write(kind: Kind, store: Face, n: int) -> Any:
    async with store.transaction() as tx:
        kind.write(tx, n)
    return tx


async def happens(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Plan:
    """What one task does. `cancelled`: after so many turns of the loop, and then so many milliseconds (`late`)."""

    durability: Literal["synced", "pipelined"] = "synced"
    awaits: int = 0
    raises: bool = False
    cancelled: int | None = None
    late: int = 0


@dataclass
class Seen:
    txs: dict[int, Any] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)


PLANS = st.lists(st.builds(Plan, st.sampled_from(("synced", "pipelined")), st.integers(0, 2),
                           st.sampled_from((False, False, False, True)), st.none() | st.integers(0, 12),
                           st.sampled_from((0, 0, 1, 3))), min_size=1, max_size=12)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [0, 2], ids=["alone", "beside threads"])
@pytest.mark.parametrize("plugin", [None, "listens"], ids=["direct", "listened to"])
@settings(max_examples=20)
@given(data=st.data())
def test_each_transaction_ends_as_it_says(name: str, threads: int, plugin: str | None, data: st.DataObject) -> None:
    class Listens(Plugin):
        def logged(self, batch: LogRange) -> None:
            return None

    kind, plans, seen, ends = KINDS[name], data.draw(PLANS), Seen(), dict[int, Any]()

    async def one(store: Face, n: int, plan: Plan) -> None:
        async with store.transaction(plan.durability) as tx:
            seen.txs[n] = tx
            kind.write(tx, n)
            for _ in range(plan.awaits):
                await asyncio.sleep(0)
            if plan.raises:
                raise ZeroDivisionError
        seen.returned.add(n)

    async def cancel(task: asyncio.Task[None], plan: Plan) -> None:
        if plan.cancelled is not None:
            for _ in range(plan.cancelled):
                await asyncio.sleep(0)
            await asyncio.sleep(plan.late / 1000)
            task.cancel()

    async def main(directory: Path) -> None:
        async with aio.open(directory, kind.engine, settings=QUIET, plugins=[Listens()] if plugin else []) as store:
            working = [asyncio.to_thread(commit, kind, store.store, 1000 + n) for n in range(threads)]
            tasks = [asyncio.create_task(one(store, n, plan)) for n, plan in enumerate(plans)]
            cancelling = [cancel(task, plan) for task, plan in zip(tasks, plans, strict=True)]
            await asyncio.gather(*working, *cancelling)
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, ZeroDivisionError):
                    await task
            for n, tx in seen.txs.items():
                try:
                    ends[n] = await tx.outcome
                except RolledBack as error:
                    ends[n] = error
            await write(kind, store, 500)  # the writer lock and the turn are free

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory) / "store"))
        with kind.open(Path(directory) / "store", create=False) as again:
            found = kind.numbers(again)
    there = {n for n, end in ends.items() if isinstance(end, int)}
    assert found == there | {500} | {1000 + n for n in range(threads)}
    assert seen.returned <= there
    numbers = [end for end in ends.values() if isinstance(end, int)]
    assert len(set(numbers)) == len(numbers)
    for n, plan in enumerate(plans):
        if plan.cancelled is None:
            assert (n in there) == (not plan.raises)


@pytest.mark.parametrize("gates", [True, False], ids=["gating", "not gating"])
@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
def test_a_commit_that_times_out_still_ends(kind: Kind, gates: bool, tmp_path: Path) -> None:
    """The time-out comes at once. The transaction is durable, and its end is known once the condition is met."""
    async def main() -> None:
        holds = Holds(gates=gates)
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET, plugins=[holds]) as store:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), store.transaction() as tx:
                    kind.write(tx, 1)
            assert not tx.outcome.done()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await tx.outcome
            await happens(lambda: holds.held)
            following = asyncio.create_task(write(kind, store, 2))
            await asyncio.sleep(0.01)
            assert not following.done()
            holds.held[0].set_result(None)
            assert await tx.outcome == 1
            await store.wait(1)
            await happens(lambda: len(holds.held) == 2)
            holds.held[1].set_result(None)
            assert (await following).txid == 2
            async with store.snapshot(at_least=2) as view:
                assert kind.of(view) == {1, 2}

    asyncio.run(main())


@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
def test_a_condition_that_is_late_is_told(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        holds = Holds(gates=True, timeout=0.05)
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET, plugins=[holds]) as store:
            with pytest.raises(ConditionNotMet) as caught:
                await write(kind, store, 1)
            assert caught.value.txid == 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await store.wait(1)
            waiting = asyncio.create_task(store.wait(1))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            holds.held[0].set_result(None)
            await waiting
            async with store.snapshot(at_least=1) as view:
                assert kind.of(view) == {1}

    asyncio.run(main())


def test_a_reader_of_what_is_never_published_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        holds = Holds(gates=True)
        async with aio.open(tmp_path / "store", STAGING.engine, settings=Settings(heartbeat_s=0, wait_s=0.05),
                            plugins=[holds]) as store:
            async with store.transaction("pipelined") as tx:
                STAGING.write(tx, 1)
            with pytest.raises(RolledBack, match="not published in time"):
                async with store.transaction():
                    pass
            with pytest.raises(ConditionNotMet):
                async with store.snapshot(at_least=1):
                    pass
            holds.held[0].set_result(None)
            assert await tx.outcome == 1
            async with store.transaction() as tx:
                pass
            assert await tx.outcome is None

    asyncio.run(main())


def test_a_poisoned_store_says_so_to_everybody(kind: Kind, tmp_path: Path, files: FaultyFiles) -> None:
    async def main(store: Store[Any, Any]) -> None:
        async with aio.AsyncStore(store) as face:
            await write(kind, face, 0)
            await happens(lambda: not store.log.writer.wants_spare)
            files.fail("datasync", only=is_log)
            ended = await asyncio.gather(*(write(kind, face, n) for n in range(1, 20)), return_exceptions=True)
            files.heal()
            assert all(isinstance(end, OutcomeUnknown | RolledBack) for end in ended)
            assert any(isinstance(end, OutcomeUnknown) for end in ended)
            with pytest.raises(StorePoisoned):
                await write(kind, face, 77)
            async with face.snapshot() as view:
                assert kind.of(view) == {0}

    store = kind.open(tmp_path / "store", settings=QUIET, env=Env(files))
    asyncio.run(main(store))
    store.close()
    with kind.open(tmp_path / "store") as again:
        assert kind.numbers(again) in ({0}, *({*range(n)} for n in range(2, 21)))


@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
def test_a_loop_that_is_closed_before_the_answer_leaves_the_store_well(kind: Kind, tmp_path: Path) -> None:
    """The thread that syncs finds nobody to tell. Nothing is poisoned, and the writer lock is free."""
    holds = Holds(gates=True)
    with kind.open(tmp_path / "store", settings=QUIET, plugins=[holds]) as store:
        loop = asyncio.new_event_loop()

        async def begin() -> list[asyncio.Task[Any]]:
            face = aio.AsyncStore(store)
            return [asyncio.create_task(write(kind, face, n)) for n in range(5)]

        tasks = loop.run_until_complete(begin())
        loop.run_until_complete(happens(lambda: holds.held))
        loop.set_exception_handler(lambda loop, context: None)  # it would log each task that never ended
        loop.close()
        del tasks, loop
        gc.collect()
        committing = threading.Thread(target=commit, args=(kind, store, 7))
        committing.start()

        def meet() -> bool:
            for met in holds.held:
                if not met.done():
                    met.set_result(None)
            return not committing.is_alive()

        until(meet)
        gc.collect()
        until(lambda: not any(thread.name.startswith("holdfast-aio") for thread in threading.enumerate()))
        assert not store.poisoned
        assert kind.numbers(store) >= {0, 7}


def test_an_interrupt_in_a_block_frees_the_writer_lock(kind: Kind, tmp_path: Path) -> None:
    async def main(store: Store[Any, Any]) -> None:
        async with aio.AsyncStore(store) as face, face.transaction() as tx:
            kind.write(tx, 1)
            raise KeyboardInterrupt

    with kind.open(tmp_path / "store", settings=QUIET) as store:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main(store))
        commit(kind, store, 2)
        assert kind.numbers(store) == {2}


def test_a_writer_that_is_cancelled_while_it_waits_gives_the_lock_to_the_next(kind: Kind, tmp_path: Path) -> None:
    """It waited in the thread for a lock that another thread had."""
    async def main() -> None:
        begun, may_end = threading.Event(), threading.Event()

        def hold(store: Store[Any, Any]) -> None:
            with store.transaction() as tx:
                kind.write(tx, 0)
                begun.set()
                assert may_end.wait(30)

        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            holding = asyncio.create_task(asyncio.to_thread(hold, store.store))
            await happens(begun.is_set)
            tasks = [asyncio.create_task(write(kind, store, n)) for n in (1, 2, 3)]
            await asyncio.sleep(0.01)
            tasks[0].cancel()
            await asyncio.sleep(0.01)
            tasks[2].cancel()
            await asyncio.sleep(0.01)
            may_end.set()
            await holding
            assert (await tasks[1]).txid == 2
            async with store.snapshot() as view:
                assert kind.of(view) == {0, 2}

    asyncio.run(main())


def test_an_opening_that_is_cancelled_is_closed_and_a_closing_is_finished(tmp_path: Path) -> None:
    async def main() -> None:
        async def use() -> None:
            async with aio.open(tmp_path / "store", STAGING.engine, settings=QUIET):
                pass

        for turns in range(8):
            task = asyncio.create_task(use())
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # or it was quicker
                await task
            await happens(lambda: not any(t.name.startswith("holdfast") for t in threading.enumerate()))
            STAGING.open(tmp_path / "store").close()

    asyncio.run(main())
