"""A plugin under watch: everything a store tells it passes through here, and so does all that it answers.

A `Watch` is a plugin that hands each moment on to the plugin that it holds, and notes what comes of it: what was
raised, how long it took, what became of the transaction, which conditions it asked for and in which order they ended. A
`WatchedStore` notes, and stops, transactions that begin within a hook.

Whatever a plugin does, a check must end: `bounded` runs each in a thread of its own. If that does not return, it says
which hook the plugin is in.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...contract.plugin import Condition, Fact, Obstacle, Plugin, StoreHandle
from ...contract.transaction import Durability, Transaction
from ...errors import InvalidInput
from ...model.positions import Position
from ...model.records import Attachment, LogRange, Record, SegmentInfo
from ...store.store import Store
from ...store.write_path import TransactionScope
from ..support.interleave import each_step
from .forking import watch_removals

_MAY_COMMIT = frozenset({"opened", "closing"})


class Stuck(BaseException):
    """A check that does not end. Not an `Exception`, so that Hypothesis does not try it a hundred times more."""


def bounded(seconds: float, work: Callable[[], None], watches: Callable[[], Sequence[Watch]]) -> None:
    """Do `work` in a thread of its own, and raise what it raises.

    Raises:
        Stuck: it has not ended within `seconds`. The message says in which hooks the plugins are.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="holdfast-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        lines = [line for watch in watches() for line in watch.whereabouts()]
        raise Stuck("\n".join([f"the store did not get on within {seconds:g} s", *lines]))
    if raised:
        raise raised[0]


class Watch(Plugin):
    """See the module's text.

    Attributes:
        plugin: the one that is watched.
        raised: moments, and what was raised at each.
        slowest: the longest that each moment took, in seconds.
        changed: moments at which the transaction's payload became another one.
        began: moments within which the plugin began a transaction.
        answers: what `logged` returned for each range, in order.
        disorder: what was wrong with the order of its conditions, in words.
        shown: what was published while its condition was open, in words.
        vetoes: what `pruning` returned, other than None.
        removed: what a child removed or renamed in `forked`, in words.
        told: every moment, in order.
        steps: while it is not None, how many instructions the hooks took.
    """

    def __init__(self, plugin: Plugin, patience_s: float) -> None:
        """`patience_s`: no condition is waited for longer than this."""
        self.plugin = plugin
        self.patience_s = patience_s
        self.raised: list[tuple[str, BaseException]] = []
        self.slowest: dict[str, float] = {}
        self.changed: list[str] = []
        self.began: list[str] = []
        self.answers: list[tuple[LogRange, Any]] = []
        self.disorder: list[str] = []
        self.shown: list[str] = []
        self.vetoes: list[Any] = []
        self.removed: list[str] = []
        self.told: list[str] = []
        self.steps: int | None = None
        self._inside: dict[int, list[str]] = {}
        self._lock = threading.Lock()
        self._met = 0

    def whereabouts(self) -> list[str]:
        """Which hooks the plugin is in now, and which of its conditions are open, a line each."""
        lines = []
        frames = sys._current_frames()
        for ident, moments in list(self._inside.items()):
            if moments:
                stack = traceback.extract_stack(frames.get(ident))
                ours = max((i for i, frame in enumerate(stack) if frame.filename == __file__), default=-1)
                lines.append(f"the plugin has not returned from `{moments[-1]}`:")
                lines += [f"    {Path(f.filename).name}:{f.lineno}: {f.line}" for f in stack[ours + 1 :][:3]]
        for batch, answer in self.answers:
            if isinstance(answer, Condition) and not answer.met.done():
                lines.append(f"its condition {answer.name!r} for {_named(batch)} is open")
        return lines

    def must_not_have_raised(self, *moments: str) -> None:
        """Fail if the plugin raised at one of `moments`; at any moment, if none is named."""
        for moment, error in self.raised:
            if not moments or moment in moments:
                raise AssertionError(f"`{moment}` raised {error!r}") from error

    def inside(self) -> str | None:
        """The moment that this thread is in, if any."""
        moments = self._inside.get(threading.get_ident())
        return moments[-1] if moments else None

    def _hand_on(self, moment: str, *args: Any) -> Any:
        ident = threading.get_ident()
        self.told.append(moment)
        inside = self._inside.setdefault(ident, [])
        inside.append(moment)
        started = time.monotonic()
        counting = nullcontext() if self.steps is None else each_step(self._step)
        try:
            with counting:
                return getattr(self.plugin, moment)(*args)
        except BaseException as error:
            self.raised.append((moment, error))
            raise
        finally:
            inside.pop()
            self.slowest[moment] = max(self.slowest.get(moment, 0.0), time.monotonic() - started)

    def _step(self) -> None:
        assert self.steps is not None
        self.steps += 1

    def _with_transaction(self, moment: str, tx: Transaction) -> None:
        before = tx.payload()
        self._hand_on(moment, tx)
        if tx.payload() != before:
            self.changed.append(moment)

    def opened(self, store: StoreHandle) -> None:
        self._hand_on("opened", store)

    def closing(self, store: StoreHandle) -> None:
        self._hand_on("closing", store)

    def committing(self, tx: Transaction) -> None:
        self._with_transaction("committing", tx)

    def final(self, tx: Transaction) -> None:
        self._with_transaction("final", tx)

    def logged(self, batch: LogRange) -> Condition | None:
        answer = self._hand_on("logged", batch)
        self.answers.append((batch, answer))
        if answer is None or unsound(answer) is not None:  # noted, and kept from the store
            return None
        assert isinstance(answer, Condition)
        answer.met.add_done_callback(lambda met: self._ended(batch, met))
        return replace(answer, timeout=min(answer.timeout, self.patience_s))

    def _ended(self, batch: LogRange, met: Future[Any]) -> None:
        """A condition ended. If a later one was met before, this one counted as met, and must not end now."""
        failed = met.cancelled() or met.exception() is not None
        with self._lock:
            if batch.last < self._met:
                if "closing" in self.told:  # what is left is given up
                    return
                self.disorder.append(f"the condition for {_named(batch)} {'failed' if failed else 'was met'} after one "
                                     f"for later transactions, up to {self._met}, had been met")
            elif not failed:
                self._met = batch.last

    def published(self, records: Sequence[Record]) -> None:
        answers = list(self.answers)
        met = max((batch.last for batch, answer in answers if _is_met(answer)), default=0)
        for batch, answer in answers:
            early = [r.txid for r in records if max(batch.first, met + 1) <= r.txid <= batch.last]
            if early and isinstance(answer, Condition):
                self.shown.append(f"transaction {early[0]} was published while its condition {answer.name!r} was open")
        self._hand_on("published", records)

    def checkpointed(self, position: Position) -> None:
        self._hand_on("checkpointed", position)

    def sealed(self, segment: SegmentInfo) -> None:
        self._hand_on("sealed", segment)

    def pruning(self, segments: Sequence[SegmentInfo]) -> str | None:
        answer = self._hand_on("pruning", segments)
        if answer is not None:
            self.vetoes.append(answer)
        return answer  # type: ignore[no-any-return]

    def fault(self, error: BaseException) -> None:
        self._hand_on("fault", error)

    def beginning(self) -> Obstacle | None:
        obstacle: Obstacle | None = self._hand_on("beginning")
        return obstacle

    def facts(self) -> Sequence[Fact]:
        facts: Sequence[Fact] = self._hand_on("facts")
        return facts

    def attached(self, attachment: Attachment) -> None:
        self._hand_on("attached", attachment)

    def role_changed(self, role: str, epoch: int) -> None:
        self._hand_on("role_changed", role, epoch)

    def forked(self) -> None:
        watch_removals(self.removed, lambda: self.inside() == "forked")
        self._hand_on("forked")


