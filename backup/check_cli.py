"""`holdfast check module:Class`: the contract suites on an engine, without a test file.

The suites are loaded only when the command runs: they need what `holdfast[testing]` installs.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..engine.env import REAL
from ..engine.errors import InvalidInput, SettingError
from .arguments import path_of
from .command_line import Argument, Option
from .terminal import PROGRESS_S, errors_told, say, say_aside

if TYPE_CHECKING:
    from ..engine.testing import Contract, Workload
    from ..engine.testing.support.report import Tried


_WHAT = "name an engine's class, a workload or a function that makes one, or a test class of contracts"


@dataclass(frozen=True, slots=True)
class _Target:
    """What is checked.

    Attributes:
        factory: the workload, or what makes it; other processes can make it, too.
        said: where the workload is from.
        left_out: what of the engine is not tried, with why.
        suite: the author's contract class, if one was named.
    """

    factory: Any
    said: str
    left_out: dict[str, str]
    suite: type[Contract] | None = None


def check(
    target: Annotated[str, Argument(metavar="MODULE:CLASS", help="An engine, a workload or a function that makes "
                                                                 "one, or a test class of contracts.")],
    profile: Annotated[str | None, Option(help="How much is tried: default, ci or nightly.")] = None,
    seed: Annotated[int | None, Option(help="What the draws start from. Default: another number each time; the "
                                            "report says which.")] = None,
    only: Annotated[str | None, Option(metavar="PATTERN", help="Only the checks whose names fit: "
                                                               "'*snapshot*'.")] = None,
    contract: Annotated[list[str] | None, Option(help="Only this contract: engine, replay, cluster, backup, or "
                                                      "another that is installed; may be repeated.")] = None,
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", parser=path_of,
                                             help="Also write the report there, as JSON.")] = None,
    html_file: Annotated[Path | None, Option("--html", metavar="FILE", parser=path_of,
                                             help="Also write it there as a page to hand on.")] = None,
) -> None:
    """Try all that the contracts demand on an engine, and report what holds, what is broken, and what was not tried.
    Exits with 1 if a check is broken."""
    with errors_told(False):
        try:
            from ..engine.testing.support.html_report import save
            from ..engine.testing.support.report import check_engine, chosen
        except ModuleNotFoundError as error:
            raise SettingError(f"the checks need {error.name}, which is not installed",
                               hint="pip install 'holdfast[testing]'") from error
        found = _target(target)
        suites = _contracts(contract or [], found.suite)
        for file in (json_file, html_file):
            if file is not None and not REAL.files.is_directory(file.parent):
                raise InvalidInput(f"{file} cannot be written: {file.parent} is not a directory")
        if seed is None:
            seed = int.from_bytes(REAL.randomness.token(4), "big")
        say(f"{target}: {found.said}")
        total = sum(len(names) for _, names in chosen(suites, only))
        with _quiet(), _progress(total) as (tell, told):
            report = check_engine(found.factory, suites, profile=profile, seed=seed, only=only, tell=tell, told=told)
        report.untried |= found.left_out
        again = ["holdfast", "check", target, *(("--profile", profile) if profile else ())]
        report.faults = [replace(fault, message=fault.message.replace("with the same command", shlex.join(again)))
                         for fault in report.faults]
        say(str(report))
        save(report, json_file, html_file)
    if not report.ok:
        raise SystemExit(1)


def _target(text: str) -> _Target:
    """What an argument names. Raises `SettingError`."""
    from ..engine.contract.engine import Engine
    from ..engine.testing import Contract, Workload
    from ..engine.testing.support.guessed import guess, workload_of, written
    from .engines import named

    found = named(text)
    if isinstance(found, type) and issubclass(found, Contract):
        return _Target(partial(_of, found), f"the workload of {found.__name__}", {}, found)
    if isinstance(found, type) and issubclass(found, Engine):
        if written(found) is not None:
            return _Target(partial(workload_of, found), "the workload beside it", {})
        guessed = guess(found)
        return _Target(partial(workload_of, found), guessed.said, guessed.left_out)
    try:
        made = found if isinstance(found, Workload) else found()
    except Exception as error:  # the author's own code, or nothing that is meant to be called
        raise SettingError(f"{text} gives no workload: {type(error).__name__}: {error}", hint=_WHAT) from error
    if not isinstance(made, Workload):
        raise SettingError(f"{text} gives a {type(made).__name__}, and not a workload", hint=_WHAT)
    return _Target(found, f"this workload of {made.engine.__name__}", {})


def _of(suite: type[Contract]) -> Workload:
    return suite().work()


def _contracts(wanted: list[str], suite: type[Contract] | None) -> list[type[Contract]]:
    """The contracts of these names; without names, the author's own class if one is given, or all that are
    installed. Raises `InvalidInput`."""
    from ..engine.testing.support.report import installed_contracts, named_contracts

    if not wanted:
        return installed_contracts() if suite is None else [suite]
    known = named_contracts()
    for name in wanted:
        if name not in known:
            raise InvalidInput(f"there is no contract {name!r}", hint=f"installed: {', '.join(known)}")
    return [known[name] for name in known if name in wanted]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what stores log of the crashes and errors that the checks inject."""
    logger, nobody = logging.getLogger("holdfast"), logging.NullHandler()
    logger.propagate = False
    logger.addHandler(nobody)
    try:
        yield
    finally:
        logger.removeHandler(nobody)
        logger.propagate = True


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[Tried], None]]]:
    """What to call before each check and after it. A check that is broken is told at once."""
    clock = REAL.clock
    began = said = clock.monotonic()
    done = 0

    def tell(name: str) -> None:
        nonlocal said
        if (now := clock.monotonic()) - said >= PROGRESS_S:
            said = now
            say_aside(f"check {done + 1} of {total}, {now - began:,.0f} s: {name}")

    def told(check: Tried) -> None:
        nonlocal done
        done += 1
        if check.outcome == "broken":
            say_aside(f"broken: {check.check}")

    if sys.stderr is None or not sys.stderr.isatty():
        yield tell, told
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    words = Column(no_wrap=True, overflow="ellipsis")
    with Progress(BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn(),
                  TextColumn("{task.description}", table_column=words),
                  console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("", total=total)

        def shown(check: Tried) -> None:
            told(check)
            bars.advance(bar)

        yield lambda name: bars.update(bar, description=_in_words(name)), shown


def _in_words(check: str) -> str:
    """
    >>> _in_words("EngineContract.test_a_held_view_stays_the_same")
    'a held view stays the same'
    """
    return check.rpartition(".")[2].removeprefix("test_").replace("_", " ")
