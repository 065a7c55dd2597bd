"""An author's own engine beside the kit's: `--engine module:Class`, for engines that map keys to values.

Each engine is driven through the workload that the contract suites drive it through, and holds the same number of keys,
which the commits set again in turn. So a state does not grow while it is measured. An engine that keeps its state in a
dictionary pays for its size with each commit, and one on disk does not: the figures of one machine say which is which.
Beside them stand libraries that are used plainly: what a commit costs that is neither logged nor backed up.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import backup
from ..backup.engines import named
from ..engine.contract.engine import Engine
from ..engine.contract.registry import find_engine
from ..engine.errors import SettingError
from ..engine.store.store import Store
from ..engine.testing import KeyValues
from ..engine.testing.support.guessed import workload_of
from .harness import Bench, Line
from .peers.key_values import KeyValuePeer, key_value_peers
from .store_child import NEVER_CHECKPOINT
from .traffic import Commit, many_threads, one_thread
from .workload_commits import IN_FLIGHT

KEYS = 10_000
"""How many each store holds."""
OURS = ("memory", "sqlite", "rocksdb")
"""The kit's engines that map keys to values."""
_COPY = backup.Policy(verify=False)


def workload_named(reference: str) -> KeyValues:
    """The workload of `module:Class`: an engine, a workload, or what makes one. Raises `SettingError`."""
    found = named(reference)
    engine = isinstance(found, type) and issubclass(found, Engine)
    work: Any = workload_of(found) if engine else found() if callable(found) else found
    if not isinstance(work, KeyValues):
        raise SettingError(f"{reference} does not lead to a KeyValues", hint="only engines that map keys to values can "
                                                                              "be measured beside the kit's")
    return work


class Contestant:
    """A store of one engine, filled and open."""

    def __init__(self, work: KeyValues, place: Path) -> None:
        self.work, self.place = work, place
        self._numbers = itertools.cycle(range(KEYS))
        self.store = self._open()
        with self.store.transaction() as tx:
            for number in range(KEYS):
                work.put(tx, *work.number(number))
        self.store.checkpoint()
        backup.run(self.store, place / "kept", engine=work.engine, policy=_COPY)

    def _open(self) -> Store[Any, Any]:
        return Store.open(self.place / "store", self.work.engine, options=self.work.options, settings=NEVER_CHECKPOINT)

    def close(self) -> None:
        self.store.close()

    def commits(self) -> Commit:
        """One key set again."""
        transaction, put, number, numbers = self.store.transaction, self.work.put, self.work.number, self._numbers

        def commit() -> None:
            with transaction() as tx:
                put(tx, *number(next(numbers)))

        return commit

    def reads(self, seconds: float) -> float:
        """Values per second, by key, in a view that stays open, if the workload says how to find one."""
        find, number, numbers = self.work.ways.find, self.work.number, self._numbers
        assert find is not None
        with self.store.snapshot() as view:
            return one_thread(lambda: find(view, number(next(numbers))[0]), seconds)

    def pipelined(self, seconds: float) -> float:
        """Commits per second of one thread that waits for a commit only when `IN_FLIGHT` others came after it."""
        under_way: deque[Future[int]] = deque()
        count, began = 0, perf_counter()
        while perf_counter() < began + seconds:
            with self.store.transaction("pipelined") as tx:
                self.work.put(tx, *self.work.number(next(self._numbers)))
            under_way.append(tx.outcome)
            if len(under_way) >= IN_FLIGHT:
                under_way.popleft().result()
            count += 1
        for outcome in under_way:
            outcome.result()
        return count / (perf_counter() - began)

    def _some(self, count: int) -> None:
        commit = self.commits()
        for _ in range(count):
            commit()

    def checkpoint(self, count: int) -> float:
        """Milliseconds of a checkpoint after so many transactions."""
        self._some(count)
        return _milliseconds(self.store.checkpoint)

    def opening(self) -> float:
        """Milliseconds of an opening after a clean close."""
        self.store.close()

        def open_again() -> None:
            self.store = self._open()

        return _milliseconds(open_again)

    def full_backup(self) -> float:
        target = self.place / "target"
        os.sync()
        taken = _milliseconds(lambda: backup.run(self.store, target, engine=self.work.engine, policy=_COPY))
        shutil.rmtree(target)
        return taken

    def incremental_backup(self, count: int) -> float:
        """Milliseconds of a backup of so many transactions after the last."""
        self._some(count)
        os.sync()
        return _milliseconds(lambda: backup.run(self.store, self.place / "kept", engine=self.work.engine,
                                                policy=_COPY))

    def restore(self) -> float:
        target = self.place / "restored"
        os.sync()
        taken = _milliseconds(lambda: backup.restore(self.place / "kept", target, engine=self.work.engine,
                                                     options=self.work.options))
        shutil.rmtree(target)
        return taken


