"""A backup service that says that its store is a member of a cluster."""

from __future__ import annotations

from typing import Any

from holdfast.engine.source.interface import MemberInfo


class Says:
    """A service's extension that says what its store is in the cluster."""

    prefix, token, open_paths = "/ha/", "a-token-that-nobody-uses", frozenset[str]()

    def __init__(self, name: str, role: str, healthy: bool) -> None:
        self.said = MemberInfo(name=name, role=role, healthy=healthy)

    def table(self, server: object) -> list[Any]:
        return []

    def metrics(self) -> str:
        return ""

    def member(self) -> MemberInfo:
        return self.said

    def stopped(self) -> None:
        pass
