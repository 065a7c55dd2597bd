"""`python -m holdfast.engine.testing keep module:Workload DIRECTORY`: keep a state of an engine for later versions."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import HoldfastError, SettingError
from .support.contract import Contract
from .support.kept import keep
from .support.workload import Workload


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m holdfast.engine.testing")
    commands = parser.add_subparsers(required=True)
    keeping = commands.add_parser("keep", help="keep a state of an engine, which later versions of it must open")
    keeping.add_argument("workload", metavar="MODULE:WORKLOAD",
                         help="a workload, what makes one, or a test class that has one")
    keeping.add_argument("directory", type=Path, help="of kept states: what kept= of the workload names")
    keeping.add_argument("--name", help="of this one; without it, the versions of its formats")
    asked = parser.parse_args(arguments)
    try:
        place = keep(_workload(asked.workload), asked.directory, asked.name)
    except HoldfastError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    sys.stdout.write(f"kept in {place}\n")
    return 0


def _workload(name: str) -> Workload:
    module, _, path = name.partition(":")
    sys.path.insert(0, "")
    try:
        made: Any = import_module(module)
        for part in path.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"there is no {name!r}: {error}",
                           hint="give MODULE:NAME, as in test_mine:TestMine") from error
    if isinstance(made, type) and issubclass(made, Contract):
        return made().work()
    work = made if isinstance(made, Workload) else made()
    if not isinstance(work, Workload):
        raise SettingError(f"{name} gives a {type(work).__name__}, and not a workload")
    return work


if __name__ == "__main__":
    sys.exit(main())
