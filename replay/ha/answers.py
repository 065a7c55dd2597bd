"""What a member answers to others: to members, to operators' commands, to load balancers and to browsers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from ...engine.env import Env
from ...engine.env.shown import shown
from ...engine.errors import Diverged, InvalidInput, NotFound, SourceUnavailable
from ...engine.model.positions import Position
from ...engine.model.records import Record
from ...engine.source.interface import CHUNK_BYTES
from .effects import Answer
from .errors import NotPrimary
from .node import Node
from .shipping import ROOM_S, LogStream
from .status_page import Seen, status_page

CONFIRM_S = 10.0
"""How long a primary waits for the voters to confirm it."""
BATCH_BYTES = 4 << 20
"""About the most that a follower appends and syncs in one go."""


class Answers:
    """The `Handler` of a member that has a store."""

    def __init__(self, node: Node, env: Env) -> None:
        self._node = node
        self._env = env

    def promise(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a candidate. Waits until the promise is durable."""
        node = self._node
        candidate, epoch = request.get("candidate"), request.get("epoch")
        if type(candidate) is not str or type(epoch) is not int:
            raise InvalidInput("a promise is asked for with a candidate and an epoch")
        reply: Future[tuple[Answer | None, int]] = Future()
        node.driver.tell(lambda m: m.asked(candidate, epoch, reply, self._env.clock.monotonic()))
        document = node.machine.document
        try:
            answer, promised = reply.result(10.0 if document is None else document.ttl)
        except TimeoutError:
            raise SourceUnavailable(f"{node.machine.name} cannot promise now: its store is being closed") from None
        if answer is None:
            return {"promised": promised, "answer": None}
        return {"promised": promised, "answer": [answer.epoch, answer.generation, list(answer.end), answer.published]}

    def chain_at(self, txid: int, epoch: int | None = None) -> bytes:
        """Raises `NotPrimary` if `epoch` is given and this member does not serve it."""
        node = self._node
        if epoch is not None and epoch != node.machine.serving:
            raise NotPrimary(f"{node.machine.name} does not lead epoch {epoch}", hint="try again in a moment")
        return node.local.store.log.chain_at(txid)

    def open_stream(self, hello: Mapping[str, Any], stream: LogStream) -> None:
        """Begin to send the log to a follower. Raises `NotPrimary`, `Diverged`, `LogPruned`, `InvalidInput`."""
        node = self._node
        try:
            name, epoch, after = str(hello["member"]), int(hello["epoch"]), Position(hello["after"], hello["chain"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"a follower's hello lacks or garbles a field: {error}") from error
        if epoch != node.machine.serving:
            raise NotPrimary(f"{node.machine.name} does not lead epoch {epoch}", hint="try again in a moment")
        if node.local.store.log.chain_at(after.txid) != after.chain:
            raise Diverged(f"the follower's log differs from the primary's at transaction {after.txid}")
        stream.heartbeat({"end": node.local.store.durable.txid, "epoch": epoch, "watermark": 0, "beat": 0})
        node.local.shipping.add(name, epoch, after, stream)
        node.local.shipping.beat(epoch, node.machine.watermark)

    def send_log(self, hello: Mapping[str, Any], stream: LogStream) -> None:
        """Send a part of the log here, published or not, to a candidate that lacks it. In a thread of its own."""
        try:
            after, upto = Position(int(hello["after"]), hello["chain"]), int(hello["upto"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"what asks for log lacks or garbles a field: {error}") from error

        def work() -> None:
            try:
                for records in _batches(self._node.local.store.log.cursor(after).read(upto)):
                    while not stream.send_records(records):
                        stream.wait_room(ROOM_S)
            except Exception as error:  # whatever it is, the candidate must not wait for the rest
                stream.close(error)
            else:
                stream.close("that is all")

        self._env.scheduler.spawn("holdfast-send", work)

    def read_attachment(self, name: str, offset: int, length: int) -> bytes:
        """A piece of a file that a record of the log names. Raises `InvalidInput`, `NotFound`."""
        if not 0 <= length <= CHUNK_BYTES or offset < 0:
            raise InvalidInput(f"{length} bytes from {offset} on were asked for; the most at once is {CHUNK_BYTES}")
        store = self._node.local.store
        try:
            file = self._env.files.open(store.log.attachment_path(name))
        except FileNotFoundError as error:
            raise NotFound(f"the log has no attachment {name}", hint="records name those that exist") from error
        try:
            return file.pread(length, offset)
        finally:
            file.close()

    def command(self, verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """What an operator or another member asks this one to do. Raises `InvalidInput` if it does not do it."""
        node = self._node
        now = self._env.clock.monotonic()
        if verb == "confirm":
            return {"txid": node.confirmed_position(CONFIRM_S)}
        if verb == "document":
            with node.driver.lock:
                kept, promised = node.machine.document, max(node.machine.promised, node.machine.epoch)
            return {"document": None if kept is None else kept.encode().decode(), "promised": promised,
                    "whole": node.machine.whole, "generation": node.machine.entry.generation}
        to = str(args.get("member", ""))
        if verb == "switchover":
            why = node.driver.tell(lambda m: m.switch_over(to, now))
        elif verb == "remove":
            why = node.driver.tell(lambda m: m.remove(to, now))
        elif verb == "failover":
            why = node.driver.tell(lambda m: m.take_over(now, force=args.get("force") is True))
        elif verb == "reinit":
            why = node.seed_anew()
        else:
            raise InvalidInput(f"members know no command {shown(verb)}",
                               hint="use switchover, failover, reinit, remove, confirm or document")
        if why is not None:
            raise InvalidInput(f"no {verb}: {why}", hint="see the cluster's status")
        return {"begun": True}

    def health(self, kind: str, query: Mapping[str, str]) -> tuple[bool, dict[str, Any]]:
        """Whether this member is what a load balancer looks for, and some facts. `kind`: "primary" or "read-write";
        "replica", with `lag` in seconds in the query; or "health": it has a store open."""
        node = self._node
        role, lag = node.role, node.lag_s()
        facts = {"name": node.machine.name, "role": role if node.branched is None else "branched",
                 "epoch": node.machine.epoch or node.machine.promised, "published": node.local.published,
                 "lag_s": round(lag, 3)}
        if kind in ("primary", "read-write"):
            return role == "primary", facts
        if kind == "replica":
            try:
                most = float(query.get("lag", "inf"))
            except ValueError:
                raise InvalidInput(f"lag is a number of seconds, not {shown(query['lag'])}") from None
            return role == "follower" and node.connected and node.branched is None and lag <= most, facts
        return not node.local.store.closed, facts

    def acked(self, ack: Mapping[str, Any]) -> None:
        """A follower has acknowledged."""
        node = self._node
        try:
            name, generation, epoch = str(ack["member"]), int(ack["generation"]), int(ack["epoch"])
            if "attachment" in ack:
                node.has_copied(name, generation, epoch, str(ack["attachment"]))
                return
            txid, beat = int(ack["txid"]), int(ack["beat"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"an acknowledgement lacks or garbles a field: {error}") from error
        now = self._env.clock.monotonic()

        def note() -> None:
            node.driver.tell(lambda m: m.acked_by(name, generation, epoch, txid, beat, now))

        if node.local.accepting:
            note()
        else:  # it may publish what was inherited, which takes its time
            node.late(note)

    def status(self) -> dict[str, Any]:
        """For people and programs, as plain values. O(members)."""
        node = self._node
        with node.driver.lock:
            status = node.machine.status()
        store = node.local.store
        voters = () if node.machine.document is None else node.machine.document.electorate
        return {**status, "role": node.role, "trouble": node.trouble, "voters": voters, "durable": store.durable.txid,
                "published": store.published.txid, "connected": node.connected, "branched": node.branched,
                "set_aside": [asdict(one) for one in node.set_aside()],
                "store_id": store.history.store_id.hex(),
                "branches": [[b.id.hex(), b.start.txid, b.start.chain.hex()] for b in store.history.branches],
                "backup_uri": store.backup_uri, "sent": node.local.shipping.followers(), "log": store.log.status(),
                "base": [store.log.base.txid, store.log.base_epoch]}

    def metrics(self) -> str:
        """Lines in Prometheus' text format."""
        node = self._node
        machine, store = node.machine, node.local.store
        rows = [("member_primary", "gauge", "whether this member is the primary", int(node.role == "primary")),
                ("member_epoch", "gauge", "the epoch that it leads or follows in", machine.epoch or machine.promised),
                ("member_connected", "gauge", "whether it streams from a primary", int(node.connected)),
                ("member_lag_seconds", "gauge", "since it last heard what the primary had published",
                 round(node.lag_s(), 3)),
                ("member_lag_transactions", "gauge", "published by the primary and not shown here", node.behind() or 0),
                ("member_set_aside_transactions", "gauge", "that this member had and the cluster does not",
                 sum(one.last - one.first + 1 for one in node.set_aside())),
                ("member_unpublished_transactions", "gauge", "durable here and not published",
                 store.durable.txid - store.published.txid)]
        lines = [f"# HELP holdfast_{name} {text}\n# TYPE holdfast_{name} {kind}\nholdfast_{name} {value}\n"
                 for name, kind, text, value in rows]
        lags = node.lags() if machine.serving else {}
        for at, (name, text) in enumerate((  # in the order of `Lag`
                ("follower_lag_transactions", "that a follower has not acknowledged"),
                ("follower_lag_bytes", "of log that a follower lacks, rounded up"),
                ("follower_lag_seconds", "age of the first transaction that a follower lacks"),
                ("follower_silent_seconds", "since a follower was last heard"))):
            lines.append(f"# HELP holdfast_{name} {text}\n# TYPE holdfast_{name} gauge\n")
            lines += [f'holdfast_{name}{{member="{member}"}} {round(lag[at], 3)}\n' for member, lag in lags.items()]
        return "".join(lines)

    def page(self) -> bytes:
        """A page for people."""
        node = self._node
        with node.driver.lock:
            document = node.machine.document
        store = node.local.store
        heard = None if node.machine.serving else self._env.clock.monotonic() - node.heard_at
        return status_page(document, Seen(
            name=node.machine.name, role=node.role, trouble=node.branched or node.trouble,
            published=store.published.txid, behind=node.behind(), heard_s=heard, connected=node.connected,
            lags=node.lags(), slots=store.log.slots.list(), now_us=self._env.clock.now_us()))


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Lists of records, each small enough to append and sync in one go."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.payload)
        if size >= BATCH_BYTES or record.attachment is not None:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
