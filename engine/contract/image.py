"""The image of an engine: the files that a backup copies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.positions import Position


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of an image: a relative POSIX path below the state directory, and its size in bytes."""

    name: str
    size: int


class Image(ABC):
    """The files of a durable state, readable until `close` even while the state changes.

    Attributes:
        position: the engine's position when the image was made. The image holds everything up to here.
        files: its files, fixed when the image is made.
    """

    position: Position
    files: Sequence[ImageFile]

    @abstractmethod
    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a file at `offset`. The range is within the file's size. From any thread."""

    @abstractmethod
    def close(self) -> None:
        """Release the files. From any thread."""
