"""A graph for other libraries, and from them: SciPy, igraph, NetworkX and Arrow.

    from holdfast.engine import interop

    matrix, ids = interop.to_scipy(view)
    other = interop.to_igraph(view)
    tables = interop.to_arrow(view)

Each library is an extra of its own (`holdfast[scipy]`, `[igraph]`, `[networkx]`, `[arrow]`), and is imported when it is
first needed. NetworkX takes a view as it is: `nx.pagerank(view)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrow import ArrowTables, LoadedTables, load_arrow, to_arrow
    from .convert import to_igraph, to_networkx, to_scipy
    from .networkx_graph import NetworkXGraph

__all__ = ["ArrowTables", "LoadedTables", "NetworkXGraph", "load_arrow", "to_arrow", "to_igraph", "to_networkx",
           "to_scipy"]

_MODULES = {
    ".arrow": ("ArrowTables", "LoadedTables", "load_arrow", "to_arrow"),
    ".convert": ("to_igraph", "to_networkx", "to_scipy"),
    ".networkx_graph": ("NetworkXGraph",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
