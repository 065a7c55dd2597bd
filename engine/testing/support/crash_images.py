"""Crash images: what is on the disk of a store that runs, copied at one moment, as a crash at that moment leaves it.

What was being written then may have reached the disk or not, in part, or as garbage. `unlucky` changes the end of an
image's log in that way. It touches only what no sync had confirmed by the time of the copy, so a store that is opened
on the image must show everything that was acknowledged before.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ...contract.image import Image
from ...env import REAL
from ...errors import Damaged
from ...wal.format import BadBytes, read_footer, read_groups, read_header

TAILS = ("as it is", "noise behind", "torn")
EVERYTHING = 1 << 62
"""A txid above all others: no part of the log's end may be torn."""


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a directory, but for the note of who holds its lock."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*"))
            if p.is_file() and p.name != "LOCK"}


def read_image(image: Image) -> dict[str, bytes]:
    """Every byte of an image, by name."""
    return {file.name: image.read(file.name, 0, file.size) for file in image.files}


def copy_running(store: Path, image: Path) -> None:
    """Copy the directory of a store that runs, as it was at one moment: again, until nothing changed meanwhile."""
    for _ in range(100):
        shutil.rmtree(image, ignore_errors=True)
        with suppress(shutil.Error, FileNotFoundError):
            shutil.copytree(store, image)
            if tree(image) == tree(store):
                return
    raise AssertionError("the store does not come to rest, although nobody writes to it")


def log_of(store: Path) -> Path:
    """The directory of a store's log."""
    return store / (store / "CURRENT").read_text().strip() / "log"


def state_of(store: Path) -> Path:
    """The directory of a store's state."""
    return store / (store / "CURRENT").read_text().strip() / "state"


def segments_of(store: Path) -> list[Path]:
    """The segments of a store's log, oldest first."""
    return sorted(path for path in log_of(store).glob("*.seg") if path.name[:12].isdigit())


class GroupEnd(NamedTuple):
    """Where a group ends in its segment, and the last transaction up to there."""

    offset: int
    txid: int


def group_ends(segment: Path) -> tuple[list[GroupEnd], bool]:
    """Where the groups of a segment end, its header first (before any group), and whether it is sealed."""
    file = REAL.files.open(segment)
    try:
        header, start = read_header(file)
        footer = read_footer(file)
        ends = [GroupEnd(start, header.base.txid)]
        with suppress(BadBytes):
            end = file.size() if footer is None else footer.data_end
            for group in read_groups(file, header.seed, start, end, header.base):
                ends.append(GroupEnd(group.end, group.records[-1].txid if group.records else ends[-1].txid))
        return ends, footer is not None
    finally:
        file.close()


def unlucky(store: Path, tail: str, noise: bytes, share: float, outside: int) -> int:
    """Change the end of a crash image's log as a disk might have left it; the last transaction that is surely there.

    Args:
        store: the image.
        tail: one of `TAILS`. `noise behind`: garbage follows the last group. `torn`: the last group lacks its bytes
            from `share` of it on, unless it holds transactions up to `outside`, which were synced before.
    """
    segments = segments_of(store)
    if tail == "as it is" or not segments:
        return EVERYTHING
    segment = segments[-1]
    try:
        ends, sealed = group_ends(segment)
    except Damaged:
        return EVERYTHING  # the opening that follows says what is wrong
    if sealed:
        return EVERYTHING  # nothing was being written
    at, last = ends[-1]
    if tail == "torn" and len(ends) > 1 and ends[-2].txid >= outside:
        before, last = ends[-2]
        at, noise = before + round(share * (at - before)), b""
    data = bytearray(segment.read_bytes())
    data[at:] = bytes(len(data) - at)
    data[at : at + len(noise)] = noise
    segment.write_bytes(data)
    return last
