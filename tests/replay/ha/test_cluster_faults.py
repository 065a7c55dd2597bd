"""A cluster of three processes under faults that a machine really has: kills, pauses, cuts, a coordinator that dies.

Clients append and read all the while. Nothing acknowledged may be missing at the end, nothing refused may be there,
nothing shown may vanish, and all members must be equal. Profile `ci` makes nine times as many faults as `default`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_rig import torture
from porcupine_check import Porcupine

from holdfast.engine.testing.support.profiles import current_profile, current_seed

FAULTS = {"default": 4, "ci": 36, "nightly": 1000}
"""For each of the three tests."""


@pytest.mark.timeout(1200 if current_profile().name != "nightly" else 0)
@pytest.mark.parametrize(("kind", "with_etcd", "seed"), [("memory", True, 1), ("graph", True, 2),
                                                         ("memory", False, 3)])
def test_faults_lose_nothing_that_was_acknowledged(tmp_path: Path, kind: str, with_etcd: bool, seed: int,
                                                   porcupine: Porcupine, capsys: pytest.CaptureFixture[str]) -> None:
    given, faults = current_seed(), FAULTS[current_profile().name]
    with capsys.disabled():
        figures = torture(tmp_path, kind, faults, seed if given is None else given, porcupine,
                          with_etcd=with_etcd)
        print(f"\n{kind}, {'etcd' if with_etcd else 'file'}: {figures}")
