"""The faults of a simulated history."""

from __future__ import annotations

import random  # noqa: TID251  a history is drawn from its seed
from collections.abc import Collection
from typing import NamedTuple

KINDS = ("crash", "busy_crash", "pause", "one_way", "split", "isolate", "coordinator", "coordinator_of_some", "swaps",
         "loss", "duplication", "delay", "slow_disk", "clock", "switch_over", "remove", "add", "tag", "paused", "wipe")
"""`World` has a method for each."""
_WEIGHTS = (3, 4, 3, 2, 2, 2, 1, 2, 3, 1, 1, 2, 2, 1, 3, 1, 1, 1, 1, 1)


class Fault(NamedTuple):
    """A fault. `at`, `lasts`: simulated seconds. `member`: which one, counted among those that there are then; 5 is
    the primary. `more`: 0 to 15, what else the kind asks for."""

    at: float
    kind: str
    member: int
    lasts: float
    more: int


def draw(rng: random.Random, seconds: float, every: float, kinds: Collection[str] = KINDS) -> list[Fault]:
    """Faults for `seconds`, of these kinds, one in `every` seconds on average."""
    weights = [weight if kind in kinds else 0 for kind, weight in zip(KINDS, _WEIGHTS, strict=True)]
    faults = []
    at = rng.uniform(0.0, 2 * every)
    while at < seconds:
        kind = rng.choices(KINDS, weights)[0]
        faults.append(Fault(at, kind, min(rng.randrange(8), 5), rng.choice((0.3, 2.0, 8.0, 20.0)) * rng.random(),
                            rng.randrange(16)))
        at += rng.expovariate(1 / every)
    return faults
