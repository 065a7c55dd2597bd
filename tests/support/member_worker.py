"""A member of a cluster as a process of its own. It takes orders on standard input and answers on standard output.

    {"id": 7, "do": "append", "number": 12}   ->   {"id": 7, "txid": 31}

If a repository's URL is given last, the member archives. Orders are carried out in threads, so a commit that waits
holds up nobody. The process ends when its input does.
"""

from __future__ import annotations

import json
import logging
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from holdfast.backup.repository.member_archiving import MemberArchivePlugin
from holdfast.engine import MemoryEngine
from holdfast.engine.builtin.graph import GraphEngine
from holdfast.engine.errors import HoldfastError
from holdfast.engine.store.settings import Settings
from holdfast.replay.ha.service import Member

logger = logging.getLogger("worker")

LIST = 400
"""Numbers of one list: number n is appended to list n // LIST."""
_THREADS = 16


class _Lists:
    """Lists in the memory engine: a value is the numbers, four bytes each. An append reads what is there and adds to
    it, so a lost transaction is a hole in a later one's reading."""

    engine: Any = MemoryEngine

    def append(self, tx: Any, number: int) -> None:
        key = b"%06d" % (number // LIST)
        tx.put(key, (tx.get(key) or b"") + struct.pack("<I", number))

    def read(self, view: Any, least: int) -> dict[int, list[int]]:
        """The lists from number `least` on."""
        return {int(key): [n for n, in struct.iter_unpack("<I", value)] for key, value in view.items()
                if int(key) >= least}


class _Nodes:
    """One list in the graph engine: a node for each number, in the order of their identifiers."""

    engine: Any = GraphEngine

    def append(self, tx: Any, number: int) -> None:
        tx.add_node("Written", number=number)

    def read(self, view: Any, least: int) -> dict[int, list[int]]:
        return {0: [view.node(node).properties["number"] for node in sorted(view.nodes())]}


def main() -> None:
    directory, name, listen, advertise, coordinator, create, ttl, kind, *archive = sys.argv[1:]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO,
                        format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    lists: _Lists | _Nodes = _Lists() if kind == "memory" else _Nodes()
    out = threading.Lock()

    def say(**answer: Any) -> None:
        with out:
            print(json.dumps(answer), flush=True)

    settings = Settings(wait_s=3, segment_bytes=128 << 10, checkpoint_soft_bytes=100_000)
    plugins = [MemberArchivePlugin(url, interval=0.1) for url in archive]
    with Member.open(Path(directory), lists.engine, cluster="faults", name=name, listen=listen, advertise=advertise,
                     coordinator=coordinator, create=create == "create", ttl=float(ttl), settings=settings,
                     plugins=plugins,
                     insecure=True) as member:  # off loopback, in a network namespace that nothing leaves
        say(started=True)

        def carry_out(order: dict[str, Any]) -> None:
            try:
                answer = _ORDERS[order["do"]](member, lists, order)
            except HoldfastError as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            except BaseException as error:
                logger.exception("order %s failed", order)
                answer = {"error": type(error).__name__, "message": repr(error)}
            say(id=order["id"], **answer)

        with ThreadPoolExecutor(_THREADS) as pool:
            for line in sys.stdin:
                pool.submit(carry_out, json.loads(line))


def _append(member: Any, lists: Any, order: dict[str, Any]) -> dict[str, Any]:
    with member.transaction() as tx:
        lists.append(tx, order["number"])
    return {"txid": tx.txid}


def _read(member: Any, lists: Any, order: dict[str, Any]) -> dict[str, Any]:
    with member.snapshot(linearizable=order["linearizable"]) as view:
        return {"txid": view.txid, "lists": lists.read(view, order["least"])}


def _status(member: Any, lists: Any, order: dict[str, Any]) -> dict[str, Any]:
    member.check()
    status = member.status()
    return {"role": status["role"], "trouble": status["trouble"], "votes": status.get("votes"),
            "published": status.get("published"), "durable": status.get("durable"), "end": status.get("end")}


def _content(member: Any, lists: Any, order: dict[str, Any]) -> dict[str, Any]:
    with member.snapshot() as view:
        return {"lists": lists.read(view, 0), "digest": view.digest().hex(), "txid": view.txid}


def _switch_over(member: Any, lists: Any, order: dict[str, Any]) -> dict[str, Any]:
    member.switch_over(order["to"])
    return {}


_ORDERS: dict[str, Callable[[Any, Any, dict[str, Any]], dict[str, Any]]] = {
    "append": _append, "read": _read, "status": _status, "content": _content, "switch over": _switch_over}

if __name__ == "__main__":
    main()
