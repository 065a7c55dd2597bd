"""The environment: the only way the kit reaches files, clocks, randomness and threads.

Everything that the kit does to the outside world goes through the four small objects of an `Env`. So a simulated disk,
clock, random source and scheduler can drive the code that ships. What an engine's own library does (LMDB's writes, for
instance) does not go through here.

Ruff refuses `import threading`, `time.sleep` or `tempfile` elsewhere. `banned-api` in pyproject.toml lists the
exceptions and the reasons.

The other modules here are built on these objects: paths below a directory that is held open (`anchored`), scratch
directories, thread pools, locks that know their owner, rests in long work (`pace`), logging that nobody can flood
(`rate_limited_log`), and errors of the system turned into errors of the kit (`system`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .clock import Clock as Clock
from .files import Directory as Directory
from .files import File as File
from .files import Files as Files
from .files import is_disk_full as is_disk_full
from .locks import DirectoryLock as DirectoryLock
from .randomness import Randomness as Randomness
from .threads import LONGEST_WAIT_S as LONGEST_WAIT_S
from .threads import Condition as Condition
from .threads import Event as Event
from .threads import Lock as Lock
from .threads import Scheduler as Scheduler
from .threads import Task as Task


@dataclass(frozen=True, slots=True)
class Env:
    """The environment: files, clock, randomness and scheduler, passed together."""

    files: Files = field(default_factory=Files)
    clock: Clock = field(default_factory=Clock)
    randomness: Randomness = field(default_factory=Randomness)
    scheduler: Scheduler = field(default_factory=Scheduler)


REAL = Env()
"""The real environment: the machine's."""
