"""Checks of what a plugin does to transactions: observers and refusals change nothing, additions are logged."""

from __future__ import annotations

from pathlib import Path
from unittest import SkipTest

from ...contract.engine import BulkEngine, Context
from ...contract.plugin import Plugin
from ...contract.transaction import Transaction
from ...errors import RolledBack
from ...model.positions import origin
from ..support.contract import check
from ..support.workload import Workload
from .base import History, PluginChecks
from .rig import Rig


class _Opposes(Plugin):
    """Refuses what is committed, while it is told to."""

    def __init__(self) -> None:
        self.refusing = False

    def final(self, tx: Transaction) -> None:
        if self.refusing:
            raise RuntimeError("another plugin refuses")


class TransactionChecks(PluginChecks):
    """See the module's text."""

    @check()
    def test_an_observer_changes_nothing(self, work: Workload) -> None:
        """A plugin that does not declare `adds` changes no transaction. After the same history, the store shows what it
        shows without the plugin, after as many transactions."""
        if self.adds:
            raise SkipTest(f"{type(self).__name__} declares 'adds'")

        def claim(history: History, directory: Path) -> None:
            with self.rig(history.work, directory / "with") as rig:
                done = rig.live(history.steps)
                with rig.view() as view:
                    found = view.txid, view.digest()
            for watch in rig.watches:
                assert not watch.changed, (f"the plugin does not declare `adds`, and changed a transaction in "
                                           f"`{watch.changed[0]}`")
            with Rig(history.work, directory / "without", None) as bare:
                bare.live([step for step, kept in zip(history.steps, done, strict=True) if kept])
                with bare.view() as view:
                    expected = view.txid, view.digest()
            assert found == expected, (f"with the plugin the store is at transaction {found[0]}, without it at "
                                       f"{expected[0]}; the contents are "
                                       f"{'the same' if found[1] == expected[1] else 'not the same'}")

        self.try_histories(claim, examples=12)

    @check()
    def test_final_leaves_the_transaction_alone(self, work: Workload) -> None:
        """`final` looks: the transaction's payload is the same afterwards."""

        def claim(history: History, directory: Path) -> None:
            with self.rig(history.work, directory / "store") as rig:
                for step in history.steps:
                    if step[0] == "commit":
                        rig.commit(step[1])
            assert "final" not in rig.watch.changed, "`final` changed the transaction's payload"

        self.try_histories(claim, examples=8)

    @check()
    def test_a_refusal_leaves_nothing(self, work: Workload) -> None:
        """What the plugin refuses is rolled back, leaves nothing in log and state, and is refused again; other
        transactions go through before and after it."""
        self.only("refuses")
        refused = ("commit", self.refused(), "synced")

        def claim(history: History, directory: Path) -> None:
            with self.rig(history.work, directory / "store") as rig:
                for step in (*history.steps, refused, refused):
                    before = rig.store.positions().appended
                    done = rig.live([step])[0]
                    if step == refused:
                        assert not done, "the plugin declares `refuses`, and did not refuse what `refused` gives"
                        assert rig.store.positions().appended == before, "a refused transaction is in the log"
                assert rig.commit_number(), "an ordinary transaction was refused after a refused one"
                rig.compare()

        self.try_histories(claim, examples=10, more=(refused,))

    @check()
    def test_a_refused_bulk_load_leaves_nothing(self, work: Workload) -> None:
        """The plugin refuses in bulk loads, each time, what it refuses in transactions. Such a load is rolled back and
        leaves nothing in log and state. Other loads go through before and after it."""
        self.only("refuses")
        works = [work for work in self.works() if issubclass(work.engine, BulkEngine)]
        if not works:
            raise SkipTest(f"the {work.engine.name} engine takes no bulk loads")

        def claim(work: Workload, directory: Path) -> None:
            with self.rig(work, directory / "store") as rig:
                for number in range(2):
                    assert rig.bulk(number), "an ordinary bulk load was refused"
                    before = rig.store.positions().appended
                    try:
                        rig.store.bulk(self.refused_load())
                    except RolledBack:
                        assert rig.store.positions().appended == before, "a bulk load that was refused is in the log"
                    else:
                        raise AssertionError("the plugin declares `refuses`, and let the bulk load pass that "
                                             "`refused_load` gives")
                rig.compare()

        self.try_once(claim, works)

    @check()
    def test_what_is_rolled_back_is_forgotten(self, work: Workload) -> None:
        """A transaction that the plugin let pass and another plugin then refused can be committed the second time: the
        first one was never there."""

        def claim(history: History, directory: Path) -> None:
            other = _Opposes()
            with self.rig(history.work, directory / "store", last=[other]) as rig:
                for step in history.steps:
                    if step[0] != "commit":
                        rig.live([step])
                        continue
                    other.refusing = True
                    try:
                        with rig.store.transaction() as tx:
                            history.work.run(tx, rig.model.copy(), step[1])
                    except RolledBack as error:
                        passed = str(error.__cause__) == "another plugin refuses"
                    else:
                        passed = True  # it changed nothing, so there was nothing to refuse
                    other.refusing = False
                    done = rig.live([step])[0]
                    assert done or not passed, "a transaction that was rolled back once is refused the second time"

        self.try_histories(claim, examples=8)

    @check()
    def test_additions_are_logged(self, work: Workload) -> None:
        """What the plugin adds is in the log: the log alone, and a store that is opened without the plugin after a
        crash, show the same content."""
        self.only("adds")

        def claim(history: History, directory: Path) -> None:
            with self.rig(history.work, directory / "store", keep_logs="for ever") as rig:
                rig.commit_number()
                rig.live([step for step in history.steps if step[0] != "kill"])
                assert any("committing" in watch.changed for watch in rig.watches), (
                    "the plugin declares `adds`, and added to no transaction in `committing`")
                with rig.view() as view:
                    txid, content = view.txid, history.work.content(view)
                records = list(rig.store.log.read(0, txid))
                rig.kill(directory / "killed")
            without = Rig(history.work, directory / "killed", None, has_model=False)
            with without, without.view() as view:
                assert history.work.content(view) == content, "opened without the plugin, the store shows other content"
            engine_type, context = history.work.engine, Context(options=history.work.opened_with)
            (directory / "replayed").mkdir()
            engine_type.create(directory / "replayed", origin(bytes(16)), context)
            engine = engine_type.open(directory / "replayed", context)
            try:
                engine.apply(records)
                with engine.view() as view:
                    assert history.work.content(view) == content, "the log alone gives other content"
            finally:
                engine.close()

        self.try_histories(claim, examples=10)
