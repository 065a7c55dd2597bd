"""Memory is bounded, whatever the size of the image: under 100 MB above what the process has otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import repository_memory

from holdfast.backup import Repository

SIZE = 320 << 20
MOST = 100_000_000


def grew(verb: str, place: Path, size: int) -> int:
    done = subprocess.run([sys.executable, repository_memory.__file__, verb, str(place), str(size)], check=True,
                          stdout=subprocess.PIPE, text=True, timeout=600)
    return int(done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("memory")
    Repository.init(made / "repo").close()
    return made


def test_memory_is_bounded_in_each_verb(place: Path) -> None:
    """A bound that grows with the image would not hold, since the image is much larger."""
    told = {verb: grew(verb, place, SIZE) for verb in repository_memory.VERBS}
    assert {verb: size for verb, size in told.items() if size > MOST} == {}
    assert (place / "restored" / "data").stat().st_size == SIZE
