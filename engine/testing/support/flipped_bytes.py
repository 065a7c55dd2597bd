"""Flipped bytes in the files of a store: found, or harmless, and never a silently different state.

What a damaged store may do: refuse to open with one of the kit's errors; open, and have the engine's own check or its
reading say what is wrong; or show exactly what was written, because nobody needs the byte. After an unclean stop the
last group of the log cannot be told from a torn one: it may be cut, and then recovery reports that.

The places are chosen by what they hold: each field of each header, frame, record and footer; then some at random.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...contract.view import View
from ...errors import HoldfastError
from ...wal.format import FRAME, GROUP_HEADER, TRAILER
from .crash_images import group_ends, segments_of
from .modelled import Modelled, difference
from .ways import short
from .workload import KeyValues, Workload

DOCUMENT_FIELDS = (0, 7, 8, 12, 15, 16, 17)
"""Where the fields of a document, or of a state file, begin: magic, version, length, and the body or what follows."""
GROUP_FIELDS = (0, 4, 8, 12, 16, 24, 32, 40, 48, 55)
_TOLD_BY, _MOST_BEFORE = 40, 64
"""Bytes of a text by which a record is found, and of the record before it."""
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


def records_over_others(files: Mapping[str, bytes],
                        records: Sequence[Sequence[bytes]]) -> Iterator[tuple[str, str, bytes]]:
    """Files in which one record was copied over the next one, if there are some that are equally long, side by side:
    name, what was done, and the bytes. Nobody tells where a record begins, so each place before its text is tried.

    Args:
        records: texts that each has in it; the first is a key of each, say, and the second a value.
    """
    for name, data in files.items():
        for texts in zip(*records, strict=False):
            places = sorted({at for text in texts if (at := data.find(text[:_TOLD_BY])) >= 0})
            steps = [after - at for at, after in pairwise(places)]
            at, step = next(((at, step) for at, step, following in zip(places, steps, steps[1:], strict=False)
                             if step == following), (0, 0))
            for begins in range(max(0, at - min(step - 1, _MOST_BEFORE)), at + 1) if step else ():
                changed = bytearray(data)
                changed[begins + step : begins + 2 * step] = data[begins : begins + step]
                if changed != data and len(changed) == len(data):
                    yield name, f"the {step} bytes at {begins} also at {begins + step}", bytes(changed)
            if step:
                break


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


def looked_up(work: Workload, view: View, tx: Any, content: Any, *, absent: bool | None = None) -> str:
    """What a look-up shows that should show a value of `content` or raise an error of the kit's, in words: look-ups are
    most of what users do, and nobody has run `check` before. Empty if nothing is wrong.

    Args:
        tx: a transaction, of the view's position; None if there is none.
        absent: whether a look-up may find nothing. By default it may if the engine writes through a library, which it
            has to trust that a key is not there.
    """
    if not isinstance(work, KeyValues):
        return ""
    absent = not work.above_env if absent is None else absent
    looks: dict[str, Callable[[Any], Any]] = {}
    if work.ways.find is not None:
        looks["find()"] = partial(work.ways.find, view)
    if work.get is not None and tx is not None:
        looks["get() in a transaction"] = partial(work.get, tx)
    for key, value in content.items():
        for name, look in looks.items():
            try:
                found = look(key)
            except HoldfastError:
                continue
            if found != value and not (absent and found is None):
                return (f"{name} of {short(key)} gives {short(found)}, and {short(value)} was written: a look-up that "
                        "comes upon damage raises Damaged")
    return ""


def _look(kept: Modelled, damaged: Path, what: str, at_least: int) -> None:
    try:
        store = kept.opened(damaged)
    except HoldfastError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: opening raised a bare {error!r}; say Damaged") from error
    with store:
        with store.snapshot() as view:
            if view.txid <= kept.last:
                with store.transaction() as tx:
                    wrong = looked_up(kept.work, view, tx, kept.work.expected(kept.models[view.txid]))
                assert not wrong, f"{what}: at transaction {view.txid}, {wrong}"
            if list(view.check()):
                return
            txid, content, digest = view.txid, kept.work.content(view), view.digest()
        assert at_least <= txid <= kept.last, f"{what}: it shows transaction {txid} of {kept.last}, and no error"
        where = difference(content, kept.work.expected(kept.models[txid]))
        assert not where, f"{what}: no error, and at transaction {txid} something else is shown: {where}"
        assert kept.digests.setdefault(txid, digest) == digest, f"{what}: no error, and another digest"
        reported = store.recovery.cut_bytes
        assert txid == kept.last or reported, f"{what}: transaction {kept.last} was cut, and that is not reported"
