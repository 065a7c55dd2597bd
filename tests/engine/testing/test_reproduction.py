"""The line that shows a failure again: it runs one check, and needs nothing but the author's files. And the shortest
history with the earliest fault, also of checks that enumerate faults."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from workloads import WORKLOADS, keyed
from zoo_crashes import UnsyncedState

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.errors import DiskFull
from holdfast.engine.model.positions import Position
from holdfast.engine.testing import Contract, Workload, check, check_engine
from holdfast.engine.testing.engine.power_cuts import PowerCutChecks
from holdfast.engine.testing.support.shrinking import shortest
from holdfast.engine.testing.support.simulated_run import Step

LINE = re.compile(r"to see it again: (HOLDFAST_REPRODUCE=(\S+).*)")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOLDFAST_PROFILE", "HOLDFAST_REPRODUCE"):
        monkeypatch.delenv(variable, raising=False)


class Failing(Contract):
    workload = staticmethod(WORKLOADS["memory"])
    seen: ClassVar[list[Any]] = []

    @check()
    def test_by_number(self, work: Workload) -> None:
        """It draws without Hypothesis."""
        self.seen.append(self.number())
        raise AssertionError("wrong")

    @check()
    def test_of_nothing(self, work: Workload) -> None:
        """It draws nothing."""
        self.seen.append("nothing")
        raise AssertionError("wrong")

    @check()
    def test_before_hypothesis_knows(self, work: Workload) -> None:
        """It ends outside of what Hypothesis catches, as a check that hangs does."""

        def claim(number: int) -> None:
            self.seen.append(number)
            if len(self.seen) % 5 == 0:
                raise KeyboardInterrupt

        try:
            self.prove(claim, examples=10, number=st.integers(0, 1 << 60))
        except KeyboardInterrupt:
            raise AssertionError("it was ended") from None


def failed(name: str) -> tuple[str, list[Any]]:
    """What to set to see a check's failure again, and what it was tried on."""
    suite: type[Failing] = type("Suite", (Failing,), {"seen": []})
    with pytest.raises(AssertionError) as caught:
        getattr(suite(), name)()
    (_, asked), = LINE.findall("\n".join(caught.value.__notes__))
    return asked, suite.seen


@pytest.mark.parametrize("name", ["test_by_number", "test_before_hypothesis_knows"])
def test_what_is_drawn_without_a_blob_is_drawn_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, first = failed(name)
    assert re.fullmatch(rf"{name}@seed=\d+", asked)
    monkeypatch.setenv("HOLDFAST_REPRODUCE", asked)
    assert failed(name) == (asked, first)
    monkeypatch.delenv("HOLDFAST_REPRODUCE")
    assert failed(name)[1] != first


def test_only_the_check_that_is_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, _ = failed("test_of_nothing")
    assert asked == "test_of_nothing@draws-nothing"
    monkeypatch.setenv("HOLDFAST_REPRODUCE", asked)
    suite: type[Failing] = type("Suite", (Failing,), {"seen": []})
    report = check_engine(WORKLOADS["memory"], [suite])
    assert [fault.check for fault in report.faults] == ["Suite.test_of_nothing"]
    assert not report.skipped
    assert suite.seen == ["nothing"]


# --- the line under pytest -------------------------------------------------------------------------------------------

TESTS = """
    from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
    from holdfast.engine.testing import EngineContract, KeyValues

    class Mine(MemoryEngine):
        def view(self):
            return MemoryView(self._state, self._applied.txid)

    class TestMine(EngineContract):
        workload = KeyValues(Mine, put=MemoryTransaction.put, items=MemoryView.items)
"""


def ran(command: str, where: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PYTEST_"))}
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, shell=True, cwd=where, env={**kept, "PATH": places}, text=True, capture_output=True,
                          timeout=120, check=False).stdout


def test_the_line_works_in_a_fresh_clone(tmp_path: Path) -> None:
    """As it is printed, beside the author's files alone; also if they were run with a larger profile."""
    mine, clone = tmp_path / "mine", tmp_path / "clone"
    (mine / "tests").mkdir(parents=True)
    (mine / "tests" / "test_mine.py").write_text(dedent(TESTS))
    (mine / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    told = ran("HOLDFAST_PROFILE=ci pytest -q tests -k 'held_view or says_what_it_is'", mine)
    assert "1 failed, 1 passed" in told
    (command,) = {line for line, _ in LINE.findall(told)}
    assert command.endswith(" HOLDFAST_PROFILE=ci pytest "
                            "tests/test_mine.py::TestMine::test_a_held_view_stays_the_same")
    shutil.copytree(mine, clone, ignore=shutil.ignore_patterns(".hypothesis", "__pycache__"))
    again = ran(command, clone)
    assert "1 failed" in again
    assert "passed" not in again

    def said(text: str) -> set[str]:
        return set(re.findall(r"^E +AssertionError: (.*)$", text, re.M))

    assert said(told) == said(again) != set()


# --- the shortest history with a fault -------------------------------------------------------------------------------


def test_steps_and_operations_without_which_it_fails_too_are_left_out() -> None:
    steps: list[Step] = [("open",), ("commit", ["a", "b", "c"]), ("checkpoint",), ("commit", ["d"]), ("close",),
                         ("open",), ("prune",), ("commit", ["e", "bad", "f"]), ("checkpoint",)]
    tried = []

    def fails(candidate: list[Step]) -> Exception | None:
        tried.append(candidate)
        is_open = False
        for kind, *_ in candidate:
            assert is_open == (kind != "open"), f"a step without an opening: {candidate}"
            is_open = kind != "close"
        bad = any("bad" in operations for kind, *lists in candidate if kind == "commit" for operations in lists)
        return AssertionError(str(candidate)) if bad and candidate[-1] == ("checkpoint",) else None

    error = shortest(steps, AssertionError("first"), fails)
    assert str(error) == str([("open",), ("commit", ["bad"]), ("checkpoint",)])
    assert error.__notes__ == ["the shortest history found that fails so has 3 of 9 steps"]
    assert len(tried) < 60


def test_what_cannot_be_shortened_stays() -> None:
    first = AssertionError("first")
    assert shortest([("open",), ("checkpoint",)], first, lambda steps: None) is first


def test_a_power_cut_is_shown_after_the_fewest_steps() -> None:
    """The fixed run that it is found in has more than thirty."""
    suite = type("Suite", (PowerCutChecks,), {"workload": staticmethod(lambda: keyed(UnsyncedState)), "quiet": True})()
    with pytest.raises(AssertionError) as caught:
        suite.test_a_power_cut_anywhere_leaves_a_prefix()
    story = "\n".join(caught.value.__notes__)
    assert re.findall(r"^  \('(\w+)'", story, re.M) == ["open", "commit", "checkpoint"]
    assert "cut off after operation" in story


def test_a_fault_of_the_disk_is_shown_after_the_fewest_steps() -> None:
    suite = type("Suite", (PowerCutChecks,), {"workload": staticmethod(lambda: keyed(Careless)), "quiet": True})()
    with pytest.raises(AssertionError) as caught:
        suite.test_a_failing_disk()
    story = "\n".join(caught.value.__notes__)
    steps = re.findall(r"^  \('(\w+)'", story, re.M)
    assert steps == ["open", "commit", "checkpoint", "checkpoint"], "the last one once more, when there was room"
    assert "the disk's fault: ENOSPC" in story


class Careless(MemoryEngine):
    """A checkpoint that finds no room has thrown away what it could not write."""

    def checkpoint(self, upto: Position) -> Position:
        try:
            return super().checkpoint(upto)
        except DiskFull:
            self._state.clear()
            raise
