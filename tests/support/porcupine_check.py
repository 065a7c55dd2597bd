"""Histories judged by porcupine, a checker that others have written: it knows nothing of transactions and members.

What is promised to be linearizable goes there: appends, and the reads that were asked to be. It is a Go module, built
once for a run of the tests. Where Go is not installed the tests say so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from histories import History

_SOURCE = Path(__file__).with_name("porcupine")
_BUILD_S, _CHECK_S = 300, 600


@dataclass(frozen=True)
class Porcupine:
    """`why_not`: why there is no binary, else None."""

    binary: Path
    why_not: str | None

    @classmethod
    def build(cls, directory: Path) -> Porcupine:
        """If there is Go, and it cannot build, that fails if all faults are required."""
        binary, go = directory / "porcupine", shutil.which("go")
        if go is None:
            return cls(binary, "Go is not installed")
        done = subprocess.run([go, "build", "-buildvcs=false", "-o", str(binary), "."], cwd=_SOURCE, text=True,
                              capture_output=True, check=False, timeout=_BUILD_S)
        if done.returncode and os.environ.get("HOLDFAST_REQUIRE_FAULTS") == "1":
            pytest.fail(f"porcupine was not built: {done.stderr}")
        return cls(binary, f"it was not built: {done.stderr.strip()}" if done.returncode else None)

    def check(self, history: History) -> list[str]:
        """What is not linearizable. Empty if all is."""
        lines = "".join(json.dumps(operation) + "\n" for operation in operations(history))
        done = subprocess.run([self.binary], input=lines, text=True, capture_output=True, check=False, timeout=_CHECK_S)
        assert done.returncode in (0, 1), f"porcupine ended with {done.returncode}: {done.stdout}{done.stderr}"
        problems = done.stdout.splitlines()
        assert bool(problems) == (done.returncode == 1), f"porcupine ended with {done.returncode}, and said {problems}"
        return problems


def operations(history: History) -> Iterator[dict[str, Any]]:
    """What main.go reads. An append that was refused is none: if its number shows, nobody has appended it."""
    first: dict[int, float] = {}  # when the first append to a list began: that it was empty before proves nothing
    for write in history.writes:
        if write.outcome != "refused":
            first[write.at] = min(first.get(write.at, write.began), write.began)
            yield {"op": "append", "key": write.at, "value": write.number, "call": _ns(write.began),
                   "return": _ns(write.ended) + 1 if write.outcome == "acknowledged" else None}
    for read in history.reads:
        if read.linearizable:
            for at in first.keys() | read.lists.keys():
                if at in read.lists or (at >= read.least and first[at] <= read.ended):
                    yield _read(at, read.lists.get(at, []), read.began, read.ended)
    end = max([write.ended for write in history.writes] + [read.ended for read in history.reads]) + 1
    for final in history.finals.values():
        for at in first.keys() | final.lists.keys():
            yield _read(at, final.lists.get(at, []), end, end)


def _read(at: int, numbers: list[int], began: float, ended: float) -> dict[str, Any]:
    return {"op": "read", "key": at, "result": numbers, "call": _ns(began), "return": _ns(ended) + 1}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
