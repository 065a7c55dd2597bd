"""The plugins of one store, sorted by the moments that they listen to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..contract.plugin import Condition, Fact, Obstacle, Plugin, StoreHandle
from ..contract.transaction import Transaction
from ..env import Scheduler
from ..env.shown import shown
from ..errors import SettingError
from ..model.positions import Position
from ..model.records import Attachment, LogRange, Record, SegmentInfo

logger = logging.getLogger("holdfast.plugins")


_MOMENTS = ("beginning", "committing", "final", "attached", "logged", "published", "checkpointed", "sealed", "pruning",
            "fault", "facts", "forked", "role_changed")


class Hooks:
    """The plugins of one store. For each moment, an attribute holds the bound hooks that override it; `closing` holds
    only those of plugins whose *opened* returned."""

    closing: tuple[Callable[[StoreHandle], None], ...]
    beginning: tuple[Callable[[], Obstacle | None], ...]
    committing: tuple[Callable[[Transaction], None], ...]
    final: tuple[Callable[[Transaction], None], ...]
    attached: tuple[Callable[[Attachment], None], ...]
    logged: tuple[Callable[[LogRange], Condition | None], ...]
    published: tuple[Callable[[Sequence[Record]], None], ...]
    checkpointed: tuple[Callable[[Position], None], ...]
    sealed: tuple[Callable[[SegmentInfo], None], ...]
    pruning: tuple[Callable[[Sequence[SegmentInfo]], str | None], ...]
    fault: tuple[Callable[[BaseException], None], ...]
    facts: tuple[Callable[[], Sequence[Fact]], ...]
    forked: tuple[Callable[[], None], ...]
    role_changed: tuple[Callable[[str, int], None], ...]

    def __init__(self, plugins: Iterable[Plugin], scheduler: Scheduler) -> None:
        self.plugins = tuple(plugins)
        self._scheduler = scheduler
        for plugin in self.plugins:
            if not isinstance(plugin, Plugin):
                raise SettingError(f"{shown(plugin)} is not a plugin", hint="pass objects of Plugin subclasses")
        self.closing = ()
        for moment in _MOMENTS:
            setattr(self, moment, self._overriding(moment, self.plugins))

    @staticmethod
    def _overriding(moment: str, plugins: Iterable[Plugin]) -> tuple[Callable[..., Any], ...]:
        return tuple(getattr(p, moment) for p in plugins if getattr(type(p), moment) is not getattr(Plugin, moment))

    def open(self, store: StoreHandle) -> None:
        """Call *opened* of each plugin, in order. If one raises, this raises, and *closing* is not called for it or for
        those after it."""
        for plugin in self.plugins:
            plugin.opened(store)
            self.closing += self._overriding("closing", [plugin])

    def tell(self, moment: str, *args: Any) -> None:
        """Call every hook of an observing moment, on this thread. What they raise is logged and not passed on."""
        for hook in getattr(self, moment):
            try:
                hook(*args)
            except BaseException as error:
                if not isinstance(error, Exception) and self._scheduler.is_main():
                    raise  # it may be from a signal handler; raising in a thread of the kit would leave others waiting
                logger.exception("plugin hook %s raised", getattr(hook, "__qualname__", hook))

    def shown(self) -> list[Fact]:
        """What the plugins show of themselves. What they raise is logged and not passed on."""
        facts: list[Fact] = []
        for hook in self.facts:
            try:
                facts += hook()
            except Exception:
                logger.exception("plugin hook %s raised", getattr(hook, "__qualname__", hook))
        return facts
