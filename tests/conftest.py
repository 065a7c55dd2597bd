"""Says at the end of a run which faults were not tried, so that nobody takes silence for success."""

from __future__ import annotations

import pytest

pytest_plugins = ["holdfast.engine.testing.pytest_plugin"]


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
