"""Fixtures of several files, what a run begins with, and of what coverage is counted. And at its end: which faults were
not tried, so that nobody takes silence for success."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from holdfast.engine.testing.disks.faulty import FaultyFiles

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("support", "formats", "zoo", "docs")]

from porcupine_check import Porcupine  # noqa: E402  it is found now
from store_kinds import KINDS, Kind  # noqa: E402

pytest_plugins = ["holdfast.engine.testing.pytest_plugin", "served_store"]

# How long an example takes is the machine's: nothing here is a timing test.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")


MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 6 << 30
if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED:
    # A third of the time would go to waiting for the disk. What is killed here are processes; where the power is cut,
    # the disk is one that the test brings. `make short` stays on the machine's own disk.
    os.environ["TMPDIR"] = str(MEMORY)
    tempfile.tempdir = None

LONGEST = ("cluster_faults", "hostile_requests", "mutated", "power_cuts", "killed_process", "long_life",
           "the_protocol_is_right")
"""Parts of the names of tests that take minutes with larger profiles. They begin first, since two processes share the
tests and none is to wait for the last one of the other, and are given longer."""
LONGEST_S = 1200
ZOO = "test_zoo.py"
NOT_COUNTED = re.compile(
    r"test_(zoo|contracts_(?!memory)|crash|faults|mutations|hostile|signals|formats|benchmarks|kills|restore"
    r"|store_faults|store_locks|store_concurrency"
    r"|backup_(full|incremental|bulk|moved|promote|directories)|graph_(machine|bulk|values|pages)|ldbc|source_lies|docs"
    r"|check_engine|terminal|cli|cluster_cli|log_recovery|model|bad_days"
    r"|orders|right_engines|across|repository_(kills|races|s3|expiry|zoo)|object_store_faults|object_stores_s3)"
    r"|test_simulated.py::test_(promises_hold|a_long_life|broken_members)")
"""Tests that go the same ways many times, and whose coverage is not counted, since this takes three times as long. Of
the suites it is counted once, for the memory engine."""


def _long(item: pytest.Item) -> bool:
    return item.path.name != ZOO and any(part in item.nodeid for part in LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _long(item))
    for item in items:
        if _long(item) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONGEST_S))
        if NOT_COUNTED.match(f"{item.path.name}::{item.name}"):
            item.add_marker("no_cover")


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.fixture(scope="session")
def porcupine(tmp_path_factory: pytest.TempPathFactory) -> Porcupine:
    return Porcupine.build(tmp_path_factory.mktemp("porcupine"))


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    said: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "fault '" in reason:
            said[reason] = said.get(reason, 0) + 1
    if said:
        terminalreporter.section("FAULTS NOT TRIED", sep="!", yellow=True, bold=True)
        for reason, count in said.items():
            terminalreporter.line(f"{count} tests: {reason.removeprefix('Skipped: ')}")
