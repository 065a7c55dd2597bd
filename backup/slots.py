"""`slots` and `drop_slot`: list the slots that a source keeps log for, and drop one whose target is gone."""

from __future__ import annotations

from typing import Any

from ..engine import renamed
from ..engine.source.interface import SlotState
from . import cluster
from .connection import Connection, Named
from .keywords import given, refuse
from .uri import parse


def slots(source: Named, *, connection: Connection | None = None, **old: Any) -> list[SlotState]:
    """The slots that a source keeps log for, and how many bytes each holds back. The farthest behind comes first.

    Args:
        source: a URI, an open store, or any `Source`. With `ha://`, all members are asked.
        connection: token, TLS and time-out, for a URI.
        old: keywords of earlier releases, which are fields of `connection` now.

    Raises:
        SourceUnavailable, SourceRefused, NotAuthorized, ClusterUnavailable, InvalidInput, SettingError.
    """
    connection = given("slots", Connection, connection, old)
    refuse("slots", old)
    if isinstance(source, str) and (uri := parse(source)).mode == "ha":
        return cluster.slots(uri, connection)
    with connection.opened(source) as asked:
        return asked.slots()


@renamed.arguments(consumer_id="slot_id")
def drop_slot(source: Named, slot_id: str, *, connection: Connection | None = None, **old: Any) -> None:
    """Stop keeping log for a slot. If its target still exists, the target's next run registers it anew, and takes a
    full backup if the log that it needs is gone.

    Args:
        source, connection, old: as in `slots`.
        slot_id: its id, as `slots` gives it.

    Raises:
        NotFound: there is no such slot.
        SourceUnavailable, SourceRefused, NotAuthorized, ClusterUnavailable, InvalidInput, SettingError, DiskFull.
    """
    connection = given("drop_slot", Connection, connection, old, 3)  # 3: the decorator `renamed` adds a call
    refuse("drop_slot", old)
    if isinstance(source, str) and (uri := parse(source)).mode == "ha":
        cluster.drop_slot(uri, connection, slot_id)
        return
    with connection.opened(source) as asked:
        asked.drop(slot_id)
