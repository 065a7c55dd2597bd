"""How mutations are looked at: in processes that look at several, and what is said of one that ends, hangs or leaks."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from holdfast.engine.errors import Damaged, HoldfastError
from holdfast.engine.testing.support.mutations import AT_ONCE, Mutation, Subject, files_of, mutated

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

TREE = {"STORE": b"store", "gen/state/values": b"\0\0ab\0c" * 1000, "gen/state/more": b"", "gen/log/1.seg": bytes(9000)}


class Mute(HoldfastError):
    """It says nothing."""

    def __str__(self) -> str:
        return ""


MANY = 2 * AT_ONCE + 5


def test_each_is_told_of_and_what_ends_a_process_hides_no_other(tmp_path: Path) -> None:
    """A process that looked at several ended at one of them, and those behind it must be looked at too."""
    subject = Subject(TREE, {})
    seen: list[Path] = []

    def look(path: Path, mutation: Mutation, number: int) -> None:
        found = files_of(path)
        assert {name: found.get(name) for name in mutation.files} == mutation.files, "it is not what was said"
        assert found == {name: data for name, data in {**TREE, **mutation.files}.items() if data is not None}
        seen.append(path)
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5:
            os._exit(7)
        if number == AT_ONCE:
            time.sleep(60)
        if number == AT_ONCE + 1:
            raise Damaged("it says so")
        if number == AT_ONCE + 2:
            raise Mute("")
        if number == AT_ONCE + 3:
            raise KeyError("x")
        assert number != AT_ONCE + 4, "something else is shown"
        assert number != AT_ONCE + 20 or len(seen) == 1, "something is left over"

    told: list[str] = []
    mutated(lambda number: subject, 9, range(MANY), tmp_path / "looks", look, told.append, limit=2)
    assert len(told) == MANY
    wrong = {number: text for number, text in enumerate(told) if text}
    assert sorted(wrong) == [3, 5, *(AT_ONCE + n for n in (0, 2, 3, 4, 20))]
    for number, expected in ((3, "ended by SIGKILL"), (5, "ended with code 7"), (AT_ONCE, "did not end within 2 s"),
                             (AT_ONCE + 2, "says nothing"), (AT_ONCE + 3, "a bare KeyError"),
                             (AT_ONCE + 4, ": something else is shown"),
                             (AT_ONCE + 20, "not by itself, but in a process that looked at others before")):
        assert expected in wrong[number]
        mutation = subject.mutation(9, number)
        assert wrong[number].startswith(f"mutation {number} of seed 9, {mutation.name} {mutation.text}: ")
    assert not seen, "they were looked at in this process"
    assert not (tmp_path / "looks").exists()


def test_aimed_bits_lie_evenly_over_what_is_not_zero() -> None:
    """Most of a store's file is room. Of twelve seeds, six let an engine without checksums pass."""
    subject = Subject(TREE, {})
    hit: set[int] = set()
    for number in range(300):
        mutation = subject.flipped(random.Random(number), number)
        assert mutation is not None
        assert mutation.name == "gen/state/values"
        assert TREE[mutation.name][mutation.first]
        (changed,) = mutation.files.values()
        assert changed is not None
        assert sum(a != b for a, b in zip(changed, TREE[mutation.name], strict=True)) == 1
        hit.add(mutation.first // 200)
    assert hit == set(range(30))
    assert Subject({"gen/state/values": bytes(100)}, {}).flipped(random.Random(0), 0) is None


def test_a_mutation_is_that_of_its_number() -> None:
    """What a failure names can be drawn again."""
    one, other = Subject(TREE, {}), Subject(dict(TREE), {})
    assert all(one.mutation(1, number) == other.mutation(1, number) for number in range(50))
    assert len({one.mutation(1, number).text for number in range(50)}) > 30
