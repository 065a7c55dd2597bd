"""The program that an operator has run after each change of role."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from holdfast.backup.role_program import RoleProgram
from holdfast.engine.env import REAL


def test_changes_come_in_order_and_failures_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = tmp_path / "moved"
    script.write_text("#!/bin/sh\necho \"$HOLDFAST_CLUSTER $HOLDFAST_MEMBER $@\" >> \"$0.log\"\n"
                      "[ \"$1\" = primary ] || { echo no such address; exit 7; }\n")
    script.chmod(0o755)
    caplog.set_level(logging.INFO, "holdfast.cluster")
    program = RoleProgram(str(script), "social", "a", REAL)
    for role, epoch in (("candidate", 4), ("primary", 4), ("follower", 5)):
        program(role, epoch)
    program.close()
    assert (tmp_path / "moved.log").read_text().splitlines() == [
        "social a candidate 4", "social a primary 4", "social a follower 5"]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [f"{script} candidate 4 ended with 7: no such address",
                      f"{script} follower 5 ended with 7: no such address"]


def test_a_program_that_is_not_there_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    program = RoleProgram("/nowhere/at/all", "social", "a", REAL)
    program("primary", 1)
    program.close()
    assert "/nowhere/at/all primary 1 could not be run" in caplog.text
