"""A copied image: the state of a store that was copied while that store went on.

Such a state counts only once log has been replayed over it. It belongs to the store it was copied from until it is
opened for writing. A generation that holds one has a `MANIFEST`, written by whoever copied it. What that document says
is their business. The store asks the `CopiedImage` that is registered as `MANIFEST` in the entry-point group
`holdfast.images`; `holdfast.backup` registers it. If none is registered, the directory is refused: opened as an
ordinary store it would show a mixture of states, or go on writing to somebody's backup.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, Self

from ..contract.engine import Context, Engine
from ..contract.registry import find
from ..env import Files
from ..errors import SettingError, UnsupportedFormat
from ..model.positions import Position
from ..wal.log import Log
from .layout import Generation

GROUP = "holdfast.images"


class CopiedImage(ABC):
    """What a store has to know of a copied image, and to tell whoever wrote it."""

    @classmethod
    @abstractmethod
    def read(cls, files: Files, generation: Generation) -> Self | None:
        """The copied image in a generation; None once it is settled, and the state is the store's own. Raises
        `Damaged`, `UnsupportedFormat`."""

    @property
    @abstractmethod
    def position(self) -> Position:
        """The image position: the image holds everything up to here, and is adopted here."""

    @property
    @abstractmethod
    def promoted(self) -> bool:
        """Whether it was opened for writing, and so is no longer a copy that others may add log to."""

    @property
    @abstractmethod
    def log_end(self) -> Position | None:
        """How far its log is known to reach, from outside of the log; None once promoted."""

    @abstractmethod
    def check(self, log: Log) -> None:
        """See that this log goes with the image, and reaches the position from which the image is consistent. Raises
        `Damaged`."""

    @abstractmethod
    def promote(self, kind: type[Engine[Any, Any]], context: Context) -> None:
        """Make the image a store's own, durably, unless it is. This comes before the state is opened for writing, since
        many a library changes its files at once. It is first opened read-only, so that an option that is wrong costs
        nobody a backup.

        Raises:
            Damaged, and what opening the engine raises: nothing was changed.
        """

    @abstractmethod
    def begin_branch(self, log: Log) -> None:
        """Continue the log of a promoted image on a branch of its own, durably, unless that is done. This comes before
        anything is written to it. Raises as `check`."""

    @abstractmethod
    def settle(self, reached: Position) -> bool:
        """The state has been checkpointed here. If that is not before the position from which the image is consistent,
        note durably that the state need no longer be adopted, and return True."""


@cache
def _registered(group: str, name: str) -> type[CopiedImage]:
    """Found once in a process: looking through all that is installed takes some milliseconds."""
    kind: type[CopiedImage] = find(group, name, CopiedImage)
    return kind


def copied_image(files: Files, generation: Generation) -> CopiedImage | None:
    """The copied image in a generation; None if its state is the store's own.

    Raises:
        UnsupportedFormat: there is one, and nothing installed here can read it; or its document is of another version.
        Damaged.
    """
    if not files.exists(generation.manifest):
        return None
    try:
        kind = _registered(GROUP, generation.manifest.name)
    except SettingError as error:
        raise UnsupportedFormat(f"{generation.path} is a copied image, and nothing that is installed reads its "
                                f"{generation.manifest.name}", hint="install the whole of Holdfast anew: its packages, "
                                f"and the entry points of the group {GROUP}") from error
    return kind.read(files, generation)
