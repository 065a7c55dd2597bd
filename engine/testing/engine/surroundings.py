"""What is not the engine's: the process that it runs in, and the directories beside its own.

An engine is a guest. What it sets for the whole process, everybody else in it gets too, and nobody looks for the cause
in a storage engine.
"""

from __future__ import annotations

import decimal
import gc
import io
import locale
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ..support.contract import Contract, check, scratch
from ..support.crash_images import read_image
from ..support.growth import Life
from ..support.workload import Workload

_UMASK = 0o027
_SETTINGS: dict[str, Callable[[], Any]] = {
    "the working directory": os.getcwd,
    "the environment": lambda: dict(os.environ),
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the time zone": lambda: time.tzname,
    "decimal's context": lambda: (decimal.getcontext().prec, decimal.getcontext().rounding),
    "the garbage collection": lambda: (gc.isenabled(), gc.get_threshold()),
    "the recursion limit": sys.getrecursionlimit,
    "the switch interval of threads": sys.getswitchinterval,
    "the time-out of sockets": socket.getdefaulttimeout,
    "sys.path": lambda: list(sys.path),
    "sys.stdout or sys.stderr": lambda: (sys.stdout, sys.stderr),
    "the hook for exceptions": lambda: (sys.excepthook, sys.unraisablehook, threading.excepthook),
    "the root logger": lambda: (logging.root.level, list(logging.root.handlers)),
}


class SurroundingsChecks(Contract):
    """See the module's text."""

    @check()
    def test_the_process_stays_as_it_is(self, work: Workload) -> None:
        """An engine leaves alone what belongs to the whole process: umask, signal handlers, environment, working
        directory, locale, time zone, the seed of `random`, decimal's context, garbage collection, limits and time-outs,
        hooks, the root logger. It prints nothing, leaves nothing beside its directory, nor among temporary files, and
        gives nobody access to its files whom the umask does not."""
        operations = work.examples
        said = io.StringIO()
        with scratch() as place, scratch() as temporary, redirect_stdout(said), _unusual(temporary) as called:
            before = {what: setting() for what, setting in _SETTINGS.items()}
            os.umask(_UMASK)
            with closing(Life(work, place / "state")) as life:
                for n in range(3):
                    life.commit([*operations[n], *work.numbered(n)])
                    life.roll_back(operations[n])
                    life.checkpoint()
                    with life.engine.view() as view, closing(life.engine.image()) as image:
                        work.content(view)
                        read_image(image)
                        _is_private(place)
                    life.reopen()
            _is_private(place)
            umask = os.umask(_UMASK)
            assert umask == _UMASK, f"the umask was {_UMASK:03o}, and the engine left it at {umask:03o}"
            for what, setting in _SETTINGS.items():
                now = setting()
                same = now == before[what]
                assert same, f"the engine changed {what} of the whole process: {_changed(now, before[what])}"
            assert not called.seeds, "the engine called random.seed(), so everybody in the process draws the same again"
            assert not called.handlers, f"the engine left a handler of its own for signal {min(called.handlers)}"
            assert not said.getvalue(), f"the engine printed {said.getvalue()!r:.80}: commands print what programs read"
            others = sorted(path.name for path in place.iterdir() if path.name != "state")
            assert not others, f"beside the state's directory the engine left {others[0]}"
            left = sorted(path.name for path in temporary.iterdir())
            assert not left, f"in the directory for temporary files the engine left {left[0]}"


class _Called:
    """Calls that change what nobody can read afterwards, or what only the main thread may change: the engine takes this
    thread for it."""

    def __init__(self) -> None:
        self.seeds: list[Any] = []
        self.handlers: dict[int, Any] = {}

    def seed(self, *given: Any, **named: Any) -> None:
        self.seeds.append((given, named))

    def signal(self, number: int, handler: Any) -> Any:
        before = signal.getsignal(number)
        found = self.handlers.pop(number, before)
        if handler != before:
            self.handlers[number] = handler
        return found


@contextmanager
def _unusual(temporary: Path) -> Iterator[_Called]:
    """Settings that nobody else would choose, so that an engine's own show. All is as before in the end, whatever is
    done in the block."""
    called = _Called()
    with ExitStack() as stack, decimal.localcontext(prec=31):
        stack.enter_context(patch.dict(os.environ, TMPDIR=str(temporary)))
        stack.enter_context(patch.object(tempfile, "tempdir", str(temporary)))
        stack.enter_context(patch.object(random, "seed", called.seed))
        stack.enter_context(patch.object(signal, "signal", called.signal))
        stack.enter_context(patch.object(threading, "main_thread", threading.current_thread))
        stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        stack.callback(gc.enable if gc.isenabled() else gc.disable)
        stack.callback(os.umask, os.umask(_UMASK))
        sys.setrecursionlimit(sys.getrecursionlimit() + 7)
        sys.setswitchinterval(0.004)
        socket.setdefaulttimeout(977.0)
        gc.enable()
        yield called


def _changed(now: Any, before: Any) -> str:
    if isinstance(now, dict):
        name = next(name for name in (*now, *before) if now.get(name) != before.get(name))
        return f"{name} was {before.get(name)!r:.80}, and is {now.get(name)!r:.80}"
    return f"it was {before!r:.80}, and is {now!r:.80}"


def _is_private(place: Path) -> None:
    for path in (place / "state").rglob("*"):
        mode = path.lstat().st_mode & 0o777
        assert path.is_symlink() or not mode & _UMASK, (
            f"{path.name} has the mode {mode:03o}, although the umask is {_UMASK:03o}, so others may use it")
