"""The view of an engine: a snapshot that readers read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Self


class View(ABC):
    """A consistent read view at one position, unaffected by later transactions. A context manager. From any thread.

    Raise `Damaged` only for bytes that were read and are wrong. An error of the system (a failing disk, no memory, no
    descriptors) says nothing about the bytes: let `env.system.told` turn it into `DeviceFailed`, `LimitReached` and so
    on. The same holds for transactions.
    """

    @property
    @abstractmethod
    def txid(self) -> int:
        """The last transaction that this view shows."""

    @abstractmethod
    def digest(self) -> bytes:
        """16 bytes over the whole content, by a full walk: O(content). Equal content gives an equal digest, in whatever
        order it was written. What readers cannot see (free space, layout) is not included. What the next writer sees
        (allocation marks) is."""

    @abstractmethod
    def check(self) -> Iterator[str]:
        """Walk the whole content, and yield a message for every inconsistency. O(content)."""

    def close(self) -> None:  # noqa: B027 - most views hold nothing
        """Release what the view holds. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
