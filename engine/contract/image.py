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
    """The files of a durable state, readable until `close` although the state moves on.

    Attributes:
        position: the engine's position when the image was made. Every byte holds at least this.
        files: fixed when the image is made.
    """

    position: Position
    files: Sequence[ImageFile]

    @abstractmethod
    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly the bytes of a file's range, which lies within its size. From any thread."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""
