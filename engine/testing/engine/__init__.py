"""`EngineContract`: what an engine must do, by itself, under a store, and after a crash."""

from __future__ import annotations

from .abilities import AbilityChecks
from .across import AcrossChecks
from .growth import GrowthChecks
from .leaks import LeakChecks
from .mutated_files import MutationChecks
from .openings import OpeningChecks
from .power_cuts import PowerCutChecks
from .process_kills import KillChecks
from .reading import ReadingChecks
from .room import RoomChecks
from .sizes import SizeChecks
from .states import StateChecks
from .store import StoreChecks
from .surroundings import SurroundingsChecks
from .syncs import SyncChecks
from .transactions import TransactionChecks
from .values import ValueChecks


# The last base's checks come first: what fails without a store is not the store's fault.
class EngineContract(AcrossChecks, MutationChecks, KillChecks, SyncChecks, PowerCutChecks, StoreChecks, GrowthChecks,
                     SurroundingsChecks, LeakChecks, AbilityChecks, ValueChecks, SizeChecks, ReadingChecks,
                     OpeningChecks, RoomChecks, StateChecks, TransactionChecks):
    """Properties of an engine. Subclass it and set `workload`, or pass it to `check_engine`."""
