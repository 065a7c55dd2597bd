"""A log that strangers cannot fill: of each kind of event one line in a while, with the count of those left out.

What a stranger sent is shown, if at all, as text without control characters, and cut off; credentials never are.
"""

from __future__ import annotations

import logging
import traceback

from . import Clock
from .shown import printable

EVERY_S = 30.0
_MOST = 300


class Calm:
    """Thread-safe as far as a count may be off by one."""

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def say(self, kind: str, message: str, error: BaseException | None = None, *, level: int = logging.WARNING) -> None:
        """Log the message, unless something of its kind was logged within `EVERY_S` seconds. Of an error the places are
        shown, its words without what a terminal or a log would take for more than text.

        Args:
            kind: one of a few that stand in the code: what is remembered is one number for each.
        """
        if not self._logger.isEnabledFor(level):
            return
        now = self._clock.monotonic()
        if now < self._next.get(kind, now):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._next[kind] = now + EVERY_S
        left_out = self._left_out.pop(kind, 0)
        text = printable(message)[:_MOST]
        if error is not None:
            places = "".join(traceback.format_tb(error.__traceback__))
            text += f": {type(error).__name__}: {printable(str(error))[:_MOST]}\n{places}".rstrip()
        self._logger.log(level, "%s%s", text, f" ({left_out} more like it since the last line)" if left_out else "")


class Relay(logging.Handler):
    """Hands on what a library logs, as one kind, and without its words, which may quote what was sent."""

    def __init__(self, calm: Calm, what: str) -> None:
        super().__init__(logging.WARNING)
        self._calm, self._what = calm, what

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._calm.say(self._what, f"{self._what}{'' if error is None else f': {type(error).__name__}'}")


def library_logger(calm: Calm, what: str) -> logging.Logger:
    """A logger to give to a library; it belongs to no hierarchy."""
    made = logging.Logger(what, logging.WARNING)  # noqa: LOG001  # each server has its own, which goes with it
    made.addHandler(Relay(calm, what))
    return made
