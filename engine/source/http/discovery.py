"""How local clients find a service of the same user, its token, and whether it is really the one that answers.

Loopback is not private on a shared machine. So each opening of a store makes a token, and publishes it, with what else
a client needs, as an *entry*: a small file (0600) in a directory that only this user can enter (0700). Other
directories are passed over by service and client alike, since somebody else may have put them there.

**Where.** Service and client may have been started with different environments: one from a login, the other by cron or
in a container beside it. So an entry is put into every place that can be used, and a client looks into all of them:
`$XDG_RUNTIME_DIR/holdfast`, `/run/user/UID/holdfast`, and `holdfast-UID` below `$TMPDIR`, `/tmp` and `/dev/shm`.

**Which are alive.** A service holds its entry locked for as long as it lives, from before the file has its name. An
entry that is not locked is dead. Process ids say nothing here: those of another container are other numbers. Where the
file system knows no locks nobody can tell, and the entry counts. Names hold the id of the opening, and are never used
again: so removing a dead entry can hit no other, and several services may have one port, at different addresses or in
different containers.

**Who answers.** An entry names the address that the service listens at. A client connects to that very address, and has
the listener prove itself before the token is sent: it answers a random number with a digest over the number and over
the address at which *it* was reached, keyed by what stands in the entry. Whoever listens elsewhere and passes the
question on to the service gets an answer for another address. The key is not the token, so that a stranger who asks
learns nothing by which a token could be guessed.

A service looks after its entries every `REFRESH_S` seconds: what was swept away is put back, what is there gets a new
time, so that it is not taken for old.
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
"""Where everybody may write, on most machines."""
_MAX_ENTRY = 64 << 10
_MAX_ENTRIES = 100
_NAME = re.compile(r"(\d{1,5})-([0-9a-f]{8,64})\.json")
_HEX = re.compile(r"[0-9a-f]{32,128}")

_ignored: set[Path] = set()  # told once: a client looks each time it connects

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A running service.

    Attributes:
        host, port: where it listens: an address, no name.
        scheme: http or https.
        token: its credential.
        key: what its proofs are keyed by (hex).
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
        """What this service answers to `nonce`, being reached at this address and port."""
        return proof(self.key, nonce, reached)

    def answers_at(self, host: str) -> bool:
        """Whether a connection to this address reaches it. One that listens at all addresses is looked for at loopback
        only: whether another address is this machine's cannot be known."""
        asked, own = _plain(host), _plain(self.host)
        if asked is None or own is None:
            return False
        if own.is_unspecified:
            return asked.is_loopback and (own.version == 6 or asked.version == 4)
        return asked == own


def proof(key: str, nonce: str, reached: Address) -> str:
    """What a service answers to `nonce`, being reached at this address and port."""
    host = _plain(reached[0])
    return hmac.new(bytes.fromhex(key), f"holdfast\n{nonce}\n{host}\n{reached[1]}".encode(), hashlib.sha256).hexdigest()


def _plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address without its zone, an IPv4 one as such; None: it is a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class Publication:
    """One service's entry, in every place that can be used. Made, then `refresh`ed or `start`ed, then `withdraw`n."""

    def __init__(self, entry: Entry, env: Env) -> None:
        self._entry = entry
        self._env = env
        self._held: dict[Path, DirectoryLock] = {}
        self._told: set[Path] = set()
        self._stop = env.scheduler.event()
        self._task: Task | None = None

    def start(self) -> None:
        """Publish, and see to it that it stays.

        Raises:
            SettingError: there is no place for it. It is tried again and again all the same, until `withdraw`.
        """
        failed = self.refresh()
        with contextlib.suppress(OSError):
            for directory in places(self._env.files):
                _sweep(self._env.files, directory)
        self._task = self._env.scheduler.spawn("holdfast-entry", self._run)
        if not self._held:
            raise SettingError(f"the service's token can be left nowhere: {'; '.join(failed) or 'no place is known'}",
                               hint="give the service a token of its own, or point XDG_RUNTIME_DIR to a private "
                                    "directory that it can write to")

    def _run(self) -> None:
        while not self._stop.wait(REFRESH_S):
            self.refresh()

    def refresh(self) -> list[str]:
        """Put back what is gone, give what is there the time of now; what could not be written, and why."""
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
        """In a forked child: the entries are the parent's."""
        held, self._held = self._held, {}
        for lock in held.values():
            lock.abandon()


def places(files: Files) -> list[Path]:
    """The directories in which entries are, whether they exist or not."""
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
    """The services of this user that may be what listens at this address: those that live, as far as can be known.
    Raises `OSError` where the system has no more files to open."""
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
            logger.warning("no token is looked for in %s: %s", directory, error)
        return []


def _sweep(files: Files, directory: Path) -> None:
    """Remove what dead services left."""
    for path in _entries(files, directory):
        if not _may_live(files, path):
            with contextlib.suppress(OSError):
                files.unlink(path, missing_ok=True)


def _may_live(files: Files, path: Path) -> bool:
    """Whether the service of an entry lives, or that cannot be known."""
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
