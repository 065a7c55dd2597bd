"""What a member answers before it has a store: that it waits, and for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ...engine.errors import SourceUnavailable
from .shipping import LogStream
from .status_page import waiting_page


class Waiting:
    """A `Handler` that shows why there is nothing yet, and refuses all else."""

    def __init__(self, cluster: str, name: str, why: Callable[[], tuple[str | None, BaseException | None]]) -> None:
        """`why`: tells what the member waits for, and what keeps it from going on."""
        self._cluster = cluster
        self._name = name
        self._why = why

    def _refuse(self) -> NoReturn:
        raise SourceUnavailable(f"{self._name} has no store yet: it waits for {self._why()[0]}",
                                hint="try again in a moment")

    def status(self) -> dict[str, Any]:
        self._refuse()

    def promise(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._refuse()

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        self._refuse()

    def command(self, verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
        self._refuse()

    def open_stream(self, hello: Mapping[str, Any], stream: LogStream) -> None:
        self._refuse()

    def send_log(self, hello: Mapping[str, Any], stream: LogStream) -> None:
        self._refuse()

    def read_attachment(self, name: str, offset: int, length: int) -> bytes:
        self._refuse()

    def acked(self, ack: Mapping[str, Any]) -> None:
        self._refuse()

    def health(self, kind: str, query: Mapping[str, str]) -> tuple[bool, dict[str, Any]]:
        return False, {"name": self._name, "role": "joining", "waits_for": self._why()[0]}

    def metrics(self) -> str:
        return ""

    def page(self) -> bytes:
        waits_for, failure = self._why()
        return waiting_page(self._cluster, self._name, waits_for, None if failure is None else str(failure))
