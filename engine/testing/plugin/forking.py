"""Forks the process, looks at something in the child, and says in the parent what was found there."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

_AWAY = {"os.remove": "removes", "os.rename": "renames", "os.rmdir": "removes", "os.truncate": "truncates",
         "shutil.rmtree": "removes"}


def in_child(look: Callable[[], list[str]], timeout_s: float) -> list[str]:
    """What `look` finds in a forked child of this process.

    Raises:
        AssertionError: the child did not come back within `timeout_s` seconds; it was killed.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
        child = os.fork()
    if child == 0:
        try:
            os.close(read)
            try:
                found = look()
            except BaseException:
                found = [traceback.format_exc()]
            _write_all(write, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(write)
    answer = b""
    try:
        while select.select([read], [], [], timeout_s)[0]:
            piece = os.read(read, 1 << 16)
            if not piece:
                return list(json.loads(answer))
            answer += piece
        os.kill(child, signal.SIGKILL)
        raise AssertionError(f"a forked child did not come back within {timeout_s:g} s")
    finally:
        os.close(read)
        os.waitpid(child, 0)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def watch_removals(found: list[str], active: Callable[[], bool]) -> None:
    """Note from now on which files this process removes or renames while `active`. It cannot be undone: children
    only."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _AWAY and active():
            found.append(f"{_AWAY[event]} {args[0]}, which is the parent's")

    sys.addaudithook(hook)
