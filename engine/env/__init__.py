"""The environment: the only way the kit reaches files, clocks, randomness and threads.

Everything the kit itself does to the outside world goes through the four small objects of an `Env`, so that a
simulated disk, clock, seed and scheduler can drive the very code that ships. What an engine does below its own library
(LMDB's writes, say) is the engine's business.

Who writes `import threading`, `time.sleep` or `tempfile` elsewhere is refused by ruff (`banned-api` in pyproject.toml,
which also names what may, and why).

The rest of this folder is made of them: paths below a directory that is held open (`anchored`), scratch
directories, pools of threads, locks that know their owner, logging that nobody can flood (`rate_limited_log`), and
what the system may refuse, as errors of the kit's (`system`).
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
"""The machine's."""
