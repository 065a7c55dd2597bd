"""Another day, in another time zone, for whoever asks the module `time`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

_LATER_S = 401 * 86_400 + 7 * 3600
_ZONE = "XXX-13:45"
_OF_NOW = ("localtime", "gmtime", "ctime", "strftime")
"""Calls that take a time as their last argument, and else the present one."""


@contextmanager
def another_time(module: str) -> Iterator[None]:
    """Within the block, `time` says that it is more than a year later, and the time zone is one that nobody has. So do
    the names that a module has imported from it. The classes of `datetime` are as they were."""
    with ExitStack() as stack:
        now, now_ns = time.time, time.time_ns
        stack.callback(time.tzset)
        stack.enter_context(patch.dict(os.environ, TZ=_ZONE))
        time.tzset()
        calls: dict[str, Any] = {
            name: partial(_of_now, getattr(time, name), time.localtime, name == "strftime") for name in _OF_NOW}
        calls |= {"time": lambda: now() + _LATER_S, "time_ns": lambda: now_ns() + _LATER_S * 10**9}
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
