"""A directory for files that nobody needs once the process has ended."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

from ..errors import DirectoryMoved
from . import Files


class ScratchDirectory:
    """A directory that goes at `cleanup`, or with the object, or with the process that made it, and no other: a forked
    child that exits must not take it from its parent, as `tempfile.TemporaryDirectory` does."""

    def __init__(self, files: Files) -> None:
        self.path = files.make_scratch_directory()
        self.cleanup = weakref.finalize(self, _remove, files, self.path, os.getpid())


def _remove(files: Files, path: Path, maker: int) -> None:
    if os.getpid() == maker:
        with contextlib.suppress(OSError, DirectoryMoved):
            files.remove_tree(path)
