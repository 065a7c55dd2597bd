"""The contract: what an author of an engine or of a plugin writes, and what the kit promises in return.

    from holdfast.engine.contract import Context, Engine, Image, Transaction, View

Read `engine` first: it says what an engine is. `transaction`, `view` and `image` are its parts. `plugin` is what a
plugin may override and rely on. `registry` finds engines and plugins by name.
"""

from __future__ import annotations

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
