"""The directory that a process is in: it may change at any moment, and nothing that is open may depend on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def back_again() -> Iterator[None]:
    """After the block, even if it raises, the process is back in the directory that it is in now."""
    before = Path.cwd()
    try:
        yield
    finally:
        os.chdir(before)


def go_to_one_of_two(root: Path) -> tuple[Path, Path]:
    """Make two directories below `root`, and enter the first."""
    here, elsewhere = root / "here", root / "elsewhere"
    for place in (here, elsewhere):
        place.mkdir()
    os.chdir(here)
    return here, elsewhere
