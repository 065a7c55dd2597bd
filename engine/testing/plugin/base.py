"""What the checks of plugins share: what an author declares, histories, and how a claim is tried on them.

Each claim runs within a time limit, because a plugin may block a store. The check then fails, and names the hook that
the plugin is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from hypothesis import strategies as st

from ...contract.engine import BulkEngine
from ...contract.plugin import Plugin
from ...errors import SettingError
from ..support.contract import Contract, scratch
from ..support.workload import Operation, Workload
from .rig import Rig
from .watching import Stuck, Watch, bounded

_FIRST_LOAD = 10**9
"""Bulk loads are numbered from here on, and transactions from 1."""


class History:
    """What happens to a store: steps of a `Rig`, on one engine."""

    def __init__(self, work: Workload, steps: list[tuple[Any, ...]]) -> None:
        self.work = work
        self.steps = steps


def histories(works: list[Workload], more: tuple[tuple[Any, ...], ...] = ()) -> st.SearchStrategy[History]:
    """Histories of up to 8 steps: transactions of every durability, also ones that are rolled back, bulk loads,
    checkpoints, prunings, reopenings and kills. `more` are further steps."""

    def on(work: Workload) -> st.SearchStrategy[History]:
        durability = st.sampled_from(("synced", "pipelined", "relaxed"))
        commits = st.tuples(st.just("commit"), work.operations(), durability)
        undone = st.tuples(st.just("roll back"), work.operations())
        loads = [("bulk",)] if issubclass(work.engine, BulkEngine) else []
        others = st.sampled_from([("checkpoint",), ("prune",), ("reopen",), ("kill",), *loads, *more])
        steps = st.lists(st.one_of(commits, commits, others, undone), min_size=1, max_size=8)

        def made(steps: list[tuple[Any, ...]]) -> History:
            # Each load is another one: on some engines it is an error to add what is there.
            return History(work, [("bulk", _FIRST_LOAD + n) if s == ("bulk",) else s for n, s in enumerate(steps)])

        made.__name__ = f"on_{work.engine.name.replace('-', '_')}"  # so that Hypothesis shows `on_memory([…])`
        return steps.map(made)

    return st.sampled_from(works).flatmap(on)


class PluginChecks(Contract):
    """What an author says of a plugin, and how its checks run.

    Attributes:
        plugin: the plugin's class, or a function that makes one: `plugin = staticmethod(lambda: Mine(…))`. It is called
            for each opening of a store.
        workload: what to do to the store; if None, the memory and the graph engine are used as maps. A plugin that adds
            to transactions, or reads them, needs one of an engine that it knows.
        adds: it adds to transactions in `committing`. What it adds must not overlap what the workload touches.
        refuses: it raises in `committing` or `final` for some transactions; `refused` gives one, `refused_load` a bulk
            load, if the engine takes any.
        holds: it returns conditions from `logged`, and meets each of them in the end.
        gates: its conditions gate publication.
        vetoes: it may return reasons from `pruning`; `end_veto` ends them.
        prompt_s: the most that a hook may take while commits wait for it, in seconds.
        stuck_s: after this many seconds without progress, a store is stuck.
    """

    plugin: ClassVar[Callable[[], Plugin]]
    workload: ClassVar[Any] = None
    adds: ClassVar[bool] = False
    refuses: ClassVar[bool] = False
    holds: ClassVar[bool] = False
    gates: ClassVar[bool] = False
    vetoes: ClassVar[bool] = False
    prompt_s: ClassVar[float] = 1.0
    stuck_s: ClassVar[float] = 20.0

    def refused(self) -> list[Operation]:
        """Operations of a transaction that the plugin refuses, whatever else the store holds. Called if the plugin
        declares `refuses`."""
        raise NotImplementedError(f"{type(self).__name__}.refused is needed, since the plugin refuses transactions")

    def refused_load(self) -> Any:
        """A bulk load that the plugin refuses, whatever else the store holds. Called if the plugin declares `refuses`,
        on engines that take bulk loads."""
        raise NotImplementedError(f"{type(self).__name__}.refused_load is needed, since the plugin refuses "
                                  "transactions, and the engine takes bulk loads")

    def end_veto(self, plugin: Plugin) -> None:
        """End the reason for which the plugin keeps the log. Called if the plugin declares `vetoes`."""
        raise NotImplementedError(f"{type(self).__name__}.end_veto is needed, since the plugin vetoes pruning")

    # --- how checks run ----------------------------------------------------------------------------------------------

    def work(self) -> Workload:
        return self.works()[0]

    def works(self) -> list[Workload]:
        """The workloads that each check is tried on."""
        if self.workload is not None:
            return [super().work()]
        from .maps import graph_map, memory_map  # only here: tests of an engine need not load NumPy

        return [memory_map(), graph_map()]

    def make(self) -> Plugin:
        """A plugin."""
        made = type(self).plugin()
        if not isinstance(made, Plugin):
            raise SettingError(f"{type(self).__name__}.plugin gives a {type(made).__name__}",
                               hint="give a Plugin's class, or staticmethod(lambda: Mine(…))")
        return made

    def rig(self, work: Workload, directory: Path, **how: Any) -> Rig:
        """A store with the plugin, in `directory`; `how` as `Rig` takes it."""
        return Rig(work, directory, self.make, may_refuse=self.refuses, has_model=not self.adds, watches=self._watches,
                   **how)

    @contextmanager
    def _bounds(self) -> Iterator[Callable[[Callable[[], None]], None]]:
        try:
            yield lambda claim: bounded(self.stuck_s, claim, lambda: self._watches)
        except Stuck as stuck:
            raise AssertionError(str(stuck)) from None

    def try_histories(self, claim: Callable[[History, Path], None], *, examples: int,
                      more: tuple[tuple[Any, ...], ...] = ()) -> None:
        """Call `claim` with histories, and a directory for each. `more` are further steps of theirs."""
        with self._bounds() as bound:
            def store(history: History) -> None:
                self._watches: list[Watch] = []
                with scratch() as directory:
                    bound(lambda: claim(history, directory))

            self.prove(store, examples=examples, history=histories(self.works(), more))

    def try_once(self, claim: Callable[[Workload, Path], None], works: list[Workload] | None = None) -> None:
        """Call `claim` once on each of `works`, by default all, with a directory."""
        for work in works or self.works():
            self._watches = []
            with self._bounds() as bound, scratch() as directory:
                try:
                    bound(partial(claim, work, directory))
                except Exception as error:
                    error.add_note(f"on the {work.engine.name} engine")
                    raise

    def only(self, ability: str) -> None:
        """Skip the check if the plugin does not declare `ability`."""
        if not getattr(self, ability):
            raise SkipTest(f"{type(self).__name__} does not declare {ability!r}")

    def every_moment(self, work: Workload, directory: Path) -> Watch:
        """Let a store go through every moment but `fault` and `forked`, and close it."""
        with self.rig(work, directory / "store") as rig:
            for durability in ("synced", "pipelined", "relaxed"):
                rig.commit_number(durability=durability)
            rig.catch_up()
            rig.store.checkpoint()
            if work.engine.name == self.work().engine.name:  # to fill it takes a while
                rig.fill_segment()
                rig.store.checkpoint()
            rig.commit_number()
            rig.catch_up()
            if issubclass(work.engine, BulkEngine):
                rig.bulk(_FIRST_LOAD)
            rig.store.prune()
        return rig.watch
