"""Broken coordinators, each caught by the check of `CoordinatorContract` that is about what it breaks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from holdfast.engine.errors import HoldfastError
from holdfast.replay.ha.coordinator import ABSENT, MOST_BYTES, Coordinator, Version
from holdfast.replay.ha.coordinators.memory import Fault, MemoryCell, MemoryCoordinator
from holdfast.replay.ha.errors import CoordinatorUnavailable, SwapUnknown
from holdfast.replay.testing import coordinator as contract
from holdfast.replay.testing.coordinator import CoordinatorContract


class ComparesNothing(MemoryCoordinator):
    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        return super().swap(self.read(timeout)[1], data, timeout)


class ComparesFirst(MemoryCoordinator):
    """Compares, and replaces a moment later."""

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        if self.read(timeout)[1] == version:
            time.sleep(0.002)
            version = self.read(timeout)[1]
        return super().swap(version, data, timeout)


class VersionIsContent(MemoryCoordinator):
    """A document that comes back has the version it had."""

    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        data, version = super().read(timeout)
        return data, version if data is None else Version(1, data)

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        current = super().read(timeout)[1]
        super().swap(current if self.read(timeout)[1] == version else Version(-1, b""), data, timeout)
        return Version(1, data)


class EmptyIsAbsent(MemoryCoordinator):
    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        data, version = super().read(timeout)
        return data or None, version


class SeesNothing(MemoryCoordinator):
    """Waits for a change it does not see."""

    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        found = self.read(timeout)
        if found[1] != version:
            return found
        time.sleep(timeout)
        self.read(timeout)
        return None


class WaitsForContent(MemoryCoordinator):
    """Takes an absent document for nothing to compare with."""

    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        if version == ABSENT and self.read(timeout)[1] == ABSENT:
            time.sleep(min(timeout, 0.2))
            return None
        return super().wait(version, timeout)


class WaitsForNothing(MemoryCoordinator):
    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        found = self.read(timeout)
        return found if found[1] != version else None


class CutsOff(MemoryCoordinator):
    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        return super().swap(version, data[: MOST_BYTES // 2], timeout)


class IgnoresTimeouts(MemoryCoordinator):
    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        if timeout < 0.01:
            time.sleep(1.1)
        return super().read(timeout)


class SaysUnavailable(MemoryCoordinator):
    """Takes a lost answer for a refusal."""

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        try:
            return super().swap(version, data, timeout)
        except SwapUnknown as error:
            raise CoordinatorUnavailable(error.message) from error


class WritesTwice(MemoryCoordinator):
    """Sends a swap again whose answer was lost, as a compare that it meets its own first one in."""

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        try:
            return super().swap(version, data, timeout)
        except SwapUnknown:
            self.fault = None
            return super().swap(version, data, timeout)


class StaysOpen(MemoryCoordinator):
    def close(self) -> None:
        pass


CAUGHT: list[tuple[type[MemoryCoordinator], str]] = [
    (ComparesNothing, "test_a_swap_of_another_version_changes_nothing"),
    (ComparesNothing, "test_of_several_who_create_one_does"),
    (ComparesFirst, "test_no_swap_is_lost"),
    (ComparesFirst, "test_threads_share_a_coordinator"),
    (VersionIsContent, "test_a_swap_of_another_version_changes_nothing"),
    (EmptyIsAbsent, "test_an_absent_document_has_a_version_too"),
    (SeesNothing, "test_a_wait_ends_with_the_change"),
    (WaitsForContent, "test_a_wait_for_the_first_document"),
    (WaitsForNothing, "test_a_wait_without_a_change_ends_in_time"),
    (CutsOff, "test_a_large_document_is_stored_whole_or_refused"),
    (IgnoresTimeouts, "test_a_short_timeout_ends_the_call"),
    (SaysUnavailable, "test_an_unknown_outcome_can_be_read_back"),
    (WritesTwice, "test_an_unknown_outcome_can_be_read_back"),
    (StaysOpen, "test_a_closed_coordinator_answers_no_more"),
]


@pytest.mark.parametrize(("broken", "check"), CAUGHT, ids=lambda what: getattr(what, "__name__", what))
def test_a_broken_coordinator_is_caught(broken: type[MemoryCoordinator], check: str,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    cell = MemoryCell()

    class OnIt(CoordinatorContract):
        def make(self) -> Coordinator:
            return broken(cell)

        def lose_answers(self, coordinator: Any) -> None:
            coordinator.fault = Fault.ANSWER_LOST

    monkeypatch.setattr(contract, "TIMEOUT", 1.5)
    with pytest.raises((AssertionError, HoldfastError, pytest.fail.Exception)):
        getattr(OnIt(), check)()


def test_each_check_catches_one() -> None:
    checks = {name for name in dir(CoordinatorContract) if name.startswith("test_")}
    assert checks == {check for _, check in CAUGHT}
