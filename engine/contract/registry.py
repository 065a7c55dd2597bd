"""Finding engines and plugins by name, in the entry-point groups `holdfast.engines` and `holdfast.plugins`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..env import REAL
from ..env.shown import shown
from ..env.system import system_errors
from ..errors import SettingError

if TYPE_CHECKING:
    from .plugin import Plugin


def listed(plugins: Iterable[Plugin | str]) -> list[Plugin]:
    """The plugins, with each name replaced by a new instance of the registered plugin. Raises `SettingError`."""
    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        raise SettingError(f"plugins={shown(plugins)} is not a list",
                           hint="pass a list of plugins, or of registered names")
    return [find_plugin(plugin) if isinstance(plugin, str) else plugin for plugin in plugins]


def find_plugin(name: str) -> Plugin:
    """Make the plugin registered as `name` in the entry-point group `holdfast.plugins`. Raises `SettingError` if there
    is none, or it is not a `Plugin`; `LimitReached` if no more files can be opened to look."""
    from .plugin import Plugin

    plugin: Plugin = find("holdfast.plugins", name, Plugin)()
    return plugin


def find_engine(name: str) -> Any:
    """The engine class registered as `name` in the entry-point group `holdfast.engines`. Raises `SettingError` if there
    is none; `LimitReached` as `find_plugin`."""
    from .engine import Engine

    return find("holdfast.engines", name, Engine)


def find(group: str, name: str, base: type) -> Any:
    """The subclass of `base` that is registered as `name` in an entry-point group. Raises `SettingError`,
    `LimitReached`."""
    from importlib.metadata import MetadataPathFinder, entry_points  # takes long, and not everybody looks

    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        # What is installed in a directory that cannot be opened counts as not there, and is remembered so.
        MetadataPathFinder().invalidate_caches()  # a class method from 3.12 on
        with system_errors(f"cannot look for {name!r} in what is installed"):
            REAL.files.open_directory(Path("/")).close()
        found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        raise SettingError(f"no {base.__name__.lower()} named {name!r}",
                           hint=f"installed: {', '.join(sorted(found)) or 'none'}")
    made = found[name].load()
    if not (isinstance(made, type) and issubclass(made, base)):
        raise SettingError(f"{group} entry {name!r} is not a subclass of {base.__name__}")
    return made
