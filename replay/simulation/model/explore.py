"""Breadth-first search through all states of a model. The first violation that it finds has the shortest history."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Violation(Exception):
    """An invariant does not hold. `trace`: the steps that lead there."""

    def __init__(self, invariant: str, trace: list[str]) -> None:
        super().__init__(f"{invariant}, after {len(trace)} steps:\n" + "\n".join(
            f"{number:>3}. {step}" for number, step in enumerate(trace, 1)))
        self.invariant = invariant
        self.trace = trace


class Explored(NamedTuple):
    """What a search saw. `complete`: it saw every state within the bounds of the model."""

    states: int
    steps: int
    depth: int
    complete: bool


class Broken(Exception):
    """Raised by a model's step: the invariant that the step breaks."""


def explore(initial: S, successors: Callable[[S], Iterator[tuple[str, S | Broken]]], *,
            most_states: int | None = None) -> Explored:
    """Visit every state once. O(states and steps); about 300 bytes of memory for each state.

    Args:
        initial: the first state.
        successors: of a state: what each step is called, and the state after it, or the invariant that it breaks.
        most_states: give up after so many; the result is then not complete.

    Raises:
        Violation: with the shortest history.
    """
    before: dict[S, tuple[S, str] | None] = {initial: None}
    layer, steps, depth = [initial], 0, 0
    while layer:
        following = []
        for state in layer:
            for name, after in successors(state):
                steps += 1
                if isinstance(after, Broken):
                    raise Violation(str(after), [*_trace(before, state), name])
                if after not in before:
                    before[after] = state, name
                    following.append(after)
            if most_states is not None and len(before) >= most_states:
                return Explored(len(before), steps, depth, False)
        layer = following
        depth += 1
    return Explored(len(before), steps, depth, True)


def _trace(before: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    trace = []
    while (found := before[state]) is not None:
        state, name = found
        trace.append(name)
    return trace[::-1]
