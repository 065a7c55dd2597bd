"""A cluster of members in one process, of one of the kit's engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from store_kinds import MEMORY, Kind

from holdfast.replay.ha.service import Member
from holdfast.replay.testing.members import PATIENCE, TTL, MemberCluster

__all__ = ["PATIENCE", "TTL", "Cluster", "put"]


class Cluster(MemberCluster):
    """See `MemberCluster`."""

    def __init__(self, root: Path, kind: Kind = MEMORY) -> None:
        super().__init__(root, kind.engine)
        self.kind = kind


def put(member: Member[Any, Any], key: bytes, **how: Any) -> int:
    with member.transaction(**how) as tx:
        tx.put(key, b"value")
    txid: int = tx.txid
    return txid
