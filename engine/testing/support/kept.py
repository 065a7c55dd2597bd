"""States that earlier versions of an engine wrote, kept beside its author's tests, and what each must show.

`keep` makes one: a directory with `store.zip`, a store as a crash leaves it, half of it checkpointed and half in its
log; and `kept.json`, which says what wrote it and what it shows. Contents are kept as text, each part in Python's own
notation. Nothing is executed or unpickled to read it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...contract.engine import BulkEngine
from ...errors import SettingError
from .contract import scratch
from .modelled import Modelled
from .workload import Workload

_TRANSACTIONS = 24
_STORE, _WORDS = "store.zip", "kept.json"
_AN_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a kept state is.

    Attributes:
        state_format, payload_version: of the engine that wrote it.
        numbers: what was asked of `Workload.numbered`; all of it is there.
        digest: of its content, in hexadecimal digits.
        content: its content as text; empty if it cannot be written so.
    """

    state_format: int
    payload_version: int
    numbers: list[int]
    digest: str
    content: list[str]

    def unpack(self, kept: Path, where: Path) -> None:
        """Make the store of a kept state, which is in the directory `kept`."""
        with zipfile.ZipFile(kept / _STORE) as packed:
            packed.extractall(where)


def keep(work: Workload, directory: Path | str, name: str | None = None) -> Path:
    """Keep a state of an engine as it is now, below a directory of its author's tests; where it is.

    Args:
        work: the engine's workload.
        directory: of all kept states; it is made if it is missing.
        name: of this one; by default the versions of its formats.

    Raises:
        SettingError: there is one of this name.
    """
    engine = work.engine
    place = Path(directory) / (name or f"{engine.state_format}.{engine.payload_version}")
    if place.exists():
        raise SettingError(f"{place} is there, and a kept state stays as it is", hint="give another name")
    numbers = list(range(_TRANSACTIONS))
    with scratch() as root, Modelled(work, root) as kept:
        for number in numbers:
            kept.transact([*work.examples[number % len(work.examples)], *work.numbered(number)])
            if number == _TRANSACTIONS // 2:
                if issubclass(engine, BulkEngine):
                    kept.bulk(_TRANSACTIONS)
                kept.store.checkpoint()
        with kept.store.snapshot() as view:
            kept.compare(view)
            content = work.content(view)
            numbers = [number for number in numbers if work.shows(content, number)]  # some were deleted again
            what = Kept(engine.state_format, engine.payload_version, numbers, view.digest().hex(), as_text(content))
        image = kept.crash_image()
        place.mkdir(parents=True)
        with zipfile.ZipFile(place / _STORE, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(image.rglob("*")):
                if path.name != "LOCK":
                    packed.write(path, path.relative_to(image))
    (place / _WORDS).write_text(json.dumps(asdict(what), indent=1) + "\n", encoding="utf-8")
    return place


def kept_in(directory: Path | str) -> dict[Path, Kept]:
    """The kept states below a directory. Raises `SettingError` if one is not whole."""
    found = {}
    for words in sorted(Path(directory).glob(f"*/{_WORDS}")):
        try:
            found[words.parent] = Kept(**json.loads(words.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SettingError(f"{words} is not what `keep` writes: {error}", hint="restore it") from error
        if not (words.parent / _STORE).is_file():
            raise SettingError(f"{words.parent} has no {_STORE}", hint="restore it") from None
    return found


def as_text(content: Any) -> list[str]:
    """A content as text, the same for equal contents: the parts of a mapping or a set in order. Empty if that is
    impossible: its text holds an address."""
    text = sorted(map(_text, content.items())) if isinstance(content, Mapping) else [_text(content)]
    return [] if any(map(_AN_ADDRESS.search, text)) else text


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_text(key)}: {_text(of)}' for key, of in value.items()))}}}"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return f"({', '.join(map(_text, value))})"
    return repr(value)
