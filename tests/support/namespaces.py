"""A network of this machine's own, in namespaces of the kernel, and faults in it.

Each name has a namespace with one interface, and a bridge in one more namespace joins them. The machine's own network
has no part in it, so nothing leaves it, and any addresses will do. It needs root, `ip` and `nft`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PREFIX = "holdfast-faults"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-")  # with the process that made it
_SPACES = Path("/var/run/netns")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


@cache
def no_namespaces() -> str | None:
    """Why there can be none here, else None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: {package})"
    try:
        with Network("ab") as network, network.unplugged("a"), network.lossy("b", 30), network.dropped([("a", "b")]):
            network.call_inside("a", lambda: None)
    except OSError as error:
        return str(error)
    return None


class Network:
    """Namespaces by name. All are removed at the end of the block; what an earlier run has left, at its beginning."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._space = f"{_PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._rules: dict[str, list[str]] = {name: [] for name in names}

    def __enter__(self) -> Network:
        _remove_leftovers()
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for space in _spaces():
            if space.startswith(f"{self._space}-"):
                _remove(space)

    def _build(self) -> None:
        hub = f"{self._space}-hub"
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge", "up")
        for name in self._names:
            space = f"{self._space}-{name}"
            _run("ip", "netns", "add", space)
            _run("ip", "-n", hub, "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "-n", hub, "link", "set", "dev", name, "master", "bridge", "up")
            _run("ip", "-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _run("ip", "-n", space, "link", "set", interface, "up")

    def address(self, name: str) -> str:
        return f"10.77.0.{self._names.index(name) + 1}"

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command that becomes `command` in the namespace: same process, same pipes."""
        return ["ip", "netns", "exec", f"{self._space}-{name}", *command]

    def call_inside(self, name: str, call: Callable[[], T]) -> T:
        """What `call` returns in a thread that is in the namespace, and in no other."""
        def enter_and_call() -> T:
            with (_SPACES / f"{self._space}-{name}").open() as space:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(space.fileno(), _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"setns to {space.name}: {os.strerror(number)}")
            return call()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter_and_call).result()

    # --- faults ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def unplugged(self, name: str) -> Iterator[None]:
        """Its link is down."""
        hub = f"{self._space}-hub"
        _run("ip", "-n", hub, "link", "set", "dev", name, "down")
        try:
            yield
        finally:
            _run("ip", "-n", hub, "link", "set", "dev", name, "up")

    def dropped(self, ways: Iterable[tuple[str, str]]) -> contextlib.AbstractContextManager[None]:
        """What one sends to the other, of each pair, is lost; in this direction only."""
        return self._filtered([(to, f"ip saddr {self.address(sender)} drop") for sender, to in ways])

    def lossy(self, name: str, percent: int) -> contextlib.AbstractContextManager[None]:
        """So many of a hundred packets to it are lost, by chance."""
        return self._filtered([(name, f"numgen random mod 100 < {percent} drop")])

    @contextlib.contextmanager
    def _filtered(self, rules: list[tuple[str, str]]) -> Iterator[None]:
        for name, rule in rules:
            self._rules[name].append(rule)
        self._filter(rules)
        try:
            yield
        finally:
            for name, rule in rules:
                self._rules[name].remove(rule)
            self._filter(rules)

    def _filter(self, changed: list[tuple[str, str]]) -> None:
        """Put these rules in force: where packets come in, since the sender would be told of what is dropped on its way
        out."""
        for name in {name for name, _ in changed}:
            rules = "\n".join(["type filter hook input priority 0", *self._rules[name]])
            _run(*self.inside(name, ["nft", "-f", "-"]), given="table inet faults\ndelete table inet faults\n"
                 f"table inet faults {{\nchain incoming {{\n{rules}\n}}\n}}\n")


def _run(*command: str, given: str = "") -> None:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or f'ended with {done.returncode}'}")


def _spaces() -> list[str]:
    return [space.name for space in _SPACES.iterdir()] if _SPACES.is_dir() else []


def _remove_leftovers() -> None:
    """The namespaces of processes that are gone."""
    for space in _spaces():
        made = _NAME.match(space)
        if made is not None and not Path("/proc", made[1]).exists():
            with contextlib.suppress(OSError):  # another process may remove it too
                _remove(space)


def _remove(space: str) -> None:
    """With the processes in it: a namespace lives as long as they do."""
    said = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False, timeout=60)
    for pid in said.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "delete", space)
