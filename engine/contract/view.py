"""The view of an engine: a snapshot that readers read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Self


class View(ABC):
    """A consistent read view at one position, which later transactions do not change. A context manager.

    What reads it raises `Damaged` only of bytes that were read and are wrong. What the system refuses (a disk that
    fails, no more memory or descriptors) says nothing of the bytes: `env.system.told` makes `DeviceFailed`,
    `LimitReached` and their like of it. The same holds of transactions.
    """

    @property
    @abstractmethod
    def txid(self) -> int:
        """The last transaction that this view shows."""

    @abstractmethod
    def digest(self) -> bytes:
        """16 bytes over the whole content, by a full walk: equal content, equal digest, in whatever order it was made.
        What readers cannot see (free space, layout) is not in it; what the next writer sees (allocation marks) is."""

    @abstractmethod
    def check(self) -> Iterator[str]:
        """Walk the whole content and yield every inconsistency, in words."""

    def close(self) -> None:  # noqa: B027 - most views hold nothing
        """Let go of what the view holds; fine to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
