"""The asyncio face of a store, on every kind of engine: what it shows, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from store_kinds import MEMORY, QUIET, STAGING, Kind, commit

from holdfast.engine import GraphStore, aio
from holdfast.engine.contract.plugin import Obstacle, Plugin
from holdfast.engine.errors import ConditionNotMet, InvalidInput, RolledBack, StoreClosed, StoreLocked
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

Face = aio.AsyncStore[Any, Any]


async def write(kind: Kind, store: Face, *numbers: int) -> Any:
    async with store.transaction() as tx:
        for n in numbers:
            kind.write(tx, n)
    return tx


async def shown(kind: Kind, store: Face, **how: Any) -> set[int]:
    async with store.snapshot(**how) as view:
        return kind.of(view)


def test_what_is_committed_is_shown_and_is_there_afterwards(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            tx = await write(kind, store, 1, 2)
            assert tx.txid == 1
            assert tx.outcome.done()
            assert await tx.outcome == 1
            with pytest.raises(ZeroDivisionError):
                async with store.transaction() as tx:
                    kind.write(tx, 3)
                    raise ZeroDivisionError
            with pytest.raises(RolledBack):
                await tx.outcome
            assert await shown(kind, store) == {1, 2}
            assert (await store.checkpoint()).txid == 1
            assert await store.prune() == 0
            await store.wait(1)

    asyncio.run(main())
    with kind.open(tmp_path / "store", create=False) as again:
        assert kind.numbers(again) == {1, 2}
        commit(kind, again, 4)


def test_a_commit_that_is_not_waited_for_says_later_how_it_ended(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            ends = []
            for n in range(20):
                async with store.transaction("pipelined") as tx:
                    kind.write(tx, n)
                ends.append(tx.outcome)
            assert await asyncio.gather(*ends, *ends) == [*range(1, 21)] * 2
            assert await shown(kind, store) == set(range(20))
            async with store.transaction("relaxed") as tx:
                kind.write(tx, 20)
            assert tx.outcome is None
            await store.wait(tx.txid)
            assert await shown(kind, store, at_least=21) == set(range(21))

    asyncio.run(main())


def test_a_transaction_that_only_reads_ends_once_what_it_read_is_published(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            async with store.transaction() as tx:
                pass
            assert await tx.outcome is None
            async with store.transaction("pipelined") as first:
                kind.write(first, 1)
            async with store.transaction() as second:
                pass
            assert store.store.positions().published == 1
            assert (second.txid, await second.outcome) == (None, None)

    asyncio.run(main())


def test_a_block_may_await_and_others_wait_for_their_turn(kind: Kind, tmp_path: Path) -> None:
    """Tasks of the loop in the order in which they came; threads too."""
    async def main() -> None:
        order = []

        async def one(store: Face, n: int) -> None:
            async with store.transaction() as tx:
                order.append(n)
                await asyncio.sleep(0.001)
                kind.write(tx, n)
                assert order[-1] == n

        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            async with asyncio.TaskGroup() as tasks:
                for n in range(10):
                    tasks.create_task(one(store, n))
                for n in range(10, 15):
                    tasks.create_task(asyncio.to_thread(commit, kind, store.store, n))
            assert order == [*range(10)]
            assert await shown(kind, store) == set(range(15))

    asyncio.run(main())


def test_the_loop_goes_on_while_a_thread_has_the_writer_lock(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        begun, may_end = threading.Event(), threading.Event()

        def hold(store: Store[Any, Any]) -> None:
            with store.transaction() as tx:
                kind.write(tx, 1)
                begun.set()
                assert may_end.wait(30)

        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            holding = asyncio.create_task(asyncio.to_thread(hold, store.store))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            writing = asyncio.create_task(write(kind, store, 2))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not writing.done()
            assert await shown(kind, store) == set()
            may_end.set()
            await holding
            await writing
            assert await shown(kind, store) == {1, 2}

    asyncio.run(main())


def test_what_would_wait_for_itself_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "store", STAGING.engine, settings=QUIET) as store:
            async with store.transaction() as tx:
                STAGING.write(tx, 1)
                with pytest.raises(InvalidInput, match="this task already has a transaction open"):
                    async with store.transaction():
                        pass
                with pytest.raises(InvalidInput, match="this task already has a transaction open"):
                    await store.checkpoint()
                with pytest.raises(InvalidInput, match="this task already has a transaction open"):
                    store.bulk({})
                with pytest.raises(InvalidInput, match="this thread already has a transaction open"):
                    commit(STAGING, store.store, 2)
            again = store.transaction()
            async with again as tx:
                STAGING.write(tx, 2)
            with pytest.raises(InvalidInput, match="begun already"):
                await again.__aenter__()
            with pytest.raises(InvalidInput, match="durability"):
                store.transaction("soon")  # type: ignore[arg-type]
            assert await shown(STAGING, store) == {1, 2}

    asyncio.run(main())


def test_two_loops_have_each_a_face_of_one_store(kind: Kind, tmp_path: Path) -> None:
    async def main(store: Store[Any, Any], numbers: range, faces: list[Face]) -> None:
        async with aio.AsyncStore(store) as face:
            faces.append(face)
            await asyncio.gather(*(write(kind, face, n) for n in numbers))

    async def elsewhere(face: Face) -> None:
        with pytest.raises(StoreClosed, match="asyncio face"):
            await write(kind, face, 1)
        foreign = await asyncio.to_thread(asyncio.run, make())
        with pytest.raises(InvalidInput, match="another event loop"):
            await write(kind, foreign, 1)

    async def make() -> Face:
        return aio.AsyncStore(opened)

    with kind.open(tmp_path / "store", settings=QUIET) as opened:
        faces: list[Face] = []
        threads = [threading.Thread(target=lambda part=part: asyncio.run(main(opened, part, faces)))
                   for part in (range(50), range(50, 100))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kind.numbers(opened) == set(range(100))
        asyncio.run(elsewhere(faces[0]))
        commit(kind, opened, 100)


def test_a_read_only_store_follows_and_refuses_writes(tmp_path: Path) -> None:
    async def main() -> None:
        with STAGING.open(tmp_path / "store", settings=QUIET) as writer:
            commit(STAGING, writer, 1)
            async with aio.open(tmp_path / "store", STAGING.engine, read_only=True) as store:
                commit(STAGING, writer, 2)
                commit(STAGING, writer, 3)
                writer.group_commit.heartbeat()
                assert await store.refresh() >= 2
                assert await shown(STAGING, store) >= {1, 2}
                with pytest.raises(InvalidInput, match="read-only"):
                    await write(STAGING, store, 4)
                with pytest.raises(StoreLocked):
                    async with aio.open(tmp_path / "store", STAGING.engine):
                        pass

    asyncio.run(main())


def test_a_bulk_load_and_a_graph_store(tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "staging", STAGING.engine, settings=QUIET) as store:
            loading = store.bulk({b"1": b"", b"2": b""})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await loading
            assert await loading == 1
            assert await shown(STAGING, store) == {1, 2}
            with pytest.raises(InvalidInput, match="a dictionary"):
                await store.bulk(7)
        with GraphStore.open(tmp_path / "graph", online_backup_enabled=False) as graph:
            async with aio.AsyncStore(graph) as face, face.transaction() as tx:
                ada = tx.add_node("Person", name="Ada")
            with graph.snapshot() as view:
                assert view.node(ada).properties["name"] == "Ada"

    asyncio.run(main())


def test_a_scan_gives_every_value_in_order_and_leaves_the_loop_free(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            await write(kind, store, 1, 2, 3)
            async with store.snapshot() as view:
                where = set()

                def values() -> Any:
                    for n in range(3500):
                        where.add(threading.current_thread())
                        yield n
                    yield from view.check()

                assert [n async for n in store.scan(values())] == [*range(3500)]
                assert threading.current_thread() not in where

                def broken() -> Any:
                    yield 1
                    raise LookupError("in the middle")

                seen = []
                with pytest.raises(LookupError, match="in the middle"):
                    async for n in store.scan(broken()):
                        seen.append(n)  # noqa: PERF401  what came before the error
                assert seen == [1]
                async with aclosing(store.scan(range(10**9))) as left:
                    async for n in left:
                        if n == 5:
                            break

    asyncio.run(main())


def test_a_cancelled_scan_has_left_its_view_when_it_ends(tmp_path: Path) -> None:
    """The view is closed next: nothing may still read from it in the thread."""
    async def main() -> None:
        async with aio.open(tmp_path / "store", MEMORY.engine, settings=QUIET) as store:
            reading, began = threading.Event(), threading.Event()

            def values() -> Any:
                for n in range(10**9):
                    reading.set()
                    began.set()
                    yield n
                    reading.clear()

            async def scan() -> None:
                async for _ in store.scan(values()):
                    pass

            task = asyncio.create_task(scan())
            while not began.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = reading.is_set()
            for _ in range(50):
                await asyncio.sleep(0)
                assert reading.is_set() == left

    asyncio.run(main())


def test_a_snapshot_at_a_transaction_that_does_not_come(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(heartbeat_s=0, wait_s=0.05)
        async with aio.open(tmp_path / "store", kind.engine, settings=settings) as store:
            with pytest.raises(ConditionNotMet, match="transaction 9 is not published"):
                await shown(kind, store, at_least=9)
            with pytest.raises(InvalidInput, match="no transaction 9 yet"):
                await store.wait(9)
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            waiting = [asyncio.create_task(shown(kind, store, at_least=n)) for n in (3, 1, 2)]
            await asyncio.sleep(0)
            for n in range(3):
                await write(kind, store, n)
            for numbers in await asyncio.gather(*waiting):
                assert numbers

    asyncio.run(main())


def test_a_plugin_that_refuses_or_delays_keeps_only_its_writer(kind: Kind, tmp_path: Path) -> None:
    """Hooks run in the thread for writing, and say what they say to threads."""
    class Picky(Plugin):
        def __init__(self) -> None:
            self.obstacle: Obstacle | None = None
            self.where: set[threading.Thread] = set()

        def beginning(self) -> Obstacle | None:
            self.where.add(threading.current_thread())
            return self.obstacle

        def committing(self, tx: Any) -> None:
            self.where.add(threading.current_thread())
            if self.refuses:
                raise ValueError("not this one")

        refuses = False

    async def main() -> None:
        picky = Picky()
        settings = Settings(heartbeat_s=0, wait_s=0.1)
        async with aio.open(tmp_path / "store", kind.engine, settings=settings, plugins=[picky]) as store:
            await write(kind, store, 1)
            picky.refuses = True
            with pytest.raises(RolledBack, match="not this one"):
                await write(kind, store, 2)
            picky.refuses = False
            picky.obstacle = Obstacle("the archive is full", "wait")
            with pytest.raises(RolledBack, match="the archive is full"):
                await write(kind, store, 3)
            picky.obstacle = None
            await write(kind, store, 4)
            assert await shown(kind, store) == {1, 4}
            assert threading.current_thread() not in picky.where

    asyncio.run(main())


def test_large_transactions_and_full_segments(tmp_path: Path) -> None:
    """The log rolls over, and needs room for large records, which is made in a thread."""
    async def main() -> None:
        settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, checkpoint_soft_bytes=200_000,
                            checkpoint_hard_bytes=400_000)
        async with aio.open(tmp_path / "store", STAGING.engine, settings=settings) as store:
            async def put(n: int) -> None:
                async with store.transaction() as tx:
                    tx.put(b"%d" % n, bytes(700_000 if n % 10 == 0 else 30_000))

            await asyncio.gather(*map(put, range(40)))
            assert await shown(STAGING, store) == set(range(40))
            store.store.log.verify()

    asyncio.run(main())


def test_what_is_asked_of_a_closed_store_is_refused(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            await write(kind, store, 1)
        for asked in (write(kind, store, 2), shown(kind, store), store.checkpoint(), store.wait(1)):
            with pytest.raises(StoreClosed):
                await asked
        with kind.open(tmp_path / "store", settings=QUIET) as under:
            async with aio.AsyncStore(under) as face:
                async with face.transaction() as tx:
                    kind.write(tx, 2)
                with pytest.raises(RolledBack):
                    async with face.transaction() as tx:
                        kind.write(tx, 3)
                        under._patience_s = 0.0
                        await asyncio.to_thread(under.close)
                with pytest.raises(StoreClosed):
                    await write(kind, face, 4)

    asyncio.run(main())
    with kind.open(tmp_path / "store") as again:
        assert kind.numbers(again) == {1, 2}
