"""Forking a process for each job, from a server that is warm: it imports the author's engine once, so that a child
costs a few milliseconds where a new interpreter would cost hundreds. It has one thread, so that forking is safe.

A job comes over a socket, together with the pipe that its child is to speak into; the server says the child's process
id, waits for its end and says how it ended. Messages, both ways, are pickled tuples with their length before them.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from .workload import Workload

Say = Callable[..., None]
"""Says one message: its kind, then what it is about."""

refused: list[str] = []
"""Why the checks were not run in this process, which is there for others'."""

_LENGTH = struct.Struct("<Q")


def serve(control_fd: int) -> None:
    """The server's life: what makes the workload, then one job after the other, until the socket's other end closes."""
    logging.getLogger("holdfast").addHandler(logging.NullHandler())  # each recovery would say what it has cut
    control = socket.socket(fileno=control_fd)
    try:
        make = _maker(*receive(control.recv))
    except BaseException:
        control.sendall(framed("failed", traceback.format_exc()))
        return
    if refused:
        control.sendall(framed("failed", refused[0]))
        return
    control.sendall(framed("ready"))
    child = 0
    while True:
        try:
            byte, fds, _, _ = socket.recv_fds(control, 1, 1)
        except ConnectionResetError:  # it was closed before all was read that was said
            return
        if child:  # only now: until then somebody may kill it, and must not hit another process of the same number
            os.waitpid(child, 0)
        if not byte:
            return
        job, arguments = receive(control.recv)
        child = os.fork()
        if not child:
            control.close()
            _child(make, fds[0], job, arguments)
        os.close(fds[0])
        control.sendall(framed("started", child))
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        control.sendall(framed("ended", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))


def _child(make: Callable[[], Workload], fd: int, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent's parent sees to it
    lock = threading.Lock()

    def say(*message: Any) -> None:
        data = memoryview(framed(*message))
        with lock:  # messages of several threads do not mix
            while data:
                data = data[os.write(fd, data) :]

    code = 1
    try:
        job(make(), say, *arguments)
        code = 0
    except BrokenPipeError:
        pass  # nobody listens any more
    except BaseException as error:
        say("broken", str(error) if isinstance(error, AssertionError) else "".join(traceback.format_exception(error)))
    finally:
        os._exit(code)


def _maker(modules: Sequence[tuple[str, str]], pickled: Sequence[bytes]) -> Callable[[], Workload]:
    """The first of several ways to make the workload that works here. Raises what the last of them did."""
    for name, path in modules:
        _load(name, path)
    for one in pickled:
        try:
            make: Callable[[], Workload] = pickle.loads(one)
            make()
            return make
        except Exception as error:
            failed = error
    raise failed


def _load(name: str, path: str) -> None:
    """Import a module of the author's as the checks' process has imported it: by its name, or else by its file."""
    try:
        if name != "__main__" and getattr(import_module(name), "__file__", None) == path:
            return
    except ImportError:
        pass
    # A script is not to run as one here, only to be there under the name that pickles know it by.
    spec = spec_from_file_location("__holdfast_main__" if name == "__main__" else name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = sys.modules[name] = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)


# --- messages --------------------------------------------------------------------------------------------------------


def framed(*message: Any) -> bytes:
    data = pickle.dumps(message)
    return _LENGTH.pack(len(data)) + data


def receive(read: Callable[[int], bytes]) -> tuple[Any, ...]:
    """The next message; `read` gives up to so many bytes. Raises `EOFError` if they end before or within it."""
    message: tuple[Any, ...] = pickle.loads(_exactly(read, *_LENGTH.unpack(_exactly(read, _LENGTH.size))))
    return message


def _exactly(read: Callable[[int], bytes], length: int) -> bytes:
    return b"".join(_pieces(read, length))


def _pieces(read: Callable[[int], bytes], length: int) -> Iterator[bytes]:
    while length:
        piece = read(length)
        if not piece:
            raise EOFError
        length -= len(piece)
        yield piece
