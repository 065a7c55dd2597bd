"""The commands of a repository: `holdfast repo …`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ...engine import errors
from ..arguments import (
    Ca,
    EngineName,
    EngineOptions,
    Json,
    Timeout,
    Tls,
    TokenFile,
    Uri,
    Wait,
    argument,
    engine_of,
    file_option,
    options_of,
    tell,
    time_of,
    token_of,
)
from ..command_line import Argument, Commands, Option
from ..terminal import DAMAGED, errors_told, progress_told, say, say_done

if TYPE_CHECKING:
    from .hooks import RepositoryPlugin
    from .keys import Key
    from .repository import Repository

repo_app = Commands(help="Keep every moment of a store in a repository, on a disk or in a bucket.")

Url = Annotated[str, Argument(help="A directory, file:///…, s3://bucket/prefix, gs://…, az://…", metavar="REPO")]
KeyFile = Annotated[Path | None, file_option(
    "File with the key of an encrypted repository. Default: HOLDFAST_REPOSITORY_KEY of the "
                       "environment, or what the command in HOLDFAST_REPOSITORY_KEY_COMMAND prints.")]
Txid = Annotated[int | None, Option("--txid", help="The point: a transaction.")]
At = Annotated[str | None, Option(help="The point: a time, with a zone: 2026-11-22T09:30:00Z.")]
Mark = Annotated[str | None, Option("--mark", help="The point: a mark.")]
Branch = Annotated[str | None, Option(help="Branch, by the first digits of its id. Default: the newest image's.")]
DryRun = Annotated[bool, Option("--dry-run", help="Only say what would be done.")]
OnEvent = Annotated[str | None, Option(
    "--on-event", metavar="PROGRAM", help="Run it as PROGRAM done or PROGRAM failed afterwards, with what was done as "
                                          "JSON on its standard input. Before an expiry it is run as PROGRAM expiring, "
                                          "and vetoes it by an exit code other than 0.")]
Salvage = Annotated[bool, Option("--salvage", help="Do not read the catalog, because it is lost or damaged.")]
Scratch = Annotated[Path | None, file_option("Directory in which to restore. Default: that for temporary files.")]
Accept = Annotated[str | None, Option(help="Accept a branch that is new to the repository, by its id.")]


def key_of(file: Path | None) -> Key | None:
    """The key in a file, or without one that of the environment, if there is one. Raises `SettingError`."""
    from .keys import Key

    return Key.from_environment() if file is None else Key.from_file(file)


@contextmanager
def _opened(url: str, key_file: Path | None, on_event: str | None = None, *, salvage: bool = False
            ) -> Iterator[Repository]:
    from .hooks import tell_failed
    from .repository import Repository

    programs = _programs(on_event, url)
    try:
        repository = Repository.open(url, key=key_of(key_file), salvage=salvage)
    except errors.HoldfastError as error:
        tell_failed(programs, "open", error)
        raise
    with repository:
        repository.plugins += programs
        yield repository


def _programs(on_event: str | None, url: str) -> list[RepositoryPlugin]:
    from .hooks import Program

    return [] if on_event is None else [Program(on_event, url)]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else time_of(text)


@repo_app.command("init")
def init(repo: Url,
         encrypt: Annotated[Path | None, file_option(
             "Encrypt everything with the key in this file: 16 bytes or more. Keep it: without it nothing can be "
             "restored.")] = None, as_json: Json = False) -> None:
    """Make a repository."""
    with errors_told(as_json):
        from .keys import Key
        from .repository import Repository

        with Repository.init(repo, key=None if encrypt is None else Key.from_file(encrypt)) as made:
            rights = made.rights
            assert rights is not None
            say(json.dumps({"repository": made.url, "id": made.id, "encrypted": made.encrypted,
                            "rights": rights.to_dict()}) if as_json else
                f"{made.url} is a repository now{', encrypted' if made.encrypted else ''}\n  {rights}")


@repo_app.command("backup")
def backup(
    uri: Uri,
    repo: Url,
    rate: Annotated[float | None, Option(help="Megabytes per second that are read of the image at most.")] = None,
    block_bytes: Annotated[int, Option(help="Size of a block: 4096 to 65536.")] = 16384,
    digest: Annotated[bool, Option("--digest", help="Have the source compute the digest of its content, for "
                                                    "rehearsals to compare with. It reads all of it.")] = False,
    accept_branch: Accept = None, dry_run: DryRun = False,
    token_file: TokenFile = None, tls: Tls = None, ca: Ca = None, timeout: Timeout = 30.0, on_event: OnEvent = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Take an image: whole to restore, and only what changed since the last one is sent and stored."""
    with errors_told(as_json):
        from ..connection import Connection

        connection = Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout)
        with _opened(repo, key_file, on_event) as repository:
            if dry_run:
                tell(repository.plan_backup(uri, connection=connection, accept_branch=accept_branch,
                                            block_bytes=block_bytes), as_json)
                return
            with progress_told(as_json) as progress:
                report = repository.backup(
                    uri, connection=connection, accept_branch=accept_branch, block_bytes=block_bytes,
                    rate=None if rate is None else rate * 1_000_000, digest=digest, progress=progress)
        tell(report, as_json)


