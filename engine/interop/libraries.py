"""The libraries that are extras."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import Unsupported

_EXTRAS = {"igraph": "igraph", "networkx": "networkx", "pyarrow": "arrow", "scipy": "scipy"}


def library(name: str) -> Any:
    """A module of a library that is an extra, imported. Raises `Unsupported` if the library is not installed."""
    top = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # the library is there, and something else is wrong with it
        raise Unsupported(f"this needs {top}, which is not installed",
                          hint=f"pip install 'holdfast[{_EXTRAS[top]}]'") from error
