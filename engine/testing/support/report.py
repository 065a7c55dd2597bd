"""`check_engine`: all contracts on one engine, without pytest; it reports all faults, not the first."""

from __future__ import annotations

import fnmatch
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Literal
from unittest import SkipTest

from ...errors import SettingError
from .circumstances import Circumstances, circumstances
from .contract import Contract, asked_example
from .counters import taken
from .growth import Growth, measured
from .never_ran import never_ran, said
from .not_tried import untried
from .profiles import PROFILES, current_seed
from .trial import tried
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


@dataclass(frozen=True, slots=True)
class Tried:
    """One check, as it went.

    Attributes:
        check: its name, with its contract's.
        property: what it proves, in words.
        outcome: what came out.
        examples: how many were drawn for it; 0 if it draws none.
        seconds: how long it took.
    """

    check: str
    property: str
    outcome: Literal["holds", "does not apply", "broken"]
    examples: int
    seconds: float


@dataclass(slots=True)
class Report:
    """What `check_engine` found.

    Attributes:
        engine: the engine's name.
        circumstances: under which it was found: versions, machine, time, profile, seed.
        tried: every check, in the order in which they ran.
        passed: names of the checks that hold.
        skipped: names of those that do not apply, with why.
        faults: those that do not hold.
        figures: how much was tried of what is counted, such as crash states.
        untried: what was not tried, with why.
        growth: how what the engine's calls cost grows.
        never_ran: by the files of the engine's own code, the first and last lines of each stretch that never ran.
            Empty if only some of the checks were asked for.
    """

    engine: str
    circumstances: Circumstances
    tried: list[Tried] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)
    untried: dict[str, str] = field(default_factory=dict)
    growth: list[Growth] = field(default_factory=list)
    never_ran: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        lines = [f"{self.engine}: {len(self.passed)} checks hold, {len(self.skipped)} do not apply, "
                 f"{len(self.faults)} are broken"]
        lines += [f"  does not apply: {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"  {what} tried: {number:,}" for what, number in self.figures.items()]
        lines += [f"  {grown}" for grown in self.growth]
        lines += [f"  NOT TRIED: {what}: {why}" for what, why in self.untried.items()]
        lines += [f"  NEVER RAN: {file}: lines {said(stretches)}" for file, stretches in self.never_ran.items()]
        for fault in self.faults:
            lines += ["", f"broken: {fault.check}", f"  {fault.property}"]
            lines += [f"  {line}" for line in fault.message.split("\n")]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as `json.dumps` takes it."""
        return {**asdict(replace(self, faults=[])), "ok": self.ok,
                "faults": [{"check": fault.check, "property": fault.property, "error": type(fault.error).__name__,
                            "message": fault.message} for fault in self.faults]}


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


def named_contracts() -> dict[str, type[Contract]]:
    """Every contract that is registered, by name: the kit's from the lowest layer up, then others by name."""
    layers = ["engine", "replay", "cluster", "backup"]
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    found.sort(key=lambda entry: layers.index(entry.name) if entry.name in layers else len(layers))
    return {entry.name: entry.load() for entry in found}


def installed_contracts() -> list[type[Contract]]:
    """The same without the names."""
    return list(named_contracts().values())


def chosen(contracts: Iterable[type[Contract]], only: str | None = None) -> list[tuple[type[Contract], list[str]]]:
    """Each contract with its checks, or with those whose name a pattern fits: `*snapshot*`, `ReplayContract.*`. If the
    environment asks for an example, only with the check that it is of.

    Raises:
        SettingError: no check fits.
    """
    asked, pattern, suites = asked_example(), only or "*", []
    for contract in contracts:
        names = [name for name in contract.checks() if asked is None or asked.check == name]
        suites.append((contract, [name for name in names if fnmatch.fnmatchcase(name, pattern)
                                  or fnmatch.fnmatchcase(f"{contract.__name__}.{name}", pattern)]))
    if only is not None and not any(names for _, names in suites):
        raise SettingError(f"no check fits the pattern {only!r}", hint="*snapshot* fits all that have the word in them")
    return suites


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
                 profile: str | None = None, seed: int | None = None, only: str | None = None,
                 tell: Callable[[str], None] = lambda name: None,
                 told: Callable[[Tried], None] = lambda check: None) -> Report:
    """Check an engine by every property of the contracts.

    Args:
        factory: a workload, or what makes one; a fresh one for each check.
        contracts: which; all that are installed (engine, replay, cluster, backup) if None.
        profile: `default`, `ci` or `nightly`; the environment's if None.
        seed: what the draws start from: one seed, one history. Another each time if None.
        only: a pattern, such as `*snapshot*`: only the checks that it fits.
        tell: called with the name of each check before it runs.
        told: called with each check after it ran.

    Returns:
        What holds, what does not apply and why, and every fault with the shortest history that shows it.

    Raises:
        SettingError: there is no such profile, `factory` makes no workload, or one that is not right, or the
            environment asks for an example that no check can be tried on, or `only` fits no check.
    """
    if profile is not None and profile not in PROFILES:
        raise SettingError(f"profile={profile!r}", hint=f"use one of {', '.join(PROFILES)}")
    report: Report | None = None
    for contract, names in chosen(installed_contracts() if contracts is None else contracts, only):
        members = {"workload": factory if isinstance(factory, Workload) else staticmethod(factory),
                   "profile": contract.profile if profile is None else PROFILES[profile],
                   "seed": contract.seed if seed is None else seed}
        suite = type(contract.__name__, (contract,), members)()
        if (wrong := tried(suite.workload, work := suite.work())) is not None:
            raise wrong
        report = report or Report(work.engine.name, circumstances(
            work.engine, suite.effort.name, current_seed() if suite.seed is None else suite.seed))
        for name in names:
            full = f"{contract.__name__}.{name}"
            tell(full)
            taken()  # what others have counted is not ours
            outcome: Literal["holds", "does not apply", "broken"] = "holds"
            began = time.monotonic()
            try:
                with _unheard():
                    getattr(suite, name)()
            except SkipTest as skip:
                outcome = "does not apply"
                report.skipped[full] = str(skip)
            except Exception as error:
                outcome = "broken"
                report.faults.append(Fault(full, suite.statement(name), error, _told(error, suite.work())))
            else:
                report.passed.append(full)
            ran = Tried(full, suite.statement(name), outcome, suite.examples, round(time.monotonic() - began, 3))
            report.tried.append(ran)
            told(ran)
            for (what, _), number in taken().items():
                report.figures[what] = report.figures.get(what, 0) + number
            report.growth += [grown for _, grown in measured()]
            report.untried |= {noted.what: noted.why for noted in untried()}
        if only is None and asked_example() is None:  # else most lines did not, and that says nothing
            report.never_ran = never_ran(work.engine)
    if report is None:
        raise SettingError("there is no contract to check by", hint="install holdfast[testing], or pass contracts=")
    return report
