"""Under what circumstances a run of the suites was made, so that its report says what it is a report of."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from ...contract.engine import Engine


@dataclass(frozen=True, slots=True)
class Circumstances:
    """
    Attributes:
        engine: the engine's class, with its module.
        version: of the package that has the engine; empty if it is not installed as one.
        formats: of its state and its payloads.
        holdfast: the kit's version.
        python: the interpreter.
        machine: system, processor, and number of cores.
        time: when the run began, in ISO 8601.
        profile: how much was tried.
        seed: what the draws start from; None: another number for each check.
    """

    engine: str
    version: str
    formats: str
    holdfast: str
    python: str
    machine: str
    time: str
    profile: str
    seed: int | None


def circumstances(engine: type[Engine[Any, Any]], profile: str, seed: int | None) -> Circumstances:
    """Those of a run that begins now."""
    return Circumstances(
        engine=f"{engine.__module__}.{engine.__qualname__}",
        version=_version(engine.__module__.partition(".")[0]),
        formats=f"state format {engine.state_format}, payload version {engine.payload_version}",
        holdfast=_version("holdfast"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        machine=f"{platform.system()} {platform.release()}, {platform.machine()}, {_cores()} cores",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        profile=profile,
        seed=seed)


def _version(package: str) -> str:
    """Of the distribution that has a package, as far as it is known."""
    for distribution in (package, *metadata.packages_distributions().get(package, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
