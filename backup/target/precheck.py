"""A look at a target before log is added to it: what was cut, emptied or damaged since is found before a run builds on
it, says "done", and lets the source prune the log that would have mended it.

A look reads as much however large the target is: a sample of the image's chunks, and the newest segments and one other.
The sample goes on where the last run's ended, so that all is seen in the course of some runs. The sizes of all the
image's files are compared each time. `every` looks at all of it, as `verify` does, but for the replay.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from ...engine.errors import Damaged
from ...replay.files import DigestedFiles
from ..manifest import Manifest
from .target import Target


def look(target: Target, *, number: int, every: bool, chunks: int) -> None:
    """Compare what is there with what the manifest and the log's footers say. Which sample of so many `chunks` is
    taken follows from `number`, which grows by one from look to look.

    Raises:
        Damaged: something is missing, or not what it was.
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
    """Read `count` chunks of the image from number `first` on, beginning again after the last; each at most once."""
    ends = list(accumulate(len(copied.digests) for copied in manifest.files))
    total = ends[-1] if ends else 0
    for number in range(first, first + min(count, total)):
        chunk = number % total
        at = bisect_right(ends, chunk)
        copied = manifest.files[at]
        offset = (chunk - (ends[at] - len(copied.digests))) * manifest.chunk_bytes
        image.read(copied.name, offset, min(manifest.chunk_bytes, copied.size - offset))
