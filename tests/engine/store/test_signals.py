"""A signal's handler that raises, Ctrl-C for one, at every place of a call where CPython runs such handlers: others
commit or are refused, closing ends, and nothing that was acknowledged is missing.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from store_kinds import MEMORY, STAGING, Kind, commit, until

import holdfast.engine
from holdfast.engine.contract.plugin import Condition, Plugin
from holdfast.engine.errors import HoldfastError
from holdfast.engine.model.records import LogRange
from holdfast.engine.store.settings import Settings
from holdfast.engine.store.store import Store

Kit = Store[Any, Any]
SETTINGS = Settings(heartbeat_s=0, wait_s=2, segment_bytes=128 << 10)
WHERE = (str(Path(holdfast.engine.__file__).parent), contextlib.__file__)
AFTER = {dis.opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD") if name in dis.opmap}
"""Behind these instructions, and where a function starts, the interpreter looks whether a handler is to be run."""


class Signal(BaseException):
    """What the handler raises."""


class Interrupting:
    """Raises at the place with that number, counted from 1, in the engine's code that this thread runs."""

    def __init__(self, place: int) -> None:
        self._left = place
        self.where = ""
        self._last: tuple[FrameType, int] | None = None

    @property
    def done(self) -> bool:
        return self._left == 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        last, self._last = self._last, None
        if not frame.f_code.co_filename.startswith(WHERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self._last = (frame, frame.f_code.co_code[frame.f_lasti])
        if event == "call" or (event == "opcode" and last is not None and last[0] is frame and last[1] in AFTER):
            self._left -= 1
            if self.done:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise Signal
        return self.trace


class Listening(Plugin):
    """Every commit is acknowledged by a thread of its own."""

    def logged(self, batch: LogRange) -> None:
        return None


def committing(how: Any) -> Callable[[Kind, Kit], None]:
    def act(kind: Kind, store: Kit) -> None:
        with store.transaction(how) as tx:
            kind.write(tx, 1)
        if tx.outcome is not None:
            tx.outcome.result(5)

    return act


def rolling_over(kind: Kind, store: Kit) -> None:
    """Two transactions, the second of which needs a new segment."""
    for _ in range(2):
        with store.transaction() as tx:
            tx.put(b"1", bytes(60_000))


def rolling_back(kind: Kind, store: Kit) -> None:
    with suppress(ValueError), store.transaction() as tx:
        kind.write(tx, 1)
        raise ValueError


SCENES: dict[str, tuple[Kind, Callable[[Kind, Kit], None], list[Plugin]]] = {
    "synced": (STAGING, committing("synced"), []),
    "pipelined": (STAGING, committing("pipelined"), []),
    "relaxed": (STAGING, committing("relaxed"), []),
    "listened to": (STAGING, committing("synced"), [Listening()]),
    "at a barrier": (MEMORY, committing("synced"), []),
    "rolling over": (STAGING, rolling_over, []),
    "promise": (STAGING, lambda kind, store: void(store.complete_until_us()), []),
    "rolled back": (STAGING, rolling_back, []),
    "in bulk": (STAGING, lambda kind, store: void(store.bulk({b"1": b""})), []),
    "checkpoint": (STAGING, lambda kind, store: void(store.checkpoint()), []),
    "closing": (STAGING, lambda kind, store: store.close(), []),
}


def void(_: object) -> None:
    pass


UNSURE = ("rolled back", "checkpoint", "closing", "promise")
"""Scenes that commit nothing."""


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that was opened, and interrupted before anybody knew
@pytest.mark.parametrize("leaving", [False, True], ids=["staying", "leaving"])
@pytest.mark.parametrize("scene", SCENES)
def test_an_interrupt_anywhere_hangs_nobody_and_loses_nothing(scene: str, leaving: bool, tmp_path: Path,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    """The writer lock was never released, whoever led was gone, or those who were to be woken never were. `leaving`:
    the block of the store itself is left with the interrupt, whose traceback keeps everything alive."""
    kind, act, plugins = SCENES[scene]
    caplog.set_level(logging.CRITICAL + 1, "holdfast")  # its records would keep such files for a later test to end
    for place in count(1):
        store = kind.open(tmp_path / f"{place}", settings=SETTINGS, plugins=plugins)
        commit(kind, store, 0)
        interrupting = Interrupting(place)
        acknowledged = {0}
        measuring = sys.gettrace()  # coverage
        gc.disable()  # it would end stores of earlier places here, and be interrupted in what ends them
        sys.settrace(interrupting.trace)
        try:
            act(kind, store)
            acknowledged |= set() if scene in UNSURE else {1}
        except (Signal, HoldfastError) as error:
            sys.settrace(None)
            if leaving:
                store.__exit__(type(error), error, error.__traceback__)
        finally:
            sys.settrace(measuring)
            gc.enable()

        def others(store: Kit = store, acknowledged: set[int] = acknowledged) -> None:
            with suppress(HoldfastError):
                commit(kind, store, 2)
                acknowledged.add(2)

        for call in (others, store.close):
            thread = threading.Thread(target=call, daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive(), f"hangs after an interrupt in {interrupting.where}"
        with kind.open(tmp_path / f"{place}", settings=SETTINGS) as again:
            assert acknowledged <= kind.numbers(again) <= {0, 1, 2}, interrupting.where
        if not interrupting.done:
            break
    assert place > 10, "the places were not found"
    gc.collect()


class Held(Plugin):
    """Acknowledges when somebody says so."""

    def __init__(self) -> None:
        self.conditions: list[Future[None]] = []

    def logged(self, batch: LogRange) -> Condition:
        self.conditions.append(Future())
        return Condition(met=self.conditions[-1], timeout=0.5, gates_publication=False, name="held")


def test_an_interrupt_as_a_condition_is_met_leaves_nobody_waiting(tmp_path: Path) -> None:
    """It was not noticed, or the watermarks had moved and those who wait for them slept on: what is met was not looked
    at when its time was over."""
    for place in count(1):
        plugin = Held()
        store = STAGING.open(tmp_path / f"{place}", settings=SETTINGS, plugins=[plugin])

        def waiting(store: Kit = store) -> None:
            with suppress(HoldfastError):
                commit(STAGING, store, 1)

        thread = threading.Thread(target=waiting, daemon=True)
        thread.start()
        until(lambda: store._watermarks.open_conditions() > 0)  # noqa: B023  # asked here
        time.sleep(0.01)  # what watches it is added a moment later
        interrupting = Interrupting(place)
        measuring = sys.gettrace()
        sys.settrace(interrupting.trace)
        try:
            plugin.conditions[0].set_result(None)
        except Signal:
            pass
        finally:
            sys.settrace(measuring)
        thread.join(10)
        assert not thread.is_alive(), f"hangs after an interrupt in {interrupting.where}"
        store.close()
        if not interrupting.done:
            break
    assert place > 5, "the places were not found"
