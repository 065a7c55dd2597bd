"""Many tasks: no thread for each, nothing left behind, and nothing lost if the process is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import store_kinds
from store_kinds import KINDS, MEMORY, QUIET, STAGING, Kind, until

from holdfast.engine import aio
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.model.records import LogRange


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("holdfast")]


@pytest.mark.parametrize("kind", [MEMORY, STAGING], ids=["memory", "staging"])
def test_a_thousand_tasks_use_a_few_threads_and_leave_nothing(kind: Kind, tmp_path: Path) -> None:
    async def main() -> int:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store:
            most = 0

            async def one(n: int) -> None:
                nonlocal most
                async with store.transaction() as tx:
                    kind.write(tx, n)
                async with store.snapshot(at_least=tx.txid) as view:
                    assert n in kind.shown(view) or n % 50
                most = max(most, len(ours()))

            await asyncio.gather(*map(one, range(1000)))
            async with store.snapshot() as view:
                assert kind.of(view) == set(range(1000))
            return most

    asyncio.run(main())  # what is loaded once is loaded
    until(lambda: not ours())
    descriptors = len(os.listdir("/proc/self/fd"))

    async def again() -> None:
        async with aio.open(tmp_path / "store", kind.engine, settings=QUIET) as store, store.snapshot() as view:
            assert len([n async for n in store.scan(kind.of(view))]) == 1000

    assert asyncio.run(main()) <= 8
    asyncio.run(again())
    until(lambda: not ours())
    assert len(os.listdir("/proc/self/fd")) == descriptors


class Holds(Plugin):
    """Holds acknowledgements until the test says so."""

    def __init__(self) -> None:
        self.held: list[tuple[LogRange, Future[None]]] = []

    def logged(self, batch: LogRange) -> Condition:
        met: Future[None] = Future()
        self.held.append((batch, met))
        return Condition(met=met, timeout=60.0, gates_publication=True, name="the test")


def test_a_group_of_acknowledgements_wakes_the_loop_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        holds = Holds()
        async with aio.open(tmp_path / "store", STAGING.engine, settings=QUIET, plugins=[holds]) as store:
            ends = []
            for n in range(500):
                async with store.transaction("pipelined") as tx:
                    STAGING.write(tx, n)
                ends.append(tx.outcome)
            while not holds.held or holds.held[-1][0].last < 500:
                await asyncio.sleep(0.001)
            loop, wakes = asyncio.get_running_loop(), []
            call = loop.call_soon_threadsafe

            def counting(*what: Any) -> Any:
                wakes.append(what)
                return call(*what)

            monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
            for _, met in reversed(holds.held):  # nothing is acknowledged before the first condition is met
                met.set_result(None)
            assert await asyncio.gather(*ends) == [*range(1, 501)]
            assert len(wakes) == 1
            monkeypatch.undo()

    asyncio.run(main())


@pytest.mark.parametrize("name", KINDS)
def test_what_was_acknowledged_survives_a_kill(name: str, tmp_path: Path) -> None:
    support = Path(store_kinds.__file__).parent
    child = subprocess.Popen([sys.executable, str(support / "aio_worker.py"), str(tmp_path / "store"), name],
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = {int(child.stdout.readline()) for _ in range(100)}
    os.kill(child.pid, signal.SIGKILL)
    acknowledged |= {int(line) for line in child.stdout.read().split("\n")[:-1]}
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    with KINDS[name].open(tmp_path / "store", create=False) as store:
        found = KINDS[name].numbers(store)
    assert acknowledged <= found
    assert found <= set(range(max(acknowledged) + 50))
