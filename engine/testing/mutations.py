"""Mutations of files, and processes that look at what was mutated.

A mutation changes one file of a directory as a bad disk, a bad cable, a bad copy or a bad hand may: a bit or a byte is
another one, a range is zeros, the file is shorter, longer or gone, two of its blocks have changed places, a block is as
it was once, there is another file with the same bytes. Whoever then opens the directory may find out, with one of the
kit's errors, or show exactly what was written. It may not crash, hang, raise a bare Python error, or show anything
else.

What is looked at may end the process (a library is led out of its map), so each is looked at in a process of its own,
which is forked from one that has imported everything.
"""

from __future__ import annotations

import logging
import os
import random
import re
import resource
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import HoldfastError

BLOCK = 4096
"""Bytes of what is exchanged, and of what is as it was once."""
KINDS = ("bit", "bit", "bit", "byte", "zeros", "shorter", "longer", "exchanged", "stale", "doubled", "gone")
"""What may happen to a file; what is named more often does."""
LIMIT_S = 30.0
"""Who looks for so long hangs."""
_MEMORY = 2 << 30
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, lie evenly between 0 and 1, however many there are."""
_NUMBER = re.compile(r"\d+")

Tree = Mapping[str, bytes]
"""Files by their path below a directory."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """What was done to `name`: bytes from `first` to before `end` are others. `text` says it in words; `files` are
    what is there in its place, by name, and None for what is gone."""

    name: str
    first: int
    end: int
    text: str
    files: Mapping[str, bytes | None]


def draw(drawn: random.Random, tree: Tree, older: Tree) -> Mutation:
    """A mutation of a directory that changes something. `older` are its files as they once were."""
    state = _state_of(tree)
    while True:
        # Half of them of the engine's own files: of the kit's there are many, and most are small.
        name = drawn.choice(state if state and drawn.random() < 0.5 else sorted(tree))
        made = _made(drawn, drawn.choice(KINDS), name, tree, older.get(name, b""))
        if made is not None and any(tree.get(other) != data for other, data in made.files.items()):
            return made


def flipped(drawn: random.Random, tree: Tree, number: int) -> Mutation | None:
    """One bit of an engine's own files, of bytes that are not zero: much of a file is room. Where it lies follows from
    `number`, so that a few lie evenly over all of them; None if there are no such bytes."""
    places = [(name, at) for name in _state_of(tree) for at, byte in enumerate(tree[name]) if byte]
    if not places:
        return None
    name, at = places[int(number * _GOLDEN % 1 * len(places))]
    bit, changed = drawn.randrange(8), bytearray(tree[name])
    changed[at] ^= 1 << bit
    return Mutation(name, at, at + 1, f"bit {bit} of byte {at} flipped", {name: bytes(changed)})


def _state_of(tree: Tree) -> list[str]:
    return sorted(name for name in tree if "state" in Path(name).parts[:-1])


def _place(drawn: random.Random, data: bytes) -> int:
    """An offset; mostly one where something was written."""
    used = len(data.rstrip(b"\0"))  # only to aim: a miss is a mutation too
    return drawn.randrange(used if used and drawn.random() < 0.8 else len(data))


def _made(drawn: random.Random, kind: str, name: str, tree: Tree, older: bytes) -> Mutation | None:
    data, size = tree[name], len(tree[name])
    if kind == "gone":
        return Mutation(name, 0, size, "gone", {name: None})
    if kind == "doubled":
        number = _NUMBER.search(Path(name).name)
        stem = name.removesuffix(Path(name).name)
        twin = f"copy of {Path(name).name}" if number is None or drawn.random() < 0.3 else _NUMBER.sub(
            lambda m: str(int(m[0]) + 1).zfill(len(m[0])), Path(name).name, count=1)
        return Mutation(name, size, size, f"also there as {stem}{twin}", {stem + twin: data})
    if kind == "longer":
        more = drawn.choice((1, 100, BLOCK, 70_000))
        tail = bytes(more) if drawn.random() < 0.5 else drawn.randbytes(more)
        return Mutation(name, size, size, f"{more} bytes longer", {name: data + tail})
    if not data:
        return None
    at = _place(drawn, data)
    if kind == "shorter":
        return Mutation(name, at, size, f"cut at byte {at}", {name: data[:at]})
    changed = bytearray(data)
    if kind == "bit":
        bit = drawn.randrange(8)
        changed[at] ^= 1 << bit
        return Mutation(name, at, at + 1, f"bit {bit} of byte {at} flipped", {name: bytes(changed)})
    if kind == "byte":
        changed[at] = drawn.choice((0, 0xFF, 0x7F, 0x80, drawn.randrange(256)))
        return Mutation(name, at, at + 1, f"byte {at} set to {changed[at]}", {name: bytes(changed)})
    if kind == "zeros":
        end = min(size, at + drawn.choice((2, 8, 64, 512, BLOCK, size)))
        changed[at:end] = bytes(end - at)
        return Mutation(name, at, end, f"zeros from byte {at} to {end}", {name: bytes(changed)})
    at -= at % BLOCK
    if kind == "stale":
        old = older[at : at + BLOCK]
        changed[at : at + len(old)] = old
        return Mutation(name, at, at + len(old), f"the block at {at} as it was once", {name: bytes(changed)})
    other = _place(drawn, data)
    other -= other % BLOCK
    at, other = sorted((at, other))
    if other + BLOCK > size:
        return None
    changed[at : at + BLOCK], changed[other : other + BLOCK] = data[other : other + BLOCK], data[at : at + BLOCK]
    return Mutation(name, at, other + BLOCK, f"the blocks at {at} and {other} exchanged", {name: bytes(changed)})


def files_of(path: Path) -> dict[str, bytes]:
    """Every file below a directory, which nobody has open."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def lay_out(tree: Tree, where: Path, mutation: Mutation) -> None:
    """A directory with these files, mutated. Empty directories come to nothing: nothing of the kit's needs them."""
    for name, data in {**tree, **mutation.files}.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)


