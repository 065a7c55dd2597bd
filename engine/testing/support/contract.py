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
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, given, reproduce_failure, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from ...contract.engine import BulkEngine
from ...errors import SettingError
from .attended import Deaths, Hangs, ThreadDied, attended, deaths, doing
from .leak_detection import nothing_left
from .never_ran import watch
from .profiles import PROFILE_VARIABLE, REPRODUCE_VARIABLE, Profile, current_profile, current_seed
from .trial import stands_trial
from .workload import Workload

_BLOB = re.compile(r"@reproduce_failure\('([^']+)', b'([^']*)'\)")
_NOTHING = "draws-nothing"
_HUNG_AT_MOST = 2
"""Checks of one engine: each takes the whole of its time."""
_hung: Counter[str] = Counter()
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
BELOW_ENV = Need("above_env=False", lambda work: not work.above_env,
                 "it writes through the environment, and a simulated disk loses what it does not sync")
CHECKSUMS = Need("checksums", lambda work: work.engine.abilities.checksums,
                 "nothing can tell that its bytes are damaged, so it is not proved that damage is found")

CheckMethod = Callable[[Any], None]


def check(*needs: Need) -> Callable[[Callable[[Any, Workload], None]], CheckMethod]:
    """Makes a method a check of its contract: `@check() def test_…(self, work)`. If the workload's engine does not
    declare what the check needs, it is skipped, with the ability and the reason."""

    def decorate(function: Callable[[Any, Workload], None]) -> CheckMethod:
        def run(self: Contract) -> None:
            asked = asked_example()
            if asked is not None and asked.check != run.__name__:
                raise SkipTest(f"{REPRODUCE_VARIABLE} asks for {asked.check} alone")
            work = self.work()
            self.running, self.drew, self.examples, self._drawn_from = run.__name__, False, 0, None

            def tried() -> None:
                doing("try the workload")
                stands_trial(self.workload, work)
                for need in needs:
                    if not need.met(work):
                        name = getattr(work.engine, "name", work.engine.__name__)
                        raise SkipTest(f"the {name} engine does not declare {need.name!r}: {need.why}")
                if not self.quiet:
                    watch(work.engine)
                with nothing_left():
                    doing("begin")
                function(self, work)

            try:
                self._attend(tried, f"{type(self).__qualname__} on {work.engine.__qualname__}")
            except (SkipTest, SettingError):
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
    examples = 0
    """How many examples the running check was tried on."""
    _drawn_from: int | None = None
    _died: Deaths

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

    def _attend(self, tried: Callable[[], None], of: str) -> None:
        """Try a check to its end, or until it hangs, or a thread dies."""
        if _hung[of] >= _HUNG_AT_MOST:
            raise SkipTest(f"{_HUNG_AT_MOST} checks of {of} hung before, and this one was not tried: mend those first")
        with deaths() as died:
            self._died = died
            try:
                attended(tried, self.effort.still_s)
            except Exception as error:
                _hung[of] += isinstance(error, Hangs)
                if died and isinstance(error, (SkipTest, Flaky)):
                    raise ThreadDied(died.told()) from error
                if died and not isinstance(error, ThreadDied):
                    error.add_note(f"meanwhile {died.told()}")
                raise
            if died:
                raise ThreadDied(died.told())

    def _explain(self, error: Exception, doc: str) -> None:
        """Adds to an error which property it breaks, and how to see it again."""
        notes: list[str] = getattr(error, "__notes__", [])
        blobs = [match for note in notes for match in _BLOB.findall(note)]
        notes[:] = [note for note in notes if not _BLOB.search(note)]
        error.add_note(f"\nwhat is broken: {self.running}\n    {_statement(doc)}")
        drew = "@".join(blobs[0]) if blobs else f"seed={self._number()}" if self.drew else _NOTHING
        error.add_note(f"to see it again: {_command(f'{self.running}@{drew}')}")

    @property
    def effort(self) -> Profile:
        return self.profile or current_profile()

    @property
    def shrinks(self) -> bool:
        """Whether a shorter history is looked for if a check fails."""
        return Phase.shrink in self._settings(1).phases

    def number(self) -> int:
        """What a check that draws without Hypothesis draws from: the seed if there is one, else another each time."""
        self.drew = True
        return self._number()

    def _number(self) -> int:
        """What this check draws from."""
        if self._drawn_from is None:
            asked, given = asked_example(), current_seed() if self.seed is None else self.seed
            given = asked.number if asked is not None and asked.number is not None else given
            drawn = 0 if self.quiet else random.randrange(1 << 32)
            self._drawn_from = drawn if given is None else given
        return self._drawn_from

    def prove(self, claim: Callable[..., None], *, examples: int, **strategies: st.SearchStrategy[Any]) -> None:
        """Call `claim` with what `strategies` draw, `examples` times (in the default profile). It raises if the
        property does not hold."""
        self.drew = True
        test = given(**strategies)(self._once(claim))
        self._configured(test, self._settings(examples))()

    def prove_machine(self, machine: type[RuleBasedStateMachine], *, examples: int) -> None:
        """Run a state machine, `examples` times (in the default profile)."""
        self.drew = True

        @functools.wraps(machine, updated=())
        def once() -> RuleBasedStateMachine:
            self.examples += 1
            return machine()

        run_state_machine_as_test(self._configured(once, None), settings=self._settings(examples))

    def _once(self, claim: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(claim)
        def once(**drawn: Any) -> None:
            doing("an example", drawn)
            self.examples += 1
            before = self._died.count
            claim(**drawn)
            if self._died.count > before:
                raise ThreadDied(self._died.told(before))

        # Each engine's failures are remembered separately.
        once.__qualname__ = f"{type(self).__qualname__}.{self.running}"
        return once

    def _settings(self, examples: int) -> settings:
        phases = [phase for phase in Phase if phase is not Phase.explain]
        common = settings(max_examples=self.effort.examples(examples), stateful_step_count=self.effort.steps,
                          deadline=None, print_blob=True, report_multiple_bugs=False, phases=phases,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                                 HealthCheck.large_base_example])
        if self.quiet:
            return settings(common, derandomize=True, database=None)
        return common if asked_example() is None else settings(common, database=None)

    def _configured(self, test: Any, how: settings | None) -> Any:
        """`test` with the settings, and with the seed or the example that is asked for."""
        if how is not None:
            test = how(test)
        if not self.quiet or self.seed is not None:
            test = seed(self._number())(test)
        asked = asked_example()
        if asked is not None and asked.blob:
            test = reproduce_failure(asked.version, asked.blob)(test)
        return test


