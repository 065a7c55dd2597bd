"""How a local client finds a service of the same user and its token, and checks that this service is what answers.

Loopback is not private on a shared machine. So each opening of a store makes a token, and publishes it, with what else
a client needs, as an *entry*: a small file (0600) in a directory that only this user can enter (0700). Service and
client ignore every other directory, since another user may have made it.

**Where.** Service and client may run in different environments: one started from a login, the other by cron or in
another container. So the service puts an entry into every usable place, and the client looks into all of them:
`$XDG_RUNTIME_DIR/holdfast`, `/run/user/UID/holdfast`, and `holdfast-UID` below `$TMPDIR`, `/tmp` and `/dev/shm`.

**Which are alive.** A service locks its entry before the file gets its name, and holds the lock as long as it lives. An
entry that is not locked is dead. Process ids would not do: another container numbers its processes differently. If the
file system has no locks, nobody can tell, and the entry counts as alive. An entry's file name holds the id of the
opening and is never reused. So removing a dead entry cannot remove another one, and several services may use one port,
at different addresses or in different containers.

**Who answers.** An entry names the address that the service listens at. A client connects to exactly that address, and
the listener must prove its identity before the client sends the token. It answers a random number with a digest over
the number and the address at which *it* was reached, keyed with the entry's key. An impostor that listens elsewhere and
relays the question to the service gets a proof for the wrong address. The key is not the token, so a stranger's
questions reveal nothing that helps to guess the token.

A service refreshes its entries every `REFRESH_S` seconds. It writes missing ones again, and touches the others so that
no clean-up of temporary files takes them for old.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...env import DirectoryLock, Env, Files, Task
from ...env.system import is_limit
from ...errors import LocksUnsupported, SettingError

logger = logging.getLogger("holdfast.source")

REFRESH_S = 10.0
SHARED = ("/tmp", "/dev/shm")
"""Directories that every user may write to, on most machines."""
_MAX_ENTRY = 64 << 10
_MAX_ENTRIES = 100
_NAME = re.compile(r"(\d{1,5})-([0-9a-f]{8,64})\.json")
_HEX = re.compile(r"[0-9a-f]{32,128}")

_ignored: set[Path] = set()  # each is logged once: a client looks whenever it connects

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A running service.

    Attributes:
        host, port: where it listens. The host is an IP address, not a name.
        scheme: http or https.
        token: its credential.
        key: the key of its proofs (hex).
        instance, store_id, branch: of the store that it serves (hex).
        path: of the store, for people.
        pid: for people.
    """

    host: str
    port: int
    scheme: str
    token: str = field(repr=False)
    key: str = field(repr=False)
    instance: str
    store_id: str
    branch: str
    path: str
    pid: int

    def proof(self, nonce: str, reached: Address) -> str:
        """This service's answer to `nonce` if it was reached at this address and port."""
        return proof(self.key, nonce, reached)

    def answers_at(self, host: str) -> bool:
        """Whether a connection to this address reaches the service. If it listens at all addresses, only loopback
        counts: we cannot know whether another address belongs to this machine."""
        asked, own = _plain(host), _plain(self.host)
        if asked is None or own is None:
            return False
        if own.is_unspecified:
            return asked.is_loopback and (own.version == 6 or asked.version == 4)
        return asked == own


