"""Checks across processes and across time: what one process wrote, others read, today and after years."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from ...errors import SettingError, UpgradeRequired
from ...store.store import Store
from ..support.attended import doing
from ..support.children import NotFoundElsewhere, Server
from ..support.contract import Contract, check, scratch
from ..support.crash_images import tree
from ..support.forks import Say
from ..support.kept import Kept, as_text, kept_in
from ..support.modelled import SETTINGS, Modelled
from ..support.not_tried import not_tried
from ..support.worker import State, compare
from ..support.workload import Workload

PYTHONS_VARIABLE = "HOLDFAST_PYTHONS"
"""In the environment: further interpreters, with commas between them, that have the kit and the engine installed."""
_TRANSACTIONS = 16
_FIRST_VISIT = 10**6


class AcrossChecks(Contract):
    """See the module's text."""

    elsewhere: ClassVar[tuple[Mapping[str, str], ...]] = (
        {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONHASHSEED": "2", "TZ": "America/St_Johns"})
    """The environments of other processes: what `hash()` is salted with, time zones, and the plainest encoding."""

    @check()
    def test_other_processes_read_and_write_the_same(self, work: Workload) -> None:
        """A store that one process wrote, closed or killed, shows the same content in others, and has the same digest
        there, although `hash()` gives other numbers, and time zone, locale and encoding are others. Each of them goes
        on from there, and what it wrote shows the same in the next one, and here. Other versions of Python take part if
        `HOLDFAST_PYTHONS` names them."""
        with ExitStack() as stack:
            others = {name: stack.enter_context(server) for name, server in _started(self).items()}
            root = stack.enter_context(scratch())
            kept = stack.enter_context(Modelled(work, root))
            for number in range(_TRANSACTIONS):
                kept.transact([*work.examples[number % len(work.examples)], *work.numbered(number)])
                if number == _TRANSACTIONS // 2:
                    kept.store.checkpoint()
            with kept.store.snapshot() as view:
                kept.compare(view)
            killed = kept.crash_image()
            kept.store.close()
            for path in (kept.path, killed):
                _go_round(work, path, kept, others)
            kept.open()

    @check()
    def test_what_earlier_versions_wrote_opens(self, work: Workload) -> None:
        """A store that an earlier version of the engine wrote (`kept=` of the workload) opens with the content that it
        had, and is checkpointed and opened again with it, or is refused with `UpgradeRequired`. It is refused only if
        its formats are older."""
        if work.kept is None:
            why = (f"the workload has no kept=: `python -m holdfast.engine.testing keep {_named(self)} DIRECTORY` "
                   "makes one of today's version, for later ones")
            not_tried("stores that earlier versions wrote", why)
            raise SkipTest(why)
        kept = kept_in(work.kept)
        if not kept:
            raise SettingError(f"kept= is {work.kept}, and there is nothing",
                               hint=f"python -m holdfast.engine.testing keep {_named(self)} {work.kept}")
        for place, one in kept.items():
            with scratch() as root, _of(place):
                one.unpack(place, root / "store")
                _opens(work, one, root / "store")
        now = work.engine.state_format, work.engine.payload_version
        if now not in {(one.state_format, one.payload_version) for one in kept.values()}:
            not_tried("a store of today's formats, for later versions",
                      f"kept= has none: `python -m holdfast.engine.testing keep {_named(self)} {work.kept}`")


def _named(contract: Contract) -> str:
    if type(contract).__module__.startswith("holdfast."):  # made by check_engine, so it has no name of its own
        return "MODULE:WORKLOAD"
    return f"{type(contract).__module__}:{type(contract).__qualname__}"


# --- other processes -------------------------------------------------------------------------------------------------


def _started(contract: AcrossChecks) -> dict[str, Server]:
    """The processes, which start beside one another, by what each is called in messages."""
    pythons = [python for python in os.environ.get(PYTHONS_VARIABLE, "").split(",") if python]
    if not pythons:
        not_tried("other versions of Python",
                  f"{PYTHONS_VARIABLE} names none, as in {PYTHONS_VARIABLE}=/usr/bin/python3")
    named = {_version(python): python for python in pythons}
    try:
        return {"a process with " + " ".join(f"{name}={value}" for name, value in environment.items()):
                Server(contract, environment=environment) for environment in contract.elsewhere} | {
            name: Server(contract, python=python) for name, python in named.items()}
    except NotFoundElsewhere as error:
        not_tried("other processes", str(error))
        raise SkipTest(str(error)) from error


def _version(python: str) -> str:
    try:
        said = subprocess.run([python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"], check=True,
                              capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingError(f"{PYTHONS_VARIABLE} names {python!r}, which cannot be run: {error}",
                           hint="give paths of interpreters, with commas between them") from error
    return f"Python {said} at {python}"


def _go_round(work: Workload, path: Path, kept: Modelled, others: Mapping[str, Server]) -> None:
    """Let a store be visited by each process in turn, and be opened here in the end."""
    model, txid = kept.models[-1], kept.last
    digest, by = kept.digests[txid], "this process"
    for visit, (name, server) in enumerate(others.items()):
        doing("wait for", name)
        state = State(0, txid, pickle.dumps(model))
        child = server.start(visited, path, state, _FIRST_VISIT + visit)
        for kind, *said in child.messages():
            assert kind != "broken", f"in {name}, which opened what {by} wrote: {said[0]}"
            if kind == "found":
                _same(digest, said[0], txid, by, name)
            digest, model, txid = said[0], pickle.loads(said[1]), said[2]
        by = name
        code = child.discard()
        assert code == 0, f"in {name}: {child.how(code)}"
    with kept.opened(path) as store, store.snapshot() as view:
        models = [*kept.models[:-1], *[model] * (txid - kept.last + 1)]
        assert view.txid == txid, f"the store that {by} closed at transaction {txid} shows {view.txid} here"
        kept.compare(view, models)
        _same(digest, view.digest(), txid, by, "this process")


def _same(first: bytes, second: bytes, txid: int, here: str, there: str) -> None:
    assert first == second, (
        f"the digest at transaction {txid} is {first.hex()} in {here}, and {second.hex()} in {there}, although both "
        "show the same content: a digest must not come from hash(), the order of a set, an address, or the environment")


def visited(work: Workload, say: Say, path: Path, state: State, number: int) -> None:
    """In another process: compare a store with what it must show, say its digest, go on, and say what that led to."""
    with Store.open(path, work.engine, options=work.opened_with, settings=SETTINGS) as store:
        compare(work, store, [state])
        say("found", _digest(store), state.model, state.txid)
        model = pickle.loads(state.model)
        with store.transaction() as tx:
            work.run(tx, model, work.numbered(number))
        after = State(number, state.txid + 1, pickle.dumps(model))
        compare(work, store, [after])
        say("written", _digest(store), after.model, after.txid)


def _digest(store: Store[Any, Any]) -> bytes:
    with store.snapshot() as view:
        digest: bytes = view.digest()
    return digest


# --- earlier versions ------------------------------------------------------------------------------------------------


@contextmanager
def _of(place: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"this is the kept store {place}")
        raise


def _opens(work: Workload, one: Kept, path: Path) -> None:
    doing("open a kept store")
    before = tree(path)
    try:
        store = Store.open(path, work.engine, options=work.opened_with, settings=SETTINGS)
    except UpgradeRequired as error:
        refused: UpgradeRequired | None = error
    except Exception as error:
        raise AssertionError(
            f"a store of state_format {one.state_format} and payload_version {one.payload_version} does not open any "
            f"more, nor is it refused with UpgradeRequired: {error!r}") from error
    else:
        refused = None
    if refused is not None:
        mine, theirs = ((of.state_format, of.payload_version) for of in (work.engine, one))
        assert theirs < mine, ("it is refused with UpgradeRequired, and its formats are the engine's own: state_format "
                               f"{mine[0]}, payload_version {mine[1]}")
        assert tree(path) == before, "it is refused with UpgradeRequired, and its files were changed"
        return
    with store:
        _shows(work, one, store, "it opens")
        store.checkpoint()
    with Store.open(path, work.engine, options=work.opened_with, settings=SETTINGS) as store:
        _shows(work, one, store, "it opens once more after a checkpoint")


def _shows(work: Workload, one: Kept, store: Store[Any, Any], when: str) -> None:
    """A kept store, with what it must show."""
    with store.snapshot() as view:
        content, found, digest = work.content(view), list(view.check()), view.digest().hex()
    missing = [number for number in one.numbers if not work.shows(content, number)]
    assert not missing, f"{when}, and what numbered({missing[0]}) had added is not there, or is something else"
    assert not found, f"{when}, and the engine's own check finds {found[:3]}"
    text = as_text(content)
    lost, new = [part for part in one.content if part not in text], [part for part in text if part not in one.content]
    assert not one.content or not (lost or new), (
        f"{when}, and shows something else than when it was kept: not {lost[:2]}, but {new[:2]} (if only the form of "
        "what content() gives has changed, empty \"content\" in its kept.json)")
    if (one.state_format, one.payload_version) == (work.engine.state_format, work.engine.payload_version):
        assert digest == one.digest, (
            f"{when} with what it had, and its digest is {digest}, and was {one.digest}: of one format, a content has "
            "one digest")
