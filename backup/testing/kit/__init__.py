"""`KitContract`: what proves the kit itself, on any engine. An author has nothing to mend where it fails, so it is not
among the contracts that authors run: it runs in the kit's own tests, on the engines that come with it.

    class TestMemory(KitContract):
        workload = KeyValues(MemoryEngine, put=..., items=...)
"""

from ....engine.testing.kit import StoreKitChecks
from ....replay.testing.kit import ReplayKitChecks
from .copies import CopyChecks
from .corruption import CorruptionChecks
from .interruptions import InterruptionChecks
from .refusals import RefusalChecks
from .restores import RestoreChecks


# The last base's checks come first: backups stand on stores.
class KitContract(CorruptionChecks, InterruptionChecks, RefusalChecks, RestoreChecks, CopyChecks, ReplayKitChecks,
                  StoreKitChecks):
    """Properties of stores, copies and backups that no engine can break alone."""
