"""A check that hangs is told of, and so is a thread that dies meanwhile: nothing is waited for without end.

Each check runs in a thread of its own, and the thread that called it waits. A lock that is never released cannot be
taken back from outside, nor can a call in a library be ended. So a thread that hangs is left behind, after it was asked
to end, and the suite goes on.

What counts is not how long a check takes but how long it has not got on: `doing` is called at each example, and before
each transaction, checkpoint and opening. Therefore the limit can be short, and a slow machine is not blamed. If code
outside Python keeps the interpreter to itself, no thread can say anything. Then `faulthandler` shows the stacks after
twice the time, and ends the process.
"""

from __future__ import annotations

import contextvars
import ctypes
import faulthandler
import reprlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .whereabouts import whereabouts

_WOKEN_NS = 1_000_000
_UNWIND_S = 1.0
_DEBUGGERS = frozenset({"bdb", "pdb", "pydevd"})
_here = threading.local()
_terminal = -1


class Hangs(AssertionError):
    """A check does not get on."""


class ThreadDied(AssertionError):
    """A thread died of an exception while a check ran."""


class Abandoned(BaseException):
    """Raised in a check that hangs, wherever it is. Not an `Exception`, so that Hypothesis does not try it again."""


class _Attended:
    """A check that runs. `what`: what it does now, `since` when."""

    def __init__(self) -> None:
        self.what: tuple[Any, ...] = ()
        self.since = time.monotonic()


def doing(*what: Any) -> None:
    """Note what the check in this thread does now, for the case that it hangs there; it has got on until here."""
    attended: _Attended | None = getattr(_here, "attended", None)
    if attended is not None:
        attended.what, attended.since = what, time.monotonic()


def attended(check: Callable[[], None], limit_s: float) -> None:
    """Run a check in a thread of its own, and raise what it raises.

    Raises:
        Hangs: it did not get on for `limit_s` seconds. The message says what it was doing, and where every
            thread is.
    """
    state, raised = _Attended(), []

    def run() -> None:
        _here.attended = state
        try:
            check()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="holdfast-check", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            faulthandler.dump_traceback_later(2 * limit_s + 5, exit=True, file=_stderr())
            still = time.monotonic() - state.since
            if still < limit_s or _debugged(thread):
                thread.join(max(1.0, limit_s - still) if still < limit_s else limit_s)
                continue
            faulthandler.cancel_dump_traceback_later()  # this thread runs, so nothing keeps the interpreter to itself
            said = _said(state, limit_s, thread)
            faulthandler.dump_traceback_later(2 * limit_s + 5, exit=True, file=_stderr())
            _abandon(thread)
            raise Hangs(said)
    except KeyboardInterrupt:
        _abandon(thread)
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
    if raised:
        try:
            raise raised[0]
        finally:
            raised.clear()  # the traceback holds this frame


def _said(state: _Attended, limit_s: float, thread: threading.Thread) -> str:
    short = reprlib.Repr()
    short.maxother = short.maxstring = 60
    doing = f", since it began: {' '.join(map(short.repr, state.what))}" if state.what else ""
    return f"the check hangs: it has not got on for {limit_s:g} s{doing}\n{whereabouts(thread)}"


def _debugged(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return any(each.f_globals.get("__name__") in _DEBUGGERS for each, _ in traceback.walk_stack(frame))


def _abandon(thread: threading.Thread) -> None:
    """Ask a thread to end, which it does if it runs Python. One that waits is left behind, and not asked: in CPython
    3.11, an exception that waits for its thread keeps a traced thread, as under coverage, from getting on."""
    deadline = time.monotonic() + _UNWIND_S
    while thread.is_alive() and time.monotonic() < deadline and _runs(thread):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Abandoned))
        thread.join(0.1)


def _runs(thread: threading.Thread) -> bool:
    """Whether a thread uses processor time now, more than a thread does that wakes up to wait again. If the system does
    not tell, it counts as if it did."""
    times = Path(f"/proc/self/task/{thread.native_id}/schedstat")
    try:
        before = int(times.read_text().split()[0])
        time.sleep(0.05)
        return int(times.read_text().split()[0]) - before > _WOKEN_NS
    except OSError:
        return True


def tell_on(descriptor: int) -> None:
    """Where stacks go when the process is ended: a descriptor that pytest does not capture."""
    global _terminal
    _terminal = descriptor


def _stderr() -> int:
    if _terminal >= 0:
        return _terminal
    try:
        return sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    except (OSError, ValueError):
        return 2


# --- threads that die ------------------------------------------------------------------------------------------------


class Deaths:
    """The threads of this process that died of an exception, since it was made."""

    def __init__(self) -> None:
        self._told: list[str] = []

    def note(self, died: threading.ExceptHookArgs) -> None:
        if died.exc_type is SystemExit:
            return
        name = died.thread.name if died.thread is not None else "that is gone"
        lines = traceback.format_exception(died.exc_type, died.exc_value, died.exc_traceback)
        self._told.append(f"the thread {name!r} died of an exception:\n{''.join(lines).rstrip()}")

    @property
    def count(self) -> int:
        return len(self._told)

    def __bool__(self) -> bool:
        return bool(self._told)

    def told(self, since: int = 0) -> str:
        """What died and why, after the first `since`."""
        return "\n".join(self._told[since:])


@contextmanager
def deaths() -> Iterator[Deaths]:
    """Within the block, threads that die are noted and not printed."""
    noted, before = Deaths(), threading.excepthook
    threading.excepthook = noted.note
    try:
        yield noted
    finally:
        threading.excepthook = before
