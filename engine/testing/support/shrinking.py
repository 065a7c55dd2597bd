"""The shortest history with a fault that is enumerated, and not drawn by Hypothesis, which would shorten it itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .simulated_run import Step

LONGEST_S = 4.0
"""How long a shorter history is looked for: seconds of this process, whatever else the machine does."""
_FEW = 8
"""Operations of a transaction that are left out one by one."""

Fails = Callable[[list[Step]], Exception | None]
"""What a check raises on a history, trying its faults from the earliest on; None if it holds."""


def shortest(steps: list[Step], error: Exception, fails: Fails) -> Exception:
    """What a check raises on the shortest history that it still fails on, as far as one is found within a few seconds:
    without steps, then without operations. `error` is what it raises on `steps`; another kind of error does not
    count."""
    deadline, count = time.process_time() + LONGEST_S, len(steps)
    shorter = True
    while shorter:
        shorter = False
        for candidate in _shorter(steps):
            if time.process_time() > deadline:
                break
            failed = fails(candidate) if _is_history(candidate) else None
            if failed is not None and type(failed) is type(error):
                steps, error, shorter = candidate, failed, True
                break
    error.add_note(f"the shortest history found that fails so has {len(steps)} of {count} steps")
    return error


def _shorter(steps: list[Step]) -> Iterator[list[Step]]:
    """Histories with less, those with the least first."""
    size = len(steps) // 2
    while size:
        for at in range(0, len(steps), size):
            yield steps[:at] + steps[at + size :]
        size //= 2
    # A closing and the opening after it go together.
    yield from (steps[:at] + steps[at + 2 :] for at in range(len(steps)) if steps[at] == ("close",))
    for at, (kind, *lists) in enumerate(steps):
        if kind not in ("commit", "together"):
            continue
        for number, operations in enumerate(lists):
            half = len(operations) // 2
            cuts = [operations[:half], operations[half:]] if half else []
            if len(operations) <= _FEW:
                cuts += [operations[:n] + operations[n + 1 :] for n in range(len(operations))]
            for cut in cuts:
                fewer = (kind, *lists[:number], cut, *lists[number + 1 :])
                yield [*steps[:at], fewer, *steps[at + 1 :]]


def _is_history(steps: list[Step]) -> bool:
    """Whether a store is open at each step that needs it, and only there."""
    is_open = False
    for kind, *_ in steps:
        if is_open == (kind == "open"):
            return False
        is_open = kind != "close"
    return bool(steps)
