"""How local clients find the token of a service: a small file per port in the user's runtime directory.

Loopback is not private on a shared host, so each opening makes a fresh token and writes it, with the store's id, branch
and path and the process id, to a directory that only this user can enter (0700), in a file that only this user can read
(0600). The directory is `$XDG_RUNTIME_DIR/holdfast` where that exists and is ours, else one under the temporary
directory named by user id. A directory of another owner or with other rights is refused, by reader and writer alike,
since somebody else could have put it there. Reading looks into both, because service and client may have been started
with different environments. A file whose process is gone is rubbish, and is removed.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import SettingError
from ..seams import Files

logger = logging.getLogger("holdfast.source")

_MAX_ENTRY = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A running service: where it listens, its credential, and whose store it serves (ids in hex)."""

    host: str
    port: int
    scheme: str
    token: str
    store_id: str
    branch: str
    path: str
    pid: int


def publish(files: Files, entry: Entry) -> Path:
    """Write the entry for its port; return the file, to be removed by `withdraw`.

    Raises:
        SettingError: no directory is there that is private.
    """
    directory = _directories()[0]
    try:
        files.make_private_directory(directory)
        path = directory / f"{entry.port}.json"
        files.write_durably(path, json.dumps(asdict(entry)).encode())
    except OSError as error:
        raise SettingError(f"{directory} cannot hold the service's token: {error}",
                           hint="remove it, or point XDG_RUNTIME_DIR to a directory of your own") from error
    return path


def withdraw(files: Files, path: Path, token: str) -> None:
    """Remove an entry, if it is still the one with this token."""
    entry = _read(files, path)
    if entry is not None and entry.token == token:
        files.unlink(path, missing_ok=True)


def find(files: Files, port: int) -> Entry | None:
    """The service of this user that listens on this port of this machine, or None."""
    for directory in _directories():
        path = directory / f"{port}.json"
        try:
            if not files.is_directory(directory):
                continue
            files.make_private_directory(directory)
        except OSError as error:
            logger.warning("%s is ignored: %s", directory, error)
            continue
        entry = _read(files, path)
        if entry is None or entry.port != port:
            continue
        if _alive(entry.pid):
            return entry
        files.unlink(path, missing_ok=True)
    return None


def _directories() -> list[Path]:
    """Where entries are: the first is where they are written."""
    found = []
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    if named and os.path.isabs(named):
        try:
            if os.stat(named).st_uid == os.getuid():  # after `su` it still names the other user's
                found.append(Path(named) / "holdfast")
        except OSError:
            pass
    return [*found, Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"]


def _read(files: Files, path: Path) -> Entry | None:
    try:
        data = files.read(path)
        fields = json.loads(data[:_MAX_ENTRY])
        entry = Entry(**fields)
    except (OSError, ValueError, TypeError):
        return None
    well_formed = (isinstance(entry.port, int) and isinstance(entry.pid, int) and entry.pid > 0
                   and isinstance(entry.token, str) and entry.token.isascii() and entry.token.isprintable())
    return entry if well_formed else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