@repo_app.command("archive")
def archive(
    uri: Uri,
    repo: Url,
    interval: Annotated[float, Option(help="Seconds from one piece to the next.")] = 1.0,
    idle: Annotated[float, Option(help="Seconds after which a piece says how far an idle store is complete."
                                  )] = 60.0,
    once: Annotated[bool, Option("--once", help="Archive what there is, and end.")] = False,
    accept_branch: Accept = None,
    token_file: TokenFile = None, tls: Tls = None, ca: Ca = None, timeout: Timeout = 30.0, key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Archive the log of a running store, from now on until interrupted."""
    with errors_told(as_json):
        from ..connection import Connection
        from .archiving import archive_source

        connection = Connection(token=token_of(token_file), tls=tls, ca=ca, timeout=timeout)
        with _opened(repo, key_file) as repository:
            def told(txid: int, transactions: int) -> None:
                say(json.dumps({"archived_to": txid, "transactions": transactions}) if as_json else
                    f"archived {transactions:,} transactions, to transaction {txid}")

            archive_source(repository, uri, connection, interval=interval, idle=idle, once=once,
                           accept_branch=accept_branch, told=told)


@repo_app.command("synthesize")
def synthesize(repo: Url, txid: Txid = None, at: At = None, mark: Mark = None, branch: Branch = None,
               scratch: Scratch = None, engine: EngineName = None, engine_option: EngineOptions = None,
               on_event: OnEvent = None, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Make an image of the last image and the archived log after it, without the source."""
    with errors_told(as_json), _opened(repo, key_file, on_event) as repository:
        with progress_told(as_json) as progress:
            report = repository.synthesize(to_txid=txid, at=_moment(at), mark=mark, branch=branch, scratch=scratch,
                                           engine=engine_of(engine), options=options_of(engine_option),
                                           progress=progress)
        tell(report, as_json)


@repo_app.command("info")
def info(repo: Url, salvage: Salvage = False,
         rights: Annotated[bool, Option("--rights", help="Try whether these credentials could overwrite and "
                                                         "delete what is there.")] = False,
         key_file: KeyFile = None, as_json: Json = False) -> None:
    """Show what a repository restores to, its images, branches, marks and proofs."""
    with errors_told(as_json), _opened(repo, key_file, salvage=salvage) as repository:
        tell(repository.info(rights=rights), as_json)


@repo_app.command("ls")
def list_objects(repo: Url, prefix: Annotated[str, Argument(help="How the names begin.")] = "",
                 key_file: KeyFile = None, as_json: Json = False) -> None:
    """List the objects: bytes, time by the storage's clock, name."""
    with errors_told(as_json), _opened(repo, key_file) as repository:
        from ..report import iso

        for name, size, time_us in repository.ls(prefix):
            say(json.dumps({"name": name, "bytes": size, "modified": iso(time_us)}) if as_json else
                f"{size:>12,}  {iso(time_us)}  {name}")


@repo_app.command("mark")
def mark(repo: Url, name: Annotated[str, Argument(help="The mark's name.")], txid: Txid = None, at: At = None,
         branch: Branch = None,
         keep: Annotated[bool, Option("--keep", help="No expiry drops what this point needs.")] = False,
         remove: Annotated[bool, Option("--remove", help="Remove the mark.")] = False, key_file: KeyFile = None,
         as_json: Json = False) -> None:
    """Give a restore point a name; if none is given, the last one."""
    with errors_told(as_json), _opened(repo, key_file) as repository:
        if remove:
            if txid is not None or at is not None or branch is not None or keep:
                raise errors.InvalidInput("--remove takes no point, no branch and no --keep")
            repository.unmark(name)
            say_done(json.dumps({"removed": name}) if as_json else f"removed the mark {name}")
            return
        made = repository.mark(name, to_txid=txid, at=_moment(at), branch=branch, keep=keep)
        say(json.dumps({"mark": name, "txid": made["txid"], "branch": made["branch"], "keep": keep}) if as_json else
            f"marked transaction {made['txid']} as {name}{', and what it needs is kept' if keep else ''}")


@repo_app.command("restore")
def restore(
    repo: Url,
    dest: Annotated[Path, argument("Directory for the store, new or empty.")],
    txid: Txid = None, at: At = None, mark: Mark = None, branch: Branch = None, dry_run: DryRun = False,
    force: Annotated[bool, Option("--force", help="Replace the store or backup that is there.")] = False,
    delta: Annotated[bool, Option("--delta", help="Write only the blocks in which DEST, which is this store, "
                                                  "differs. Its present state is not kept.")] = False,
    raw: Annotated[bool, Option("--raw", help="Write the image's files and the log, without the engine: DEST "
                                              "becomes a backup, of which a store can be made later.")] = False,
    salvage: Salvage = False, wait: Wait = 0.0, engine: EngineName = None, engine_option: EngineOptions = None,
    on_event: OnEvent = None, key_file: KeyFile = None, as_json: Json = False,
) -> None:
    """Restore a store: to a transaction, a time, a mark, or the end of a branch."""
    with errors_told(as_json), _opened(repo, key_file, on_event, salvage=salvage) as repository:
        when = _moment(at)
        if raw and (delta or engine or engine_option):
            raise errors.InvalidInput("--raw takes no --delta, no --engine and no --engine-option",
                                      hint="leave them out: no engine is used, and DEST does not become a store")
        if dry_run:
            tell(repository.plan(to_txid=txid, at=when, mark=mark, branch=branch), as_json)
            return
        with progress_told(as_json) as progress:
            report = (
                repository.restore_raw(dest, to_txid=txid, at=when, mark=mark, branch=branch, force=force, wait=wait,
                                       progress=progress) if raw else
                repository.restore(dest, to_txid=txid, at=when, mark=mark, branch=branch, force=force, delta=delta,
                                   wait=wait, engine=engine_of(engine), options=options_of(engine_option),
                                   progress=progress))
        tell(report, as_json)


@repo_app.command("rehearse")
def rehearse(repo: Url, txid: Txid = None, at: At = None, mark: Mark = None, branch: Branch = None,
             scratch: Scratch = None, engine: EngineName = None, engine_option: EngineOptions = None,
             on_event: OnEvent = None, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Restore into a scratch place, open and check it, and note the result in the repository."""
    with errors_told(as_json), _opened(repo, key_file, on_event) as repository:
        with progress_told(as_json) as progress:
            report = repository.rehearse(to_txid=txid, at=_moment(at), mark=mark, branch=branch, scratch=scratch,
                                         engine=engine_of(engine), options=options_of(engine_option),
                                         progress=progress)
        tell(report, as_json)


@repo_app.command("expire")
def expire(
    repo: Url,
    keep_last: Annotated[int, Option(help="Images to keep, the newest ones.")] = 0,
    keep_daily: Annotated[int, Option(help="Days of which the newest image is kept.")] = 0,
    keep_weekly: Annotated[int, Option(help="Weeks of which the newest image is kept.")] = 0,
    keep_monthly: Annotated[int, Option(help="Months of which the newest image is kept.")] = 0,
    keep_yearly: Annotated[int, Option(help="Years of which the newest image is kept.")] = 0,
    keep_points: Annotated[str, Option(help="How long any transaction can be restored: \"14 days\", \"for "
                                            "ever\", \"none\".", metavar="PERIOD")] = "14 days",
    abandoned: Annotated[str, Option(help="When a backup that is not whole is given up for dead.",
                                     metavar="PERIOD")] = "1 day",
    dry_run: DryRun = False, on_event: OnEvent = None, key_file: KeyFile = None, as_json: Json = False,
) -> None:
    """Remove what no kept restore point needs."""
    with errors_told(as_json), _opened(repo, key_file, on_event) as repository:
        from .expiring import Keep

        tell(repository.expire(Keep(last=keep_last, daily=keep_daily, weekly=keep_weekly, monthly=keep_monthly,
                                    yearly=keep_yearly, points=keep_points, abandoned=abandoned), dry_run=dry_run),
             as_json)


@repo_app.command("verify")
def verify(repo: Url,
           sample: Annotated[str, Option(help="Share of the blocks that are read: 5%, or all.")] = "all",
           salvage: Salvage = False, on_event: OnEvent = None, key_file: KeyFile = None, as_json: Json = False) -> None:
    """Read what images and log need, and compare it with its digests. Needs no engine."""
    with errors_told(as_json), _opened(repo, key_file, on_event, salvage=salvage) as repository:
        with progress_told(as_json) as progress:
            report = repository.verify(sample=_share(sample), progress=progress)
        tell(report, as_json)
        if report.damaged:
            raise SystemExit(DAMAGED)


def _share(text: str) -> float:
    if text == "all":
        return 1.0
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise errors.InvalidInput(f"--sample {text!r} is not a share", hint="write 5%, or all") from None


@repo_app.command("copy")
def copy(repo: Url, to: Annotated[str, Argument(help="Nothing yet, or an earlier copy.", metavar="TO")],
         remove: Annotated[bool, Option("--remove", help="Remove from the copy what the repository has dropped."
                                        )] = False,
         dry_run: DryRun = False, on_event: OnEvent = None, as_json: Json = False) -> None:
    """Copy a repository, or bring its copy up to date. Needs no key."""
    with errors_told(as_json):
        from . import hooks
        from .copying import copy as copy_repository

        with progress_told(as_json) as progress:
            report = hooks.told(_programs(on_event, repo), "copy",
                                lambda: copy_repository(repo, to, remove=remove, dry_run=dry_run, progress=progress))
        tell(report, as_json)


@repo_app.command("promote")
def promote(repo: Url, as_json: Json = False) -> None:
    """Make a copy a repository of its own, because the one that it was a copy of is lost."""
    with errors_told(as_json):
        from .copying import promote as promote_copy

        promote_copy(repo)
        say_done(json.dumps({"promoted": repo}) if as_json else f"{repo} is a repository of its own now")


@repo_app.command("rotate")
def rotate(repo: Url,
           new_key_file: Annotated[Path, file_option("File with the new key.")], key_file: KeyFile = None,
           as_json: Json = False) -> None:
    """Open an encrypted repository with another key from now on. Nothing is written again."""
    with errors_told(as_json), _opened(repo, key_file) as repository:
        from .keys import Key

        repository.rotate(Key.from_file(new_key_file))
        say_done(json.dumps({"rotated": repository.url}) if as_json else
                 f"{repository.url} is opened with the new key now; keep the old one while old copies of keys/ exist")

