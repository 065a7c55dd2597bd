"""What pytest learns from the contract suites: an option, and what a run has tried, said at its end.

Name it in your `conftest.py`: `pytest_plugins = ["holdfast.engine.testing.pytest_plugin"]`. The suites do without it;
the profile is then taken from the environment alone. The seed is `--hypothesis-seed`, which Hypothesis itself adds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from .support.attended import tell_on
from .support.counters import taken
from .support.growth import measured
from .support.never_ran import all_that_never_ran, said, stretches_of
from .support.not_tried import untried
from .support.profiles import PROFILE_VARIABLE, PROFILES, SEED_VARIABLE

_TRIED, _UNTRIED, _GROWTH, _NEVER_RAN = "tried", "not tried", "growth", "never ran"


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
    tell_on(os.dup(2))  # before pytest captures it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Have a test's report bring its figures along, from another process too."""
    if call.when == "call":
        item.user_properties += [(_TRIED, [*key, number]) for key, number in taken().items()]
        item.user_properties += [(_UNTRIED, list(noted)) for noted in untried()]
        item.user_properties += [(_GROWTH, [engine, grown.call, grown.against, grown.points[-1][1].seconds,
                                            max(grown.exponents.values())]) for engine, grown in measured()]
        item.user_properties += [(_NEVER_RAN, list(lines)) for lines in all_that_never_ran()]


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
    lacking: dict[tuple[str, str], dict[str, None]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == _UNTRIED:
                    engine, what, why = value
                    lacking.setdefault((what, why), {})[engine] = None
    for (what, why), engines in lacking.items():
        terminalreporter.line(f"NOT TRIED on {', '.join(engines)}: {what}: {why}", yellow=True, bold=True)
    _say_growth(terminalreporter)
    _say_what_never_ran(terminalreporter)


def _said_by_tests(terminalreporter: pytest.TerminalReporter, kind: str) -> Iterator[list[Any]]:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            yield from (value for name, value in report.user_properties if name == kind)


def _say_growth(terminalreporter: pytest.TerminalReporter) -> None:
    costs: dict[str, dict[str, tuple[float, dict[str, float]]]] = {}
    for engine, call, against, seconds, exponent in _said_by_tests(terminalreporter, _GROWTH):
        costs.setdefault(engine, {}).setdefault(call, (seconds, {}))[1][against] = exponent
    for engine, calls in costs.items():
        each = " · ".join(f"{call} {seconds * 1e6:,.0f} µs ({', '.join(f'{of} {x:.1f}' for of, x in powers.items())})"
                          for call, (seconds, powers) in calls.items())
        terminalreporter.line(f"cost on {engine}, and the power by which it grows (0 is flat, 1 linear): {each}")


def _say_what_never_ran(terminalreporter: pytest.TerminalReporter) -> None:
    """What ran in none of the processes of a distributed run."""
    left: dict[tuple[str, str], set[int]] = {}
    for engine, file, stretches in _said_by_tests(terminalreporter, _NEVER_RAN):
        lines = {line for first, last in stretches for line in range(first, last + 1)}
        left[engine, file] = left.get((engine, file), lines) & lines
    for (engine, file), lines in left.items():
        if lines:
            terminalreporter.line(f"NEVER RAN on {engine}: {file}: lines {said(stretches_of(lines))}", yellow=True)
