"""What is measured of growth and of leaks is told, and right engines are not blamed for what is not theirs."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest
from workloads import WORKLOADS, keyed

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.options import Option
from holdfast.engine.model.positions import Position
from holdfast.engine.testing import EngineContract, check_engine
from holdfast.engine.testing.engine.growth import GrowthChecks
from holdfast.engine.testing.support.contract import scratch
from holdfast.engine.testing.support.growth import Cost, Life, growth, measured, metering
from holdfast.engine.testing.support.leak_detection import collected, memory_in_use, nothing_left
from holdfast.engine.testing.support.not_tried import untried


def test_exponents_say_how_costs_grow() -> None:
    points = [(n, Cost(lines=n * n, memory=5, moved=0, seconds=n)) for n in (10, 100, 1000)]
    grown = growth("commit", "size", points)
    assert grown.exponents == pytest.approx({"lines": 2, "memory": 0, "moved": 0, "seconds": 1})
    assert "commit against size, 10 to 1,000" in str(grown)


def test_lines_are_counted_without_those_of_the_suites() -> None:
    with metering() as meter:
        def ten() -> None:
            for _ in range(4):
                pass

        assert meter.counted([ten, ten]).lines == pytest.approx(9, abs=2)
        low, high = meter.timed([ten] * 3, [lambda: sum(range(100_000))] * 3)
        assert low < high


def test_a_report_holds_what_was_measured(tmp_path: Path) -> None:
    measured()
    report = check_engine(WORKLOADS["memory"], [GrowthChecks])
    assert report.ok, str(report)
    assert {(grown.call, grown.against) for grown in report.growth} == {
        (call, against) for call in ("commit", "view", "opening", "checkpoint", "image")
        for against in ("history", "size")}
    assert "commit against history" in str(report)
    assert "NEVER RAN: memory.py: lines " in str(report)


class NeverForgets(MemoryEngine):
    """Beside its state it keeps what it had replaced."""

    options = {"early": Option(0, "tidy up early")}

    def checkpoint(self, upto: Position) -> Position:
        reached = super().checkpoint(upto)
        path = self._directory / "all"
        with path.open("ab") as file:
            file.write(bytes(200_000))
        return reached


def test_files_that_grow_are_broken_if_they_were_to_be_tidied_early_and_told_otherwise() -> None:
    def check(tiny: dict[str, int] | None) -> None:
        work = keyed(NeverForgets, tiny=tiny)
        suite = type("TestFiles", (EngineContract,), {"workload": work, "quiet": True})()
        suite.test_the_files_stay_as_large_as_the_state()

    with pytest.raises(AssertionError, match="never let go"):
        check({"early": 1})
    untried()
    check(None)
    assert any(noted.what == "whether the files stay as large as the state" for noted in untried())


def test_a_thread_or_a_descriptor_that_is_left_is_told() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    try:
        with pytest.raises(AssertionError, match="still the thread 'forgotten'"), nothing_left(wait_s=0):
            thread.start()
    finally:
        end.set()
        thread.join()
    with scratch() as place:
        held = os.open(place, os.O_RDONLY)
        os.close(held)
        with pytest.raises(AssertionError, match="still descriptor"), nothing_left(wait_s=0):
            held = os.open(place, os.O_RDONLY)
        os.close(held)
    with nothing_left():
        other = os.open(os.devnull, os.O_RDONLY)  # not of the suites
    os.close(other)


def test_memory_that_is_held_is_counted() -> None:
    with collected():
        before = memory_in_use()
        held = [object() for _ in range(1000)]
        assert memory_in_use().objects - before.objects >= 1000
        held.clear()
        assert memory_in_use().objects - before.objects < 100


def test_a_life_keeps_nothing_of_what_is_past(tmp_path: Path) -> None:
    with closing(Life(WORKLOADS["memory"](), tmp_path / "state")) as life:
        life.commit([("put", b"k", b"v")])
        assert life.roll_back([("put", b"k", b"w")])
        assert (life.txid, life.model) == (1, {b"k": b"v"})
        life.checkpoint()
        life.reopen()
        with life.engine.view() as view:
            assert (view.txid, dict(view.items())) == (1, {b"k": b"v"})
