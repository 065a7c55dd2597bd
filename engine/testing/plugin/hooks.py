"""Checks of a plugin's hooks: the store lives with them; they do not commit, raise, dawdle or keep the log for ever."""

from __future__ import annotations

from pathlib import Path

from ...env import Env
from ..disks.faulty import FaultyFiles
from ..support.contract import check
from ..support.workload import Workload
from .base import History, PluginChecks
from .rig import Rig

_ON_THE_WAY = ("committing", "final", "logged", "published")
_OBSERVING = ("published", "checkpointed", "sealed", "pruning", "closing")


_MANY, _MEASURED = 200, 10


def _cost(rig: Rig, files: FaultyFiles) -> tuple[int, int]:
    """What some transactions cost: the instructions of the hooks, and the bytes that were read."""
    before, rig.watch.steps = files.read_bytes, 0
    for _ in range(_MEASURED):
        rig.commit_number()
        rig.catch_up()
    steps, rig.watch.steps = rig.watch.steps, None
    return steps, files.read_bytes - before


class HookChecks(PluginChecks):
    """See the module's text."""

    @check()
    def test_any_history_is_lived_through(self, work: Workload) -> None:
        """A store with the plugin opens, commits, rolls back, checkpoints, prunes, closes, reopens and is killed, in
        any order, and shows what was committed. Transactions are refused, and conditions asked for, only as
        declared."""

        def claim(history: History, directory: Path) -> None:
            with self.rig(history.work, directory / "store") as rig:
                rig.live([*history.steps, ("kill",), ("reopen",)])
            for watch in rig.watches:
                asked = [f"the plugin does not declare `holds`, and returned {answer!r} from `logged`"
                         for _, answer in watch.answers if answer is not None and not self.holds]
                assert not asked, asked[0]

        self.try_histories(claim, examples=14)

    @check()
    def test_it_commits_nothing_within_a_hook(self, work: Workload) -> None:
        """No hook but `opened` and `closing` begins a transaction, by itself or by waiting for another thread that
        does: it would wait for itself."""

        def claim(work: Workload, directory: Path) -> None:
            watch = self.every_moment(work, directory)
            assert not watch.began, f"`{watch.began[0]}` began a transaction"

        self.try_once(claim)

    @check()
    def test_observing_hooks_do_not_raise(self, work: Workload) -> None:
        """`published`, `checkpointed`, `sealed`, `pruning` and `closing` raise nothing. The store would go on, and
        nobody but the log file would know."""

        def claim(history: History, directory: Path) -> None:
            with self.rig(history.work, directory / "store") as rig:
                rig.live(history.steps)
            for watch in rig.watches:
                watch.must_not_have_raised(*_OBSERVING)

        self.try_once(lambda work, directory: self.every_moment(work, directory).must_not_have_raised(*_OBSERVING))
        self.try_histories(claim, examples=8)

    @check()
    def test_hooks_are_prompt(self, work: Workload) -> None:
        """No hook that commits wait for takes longer than `prompt_s`. Slow work belongs behind a condition, or in a
        thread of the plugin's own."""

        def claim(work: Workload, directory: Path) -> None:
            with self.rig(work, directory / "store") as rig:
                rig.commit_number()
                rig.catch_up()
            for moment in _ON_THE_WAY:
                took = rig.watch.slowest.get(moment, 0.0)
                assert took <= self.prompt_s, f"`{moment}` took {took:.1f} s, and commits wait for it"

        self.try_once(claim)

    @check()
    def test_a_transaction_costs_no_more_after_many(self, work: Workload) -> None:
        """What a transaction costs in the plugin does not grow with the number of earlier ones: neither the
        instructions of its hooks, nor the bytes read through the store's files meanwhile. `logged` is given the
        records. A plugin that reads the log keeps a cursor."""

        def claim(work: Workload, directory: Path) -> None:
            files = FaultyFiles()
            with self.rig(work, directory / "store", keep_logs="for ever", env=Env(files)) as rig:
                rig.commit_number()
                rig.catch_up()
                early = _cost(rig, files)
                for _ in range(2):
                    rig.fill_segment()
                for _ in range(_MANY):
                    rig.commit_number()
                rig.catch_up()
                late = _cost(rig, files)
            for what, few, many, noise in (("its hooks take {:,} instructions", early[0], late[0], 100),
                                           ("{:,} bytes are read", early[1], late[1], 4096)):
                told = what.format(many // _MEASURED), what.format(few // _MEASURED)
                assert many <= 2 * few + noise * _MEASURED, f"{told[0]} for each late transaction; at first, {told[1]}"

        self.try_once(claim, [self.work()])

    @check()
    def test_pruning_gets_on(self, work: Workload) -> None:
        """The log is pruned: a veto is a text, comes only from a plugin that declares `vetoes`, and ends with its
        reason."""

        def claim(work: Workload, directory: Path) -> None:
            with self.rig(work, directory / "store") as rig:
                base = rig.store.log.base
                for _ in range(2):
                    rig.fill_segment()
                rig.catch_up()
                rig.store.checkpoint()
                rig.store.prune()  # unless the store pruned by itself, which the log shows
                vetoes = list(rig.watch.vetoes)
                assert self.vetoes or not vetoes, f"the plugin does not declare `vetoes`, and returned {vetoes[0]!r}"
                for veto in vetoes:
                    said = isinstance(veto, str) and bool(veto.strip())
                    assert said, f"a veto is a text that says why, not {veto!r}"
                if vetoes:
                    self.end_veto(rig.watch.plugin)
                    rig.store.prune()
                pruned = rig.store.log.base != base
                assert pruned, (f"no log is pruned, although the reason for the veto ended: {rig.watch.vetoes[-1]!r}"
                                if vetoes else "no log is pruned")

        self.try_once(claim, [self.work()])
