"""Plugins of a repository: they are told what was done, and may veto an expiry.

=========================  ==============================  ==================================================
moment                     may                             if it raises
=========================  ==============================  ==================================================
expiring(plan)             veto: return the reason         nothing is removed: the expiry raises `ExpiryVetoed`
done(verb, report)         observe                         logged
failed(verb, error)        observe                         logged
=========================  ==============================  ==================================================

Each is called in the thread of the verb, which waits. The verbs are `backup`, `synthesize`, `restore`,
`restore_raw`, `verify`, `rehearse`, `expire`, and on the command line `copy`, and `open` if that failed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess  # noqa: TID251  the operator's program
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ...engine.errors import HoldfastError
from ..report import Told
from .errors import ExpiryVetoed
from .reports import Expired

logger = logging.getLogger("holdfast.repository")

PATIENCE_S = 60.0
"""How long a program may take."""

P = ParamSpec("P")
R = TypeVar("R", bound=Told)


class RepositoryPlugin:
    """See the module's text. A subclass overrides what it needs; `Repository.plugins` has the plugins."""

    def expiring(self, plan: Expired) -> str | None:
        """This is about to be removed, and `plan.kept` stays. To veto that, return the reason. Also called by a dry
        run, and again if the plan changes while others write."""

    def done(self, verb: str, report: Told) -> None:
        """It has succeeded."""

    def failed(self, verb: str, error: HoldfastError) -> None:
        """It has failed."""


class HasPlugins(Protocol):
    plugins: list[RepositoryPlugin]


class Program(RepositoryPlugin):
    """Runs a program of the operator at each moment, as `PROGRAM MOMENT`, with one JSON object on its standard input:
    `repository`, `verb`, and `plan`, `report` or `error`, `message` and `hint`. It vetoes an expiry by any other exit
    code than 0; the reason is what it printed. If it cannot be run, or takes longer than `PATIENCE_S`, that is a veto,
    too."""

    def __init__(self, program: str, repository: str) -> None:
        """`program`: a path, or a name on PATH; it is run without a shell. `repository`: the URL."""
        self._program, self._repository = program, repository

    def expiring(self, plan: Expired) -> str | None:
        code, said = self._run("expiring", "expire", plan=plan.to_dict())
        return None if code == 0 else said or f"{self._program} ended with {code}"

    def done(self, verb: str, report: Told) -> None:
        self._told("done", verb, report=report.to_dict())

    def failed(self, verb: str, error: HoldfastError) -> None:
        self._told("failed", verb, error=type(error).__name__, message=error.message, hint=error.hint)

    def _told(self, moment: str, verb: str, **what: Any) -> None:
        code, said = self._run(moment, verb, **what)
        if code:
            logger.warning("%s %s ended with %d: %s", self._program, moment, code, said)

    def _run(self, moment: str, verb: str, **what: Any) -> tuple[int, str]:
        """Exit code, and the end of what it printed. Raises `OSError`, `subprocess.SubprocessError`."""
        told = json.dumps({"repository": self._repository, "verb": verb, **what}).encode()
        done = subprocess.run([self._program, moment], input=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=dict(os.environ), timeout=PATIENCE_S, check=False)
        return done.returncode, done.stdout.decode(errors="replace").strip()[-2000:]


def ask(plugins: Iterable[RepositoryPlugin], plan: Expired) -> None:
    """Raise `ExpiryVetoed` if one of them wants to keep what would be removed. One that fails does, too: it may have
    wanted to."""
    for plugin in plugins:
        name = type(plugin).__name__
        try:
            reason = plugin.expiring(plan)
        except Exception as error:
            logger.warning("%s failed, so nothing is removed", name, exc_info=True)
            raise ExpiryVetoed(f"{name} failed when it was asked whether {plan.repository} may be expired: {error}"
                               ) from error
        if reason is not None:
            raise ExpiryVetoed(f"{name} does not want {plan.repository} to be expired: {reason}")


def told(plugins: Iterable[RepositoryPlugin], verb: str, work: Callable[[], R]) -> R:
    """What `work` returns, of which the plugins are told, as of its failure."""
    try:
        report = work()
    except HoldfastError as error:
        tell_failed(plugins, verb, error)
        raise
    for plugin in plugins:
        _quietly(plugin, functools.partial(plugin.done, verb, report))
    return report


def tell_failed(plugins: Iterable[RepositoryPlugin], verb: str, error: HoldfastError) -> None:
    """Tell the plugins of a failure."""
    for plugin in plugins:
        _quietly(plugin, functools.partial(plugin.failed, verb, error))


def _quietly(plugin: RepositoryPlugin, tell: Callable[[], None]) -> None:
    try:
        tell()
    except Exception:
        logger.warning("%s failed", type(plugin).__name__, exc_info=True)


S = TypeVar("S", bound=HasPlugins)


def tells(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a verb's method tell the plugins how it ended."""
    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **how: P.kwargs) -> R:
        return told(self.plugins, method.__name__, lambda: method(self, *args, **how))

    return call
