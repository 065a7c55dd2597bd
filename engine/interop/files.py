"""CSV and Parquet files of nodes and edges, as tables in batches. PyArrow reads them.

In a CSV file, an empty cell is a value that is not there, and `""` an empty text. A byte order mark at the beginning is
passed over, and so are empty lines. Rows are counted as in a spreadsheet: the header is row 1. In Parquet, row 1 is the
first row of data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInput
from .libraries import library
from .tables import Problems, Table

_BLOCK_BYTES = 16 << 20
"""A row of CSV fits in it: the properties of one node or edge have 8 MiB at most."""
_PARQUET = (".parquet", ".pq")
_HEADER_BYTES = 64 << 10
_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_ROWS = 1 << 16
Passed = Callable[[int], None]


def table_of(path: Path, fixed: tuple[str, ...], delimiter: str | None, problems: Problems, passed: Passed) -> Table:
    """A file as a table.

    Args:
        path: one that ends in `.parquet` or `.pq` is Parquet, any other is CSV. CSV may be compressed, if its name ends
            in `.gz`, `.bz2` or `.zst`.
        fixed: the labels of all its nodes, or the type of its edges.
        delimiter: between cells of CSV; None for a comma, or a tab if the file's name has `.tsv`.
        problems: takes rows that have too many or too few cells.
        passed: called with the number of bytes of the file read so far.

    Raises:
        InvalidInput: the file cannot be read, or is not of this form. Also while its batches are read.
    """
    if path.suffix.lower() in _PARQUET:
        return _parquet(path, fixed, passed)
    return _csv(path, fixed, delimiter or ("\t" if ".tsv" in path.suffixes else ","), problems, passed)


def _refused(path: Path, error: Exception, kind: str) -> InvalidInput:
    if isinstance(error, OSError) and error.errno is not None:
        return InvalidInput(f"{path} cannot be read: {error.strerror or error}", hint="check its name")
    return InvalidInput(f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}",
                        hint="check that it is whole, and of that form")


def _parquet(path: Path, fixed: tuple[str, ...], passed: Passed) -> Table:
    pa, parquet = library("pyarrow"), library("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _refused(path, error, "Parquet") from error
    size = path.stat().st_size

    def batches() -> Iterator[tuple[Any, Any]]:
        begin, total = 1, max(file.metadata.num_rows, 1)
        try:
            with file:
                for batch in file.iter_batches(_ROWS):
                    yield batch, np.arange(begin, begin + batch.num_rows)
                    begin += batch.num_rows
                    passed(size * (begin - 1) // total)
        except (pa.ArrowException, OSError) as error:
            raise _refused(path, error, "Parquet") from error

    return Table(str(path), file.schema_arrow.names, batches(), fixed)


def _csv(path: Path, fixed: tuple[str, ...], delimiter: str, problems: Problems, passed: Passed) -> Table:
    pa, csv = library("pyarrow"), library("pyarrow.csv")
    left_out: list[int] = []  # rows that Arrow left out, ascending
    source = str(path)
    reading = False

    def not_a_row(row: Any) -> str:
        if reading:
            left_out.append(row.number)
            problems.add(source, row.number, f"it has {row.actual_columns} cells, and the header "
                                             f"{row.expected_columns}")
        return "skip"

    def opened(stream: Any, names: list[str], block: int) -> Any:
        return csv.open_csv(
            stream, csv.ReadOptions(use_threads=False, block_size=block),
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False,
                             invalid_row_handler=not_a_row),
            csv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(names, pa.large_binary()),
                               null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False))

    def header(block: int) -> list[str]:
        with pa.OSFile(source) as raw, opened(_unpacked(pa, raw, path), [], block) as reader:
            names: list[str] = reader.schema.names
            return names

    try:
        try:
            names = header(min(_HEADER_BYTES, _BLOCK_BYTES))
        except pa.ArrowInvalid:  # the first rows are larger, or something is wrong with them
            names = header(_BLOCK_BYTES)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _refused(path, error, "CSV") from error

    def batches() -> Iterator[tuple[Any, Any]]:
        nonlocal reading
        reading, begin = True, 2
        try:
            with pa.OSFile(source) as raw, opened(_unpacked(pa, raw, path), names, _BLOCK_BYTES) as reader:
                for batch in reader:
                    gaps = [row for row in left_out if row >= begin]
                    rows = np.arange(begin, begin + batch.num_rows + len(gaps))
                    rows = rows[~np.isin(rows, gaps)][: batch.num_rows]
                    if len(rows):
                        begin = int(rows[-1]) + 1
                    yield batch, rows
                    passed(raw.tell())
        except (pa.ArrowException, OSError) as error:
            raise _refused(path, error, "CSV") from error

    return Table(source, names, batches(), fixed, text=True)


def _unpacked(pa: Any, raw: Any, path: Path) -> Any:
    name = _COMPRESSED.get(path.suffix.lower())
    return raw if name is None else pa.CompressedInputStream(raw, name)
