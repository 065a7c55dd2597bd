"""What several tests of members begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from member_cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """No member yet; those that run at the end are closed."""
    with Cluster(tmp_path) as made:
        yield made
