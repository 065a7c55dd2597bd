"""The settings of a store, with their defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import renamed
from ..contract.transaction import Durability
from ..env import LONGEST_WAIT_S, Files
from ..env.shown import shown
from ..errors import SettingError
from ..wal.retention import KeepLogs
from ..wal.writer import LogOptions

LEAST_IMAGE_RATE = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a store behaves. Sizes are whole numbers of bytes above 0, times are finite and above 0. Any other value
    raises `SettingError`.

    Attributes:
        durability: the default for commits. `synced`: the commit returns when it is acknowledged. `pipelined`: it
            returns when it is appended, and the transaction's `outcome` is a future that is done when it is
            acknowledged. `relaxed`: it returns when it is appended, and is synced within `relaxed_ms`. A crash before
            that loses it; a crash loses only the newest commits, never one in the middle.
        relaxed_ms: the longest time before a relaxed commit is synced, milliseconds.
        segment_bytes: size of a log segment, 128 KiB to 64 MiB. The first ones after an opening are smaller.
        max_record_bytes: the largest payload of one transaction.
        unwritten_bytes: how much may be appended and not yet written. Above that, new transactions wait.
        keep_logs: how much log to keep, whichever bound comes first: "7 days, 4 GiB", "1000 transactions", "for ever".
            At most half of the file system, unless it is "for ever".
        slot_bytes, slot_days: how far a registered slot (a backup target) may lag before it is dropped; at most half of
            the file system.
        checkpoint_soft_bytes: when this much is not checkpointed, a checkpoint starts.
        checkpoint_hard_bytes: when this much is not checkpointed, commits wait for the checkpoint.
        replay_memory_bytes: a read-only opening replays up to this much log in memory, and more into a scratch copy.
        heartbeat_s: how often an idle log gets a heartbeat, seconds; 0 for never.
        wait_s: how long a commit waits at a bound before it gives up with `RolledBack`, seconds.
        clock_is_right: the operator says that the clock is right, so the ages of log and slots are measured by it at
            once. Otherwise, a clock that is ahead of the log's last time on opening is believed only when the store
            has been open for an hour.
        image_rate: bytes per second of the store's images that are given out while transactions commit, to all copies
            together; 64 KiB or more, or None for no bound. If there was no transaction for a second, there is no bound.
        hook_s: how long a plugin may take over a transaction, seconds. Every other commit waits meanwhile, so if a
            plugin takes longer, the transaction is rolled back.
    """

    durability: Durability = "synced"
    relaxed_ms: int = 100
    segment_bytes: int = 16 << 20
    max_record_bytes: int = 64 << 20
    unwritten_bytes: int = 32 << 20
    keep_logs: str = "7 days, 4 GiB"
    slot_bytes: int = 16 << 30
    slot_days: float = 14
    checkpoint_soft_bytes: int = 64 << 20
    checkpoint_hard_bytes: int = 256 << 20
    replay_memory_bytes: int = 256 << 20
    heartbeat_s: float = 10
    wait_s: float = 60
    image_rate: float | None = 32 << 20
    hook_s: float = 5
    clock_is_right: bool = False

    def __post_init__(self) -> None:
        if self.durability not in ("synced", "pipelined", "relaxed"):
            raise SettingError(f"durability must be 'synced', 'pipelined' or 'relaxed', not {shown(self.durability)}")
        for name in ("segment_bytes", "max_record_bytes", "unwritten_bytes", "slot_bytes", "checkpoint_soft_bytes",
                     "checkpoint_hard_bytes", "replay_memory_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise SettingError(f"{name} must be a whole number of bytes above 0, not {shown(value)}")
        if self.checkpoint_soft_bytes > self.checkpoint_hard_bytes:
            raise SettingError("checkpoint_soft_bytes is above checkpoint_hard_bytes")
        for name, seconds in (("relaxed_ms", 0.001), ("slot_days", 86_400), ("wait_s", 1), ("hook_s", 1)):
            check_duration(name, getattr(self, name), seconds)
        rate = self.image_rate
        if rate is not None and (type(rate) not in (int, float) or not LEAST_IMAGE_RATE <= rate < float("inf")):
            raise SettingError(f"image_rate must be None or a number of bytes per second, {LEAST_IMAGE_RATE:,} or "
                               f"more, not {shown(rate)}")
        if self.heartbeat_s != 0:
            check_duration("heartbeat_s", self.heartbeat_s)
        KeepLogs.parse(self.keep_logs)
        LogOptions(segment_bytes=self.segment_bytes)

    @property
    def log_options(self) -> LogOptions:
        return LogOptions(segment_bytes=self.segment_bytes, max_record_bytes=self.max_record_bytes)


Settings.__init__ = renamed.arguments(  # type: ignore[method-assign]
    consumer_bytes="slot_bytes", consumer_days="slot_days")(Settings.__init__)


def check_duration(name: str, value: object, seconds: float = 1) -> None:
    """Raises `SettingError` if `value` is not a length of time above 0 that a thread can wait for. `seconds`: the unit
    of `value`."""
    most = LONGEST_WAIT_S / seconds
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise SettingError(f"{name} must be a number above 0 and at most {most:,.0f}, not {shown(value)}")


def checked_options(options: Mapping[str, Any] | None, files: Files) -> dict[str, Any]:
    """An engine's options, with every `Path` made absolute. Raises `SettingError` if they are not a mapping."""
    if options is not None and not isinstance(options, Mapping):
        raise SettingError(f"the engine's options must be a mapping, not {shown(options)}")
    return {name: files.absolute(value) if isinstance(value, Path) else value
            for name, value in (options or {}).items()}