def looked(look: Callable[[], None], limit: float = LIMIT_S) -> str:
    """What is wrong with how `look` ended in a process of its own; empty where it returned, or raised an error of the
    kit's. The process that calls this has one thread."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _look(look, theirs)
    os.close(theirs)
    said, until = b"", time.monotonic() + limit
    try:
        while True:
            if not select.select((ours,), (), (), max(0.0, until - time.monotonic()))[0]:
                os.kill(child, signal.SIGKILL)
                said = b"it did not end within %d s" % limit
                break
            piece = os.read(ours, 1 << 16)
            if not piece:
                break
            said += piece
    finally:
        os.close(ours)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0 and not said:
        return f"the process was ended by {signal.Signals(-code).name}"
    if code > 0 and not said:
        return f"the process ended with code {code}"
    return said.decode(errors="replace")


def _look(look: Callable[[], None], fd: int) -> None:
    said = ""
    try:
        logging.disable(logging.CRITICAL)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # a library says much before it aborts
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        look()
    except HoldfastError as error:
        with suppress(Exception):
            said = "" if str(error) else f"{error!r} says nothing"
    except AssertionError as error:
        said = str(error) or traceback.format_exc()
    except BaseException as error:
        said = f"a bare {type(error).__name__}: " + "".join(traceback.format_exception(error)[-6:])
    finally:
        with suppress(OSError):
            os.write(fd, said.encode(errors="replace")[-(1 << 15) :])
        os._exit(0)


def mutated(tree: Tree, older: Tree, seed: int, numbers: range, where: Path,
            look: Callable[[Path, Mutation, int], None], found: Callable[[str], None]) -> None:
    """Look at so many mutations of a directory, each below `where`, and tell `found` of each that came to no good.

    Args:
        tree, older: the directory's files, and as they once were.
        seed: what is drawn; the same seed and number is the same mutation of the same files.
        numbers: which ones.
        where: a place where nothing is.
        look: given the directory, what was done to it, and the number; in a process of its own.
        found: told in words.
    """
    for number in numbers:
        drawn = random.Random(f"{seed}.{number}")
        aimed = flipped(drawn, tree, number) if number // 2 % 2 == 0 else None
        mutation = aimed or draw(drawn, tree, older)
        lay_out(tree, where / "mutated", mutation)
        wrong = looked(lambda: look(where / "mutated", mutation, number))  # noqa: B023 - called before the next
        shutil.rmtree(where)
        if wrong:
            found(f"mutation {number} of seed {seed}, {mutation.name} {mutation.text}: {wrong}")
