"""Fixtures of several files. And at the end of a run: which faults were not tried, so that nobody takes silence for
success."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from store_kinds import KINDS, Kind

from holdfast.engine.testing.disks.faulty import FaultyFiles

pytest_plugins = ["holdfast.engine.testing.pytest_plugin"]

# How long an example takes is the machine's: nothing here is a timing test.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


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
