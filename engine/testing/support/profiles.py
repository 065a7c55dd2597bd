"""How much the contract suites try: three profiles, named in `HOLDFAST_PROFILE` or by pytest's `--holdfast-profile`.

`default` is for every run of an author's tests, `ci` for every commit, `nightly` for as long as it takes. A check
states its own number of examples for `default`; the others multiply it.

The seed is Hypothesis's own, pytest's `--hypothesis-seed`: one seed, one history. `HOLDFAST_REPRODUCE` runs the one
check that has failed, on the example that it printed, or from the number that it drew from. Hypothesis has only a
decorator for that, `@reproduce_failure`, and you cannot decorate a check that you inherit.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import core

from ...errors import SettingError

PROFILE_VARIABLE, SEED_VARIABLE, REPRODUCE_VARIABLE = "HOLDFAST_PROFILE", "HOLDFAST_SEED", "HOLDFAST_REPRODUCE"
_GOLDEN = (5**0.5 - 1) / 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Profile:
    """
    Attributes:
        name: as it is asked for.
        times: what numbers of examples are multiplied by.
        steps: of one run of a state machine.
        kills: processes that are killed, for each engine.
        power_cuts: of a real file system, for each engine that writes below the environment; a quarter for others.
        mutations: of the files of a store, and half as many of a backup's, for each engine.
        crash_states: of a simulated disk, how many are tried at a point that has too many to try all.
        transactions: small ones, one after the other in one state.
        changes: of one transaction.
        stride: one in this many is tried of the faults that cost a run each (an error of the disk, a crash).
        still_s: a check hangs that has not got on for so many seconds: it began no example, transaction, or opening.
    """

    name: str
    times: int
    steps: int
    kills: int
    power_cuts: int
    mutations: int
    crash_states: int
    transactions: int
    changes: int
    stride: int
    still_s: float = 60.0

    def examples(self, count: int) -> int:
        """How many examples of a check that states `count`."""
        return count * self.times

    def some(self, things: Iterable[T]) -> Iterator[T]:
        """One in `stride`, chosen by multiples of the golden ratio, which lie evenly. If kinds take turns, every third
        thing would always be of the same kind."""
        return (thing for number, thing in enumerate(things) if number * _GOLDEN % 1 < 1 / self.stride)


PROFILES = {profile.name: profile for profile in (
    Profile("default", times=1, steps=30, kills=6, power_cuts=4, mutations=40, crash_states=6, transactions=300,
            changes=5000, stride=8),
    Profile("ci", times=1, steps=40, kills=30, power_cuts=28, mutations=2000, crash_states=12,
            transactions=70_000, changes=10_000, stride=3),
    Profile("nightly", times=100, steps=80, kills=2000, power_cuts=2000, mutations=20_000, crash_states=500,
            transactions=70_000, changes=10_000, stride=1),
)}


def current_profile() -> Profile:
    """The one that the environment names, `default` if it names none. Raises `SettingError` for an unknown name."""
    name = os.environ.get(PROFILE_VARIABLE) or "default"
    if name not in PROFILES:
        raise SettingError(f"{PROFILE_VARIABLE} is {name!r}", hint=f"use one of {', '.join(PROFILES)}")
    return PROFILES[name]


def current_seed() -> int | None:
    """The seed of pytest's `--hypothesis-seed`, if any. Raises `SettingError` if it is not a whole number."""
    given: Any = core.global_force_seed  # where Hypothesis's plugin for pytest puts it
    if given is None and (given := os.environ.get(SEED_VARIABLE) or None) is not None:
        warnings.warn(f"{SEED_VARIABLE} and --holdfast-seed go with release 0.3: use --hypothesis-seed of pytest, "
                      "or seed= of check_engine", DeprecationWarning, stacklevel=2)
    try:
        return None if given is None else int(given)
    except ValueError as error:
        raise SettingError(f"the seed is {given!r}", hint="use a whole number") from error
