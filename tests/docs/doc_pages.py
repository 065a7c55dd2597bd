"""Writes what the documents say of the contract suites and what can be made from these: `python
tests/docs/doc_pages.py`.

That is docs/checks.md, every check with what it proves; docs/commands.md and docs/commands-repository.md, every option
of each command; and in each guide what the mistake that it shows leads to, as text, and how that is shown again.
`tests/docs/test_docs.py` holds them in step.

In a guide, a Python block whose first line is `# name.py` belongs to that file, together with the others of that name;
the rest are a script of their own, `page.py`. The block of kind `diff` is the mistake.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from holdfast.backup.cli import app
from holdfast.backup.command_line import Command, Commands, Parameter
from holdfast.backup.testing import BackupContract
from holdfast.backup.testing.kit import KitContract
from holdfast.engine.testing import PROFILES, Contract, EngineContract, PluginContract
from holdfast.replay.testing import ClusterContract, ReplayContract

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHECKS = DOCS / "checks.md"
COMMANDS, REPOSITORY_COMMANDS = DOCS / "commands.md", DOCS / "commands-repository.md"
GUIDES = {DOCS / "writing-an-engine.md": "test_a_snapshot_stays_as_it_is",
          DOCS / "writing-a-plugin.md": "test_closing_lets_go_of_everything"}
"""The guides, and the check by which each shows its mistake."""
HEAD = """# Every check, and what it proves

Written by `tests/docs/doc_pages.py` from the checks themselves.

A check is a method of a contract, tried on whatever Hypothesis draws. Where an engine or a plugin does not declare what
a check is about, the check is skipped and says so. [writing-an-engine.md](writing-an-engine.md) and
[writing-a-plugin.md](writing-a-plugin.md) say how to run them.
"""
COMMANDS_HEAD = """# Every command, and its options

Written by `tests/docs/doc_pages.py` from the program itself. [backup.md](backup.md) says what it is for, and what the
exit codes mean; [json.md](json.md) what is printed with `--json`. `holdfast --version` says which version this is, and
`-h` after any command what stands here. The commands of repositories, `holdfast repo …`, have a page of their own:
[commands-repository.md](commands-repository.md).
"""
REPOSITORY_COMMANDS_HEAD = """# Every command of a repository, and its options

Written by `tests/docs/doc_pages.py` from the program itself. [repository.md](repository.md) is the guide; the other
commands are in [commands.md](commands.md), exit codes in [backup.md](backup.md), and what is printed with `--json` in
[json.md](json.md).
"""
CONTRACTS: list[tuple[type[Contract], str, str]] = [
    (EngineContract, "holdfast.engine.testing", "An engine: alone, under a store, on a simulated disk, and killed."),
    (ReplayContract, "holdfast.replay.testing", "An engine whose state is copied, and rolled forward."),
    (ClusterContract, "holdfast.replay.testing", "An engine in the members of a cluster."),
    (BackupContract, "holdfast.backup.testing", "An engine that is backed up and restored."),
    (PluginContract, "holdfast.engine.testing", "A plugin, in stores of any engine."),
    (KitContract, "holdfast.backup.testing.kit", "The kit itself, on any engine. Authors do not run it."),
]


def checks_page() -> str:
    rows = [f"| `{p.name}` | {p.times} | {p.steps} | {p.crash_states} | {p.kills} | {p.power_cuts} | "
            f"{p.mutations} | {p.transactions} | {p.changes} | {p.stride} |" for p in PROFILES.values()]
    parts = [HEAD, "\n".join(["| profile | times as many examples | steps of a history | crash states at a point | "
                              "processes killed | power cuts | mutations of a store | small transactions | "
                              "changes of one | of places, one in |",
                              "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", *rows, ""])]
    for contract, module, about in CONTRACTS:
        said = {check: contract.statement(check).replace("|", "\\|") for check in contract.checks()}
        rows = [f"| `{check}` | {statement} |" for check, statement in said.items()]
        name = contract.__name__
        parts.append("\n".join([f"## {name}", "", f"{about} `from {module} import {name}`: {len(rows)} checks.", "",
                                "| check | what it proves |", "| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def commands_page() -> str:
    return "\n".join([COMMANDS_HEAD, *_commands("holdfast", app, leaving_out="repo")])


def repository_commands_page() -> str:
    [repo] = [command for name, command in app.inner("holdfast") if name == "repo"]
    return "\n".join([REPOSITORY_COMMANDS_HEAD, *_commands("holdfast repo", repo)])


def _commands(name: str, command: Command | Commands, leaving_out: str = "") -> Iterator[str]:
    if isinstance(command, Commands):
        for word, one in command.inner(name):
            if word != leaving_out:
                yield from _commands(f"{name} {word}", one)
        return
    said = inspect.getdoc(command.function) or ""
    yield "\n".join([f"## {' '.join([name, *(p.metavar for p in command.arguments)])}", "", said, "",
                     "| argument, option | what |", "| --- | --- |",
                     *(f"| `{p.metavar}` | {p.declared.help} |" for p in command.arguments),
                     *(_option(p) for p in command.options), ""])


def _option(option: Parameter) -> str:
    value = f" {option.declared.metavar}" if option.declared.metavar else ""
    names = [f"`{option.names[0]}{value}`", *(f"`{other}`" for other in option.names[1:])]
    said = option.declared.help.replace("|", "\\|")
    if shown := option.shown_default:
        said += f" Default: {f'`{shown}`' if option.flag else shown}."
    return f"| {', '.join(names)} | {said} |"


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def write_out(page: Path, folder: Path) -> list[str]:
    """Put a page's Python files into a folder; their names."""
    files: dict[str, str] = {}
    for code in blocks(page, "python"):
        named = re.match(r"# (\w+\.py)\n", code)
        name = named[1] if named else "page.py"
        files[name] = files.get(name, "") + code
    for name, code in files.items():
        (folder / name).write_text(code)
    return list(files)


