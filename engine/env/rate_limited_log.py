"""Logging that strangers cannot flood: one line per kind of event and `EVERY_S` seconds, with a count of the rest.

What a stranger sent is shown without control characters, and cut off. Credentials are never shown.
"""

from __future__ import annotations

import logging
import traceback

from . import Clock
from .shown import printable

EVERY_S = 30.0
_MOST = 300


class Calm:
    """Thread-safe, except that a count may be off by one."""

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def say(self, kind: str, message: str, error: BaseException | None = None, *, level: int = logging.WARNING) -> None:
        """Log the message, unless one of its kind was logged within the last `EVERY_S` seconds. Of an error, log the
        traceback, and its message without control characters.

        Args:
            kind: one of a few constants in the code, because a count is kept for each kind.
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
    """Passes on what a library logs, as one kind, without the message: that may quote what a stranger sent."""

    def __init__(self, calm: Calm, what: str) -> None:
        super().__init__(logging.WARNING)
        self._calm, self._what = calm, what

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._calm.say(self._what, f"{self._what}{'' if error is None else f': {type(error).__name__}'}")


def library_logger(calm: Calm, what: str) -> logging.Logger:
    """A logger to give to a library, outside the logger hierarchy."""
    made = logging.Logger(what, logging.WARNING)  # noqa: LOG001  # one per server, freed with the server
    made.addHandler(Relay(calm, what))
    return made
