"""Runs the command line, in this process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.backup import cli


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed, on standard output and on standard error."""

    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def holdfast(*arguments: str | Path, code: int = 0) -> Result:
    stdout, stderr, ended = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            cli.answer([str(a) for a in arguments])
        except SystemExit as stopped:
            ended = int(stopped.code or 0)
    result = Result(stdout.getvalue(), stderr.getvalue())
    assert ended == code, result.output
    assert "Traceback" not in result.output
    return result


def told(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The one JSON object on standard output."""
    lines = holdfast(*arguments, "--json", code=code).stdout.splitlines()
    assert len(lines) == 1
    found: dict[str, Any] = json.loads(lines[0])
    return found


COMMAND = [sys.executable, "-c", "from holdfast.backup.cli import main; main()"]
"""As a process of its own."""
