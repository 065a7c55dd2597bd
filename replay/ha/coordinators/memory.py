"""A coordinator in this process's memory, for tests and simulations. It can be told to fail."""

from __future__ import annotations

from enum import Enum

from ....engine.env import REAL, Env
from ..coordinator import ABSENT, Coordinator, Version, check_data
from ..errors import CoordinatorUnavailable, SwapConflict, SwapUnknown


class Fault(Enum):
    """What goes wrong with calls."""

    OUTAGE = "nothing answers"
    SWAP_LOST = "the request of a swap is lost, and its outcome is unknown"
    ANSWER_LOST = "a swap is done, but its answer is lost"


class MemoryCell:
    """The document of one cluster, which `MemoryCoordinator`s share."""

    def __init__(self, env: Env = REAL) -> None:
        self.env = env
        self.changed = env.scheduler.condition()
        self.data: bytes | None = None
        self.version = ABSENT
        self.swaps = 0

    def lose(self) -> None:
        """Lose the document, as a coordinator does whose disk was replaced. Numbers begin anew, marks do not."""
        with self.changed:
            self.data, self.version = None, ABSENT
            self.changed.notify_all()


class MemoryCoordinator(Coordinator):
    """One user of a `MemoryCell`. Nothing here takes time but `wait`.

    Attributes:
        fault: what goes wrong with this user's calls from now on; None for nothing.
    """

    def __init__(self, cell: MemoryCell) -> None:
        self._cell = cell
        self._closed = False
        self._fault: Fault | None = None

    @property
    def fault(self) -> Fault | None:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        with self._cell.changed:
            self._fault = fault
            self._cell.changed.notify_all()

    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        with self._cell.changed:
            self._answers(timeout)
            return self._cell.data, self._cell.version

    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        check_data(data)
        cell = self._cell
        with cell.changed:
            self._answers(timeout)
            if self._fault is Fault.SWAP_LOST:
                raise SwapUnknown("the request was lost")
            if version != cell.version:
                if self._fault is Fault.ANSWER_LOST:
                    raise SwapUnknown("the answer was lost")
                raise SwapConflict(f"the cluster document has version {cell.version.number}, not {version.number}")
            cell.swaps += 1
            cell.data, cell.version = data, Version(version.number + 1, cell.swaps.to_bytes(8, "big"))
            cell.changed.notify_all()
            if self._fault is Fault.ANSWER_LOST:
                raise SwapUnknown("the answer was lost")
            return cell.version

    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        cell = self._cell
        clock = cell.env.clock
        end = clock.monotonic() + timeout
        with cell.changed:
            self._answers(timeout)
            while True:
                if cell.version != version:
                    return cell.data, cell.version
                left = end - clock.monotonic()
                if left <= 0:
                    return None
                cell.changed.wait(left)
                self._answers(timeout)

    def close(self) -> None:
        with self._cell.changed:
            self._closed = True
            self._cell.changed.notify_all()

    def _answers(self, timeout: float) -> None:
        if self._closed:
            raise CoordinatorUnavailable("this coordinator was closed")
        if self._fault is Fault.OUTAGE:
            raise CoordinatorUnavailable("the coordinator does not answer")
        if timeout <= 0:
            raise CoordinatorUnavailable("there was no time left to ask the coordinator")
