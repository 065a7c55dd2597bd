"""The sizes that backups work in."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..engine.env.shown import shown
from ..engine.errors import SettingError
from ..engine.source.interface import CHUNK_BYTES
from ..replay.roll import BATCH_RECORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much `run` and `verify` handle at a time. The defaults suit stores of any size.

    Attributes:
        chunk_bytes: bytes of an image or a bulk load that are copied at a time. Each chunk of an image has a digest.
        batch_records: the most transactions of log that are synced in one go.
        memory_log_bytes: to check a copy, a log of up to so many bytes is replayed in memory, a larger one over a
            scratch copy. In memory a record can take twenty times its bytes in the log (an edge takes 31 there, and 650
            in the graph's overlay), and all records are held until the check has ended.
        sampled_chunks: how many chunks of the image a run reads before it adds log.
        runs: how many runs a manifest remembers, besides the one that took its image.

    Raises:
        SettingError: on construction, if a value is invalid.
    """

    chunk_bytes: int = CHUNK_BYTES
    batch_records: int = BATCH_RECORDS
    memory_log_bytes: int = 2 << 20
    sampled_chunks: int = 16
    runs: int = 100

    def __post_init__(self) -> None:
        for one in fields(self):
            value, least = getattr(self, one.name), int(one.name in ("chunk_bytes", "batch_records", "runs"))
            if type(value) is not int or value < least:
                raise SettingError(f"{one.name} must be a whole number, {least} or more, not {shown(value)}")
        if self.chunk_bytes > CHUNK_BYTES:
            raise SettingError(f"chunk_bytes must be at most {CHUNK_BYTES:,}, since a source gives no more at once, "
                               f"not {self.chunk_bytes:,}")
