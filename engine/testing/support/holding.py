"""A plugin that holds acknowledgement, as it is told to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal, Self

from ...contract.plugin import Condition, Plugin
from ...model.records import LogRange
from .modelled import PATIENCE_S, Refused

SHORT_S = 0.02
"""The time-out of conditions that are to be late."""


class Holding(Plugin):
    """Answers each range with a condition: met at once, or failed, or open until `let_go`, as `answer` says. `look` is
    called before it answers. As a context manager it calls `let_go` at the end, so that the store can be closed."""

    def __init__(self, *, gates: bool) -> None:
        self.gates = gates
        self.answer: Literal["met", "failed", "open"] = "met"
        self.look: Callable[[LogRange], None] = lambda batch: None
        self._open: list[Future[None]] = []

    def logged(self, batch: LogRange) -> Condition:
        self.look(batch)
        met: Future[None] = Future()
        if self.answer == "met":
            met.set_result(None)
        elif self.answer == "failed":
            met.set_exception(Refused())
        else:
            self._open.append(met)
        timeout = SHORT_S if self.answer == "open" else PATIENCE_S
        return Condition(met=met, timeout=timeout, gates_publication=self.gates, name="the check")

    def let_go(self) -> None:
        self.answer = "met"
        while self._open:
            self._open.pop(0).set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()
