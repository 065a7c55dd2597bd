"""The address of storage, and how it is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ....engine.contract.registry import find
from ....engine.env import REAL, Env
from ....engine.env.shown import shown
from ....engine.errors import InvalidInput, SettingError
from .cloud import CloudObjectStore
from .interface import ObjectStore
from .local import LocalObjectStore

GROUP = "holdfast.object_stores"
"""The entry-point group of further storage, by scheme. A class is called as `Class(url, env=env)`."""

_CLOUDS = ("s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_storage(url: str | os.PathLike[str], env: Env = REAL) -> ObjectStore:
    """The storage at an address. Nothing is read or written before the first call.

    Args:
        url: a path, `file:///path`, `s3://bucket/prefix`, `gs://…`, `az://container/prefix`, or what is installed in
            the entry-point group `holdfast.object_stores`.
        env: files, clock and randomness.

    Raises:
        InvalidInput: the address is not valid, or nothing is installed for its scheme.
        Unsupported: a package that it needs is not installed.
        StorageUnsuitable: the environment configures it wrongly.
    """
    match = _SCHEME.match(url) if isinstance(url, str) else None
    if match is None or not isinstance(url, str):
        return LocalObjectStore(Path(url) if isinstance(url, os.PathLike) else url, env=env)
    scheme = match[1].lower()
    if scheme in _CLOUDS:
        return CloudObjectStore(url, env=env)
    if scheme == "file":
        return LocalObjectStore(_path(url), env=env)
    try:
        made: ObjectStore = find(GROUP, scheme, ObjectStore)(url, env=env)
    except SettingError as error:
        raise InvalidInput(f"there is no storage for {shown(scheme)} addresses",
                           hint=f"use a path, file://, s3://, gs:// or az://; {error.hint}") from error
    return made


def _path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise InvalidInput(f"{shown(url)} is not the address of a directory", hint="write file:///path")
    return unquote(parts.path)
