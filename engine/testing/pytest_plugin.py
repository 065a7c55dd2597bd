"""What pytest learns from the contract suites: an option, and what a run has tried, said at its end.

Name it in your `conftest.py`: `pytest_plugins = ["holdfast.engine.testing.pytest_plugin"]`. The suites do without it;
the profile is then taken from the environment alone. The seed is `--hypothesis-seed`, which Hypothesis itself adds.
"""

from __future__ import annotations

import os

import pytest

from .support.counters import taken
from .support.profiles import PROFILE_VARIABLE, PROFILES, SEED_VARIABLE

_TRIED = "tried"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("holdfast", "contract suites of Holdfast")
    group.addoption("--holdfast-profile", choices=tuple(PROFILES),
                    help=f"how much the contract suites try (environment: {PROFILE_VARIABLE})")
    group.addoption("--holdfast-seed", type=int,
                    help="deprecated: use --hypothesis-seed")


def pytest_configure(config: pytest.Config) -> None:
    for option, variable in (("--holdfast-profile", PROFILE_VARIABLE), ("--holdfast-seed", SEED_VARIABLE)):
        value = config.getoption(option)
        if value is not None:  # in the environment also for the worker processes of a distributed run
            os.environ[variable] = str(value)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Have a test's report bring its figures along, from another process too."""
    if call.when == "call":
        item.user_properties += [(_TRIED, [*key, number]) for key, number in taken().items()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures: dict[str, dict[str, int]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == _TRIED:
                what, of, number = value
                figures.setdefault(what, {}).setdefault(of, 0)
                figures[what][of] += number
    for what, numbers in figures.items():
        each = " · ".join(f"{of} {number:,}" for of, number in sorted(numbers.items()))
        terminalreporter.line(f"{what} tried: {each}, all recovered")
