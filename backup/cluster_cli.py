"""The commands of a cluster: `holdfast serve --cluster …` and `holdfast cluster …`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..engine import errors
from .arguments import Json, token_of
from .command_line import Argument, Commands, Option
from .terminal import BRANCHED, errors_told, say, say_done

if TYPE_CHECKING:
    from ..engine.contract.plugin import Plugin
    from ..replay.ha.admin import Admin, ClusterStatus
    from ..replay.ha.coordinator import Coordinator
    from .engines import AnyEngine

cluster_app = Commands(help="See and steer a cluster of members.")

CoordinatorUri = Annotated[str, Option("--coordinator", metavar="URI",
                                       help="etcd://host:port,host:port, etcds://… with TLS, "
                                            "s3://bucket/prefix, or file:DIRECTORY.")]
CoordinatorCa = Annotated[str | None, Option("--coordinator-ca", help="File of authorities for etcds://.")]
Cluster = Annotated[str, Argument(help="The cluster's name.", metavar="CLUSTER")]
PeerCa = Annotated[str | None, Option("--ca", help="File of the authorities of the members, if they use TLS.")]
MemberToken = Annotated[str | None, Option(
    "--cluster-token-file", help="File with the token of the members, if they were given one. Default: the one in the "
                                 "cluster's document.")]


def coordinator_of(uri: str, cluster: str, ca: str | None) -> Coordinator:
    """The coordinator at `uri`. User and password come from the environment, since arguments are seen by everybody."""
    from ..replay.ha.coordinators.url import open_coordinator

    user, password = os.environ.get("HOLDFAST_COORDINATOR_USER"), os.environ.get("HOLDFAST_COORDINATOR_PASSWORD")
    return open_coordinator(uri, cluster, ca=ca, user=user, password=password)


def _admin(uri: str, cluster: str, coordinator_ca: str | None, ca: str | None, token_file: str | None) -> Admin:
    from ..replay.ha.admin import Admin
    from ..replay.ha.peer.client import PeerClient, tls_context

    tls = None if ca is None else tls_context(ca)
    given = token_of(token_file)
    return Admin(coordinator_of(uri, cluster, coordinator_ca),
                 lambda address, token: PeerClient(address, given or token, tls=tls))


@cluster_app.command("status")
def status(coordinator: CoordinatorUri, cluster: Cluster, coordinator_ca: CoordinatorCa = None, ca: PeerCa = None,
           token_file: MemberToken = None,
           watch: Annotated[bool, Option("--watch", help="Again every two seconds, until interrupted.")] = False,
           as_json: Json = False) -> None:
    """Show members, roles, lag and what was set aside. Exits with 1 if there is no primary, and with 9 if a member had
    shown transactions that the cluster does not have."""
    with errors_told(as_json):
        from ..engine.env import REAL

        stop = REAL.scheduler.event()
        with _admin(coordinator, cluster, coordinator_ca, ca, token_file) as admin:
            while True:
                found = admin.status()
                say(json.dumps(found.to_dict()) if as_json else _table(found))
                if not watch:
                    break
                stop.wait(2.0)
    if found.primary is None:
        raise SystemExit(1)
    if any(m.set_aside or m.role == "branched" for m in found.members):
        raise SystemExit(BRANCHED)


def _table(found: ClusterStatus) -> str:
    lines = [f"cluster {found.cluster}, store {found.store_id[:8]}, epoch {found.epoch}, floor {found.floor}"
             + (", PAUSED" if found.paused else "") + (", voters are being changed" if found.joint is not None else "")]
    rows = [("member", "role", "voter", "durable", "published", "lag", "address")]
    rows += [(m.name, m.role, "yes" if m.voter else "no", _shown(m.durable), _shown(m.published), _shown(m.lag),
              m.address) for m in found.members]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"  {m.name}: {m.trouble}" for m in found.members if m.trouble]
    lines += [f"  {m.name}: {m.set_aside:,} transactions that it had shown are not the cluster's; they are in "
              "member/branched in its directory. Look at them, and move them away"
              for m in found.members if m.set_aside]
    return "\n".join(lines)


def _shown(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


@cluster_app.command("history")
def history(coordinator: CoordinatorUri, cluster: Cluster, coordinator_ca: CoordinatorCa = None,
            as_json: Json = False) -> None:
    """List the last changes of primary, with times and reasons."""
    with errors_told(as_json):
        from .report import iso

        with _admin(coordinator, cluster, coordinator_ca, None, None) as admin:
            for change in admin.document().failovers:
                if as_json:
                    say(json.dumps({"epoch": change.epoch, "leader": change.leader, "before": change.before,
                                    "time": iso(change.at_us), "reason": change.reason}))
                else:
                    say(f"{iso(change.at_us)}  epoch {change.epoch:>5}  {change.leader}  ({change.reason})")


@cluster_app.command("switchover")
def switchover(coordinator: CoordinatorUri, cluster: Cluster,
               to: Annotated[str | None, Option(help="The next primary. Default: the voter with most.")] = None,
               coordinator_ca: CoordinatorCa = None, ca: PeerCa = None, token_file: MemberToken = None,
               as_json: Json = False) -> None:
    """Hand over from the primary to another voter, without losing anything."""
    with errors_told(as_json), _admin(coordinator, cluster, coordinator_ca, ca, token_file) as admin:
        found = admin.status()
        if to is None:
            others = [m for m in found.members if m.voter and m.role == "follower" and m.name != found.leader]
            if not others:
                raise errors.InvalidInput("no other voter follows at present", hint="see holdfast cluster status")
            to = max(others, key=lambda m: (m.durable or 0, m.name)).name
        admin.command(None, "switchover", {"member": to})
        _wait_for(admin, to)
        say_done(json.dumps({"primary": to}) if as_json else f"{to} is the primary")


@cluster_app.command("failover")
def failover(coordinator: CoordinatorUri, cluster: Cluster,
             to: Annotated[str, Option(help="The next primary.")],
             force: Annotated[bool, Option("--force", help="Do without the promises of the other voters. What "
                                           "the next primary lacks is lost to the cluster.")] = False,
             coordinator_ca: CoordinatorCa = None, ca: PeerCa = None, token_file: MemberToken = None,
             as_json: Json = False) -> None:
    """Make a voter primary although the present one may not answer. It succeeds only if enough voters promise, so
    nothing that was acknowledged is lost. With --force it needs nobody: acknowledged transactions may be lost, and the
    store continues on a new branch, so that copies of what was lost are told apart."""
    with errors_told(as_json), _admin(coordinator, cluster, coordinator_ca, ca, token_file) as admin:
        silent: list[str] = []
        if force:
            before = admin.force_failover(to)
            silent = [m.name for m in before.members if m.end is None and m.voter]
        else:
            admin.command(to, "failover", {})
        _wait_for(admin, to)
        lost = f"; what only {', '.join(silent)} had is lost to the cluster" if silent else ""
        say_done(json.dumps({"primary": to, "not_asked": silent}) if as_json else f"{to} is the primary{lost}")


@cluster_app.command("recreate")
def recreate(coordinator: CoordinatorUri, cluster: Cluster,
             source: Annotated[Path, Option("--from", metavar="DIRECTORY", help="Of a member of the cluster.")],
             force: Annotated[bool, Option("--force", help="Do it; else only say what would be done.")] = False,
             coordinator_ca: CoordinatorCa = None, ca: PeerCa = None, token_file: MemberToken = None,
             as_json: Json = False) -> None:
    """Give a coordinator that has lost its data the cluster's document again. So many members must answer as are needed
    to promote one, because a member that does not answer may hold more."""
    with errors_told(as_json), _admin(coordinator, cluster, coordinator_ca, ca, token_file) as admin:
        from ..engine.env import REAL
        from ..replay.ha import recreate as recreation
        from ..replay.ha.state import kept_document

        kept = kept_document(source, REAL)
        if kept.cluster != cluster:
            raise errors.InvalidInput(f"{source} is of a member of cluster {kept.cluster}, not of {cluster}",
                                      hint="give the cluster's own name")
        planned = recreation.plan(admin, kept)
        document, answered = planned.document, planned.answered
        if force:
            recreation.write(admin, planned)
        if as_json:
            say_done(json.dumps({"done": force, "epoch": document.epoch, "voters": document.voters,
                                 "answered": answered}))
        else:
            say_done(f"{', '.join(answered)} answered. The document of {cluster}, epoch {document.epoch}, voters "
                     f"{', '.join(document.voters)}, " + ("is at the coordinator again" if force else
                                                          "would be written. Nothing was changed: add --force"))
    if not force:
        raise SystemExit(1)


def _wait_for(admin: Admin, name: str) -> None:
    """Wait until a member is primary. Raises `ConditionNotMet`."""
    from ..engine.env import REAL

    end = REAL.clock.monotonic() + 30
    pause = REAL.scheduler.event()
    while True:
        primary = admin.status().primary
        if primary is not None and primary.name == name:
            return
        if REAL.clock.monotonic() > end:
            raise errors.ConditionNotMet(f"{name} is not the primary after 30 s", txid=0,
                                         hint="see holdfast cluster status")
        pause.wait(0.1)


@cluster_app.command("pause")
def pause(coordinator: CoordinatorUri, cluster: Cluster, coordinator_ca: CoordinatorCa = None,
          as_json: Json = False) -> None:
    """Let nobody be promoted without being asked. Members log what they would have done."""
    _set_paused(coordinator, cluster, coordinator_ca, True, as_json)


@cluster_app.command("resume")
def resume(coordinator: CoordinatorUri, cluster: Cluster, coordinator_ca: CoordinatorCa = None,
           as_json: Json = False) -> None:
    """End a pause."""
    _set_paused(coordinator, cluster, coordinator_ca, False, as_json)


def _set_paused(coordinator: str, cluster: str, coordinator_ca: str | None, paused: bool, as_json: bool) -> None:
    with errors_told(as_json), _admin(coordinator, cluster, coordinator_ca, None, None) as admin:
        admin.set_paused(paused)
        say_done(json.dumps({"paused": paused}) if as_json else
                 f"{cluster} is paused: nobody is promoted without being asked" if paused else
                 f"{cluster} is not paused")


@cluster_app.command("remove")
def remove(coordinator: CoordinatorUri, cluster: Cluster,
           member: Annotated[str, Argument(help="Its name.", metavar="MEMBER")],
           coordinator_ca: CoordinatorCa = None, ca: PeerCa = None, token_file: MemberToken = None,
           as_json: Json = False) -> None:
    """Let a member leave the cluster. Its directory stays as it is."""
    with errors_told(as_json), _admin(coordinator, cluster, coordinator_ca, ca, token_file) as admin:
        admin.command(None, "remove", {"member": member})
        say_done(json.dumps({"leaving": member}) if as_json else f"{member} leaves {cluster}")


@cluster_app.command("reinit")
def reinit(coordinator: CoordinatorUri, cluster: Cluster,
           member: Annotated[str, Argument(help="Its name.", metavar="MEMBER")],
           coordinator_ca: CoordinatorCa = None, ca: PeerCa = None, token_file: MemberToken = None,
           as_json: Json = False) -> None:
    """Have a follower copy its state anew from the primary."""
    with errors_told(as_json), _admin(coordinator, cluster, coordinator_ca, ca, token_file) as admin:
        admin.command(member, "reinit", {})
        say_done(json.dumps({"seeding": member}) if as_json else f"{member} copies its state anew")


@cluster_app.command("demo")
def demo(as_json: Json = False) -> None:
    """Run three members and a coordinator as real processes, kill the primary while it writes, and check that nothing
    acknowledged is lost."""
    with errors_told(as_json):
        from .cluster_demo import run_demo

        say_done(json.dumps(run_demo(lambda line: None)) if as_json else run_demo(say)["summary"])


def archive_of_member(repository: str, *, ack: bool, key_file: Path | None, **how: Any) -> Plugin:
    """The plugin that archives while its member is primary. `how`: as it takes them."""
    from .repository.cli import key_of
    from .repository.member_archiving import MemberArchiveAckPlugin, MemberArchivePlugin

    return (MemberArchiveAckPlugin if ack else MemberArchivePlugin)(repository, key=key_of(key_file), **how)


def serve_member(directory: Path, engine: AnyEngine, create: bool, options: dict[str, Any], as_json: bool,
                 coordinator_ca: str | None, on_role_change: str | None, **how: Any) -> None:
    """Run a member until SIGTERM or SIGINT, or until it cannot go on."""
    from ..engine.env import REAL
    from ..replay.ha.service import Member

    ending = contextlib.ExitStack()
    how["coordinator"] = coordinator_of(how["coordinator"], how["cluster"], coordinator_ca)
    if on_role_change is not None:
        from .role_program import RoleProgram

        how["on_role"] = program = RoleProgram(on_role_change, how["cluster"], how["name"], REAL)
        ending.callback(program.close)
    stop = REAL.scheduler.event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ending, Member.open(directory, engine, create=create, options=options, **how) as member:
        found = member.status()
        ready = {"member": member.name, "cluster": member.cluster, "directory": str(directory), "engine": engine.name,
                 "address": member.address}
        say_done(json.dumps({**ready, "role": found["role"]}) if as_json else
                 f"member {member.name} of {member.cluster} ({engine.name}) at {member.address}: {found['role']}"
                 + (f", waits for {found['waits_for']}" if found.get("waits_for") else ""))
        while not stop.wait(0.5):
            member.check()
