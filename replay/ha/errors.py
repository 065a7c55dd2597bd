"""The errors that only members of a cluster raise."""

from __future__ import annotations

from ...engine.errors import ClusterUnavailable, HoldfastError, SourceUnavailable


class NotPrimary(HoldfastError):
    """This member takes no writes. `primary`: the address of the member that does, or None if none is known."""

    hint = "send the transaction to the primary"

    def __init__(self, message: str, *, primary: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.primary = primary


class MemberRefused(HoldfastError):
    """This member cannot take part in the cluster: its directory, its name or its store is not what the cluster knows.
    """

    hint = "check which directory belongs to which member"


class Branched(HoldfastError):
    """This member has shown transactions that the cluster does not have, so it gives no new snapshots."""

    hint = "seed it anew; what it had is kept in its directory, as its branch policy says"


class NoCluster(ClusterUnavailable):
    """The coordinator has no document of this cluster."""

    hint = "begin the cluster with one member that is opened with create=True"


class CoordinatorUnavailable(ClusterUnavailable):
    """The coordinator gave no usable answer in time. Nothing was changed by this call."""

    hint = "check that the coordinator runs and that this machine reaches it; the call can be repeated"


class SwapConflict(HoldfastError):
    """The cluster document has another version than the one to be replaced. Nothing was changed."""

    hint = "read the document, and decide anew"


class SwapUnknown(HoldfastError):
    """The answer to a swap was lost: the document was replaced, or it was not, or it will be in a moment."""

    hint = "read the document, and look for the nonce that was to be written"


class PeerUnavailable(SourceUnavailable):
    """A member does not answer, or a connection to it was lost."""

    hint = "check that the member runs and that the network between the members lets it be reached"


class ProtocolMismatch(HoldfastError):
    """Two members have no version of the members' protocol in common."""

    hint = "upgrade the older member; versions may be one apart while a cluster is upgraded"
