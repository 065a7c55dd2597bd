"""The segments of a log as the writer adds to them and pruning removes some, in two threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from log_world import HERE, World

from holdfast.engine.errors import Damaged
from holdfast.engine.testing.disks.quiet import quiet_env
from holdfast.engine.testing.support.interleave import Beside
from holdfast.engine.wal.listing import Listing, SegmentSet
from holdfast.engine.wal.log import Log
from holdfast.engine.wal.segment import Segment


@pytest.mark.parametrize("during", ["with_last", "without_first", "with_first"])
def test_a_rotation_and_a_pruning_at_once_lose_nothing(during: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes a new listing of the present one, and the other comes when that is made and not yet in its place."""
    world = World()
    world.fill(30)
    *before, last = [Segment.load(world.env.files, segment.path) for segment in world.log.segments()]
    assert len(before) >= 3
    ordinals = [segment.header.ordinal for segment in (*before, last)]
    segments = SegmentSet(Listing(world.env.files, HERE, [*before]), world.env)
    beside, busy = Beside(), [True]
    make: Callable[..., Listing] = getattr(Listing, during)

    def add() -> None:
        segments.add(last)

    def remove() -> None:
        segments.remove_first(before[:2], but=before[:1])

    first, second = (add, remove) if during == "with_last" else (remove, add)

    def interrupted(listing: Listing, *args: Any) -> Listing:
        made = make(listing, *args)
        if busy:
            busy.clear()
            beside.run(second)
        return made

    monkeypatch.setattr(Listing, during, interrupted)
    first()
    beside.finish()
    assert [segment.header.ordinal for segment in segments.listing] == [ordinals[0], *ordinals[2:]]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_segment_that_is_missing_is_missed_at_once(read_only: bool) -> None:
    """Wherever it was, although an opening reads none but the last two. The one after it is named."""
    world = World()
    world.fill(30)
    world.log.close()
    paths = [segment.path for segment in world.log.segments()]
    assert len(paths) >= 5
    for gone, following in pairwise(paths[1:]):
        disk = world.disk.copy()
        disk.unlink(gone)
        with pytest.raises(Damaged, match="the segment before this one is missing") as caught:
            Log.open(HERE, options=world.options, env=quiet_env(disk), read_only=read_only)
        assert caught.value.path == str(following)
    assert len(Log.open(HERE, options=world.options, env=world.env, read_only=read_only).segments()) == len(paths)
