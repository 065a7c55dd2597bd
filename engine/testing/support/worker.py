"""What runs in a process that is to be killed: a store that is opened, compared with what it must show, and written to.

Each child (see `forks.py`) opens the store, however its predecessor was ended, and compares it with the states that it
may be in: the one after the last transaction that was acknowledged, or one of those after transactions begun later.
Then it writes. Before each commit it says what state the commit leads to, and after it that it was acknowledged. These
messages are all that is known of a child afterwards: a message in a pipe stays readable even if its writer dies.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DiskFull, HoldfastError, LimitReached, OutcomeUnknown, RolledBack, StorePoisoned
from ...store.settings import Settings
from ...store.store import Store
from .forks import Say
from .modelled import difference
from .workload import Operation, Workload

_TRACED_WITHIN_S = 30
STILL_S = 40
"""Threads hang if none ends a transaction for this many seconds. (Checkpoints go on beside them, so the listener would
hear something for ever.)"""
_BETWEEN_CHECKPOINTS_S = 0.008
BUSY = Settings(segment_bytes=128 << 10, checkpoint_soft_bytes=30_000, keep_logs="20 transactions", heartbeat_s=0.05)
"""Log rotates, is checkpointed and pruned all the time, in the background too."""
QUIET = Settings(segment_bytes=128 << 10, keep_logs="20 transactions", heartbeat_s=0)
"""Nothing happens in the background, so that every run does the same."""


@dataclass(frozen=True, slots=True)
class State:
    """A state that a store may be in.

    Attributes:
        number: of the transaction that led to it: what `Workload.numbered` was asked for. -1 for an empty store.
        txid: the transaction's.
        model: pickled.
    """

    number: int
    txid: int
    model: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """How a commit or a checkpoint failed.

    Attributes:
        error: the error's name.
        rolled_back: it certainly did not happen.
        begun: the state that the commit would have led to, once that was said.
        text: what the error says.
    """

    error: str
    rolled_back: bool
    begun: State | None
    text: str

    @classmethod
    def of(cls, error: Exception, begun: State | None = None) -> Failure:
        return cls(type(error).__name__, isinstance(error, RolledBack), begun, str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a child is to do.

    Attributes:
        directory: the store's.
        states: those that it may be in, by txid. None: there was none yet, so it is made.
        script: operations of transactions, drawn beforehand, used in turn.
        first: the number of its first transaction; no earlier child had any as high.
        count: how many transactions.
        threads: how many write beside one another. None: all is done in one thread, checkpoints too.
        faults: a tracer will make system calls fail: wait at first until it has attached.
        settings: of the store.
    """

    directory: Path
    states: Sequence[State] | None
    script: Sequence[list[Operation]]
    first: int
    count: int
    threads: int | None = 3
    faults: bool = False
    settings: Settings = BUSY


def drive(work: Workload, say: Say, plan: Plan) -> None:
    """Open, compare, write. Says `open`, the state found, and whether it had been closed properly; `begun` and the
    state that a commit leads to; `acknowledged` and a txid; `failed` and a `Failure`; `checkpoint` and `checkpointed`;
    `pruned`; `closing` and `closed`. Under faults also `waiting`, for the tracer, and `warned`, with what was logged.

    Raises:
        AssertionError: the store does not open, is not in one of the states, or goes on wrongly.
        OSError, HoldfastError: it cannot be closed. Under faults `failed` is said instead, also if it does not open.
    """
    if plan.faults:
        wait_for_tracer(say)
        logging.getLogger("holdfast").addHandler(_Heard(say))
    try:
        store = Store.open(plan.directory, work.engine, create=plan.states is None, options=work.opened_with,
                           settings=plan.settings)
    except (OSError, HoldfastError) as error:
        if not plan.faults:
            raise AssertionError(f"it does not open: {type(error).__name__}: {error}") from error
        say("failed", Failure.of(error))
        return
    try:
        with store:
            found = compare(work, store, plan.states or [State(-1, 0, pickle.dumps(work.new_model()))])
            store.log.verify()
            say("open", found, store.recovery.clean)
            _Writers(work, store, say, plan, found).run()
            say("closing")
    except (OSError, HoldfastError) as error:
        if not plan.faults:
            raise
        say("failed", Failure.of(error))
    say("closed")


def compare(work: Workload, store: Store[Any, Any], states: Sequence[State]) -> State:
    """Which of `states`, in the order of txids, a store shows; the engine finds nothing wrong with it."""
    with store.snapshot() as view:
        findings = list(view.check())
        assert not findings, f"the engine's check finds: {'; '.join(findings[:3])}"
        txid, content = view.txid, work.content(view)
    least, most = states[0].txid, states[-1].txid
    assert txid >= least, f"transactions {txid + 1} to {least} were acknowledged and are lost"
    assert txid <= most, f"it shows transaction {txid}; nothing after {most} was ever committed"
    found = next(state for state in states if state.txid == txid)
    differs = difference(content, work.expected(pickle.loads(found.model)))
    assert not differs, f"at transaction {txid} it differs from the model: {differs}"
    return found


