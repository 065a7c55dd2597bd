"""The output of the command line. It copes with a standard output that is closed, full, or read by `head`.

Text for people passes through `plain`, so that nothing from a source or a file name can control the terminal. Every
error becomes a line and an exit code. The traceback of an error that is not the kit's is shown if HOLDFAST_TRACEBACK
is set in the environment.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..engine import errors
from ..engine.env import REAL

if TYPE_CHECKING:
    from ..replay.files import Progress

DAMAGED = 5

EXIT_CODES: tuple[tuple[int, str, tuple[type[BaseException], ...]], ...] = (
    (3, "the source or the storage cannot be reached, went away, or a lease ran out: run it again",
     (errors.SourceUnavailable, errors.LeaseExpired, errors.TooManyLeases, errors.ClusterUnavailable,
      errors.StorageUnavailable)),
    (DAMAGED, "inconsistent or damaged", (errors.Inconsistent, errors.Damaged)),
    (6, "no room on the disk", (errors.DiskFull,)),
    (7, "not enough memory, open files, threads or rights, or the disk failed: no byte is known to be damaged",
     (errors.LimitReached, errors.AccessDenied, errors.DeviceFailed)),
    (2, "wrong usage: an argument or a setting makes no sense", (errors.InvalidInput, errors.SettingError)),
    (4, "refused: the message says why; nothing was changed", (errors.HoldfastError,)),
    (1, "any other failure", (Exception,)),
)
"""Exit code, what it means, and the errors that lead to it. The first row that fits counts."""

POINTS_LOST = 8
BRANCHED = 9
INTERRUPTED = 130

PROGRESS_S = 30.0
"""Seconds between two lines of progress on standard error, if that is not a terminal."""
BARS_S = 0.25
"""Seconds after which a run shows bars on a terminal. To import Rich takes as long as a small backup."""

_FLAGS = {
    "accept_branch": "--accept-branch", "check": "--check", "create": "--create", "expect_store": "--expect-store",
    "fallback": "--fallback", "compact": "--compact", "delta": "--delta", "engine": "--engine", "force": "--force",
    "full": "--full", "insecure": "--insecure",
    "keep_points": "--keep-points", "lease_ttl": "--lease-ttl",
    "max_record_bytes": "--max-record-bytes", "names": "--name",
    "online_backup_server": "--listen", "profile": "--profile", "register": "--register", "skip_bad": "--skip-bad",
    "timeout": "--timeout",
    "tls_certificate": "--tls-certificate", "tls_key": "--tls-key", "tls": "--tls", "to_txid": "--txid",
    "token": "--token-file", "verify": "--verify", "wait": "--wait", "ca": "--ca", "at": "--at",
}
"""By argument in Python, its name on the command line."""
_ALWAYS = ("accept_branch", "expect_store", "keep_points", "lease_ttl", "max_record_bytes", "online_backup_server",
           "tls_certificate", "tls_key", "to_txid")
_ASSIGNED = re.compile(rf"\b({'|'.join(sorted(_FLAGS, key=len, reverse=True))})=(?:True\b|(False\b)|)")
_NAMED = re.compile(rf"\b({'|'.join(_ALWAYS)})\b")


def exit_code(error: BaseException) -> int:
    """The exit code for an error.

    >>> exit_code(errors.DiskFull("full")), exit_code(errors.ForeignStore("other")), exit_code(ValueError())
    (6, 4, 1)
    """
    return next(code for code, _, kinds in EXIT_CODES if isinstance(error, kinds))


def plain(text: str) -> str:
    r"""Text that cannot control a terminal: unprintable characters are escaped as in Python. Line ends stay.

    >>> plain("/data/\udcff \x1b[2J done")
    '/data/\\udcff \\x1b[2J done'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def in_flags(text: str) -> str:
    """A message or hint in which arguments in Python are replaced by options of the command line.

    >>> in_flags("replace it with force=True, or raise lease_ttl; full=False")
    'replace it with --force, or raise --lease-ttl; --no-full'
    """
    def flag(match: re.Match[str]) -> str:
        name = _FLAGS[match[1]]
        if match[2]:
            return name.replace("--", "--no-", 1)
        return name if match[0].endswith("True") else f"{name} "

    return _NAMED.sub(lambda m: _FLAGS[m[1]], _ASSIGNED.sub(flag, text))


def say(text: str) -> None:
    """Print a command's result to standard output.

    Raises:
        OSError: it cannot be written, for instance because the disk is full. A reader that went away (`| head`) is not
            an error: then nothing more is printed.
    """
    _write(sys.stdout, f"{plain(text)}\n")


def say_done(text: str) -> None:
    """Print to standard output what was done. If that fails, standard error says so; the exit code does not change."""
    try:
        say(text)
    except OSError as error:
        with suppress(OSError):
            _write(sys.stderr, f"holdfast: cannot write to standard output: {error.strerror}\n")


def say_aside(text: str) -> None:
    """Print to standard error how things go on. If that fails, nobody needs to know."""
    with suppress(OSError):
        _write(sys.stderr, f"holdfast: {plain(text)}\n")


def _write(stream: Any, text: str) -> None:
    if stream is None:  # it was closed before the program began
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)  # for characters that this encoding does not have
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        _silence(stream)
        if error.errno not in (errno.EPIPE, errno.EBADF):
            raise
    except ValueError:
        return  # closed by now


