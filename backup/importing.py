"""`import_files`: make a graph store from CSV and Parquet files.

The store is made in `gen-000001.partial/import`, within the directory where it is to be, and closed. Then its state and
log move up, and `CURRENT` makes the directory a store. Until then there is none: an import that fails leaves what was
there, and one that died is removed by the next.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.builtin.graph import GraphEngine
from ..engine.env import REAL, Env
from ..engine.env.system import system_errors
from ..engine.errors import DirectoryMoved, InvalidInput, StoreExists
from ..engine.interop.files import table_of
from ..engine.interop.tables import LoadedTables, Problems, load, parts_of, with_ends, without_doubles
from ..engine.store.layout import Generation, Layout
from ..engine.store.store import Store
from ..replay.files import Progress, silent
from .directories import held, locked, make_root, partials, refuse_inside
from .report import Told

_PLACE = "import"
_HINT = "mend these rows, or leave them out with skip_bad=True"
Given = tuple[Sequence[str], str | os.PathLike[str]]
"""Labels or a type, and a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport(Told):
    """What an import did.

    Attributes:
        directory, store_id: of the new store.
        nodes, edges: how many it has.
        skipped: how many rows were left out because they are wrong.
        problems: the first of them, in words.
        seconds: how long it took.
    """

    directory: str
    store_id: str
    nodes: int
    edges: int
    skipped: int
    problems: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        lines = [f"{self.directory}: {self.nodes:,} nodes and {self.edges:,} edges in {self.seconds:.1f} s"]
        if self.skipped:
            lines += [f"{self.skipped:,} rows are wrong and were left out:", *(f"  {text}" for text in self.problems)]
            if self.skipped > len(self.problems):
                lines.append(f"  and {self.skipped - len(self.problems):,} more")
        return "\n".join(lines)


def import_files(dest: str | os.PathLike[str], *, nodes: Iterable[Given], edges: Iterable[Given] = (),
                 skip_bad: bool = False, delimiter: str | None = None, options: Mapping[str, Any] | None = None,
                 progress: Progress | None = None, env: Env = REAL) -> ImportReport:
    """Make a graph store from files of nodes and edges. O(files), in memory too.

    Args:
        dest: the directory for the store, new or empty.
        nodes: files of nodes, each with the labels that all its nodes have.
        edges: files of edges, each with the type of its edges, or nothing if they have a column for it.
        skip_bad: leave out rows that are wrong, and report them. Otherwise they end the import.
        delimiter: between cells of CSV. If None, a comma, or a tab in a file called `.tsv`.
        options: the engine's own.
        progress: called in this thread with (stage, done, total): "read" in bytes, "load" in rows.
        env: files, clock, randomness and threads.

    Raises:
        BadRows: rows are wrong.
        InvalidInput: a file cannot be read, or a column is missing, or its name or type is not one.
        StoreExists, StoreLocked, TargetInvalid: the destination is taken.
        Unsupported: PyArrow is not installed.
        DiskFull, LimitReached, AccessDenied, DeviceFailed, DirectoryMoved, SettingError.
    """
    started, files = env.clock.monotonic(), env.files
    if delimiter is not None and len(delimiter.encode()) != 1:
        raise InvalidInput(f"{delimiter!r} is not a delimiter", hint="give one character of ASCII")
    final = files.resolve(dest)
    with system_errors(f"cannot import into {final}"):
        refuse_inside(final, files)
        there = Layout(final, files)
        new = not files.exists(final)
        if not new and not _is_free(there):
            raise StoreExists(f"{final} is not empty")
        problems = Problems()
        parts = _read([*nodes], [*edges], skip_bad, delimiter, problems, progress or silent)
        make_root(there)
        with held(there, env) as (there, env), locked(there, "import", new=True):
            if not _is_free(there):
                raise StoreExists(f"{there.root} is not empty any more: another process was faster")
            there.clear()
            try:
                store_id, loaded = _made(there, parts, options, progress or silent, env)
            except BaseException:
                with contextlib.suppress(OSError, DirectoryMoved):
                    there.clear()
                    if new:
                        files.remove_tree(there.root)
                raise
    return ImportReport(directory=str(dest), store_id=store_id.hex(), nodes=loaded.nodes, edges=loaded.edges,
                        skipped=problems.rows, problems=tuple(problems.told),
                        seconds=env.clock.monotonic() - started)


def _is_free(there: Layout) -> bool:
    """Whether the directory is empty, or holds only what an import that died has left: also where it died after its
    state and log had moved up, and before `CURRENT` was written."""
    left = partials(there)
    if not left:
        return there.is_empty()
    return not there.is_store() and not there.foreign() and all(
        {*there.files.list(place.path)} <= {_PLACE} for place in left)


def _read(nodes: list[Given], edges: list[Given], skip_bad: bool, delimiter: str | None, problems: Problems,
          progress: Progress) -> tuple[list[Any], list[Any]]:
    """All files, checked, as parts to load. Raises `BadRows`, `InvalidInput`."""
    paths = [Path(path) for _, path in (*nodes, *edges)]
    sizes = [_size(path) for path in paths]
    total = sum(sizes)

    def tables(given: list[Given], first: int) -> Any:
        for number, (fixed, path) in enumerate(given, first):
            def passed(done: int, number: int = number) -> None:
                progress("read", sum(sizes[:number]) + min(done, sizes[number]), total)

            yield table_of(Path(path), tuple(fixed), delimiter, problems, passed)

    read = [part for table in tables(nodes, 0) for part in parts_of(table, problems, of_edges=False)]
    read = without_doubles(read, problems)
    if not skip_bad:
        problems.refuse(_HINT)
    links = with_ends((part for table in tables(edges, len(nodes))
                       for part in parts_of(table, problems, of_edges=True)), read, problems)
    if not skip_bad:
        problems.refuse(_HINT)
    return read, links


def _size(path: Path) -> int:
    try:
        return REAL.files.size(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", hint="check its name") from error


def _made(there: Layout, parts: tuple[list[Any], list[Any]], options: Mapping[str, Any] | None, progress: Progress,
          env: Env) -> tuple[bytes, LoadedTables]:
    """The store in `there`, which is locked and empty. Returns its id."""
    files = there.files
    partial = Generation(there.generation(1).path.with_name(f"{there.generation(1).name}.partial"))
    place = Layout(partial.path / _PLACE, files)
    files.make_directory(place.root)
    with Store.open(place.root, GraphEngine, options=options, env=env) as store:
        loaded = load(store, *parts, progress)
    identity = place.read_identity()
    files.rename(place.current().path, there.generation(1).path)
    there.write_identity(identity)
    files.sync_directory(there.root)
    there.switch(there.generation(1))
    files.remove_tree(partial.path)
    return identity.store_id, loaded
