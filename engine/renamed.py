"""Modules by the names that they had before `engine/` was laid out in rooms: they work until release 0.3, and warn.

A finder behind all others, so that it costs nothing until such a name is asked for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_HERE = __name__.rpartition(".")[0]

MODULES = {
    "directory": ("store.layout",),
    "graph": ("builtin.graph",),
    "graph.store": ("builtin.graph.store",),
    "helpers": ("toolkit", "toolkit.state_file", "toolkit.file_image"),
    "history": ("model.positions", "model.records"),
    "memory": ("builtin.memory",),
    "pairs": ("builtin.wrapped.overlay",),
    "plugins": ("contract.plugin", "contract.registry", "model.records", "store.hooks"),
    "records": ("builtin.inplace.records",),
    "rocksdb": ("builtin.wrapped.rocksdb",),
    "sealed": ("toolkit.sealed",),
    "seams": ("env",),
    "settings": ("store.settings",),
    "source.base": ("source.interface",),
    "source.client": ("source.http.client",),
    "source.service": ("source.http.service",),
    "sqlite": ("builtin.wrapped.sqlite",),
}
"""Old names, below this package, and where what they held is now."""


class _Loader(Loader):
    def __init__(self, places: tuple[str, ...]) -> None:
        self._places = tuple(f"{_HERE}.{place}" for place in places)

    def exec_module(self, module: ModuleType) -> None:
        name, places = module.__name__, self._places

        def find(attribute: str) -> Any:
            for place in places:
                if hasattr(there := import_module(place), attribute):
                    return getattr(there, attribute)
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

        module.__dict__["__getattr__"] = find
        warnings.warn(f"{name} is {' and '.join(places)} now; the old name goes with release 0.3", DeprecationWarning,
                      stacklevel=2)


class Finder(MetaPathFinder):
    """See the module's text."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None,
                  /) -> ModuleSpec | None:
        places = MODULES.get(fullname.removeprefix(f"{_HERE}."))
        if places is None or not fullname.startswith(f"{_HERE}."):
            return None
        return ModuleSpec(fullname, _Loader(places), is_package=True)


def install() -> None:
    sys.meta_path.append(Finder())
