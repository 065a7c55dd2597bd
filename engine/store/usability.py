"""Whether a store can be used, and why not: one fact that the store and its parts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import HoldfastError, InvalidInput, StoreClosed


class Usability:
    """See the module's text. From any thread.

    Attributes:
        directory: the store's.
        read_only: whether the store was opened read-only.
        no_writes: whether new transactions are refused.
        ended: why the store can no longer be used, or None. Once set, it stays set.
    """

    __slots__ = ("_reason", "directory", "ended", "no_writes", "read_only")

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.directory = directory
        self.read_only = read_only
        self.no_writes = read_only
        self.ended: str | None = None
        self._reason: Callable[[], HoldfastError] | None = None

    def refuse(self, reason: Callable[[], HoldfastError]) -> None:
        """Refuse new transactions with what `reason()` returns."""
        self._reason = reason
        self.no_writes = True

    def accept(self) -> None:
        """Take transactions again."""
        self.no_writes = self.read_only
        self._reason = None

    def check(self) -> None:
        """Raises `StoreClosed` if the store has ended."""
        if self.ended is not None:
            raise self.error()

    def check_writable(self) -> None:
        """Raises `StoreClosed`; `InvalidInput` if the store is open read-only."""
        if self.ended is not None or self.read_only:
            raise self.error()

    def error(self) -> HoldfastError:
        """The error for a caller that cannot use the store."""
        if self.ended is None and (reason := self._reason) is not None:
            return reason()
        if self.ended is None:
            return InvalidInput(f"{self.directory} is open read-only", hint="open it for writing")
        return StoreClosed(f"{self.directory} {self.ended}")
