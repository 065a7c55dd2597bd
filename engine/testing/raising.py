"""What must be refused: `with raises(RolledBack, "a vetoed commit"):` for checks that run without pytest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Raised:
    """What a block raised, once it has: `error`."""

    error: Any = None


@contextmanager
def raises(kinds: type[BaseException] | tuple[type[BaseException], ...], what: str) -> Iterator[Raised]:
    """The block must raise one of `kinds`. `what` names the block in the `AssertionError` where it raises nothing."""
    raised = Raised()
    try:
        yield raised
    except kinds as error:
        raised.error = error
        return
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    raise AssertionError(f"{what} raised nothing, and must raise {names}")