@dataclass
class _Writers:
    """The writing half of `drive`."""

    work: Workload
    store: Store[Any, Any]
    say: Say
    plan: Plan
    state: State
    _stop: bool = False
    _wrong: list[BaseException] = field(default_factory=list)
    _since: list[State] = field(default_factory=list)
    """The states after the last acknowledged transaction and those begun since."""

    def __post_init__(self) -> None:
        self._model = pickle.loads(self.state.model)
        self._numbers = itertools.count(self.plan.first)
        self._since.append(self.state)
        self._ended = time.monotonic()

    def run(self) -> None:
        if self.plan.threads is None:
            for index in range(self.plan.count):
                self._transaction()
                if index % 4 == 3:
                    self._checkpoint(prune=index % 8 == 7)
        else:
            each = -(-self.plan.count // self.plan.threads)
            threads = [threading.Thread(target=self._thread, args=(each,), daemon=True)
                       for _ in range(self.plan.threads)]
            for thread in threads:
                thread.start()
            for index in itertools.count():
                if not any(thread.is_alive() for thread in threads):
                    break
                still = time.monotonic() - self._ended
                assert still < STILL_S, f"no thread has ended a transaction for {STILL_S} s"
                time.sleep(_BETWEEN_CHECKPOINTS_S)
                self._checkpoint(prune=index % 2 == 1)
        if self._wrong:
            raise self._wrong[0]
        if self.store.poisoned:  # reads go on
            compare(self.work, self.store, self._since)

    def _thread(self, count: int) -> None:
        try:
            for _ in range(count):
                self._transaction()
                self._ended = time.monotonic()
        except BaseException as error:
            self._stop = True
            self._wrong.append(error)

    def _transaction(self) -> None:
        if self._stop:
            return
        begun: State | None = None
        try:
            with self.store.transaction() as tx:
                before, number = self.state, next(self._numbers)
                self.work.run(tx, self._model, self._operations(number))
                begun = self.state = State(number, before.txid + 1, pickle.dumps(self._model))
                self._since.append(begun)
                self.say("begun", begun)
        except (RolledBack, OutcomeUnknown) as error:
            self._failed(begun, error)
        else:
            assert tx.txid == begun.txid, f"transaction {begun.txid} was committed as {tx.txid}"
            self._since[:] = [state for state in self._since if state.txid >= begun.txid]
            self.say("acknowledged", begun.txid)

    def _failed(self, begun: State | None, error: HoldfastError) -> None:
        """Continue after an error only with one writer: what others have begun meanwhile may build on what failed."""
        self.say("failed", Failure.of(error, begun))
        if self.store.poisoned or self.plan.threads is not None or not isinstance(error, RolledBack):
            self._stop = True
            if begun is not None and isinstance(error, RolledBack):
                self._since.remove(begun)
        elif begun is not None:
            self._since.remove(begun)
            self.state = self._since[-1]
            self._model = pickle.loads(self.state.model)

    def _operations(self, number: int) -> list[Operation]:
        """One of the script's transactions, now and then all of them in one, and what is certain to add something."""
        script = self.plan.script
        drawn = ([operation for one in script for operation in one] if number % 5 == 3
                 else script[number * 7 % len(script)])
        return [*drawn, *self.work.numbered(number)]

    def _checkpoint(self, *, prune: bool) -> None:
        if self._stop:
            return
        self.say("checkpoint")
        try:
            self.store.checkpoint()
        except (DiskFull, LimitReached, StorePoisoned) as error:
            self.say("failed", Failure.of(error))
        self.say("checkpointed")
        if prune:
            try:
                if self.store.prune():
                    self.say("pruned")
            except OSError as error:
                if not self.plan.faults:
                    raise
                self.say("failed", Failure.of(error))


class _Heard(logging.Handler):
    """Says what is logged as a warning or worse."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say("warned", record.getMessage())


def wait_for_tracer(say: Say) -> None:
    """Until then nothing is done that the tracer would count: this file is opened before it is called for."""
    until = time.monotonic() + _TRACED_WITHIN_S
    status = os.open("/proc/self/status", os.O_RDONLY)
    say("waiting")
    while b"TracerPid:\t0\n" in os.pread(status, 1 << 16, 0):
        assert time.monotonic() < until, "no tracer came"
        time.sleep(0.001)
    os.close(status)
