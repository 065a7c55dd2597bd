"""`KitContract`: what proves the kit itself, on any engine. If it fails, the author of an engine has nothing to mend,
so authors do not run it: the kit's own tests do, on the engines that come with it."""

from ....engine.testing.kit.bulk_loads import BulkChecks
from ....engine.testing.kit.commit_outcomes import OutcomeChecks
from ....engine.testing.kit.corruption import LogCorruptionChecks
from ....engine.testing.kit.histories import HistoryChecks
from ....engine.testing.kit.hooks import HookChecks
from ....replay.testing.kit.leases import LeaseChecks
from ....replay.testing.kit.mismatches import MismatchChecks
from .copies import CopyChecks
from .corruption import CorruptionChecks
from .interruptions import InterruptionChecks
from .refusals import RefusalChecks
from .restores import RestoreChecks


# The last base's checks come first: backups rest on stores.
class KitContract(CorruptionChecks, InterruptionChecks, RefusalChecks, RestoreChecks, CopyChecks, LeaseChecks,
                  MismatchChecks, LogCorruptionChecks, BulkChecks, HookChecks, OutcomeChecks, HistoryChecks):
    """Properties of stores, copies and backups that no engine can break alone."""
