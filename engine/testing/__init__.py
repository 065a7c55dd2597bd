"""The contract suite for engines and plugins, to be run on your own: see `docs/writing-an-engine.md`."""

from __future__ import annotations

from typing import Any

from ..renamed import warn
from .engine import EngineContract
from .plugin import PluginContract
from .support.contract import (
    ABOVE_ENV,
    BACKGROUND_CHECKPOINT,
    BULK,
    CHECKSUMS,
    READ_ONLY_REPLAY,
    STABLE_IMAGE,
    STAGING,
    Contract,
    Need,
    check,
)
from .support.kept import keep
from .support.profiles import PROFILES, Profile, current_profile
from .support.report import Fault, Report, check_engine
from .support.workload import KeyValues, Operation, Workload

__all__ = ["ABOVE_ENV", "BACKGROUND_CHECKPOINT", "BULK", "CHECKSUMS", "PROFILES", "READ_ONLY_REPLAY", "STABLE_IMAGE",
           "STAGING", "Contract", "EngineContract", "Fault", "KeyValues", "Need", "Operation", "PluginContract",
           "Profile", "Report", "Workload", "check", "check_engine", "current_profile",
           "keep"]


def __getattr__(name: str) -> Any:
    if name == "ABOVE_SEAMS":
        warn(f"{__name__}.{name}", "ABOVE_ENV")
        return ABOVE_ENV
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
