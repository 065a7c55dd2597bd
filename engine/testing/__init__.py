"""The contract suite for engines and plugins, to be run on your own: see `docs/writing-an-engine.md`."""

from .alone.abilities import AbilityChecks
from .alone.states import StateChecks
from .alone.transactions import AloneChecks
from .contract import (
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
from .crashed.crashes import CrashChecks
from .killed.kills import KillChecks
from .killed.mutated import MutationChecks
from .plugins import PluginContract
from .profiles import PROFILES, Profile, current_profile
from .report import Fault, Report, check_engine
from .stored.histories import StoreChecks
from .workload import KeyValues, Operation, Workload


# The last base's checks come first: what fails without the kit need not be looked for in it.
class EngineContract(MutationChecks, KillChecks, CrashChecks, StoreChecks, AbilityChecks, StateChecks, AloneChecks):
    """Everything that is asked of an engine, alone and under a store."""


__all__ = ["ABOVE_ENV", "BACKGROUND_CHECKPOINT", "BULK", "CHECKSUMS", "PROFILES", "READ_ONLY_REPLAY", "STABLE_IMAGE",
           "STAGING", "Contract", "EngineContract", "Fault", "KeyValues", "Need", "Operation", "PluginContract",
           "Profile", "Report", "Workload", "check", "check_engine", "current_profile"]
