"""The contract: what an author of an engine or of a plugin writes, and what the kit promises in return.

    from holdfast.engine.contract import Context, Engine, Image, Transaction, View

Read `engine` first: it says what an engine is. `transaction`, `view` and `image` are its parts. `plugin` is what a
plugin may override and rely on. `registry` finds engines and plugins by name.

A name is imported when it is first used: what copies an image needs no plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Abilities as Abilities
    from .engine import BulkEngine as BulkEngine
    from .engine import Context as Context
    from .engine import Engine as Engine
    from .engine import StagingEngine as StagingEngine
    from .engine import TxT as TxT
    from .engine import ViewT as ViewT
    from .image import Image as Image
    from .image import ImageFile as ImageFile
    from .options import Option as Option
    from .plugin import Condition as Condition
    from .plugin import Fact as Fact
    from .plugin import Obstacle as Obstacle
    from .plugin import Plugin as Plugin
    from .plugin import StoreHandle as StoreHandle
    from .transaction import Durability as Durability
    from .transaction import Transaction as Transaction
    from .view import View as View

_MODULES = {
    "engine": ("Abilities", "BulkEngine", "Context", "Engine", "StagingEngine", "TxT", "ViewT"),
    "image": ("Image", "ImageFile"),
    "options": ("Option",),
    "plugin": ("Condition", "Fact", "Obstacle", "Plugin", "StoreHandle"),
    "transaction": ("Durability", "Transaction"),
    "view": ("View",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
