"""A directory for files that are not needed once the process has ended."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

from ..errors import DirectoryMoved
from . import Files


class ScratchDirectory:
    """A directory that is removed by `cleanup`, with this object, or when the process that made it ends. A forked child
    that exits does not remove its parent's directory, as `tempfile.TemporaryDirectory` would."""

    def __init__(self, files: Files) -> None:
        self.path = files.make_scratch_directory()
        self.cleanup = weakref.finalize(self, _remove, files, self.path, os.getpid())


def _remove(files: Files, path: Path, maker: int) -> None:
    if os.getpid() == maker:
        with contextlib.suppress(OSError, DirectoryMoved):
            files.remove_tree(path)
