"""What NetworkX is told about the backend when it is imported. So this module imports nothing."""

from __future__ import annotations

from typing import Any

FUNCTIONS = (
    "ancestors", "connected_components", "degree_centrality", "descendants", "in_degree_centrality", "is_connected",
    "is_strongly_connected", "is_weakly_connected", "node_connected_component", "number_connected_components",
    "number_strongly_connected_components", "number_weakly_connected_components", "out_degree_centrality", "pagerank",
    "single_source_shortest_path_length", "strongly_connected_components", "weakly_connected_components",
)
"""Of NetworkX, computed from arrays."""


def info() -> dict[str, Any]:
    """For the entry point `networkx.backend_info`."""
    return {"backend_name": "holdfast", "project": "holdfast", "package": "holdfast",
            "short_summary": "Graphs in Holdfast's store, computed on as arrays.",
            "functions": {name: {} for name in FUNCTIONS}}
