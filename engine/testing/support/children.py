"""Processes to be killed, seen from the one that runs the checks: starting them, listening, and keeping the journal.

The journal keeps what the children said before their end, outside of what a fault touches. It determines which states
the store may be in: each message narrows them down, or adds one (see `worker.State`).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...errors import SettingError
from .attended import doing
from .contract import Contract
from .forks import framed, receive, refused
from .worker import Failure, Plan, State
from .workload import Operation, Workload

SILENCE_S = 50
"""A child that says nothing for this many seconds hangs."""
_SHOWN = 3000
_WITHIN = "HOLDFAST_WITHIN_CHILD"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Libraries that start threads when they are imported: the server must have one when it forks."""
_GUARD = 'the checks are run when the module is imported: run them only under if __name__ == "__main__"'
_START = """
import faulthandler, json, sys
faulthandler.enable()
path, whole, sys.argv[:], control = json.loads(sys.argv[1])
sys.path[:] = path if whole else [*sys.path, *path]
from holdfast.engine.testing.support.forks import serve
serve(control)
"""


class NotFoundElsewhere(Exception):
    """Another process cannot make this workload: what makes it has no name there."""


def makers(contract: Contract) -> list[bytes]:
    """What makes a contract's workload, pickled, in each way that another process may know: by the class, by what the
    class was given, by a name that this has in some module, and as itself.

    Raises:
        NotFoundElsewhere: there is none.
    """
    made: Any = contract.workload
    ways: list[Callable[[], Workload]] = [partial(_by_class, type(contract)), partial(_by_itself, made)]
    ways += [partial(_by_name, module.__name__, name) for module in list(sys.modules.values())
             for name, value in list(getattr(module, "__dict__", {}).items()) if value is made]
    pickled = []
    for way in ways:
        with suppress(Exception):  # whatever the author's own objects raise
            pickled.append(pickle.dumps(way))
    if not pickled:
        raise NotFoundElsewhere("another process cannot make its workload: "
                                "give the test class, or what makes the workload, a name in a module")
    return pickled


def _by_class(contract: type[Contract]) -> Workload:
    return contract().work()


def _by_itself(made: Any) -> Workload:
    work: Workload = made if isinstance(made, Workload) else made()
    return work


def _by_name(module: str, name: str) -> Workload:
    return _by_itself(getattr(sys.modules[module], name))


def _own_path() -> list[str]:
    """Where this process looks for modules, without what belongs to its interpreter: an author's own places."""
    theirs = {str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix)}
    return [place for place in map(str, map(Path.resolve, map(Path, sys.path)))
            if place not in theirs and not any(place.startswith(f"{of}{os.sep}") for of in theirs)]


def _modules(pickled: list[bytes]) -> list[tuple[str, str]]:
    """The modules that pickles name, with their files: the author's may have none that can be imported by name."""
    texts = {argument for one in pickled for _, argument, _ in pickletools.genops(one) if isinstance(argument, str)}
    files = ((name, getattr(sys.modules[name], "__file__", None)) for name in sorted(texts & set(sys.modules)))
    return [(name, file) for name, file in files if file and not name.startswith("holdfast.")]


@dataclass
class Journal:
    """What the children of one store said.

    Attributes:
        states: those that the store may be in, by txid; None before it was ever open.
        acknowledged: how many transactions were.
        failures: commits and checkpoints that failed.
        recovered: how many openings found that the store had not been closed properly.
        warnings: what was logged under faults.
        next_number: higher than any number used.
    """

    states: list[State] | None = None
    acknowledged: int = 0
    failures: list[Failure] = field(default_factory=list)
    recovered: int = 0
    warnings: list[str] = field(default_factory=list)
    next_number: int = 0

    def note(self, message: tuple[Any, ...]) -> None:
        """Raises `AssertionError` if a child has found the store to be wrong."""
        kind, *rest = message
        if kind == "broken":
            raise AssertionError(rest[0])
        if kind == "open":  # recovery has made durable what it found, so what it did not find never returns
            self.states = [rest[0]]
            self.recovered += not rest[1]
        elif kind == "begun":
            assert self.states is not None
            self.states.append(rest[0])
            self.next_number = max(self.next_number, rest[0].number + 1)
        elif kind == "acknowledged":
            assert self.states is not None
            self.acknowledged += 1
            self.states = [state for state in self.states if state.txid >= rest[0]]
        elif kind == "warned":
            self.warnings.append(rest[0])
        elif kind == "failed":
            failure: Failure = rest[0]
            self.failures.append(failure)
            if self.states and failure.begun is not None and failure.rolled_back:
                self.states.remove(failure.begun)

    def plan(self, directory: Path, script: Sequence[list[Operation]], count: int, **how: Any) -> Plan:
        """What the next child is to do (see `Plan`)."""
        return Plan(directory=directory, states=self.states, script=script, first=self.next_number, count=count, **how)

    @property
    def txid(self) -> int:
        """The last transaction that may be there."""
        return self.states[-1].txid if self.states else 0


