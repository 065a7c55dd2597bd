"""A member of a cluster, or a store alone, in a process of its own, which obeys orders: one JSON object a line.

Each order names what to `do`; the answer is one message, whose event is that word. Times are of the machine's monotonic
clock, in seconds, so those of several processes can be compared.

===========  =======================================================================================================
order        answer
===========  =======================================================================================================
ready        the member's role and address, once it can be used
state        role, position, and whether it streams
commit       `threads`, `seconds`, `ack`: count, rate, and latencies in milliseconds by share of the commits
try          one commit: `ok`, and `at`, when it returned
pour         commit in the background until a transaction is refused
poured       `at`: when the last of these commits returned
switch       hand over to the member `to`
watch        note from now on when transactions become durable and when they are published
watched      both, as pairs of a transaction and a time
cost         CPU seconds of this process so far, and switches of its threads
===========  =======================================================================================================
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from typing import Any

from ..engine.builtin.graph import GraphEngine
from ..engine.builtin.memory import MemoryEngine
from ..engine.contract.plugin import Plugin
from ..engine.errors import HoldfastError
from ..engine.model.records import Record
from ..engine.store.store import Store
from ..replay.ha.service import Member
from . import child
from .harness import percentile
from .traffic import many_threads

ENGINES: dict[str, Any] = {"memory": MemoryEngine, "graph": GraphEngine}
VALUE = b"v" * 64
KEYS = 1000
"""How many keys the memory engine's commits set, one each."""

_READY_S = 120.0


class _Published(Plugin):
    """Notes when transactions are shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []
        self.noting = False

    def published(self, records: Sequence[Record]) -> None:
        if self.noting:
            self.seen.append((records[-1].txid, time.monotonic()))


class Served:
    """A member or a store alone, and what is asked of it."""

    def __init__(self, engine: str, member: Member[Any, Any] | None, store: Store[Any, Any] | None,
                 published: _Published) -> None:
        self._engine = engine
        self._member = member
        self._alone = store
        self._published = published
        self._durable: list[tuple[int, float]] = []
        self._poured: float | None = None
        self._pouring: threading.Thread | None = None

    def transaction(self, ack: str | None) -> AbstractContextManager[Any]:
        if self._member is not None:
            return self._member.transaction(ack=ack)
        assert self._alone is not None
        return self._alone.transaction()

    def one(self, number: int, ack: str | None) -> None:
        """One commit: a node of the graph, or one key of the memory engine, with 64 bytes."""
        with self.transaction(ack) as tx:
            if self._engine == "graph":
                tx.add_node("Written", value=VALUE)
            else:
                tx.put(b"%d" % (number % KEYS), VALUE)

    # --- orders ----------------------------------------------------------------------------------------------------

    def ready(self) -> dict[str, Any]:
        if self._member is None:
            return {"role": "alone"}
        self._member.wait_ready(_READY_S)
        return {"role": self._member.role, "address": self._member.address}

    def state(self) -> dict[str, Any]:
        if self._member is None:
            return {"role": "alone"}
        status = self._member.status()
        return {"role": self._member.role, "published": status.get("published", 0),
                "durable": status.get("durable", 0), "connected": status.get("connected", False)}

    def commit(self, threads: int, seconds: float, ack: str | None = None) -> dict[str, Any]:
        found: list[list[float]] = [[] for _ in range(threads)]

        def worker(number: int) -> Callable[[], None]:
            note, numbers = found[number].append, iter(range(number, 1 << 62, threads))

            def commit() -> None:
                began = perf_counter()
                self.one(next(numbers), ack)
                note((perf_counter() - began) * 1000)

            return commit

        rate = many_threads(threads, worker, seconds=seconds)
        latencies = [ms for some in found for ms in some]
        return {"count": len(latencies), "rate": rate, "p50": percentile(latencies, 0.5),
                "p99": percentile(latencies, 0.99)}

    def attempt(self, ack: str | None = None) -> dict[str, Any]:
        try:
            self.one(0, ack)
        except HoldfastError as error:
            return {"ok": False, "why": str(error)}
        return {"ok": True, "at": time.monotonic()}

    def pour(self) -> dict[str, Any]:
        def run() -> None:
            number = 0
            with contextlib.suppress(HoldfastError):
                while True:
                    self.one(number, None)
                    self._poured = time.monotonic()
                    number += 1

        self._poured = None
        self._pouring = threading.Thread(target=run)
        self._pouring.start()
        return {}

    def poured(self) -> dict[str, Any]:
        assert self._pouring is not None
        self._pouring.join()
        return {"at": self._poured}

    def switch(self, to: str) -> dict[str, Any]:
        assert self._member is not None
        self._member.switch_over(to)
        return {}

    def watch(self) -> dict[str, Any]:
        self._published.seen, self._durable, self._published.noting = [], [], True
        assert self._member is not None
        if self._member.role == "primary":
            store = self._member.store
            group_commit, notes = store.group_commit, self._durable
            inner = group_commit.on_synced

            def synced() -> None:  # on the thread that synced, before anybody else hears of it
                notes.append((store.durable.txid, time.monotonic()))
                inner()

            group_commit.on_synced = synced
            self._unwrap = lambda: setattr(group_commit, "on_synced", inner)
        return {}

    def watched(self) -> dict[str, Any]:
        self._published.noting = False
        unwrap = getattr(self, "_unwrap", None)
        if unwrap is not None:
            unwrap()
            del self._unwrap
        return {"durable": self._durable, "published": self._published.seen}

    def cost(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"cpu": used.ru_utime + used.ru_stime, "switches": used.ru_nvcsw + used.ru_nivcsw}


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[Served, float]]:
    """What is served, and how many seconds it took to have a store."""
    engine, published = ENGINES[arguments.engine], _Published()
    began = perf_counter()
    if arguments.coordinator is None:
        with Store.open(arguments.directory, engine, create=True) as store:
            yield Served(arguments.engine, None, store, published), perf_counter() - began
        return
    with Member.open(arguments.directory, engine, cluster=arguments.cluster, name=arguments.name, listen="127.0.0.1:0",
                     coordinator=arguments.coordinator, create=arguments.create, ttl=arguments.ttl,
                     plugins=[published]) as member:
        while member.role == "joining":
            member.check()
            time.sleep(0.001)
        yield Served(arguments.engine, member, None, published), perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default="memory")
    parser.add_argument("--coordinator", help="without it: a store alone")
    parser.add_argument("--cluster", default="bench")
    parser.add_argument("--name", default="a")
    parser.add_argument("--ttl", type=float, default=10.0)
    parser.add_argument("--create", action="store_true")
    arguments = parser.parse_args()
    with _opened(arguments) as (served, seconds):
        child.say("open", seconds=seconds)
        for line in sys.stdin:
            order = json.loads(line)
            word = order.pop("do")
            work = served.attempt if word == "try" else getattr(served, word)
            child.say(word, **work(**order))


if __name__ == "__main__":
    main()