def _silence(stream: Any) -> None:
    """Discard what is still in the stream's buffer: at exit, the interpreter would report that it cannot be written."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)  # noqa: TID251  to take the place of a standard stream
        os.dup2(null, stream.fileno())
        os.close(null)


def complain(kind: str, message: str, hint: str, findings: tuple[str, ...], as_json: bool) -> None:
    """Report an error: in words on standard error, or as JSON on standard output."""
    message, hint = in_flags(message), in_flags(hint)
    with suppress(OSError):
        if as_json:
            _write(sys.stdout, json.dumps({"error": kind, "message": message, "hint": hint,
                                           "findings": list(findings)}) + "\n")
        else:
            lines = [message, *findings, *(hint.split("\n") if hint else ())]
            first, *rest = (plain(line).replace("\n", "\\n") for line in lines)
            _write(sys.stderr, "\n".join([f"holdfast: {first}", *(f"  {line}" for line in rest)]) + "\n")


@contextmanager
def errors_told(as_json: bool) -> Iterator[None]:
    """Turn what the block raises into words and an exit code (`SystemExit`)."""
    try:
        yield
    except KeyboardInterrupt:
        complain("Interrupted", "interrupted", "run it again", (), as_json)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        raise SystemExit(_failed(error, as_json)) from None


def _failed(error: Exception, as_json: bool) -> int:
    if os.environ.get("HOLDFAST_TRACEBACK"):
        with suppress(OSError):
            _write(sys.stderr, traceback.format_exc())
    if not isinstance(error, errors.HoldfastError):
        from ..engine.env.system import told

        error = told(error, "cannot go on") or error
    if isinstance(error, errors.HoldfastError):
        complain(type(error).__name__, error.message, error.hint, getattr(error, "findings", ()), as_json)
    elif isinstance(error, OSError):
        complain(type(error).__name__, str(error), "", (), as_json)
    else:
        complain(type(error).__name__, f"this is a bug in Holdfast: {type(error).__name__}: {error}",
                 "set HOLDFAST_TRACEBACK=1 in the environment to see where", (), as_json)
    return exit_code(error)


@contextmanager
def progress_told(as_json: bool) -> Iterator[Progress]:
    """Show progress on standard error: on a terminal, one bar for each stage; elsewhere, and without `holdfast[cli]`, a
    line or a JSON object every `PROGRESS_S` seconds, so that a short run prints none."""
    if sys.stderr is not None and sys.stderr.isatty() and _has_rich():
        with _bars() as progress:
            yield progress
    else:
        yield _lines(as_json)


def _shown(stage: str, done: int, total: int) -> str:
    from .report import size_of

    if stage in _COUNTED:
        return f"{done:,} of {total:,} {_COUNTED[stage]}"
    return f"{size_of(done)} of {size_of(total)}"


_COUNTED = {"log": "transactions", "replay": "transactions", "images": "images and branches", "load": "rows"}
"""Stages that do not count bytes, and what they count."""


class _Pace:
    """How fast the stages go on, from their first report on."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}

    def of(self, stage: str, done: int) -> float:
        """What is done in a second; 0.0 if it is not known yet."""
        now = REAL.clock.monotonic()
        since, before = self._begun.setdefault(stage, (now, done))
        return (done - before) / (now - since) if now > since else 0.0


def _rate(stage: str, rate: float) -> str:
    from .report import size_of

    if not rate:
        return ""
    return f"{rate:,.0f}/s" if stage in _COUNTED else f"{size_of(int(rate))}/s"


def _lines(as_json: bool) -> Callable[[str, int, int], None]:
    clock, pace = REAL.clock, _Pace()
    told = clock.monotonic()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal told
        rate, now = pace.of(stage, done), clock.monotonic()
        if now - told >= PROGRESS_S:
            told = now
            left = round((total - done) / rate, 1) if rate else None
            if as_json:
                line = json.dumps({"progress": stage, "done": done, "total": total, "per_second": round(rate, 1),
                                   "seconds_left": left})
            else:
                line = f"holdfast: {stage}: {_shown(stage, done, total)}" + (
                    f", {_rate(stage, rate)}, {left:,.0f} s left" if left is not None else "")
            with suppress(OSError):
                _write(sys.stderr, line + "\n")

    return progress


def _has_rich() -> bool:
    from importlib.util import find_spec

    return find_spec("rich") is not None


@contextmanager
def _bars() -> Iterator[Progress]:
    clock, pace = REAL.clock, _Pace()
    begun = clock.monotonic()
    bars: Any = None
    tasks: dict[str, Any] = {}
    with ExitStack() as ending:
        def progress(stage: str, done: int, total: int) -> None:
            nonlocal bars
            rate = pace.of(stage, done)
            if bars is None and clock.monotonic() - begun >= BARS_S:
                bars = ending.enter_context(_rich_bars())
            if bars is not None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, shown="", rate="", total=total)
                bars.update(tasks[stage], completed=done, total=total, shown=_shown(stage, done, total),
                            rate=_rate(stage, rate))

        yield progress


def _rich_bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(TextColumn("{task.description:<14}"), BarColumn(), TaskProgressColumn(),
                    TextColumn("{task.fields[shown]}"), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                    console=Console(stderr=True), transient=True)
