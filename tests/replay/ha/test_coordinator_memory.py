"""The coordinator in memory: the contract, and the faults that simulations ask of it."""

from __future__ import annotations

import pytest

from holdfast.replay.ha.coordinator import ABSENT, Coordinator
from holdfast.replay.ha.coordinators.memory import Fault, MemoryCell, MemoryCoordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapConflict, SwapUnknown
from holdfast.replay.testing.coordinator import CoordinatorContract


class TestMemory(CoordinatorContract):
    @pytest.fixture(autouse=True)
    def a_cell(self) -> None:
        self.cell = MemoryCell()

    def make(self) -> Coordinator:
        return MemoryCoordinator(self.cell)

    def lose_answers(self, coordinator: Coordinator) -> None:
        assert isinstance(coordinator, MemoryCoordinator)
        coordinator.fault = Fault.ANSWER_LOST


def test_faults_are_of_one_user_and_end() -> None:
    cell = MemoryCell()
    one, other = MemoryCoordinator(cell), MemoryCoordinator(cell)
    first = one.swap(ABSENT, b"first", 1)
    one.fault = Fault.OUTAGE
    with pytest.raises(CoordinatorUnavailable, match="does not answer"):
        one.read(1)
    with pytest.raises(CoordinatorUnavailable):
        one.swap(first, b"not written", 1)
    with pytest.raises(CoordinatorUnavailable):
        one.wait(ABSENT, 1)
    one.fault = Fault.SWAP_LOST
    with pytest.raises(SwapUnknown):
        one.swap(first, b"not written", 1)
    assert other.read(1) == one.read(1) == (b"first", first)
    one.fault = Fault.ANSWER_LOST
    with pytest.raises(SwapUnknown):
        one.swap(ABSENT, b"not written", 1)  # it was a conflict, which nobody heard of
    with pytest.raises(SwapUnknown):
        one.swap(first, b"second", 1)
    data, second = other.read(1)
    assert data == b"second"
    one.fault = None
    assert one.swap(second, b"third", 1) == other.read(1)[1]


def test_a_document_that_was_lost_and_written_anew_is_another_one() -> None:
    cell = MemoryCell()
    one = MemoryCoordinator(cell)
    old = one.swap(ABSENT, b"same", 1)
    cell.lose()
    assert one.read(1) == (None, ABSENT)
    new = one.swap(ABSENT, b"same", 1)
    assert new.number == old.number
    with pytest.raises(SwapConflict):
        one.swap(old, b"of the old one", 1)
