"""The frame of the contract suites: what a check is, how it is run, and what it says when it fails.

A contract is a class whose checks are its `test_…` methods, so that pytest runs them as they are and `check_engine`
runs them without it. Each proves one property, which its docstring states. Hypothesis draws what a check is tried on;
a failure shows the shortest history that Hypothesis found, the property that it breaks, and a line that shows it again.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, given, reproduce_failure, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ...contract.engine import BulkEngine
from ...errors import SettingError
from .profiles import REPRODUCE_VARIABLE, Profile, current_profile, current_seed
from .workload import Workload

_BLOB = re.compile(r"@reproduce_failure\('([^']+)', b'([^']*)'\)")
_MEMORY = Path("/dev/shm")
_MEMORY_NEEDED = 512 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """An optional ability that a check is about. `why` says what cannot be checked without it."""

    name: str
    met: Callable[[Workload], bool]
    why: str


STAGING = Need("staging", lambda work: work.watermarks,
               "without it nothing is appended that is not yet published")
BULK = Need("bulk loads", lambda work: issubclass(work.engine, BulkEngine), "it takes none")
STABLE_IMAGE = Need("stable image", lambda work: work.engine.abilities.image == "stable",
                    "its image moves, and is checked as one that does")
READ_ONLY_REPLAY = Need("replays_in_memory", lambda work: work.engine.abilities.replays_in_memory,
                        "a read-only opening works on a scratch copy")
BACKGROUND_CHECKPOINT = Need("background_checkpoint", lambda work: work.engine.abilities.background_checkpoint,
                             "the kit lets nothing run beside its checkpoints")
ABOVE_ENV = Need("above_env", lambda work: work.above_env,
                 "it writes past the environment, so it cannot run on a simulated disk; it is killed instead")
CHECKSUMS = Need("checksums", lambda work: work.engine.abilities.checksums,
                 "nothing can tell that its bytes are damaged, so it is not proved that damage is found")

CheckMethod = Callable[[Any], None]


def check(*needs: Need) -> Callable[[Callable[[Any, Workload], None]], CheckMethod]:
    """Makes a method a check of its contract: `@check() def test_…(self, work)`. If the workload's engine does not
    declare what the check needs, it is skipped, with the ability and the reason."""

    def decorate(function: Callable[[Any, Workload], None]) -> CheckMethod:
        def run(self: Contract) -> None:
            work = self.work()
            for need in needs:
                if not need.met(work):
                    name = getattr(work.engine, "name", work.engine.__name__)
                    raise SkipTest(f"the {name} engine does not declare {need.name!r}: {need.why}")
            asked_example()  # here, so that a wrong one is reported and not ignored
            self.running, self.drew = run.__name__, False
            try:
                function(self, work)
            except SkipTest:
                raise
            except Exception as error:
                self._explain(error, run.__doc__ or "")
                raise

        # Not functools.wraps: pytest would take `work` for a fixture.
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(run, name, getattr(function, name))
        run.is_check = True  # type: ignore[attr-defined]
        return run

    return decorate


def _statement(doc: str) -> str:
    return re.sub(r"\s+", " ", doc.strip().split("\n\n")[0])


class Contract:
    """Base of the contract suites.

    Attributes:
        workload: what to do to the engine: a `Workload`, or a class or function that makes one.
        profile: how much is tried; the environment's if None.
        seed: what the draws start from; that of `--hypothesis-seed` if None.
        quiet: nothing is remembered between runs, and one run is like the next. For tests of the suite itself.
    """

    workload: ClassVar[Any]
    profile: ClassVar[Profile | None] = None
    seed: ClassVar[int | None] = None
    quiet: ClassVar[bool] = False
    running = ""
    drew = False

    def work(self) -> Workload:
        """A workload for one check."""
        if not hasattr(self, "workload"):
            raise SettingError(f"{type(self).__name__} has no workload", hint="set workload = KeyValues(…)")
        made = self.workload if isinstance(self.workload, Workload) else self.workload()
        if not isinstance(made, Workload):
            raise SettingError(f"{type(self).__name__}.workload gives a {type(made).__name__}",
                               hint="give a Workload (KeyValues, or a subclass of your own), or what makes one")
        return made

    @classmethod
    def checks(cls) -> list[str]:
        """The names of its checks, in the order they are written."""
        names: dict[str, None] = {}
        for base in reversed(cls.__mro__):
            names.update(dict.fromkeys(n for n, member in vars(base).items() if hasattr(member, "is_check")))
        return list(names)

    @classmethod
    def statement(cls, name: str) -> str:
        """The property that a check proves, in words."""
        return _statement(getattr(cls, name).__doc__ or "")

    def _explain(self, error: Exception, doc: str) -> None:
        """Adds to an error which property it breaks, and how to see it again."""
        notes: list[str] = getattr(error, "__notes__", [])
        blobs = [match for note in notes for match in _BLOB.findall(note)]
        notes[:] = [note for note in notes if not _BLOB.search(note)]
        error.add_note(f"\nwhat is broken: {self.running}\n    {_statement(doc)}")
        if blobs:
            version, blob = blobs[0]
            error.add_note(f"to see it again: {REPRODUCE_VARIABLE}={self.running}@{version}@{blob} "
                           "with the same command")
        elif not self.drew:
            error.add_note(f"to see it again: pytest -k {self.running} (it draws nothing)")

    @property
    def effort(self) -> Profile:
        return self.profile or current_profile()

    def number(self) -> int:
        """What a check that draws without Hypothesis draws from: the seed if there is one, else another each time."""
        self.drew = True
        number = 0 if self.quiet else self._seed()
        return random.randrange(1 << 32) if number is None else number

    def _seed(self) -> int | None:
        return current_seed() if self.seed is None else self.seed

    def prove(self, claim: Callable[..., None], *, examples: int, **strategies: st.SearchStrategy[Any]) -> None:
        """Call `claim` with what `strategies` draw, `examples` times (in the default profile). It raises if the
        property does not hold."""
        self.drew = True
        test = given(**strategies)(self._once(claim))
        self._configured(test, self._settings(examples))()

    def prove_machine(self, machine: type[RuleBasedStateMachine], *, examples: int) -> None:
        """Run a state machine, `examples` times (in the default profile)."""
        self.drew = True
        self._configured(machine, None)
        run_state_machine_as_test(machine, settings=self._settings(examples))

    def _once(self, claim: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(claim)
        def once(**drawn: Any) -> None:
            claim(**drawn)

        # Each engine's failures are remembered separately.
        once.__qualname__ = f"{type(self).__qualname__}.{self.running}"
        return once

    def _settings(self, examples: int) -> settings:
        phases = [phase for phase in Phase if phase is not Phase.explain]
        common = settings(max_examples=self.effort.examples(examples), stateful_step_count=self.effort.steps,
                          deadline=None, print_blob=True, report_multiple_bugs=False, phases=phases,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                                 HealthCheck.large_base_example])
        return settings(common, derandomize=True, database=None) if self.quiet else common

    def _configured(self, test: Any, how: settings | None) -> Any:
        """`test` with the settings, and with the seed or the example that is asked for."""
        if how is not None:
            test = how(test)
        number = self._seed()
        if number is not None:
            test = seed(number)(test)
        example = asked_example()
        if example is not None and example.check == self.running:
            test = reproduce_failure(example.version, example.blob)(test)
        return test


class Example(NamedTuple):
    """An example that a check failed on: the check's name, and the version of Hypothesis that knows the blob."""

    check: str
    version: str
    blob: bytes


def asked_example() -> Example | None:
    """The one example that the environment asks to see again, if any. Raises `SettingError` if the text is malformed,
    or names a check that does not exist."""
    text = os.environ.get(REPRODUCE_VARIABLE)
    if not text:
        return None
    name, version, blob = (*text.split("@", 2), "", "")[:3]
    hint = f"copy the whole of what a failure has printed after {REPRODUCE_VARIABLE}="
    if not version or not blob:
        raise SettingError(f"{REPRODUCE_VARIABLE} is {text!r}, and not CHECK@VERSION@EXAMPLE", hint=hint)
    if not any(hasattr(contract, name) for contract in _contracts()):
        raise SettingError(f"{REPRODUCE_VARIABLE} names {name!r}, and no contract has such a check", hint=hint)
    return Example(name, version, blob.encode())


def _contracts(base: type[Contract] = Contract) -> Iterator[type[Contract]]:
    """Every contract that is loaded."""
    for contract in base.__subclasses__():
        yield contract
        yield from _contracts(contract)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one example, in memory if there is room: what is tried there does not need a disk."""
    where = None
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_NEEDED:
        where = _MEMORY
    path = Path(tempfile.mkdtemp(prefix="holdfast-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path)
