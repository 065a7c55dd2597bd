"""Nothing hangs: checks that do not get on, threads that die, processes that crash, and what is said of them."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest import SkipTest

import pytest
from hypothesis import strategies as st
from workloads import keyed

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.model.records import Record
from holdfast.engine.testing import PROFILES, Contract, Workload, check, check_engine
from holdfast.engine.testing.engine.process_kills import KillChecks
from holdfast.engine.testing.engine.transactions import TransactionChecks
from holdfast.engine.testing.support.attended import doing
from holdfast.engine.testing.support.driver import driven

SOON = replace(PROFILES["default"], still_s=2.0)


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """The process's own timer, which the checks take for themselves, is pytest's again afterwards."""
    yield
    faulthandler.cancel_dump_traceback_later()


class One(Contract):
    """A check that does what it is told to."""

    profile = SOON
    quiet = True
    workload = staticmethod(lambda: keyed(MemoryEngine))
    act: Callable[[], None]

    @check()
    def test_it_gets_on(self, work: Workload) -> None:
        """It gets on."""
        doing("something", 5)
        type(self).act()

    @check()
    def test_examples_get_on(self, work: Workload) -> None:
        """They get on."""
        self.prove(lambda number: type(self).act(), examples=5, number=st.integers(0, 9))


def acting(act: Callable[[], None], name: str) -> One:
    made: One = type(name, (One,), {"act": staticmethod(act)})()
    return made


class Bank:
    """Two locks, taken in either order."""

    def __init__(self) -> None:
        self.first, self.second, self.met = threading.Lock(), threading.RLock(), threading.Barrier(2)

    def there(self) -> None:
        with self.first:
            self.met.wait()
            with self.second:
                pass

    def back(self) -> None:
        with self.second:
            self.met.wait()
            self.first.acquire()


def test_a_deadlock_is_told_with_who_waits_for_whom() -> None:
    bank = Bank()

    def act() -> None:
        threading.Thread(target=bank.there, name="the other", daemon=True).start()
        bank.back()

    with pytest.raises(AssertionError) as caught:
        acting(act, "Deadlock").test_it_gets_on()
    bank.first.release()
    said = str(caught.value)
    assert said.startswith("the check hangs: it has not got on for 2 s, since it began: 'something' 5\n")
    assert "thread 'holdfast-check' waits for self.first, at test_attended.py:" in said
    assert "which is held by thread 'the other', since test_attended.py:" in said
    assert "thread 'the other' waits for self.second" in said
    assert "held by thread 'holdfast-check', since" in said
    assert "stack of thread 'the other', the innermost call last:" in said
    (note,) = caught.value.__notes__[:1]
    assert "what is broken: test_it_gets_on\n    It gets on." in note


def test_a_lock_that_is_taken_twice_is_told() -> None:
    lock = threading.Lock()

    def act() -> None:
        with lock, lock:
            pass

    with pytest.raises(AssertionError, match=r"waits for lock, at .*which is held by itself, since"):
        acting(act, "Twice").test_it_gets_on()


def test_a_thread_that_never_ends_is_told() -> None:
    stop = threading.Event()

    def act() -> None:
        thread = threading.Thread(target=stop.wait, name="the flusher", daemon=True)
        thread.start()
        thread.join()

    with pytest.raises(AssertionError) as caught:
        acting(act, "Joins").test_it_gets_on()
    stop.set()
    assert "thread 'holdfast-check' waits for the end of thread 'the flusher', at test_attended.py" in str(caught.value)


def test_a_loop_without_end_is_ended_and_not_tried_again() -> None:
    ended: list[BaseException] = []
    before = set(threading.enumerate())

    def act() -> None:
        try:
            while True:
                pass
        except BaseException as error:
            ended.append(error)
            raise

    with pytest.raises(AssertionError, match="the check hangs") as caught:
        acting(act, "Loops").test_examples_get_on()
    assert "an example' {'number': 0}" in str(caught.value)
    assert len(ended) == 1
    assert not set(threading.enumerate()) - before


def test_after_some_that_hung_the_others_are_not_waited_for() -> None:
    suite = acting(threading.Event().wait, "Hopeless")  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(AssertionError, match="the check hangs"):
            suite.test_it_gets_on()
    began = time.monotonic()
    with pytest.raises(SkipTest, match="2 checks of Hopeless on MemoryEngine hung before"):
        suite.test_it_gets_on()
    assert time.monotonic() - began < 0.5
    acting(lambda: None, "Another").test_it_gets_on()


def test_a_check_that_gets_on_may_take_longer() -> None:
    def act() -> None:
        for step in range(8):
            time.sleep(0.2)
            doing("step", step)

    acting(act, "Long").test_it_gets_on()


class Deadlocked(MemoryEngine):
    """A checkpoint takes a lock that `apply` holds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._guard = threading.Lock()

    def apply(self, records: Sequence[Record]) -> None:
        with self._guard:
            super().apply(records)
            if len(records) > 1:
                self.flush()

    def flush(self) -> None:
        with self._guard:
            pass


def test_the_report_of_an_engine_that_hangs_is_complete() -> None:
    """All other checks are run, and what hangs is told with the last operation."""
    contract = type("Some", (TransactionChecks,), {"profile": SOON, "quiet": True})
    report = check_engine(lambda: keyed(Deadlocked), [contract])
    assert report.faults
    assert all("the check hangs" in fault.message for fault in report.faults)
    assert any("since it began: 'apply'" in fault.message for fault in report.faults)
    assert "waits for self._guard" in str(report)
    assert report.passed


