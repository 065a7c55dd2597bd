"""Another time for whoever asks the module `time`: another day, in another time zone, or a clock that is set back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

_LATER_S = 401 * 86_400 + 7 * 3600
_BACK_S = 3600
_ZONE = "XXX-13:45"
_OF_NOW = ("localtime", "gmtime", "ctime", "strftime")
"""Calls that take a time as their last argument, and else the present one."""


@contextmanager
def another_time(module: str) -> Iterator[None]:
    """Within the block, `time` says that it is more than a year later, and the time zone is one that nobody has. So do
    the names that a module has imported from it. The classes of `datetime` are as they were."""
    with ExitStack() as stack:
        stack.callback(time.tzset)
        stack.enter_context(patch.dict(os.environ, TZ=_ZONE))
        time.tzset()
        stack.enter_context(_shifted(module, lambda: _LATER_S))
        yield


class SetBack:
    """A clock that is set back by hand.

    Attributes:
        by_s: seconds by which it is behind.
    """

    def __init__(self) -> None:
        self.by_s = 0

    def again(self) -> None:
        """By an hour more."""
        self.by_s += _BACK_S

    def reversed(self, path: Path) -> Path:
        """Give what was changed last in a directory the oldest time, and so on, as if the clock of the file system had
        been set back as well. The directory."""
        files = [file for file in path.rglob("*") if file.is_file()]
        times = sorted(file.stat().st_mtime_ns for file in files)
        for file, time_ns in zip(sorted(files, key=lambda file: -file.stat().st_mtime_ns), times, strict=True):
            os.utime(file, ns=(time_ns, time_ns))
        return path


@contextmanager
def a_clock_set_back(module: str) -> Iterator[SetBack]:
    """Within the block, `time` and the environment's clock can be set back; see `another_time`. What only measures
    time, as `time.monotonic`, goes on."""
    clock = SetBack()
    with _shifted(module, lambda: -clock.by_s):
        yield clock


@contextmanager
def _shifted(module: str, later_s: Callable[[], int]) -> Iterator[None]:
    with ExitStack() as stack:
        now, now_ns = time.time, time.time_ns
        calls: dict[str, Any] = {
            name: partial(_of_now, getattr(time, name), time.localtime, name == "strftime") for name in _OF_NOW}
        calls |= {"time": lambda: now() + later_s(), "time_ns": lambda: now_ns() + later_s() * 10**9}
        theirs = sys.modules[module]
        for name, call in calls.items():
            original = getattr(time, name)
            for imported in [own for own, value in vars(theirs).items() if value is original]:
                stack.enter_context(patch.object(theirs, imported, call))
            stack.enter_context(patch.object(time, name, call))
        yield


def _of_now(call: Any, local: Any, is_format: bool, *given: Any) -> Any:
    if len(given) > is_format and given[-1] is not None:
        return call(*given)
    return call(given[0], local(time.time())) if is_format else call(time.time())
