"""A `Rig`: a store with one plugin under watch, and beside it the model of what the store must show.

Histories are steps, tuples of a kind and its arguments, so that Hypothesis can draw and shrink them:

    ("commit", operations, durability)      ("roll back", operations)      ("bulk", number)
    ("checkpoint",)  ("prune",)  ("reopen",)  ("kill",)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...contract.plugin import Plugin
from ...contract.transaction import Durability
from ...contract.view import View
from ...env import REAL, Env
from ...errors import ConditionNotMet, RolledBack
from ...store.settings import Settings
from ..support.workload import Operation, Workload
from .watching import Stuck, Watch, WatchedStore

END_S = 5.0
"""How long a rig waits for what must come, in seconds."""


class _Enough(Exception):
    """Ends a transaction's block."""


class Rig:
    """A store with one plugin under watch (none: a bare store), and the model of what it must show.

    Attributes:
        store, watch, model: see above; `watch` is None for a bare store.
        tried: the model as of the transaction that was run last, committed or not.
        watches: of every instance that the rig has used.
    """

    def __init__(self, work: Workload, directory: Path, make: Callable[[], Plugin] | None, *, may_refuse: bool = False,
                 has_model: bool = True, keep_logs: str = "1 transactions",
                 first: Sequence[Plugin] = (), last: Sequence[Plugin] = (), env: Env = REAL,
                 watches: list[Watch] | None = None, plugin: Plugin | None = None) -> None:
        """
        Args:
            work, directory: what to do, and where.
            make: makes the plugin.
            may_refuse: it may refuse transactions.
            has_model: False if the plugin adds to transactions, so that the store shows more than the model.
            keep_logs: as the setting of a store.
            first, last: plugins before and after it.
            env: for the store.
            watches: where each watch is put as well.
            plugin: the first one, instead of one that is made.
        """
        self.work, self.directory = work, directory
        self.may_refuse, self.has_model = may_refuse, has_model
        self.model = self.tried = work.new_model()
        self.watches: list[Watch] = []
        self._make, self._first, self._last, self._env = make, first, last, env
        self._everyone: list[Watch] = [] if watches is None else watches
        self._settings = Settings(heartbeat_s=0, segment_bytes=128 << 10, keep_logs=keep_logs, wait_s=2,
                                  relaxed_ms=20)
        self._outcomes: list[Future[int]] = []
        self._number = 0
        self.open(plugin)

    @property
    def watch(self) -> Watch:
        return self.watches[-1]

    def open(self, plugin: Plugin | None = None) -> None:
        """Open the store, with `plugin` or a new one."""
        plugins: list[Plugin] = [*self._first]
        if plugin is not None or self._make is not None:
            watch = Watch(plugin or self._make(), END_S)  # type: ignore[misc]
            self.watches.append(watch)
            self._everyone.append(watch)
            plugins.append(watch)
        self.store = WatchedStore.open(self.directory, self.work.engine, plugins=[*plugins, *self._last],
                                       options=self.work.opened_with, settings=self._settings, env=self._env)

    def close(self) -> None:
        self.catch_up()
        self.store.close()

    def commit(self, operations: list[Operation], durability: Durability | None = None) -> bool:
        """Run a transaction; whether it was committed, and not refused.

        Raises:
            AssertionError: the plugin refused it, and may not.
            Stuck: it was committed, and is not acknowledged. (Each try takes its time: nothing to shrink.)
            OutcomeUnknown: the store is poisoned.
        """
        model = self.tried = self.model.copy()
        before = len(self.watch.raised) if self.watches else 0
        try:
            with self.store.transaction(durability) as tx:
                self.work.run(tx, model, operations)
        except RolledBack as error:
            return self._refused(error, before, "a transaction", self.may_refuse)
        except ConditionNotMet as error:
            raise Stuck(f"a commit did not get through: {error.message}") from error
        if tx.outcome is not None:
            self._outcomes.append(tx.outcome)
        self.model = model
        return True

    def bulk(self, number: int) -> bool:
        """Load in bulk what the workload's `bulk_load` gives for a number; whether it was loaded, and not refused. A
        plugin that adds to transactions cannot add to a bulk load, and so may refuse it. Raises as `commit`."""
        model = self.tried = self.model.copy()
        before = len(self.watch.raised) if self.watches else 0
        try:
            self.store.bulk(self.work.bulk_load(number, model))
        except RolledBack as error:
            return self._refused(error, before, "a bulk load", self.may_refuse or not self.has_model)
        except ConditionNotMet as error:
            raise Stuck(f"a bulk load did not get through: {error.message}") from error
        self.model = model
        return True

    def _refused(self, error: RolledBack, before: int, what: str, may: bool) -> bool:
        """Return False if the plugin has refused it and may. Raises otherwise."""
        if not self.watches or all(raised is not error.__cause__ for _, raised in self.watch.raised[before:]):
            raise error
        if not may:
            raise AssertionError(f"the plugin does not declare `refuses`, and raised {error.__cause__!r}, so that "
                                 f"{what} was rolled back") from error
        return False

    def commit_number(self, *, many: int = 1, durability: Durability | None = None) -> bool:
        """Commit the next `many` numbered operations as one transaction."""
        operations: list[Operation] = []
        for _ in range(many):
            self._number += 1
            operations += self.work.numbered(self._number)
        return self.commit(operations, durability)

    def roll_back(self, operations: list[Operation]) -> None:
        """Begin a transaction and let its block raise."""
        with suppress(_Enough), self.store.transaction() as tx:
            self.work.run(tx, self.model.copy(), operations)
            raise _Enough

    def catch_up(self) -> None:
        """Wait until everything committed is acknowledged and published."""
        outcomes, self._outcomes = self._outcomes, []
        for outcome in outcomes:
            try:
                outcome.result(END_S)
            except ConditionNotMet as error:
                raise Stuck(f"a pipelined commit did not get through: {error.message}") from error
        last = self.store.positions().appended
        if last:
            try:
                self.store.wait(last, END_S)
            except ConditionNotMet as error:
                raise Stuck(f"transaction {last} is not acknowledged {END_S:g} s later") from error

    def view(self) -> View:
        """A view of everything committed."""
        self.catch_up()
        made: View = self.store.snapshot(at_least=self.store.positions().appended)
        return made

    def compare(self) -> None:
        """Compare the content with the model's, if there is one."""
        with self.view() as view:
            if self.has_model:
                shown, expected = self.work.content(view), self.work.expected(self.model)
                assert shown == expected, (f"with the plugin the store shows {shown!r} at transaction {view.txid}, and "
                                           f"what was committed is {expected!r}")
            assert list(view.check()) == [], "the engine's own check of the content"

    def fill_segment(self) -> None:
        """Commit until a segment of the log is complete, and everybody was told so."""
        deadline = time.monotonic() + END_S
        newest = self._newest()
        while self._newest() == newest:
            assert time.monotonic() < deadline, f"no segment of the log was filled within {END_S:g} s"
            self.commit_number(many=500)
        while self.watches and "sealed" not in self.watch.told:
            assert time.monotonic() < deadline, "a segment was complete, and `sealed` was not told"
            time.sleep(0.001)

    def _newest(self) -> int:
        return self.store.log.segments()[-1].ordinal

    def kill(self, directory: Path) -> None:
        """What a process that is killed now leaves behind, in `directory`; go on with that, and a new plugin."""
        self.catch_up()
        shutil.copytree(self.directory, directory)
        self.store.close()
        self.directory = directory
        self.open()

    def step(self, step: tuple[Any, ...], elsewhere: Path) -> bool:
        """One step of a history, `elsewhere` being a directory that is not there yet; False for a refused commit."""
        kind, *rest = step
        if kind == "commit":
            return self.commit(*rest)
        if kind == "bulk":
            return self.bulk(*rest)
        if kind == "roll back":
            self.roll_back(*rest)
        elif kind == "checkpoint":
            self.catch_up()
            self.store.checkpoint()
        elif kind == "prune":
            self.catch_up()
            self.store.prune()
        elif kind == "reopen":
            self.close()
            self.open()
            self.compare()
        else:
            assert kind == "kill"
            self.kill(elsewhere)
            self.compare()
        return True

    def live(self, steps: Sequence[tuple[Any, ...]]) -> list[bool]:
        """Take every step, and compare; what each returned."""
        done = [self.step(step, self.directory.with_name(f"{self.directory.name}-{number}"))
                for number, step in enumerate(steps)]
        self.compare()
        return done

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *raised: object) -> None:
        self.store.close()
