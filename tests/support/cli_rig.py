"""Runs the command line, in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from holdfast.backup import cli

runner = CliRunner()


def holdfast(*arguments: str | Path, code: int = 0) -> Result:
    result = runner.invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
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
