"""`slots` and `drop_slot`: for whom a source keeps log, and an end to that for one whose target is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.source.interface import SlotState, Source
from ..engine.store.store import Store
from .run import opened_source


def slots(source: str | Store[Any, Any] | Source, *, token: str | None = None, tls: bool | None = None,
          ca: str | Path | None = None, timeout: float = 30.0) -> list[SlotState]:
    """For whom a source keeps log, and how many bytes each holds back; the one that is farthest behind first.

    Args:
        source: a URI, an open store, or any `Source`.
        token, tls, ca, timeout: as in `run`.

    Raises:
        SourceUnavailable, SourceRefused, NotAuthorized, ClusterUnavailable, InvalidInput.
    """
    with opened_source(source, token, tls, ca, timeout) as asked:
        return asked.slots()


def drop_slot(source: str | Store[Any, Any] | Source, slot_id: str, *, token: str | None = None,
              tls: bool | None = None, ca: str | Path | None = None, timeout: float = 30.0) -> None:
    """Keep no log for a slot any more. If its target is there still, its next run registers it anew, and takes a
    full backup if the log it needs is gone.

    Args:
        source, token, tls, ca, timeout: as in `slots`.
        slot_id: as `slots` names it.

    Raises:
        NotFound: there is no such slot.
        SourceUnavailable, SourceRefused, NotAuthorized, ClusterUnavailable, InvalidInput, DiskFull.
    """
    with opened_source(source, token, tls, ca, timeout) as asked:
        asked.drop(slot_id)
