"""Checks of the conditions by which a plugin holds acknowledgement."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..support.contract import check
from ..support.workload import Workload
from .base import PluginChecks
from .rig import END_S, Rig
from .watching import unsound


class ConditionChecks(PluginChecks):
    """See the module's text."""

    @check()
    def test_conditions_are_sound(self, work: Workload) -> None:
        """`logged` returns None, or a `Condition` with a name, a future and a finite, positive time-out; always None if
        the plugin does not declare `holds`."""

        def claim(work: Workload, directory: Path) -> None:
            with self.rig(work, directory / "store") as rig:
                for _ in range(3):
                    rig.commit_number()
            for batch, answer in rig.watch.answers:
                wrong = unsound(answer)
                assert wrong is None, f"what `logged` returned for {batch}: {wrong}"
                assert self.holds or answer is None, "the plugin does not declare `holds`, and returned a condition"
            assert not self.holds or any(answer is not None for _, answer in rig.watch.answers), (
                "the plugin declares `holds`, and asked for no condition")

        self.try_once(claim)

    @check()
    def test_conditions_come_to_an_end(self, work: Workload) -> None:
        """Every commit is acknowledged, also many at once: its condition, or a later one, is met in the end."""
        self.only("holds")
        self.try_once(lambda work, directory: _burst(self, work, directory).close())

    @check()
    def test_conditions_are_cumulative(self, work: Workload) -> None:
        """Meeting a condition meets all earlier ones, so no earlier one is met, or fails, after it."""
        self.only("holds")

        def claim(work: Workload, directory: Path) -> None:
            rig = _burst(self, work, directory)
            rig.close()
            assert not rig.watch.disorder, rig.watch.disorder[0]

        self.try_once(claim)

    @check()
    def test_nothing_is_shown_before_its_condition(self, work: Workload) -> None:
        """If a plugin declares `gates`, each of its conditions gates publication, and nothing is published before its
        condition is met."""
        self.only("gates")

        def claim(work: Workload, directory: Path) -> None:
            rig = _burst(self, work, directory)
            rig.close()
            for _, answer in rig.watch.answers:
                assert answer is None or answer.gates_publication, (
                    "the plugin declares `gates`, and returned a condition with gates_publication=False")
            assert not rig.watch.shown, rig.watch.shown[0]

        self.try_once(claim)


def _burst(checks: PluginChecks, work: Workload, directory: Path) -> Rig:
    """A store after many commits at once, pipelined and from four threads, all acknowledged. It is closed."""
    with checks.rig(work, directory / "store") as rig:
        store = rig.store
        for number in range(12):
            rig.commit_number(durability="pipelined" if number % 3 else "synced")
            # Each in a range of its own, so that several conditions are open at once.
            store.group_commit.wait_until(lambda: store.durable.txid == store.positions().appended, END_S)
        numbers = iter(range(10**6, 10**7))

        def write(_: int) -> None:
            for _ in range(4):
                with rig.store.transaction() as tx:
                    model = rig.model.copy()
                    work.run(tx, model, work.numbered(next(numbers)))
                    rig.model = model  # in the order of the log, since the writer lock is held

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        rig.catch_up()
    return rig
