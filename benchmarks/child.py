"""Other processes: how this one starts them, talks to them and ends them.

What is killed, or whose memory is measured, must be a process of its own. A child is `python -m` one of this package's
modules. Its messages are JSON objects, one a line, on its standard output; anything else that it prints goes to this
process's standard error. Its standard input is a pipe from this process. When the pipe ends, because the child is told
to stop or this process died, the child ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, Self


class ChildFailed(RuntimeError):
    """A child ended, or was silent for too long, before it sent the message that was waited for."""


class Child:
    """A running child. A context manager: it is killed at the end if it still runs."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.name = module.rpartition(".")[2]
        self._process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"reads {self.name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict):
                self._said.put(message)
            else:
                sys.stderr.write(line)
        self._said.put(None)

    def hear(self, event: str, *, timeout: float = 120.0) -> dict[str, Any]:
        """The next message that says `event`; those before it are dropped.

        Raises:
            ChildFailed: it ended first, or was silent for `timeout` seconds.
        """
        while True:
            try:
                message = self._said.get(timeout=timeout)
            except queue.Empty:
                raise ChildFailed(f"{self.name} did not say {event!r} within {timeout:.0f} s") from None
            if message is None:
                raise ChildFailed(f"{self.name} ended with exit code {self._process.wait()} before it said {event!r}")
            if message.get("event") == event:
                return message

    def running(self) -> bool:
        return self._process.poll() is None

    def tell(self, word: str) -> None:
        """One line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to finish anything."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, *, timeout: float = 60.0) -> int:
        """End its standard input and wait; its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.running():
            self.kill()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def say(event: str, **facts: Any) -> None:
    """In the child: one message to the parent."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def until_parent_ends() -> None:
    """In the child: returns when the parent closed its end, or died."""
    while os.read(0, 4096):
        pass


def memory_kib(pid: int | str = "self") -> dict[str, int]:
    """A process's memory in KiB, by the names of /proc/PID/status: VmRSS (now), VmHWM (highest VmRSS), RssAnon (its own
    pages, without those of mapped files)."""
    found = {}
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            key, _, rest = line.partition(":")
            if key in ("VmRSS", "VmHWM", "RssAnon"):
                found[key] = int(rest.split()[0])
    return found