def _named(batch: LogRange) -> str:
    return f"transaction {batch.first}" if batch.first == batch.last else f"transactions {batch.first} to {batch.last}"


def _is_met(answer: Any) -> bool:
    return (isinstance(answer, Condition) and answer.met.done() and not answer.met.cancelled()
            and answer.met.exception() is None)


def unsound(answer: Any) -> str | None:
    """What is wrong with what `logged` returned, if anything."""
    if answer is None:
        return None
    if not isinstance(answer, Condition):
        return f"it returned {answer!r}, which is not a Condition"
    if not isinstance(answer.met, Future):
        return f"`met` is {answer.met!r}, not a concurrent.futures.Future"
    if isinstance(answer.timeout, bool) or not isinstance(answer.timeout, (int, float)) or not (
            0 < answer.timeout < math.inf):
        return f"its time-out is {answer.timeout!r}: a commit must not wait for ever, nor give up before it began"
    if not isinstance(answer.name, str) or not answer.name:
        return f"its name is {answer.name!r}: an error about it would name nothing"
    if not isinstance(answer.gates_publication, bool):
        return f"`gates_publication` is {answer.gates_publication!r}, neither True nor False"
    return None


class WatchedStore(Store[Any, Any]):
    """A store in which a transaction that begins within a watched hook is noted and refused, before it dead-locks."""

    def transaction(self, durability: Durability | None = None) -> TransactionScope[Any]:
        self._refuse_within_hooks()
        return super().transaction(durability)

    def bulk(self, load: Any) -> int:
        self._refuse_within_hooks()
        return super().bulk(load)

    def _refuse_within_hooks(self) -> None:
        for watch in self.hooks.plugins:
            moment = watch.inside() if isinstance(watch, Watch) else None
            if moment is not None and moment not in _MAY_COMMIT:
                assert isinstance(watch, Watch)
                watch.began.append(moment)
                raise InvalidInput(f"a transaction began within `{moment}`", hint="hooks look; they do not commit")
