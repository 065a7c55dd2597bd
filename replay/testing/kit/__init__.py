"""What proves copying and replaying themselves, on any engine; see `holdfast.backup.testing.kit.KitContract`."""

from .leases import LeaseChecks
from .mismatches import MismatchChecks


class ReplayKitChecks(LeaseChecks, MismatchChecks):
    """Everything that is checked of the kit in `replay/`."""
