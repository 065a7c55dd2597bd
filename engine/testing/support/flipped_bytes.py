"""Flipped bytes in the files of a store: found, or harmless, and never a silently different state.

What a damaged store may do: refuse to open with one of the kit's errors; open, and have the engine's own check or its
reading say what is wrong; or show exactly what was written, because nobody needs the byte. After an unclean stop the
last group of the log cannot be told from a torn one: it may be cut, and then recovery reports that.

The places are chosen by what they hold: each field of each header, frame, record and footer; then some at random.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ...errors import HoldfastError
from ...wal.format import FRAME, GROUP_HEADER, TRAILER
from .crash_images import group_ends, segments_of
from .modelled import Modelled, difference

DOCUMENT_FIELDS = (0, 7, 8, 12, 15, 16, 17)
"""Where the fields of a document, or of a state file, begin: magic, version, length, and the body or what follows."""
GROUP_FIELDS = (0, 4, 8, 12, 16, 24, 32, 40, 48, 55)
FRAME_FIELDS = (0, 4, 8, 15)


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change some bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def places_in_segment(path: Path) -> list[int]:
    """An offset for each field of a segment, those of its first and last group included."""
    ends, sealed = group_ends(path)
    size, start = path.stat().st_size, ends[0].offset
    places = [*DOCUMENT_FIELDS, start // 2, start - 1]
    for at, stop in {(ends[0].offset, ends[1].offset), (ends[-2].offset, ends[-1].offset)} if len(ends) > 1 else ():
        frame = at + GROUP_HEADER.size
        record = frame + FRAME.size
        places += [at + field for field in GROUP_FIELDS]
        places += [frame + field for field in FRAME_FIELDS]
        places += [record, record + 1, record + 2, (record + stop) // 2, stop - 1]
    end = ends[-1].offset
    if sealed:
        places += [end, end + 1, (end + size - TRAILER.size) // 2]
        places += [size - TRAILER.size + field for field in (0, 8, 12, 16, 31)]
    else:
        places += [end, end + 1, end + GROUP_HEADER.size, size - 1]
    return sorted({place for place in places if place < size})


def places_in(path: Path) -> list[int]:
    """Offsets in a file of which nothing is known but that it begins with a head and ends with a checksum."""
    size = path.stat().st_size
    places = [*DOCUMENT_FIELDS, *range(20, 72, 4), size // 4, size // 2, 3 * size // 4, size - 17, size - 16, size - 1]
    return sorted({place for place in places if 0 <= place < size})


def damaged(kept: Modelled, whole: Path, path: Path, offset: int, mask: int) -> Path:
    """A copy of `whole` with some bits of one byte flipped."""
    copy = kept.fresh("damaged")
    shutil.copytree(whole, copy)
    flip(copy / path.relative_to(whole), offset, mask)
    return copy


def must_be_found(kept: Modelled, whole: Path, path: Path, offset: int, mask: int) -> None:
    """Open a copy of `whole` with one byte flipped."""
    what = f"byte {offset} of {path.relative_to(whole)} flipped (xor {mask})"
    in_last_group = False
    if path in segments_of(whole):
        ends, sealed = group_ends(path)
        in_last_group = not sealed and offset >= ends[-2 if len(ends) > 1 else -1].offset
    copy = damaged(kept, whole, path, offset, mask)
    try:
        _look(kept, copy, what, kept.last - in_last_group)
    except HoldfastError:
        return  # found
    finally:
        shutil.rmtree(copy)


def _look(kept: Modelled, damaged: Path, what: str, at_least: int) -> None:
    try:
        store = kept.opened(damaged)
    except HoldfastError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: opening raised a bare {error!r}; say Damaged") from error
    with store:
        with store.snapshot() as view:
            if list(view.check()):
                return
            txid, content, digest = view.txid, kept.work.content(view), view.digest()
        assert at_least <= txid <= kept.last, f"{what}: it shows transaction {txid} of {kept.last}, and no error"
        where = difference(content, kept.work.expected(kept.models[txid]))
        assert not where, f"{what}: no error, and at transaction {txid} something else is shown: {where}"
        assert kept.digests.setdefault(txid, digest) == digest, f"{what}: no error, and another digest"
        reported = store.recovery.cut_bytes
        assert txid == kept.last or reported, f"{what}: transaction {kept.last} was cut, and that is not reported"
