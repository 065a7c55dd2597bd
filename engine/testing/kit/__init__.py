"""What proves the kit itself, on any engine: stores, hooks, the ends of a commit, the log. An author could
not mend what fails here. `holdfast.backup.testing.kit.KitContract` has all these checks."""

from .bulk_loads import BulkChecks
from .commit_outcomes import OutcomeChecks
from .corruption import CorruptionChecks
from .histories import HistoryChecks
from .hooks import HookChecks


class StoreKitChecks(CorruptionChecks, BulkChecks, HookChecks, OutcomeChecks, HistoryChecks):
    """Everything that is checked of the kit in `engine/`."""