def run_pytest(folder: Path, test: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", test, *options]
    return subprocess.run(command, cwd=folder, env={**kept, "TMPDIR": str(folder), **environment}, capture_output=True,
                          text=True, timeout=600)


def make_mistake(guide: Path, folder: Path) -> str:
    """Put a guide's files into a folder, with the mistake in them; the name of the test file."""
    [test] = [name for name in write_out(guide, folder) if name.startswith("test_")]
    [mistake] = blocks(guide, "diff")
    wrong = folder / test.removeprefix("test_")
    removed, added = ("".join(f"{line[1:]}\n" for line in mistake.split("\n") if line.startswith(sign))
                      for sign in "-+")
    code = wrong.read_text()
    if code.count(removed) != 1:
        raise ValueError(f"{guide.name}: what the mistake removes is not there, or not once")
    wrong.write_text(code.replace(removed, added))
    return test


def what_fails(folder: Path, test: str, check: str, *, seed: int | None = None, **environment: str) -> str:
    """What a check of a test file says when it fails; nothing where it does not."""
    options = [] if seed is None else [f"--hypothesis-seed={seed}"]
    done = run_pytest(folder, test, "-k", check, *options, **environment)
    lines = [re.sub(r"^E ? ? ?", "", line) for line in done.stdout.split("\n") if line.startswith("E ")]
    return "".join(f"{line}\n" for line in lines)


def again(guide: Path, shown: str) -> str:
    """How what a guide shows is shown again."""
    line = re.search(r"to see it again: (.*)", shown)
    return f"$ {line[1]}\n" if line else ""


def _main() -> None:
    CHECKS.write_text(checks_page())
    COMMANDS.write_text(commands_page())
    REPOSITORY_COMMANDS.write_text(repository_commands_page())
    for guide, check in GUIDES.items():
        with tempfile.TemporaryDirectory() as name:
            shown = what_fails(Path(name), make_mistake(guide, Path(name)), check, seed=1)
        text = guide.read_text()
        for kind, block in (("text", shown), ("console", again(guide, shown))):
            text = re.sub(rf"^```{kind}\n.*?^```", lambda _, b=block, k=kind: f"```{k}\n{b}```",  # type: ignore[misc]
                          text, flags=re.MULTILINE | re.DOTALL)
        guide.write_text(text)


if __name__ == "__main__":
    _main()
