"""The zoo: broken engines, parts of the kit and plugins, each of which one check of the contracts must catch.

An animal is a class that differs from one that passes in a few lines, and is wrong in one way that has bitten real
systems; its docstring tells which. `animal` registers it together with the check that must catch it. What replaces
methods of one of the kit's own classes, while it is let out, is registered with `part`: some properties are the kit's
to keep and not the engine's, and a check of them must be able to fail too.

`hunt` runs the one check on the one animal and returns what an author would read.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeVar
from unittest import SkipTest
from unittest.mock import patch

import msgpack
from hypothesis import Phase, settings
from workloads import WORKLOADS

from holdfast.engine.contract.plugin import Plugin
from holdfast.engine.model.records import Record
from holdfast.engine.testing import PROFILES, Contract, Profile, Workload

CONTRACTS = {"EngineContract": "holdfast.engine.testing", "ReplayContract": "holdfast.replay.testing",
             "ClusterContract": "holdfast.replay.testing",
             "BackupContract": "holdfast.backup.testing", "PluginContract": "holdfast.engine.testing",
             "KitContract": "holdfast.backup.testing.kit"}
CAGES = ("zoo_views", "zoo_payloads", "zoo_states", "zoo_crashes", "zoo_images", "zoo_logs", "zoo_stores",
         "zoo_backups", "zoo_wrapped", "zoo_clusters", "zoo_plugins", "zoo_sizes",
         "zoo_growth", "zoo_across", "zoo_answers", "zoo_files")
MAX_LINES = 20

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Animal:
    """
    Attributes:
        broken: the class, or the function, that is wrong.
        caught_by: the check that must catch it, with its contract.
        also: others that must.
        replaces: the kit's class, or the dotted names of its function, in whose place it is put; None for engines and
            plugins, which are given to the contract.
        on: the workload that it is tried with, or its name; without, that of the engine that an engine is made from,
            and the contract's own for a plugin.
        declares: what else the author's test class says, for a plugin.
    """

    broken: Any
    caught_by: str
    replaces: Any = None
    on: str | Callable[[], Workload] | None = None
    declares: tuple[tuple[str, Any], ...] = ()
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        name: str = self.broken.__name__
        return name

    @property
    def kind(self) -> str:
        """`engines`, `plugins` or `parts`."""
        if self.replaces is not None:
            return "parts"
        return "plugins" if issubclass(self.broken, Plugin) else "engines"

    @property
    def story(self) -> str:
        return inspect.cleandoc(self.broken.__doc__)

    @property
    def code(self) -> str:
        """Its source, without decorator and docstring."""
        return _code(self.broken)

    @property
    def lines(self) -> int:
        """Lines of code in which it differs: comments and empty ones do not count, nor does the first, its name."""
        return sum(bool(line.strip()) and not line.strip().startswith("#") for line in self.code.split("\n")[1:])

    def members(self) -> dict[str, Any]:
        """What an author's test class of it would say."""
        if self.kind == "plugins":
            on = {} if self.on is None else {"workload": staticmethod(self.workload)}
            return {"plugin": self.broken, **on, **dict(self.declares)}
        return {"workload": staticmethod(self.workload)}

    def workload(self) -> Workload:
        """The workload of the engine that it is made from, with the animal in its place."""
        if self.on is not None:
            work = (WORKLOADS[self.on] if isinstance(self.on, str) else self.on)()
        else:
            work = next(w for make in WORKLOADS.values() if issubclass(self.broken, (w := make()).engine))
        if self.kind == "engines":
            work.engine = self.broken
        return work

    @contextmanager
    def let_out(self) -> Iterator[None]:
        """Within the block, it stands where it belongs."""
        with ExitStack() as stack:
            if isinstance(self.replaces, tuple):
                for place in self.replaces:
                    module, _, name = place.rpartition(".")
                    stack.enter_context(patch.object(import_module(module), name, self.broken))
            elif self.replaces is not None:
                for name, member in vars(self.broken).items():
                    if callable(member) or isinstance(member, (property, classmethod, staticmethod)):
                        stack.enter_context(patch.object(self.replaces, name, member))
            yield


@cache
def _code(broken: Any) -> str:
    source = textwrap.dedent(inspect.getsource(broken))
    begins = re.search(r"^(class|def) ", source, re.M)
    assert begins is not None
    source = source[begins.start() :]
    return re.sub(r'\n    """.*?"""\n\n?', "\n", source, count=1, flags=re.S).rstrip()


ANIMALS: list[Animal] = []


def animal(*, caught_by: str, also: Sequence[str] = (), on: str | Callable[[], Workload] | None = None,
           **declares: Any) -> Callable[[T], T]:
    """Registers a broken engine, or a broken plugin."""

    def register(broken: T) -> T:
        ANIMALS.append(Animal(broken, caught_by, None, on, tuple(declares.items()), tuple(also)))
        return broken

    return register


def part(*replaces: Any, caught_by: str, also: Sequence[str] = (),
         on: str | Callable[[], Workload] = "memory") -> Callable[[T], T]:
    """Registers a broken part of the kit: a subclass whose methods are put into the class itself, or a function that
    is put in the place of one, under all its dotted names. Call what is replaced by a name taken before."""

    def register(broken: T) -> T:
        kept = replaces if isinstance(replaces[0], str) else replaces[0]
        ANIMALS.append(Animal(broken, caught_by, kept, on, also=tuple(also)))
        return broken

    return register


def all_animals() -> list[Animal]:
    """The whole zoo, cage by cage."""
    for cage in CAGES:
        import_module(cage)
    return ANIMALS


def contract(name: str) -> type[Contract]:
    """One of the contracts, by its name."""
    found: type[Contract] = getattr(import_module(CONTRACTS[name]), name)
    return found


def altered(record: Record, changes: Sequence[tuple[Any, Any]]) -> Record:
    """A record as an engine sees it that understands these changes."""
    return Record(record.txid, record.epoch, record.time_us, record.payload_version, msgpack.packb(changes),
                  record.attachment, record.header, record.chain)


class NotCaught(Exception):
    """The check held although it should not."""


class Unshrunk(Contract):
    """What a check fails on first, without the search for the shortest one, which takes most of the time."""

    def _settings(self, examples: int) -> settings:
        common = super()._settings(examples)
        return settings(common, phases=[phase for phase in common.phases if phase is not Phase.shrink])


def hunt(animal: Animal, caught_by: str | None = None, *, shrink: bool = True,
         profile: Profile = PROFILES["default"]) -> Exception:
    """What the check that must catch an animal, or another one, raises.

    Raises:
        NotCaught: nothing, or it does not apply.
    """
    base, check = (caught_by or animal.caught_by).split(".")
    suite = type(f"Test{animal.name}", (contract(base),) if shrink else (Unshrunk, contract(base)),
                 {**animal.members(), "quiet": True, "profile": profile})()
    tried = getattr(suite, check)  # here: a check that does not exist catches nothing
    with animal.let_out():
        try:
            tried()
        except SkipTest as skip:
            raise NotCaught(f"{check} does not apply: {skip}") from skip
        except Exception as error:
            return error
    raise NotCaught(f"{base}.{check} holds for {animal.name}")