# --- threads that die ------------------------------------------------------------------------------------------------


def _dies(text: str) -> threading.Thread:
    def body() -> None:
        raise LookupError(text)

    thread = threading.Thread(target=body, name="the merger")
    thread.start()
    return thread


def test_a_thread_that_dies_fails_the_check() -> None:
    with pytest.raises(AssertionError) as caught:
        acting(lambda: _dies("no such file").join(), "Dies").test_it_gets_on()
    said = str(caught.value)
    assert said.startswith("the thread 'the merger' died of an exception:\nTraceback")
    assert said.endswith("LookupError: no such file")


def test_the_shortest_example_in_which_a_thread_dies_is_found() -> None:
    class Numbers(One):
        @check()
        def test_numbers(self, work: Workload) -> None:
            """No thread dies."""

            def claim(number: int) -> None:
                if number > 5:
                    _dies("too many").join()

            self.prove(claim, examples=50, number=st.integers(0, 1000))

    with pytest.raises(AssertionError, match="died of an exception") as caught:
        Numbers().test_numbers()
    assert "number=6" in "".join(caught.value.__notes__)


def test_a_thread_that_was_there_before_counts() -> None:
    go = threading.Event()

    def body() -> None:
        go.wait()
        raise LookupError("later")

    thread = threading.Thread(target=body)
    thread.start()

    def act() -> None:
        go.set()
        thread.join()

    with pytest.raises(AssertionError, match="died of an exception"):
        acting(act, "Earlier").test_it_gets_on()


def test_a_check_that_does_not_apply_fails_if_a_thread_died() -> None:
    def act() -> None:
        _dies("hidden").join()
        raise SkipTest("not for this one")

    with pytest.raises(AssertionError, match="died of an exception"):
        acting(act, "Hidden").test_it_gets_on()


def test_what_failed_first_is_told_first() -> None:
    def act() -> None:
        _dies("as a consequence").join()
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause") as caught:
        acting(act, "Both").test_it_gets_on()
    assert any("meanwhile the thread 'the merger' died" in note for note in caught.value.__notes__)


# --- processes that crash --------------------------------------------------------------------------------------------


class Crashes(MemoryEngine):
    """In another process it prints a word, and then the library under it reads what is not there."""

    def checkpoint(self, upto: Any) -> Any:
        if "HOLDFAST_WITHIN_CHILD" in os.environ:
            print("about to flush", file=sys.stderr, flush=True)
            ctypes.string_at(0)
        return super().checkpoint(upto)


def crashing() -> Workload:
    return keyed(Crashes)


def test_a_process_that_crashes_is_told_with_what_it_printed() -> None:
    report = check_engine(crashing, [KillChecks])
    (fault,) = report.faults
    assert "the process ended by SIGSEGV, and printed:\nabout to flush" in fault.message
    assert "in checkpoint" in fault.message, "the stack, too"


# --- under pytest ----------------------------------------------------------------------------------------------------

ENGINE = """
    import ctypes, threading
    from dataclasses import replace

    from holdfast.engine.builtin.memory import MemoryEngine, MemoryTransaction, MemoryView
    from holdfast.engine.testing import PROFILES, EngineContract, KeyValues

    class Mine(MemoryEngine):
        def pending_bytes(self):
            {act}
            return super().pending_bytes()

    class TestMine(EngineContract):
        workload = KeyValues(Mine, put=MemoryTransaction.put, items=MemoryView.items)
        profile = replace(PROFILES["default"], still_s={still})
"""


def ran(path: Path, act: str, still: float, *options: str) -> subprocess.CompletedProcess[str]:
    (path / "test_mine.py").write_text(dedent(ENGINE.format(act=act, still=still)))
    (path / "conftest.py").write_text('pytest_plugins = ["holdfast.engine.testing.pytest_plugin"]\n')
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:timeout",
                           "--rootdir", str(path), "-k", "frees_what_waits", "test_mine.py", *options],
                          cwd=path, text=True, capture_output=True, timeout=120, check=False)


def test_a_thread_that_dies_is_one_failure_under_pytest(tmp_path: Path) -> None:
    done = ran(tmp_path, "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", 60)
    assert "died of an exception" in done.stdout
    assert "1 failed" in done.stdout
    assert "PytestUnhandledThreadExceptionWarning" not in done.stdout


def test_code_that_keeps_the_interpreter_to_itself_ends_the_process(tmp_path: Path) -> None:
    """No thread of Python's gets to say anything: the stacks are there, and the run is over."""
    began = time.monotonic()
    done = ran(tmp_path, "ctypes.PyDLL(None).sleep(90)", 8)
    assert time.monotonic() - began < 60
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in pending_bytes" in done.stderr


def test_a_driver_says_what_it_does() -> None:
    """Without this the message of a hang would say only which check it was."""
    lock = threading.Lock()

    class Stops(MemoryEngine):
        def view(self) -> Any:
            with lock, lock:
                return super().view()

    class Reads(One):
        @check()
        def test_it_reads(self, work: Workload) -> None:
            """It reads."""
            with driven(keyed(Stops)) as it:
                it.commit(work.numbered(3))
                it.compare_state()

    with pytest.raises(AssertionError, match=r"since it began: 'apply' 1 'records'"):
        Reads().test_it_reads()