def proof(key: str, nonce: str, reached: Address) -> str:
    """The answer to `nonce` of a service that was reached at this address and port."""
    host = _plain(reached[0])
    return hmac.new(bytes.fromhex(key), f"holdfast\n{nonce}\n{host}\n{reached[1]}".encode(), hashlib.sha256).hexdigest()


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address without its zone, or None if it is a name. An IPv4 address mapped into IPv6 is given as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class Publication:
    """One service's entry, in every usable place. Call `refresh` or `start` first, `withdraw` at the end."""

    def __init__(self, entry: Entry, env: Env) -> None:
        self._entry = entry
        self._env = env
        self._held: dict[Path, DirectoryLock] = {}
        self._told: set[Path] = set()
        self._stop = env.scheduler.event()
        self._task: Task | None = None

    def start(self) -> None:
        """Publish the entry, and refresh it in a background thread until `withdraw`.

        Raises:
            SettingError: no place is usable. The thread runs and keeps trying all the same.
        """
        failed = self.refresh()
        with contextlib.suppress(OSError):
            for directory in places(self._env.files):
                _sweep(self._env.files, directory)
        self._task = self._env.scheduler.spawn("holdfast-entry", self._run)
        if not self._held:
            raise SettingError(f"the service's token cannot be published: {'; '.join(failed) or 'no place is known'}",
                               hint="give the service a token of its own, or point XDG_RUNTIME_DIR to a private "
                                    "directory that it can write to")

    def _run(self) -> None:
        while not self._stop.wait(REFRESH_S):
            self.refresh()

    def refresh(self) -> list[str]:
        """Write missing entries again and touch the others. Returns one message for each place that failed."""
        failed = []
        for directory in places(self._env.files):
            path = directory / f"{self._entry.port}-{self._entry.instance}.json"
            try:
                held = self._held.get(path)
                if held is not None and held.freshen():
                    continue
                self._env.files.make_private_directory(directory)
                self._held[path] = self._env.files.write_held(path, json.dumps(asdict(self._entry)).encode())
                if held is not None:
                    held.abandon()
            except OSError as error:
                failed.append(f"{directory}: {error.strerror or error}")
                if directory not in self._told:
                    self._told.add(directory)
                    logger.info("no token is left in %s: %s", directory, error)
        return failed

    def withdraw(self) -> None:
        """Remove the entries. Fine to call twice."""
        self._stop.set()
        task, self._task = self._task, None
        if task is not None:
            task.join()
        held, self._held = self._held, {}
        for path, lock in held.items():
            with contextlib.suppress(OSError):
                self._env.files.unlink(path, missing_ok=True)
            lock.abandon()

    def abandon(self) -> None:
        """In a forked child: forget the entries without removing them, since they are the parent's."""
        held, self._held = self._held, {}
        for lock in held.values():
            lock.abandon()


def places(files: Files) -> list[Path]:
    """The directories that may hold entries. They need not exist."""
    user = os.getuid()
    private = [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"]
    shared = [os.environ.get("TMPDIR", ""), *SHARED]
    found = []
    for parents, name in ((private, "holdfast"), (shared, f"holdfast-{user}")):
        for parent in parents:
            if not os.path.isabs(parent):
                continue
            with contextlib.suppress(OSError):  # after `su`, XDG_RUNTIME_DIR still names the other user's
                if files.is_directory(Path(parent)) and (parents is shared or files.is_ours(Path(parent))):
                    found.append(Path(parent) / name)
    return list(dict.fromkeys(found))


def find(files: Files, host: str, port: int) -> list[Entry]:
    """The entries of this user's services that may be listening at this address: those that are alive or may be.
    Raises `OSError` if no more files can be opened."""
    found: dict[str, Entry] = {}
    for directory in places(files):
        for path in _entries(files, directory):
            if path.name.partition("-")[0] != str(port) or len(found) >= _MAX_ENTRIES:
                continue
            entry = _read(files, path)
            if entry is not None and entry.port == port and entry.answers_at(host) and _may_live(files, path):
                found.setdefault(entry.instance, entry)
    return list(found.values())


def _entries(files: Files, directory: Path) -> list[Path]:
    try:
        if not files.is_directory(directory):
            return []
        files.make_private_directory(directory)
        return [directory / name for name in files.list(directory) if _NAME.fullmatch(name)]
    except OSError as error:
        if is_limit(error):
            raise
        if directory not in _ignored:
            _ignored.add(directory)
            logger.warning("%s is not searched for tokens: %s", directory, error)
        return []


def _sweep(files: Files, directory: Path) -> None:
    """Remove the entries of dead services."""
    for path in _entries(files, directory):
        if not _may_live(files, path):
            with contextlib.suppress(OSError):
                files.unlink(path, missing_ok=True)


def _may_live(files: Files, path: Path) -> bool:
    """Whether the service of an entry is alive. True too if that cannot be known."""
    try:
        return files.is_locked(path)
    except (OSError, LocksUnsupported):
        return True


def _read(files: Files, path: Path) -> Entry | None:
    try:
        entry = Entry(**json.loads(files.read(path)[:_MAX_ENTRY]))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if is_limit(error):
            raise
        return None
    texts = (entry.host, entry.scheme, entry.token, entry.key, entry.instance, entry.path)
    well_formed = (all(isinstance(text, str) for text in texts) and type(entry.port) is int
                   and entry.token.isascii() and entry.token.isprintable() and _HEX.fullmatch(entry.key))
    return entry if well_formed else None
