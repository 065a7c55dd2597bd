"""The policy of backup runs: what a run checks, what it keeps, when it compacts. Make it once, and pass it to each run
of a job."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..engine.env.shown import shown
from ..engine.errors import SettingError
from ..engine.store.settings import check_duration
from .limits import Limits
from .retention import KEEP_POINTS, cutoff_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What `run` checks and keeps, and when it compacts.

    Attributes:
        verify: after a full backup, replay and check the copy before it becomes the backup.
        fallback: if the source no longer has the log for an incremental, take a full backup as a new generation. If
            False, raise `LogPruned`.
        check: how much of the target is checked before log is added: `sample` (the sizes of all files, up to 16 chunks
            of the image and the newest segments; other chunks each time), or `all`.
        register: have the source keep its log for the next incremental. If False, the log may be gone by the next run,
            which then takes a full backup.
        keep_points: how long restore points are kept: "7 days", "12 hours", "for ever". With "none", compaction takes
            the whole log, and a full backup replaces what was there.
        compact: compact log that is older than the points to be kept, if the log is larger than this share of the
            image. None: never.
        compact_floor: bytes. A smaller log is not compacted.
        lease_ttl: seconds that the source keeps the lease of a run that died, so that the next run can resume it.
        limits: how much is handled at a time.

    Raises:
        SettingError: on construction, if a value is invalid.
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
