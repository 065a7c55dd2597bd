"""The suite's kills are tried: that they find what only a kill shows, and that another process finds the author's
engine, however the author has named it."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from unittest import SkipTest

import pytest
from workloads import WORKLOADS, keyed

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.errors import SettingError
from holdfast.engine.model.positions import Position
from holdfast.engine.testing import PROFILES, KeyValues, Workload
from holdfast.engine.testing.engine.process_kills import KillChecks, script
from holdfast.engine.testing.support.children import Journal, Server
from holdfast.engine.testing.support.worker import Failure, State, drive
from holdfast.engine.testing.support.workload import Operation


class WrittenBehind(MemoryEngine):
    """A checkpoint that says it is done, and leaves the writing to the end of the process."""

    def checkpoint(self, upto: Position) -> Position:
        if upto.txid > self._position.txid:
            self._position = self._applied
        return self._position

    def close(self) -> None:
        at, self._position = self._applied, Position(0, b"")
        super().checkpoint(at)


class Crashing(MemoryEngine):
    """A checkpoint that ends the process, as a fault in a library below would."""

    def checkpoint(self, upto: Position) -> Position:
        ctypes.string_at(0)
        return self._position


class TestNamed(KillChecks):
    """As authors write it: another process knows the class by its name."""

    workload = KeyValues(MemoryEngine, put=lambda tx, k, v: tx.put(k, v), items=lambda view: view.items())
    quiet = True
    profile = PROFILES["default"]


NAMED = KeyValues(MemoryEngine, put=lambda tx, k, v: tx.put(k, v), items=lambda view: view.items())


def checks(workload: object) -> KillChecks:
    """A test class that has no name in any module."""
    members = {"workload": workload, "quiet": True, "profile": PROFILES["default"]}
    found: KillChecks = type("Nameless", (KillChecks,), members)()
    return found


def behind() -> Workload:
    return keyed(WrittenBehind)


def ends_itself() -> Workload:
    return keyed(Crashing)


def test_what_a_process_held_back_is_missed() -> None:
    with pytest.raises(AssertionError, match=r"it does not open: Damaged: .* the log starts after") as caught:
        checks(staticmethod(behind)).test_a_killed_process_loses_nothing_acknowledged()
    notes = "\n".join(caught.value.__notes__)
    assert "after one was killed while" in notes
    assert "--hypothesis-seed=0" in notes
    assert "what is broken: test_a_killed_process_loses_nothing_acknowledged" in notes


def test_a_process_that_ends_itself_is_told() -> None:
    with pytest.raises(AssertionError, match="the process ended by SIGSEGV"):
        checks(staticmethod(ends_itself)).test_a_killed_process_loses_nothing_acknowledged()


@pytest.mark.parametrize("workload", [
    staticmethod(WORKLOADS["records"]), staticmethod(partial(keyed, MemoryEngine)), NAMED,
], ids=["a function", "a call", "a name in a module"])
def test_another_process_finds_the_workload(workload: object, tmp_path: Path) -> None:
    nameless = checks(workload)
    journal = Journal()
    with Server(nameless) as server:
        assert server.start(drive, journal.plan(tmp_path / "store", script(nameless.work(), 0), 5)).end(journal) == 0
    assert journal.acknowledged >= 5


def test_a_workload_without_a_name_is_skipped_and_said_why() -> None:
    work = KeyValues(MemoryEngine, put=lambda tx, k, v: tx.put(k, v), items=lambda view: view.items())
    with pytest.raises(SkipTest, match="give the test class, or what makes the workload, a name in a module"):
        checks(staticmethod(lambda: work)).test_a_killed_process_loses_nothing_acknowledged()


SCRIPT = """
    import sys
    from holdfast.engine.builtin.memory import MemoryEngine
    from holdfast.engine.testing import KeyValues, check_engine
    from holdfast.engine.testing.engine.process_kills import KillChecks

    def work():
        return KeyValues(MemoryEngine, put=lambda tx, k, v: tx.put(k, v), items=lambda view: view.items())

    {guard}
        print(check_engine(work, [KillChecks]))
"""


def ran(path: Path, guard: str) -> str:
    path.write_text(textwrap.dedent(SCRIPT.format(guard=guard)))
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_script_can_check_its_own_engine(tmp_path: Path) -> None:
    """Its own module is the one that is run, so the other process must import it under another name."""
    assert "1 checks hold, 0 do not apply, 0 are broken" in ran(tmp_path / "mine.py", 'if __name__ == "__main__":')


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    said = ran(tmp_path / "mine.py", "if True:")
    assert "the checks are run when the module is imported" in said
    assert 'run them only under if __name__ == "__main__"' in said


def test_a_workload_that_cannot_be_made_again_is_told() -> None:
    with (pytest.raises(SettingError, match=r"(?s)another process cannot make .*RuntimeError: not in another process"),
          Server(checks(staticmethod(_only_here)))):
        pass


def _only_here() -> Workload:
    if "HOLDFAST_WITHIN_CHILD" in os.environ:
        raise RuntimeError("not in another process")
    return NAMED


# --- the journal -----------------------------------------------------------------------------------------------------

STATES = [State(n, n + 1, b"model %d" % n) for n in range(4)]


def test_the_journal_narrows_down_what_may_be_there() -> None:
    journal = Journal()
    journal.note(("open", State(-1, 0, b"empty"), True))
    for state in STATES[:3]:
        journal.note(("begun", state))
    assert journal.states == [State(-1, 0, b"empty"), *STATES[:3]]
    journal.note(("acknowledged", 2))
    journal.note(("acknowledged", 1))  # told late by another thread
    assert journal.states == STATES[1:3]
    journal.note(("failed", Failure("DiskFull", True, STATES[2], "no room")))
    assert journal.states == STATES[1:2]
    journal.note(("begun", STATES[3]))
    journal.note(("failed", Failure("OutcomeUnknown", False, STATES[3], "poisoned")))
    assert journal.states == [STATES[1], STATES[3]]
    journal.note(("open", STATES[1], False))  # what was not found does not return
    assert journal.states == [STATES[1]]
    assert (journal.acknowledged, journal.recovered, journal.next_number) == (2, 1, 4)
    with pytest.raises(AssertionError, match="wrong"):
        journal.note(("broken", "wrong"))


def test_a_child_finds_what_is_lost_and_what_is_too_much(tmp_path: Path) -> None:
    """The comparison itself: told of other states than those that the store had, it says so."""
    nameless = checks(staticmethod(WORKLOADS["memory"]))
    drawn: list[list[Operation]] = script(nameless.work(), 0)
    with Server(nameless) as server:
        journal = Journal()
        assert server.start(drive, journal.plan(tmp_path / "store", drawn, 6)).end(journal) == 0
        states = journal.states
        assert states is not None
        last = states[-1]

        def told(*states: State) -> str:
            wrong = Journal(list(states), next_number=100)
            with pytest.raises(AssertionError) as caught:
                server.start(drive, wrong.plan(tmp_path / "store", drawn, 0)).end(wrong)
            return str(caught.value)

        assert told(State(9, last.txid + 2, last.model)) == (
            f"transactions {last.txid + 1} to {last.txid + 2} were acknowledged and are lost")
        assert "nothing after" in told(State(1, last.txid - 1, last.model))
        assert "it differs from the model" in told(State(5, last.txid, pickle.dumps({})))
