"""The frame of the contract suites: `check_engine`, profiles, seeds, and the line that shows a failure again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar
from unittest import SkipTest

import pytest
from hypothesis import core
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from workloads import WORKLOADS

from holdfast.backup.testing import BackupContract
from holdfast.backup.testing.kit import KitContract
from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
from holdfast.engine.contract.engine import Context, Engine
from holdfast.engine.contract.image import Image
from holdfast.engine.errors import SettingError
from holdfast.engine.model.positions import Position
from holdfast.engine.testing import PROFILES, STAGING, Contract, EngineContract, KeyValues, Operation, Workload, check
from holdfast.engine.testing.engine.transactions import TransactionChecks
from holdfast.engine.testing.support.report import check_engine, installed_contracts
from holdfast.engine.toolkit.file_image import FileImage
from holdfast.replay.testing import ClusterContract, ReplayContract

LINE = re.compile(r"HOLDFAST_REPRODUCE=(\S+)")


class Seen(Contract):
    """A small contract, which notes what it is tried on. With a lower limit, two of its checks fail."""

    workload = staticmethod(WORKLOADS["memory"])
    seen: ClassVar[list[Any]] = []
    limit: ClassVar[int] = 1 << 60

    @check()
    def test_numbers_are_small(self, work: Workload) -> None:
        """No number is above the limit."""

        def claim(number: int) -> None:
            self.seen.append(number)
            if number > self.limit:  # not an `assert`, to which pytest adds what it likes
                raise AssertionError(f"{number} is above the limit")

        self.prove(claim, examples=10, number=st.integers(0, 1000))

    @check()
    def test_sums_are_small(self, work: Workload) -> None:
        """No sum that a machine makes

        is above the limit.
        """
        suite = self

        class Machine(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                suite.seen.append("machine")
                self.sum = 0

            @rule(number=st.integers(0, 1000))
            def add(self, number: int) -> None:
                self.sum += number
                if self.sum > suite.limit:
                    raise AssertionError(f"{self.sum} is above the limit")

        self.prove_machine(Machine, examples=5)

    @check(STAGING)
    def test_it_stages(self, work: Workload) -> None:
        """It stages."""
        raise AssertionError("it was told not to be asked")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOLDFAST_PROFILE", "HOLDFAST_SEED", "HOLDFAST_REPRODUCE"):
        monkeypatch.delenv(variable, raising=False)


def low(limit: int = 100) -> type[Seen]:
    """The contract with a limit that numbers exceed, and nothing seen yet."""
    return type("Low", (Seen,), {"limit": limit, "seen": []})


# --- what is found ----------------------------------------------------------------------------------------------------


def test_all_contracts_are_installed() -> None:
    assert installed_contracts() == [EngineContract, ReplayContract, ClusterContract, BackupContract]


def test_a_healthy_engine() -> None:
    told: list[str] = []
    report = check_engine(WORKLOADS["memory"], [TransactionChecks, Seen], tell=told.append)
    assert report.ok
    assert not report.faults
    assert report.engine == "memory"
    assert report.passed == [name for name in told if name not in report.skipped]
    assert len(told) == len(TransactionChecks.checks()) + 3
    assert f"{len(report.passed)} checks hold" in str(report)


def test_what_stores_log_does_not_drown_the_report(tmp_path: Path) -> None:
    """A script prints the report, and nothing of the crashes that were made on purpose."""
    script = tmp_path / "script.py"
    script.write_text(dedent("""
        from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
        from holdfast.engine.testing import KeyValues, check_engine
        from holdfast.engine.testing.engine.power_cuts import PowerCutChecks

        class Some(PowerCutChecks):
            checks = classmethod(lambda cls: ["test_power_cuts_in_any_history"])

        print(check_engine(KeyValues(MemoryEngine, put=MemoryTransaction.put, items=MemoryView.items), [Some]))
    """))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, text=True, capture_output=True, timeout=120,
                          check=True)
    assert "1 checks hold" in done.stdout
    assert not done.stderr


def test_what_does_not_apply_says_which_and_why() -> None:
    report = check_engine(WORKLOADS["memory"](), [Seen])
    (why,) = report.skipped.values()
    assert list(report.skipped) == ["Seen.test_it_stages"]
    assert why == f"the memory engine does not declare 'staging': {STAGING.why}"
    assert f"does not apply: Seen.test_it_stages: {why}" in str(report)
    (fault,) = check_engine(WORKLOADS["staging"], [Seen]).faults
    assert fault.check == "Seen.test_it_stages"


class Broken(MemoryEngine):
    """Wrong in two ways: a view shares the dictionary that goes on changing, and its digest forgets the values."""

    def view(self) -> MemoryView:
        view = ForgetfulView(self._state, self._applied.txid)
        self._viewed = False
        return view


class ForgetfulView(MemoryView):
    def digest(self) -> bytes:
        return MemoryView(dict.fromkeys(self._state, b""), self._txid).digest()


def broken() -> Workload:
    return KeyValues(Broken, put=MemoryTransaction.put, items=MemoryView.items, get=MemoryTransaction.get,
                     delete=MemoryTransaction.delete)


def test_all_faults_are_reported_and_not_the_first_only() -> None:
    report = check_engine(broken, [type("Quiet", (TransactionChecks,), {"quiet": True})])
    faults = {fault.check.partition(".")[2]: fault for fault in report.faults}
    assert {"test_a_held_view_stays_the_same", "test_the_digest_follows_the_content"} <= set(faults)
    assert not report.ok
    assert report.passed, "what has nothing to do with it holds"
    for name, fault in faults.items():
        assert fault.property == TransactionChecks.statement(name)
        assert isinstance(fault.error, AssertionError)
        for told in (f"broken: {fault.check}", fault.property, str(fault.error).split("\n")[0], ": claim("):
            assert told in str(report), "the property, what was seen, and the shortest history"


class Wordless(KeyValues):
    """Its author asserts something, and says nothing."""

    def run(self, tx: Any, model: Any, operations: list[Operation]) -> None:
        super().run(tx, model, operations)
        if len(model) > 3:
            raise AssertionError  # as an `assert` does, to which pytest would add words


def test_a_fault_without_words_is_told_by_its_line() -> None:
    name = "test_a_rolled_back_transaction_leaves_nothing"
    contract = type("Quiet", (TransactionChecks,), {"quiet": True, "checks": classmethod(lambda cls: [name])})
    (fault,) = check_engine(Wordless(MemoryEngine, put=MemoryTransaction.put, items=MemoryView.items),
                            [contract]).faults
    assert re.search(rf"raised at {re.escape(__file__)}:\d+, in run: raise AssertionError", fault.message)


class Marked(MemoryEngine):
    """Healthy: its image begins with an empty file, as that of a database may which keeps a lock file."""

    @classmethod
    def create(cls, directory: Path, position: Position, context: Context) -> None:
        context.env.files.write_durably(directory / "LOCK", b"")
        super().create(directory, position, context)

    def image(self) -> Image:
        image = super().image()
        image.close()
        return FileImage(self._env, self._directory, ["LOCK", *(file.name for file in image.files)], image.position)


def test_an_empty_file_in_an_image_is_no_fault() -> None:
    suite = type("Suite", (KitContract,), {"workload": WORKLOADS["memory"](), "quiet": True})()
    suite.workload.engine = Marked
    suite.test_an_expired_lease_aborts_before_it_frees()


Nameless: Any = type("Nameless", (Engine,), {
    name: member for name, member in vars(MemoryEngine).items()
    if name not in ("name", "state_format", "payload_version", "abilities")})
"""An engine that says nothing of itself."""


def test_an_engine_without_a_name_is_told_so() -> None:
    workload = KeyValues(Nameless, put=MemoryTransaction.put, items=MemoryView.items)
    suite = type("Suite", (EngineContract,), {"workload": workload})()
    with pytest.raises(AssertionError, match="Nameless has no name"):
        suite.test_the_engine_says_what_it_is()
    with pytest.raises(SkipTest, match="the Nameless engine does not declare 'staging'"):
        suite.test_what_is_staged_shows_only_to_writers()


def test_what_cannot_be_checked() -> None:
    with pytest.raises(SettingError, match="Seen has no workload"):
        type("Seen", (EngineContract,), {})().test_the_engine_says_what_it_is()
    with pytest.raises(SettingError, match="profile='hourly'"):
        check_engine(WORKLOADS["memory"], [Seen], profile="hourly")
    with pytest.raises(SettingError, match="gives a int"):
        check_engine(lambda: 5, [Seen])  # type: ignore[arg-type,return-value]
    with pytest.raises(SettingError, match="no contract"):
        check_engine(WORKLOADS["memory"], [])


# --- how much, and what -----------------------------------------------------------------------------------------------


def test_profiles_say_how_much_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(profile: str | None = None) -> int:
        contract = low(1 << 60)
        assert check_engine(WORKLOADS["memory"], [contract], profile=profile).ok
        return len([seen for seen in contract.seen if seen != "machine"])

    assert tried() == tried("default") == 10
    monkeypatch.setitem(PROFILES, "ci", replace(PROFILES["ci"], times=3))
    assert tried("ci") == 30
    monkeypatch.setenv("HOLDFAST_PROFILE", "ci")
    assert tried() == 30
    assert tried("default") == 10, "what is asked for goes before the environment"
    monkeypatch.setenv("HOLDFAST_PROFILE", "hourly")
    with pytest.raises(SettingError, match="hourly"):
        low()().test_numbers_are_small()


def test_a_seed_says_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[Any]:
        contract = low(1 << 60)
        contract().test_numbers_are_small()
        return contract.seen

    def given(seed: Any) -> list[Any]:
        monkeypatch.setattr(core, "global_force_seed", seed)  # as --hypothesis-seed does
        return drawn()

    def reported(seed: int) -> list[Any]:
        contract = low(1 << 60)
        assert check_engine(WORKLOADS["memory"], [contract], seed=seed).ok
        return contract.seen

    assert given(7) == given(7)
    assert given(8) != given(7)
    assert reported(8) == reported(8) != reported(7)
    with pytest.raises(SettingError, match="seven"):
        given("seven")
    monkeypatch.setattr(core, "global_force_seed", None)
    monkeypatch.setenv("HOLDFAST_SEED", "7")
    with pytest.warns(DeprecationWarning, match="--hypothesis-seed"):
        old = drawn()
    assert old == given(7)


@pytest.mark.parametrize("name", ["test_numbers_are_small", "test_sums_are_small"])
def test_a_failure_can_be_seen_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = low()
    with pytest.raises(AssertionError) as caught:
        getattr(first(), name)()
    notes = "\n".join(caught.value.__notes__)
    assert f"what is broken: {name}\n    {first.statement(name)}" in notes
    assert "reproduce_failure" not in notes, "an author cannot decorate what is not theirs"
    (line,) = LINE.findall(notes)
    assert line.startswith(f"{name}@")
    monkeypatch.setenv("HOLDFAST_REPRODUCE", line)
    again = low()
    with pytest.raises(AssertionError) as repeated:
        getattr(again(), name)()
    assert str(repeated.value) == str(caught.value)
    assert str(caught.value) == "101 is above the limit", "and it is the shortest"
    assert len(again.seen) == 1 < len(first.seen), "one example only"
    other = low(1 << 60)
    with pytest.raises(SkipTest, match=f"HOLDFAST_REPRODUCE asks for {name} alone"):
        next(check for check in (other().test_sums_are_small, other().test_numbers_are_small)
             if check.__name__ != name)()
    assert not other.seen


@pytest.mark.parametrize(("asked", "why"), [
    ("test_numbers_are_small", "not CHECK@VERSION@EXAMPLE"), ("test_numbers_are_small@6", "not CHECK@VERSION@EXAMPLE"),
    ("test_numbers@6.0@AAA=", "no contract has such a check")])
def test_an_example_that_cannot_be_seen_again_is_told_of(asked: str, why: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copied half a line must not take the run that follows for the one that failed."""
    monkeypatch.setenv("HOLDFAST_REPRODUCE", asked)
    with pytest.raises(SettingError, match=why):
        low(1 << 60)().test_sums_are_small()
    with pytest.raises(SettingError, match=why):
        check_engine(WORKLOADS["memory"], [Seen])


