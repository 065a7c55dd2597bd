"""Checks of a plugin's life: opened and closed, in several stores, when the disk fails, and across a fork."""

from __future__ import annotations

import os
from pathlib import Path

from ...contract.plugin import Plugin, StoreHandle
from ...env import Env
from ...errors import OutcomeUnknown, PluginError
from ..disks.faulty import FaultyFiles, is_log
from ..support.contract import check
from ..support.leak_detection import Leftovers, network_sockets
from ..support.working_directory import back_again, go_to_one_of_two
from ..support.workload import Workload
from .base import PluginChecks
from .forking import in_child
from .rig import END_S

_GRACE_S = 2.0
"""How long something may take to end after it was told to, in seconds."""


class _CannotStart(Plugin):
    def opened(self, store: StoreHandle) -> None:
        raise RuntimeError("another plugin cannot start")


class LifecycleChecks(PluginChecks):
    """See the module's text."""

    @check()
    def test_closing_lets_go_of_everything(self, work: Workload) -> None:
        """After `closing`, no thread, no descriptor and no socket of the plugin is left."""

        def claim(work: Workload, directory: Path) -> None:
            self.every_moment(work, directory)  # what is loaded the first time may stay
            held = Leftovers()
            plugin = self.make()
            with self.rig(work, directory / "again") as rig:
                rig.close()
                rig.open(plugin)
                rig.commit_number()
            left = held.new(_GRACE_S)
            assert not left, f"after the store was closed there is still {', '.join(left)}"

        self.try_once(claim)

    @check()
    def test_it_lets_go_where_another_cannot_start(self, work: Workload) -> None:
        """If a later plugin cannot start, this one is told `closing`, raises nothing and releases everything. If an
        earlier one cannot start, this one is told nothing, and has nothing to release."""

        def claim(work: Workload, directory: Path) -> None:
            self.rig(work, directory / "store").close()
            for where in ("last", "first"):
                held = Leftovers()
                plugin = self.make()
                try:
                    self.rig(work, directory / "store", plugin=plugin, **{where: [_CannotStart()]})
                except PluginError as error:
                    why = str(error)
                else:
                    why = "it opened"
                assert "another plugin" in why, f"a store whose other plugin cannot start: {why}"
                watch = self._watches[-1]
                watch.must_not_have_raised()
                assert watch.told == (["opened", "closing"] if where == "last" else []), watch.told
                left = held.new(_GRACE_S)
                assert not left, (f"another plugin could not start {'after' if where == 'last' else 'before'} it, and "
                                  f"there is still {', '.join(left)}")

        self.try_once(claim)

    @check()
    def test_two_stores_at_once(self, work: Workload) -> None:
        """Two stores, each with a plugin of its own, do not affect each other; one goes on when the other closes."""

        def claim(work: Workload, directory: Path) -> None:
            with self.rig(work, directory / "one") as one, self.rig(work, directory / "other") as other:
                for rig in (one, other, other):
                    rig.commit_number()
                one.compare()
                other.compare()
                one.close()
                other.commit_number()
                other.compare()
                other.store.checkpoint()
            for rig in (one, other):
                rig.watch.must_not_have_raised()

        self.try_once(claim)

    @check()
    def test_one_store_after_another(self, work: Workload) -> None:
        """The same plugin serves one store, then the same one again, then another, as if it were new each time."""

        def claim(work: Workload, directory: Path) -> None:
            plugin = self.make()
            with self.rig(work, directory / "one", plugin=plugin) as one:
                one.commit_number(many=2)
                one.commit_number()
                one.close()
                one.open(plugin)
                one.commit_number()
                one.compare()
            with self.rig(work, directory / "other", plugin=plugin) as other:
                other.commit_number()
                other.compare()
                other.store.checkpoint()
            for watch in (*one.watches, *other.watches):
                watch.must_not_have_raised()

        self.try_once(claim)

    @check()
    def test_it_stays_where_it_was_opened(self, work: Workload) -> None:
        """When the process changes its directory, the plugin goes on with what it had: it makes nothing in the new
        directory, also when its store is closed and opened again there, and raises nothing."""

        def claim(work: Workload, directory: Path) -> None:
            _, elsewhere = go_to_one_of_two(directory)
            plugin = self.make()
            with self.rig(work, directory / "store", plugin=plugin) as rig:
                os.chdir(elsewhere)
                for _ in range(2):
                    rig.commit_number()
                    rig.store.checkpoint()
                    rig.store.prune()
                    rig.close()
                    rig.open(plugin)
                rig.compare()
            for watch in rig.watches:
                watch.must_not_have_raised()
            made = sorted(path.name for path in elsewhere.iterdir())
            assert not made, f"it made {made} in the directory that the process went to; keep absolute paths"

        with back_again():
            self.try_once(claim)

    @check()
    def test_a_fault_is_borne(self, work: Workload) -> None:
        """A store whose disk fails is poisoned: the plugin is told `fault`, raises nothing then and at `closing`,
        releases everything, and the store opens with it again."""

        def claim(work: Workload, directory: Path) -> None:
            self.every_moment(work, directory)
            held = Leftovers()
            files = FaultyFiles()
            with self.rig(work, directory / "poisoned", env=Env(files)) as rig:
                rig.commit_number()
                rig.catch_up()
                files.fail("datasync", only=is_log)
                try:
                    rig.commit_number()
                except OutcomeUnknown as error:
                    unknown = error.txid
                    files.heal()
                else:
                    raise AssertionError("a commit returned, although its sync failed")
                with rig.store.snapshot() as view:
                    assert list(view.check()) == []
            assert rig.watch.told.count("fault") == 1, f"`fault` was told {rig.watch.told.count('fault')} times"
            rig.watch.must_not_have_raised()
            left = held.new(_GRACE_S)
            assert not left, f"after a poisoned store was closed there is still {', '.join(left)}"
            rig.open()
            with rig:
                if rig.store.published.txid == unknown:
                    rig.model = rig.tried
                rig.compare()
                assert rig.commit_number(), "a transaction was refused after the store was opened again"

        self.try_once(claim)

    @check()
    def test_a_fork_is_borne(self, work: Workload) -> None:
        """In a forked child `forked` raises nothing, keeps no socket and removes no file. The parent's sockets stay as
        they are, and its store goes on."""

        def claim(work: Workload, directory: Path) -> None:
            held = Leftovers()
            with self.rig(work, directory / "store") as rig:
                rig.commit_number()
                rig.catch_up()
                watch = rig.watch
                before = network_sockets(held.new_descriptors())

                def look() -> list[str]:
                    found = [f"`{moment}` raised {error!r}" for moment, error in watch.raised]
                    found += [f"it {what}" for what in watch.removed]
                    if "forked" not in watch.told:
                        found.append("`forked` was not told")
                    kept = network_sockets(dict.fromkeys(before, ""))
                    return found + [f"the child keeps a socket, {state}" for state in kept.values()]

                found = in_child(look, END_S)
                assert not found, f"in a forked child: {'; '.join(found)}"
                after = network_sockets(dict.fromkeys(before, ""))
                assert after == before, f"the child did something to the parent's sockets: {before}, then {after}"
                rig.commit_number()
                rig.compare()
            watch.must_not_have_raised()

        self.try_once(claim)