class Child:
    """A running job.

    Attributes:
        pid: its process.
        seen: when (by the monotonic clock) each kind of message was last heard.
    """

    def __init__(self, server: Server, fd: int, pid: int) -> None:
        self.pid = pid
        self.seen = {"started": time.monotonic()}
        self._server = server
        self._fd = fd
        self._heard = bytearray()
        self._printed = server.printed_bytes

    def messages(self, *, within: float | None = None) -> Iterator[tuple[Any, ...]]:
        """What it says, until its end, or for at most `within` seconds. Raises `AssertionError` if it hangs."""
        until = None if within is None else time.monotonic() + within
        while True:
            while message := self._whole():
                self.seen[message[0]] = time.monotonic()
                doing("wait for a child process, which said", message[0])
                yield message
            wait = SILENCE_S if until is None else until - time.monotonic()
            if wait <= 0 or not select.select((self._fd,), (), (), wait)[0]:
                if until is not None:
                    return
                self.kill()
                raise AssertionError(f"the process said nothing for {SILENCE_S} s")
            data = os.read(self._fd, 1 << 20)
            if not data:
                return
            self._heard += data

    def _whole(self) -> tuple[Any, ...] | None:
        """The next message, if all of it is there: its writer may be killed in the middle of one."""
        heard = io.BytesIO(self._heard)
        try:
            message = receive(heard.read)
        except EOFError:
            return None
        del self._heard[: heard.tell()]
        return message

    def how(self, code: int) -> str:
        """How it ended that should not have ended so, and what it printed."""
        return ended("the process", code, self._server.printed(self._printed))

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self, journal: Journal) -> int:
        """Note the rest of what it says, until its end: the exit code, or the signal's number, negative."""
        try:
            for message in self.messages():
                journal.note(message)
        finally:
            code = self.discard()
        return code

    def discard(self) -> int:
        """Kill it if it still runs, without reading what it says; how it ended, as in `end`."""
        if self._fd >= 0:
            self.kill()
            self._code = self._server._ended()
            os.close(self._fd)
            self._fd = -1
        return self._code


class Server:
    """A warm process that forks a child for each job (see `forks.serve`). A context manager.

    Args:
        contract: whose workload the children have.
        environment: added to its environment.
        python: the interpreter; this one if None. Another one has libraries of its own.

    Raises:
        NotFoundElsewhere: another process cannot make the workload.
        SettingError: (when it is entered) it cannot start: it lacks a module, or the author's does something else when
            it is imported.
    """

    def __init__(self, contract: Contract, *, environment: Mapping[str, str] | None = None,
                 python: str | None = None) -> None:
        if _WITHIN in os.environ:
            refused.append(_GUARD)
            raise SettingError(_GUARD)
        pickled = makers(contract)
        self._child: Child | None = None
        self._control, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  it is closed in `close`
        with theirs:
            self._process = subprocess.Popen(
                [python or sys.executable, "-c", _START,
                 json.dumps([sys.path if python is None else _own_path(), python is None, sys.argv, theirs.fileno()])],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                env={**os.environ, **_ONE_THREAD, _WITHIN: "1", **(environment or {})})
        try:
            self._control.settimeout(SILENCE_S)
            self._control.sendall(framed(_modules(pickled), pickled))
        except BaseException:
            self.close()
            raise

    def _receive(self) -> tuple[Any, ...]:
        try:
            return receive(self._control.recv)
        except (EOFError, ConnectionError) as error:
            code = self._process.wait(SILENCE_S)
            raise AssertionError(ended("the process that forks the children", code, self.printed(0))) from error
        except TimeoutError as error:
            raise AssertionError(f"the process that forks the children said nothing for {SILENCE_S} s") from error

    @property
    def printed_bytes(self) -> int:
        return os.fstat(self._output.fileno()).st_size

    def printed(self, since: int) -> str:
        """What it and its children printed after so many bytes, without the middle if it is long."""
        text = os.pread(self._output.fileno(), self.printed_bytes - since, since).decode(errors="replace").strip()
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}\n…\n{text[-_SHOWN // 2 :]}"

    def start(self, job: Callable[..., None], *arguments: Any) -> Child:
        """Fork a child for `job(work, say, *arguments)`, which is of some module; all pickled. One at a time:
        one that still runs is killed."""
        if self._child is not None:
            self._child.discard()
        ours, theirs = os.pipe()
        try:
            socket.send_fds(self._control, [b"!"], [theirs])
            self._control.sendall(framed(job, arguments))
            _, pid = self._receive()
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._child = Child(self, ours, pid)
        return self._child

    def _ended(self) -> int:
        """Wait for the end of the child that was started last: its code."""
        _, code = self._receive()
        return int(code)

    def close(self) -> None:
        if self._child is not None:
            self._child.discard()
        self._control.close()
        try:
            self._process.wait(SILENCE_S)
        finally:
            self._process.kill()
            self._output.close()

    def __enter__(self) -> Self:
        try:
            said, *rest = self._receive()
        except AssertionError as error:  # the engine has not been asked for anything yet
            self.close()
            raise SettingError(f"another process does not start: {error}",
                               hint="it imports the kit and the module of the workload") from error
        except BaseException:
            self.close()
            raise
        if said != "ready":
            self.close()
            raise SettingError(f"another process cannot make the workload:\n{rest[0]}",
                               hint="the module must be importable twice")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def ended(process: str, code: int, printed: str = "") -> str:
    """How a process ended that should not have ended so."""
    said = f"{process} ended by {signal.Signals(-code).name}" if code < 0 else f"{process} ended with {code}"
    return f"{said}, and printed:\n{printed}" if printed else said
