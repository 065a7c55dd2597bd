"""A look at a target before log is added to it.

It finds files that were cut, emptied or damaged since the last run. Otherwise the run would build on them and succeed,
and the source would prune the log that could have repaired the backup.

A look costs the same for any size of target: it reads a sample of the image's chunks, the newest segments and one
other. Each run's sample continues where the last one ended, so over many runs all is read. The sizes of the image's
files are all compared each time. With `every`, everything is read, as in `verify`, but nothing is replayed.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from ...engine.errors import Damaged
from ...replay.files import DigestedFiles
from ..manifest import Manifest
from .target import Target


def look(target: Target, *, number: int, every: bool, chunks: int) -> None:
    """Compare the target with its manifest and its log's footers. `chunks`: the size of the sample. `number`: the
    number of the look, which grows by one each time and chooses the sample.

    Raises:
        Damaged: something is missing or has changed.
    """
    files, manifest, log = target.env.files, target.manifest, target.log
    for copied in manifest.files:
        path = target.generation.state / copied.name
        size = files.size(path) if files.exists(path) else None
        if size != copied.size:
            raise Damaged("is missing" if size is None else f"has {size:,} bytes, and had {copied.size:,} when it was "
                          "copied", path=str(path))
    with target.image() as image:
        if every:
            image.verify()
            log.verify()
            return
        _sample(image, manifest, number * chunks, chunks)
    log.verify_part(number)


def _sample(image: DigestedFiles, manifest: Manifest, first: int, count: int) -> None:
    """Read `count` chunks of the image from number `first` on, wrapping around at the end. None is read twice."""
    ends = list(accumulate(len(copied.digests) for copied in manifest.files))
    total = ends[-1] if ends else 0
    for number in range(first, first + min(count, total)):
        chunk = number % total
        at = bisect_right(ends, chunk)
        copied = manifest.files[at]
        offset = (chunk - (ends[at] - len(copied.digests))) * manifest.chunk_bytes
        image.read(copied.name, offset, min(manifest.chunk_bytes, copied.size - offset))
