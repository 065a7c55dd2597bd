"""A repository where a command expects a backup: `holdfast backup URI s3://bucket/prefix`, and `restore`, `verify` and
`info` of it.

Whatever has a scheme is a repository: a directory in a bucket would need names that can be replaced. The key of an
encrypted one comes from the environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ...replay.files import Progress
from ..connection import Connection
from ..engines import AnyEngine
from ..report import RestoreReport
from .errors import RepositoryExists, RepositoryMissing
from .keys import Key
from .reports import ImageReport, RepositoryInfo, RepositoryVerified
from .repository import Repository


@contextmanager
def _opened(url: str, *, make: bool = False) -> Iterator[Repository]:
    key = Key.from_environment()
    try:
        repository = Repository.open(url, key=key)
    except RepositoryMissing:
        if not make:
            raise
        try:
            repository = Repository.init(url, key=key)
        except RepositoryExists:  # somebody else made it at this moment
            repository = Repository.open(url, key=key)
    with repository:
        yield repository


def backup(uri: str, url: str, *, connection: Connection, accept_branch: str | None, lease_ttl: float,
           progress: Progress) -> ImageReport:
    """Take an image into the repository at `url`. If there is none, it is made, encrypted if the environment has a key.
    Raises as `Repository.init`, `open` and `backup`."""
    with _opened(url, make=True) as repository:
        return repository.backup(uri, connection=connection, accept_branch=accept_branch, lease_ttl=lease_ttl,
                                 progress=progress)


def restore(url: str, dest: Path, *, to_txid: int | None, at: datetime | None, force: bool, wait: float,
            engine: AnyEngine | None, options: dict[str, Any], progress: Progress) -> RestoreReport:
    """Raises as `Repository.open` and `restore`."""
    with _opened(url) as repository:
        return repository.restore(dest, to_txid=to_txid, at=at, force=force, wait=wait, engine=engine,
                                  options=options, progress=progress)


def verify(url: str, *, progress: Progress) -> RepositoryVerified:
    """Raises as `Repository.open` and `verify`."""
    with _opened(url) as repository:
        return repository.verify(progress=progress)


def info(url: str) -> RepositoryInfo:
    """Raises as `Repository.open` and `info`."""
    with _opened(url) as repository:
        return repository.info()
