"""What must be refused: `with raises(RolledBack, "a vetoed commit"):` for checks that run without pytest, and the
changes of a transaction that takes no more."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import StoreClosed
from .workload import Operation, Workload


class Raised:
    """What a block raised, once it has: `error`."""

    error: Any = None


@contextmanager
def raises(kinds: type[BaseException] | tuple[type[BaseException], ...], what: str) -> Iterator[Raised]:
    """The block must raise one of `kinds`. `what` names the block in the `AssertionError` if it raises nothing."""
    raised = Raised()
    try:
        yield raised
    except kinds as error:
        raised.error = error
        return
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    raise AssertionError(f"{what} raised nothing, and must raise {names}")


def refuses_changes(work: Workload, tx: Any, model: Any, operations: Sequence[Operation], what: str, *,
                    answers: bool = True) -> None:
    """A transaction must refuse every change with `StoreClosed`: what certainly adds something, and each of
    `operations` that would change what it sees.

    Args:
        tx, model: the transaction, and the model of what it sees.
        what: names the transaction.
        answers: it must still answer as the model does. The contract does not say what an ended transaction answers.
    """
    before = work.expected(model)
    for attempt in (work.numbered(9), *([operation] for operation in operations)):
        tried = model.copy()
        try:
            work.run(tx, tried, attempt)
        except StoreClosed:
            continue
        except AssertionError:
            if answers:
                raise
            continue
        assert work.expected(tried) == before, (
            f"{what} took {reprlib.repr(attempt[0])}, and must raise StoreClosed (what a transaction changes must be "
            "in attributes of its own)")
