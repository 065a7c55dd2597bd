"""Mutations of files, and processes that look at what was mutated.

A mutation changes one file of a directory as a bad disk, cable, copy or hand may: a bit or a byte differs, a range is
zeros, the file is shorter, longer or gone, two of its blocks are exchanged, a block is an older version, another file
has the same bytes. An engine that opens the directory then may raise one of the kit's errors, or show exactly what was
written. It may not crash, hang, raise a bare Python error, or show anything else.

A mutation may end the process that looks at it, if it leads a library out of its map. So each look happens in a process
forked from one that has imported everything. Each process looks at several in turn, because a process costs more than a
look. One that fails is looked at again in a process that has seen no other.
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
import struct
import time
import traceback
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import compress
from pathlib import Path
from typing import NoReturn

from ...errors import HoldfastError

BLOCK = 4096
"""Bytes of a block."""
KINDS = ("bit", "bit", "bit", "byte", "zeros", "shorter", "longer", "exchanged", "stale", "doubled", "gone")
"""What may happen to a file; what is named more often does."""
LIMIT_S = 30.0
"""A look that takes this many seconds hangs."""
AT_ONCE = 32
"""How many mutations one process looks at."""
_MEMORY = 2 << 30
_LENGTH, _LONGEST = struct.Struct("<I"), 1 << 15
_GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples lie evenly between 0 and 1, however many there are."""
_NUMBER = re.compile(r"\d+")

