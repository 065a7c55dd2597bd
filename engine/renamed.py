"""Old names of modules, classes, arguments and attributes that were renamed. They work until release 0.3, and warn.

Old modules are found by an import finder that comes after all others, so they cost nothing until one is imported.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

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
    "sealed": ("toolkit.checksums",),
    "seams": ("env",),
    "settings": ("store.settings",),
    "source.base": ("source.interface",),
    "source.client": ("source.http.client",),
    "source.service": ("source.http.service",),
    "sqlite": ("builtin.wrapped.sqlite",),
    "testing.contract": ("testing.support.contract",),
    "testing.plugins": ("testing.plugin", "testing.plugin.maps"),
    "testing.profiles": ("testing.support.profiles",),
    "testing.report": ("testing.support.report",),
    "testing.workload": ("testing.support.workload",),
}
"""Old module names, below this package, and the modules that have their content now."""

CONTENTS = {"ABOVE_SEAMS": "ABOVE_ENV", "ConsumerState": "SlotState", "KeyedDraft": "KeyedTransaction", "Seams": "Env"}
"""Old names of what is in these modules, and the new ones."""


def warn(old: str, new: str, depth: int = 1) -> None:
    """Warn that `old` is now called `new`. The warning points `depth` calls above the caller of this function."""
    warnings.warn(f"{old} is {new} now; the old name goes with release 0.3", DeprecationWarning, stacklevel=depth + 2)


def arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function also takes these keyword arguments (old=new) by their old names."""

    def mark(call: Callable[P, R]) -> Callable[P, R]:
        @wraps(call)
        def renamed(*args: P.args, **given: P.kwargs) -> R:
            for old in names.keys() & given.keys():
                warn(f"the argument {old}=", f"{names[old]}=")
                given[names[old]] = given.pop(old)
            return call(*args, **given)

        return renamed

    return mark


def attribute(old: str, new: str) -> Any:
    """A read-only property: the attribute `new` by its old name."""

    def read(it: object) -> Any:
        warn(f"the attribute {old}", new)
        return getattr(it, new)

    return property(read)


def parameter(kind: type, name: str, old: str, new: str) -> None:
    """Let callers pass `new=` to a class method of `kind` whose author called the parameter `old`."""
    method = kind.__dict__.get(name)
    if not isinstance(method, classmethod):
        return
    code = method.__func__.__code__
    taken = code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]  # the variables come after these
    if old not in taken or new in taken:
        return
    warn(f"the argument {old}= of {kind.__name__}.{name}", f"{new}=", 2)
    call = method.__func__

    @wraps(call)
    def renamed(*args: Any, **given: Any) -> Any:
        if new in given:
            given[old] = given.pop(new)
        return call(*args, **given)

    setattr(kind, name, classmethod(renamed))


class _Loader:
    def __init__(self, places: tuple[str, ...]) -> None:
        self._places = tuple(f"{_HERE}.{place}" for place in places)

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system makes it."""

    def exec_module(self, module: ModuleType) -> None:
        name, places = module.__name__, self._places

        def find(attribute: str) -> Any:
            if attribute in CONTENTS:
                warn(f"{name}.{attribute}", CONTENTS[attribute])
                attribute = CONTENTS[attribute]
            for place in places:
                if hasattr(there := import_module(place), attribute):
                    return getattr(there, attribute)
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

        module.__dict__["__getattr__"] = find
        warn(name, " and ".join(places))


class Finder:
    """See the module's text. Not a subclass of what `importlib.abc` has, which takes long to import."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None,
                  /) -> ModuleSpec | None:
        places = MODULES.get(fullname.removeprefix(f"{_HERE}."))
        if places is None or not fullname.startswith(f"{_HERE}."):
            return None
        loader: Any = _Loader(places)
        return ModuleSpec(fullname, loader, is_package=True)


def install() -> None:
    sys.meta_path.append(Finder())
