"""`check_engine`: all contracts on one engine, without pytest; it reports all faults, not the first."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from unittest import SkipTest

from ...errors import SettingError
from .contract import Contract, asked_example
from .counters import taken
from .profiles import PROFILES
from .workload import Workload

GROUP = "holdfast.contracts"
"""Entry points of the contracts that are installed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A property that does not hold.

    Attributes:
        check: the check's name, with its contract's.
        property: what it proves, in words.
        error: what was raised.
        message: the error, the line that raised it if it has no words of its own, and the shortest history that
            Hypothesis found, as text.
    """

    check: str
    property: str
    error: BaseException
    message: str


@dataclass(slots=True)
class Report:
    """What `check_engine` found.

    Attributes:
        engine: the engine's name.
        passed: names of the checks that hold.
        skipped: names of those that do not apply, with why.
        faults: those that do not hold.
        figures: how much was tried of what is counted, such as crash states.
    """

    engine: str
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        lines = [f"{self.engine}: {len(self.passed)} checks hold, {len(self.skipped)} do not apply, "
                 f"{len(self.faults)} are broken"]
        lines += [f"  does not apply: {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"  {what} tried: {number:,}" for what, number in self.figures.items()]
        for fault in self.faults:
            lines += ["", f"broken: {fault.check}", f"  {fault.property}"]
            lines += [f"  {line}" for line in fault.message.split("\n")]
        return "\n".join(lines)


def _told(error: Exception, work: Workload) -> str:
    """An error and its notes as text. Unless it is an assertion with words of its own, also the line that raised it:
    the innermost one in a file of the engine's or the workload's author, or in any."""
    said, *notes = traceback.format_exception_only(error)
    lines = traceback.extract_tb(error.__traceback__)
    if lines and not (isinstance(error, AssertionError) and str(error)):
        own = {getattr(sys.modules.get(of.__module__), "__file__", None) for of in (work.engine, type(work))}
        at = next((line for line in reversed(lines) if line.filename in own), lines[-1])
        said += f"  raised at {at.filename}:{at.lineno}, in {at.name}: {at.line}\n"
    return "".join([said, *notes]).strip()


def installed_contracts() -> list[type[Contract]]:
    """Every contract that is registered: the kit's from the lowest layer up, then others by name."""
    layers = ["engine", "replay", "cluster", "backup"]
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return [entry.load() for entry in sorted(found, key=lambda e: layers.index(e.name) if e.name in layers else 4)]


@contextmanager
def _unheard() -> Iterator[None]:
    """Send what stores log of injected crashes and errors only to handlers that somebody has set up. Without one,
    Python would print thousands of lines before the report."""
    logger, nobody = logging.getLogger("holdfast"), logging.NullHandler()
    logger.addHandler(nobody)
    try:
        yield
    finally:
        logger.removeHandler(nobody)


def check_engine(factory: Workload | Callable[[], Workload], contracts: Iterable[type[Contract]] | None = None, *,
                 profile: str | None = None, seed: int | None = None,
                 tell: Callable[[str], None] = lambda name: None) -> Report:
    """Check an engine by every property of the contracts.

    Args:
        factory: a workload, or what makes one; a fresh one for each check.
        contracts: which; all that are installed (engine, replay, cluster, backup) if None.
        profile: `default`, `ci` or `nightly`; the environment's if None.
        seed: what the draws start from: one seed, one history. Another each time if None.
        tell: called with the name of each check before it runs.

    Returns:
        What holds, what does not apply and why, and every fault with the shortest history that shows it.

    Raises:
        SettingError: there is no such profile, `factory` makes no workload, or the environment asks for an example that
            no check can be tried on.
    """
    if profile is not None and profile not in PROFILES:
        raise SettingError(f"profile={profile!r}", hint=f"use one of {', '.join(PROFILES)}")
    suites = installed_contracts() if contracts is None else list(contracts)
    asked_example()
    report: Report | None = None
    for contract in suites:
        members = {"workload": factory if isinstance(factory, Workload) else staticmethod(factory),
                   "profile": contract.profile if profile is None else PROFILES[profile],
                   "seed": contract.seed if seed is None else seed}
        suite = type(contract.__name__, (contract,), members)()
        report = report or Report(suite.work().engine.name)
        for name in suite.checks():
            full = f"{contract.__name__}.{name}"
            tell(full)
            taken()  # what others have counted is not ours
            try:
                with _unheard():
                    getattr(suite, name)()
            except SkipTest as skip:
                report.skipped[full] = str(skip)
            except Exception as error:
                report.faults.append(Fault(full, suite.statement(name), error, _told(error, suite.work())))
            else:
                report.passed.append(full)
            for (what, _), number in taken().items():
                report.figures[what] = report.figures.get(what, 0) + number
    if report is None:
        raise SettingError("there is no contract to check by", hint="install holdfast[testing], or pass contracts=")
    return report