Tree = Mapping[str, bytes]
"""Files by their path below a directory."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """What was done to `name`: bytes from `first` to before `end` differ. `text` says it in words; `files` are what is
    there in its place, by name, and None for what is gone."""

    name: str
    first: int
    end: int
    text: str
    files: Mapping[str, bytes | None]


class Subject:
    """A directory to be mutated.

    Attributes:
        tree, older: its files now, and at an earlier time.
    """

    def __init__(self, tree: Tree, older: Tree, *, spared: Sequence[str] = ()) -> None:
        """`spared`: names, as patterns, of files that stay as they are."""
        self.tree, self.older = tree, older
        self._names = sorted(name for name in tree if not any(fnmatch(Path(name).name, one) for one in spared))
        self._state = _state_of(self._names)
        # Of the engine's own files the bytes that are not zero: much of a file is room.
        self._places = {name: array("Q", compress(range(len(tree[name])), tree[name])) for name in self._state}

    def mutation(self, seed: int, number: int) -> Mutation:
        """The one of a seed and a number, which is always the same: half of them aimed, half of any kind."""
        drawn = random.Random(f"{seed}.{number}")
        aimed = self.flipped(drawn, number) if number // 2 % 2 == 0 else None
        return aimed or self.draw(drawn)

    def draw(self, drawn: random.Random) -> Mutation:
        """A mutation that changes something."""
        state = self._state
        while True:
            # Half of them of the engine's own files: of the kit's there are many, and most are small.
            name = drawn.choice(state if state and drawn.random() < 0.5 else self._names)
            made = _made(drawn, drawn.choice(KINDS), name, self.tree, self.older.get(name, b""))
            if made is not None and any(self.tree.get(other) != data for other, data in made.files.items()):
                return made

    def flipped(self, drawn: random.Random, number: int) -> Mutation | None:
        """One bit of an engine's own files, of bytes that are not zero. Where it lies follows from `number`, so that a
        few lie evenly over all of them; None if there are no such bytes."""
        place = int(number * _GOLDEN % 1 * sum(map(len, self._places.values())))
        for name, places in self._places.items():
            if place < len(places):
                at, bit, changed = places[place], drawn.randrange(8), bytearray(self.tree[name])
                changed[at] ^= 1 << bit
                return Mutation(name, at, at + 1, f"bit {bit} of byte {at} flipped", {name: bytes(changed)})
            place -= len(places)
        return None


def _state_of(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if "state" in Path(name).parts[:-1])


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
    """Make a directory with these files, mutated. Empty directories are left out: the kit needs none."""
    for name, data in {**tree, **mutation.files}.items():
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)


def mutated(subject: Callable[[int], Subject], seed: int, numbers: range, where: Path,
            look: Callable[[Path, Mutation, int], None], told: Callable[[str], None], limit: float = LIMIT_S) -> None:
    """Look at mutations of directories. The process that calls this has one thread.

    Args:
        subject: gives the directory for a number.
        seed: what is drawn; the same seed and number is the same mutation of the same files.
        numbers: which mutations.
        where: a place where nothing is; each mutation has a directory of its own there.
        look: given the directory, what was done to it, and the number; in another process. What returns, or raises an
            error of the kit's, is fine.
        told: what is wrong with each, in words; empty if nothing is.
        limit: a look that takes this many seconds hangs.
    """
    looks = _Looks(subject, seed, where, look, limit)
    while numbers:
        together = looks.at(numbers[:AT_ONCE])
        for number, wrong in zip(numbers, together, strict=False):
            if wrong and number != numbers[0]:
                (alone,) = looks.at(range(number, number + 1))
                wrong = alone or f"not by itself, but in a process that looked at others before: {wrong}"
            what = looks.mutation(number) if wrong else None
            told(f"mutation {number} of seed {seed}, {what.name} {what.text}: {wrong}" if what else "")
        numbers = numbers[len(together) :]


@dataclass(frozen=True, slots=True)
class _Looks:
    """Looking in other processes; see `engine/mutated_files.py`."""

    subject: Callable[[int], Subject]
    seed: int
    where: Path
    look: Callable[[Path, Mutation, int], None]
    limit: float

    def mutation(self, number: int) -> Mutation:
        return self.subject(number).mutation(self.seed, number)

    def at(self, numbers: range) -> list[str]:
        """Look at some, one after the other in one process: what is wrong with each. The last one is that in which the
        process ended, if it did."""
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(ours)
            self._live(numbers, theirs)
        os.close(theirs)
        found: list[str] = []
        late = False
        try:
            while len(found) < len(numbers) and (wrong := _heard(ours, self.limit)) is not None:
                found.append(wrong)
        except TimeoutError:
            late = True
        finally:
            os.close(ours)
            if late or len(found) == len(numbers):
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            shutil.rmtree(self.where, ignore_errors=True)
        if late:
            found.append(f"it did not end within {self.limit:.0f} s")
        elif len(found) < len(numbers):
            found.append(f"the process was ended by {signal.Signals(-code).name}" if code < 0 else
                         f"the process ended with code {code}")
        return found

    def _live(self, numbers: range, fd: int) -> NoReturn:
        """The other process's life."""
        try:
            logging.disable(logging.CRITICAL)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)  # a library says much before it aborts
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            for number in numbers:
                said = self._looked(number).encode(errors="replace")[-_LONGEST:]
                os.write(fd, _LENGTH.pack(len(said)) + said)  # in one piece, since it is shorter than the pipe
            os._exit(0)
        finally:
            os._exit(1)

    def _looked(self, number: int) -> str:
        place, mutation = self.where / str(number), self.mutation(number)
        lay_out(self.subject(number).tree, place / "mutated", mutation)
        try:
            self.look(place / "mutated", mutation, number)
        except HoldfastError as error:
            return "" if str(error) else f"{error!r} says nothing"
        except AssertionError as error:
            return str(error) or traceback.format_exc()
        except BaseException as error:
            return f"a bare {type(error).__name__}: " + "".join(traceback.format_exception(error)[-6:])
        finally:
            shutil.rmtree(place)
        return ""


def _heard(fd: int, limit: float) -> str | None:
    """The next message, or None at the end. Raises `TimeoutError` if it takes this many seconds."""
    said, until = b"", time.monotonic() + limit
    while len(said) < _LENGTH.size or len(said) < _LENGTH.size + _LENGTH.unpack_from(said)[0]:
        if not select.select((fd,), (), (), max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError
        wanted = _LENGTH.size if len(said) < _LENGTH.size else _LENGTH.size + _LENGTH.unpack_from(said)[0]
        piece = os.read(fd, wanted - len(said))
        if not piece:
            return None
        said += piece
    return said[_LENGTH.size :].decode(errors="replace")
