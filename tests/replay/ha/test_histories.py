"""Both checks of histories find what is wrong with histories that are. Porcupine sees only what clients see: no digest,
no log, no number of a transaction."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from histories import Final, History, Read, Write, check
from porcupine_check import Porcupine


def sound() -> History:
    """Three appends, one of unknown outcome that is there, one of unknown outcome that is not, and one refused."""
    lists = {0: [1, 2, 3], 1: [4]}
    return History(
        writes=[Write(1, 0, 0.0, 1.0, "acknowledged", 10), Write(2, 0, 2.0, 3.0, "unknown"),
                Write(3, 0, 2.5, 4.0, "acknowledged", 12), Write(4, 1, 5.0, 6.0, "acknowledged", 13),
                Write(5, 1, 5.0, 6.0, "refused"), Write(6, 1, 5.0, 6.0, "unknown")],
        reads=[Read("a1", True, 1.5, 1.6, 10, 0, {0: [1]}), Read("b1", False, 4.5, 4.6, 11, 0, {0: [1, 2]}),
               Read("b1", True, 6.5, 6.6, 13, 0, {0: [1, 2, 3], 1: [4]})],
        finals={name: Final(13, "d", (1, 13, "c"), {at: list(numbers) for at, numbers in lists.items()})
                for name in "abc"})


def test_a_sound_history_passes() -> None:
    assert check(sound()) == []


def _all(history: History, at: int, numbers: list[int]) -> None:
    for final in history.finals.values():
        final.lists[at] = numbers


def _lost(history: History) -> None:
    _all(history, 1, [])


def _came_back(history: History) -> None:
    _all(history, 1, [4, 5])


def _twice(history: History) -> None:
    _all(history, 1, [4, 4])


def _from_nowhere(history: History) -> None:
    _all(history, 1, [4, 9])


def _reordered(history: History) -> None:
    _all(history, 0, [1, 3, 2])


def _against_time(history: History) -> None:
    history.writes[1].began = 4.5
    history.writes[1].ended = 4.8


def _other_digest(history: History) -> None:
    history.finals["b"].digest = "e"


def _other_log(history: History) -> None:
    history.finals["b"].end = (1, 13, "x")


def _unpublished_rest(history: History) -> None:
    for final in history.finals.values():
        final.end = (1, 14, "c")


def _same_txid(history: History) -> None:
    history.writes[3].txid = 12


def _txids_against_time(history: History) -> None:
    history.writes[0].txid, history.writes[3].txid = 13, 10


def _vanished(history: History) -> None:
    history.reads[1].lists = {0: [1, 2, 7]}


def _shown_too_early(history: History) -> None:
    history.reads[1].lists = {0: [1, 2, 3]}


def _hole(history: History) -> None:
    history.reads[2].lists = {0: [1, 2, 3]}


def _went_back(history: History) -> None:
    history.reads[0].life = "b1"
    history.reads[1].txid, history.reads[1].lists = 9, {}


def _stale(history: History) -> None:
    history.reads[2].txid, history.reads[2].lists = 12, {0: [1, 2, 3]}


def _linearizable_went_back(history: History) -> None:
    history.reads.append(Read("c1", True, 7.0, 7.1, 14, 0, {0: [1, 2, 3], 1: [4]}))
    history.reads.append(Read("a1", True, 7.2, 7.3, 13, 0, {0: [1, 2, 3], 1: [4]}))


BROKEN = [
    (_lost, "was acknowledged as transaction 13, and is not there"), (_came_back, "5 was refused, and is there"),
    (_twice, "is there 2 times"), (_from_nowhere, "nobody wrote it"),
    (_reordered, "not a prefix of list 0"), (_against_time, "precedes an append that was acknowledged before"),
    (_other_digest, "differ in digest"), (_other_log, "differ in end"), (_unpublished_rest, "its log ends at 14"),
    (_same_txid, "was acknowledged 2 times"), (_txids_against_time, "was over before it, at 13"),
    (_vanished, "not a prefix of list 0"), (_shown_too_early, "shows 3, which is transaction 12"),
    (_hole, "lacks 4, which is transaction 13"), (_went_back, "read on b1 is at 9"),
    (_stale, "13 had been acknowledged before"), (_linearizable_went_back, "linearizable read on a1 is at 13"),
]
CLIENTS_SEE = [_lost, _came_back, _twice, _from_nowhere, _reordered, _against_time, _hole, _stale]
"""Of these, what porcupine must refuse."""


@pytest.fixture
def built(porcupine: Porcupine) -> Porcupine:
    if porcupine.why_not is not None:
        pytest.skip(f"fault 'porcupine' cannot be made here: {porcupine.why_not}")
    return porcupine


@pytest.mark.parametrize(("broken", "named"), BROKEN)
def test_a_broken_history_is_found(broken: Callable[[History], None], named: str) -> None:
    history = sound()
    broken(history)
    problems = check(history)
    assert any(named in problem for problem in problems), problems


def test_porcupine_accepts_a_sound_history(built: Porcupine) -> None:
    assert built.check(sound()) == []


@pytest.mark.parametrize("broken", CLIENTS_SEE)
def test_porcupine_refuses_what_clients_can_see(broken: Callable[[History], None], built: Porcupine) -> None:
    history = sound()
    broken(history)
    assert built.check(history), "not linearizable, and accepted"


def test_porcupine_is_not_lost_among_appends_that_no_read_tells_apart(built: Porcupine) -> None:
    """Nobody reads between them, and all overlap, so that 40! orders could be tried. Half are of unknown outcome, and
    half of those are not there."""
    writes = [Write(n, 0, 0.0, 10.0, "acknowledged" if n % 2 else "unknown", n) for n in range(40)]
    numbers = [n for n in reversed(range(40)) if n % 4]
    history = History(writes, [], {"a": Final(40, "d", (1, 40, "c"), {0: numbers})})
    assert built.check(history) == []
    numbers.remove(1)
    assert built.check(history) == ["list 0 is not linearizable"]
