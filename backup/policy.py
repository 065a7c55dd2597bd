"""How a backup run goes about it: what it checks, what it keeps, when it compacts. One object, made once and passed to
each run of a job."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..engine.env.shown import shown
from ..engine.errors import SettingError
from ..engine.store.settings import check_duration
from .limits import Limits
from .retention import KEEP_POINTS, cutoff_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How `run` goes about it.

    Attributes:
        verify: replay and check the copy after a full backup; it does not count before.
        fallback: if the source no longer has the log for an incremental, take a full one as a new generation. Without
            it that is `LogPruned`.
        check: how the target is looked at before log is added to it: `sample` (the sizes of all files, up to 16 chunks
            of the image, the newest segments, another part each time), or `all` of it.
        register: have the source keep its log for the next incremental. Without it, a target whose next run comes late
            gets a full one.
        keep_points: how long restore points are kept: "7 days", "12 hours", "for ever". With "none" compaction takes
            all of the log, and a full backup the place of what was there.
        compact: move log that is older than the points to be kept into the image when it is larger than this share of
            the image. None: never.
        compact_floor: bytes; a log smaller than this is not compacted.
        lease_ttl: seconds for which the source waits for a run that died to be run again, which goes on then.
        limits: how much is taken at a time.

    Raises:
        SettingError: when it is made, if a value is not what it should be.
    """

    verify: bool = True
    fallback: bool = True
    check: str = "sample"
    register: bool = True
    keep_points: str = KEEP_POINTS
    compact: float | None = 1.0
    compact_floor: int = 64 << 20
    lease_ttl: float = 300.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.check not in ("sample", "all"):
            raise SettingError(f"check is 'sample' or 'all', not {self.check!r}")
        if self.compact is not None and (type(self.compact) not in (int, float) or not self.compact >= 0):
            raise SettingError(f"compact is a share of the image, 0 or more, not {shown(self.compact)}")
        if type(self.compact_floor) is not int or self.compact_floor < 0:
            raise SettingError(f"compact_floor is a whole number of bytes, 0 or more, not {shown(self.compact_floor)}")
        check_duration("lease_ttl", self.lease_ttl)
        if not isinstance(self.limits, Limits):
            raise SettingError(f"{shown(self.limits)} is not a Limits")
        cutoff_us(self.keep_points, 0)
