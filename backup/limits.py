"""The sizes that backups work in."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..engine.env.shown import shown
from ..engine.errors import SettingError
from ..engine.source.interface import CHUNK_BYTES
from ..replay.roll import BATCH_RECORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much `run` and `verify` take at a time. The defaults suit stores of any size.

    Attributes:
        chunk_bytes: of an image or a bulk load, copied at a time. Each chunk of an image has a digest of its own.
        batch_records: transactions of log that are synced in one go, at most.
        memory_log_bytes: a log up to this is replayed in memory to check the copy, and a larger one over a scratch
            copy. What an engine holds of a record can be twenty times its bytes in the log (an edge takes 31 there, and
            650 in the graph's overlay), and all of it is held until the check is through.
        sampled_chunks: how many chunks of the image a run reads before log is added to it.
        runs: how many runs a manifest remembers, besides the one that took its image.

    Raises:
        SettingError: when it is made, if a value is not what it should be.
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
                raise SettingError(f"{one.name} is a whole number, {least} or more, not {shown(value)}")
        if self.chunk_bytes > CHUNK_BYTES:
            raise SettingError(f"chunk_bytes is at most {CHUNK_BYTES:,}, which a source gives at once, not "
                               f"{self.chunk_bytes:,}")
