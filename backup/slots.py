"""`slots` and `drop_slot`: for whom a source keeps log, and an end to that for one whose target is gone."""

from __future__ import annotations

from typing import Any

from ..engine.source.interface import SlotState
from .connection import Connection, Named
from .keywords import given, refuse


def slots(source: Named, *, connection: Connection | None = None, **old: Any) -> list[SlotState]:
    """For whom a source keeps log, and how many bytes each holds back; the one that is farthest behind first.

    Args:
        source: a URI, an open store, or any `Source`.
        connection: token, TLS and time-out, for a URI.
        old: keywords of earlier releases, which are fields of `connection` now.

    Raises:
        SourceUnavailable, SourceRefused, NotAuthorized, ClusterUnavailable, InvalidInput, SettingError.
    """
    connection = given("consumers", Connection, connection, old)
    refuse("consumers", old)
    with connection.opened(source) as asked:
        return asked.slots()


def drop_slot(source: Named, slot_id: str, *, connection: Connection | None = None, **old: Any) -> None:
    """Keep no log for a slot any more. If its target is there still, its next run registers it anew, and takes a
    full backup if the log it needs is gone.

    Args:
        source, connection, old: as in `slots`.
        slot_id: as `slots` names it.

    Raises:
        NotFound: there is no such slot.
        SourceUnavailable, SourceRefused, NotAuthorized, ClusterUnavailable, InvalidInput, SettingError, DiskFull.
    """
    connection = given("drop_slot", Connection, connection, old)
    refuse("drop_slot", old)
    with connection.opened(source) as asked:
        asked.drop(slot_id)
