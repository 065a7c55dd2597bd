"""A new epoch starts a segment whose header names it, also in a copy of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.engine.env import REAL
from holdfast.engine.errors import InvalidInput
from holdfast.engine.model.positions import Branch, History, origin
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.writer import LogOptions

START = origin(b"s" * 16)
HISTORY = History(b"s" * 16, (Branch(b"b" * 16, START),))
SMALL = LogOptions(segment_bytes=128 << 10, preallocate=False)


def test_each_epoch_of_a_copied_log_has_segments_of_its_own(tmp_path: Path) -> None:
    source = Log.create(tmp_path / "source", HISTORY, START, engine="none", options=SMALL, env=REAL)
    for epoch in (0, 0, 3, 3, 7):
        if epoch != source.epoch:
            source.writer.sync()
            source.writer.extend_history(HISTORY, epoch)
        source.writer.append(b"payload", 1)
    source.writer.sync()
    copy = Log.create(tmp_path / "copy", HISTORY, START, engine="none", options=SMALL, env=REAL)
    for record in source.read(0):
        copy.writer.append_record(record)  # synced at the end only: the epochs part the batches, too
    copy.writer.sync()
    assert [(s.epoch, s.first, s.last) for s in copy.segments()] == [(0, 1, 2), (3, 3, 4), (7, 5, 5)]
    copy.close()
    source.close()
    again = Log.open(tmp_path / "copy", options=SMALL, env=REAL)
    assert again.epoch == 7
    assert [r.epoch for r in again.read(0)] == [0, 0, 3, 3, 7]


def test_an_older_epoch_is_refused(tmp_path: Path) -> None:
    """A primary that was replaced and does not know it must not get its records stored."""
    source = Log.create(tmp_path / "source", HISTORY, START, engine="none", options=SMALL, env=REAL)
    late = source.writer.append(b"late", 1)
    source.writer.sync()
    fenced = Log.create(tmp_path / "fenced", HISTORY, START, engine="none", epoch=1, options=SMALL, env=REAL)
    with pytest.raises(InvalidInput):
        fenced.writer.append_record(late)
    assert fenced.writer.appended == START
    source.close()
    fenced.close()
