"""Making the cluster's document again after the coordinator has lost it, or was set back to an older one.

Members never do this by themselves: each of them may lack what another one holds. An operator names a member's
directory, which has the addresses and the token. So many members must answer as are needed to promote one of them, in
each of the documents that they have seen last. The new epoch is above all that they have promised, and the document
names no leader, so the voters elect one as usual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...engine.env import REAL, Env
from ...engine.errors import HoldfastError, InvalidInput
from . import quorum
from .admin import Admin
from .coordinator import Version
from .document import ClusterDocument


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one member has seen and promised. `counts`: it has all that it may have acknowledged, and is registered."""

    document: ClusterDocument
    promised: int
    counts: bool


@dataclass(frozen=True, slots=True)
class Recreation:
    """The document to be written, the version that it replaces, and the members that answered."""

    document: ClusterDocument
    version: Version
    answered: tuple[str, ...]


def plan(admin: Admin, kept: ClusterDocument, env: Env = REAL) -> Recreation:
    """What is to be written, by what a member has seen and the others say. Changes nothing.

    Raises:
        InvalidInput: too few voters answer; or the coordinator has the document, or another cluster's.
        CoordinatorUnavailable, Damaged.
    """
    seen = _ask(admin, kept)
    newest = _newest([kept, *(one.document for one in seen.values())])
    seen |= _ask(admin, newest)  # it may know more members
    newest = _newest([newest, *(one.document for one in seen.values())])
    answered = tuple(sorted(name for name, one in seen.items() if one.counts))
    for document in [newest, *(one.document for one in seen.values() if one.document.epoch == newest.epoch)]:
        if not quorum.may_promote(document.floor, document.sets, answered):
            raise InvalidInput(f"of the voters {', '.join(document.electorate)}, {', '.join(answered) or 'none'} "
                               "answered; those that did not may hold what these lack",
                               hint="start more members, and try again")
    data, version = admin.coordinator.read(admin.timeout)
    if data is not None:
        _check_present(ClusterDocument.decode(data), newest)
    epoch = max(newest.epoch, *(one.promised for one in seen.values())) + 1
    document = replace(newest, epoch=epoch, leader=None, nonce=env.randomness.token(16).hex(), renewals=0,
                       revision=newest.revision + 1)
    return Recreation(document, version, answered)


def write(admin: Admin, planned: Recreation) -> None:
    """Give the coordinator the document. Raises `SwapConflict`, `SwapUnknown`, `CoordinatorUnavailable`."""
    admin.coordinator.swap(planned.version, planned.document.encode(), admin.timeout)


def _newest(documents: list[ClusterDocument]) -> ClusterDocument:
    return max(documents, key=lambda document: (document.epoch, document.revision))


def _ask(admin: Admin, known: ClusterDocument) -> dict[str, _Seen]:
    found = {}
    for name, entry in known.members.items():
        try:
            with admin.peer(entry.address, known.secret) as peer:
                said = peer.command("document", {})
            document = ClusterDocument.decode(str(said["document"]).encode())
        except HoldfastError:
            continue
        registered = document.members.get(name)
        if document.store_id == known.store_id and registered is not None:
            # An opening since then could not be registered, so a higher number is right. A lower one is a copy's.
            counts = said["whole"] is True and int(said["generation"]) >= registered.generation
            found[name] = _Seen(document, int(said["promised"]), counts)
    return found


def _check_present(present: ClusterDocument, newest: ClusterDocument) -> None:
    if present.store_id != newest.store_id:
        raise InvalidInput(f"the coordinator has a cluster {present.cluster} with store {present.store_id[:8]}, and "
                           f"these members have store {newest.store_id[:8]}",
                           hint="use another coordinator, or have that cluster moved away")
    if (present.epoch, present.revision) >= (newest.epoch, newest.revision):
        raise InvalidInput(f"the coordinator has the document: revision {present.revision} of epoch {present.epoch}",
                           hint="nothing is to be done")
