"""A copied image: the state of a store that was copied while the store was running.

Such a state is consistent only once log has been replayed over it. It belongs to the store it was copied from until it
is opened for writing. A generation that holds one has a `MANIFEST`, written by the program that copied it. The store
does not read that document. It asks the `CopiedImage` that is registered as `MANIFEST` in the entry-point group
`holdfast.images`; `holdfast.backup` registers one. If none is registered, the directory is refused: opened as an
ordinary store, it would show a mixture of states, or write to somebody's backup.
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
    """What a store must know about a copied image, and the changes that it makes to one."""

    @classmethod
    @abstractmethod
    def read(cls, files: Files, generation: Generation) -> Self | None:
        """The copied image in a generation; None once it is settled and the state is the store's own. Raises
        `Damaged`, `UnsupportedFormat`."""

    @property
    @abstractmethod
    def position(self) -> Position:
        """The image position: the image holds everything up to here, and the engine opens it at this position."""

    @property
    @abstractmethod
    def promoted(self) -> bool:
        """Whether it was opened for writing. If so, backup runs may no longer add log to it."""

    @property
    @abstractmethod
    def log_end(self) -> Position | None:
        """How far its log must reach, according to the manifest; None once promoted."""

    @abstractmethod
    def check(self, log: Log) -> None:
        """Check that this log belongs to the image and reaches its consistent-from position. Raises `Damaged`."""

    @abstractmethod
    def promote(self, kind: type[Engine[Any, Any]], context: Context) -> None:
        """Make the image a store's own, durably, unless it already is. Call it before the state is opened for writing,
        because many libraries change their files on opening. It first opens the engine read-only, so that a wrong
        option does not cost a backup.

        Raises:
            Damaged, and what opening the engine raises: nothing was changed.
        """

    @abstractmethod
    def begin_branch(self, log: Log) -> None:
        """Continue the log of a promoted image on a branch of its own, durably, unless this was done before. Call it
        before anything is written to the log. Raises as `check`."""

    @abstractmethod
    def settle(self, reached: Position) -> bool:
        """The state has been checkpointed at `reached`. If that is at or after the consistent-from position, record
        durably that the state is now an ordinary one, and return True."""


@cache
def _registered(group: str, name: str) -> type[CopiedImage]:
    """Looked up once per process, because searching all installed packages takes some milliseconds."""
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
        raise UnsupportedFormat(f"{generation.path} is a copied image, and no installed package reads its "
                                f"{generation.manifest.name}", hint="reinstall all packages of Holdfast, with their "
                                f"entry points in the group {GROUP}") from error
    return kind.read(files, generation)