# --- an author's file -------------------------------------------------------------------------------------------------

ENGINE = """
    import os

    from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView

    class Mine(MemoryEngine):
        @classmethod
        def create(cls, directory, position, context):
            with open(os.environ["COUNTED"], "a") as counted:
                counted.write(".")
            super().create(directory, position, context)

        def view(self):
            return MemoryView(self._state, self._applied.txid)
"""

TESTS = """
    from mine import Mine, MemoryTransaction, MemoryView

    from holdfast.engine.testing import EngineContract, KeyValues

    class TestMine(EngineContract):
        workload = KeyValues(Mine, put=MemoryTransaction.put, items=MemoryView.items)
"""


def test_an_author_s_file_under_pytest(tmp_path: Path) -> None:
    """Under ten lines; it fails with what is broken and a line that shows that again, in another process."""
    assert TESTS.strip().count("\n") < 9
    (tmp_path / "mine.py").write_text(dedent(ENGINE))
    (tmp_path / "test_mine.py").write_text(dedent(TESTS))

    def run(counted: Path, **environment: str) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path),
                   "-k", "test_a_held_view_stays_the_same", "--hypothesis-seed=1", "test_mine.py"]
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120, check=False,
                              env={**os.environ, "COUNTED": str(counted), **environment})
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout

    told = run(tmp_path / "first")
    assert TransactionChecks.statement("test_a_held_view_stays_the_same") in told
    (line,) = set(LINE.findall(told))
    (failed,) = set(re.findall(r"^E +AssertionError: (.*)$", told, re.M))
    again = run(tmp_path / "again", HOLDFAST_REPRODUCE=line)
    assert set(re.findall(r"^E +AssertionError: (.*)$", again, re.M)) == {failed}
    made = (tmp_path / "again").stat().st_size
    assert made == 2 < (tmp_path / "first").stat().st_size, "one example only, after the workload was tried"
