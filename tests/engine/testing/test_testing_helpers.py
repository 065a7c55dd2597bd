"""What the store's checks are made of: crash images and their tails, differences in words, and that one seed gives one
history of the machine."""

from __future__ import annotations

import gc
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from workloads import WORKLOADS

from holdfast.engine.errors import CommitDiskFull, RolledBack
from holdfast.engine.testing import Contract, Operation
from holdfast.engine.testing.support.crash_images import EVERYTHING, group_ends, segments_of, tree, unlucky
from holdfast.engine.testing.support.interleave import LINES, at_each_line, lines_of
from holdfast.engine.testing.support.machine import machine_for
from holdfast.engine.testing.support.modelled import Modelled, difference
from holdfast.engine.testing.support.raising import raises


def test_what_must_be_refused() -> None:
    with raises(RolledBack, "this") as raised:
        raise CommitDiskFull("full")
    assert raised.error.message == "full"
    with pytest.raises(AssertionError, match="this raised nothing, and must raise RolledBack or KeyError"), \
            raises((RolledBack, KeyError), "this"):
        pass
    with pytest.raises(ValueError, match="another"), raises(RolledBack, "this"):
        raise ValueError("another")


def test_differences_are_told_in_few_words() -> None:
    assert difference({1: 2}, {1: 2}) == ""
    assert difference({1: 2, 3: 4}, {1: 5, 6: 7}) == "6 is not there, 3 is there, 1 is 2 instead of 5"
    assert difference({}, {n: n for n in range(5)}).endswith("2 is not there, and 2 more")
    assert len(difference({1: b"x" * 5000}, {1: b"y" * 5000})) < 200
    assert difference([1], [2]) == "it shows [1], the model [2]"


def test_lines_are_looked_at_all_over_a_block() -> None:
    """The last ones all, even where there come some more than were foretold."""
    at = 0

    def block(rounds: int) -> None:
        nonlocal at
        for n in range(rounds):
            at = n  # two lines a round

    def looked(rounds: int, foretold: int) -> set[int]:
        found = []
        with at_each_line(lambda: found.append(at), among=foretold):
            block(rounds)
        assert len(found) <= LINES + max(0, 2 * rounds + 10 - foretold)
        return set(found)

    assert looked(60, 0) == looked(60, lines_of(partial(block, 60))) == set(range(60))
    assert max(looked(2000, 0)) < LINES // 2, "the first ones, where nothing is foretold"
    lines = lines_of(partial(block, 2000))
    gc.disable()  # what is collected in the middle has lines of its own
    try:
        for foretold in (lines, lines - 100):
            found = looked(2000, foretold)
            assert found >= set(range(1960, 2000))
            assert max(b - a for a, b in pairwise(sorted(found))) <= 20
    finally:
        gc.enable()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A crash image with three groups, of a transaction each."""
    with Modelled(WORKLOADS["memory"](), tmp_path) as kept:
        for number in range(3):
            kept.write(number)
        return kept.crash_image()


def test_tails(image: Path) -> None:
    segment = segments_of(image)[-1]
    ends, sealed = group_ends(segment)
    assert [end.txid for end in ends] == [0, 1, 2, 3]
    assert not sealed
    data, end = segment.read_bytes(), ends[-1].offset

    assert unlucky(image, "as it is", b"noise", 0.5, 0) == EVERYTHING
    assert segment.read_bytes() == data
    assert unlucky(image, "noise behind", b"noise", 0.5, 0) == 3
    assert segment.read_bytes() == data[:end] + b"noise" + data[end + 5 :]
    assert unlucky(image, "torn", b"noise", 0.5, 0) == 2
    torn = segment.read_bytes()
    assert torn[: ends[-2].offset] == data[: ends[-2].offset]
    assert torn != data
    assert not any(torn[end:])


def test_what_was_synced_before_is_not_torn(image: Path) -> None:
    before = tree(image)
    assert unlucky(image, "torn", b"", 0.0, outside=3) == 3
    assert tree(image) == before


def test_a_sealed_log_has_no_tail(tmp_path: Path) -> None:
    with Modelled(WORKLOADS["memory"](), tmp_path) as kept:
        kept.write(0)
    shutil.copytree(kept.path, tmp_path / "copy")
    before = tree(tmp_path / "copy")
    assert unlucky(tmp_path / "copy", "torn", b"noise", 0.5, 0) == EVERYTHING
    assert tree(tmp_path / "copy") == before


def test_one_seed_is_one_history_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness draws, and does, the same things again."""
    made: list[list[Operation]] = []
    transact = Modelled.transact

    def noted(self: Modelled, operations: list[Operation], *rest: Any) -> Any:
        made.append(operations)
        return transact(self, operations, *rest)

    monkeypatch.setattr(Modelled, "transact", noted)

    class Quiet(Contract):
        workload = staticmethod(WORKLOADS["staging"])
        quiet = True

    def history() -> list[list[Operation]]:
        made.clear()
        suite = Quiet()
        suite.prove_machine(machine_for(suite.work()), examples=5)
        return list(made)

    once = history()
    assert len(once) > 10
    assert history() == once
