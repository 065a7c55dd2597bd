"""A cluster of three processes under faults that a machine really has: kills, pauses, cuts, a coordinator that dies.

Two of the tests have a real network, in namespaces of the kernel. The others have proxies on loopback.

Clients append and read all the while. Nothing acknowledged may be missing at the end, nothing refused may be there,
nothing shown may vanish, and all members must be equal. Profile `ci` makes nine times as many faults as `default`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_rig import torture
from fault_rig import require
from namespaces import no_namespaces
from porcupine_check import Porcupine
from wires import Links, Spaces

from holdfast.engine.testing.support.profiles import current_profile, current_seed

FAULTS = {"default": 3, "ci": 15, "nightly": 750}
"""For each of the four tests."""


@pytest.mark.timeout(1200 if current_profile().name != "nightly" else 0)
@pytest.mark.parametrize(("kind", "wires", "seed"), [
    pytest.param("memory", "namespaces", 1, marks=pytest.mark.fault("network namespaces")),
    pytest.param("graph", "namespaces", 2, marks=pytest.mark.fault("network namespaces")),
    pytest.param("graph", "etcd", 3, marks=pytest.mark.fault("etcd")), ("memory", "file", 4)])
def test_faults_lose_nothing_that_was_acknowledged(tmp_path: Path, kind: str, wires: str, seed: int,
                                                   porcupine: Porcupine, capsys: pytest.CaptureFixture[str]) -> None:
    if wires == "namespaces":
        require("network namespaces", no_namespaces())
    given, faults = current_seed(), FAULTS[current_profile().name]
    with capsys.disabled():
        figures = torture(tmp_path, kind, faults, seed if given is None else given,
                          Spaces(tmp_path) if wires == "namespaces" else Links(tmp_path, with_etcd=wires == "etcd"),
                          porcupine)
        print(f"\n{kind}, {wires}: {figures}")