def _milliseconds(call: Callable[[], object]) -> float:
    began = perf_counter()
    call()
    return (perf_counter() - began) * 1000


def run(bench: Bench, work: KeyValues) -> Iterator[Line]:
    """The lines of an author's engine, each beside one of the kit's."""
    works = {work.engine.name: work}
    for name in OURS:
        try:
            works.setdefault(name, _own(name))
        except ImportError:  # of an extra that is not installed
            bench.say(f"engine: {name} is not installed")
    with bench.scratch("engine") as place, ExitStack() as closing:
        stores = {}
        for name, one in works.items():
            bench.say(f"engine: filling {name} with {KEYS:,} keys")
            (place / name).mkdir()
            stores[name] = Contestant(one, place / name)
            closing.callback(stores[name].close)
        peers = key_value_peers(place)
        for peer in peers.values():
            closing.callback(peer.close)
            peer.fill([_plain(number) for number in range(KEYS)])
        yield from _measure(bench, work.engine.name, stores, peers)


def _plain(number: int) -> tuple[bytes, bytes]:
    return b"key %08d" % number, b"value %d" % number


def _puts(peer: KeyValuePeer) -> Commit:
    numbers = itertools.cycle(range(KEYS))
    return lambda: peer.put(*_plain(next(numbers)))


def _gets(peer: KeyValuePeer, seconds: float) -> float:
    numbers = itertools.cycle(range(KEYS))
    return one_thread(lambda: peer.get(_plain(next(numbers))[0]), seconds)


def _own(name: str) -> KeyValues:
    """The workload of one of the kit's engines."""
    work = workload_of(find_engine(name))
    assert isinstance(work, KeyValues)
    return work


def _measure(bench: Bench, name: str, stores: Mapping[str, Contestant],
             peers: Mapping[str, KeyValuePeer]) -> Iterator[Line]:
    scale = bench.scale

    def lines(what: str, unit: str, measured: Callable[[Contestant], float], rounds: int | None = None,
              plainly: Callable[[KeyValuePeer], float] | None = None,
              only: Callable[[Contestant], bool] = lambda it: True) -> Iterator[Line]:
        contestants = {of: partial(measured, store) for of, store in stores.items() if only(store)}
        if name not in contestants:
            return
        if plainly is not None:
            contestants |= {of: partial(plainly, peer) for of, peer in peers.items()}
        figures = bench.interleave(f"engine, {what}", contestants, rounds=rounds)
        for of in contestants:
            if of != name:
                yield Line(workload=f"{name}: {what}", figure=figures[name], unit=unit, ours=name, peer=of,
                           peer_figure=figures[of], better="less" if unit == "ms" else "more")

    few, count = scale.load_rounds, scale.incremental
    yield from lines("durable commits, 1 thread", "commits/s", lambda it: one_thread(it.commits(), scale.seconds),
                     plainly=lambda peer: one_thread(_puts(peer), scale.seconds))
    yield from lines(f"durable commits, {scale.threads} threads", "commits/s",
                     lambda it: many_threads(scale.threads, lambda n: it.commits(), seconds=scale.seconds),
                     plainly=lambda peer: many_threads(scale.threads, lambda n: _puts(peer), seconds=scale.seconds))
    yield from lines(f"durable commits, pipelined, {IN_FLIGHT} in flight", "commits/s",
                     lambda it: it.pipelined(scale.seconds))
    yield from lines("values by key, in a view", "values/s", lambda it: it.reads(scale.seconds),
                     plainly=lambda peer: _gets(peer, scale.seconds), only=lambda it: it.work.ways.find is not None)
    yield from lines(f"checkpoint after {count:,} transactions", "ms", lambda it: it.checkpoint(count), few)
    yield from lines(f"opening {KEYS:,} keys", "ms", lambda it: it.opening(), few)
    yield from lines(f"full backup of {KEYS:,} keys", "ms", lambda it: it.full_backup(), few)
    yield from lines(f"incremental backup of {count:,} transactions", "ms", lambda it: it.incremental_backup(count),
                     few)
    yield from lines("restore", "ms", lambda it: it.restore(), few)
