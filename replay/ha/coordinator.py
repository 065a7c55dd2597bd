"""The interface to a coordinator: one small document for each cluster, which is replaced by comparing its version.

That is all a cluster needs, and a bucket can offer it too. Who is primary, the epoch, the counter of renewals and the
voters stand in this one document, so one swap changes them together. Here it is opaque bytes.

A coordinator of your own is a subclass of `Coordinator`. `CoordinatorContract` in `holdfast.replay.testing.coordinator`
tries it. To open it by address, register the class under its scheme in the entry-point group `holdfast.coordinators`:
see `coordinators/url.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ...engine.env.shown import type_name
from ...engine.errors import InvalidInput

MOST_BYTES = 512 << 10
"""The largest document. etcd takes requests of 1.5 MiB, and a swap sends the old document too."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which document is there. Two versions are equal only if it is the same one; they have no order.

    Attributes:
        number: of the swap that wrote it, as the coordinator counts them; 0 if there is no document.
        mark: what tells it from a document of the same number that a coordinator got after its data were lost or put
            back from a backup.
    """

    number: int
    mark: bytes = field(repr=False)


ABSENT = Version(0, b"")
"""The version if there is no document. A swap of it creates one."""


class Coordinator(ABC):
    """One cluster's document at a coordinator. Methods may be called from any thread, and several at once.

    Every call ends within its `timeout` in seconds, which covers looking up names, connecting, TLS and all retries. A
    timeout that is too short raises as an outage does. A time of 0 or below is such a timeout.
    """

    @abstractmethod
    def read(self, timeout: float) -> tuple[bytes | None, Version]:
        """The document, or None if there is none, and its version. It is not older than any swap that returned, or any
        read that returned, before this call began.

        Raises:
            CoordinatorUnavailable: there was no answer, whatever the reason.
        """

    @abstractmethod
    def swap(self, version: Version, data: bytes, timeout: float) -> Version:
        """Replace the document by `data` if its version is `version`. Returns the new version, and then the document
        is durable.

        Args:
            version: from `read`, `swap` or `wait`; `ABSENT` to create the document.
            data: at most `MOST_BYTES`.

        Raises:
            SwapConflict: the document has another version.
            SwapUnknown: it may have been replaced. If it was not, it still may be, until another swap succeeds.
            CoordinatorUnavailable: it was not replaced, and will not be.
            Unsupported: what keeps the document does not compare versions, and cannot be a coordinator.
            InvalidInput: `data` is too large, or not bytes.
        """

    @abstractmethod
    def wait(self, version: Version, timeout: float) -> tuple[bytes | None, Version] | None:
        """Wait until the document has another version than `version`, and return both. None if it has the same version
        for `timeout` seconds. An outage of the last half second of a wait may go unseen.

        Changes are seen within 0.1 s, plus the time of a read, unless the coordinator was opened with another interval.
        Several changes may be seen as one.

        Raises:
            CoordinatorUnavailable: there was no answer. It may be raised at once, so pause before you call again.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back connections. Later calls raise `CoordinatorUnavailable`, and so do calls that wait. May be called
        twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def check_data(data: bytes) -> bytes:
    """`data`, if it may be a document. Raises `InvalidInput`."""
    if not isinstance(data, bytes):
        raise InvalidInput(f"a cluster document is bytes, not {type_name(data)}")
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"the cluster document has {len(data):,} bytes, and a coordinator takes {MOST_BYTES:,}",
                           hint="remove members that are gone, or shorten their tags")
    return data