class Example(NamedTuple):
    """What a check failed on.

    Attributes:
        check: its name.
        version: of Hypothesis, which made the blob.
        blob: the example; empty if the check failed on none of Hypothesis.
        number: what it drew from, if it did.
    """

    check: str
    version: str = ""
    blob: bytes = b""
    number: int | None = None


def asked_example() -> Example | None:
    """What the environment asks to see again, if anything: no other check is run. Raises `SettingError` if the text is
    malformed, or names a check that does not exist."""
    text = os.environ.get(REPRODUCE_VARIABLE)
    if not text:
        return None
    name, version, blob = (*text.split("@", 2), "", "")[:3]
    hint = f"copy the whole of what a failure has printed after {REPRODUCE_VARIABLE}="
    number = re.fullmatch(r"seed=(\d+)", version)
    if not blob and not number and version != _NOTHING:
        raise SettingError(f"{REPRODUCE_VARIABLE} is {text!r}, and not CHECK@VERSION@EXAMPLE, CHECK@seed=NUMBER, or "
                           f"CHECK@{_NOTHING}", hint=hint)
    if not any(hasattr(contract, name) for contract in _contracts()):
        raise SettingError(f"{REPRODUCE_VARIABLE} names {name!r}, and no contract has such a check", hint=hint)
    return Example(name, version, blob.encode()) if blob else Example(name, number=number and int(number[1]))


def _command(example: str) -> str:
    """The command that shows an example again: it runs one check, and needs nothing that an earlier run has left."""
    variables = f"{REPRODUCE_VARIABLE}={example}"
    if (profile := current_profile().name) != "default":
        variables += f" {PROFILE_VARIABLE}={profile}"
    test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")
    return f"{variables} pytest {shlex.quote(test)}" if test else f"{variables} with the same command"


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
