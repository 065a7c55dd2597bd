"""Engines, plugins and what reads a copied image, by their names."""

from __future__ import annotations

import contextlib
import os
import resource
from importlib.metadata import MetadataPathFinder

import pytest

from holdfast.engine.builtin.memory import MemoryEngine
from holdfast.engine.contract.registry import find_engine
from holdfast.engine.errors import LimitReached, SettingError


def test_without_descriptors_nobody_knows_what_is_installed() -> None:
    """Python takes a directory that it cannot open for an empty one, and remembers that. So a backup that was opened by
    a process without descriptors was refused, since "nothing that is installed reads it", and so was each one later."""
    find_engine("memory")  # what it imports is imported
    MetadataPathFinder().invalidate_caches()
    before, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 3, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(LimitReached, match="cannot look for 'memory'"):
            find_engine("memory")
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert find_engine("memory") is MemoryEngine
    with pytest.raises(SettingError, match="no engine named 'nothing'"):
        find_engine("nothing")
