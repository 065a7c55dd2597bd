"""`holdfast import`: a graph store from files of nodes and edges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..engine.errors import InvalidInput
from .arguments import EngineOptions, Json, argument, options_of, tell
from .command_line import Option
from .terminal import errors_told, progress_told


def import_(
    dest: Annotated[Path, argument("Where the store is to be; new or empty.")],
    nodes: Annotated[list[str], Option(metavar="[LABEL:…=]FILE", help=(
        "A CSV or Parquet file of nodes, and labels for all of them; may be repeated."))],
    edges: Annotated[list[str] | None, Option(metavar="[TYPE=]FILE", help=(
        "A file of edges, and their type, unless it has a column :TYPE; may be repeated."))] = None,
    skip_bad: Annotated[bool, Option("--skip-bad", help=(
        "Leave out rows that are wrong, and report them."))] = False,
    delimiter: Annotated[str | None, Option(metavar="CHARACTER", help=(
        "Between the cells of CSV. Default: a comma, or a tab in files called .tsv."))] = None,
    engine_option: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Make a graph store from CSV and Parquet files."""
    with errors_told(as_json):
        from .importing import import_files

        with progress_told(as_json) as progress:
            report = import_files(dest, nodes=[_given(text, ":") for text in nodes],
                                  edges=[_given(text, "") for text in edges or ()], skip_bad=skip_bad,
                                  delimiter="\t" if delimiter == "\\t" else delimiter,
                                  options=options_of(engine_option), progress=progress)
        tell(report, as_json)


def _given(text: str, between: str) -> tuple[tuple[str, ...], Path]:
    """What precedes a file's name, and the file.

    >>> _given("Person:Poet=people.csv", ":"), _given("knows.csv", "")
    ((('Person', 'Poet'), PosixPath('people.csv')), ((), PosixPath('knows.csv')))
    """
    names, _, path = text.partition("=") if "=" in text else ("", "", text)
    if not path:
        raise InvalidInput(f"{text!r} does not name a file", hint="write FILE, or LABEL=FILE")
    split = names.split(between) if between else [names]
    return tuple(name for name in split if name), Path(path)
