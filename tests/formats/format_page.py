"""A reader of `docs/formats.md` that takes bytes apart by the page's tables, and knows nothing else of any format.

`Page` holds the tables by their headings. `take` reads a layout, checking constants, lengths, zeros and checksums as
the rows say; `value` checks what msgpack or JSON gave against a map, array or object. Whatever does not fit the page
raises `Misfit`. The types are those of the page's chapter "How to read the tables".
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128_digest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
_TABLE = re.compile(r"^### (?:(Layout|Map|Array|Object|Files): )?(.+)\n((?:(?!#).*\n)*)", re.MULTILINE)
_MAGIC = re.compile(r"^Magic `([^`]+)`(?:, version (\d+))?", re.MULTILINE)
_COUNTED = re.compile(r"(.+)\[(\w*)\]")
_SPAN = re.compile(r"`(\w+)`(?: to `(\w+)`)?")


class Misfit(AssertionError):
    """Bytes are not as the page says."""


class Row(NamedTuple):
    """A row of a table: its first cell, its type, its last, and the cell `in` where the table has one."""

    name: str
    type: str
    meaning: str
    kinds: str


class Integer(NamedTuple):
    """An unsigned integer type of a layout: bytes, and in which order."""

    size: int
    order: Literal["little", "big"]


@cache
def integer(kind: str) -> Integer | None:
    match = re.fullmatch(r"u(8|16|32|64)( big-endian)?", kind)
    return Integer(int(match[1]) // 8, "big" if match[2] else "little") if match else None


@cache
def sized(kind: str) -> tuple[str, str] | None:
    """`bytes(16)` as ("bytes", "16"), and so on."""
    match = re.fullmatch(r"(bytes|zeros|name)\((\w+)\)", kind)
    return (match[1], match[2]) if match else None


@cache
def counted(kind: str) -> tuple[str, str] | None:
    """`u32[170]` as ("u32", "170"), `record[]` as ("record", "")."""
    match = _COUNTED.fullmatch(kind)
    return (match[1], match[2]) if match else None


CHECKSUMS = {"xxh3-64": 8, "xxh3-64/32": 4, "xxh3-128": 16}


def need(fits: object, what: object) -> None:
    if not fits:
        raise Misfit(str(what))


def _text(cell: str) -> str:
    return cell.strip().strip("`").replace("\\0", "\0")


class Page:
    """The page's tables.

    Attributes:
        layouts, maps, arrays, objects: rows by the name in the heading.
        magics: magic to the name of the map that it is of.
        versions: of those maps.
        used: the tables that were used.
    """

    def __init__(self, text: str) -> None:
        self.layouts: dict[str, list[Row]] = {}
        self.maps: dict[str, list[Row]] = {}
        self.arrays: dict[str, list[Row]] = {}
        self.objects: dict[str, list[Row]] = {}
        self._tables: dict[str, list[list[str]]] = {}
        self.magics: dict[bytes, str] = {}
        self.versions: dict[str, int] = {}
        self.used: set[str] = set()
        typed = {"Layout": self.layouts, "Map": self.maps, "Array": self.arrays, "Object": self.objects}
        for kind, name, body in _TABLE.findall(text):
            rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in body.splitlines()
                    if line.startswith("|")]
            if not rows:
                continue
            head, rows = rows[0], rows[2:]
            if kind in typed:
                at = head.index("in") if "in" in head else -1
                need(name not in typed[kind], f"{kind} {name} stands there twice")
                typed[kind][name] = [Row(r[0], r[1], r[-1], r[at] if at > 0 else "all") for r in rows]
            else:
                self._tables[f"{kind}: {name}" if kind else name] = rows
            if kind == "Map" and (magic := _MAGIC.search(body)):
                self.magics[_text(magic[1]).encode()] = name
                self.versions[name] = int(magic[2] or 1)

    def table(self, name: str) -> list[list[str]]:
        """The cells of a table that is none of the above, by its whole heading."""
        self.used.add(name)
        return self._tables[name]

    def row(self, table: str, name: str) -> Row:
        """A row of a layout, map, array or object."""
        for tables in (self.layouts, self.maps, self.arrays, self.objects):
            for row in tables.get(table, ()):
                if row.name == name:
                    return row
        raise Misfit(f"{table} has no row {name}")

    # --- layouts ---------------------------------------------------------------------------------------------------

    def take(self, name: str, data: bytes, at: int = 0, **context: Any) -> tuple[dict[str, Any], int]:
        """A layout from `at` on, and where it ends. `context` has what is not in it: a `seed`, a count, a place.

        Raises:
            Misfit: the bytes are not as the page says.
        """
        need(name in self.layouts, f"no layout {name}")
        self.used.add(name)
        rows = self.layouts[name]
        need(bool(rows), f"{name} is empty")
        length = sized(rows[0].type)
        if length and any(length[1] == row.name for row in rows[1:]):
            return self._from_the_end(name, rows, length[1], data, at, context)
        found: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        end = self._fields(rows, data, at, found, spans, context)
        self._rules(name, rows, data, found, spans, context)
        return found, end

    def whole(self, name: str, data: bytes, **context: Any) -> dict[str, Any]:
        """A layout that is all of `data`."""
        found, end = self.take(name, data, **context)
        need(end == len(data), f"{name}: {len(data) - end} bytes are left over")
        return found

    def several(self, name: str, data: bytes) -> list[dict[str, Any]]:
        """As many of a layout as there are."""
        found = []
        at = 0
        while at < len(data):
            one, at = self.take(name, data, at)
            found.append(one)
        return found

    def _from_the_end(self, name: str, rows: list[Row], length: str, data: bytes, at: int,
                      context: dict[str, Any]) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        tail = len(data) - sum(self._size(row.type) for row in rows[1:])
        need(tail >= at, f"{name} is too short")
        self._fields(rows[1:], data, tail, found, spans, context)
        start = tail - found[length]
        need(start >= at, f"{name} is too short")
        self._fields(rows[:1], data, start, found, spans, context)
        self._rules(name, rows, data, found, spans, context)
        found["start"] = start
        return found, len(data)

    def _size(self, kind: str) -> int:
        if number := integer(kind):
            return number.size
        if kind in CHECKSUMS:
            return CHECKSUMS[kind]
        length = sized(kind)
        if length is None or not length[1].isdigit():
            raise Misfit(f"{kind} has no size")
        return int(length[1])

    def _fields(self, rows: list[Row], data: bytes, at: int, found: dict[str, Any], spans: dict[str, tuple[int, int]],
                context: dict[str, Any]) -> int:
        for row in rows:
            need(row.name not in found, f"two fields {row.name}")
            condition = row.meaning.startswith("only") and re.match(r"only where `(\w+)` is (\d+)", row.meaning)
            if condition and found[condition[1]] != int(condition[2]):
                found[row.name] = None
                continue
            found[row.name], end = self._field(row.type, data, at, {**context, **found})
            spans[row.name] = (at, end)
            at = end
        return at

    def _field(self, kind: str, data: bytes, at: int, known: dict[str, Any]) -> tuple[Any, int]:
        def cut(size: int) -> bytes:
            need(0 <= size <= len(data) - at, f"{kind} at {at}: {size} bytes are not there")
            return data[at : at + size]

        if number := integer(kind):
            return int.from_bytes(cut(number.size), number.order), at + number.size
        if kind in ("bytes", "zeros"):
            rest = data[at:]
            need(kind == "bytes" or not any(rest), f"bytes behind {at} are not zero")
            return rest, len(data)
        if length := sized(kind):
            raw = cut(self._number(length[1], known))
            need(length[0] != "zeros" or not any(raw), f"bytes at {at} are not zero")
            return raw.rstrip(b"\0").decode("ascii", "replace") if length[0] == "name" else raw, at + len(raw)
        if kind in CHECKSUMS:
            raw = cut(CHECKSUMS[kind])
            return raw, at + len(raw)
        if array := counted(kind):
            count = self._number(array[1], known) if array[1] else -1
            if count >= 0 and (number := integer(array[0])):
                raw = cut(count * number.size)
                return [int.from_bytes(raw[i : i + number.size], number.order)
                        for i in range(0, len(raw), number.size)], at + len(raw)
            items: list[Any] = []
            while len(items) < count if count >= 0 else at < len(data):
                item, at = self.take(array[0], data, at, **{k: v for k, v in known.items() if k == "seed"})
                items.append(item)
            return items, at
        if kind in self.layouts:
            return self.take(kind, data, at)
        raise Misfit(f"no type {kind!r}")

    def _number(self, text: str, known: dict[str, Any]) -> int:
        need(text.isdigit() or isinstance(known.get(text), int), f"no number {text}")
        return int(text) if text.isdigit() else int(known[text])

    def _rules(self, name: str, rows: list[Row], data: bytes, found: dict[str, Any], spans: dict[str, tuple[int, int]],
               context: dict[str, Any]) -> None:
        """What the meanings say that can be held against the bytes."""
        def bytes_of(text: str) -> bytes:
            for first, last in _SPAN.findall(text):
                for field in {first, last or first}:
                    need(field in spans or field in context, f"{name}: no field {field}")
            return b"".join(context[first] if first in context and first not in spans
                            else data[spans[first][0] : spans[last or first][1]] for first, last in _SPAN.findall(text))

        for row in rows:
            value = found[row.name]
            if row.type in CHECKSUMS:
                self._checksum(f"{name}: {row.name}", row, value, bytes_of, context)
            elif row.meaning.startswith("bytes of `"):
                need(value == len(bytes_of(row.meaning)), f"{name}: {row.name} is {value}")
            elif row.meaning.startswith("`") and re.fullmatch(r"`[^`]+`", row.meaning):
                said = _text(row.meaning)
                need(value == (int(said, 0) if isinstance(value, int) else
                               said if isinstance(value, str) else said.encode()), f"{name}: {row.name} is {value!r}")

    @staticmethod
    def _checksum(where: str, row: Row, value: bytes, bytes_of: Any, context: dict[str, Any]) -> None:
        plain, _, inner = row.meaning.partition(" and the xxh3-128 of ")
        covered = bytes_of(plain)
        need(bool(covered), f"{where} covers nothing")
        if inner:
            covered += xxh3_128_digest(bytes_of(inner))
        if row.type == "xxh3-128":
            made = xxh3_128_digest(covered)
        else:
            seed = context["seed"] if row.meaning.endswith(", seeded") else 0
            made = xxh3_64_intdigest(covered, seed).to_bytes(8, "little")[: 4 if row.type.endswith("/32") else 8]
        need(made == value, f"{where} does not match")

    def pack(self, name: str, /, **values: int | bytes) -> bytes:
        """The bytes of a layout. Values that the page says need not be given, nor zeros."""
        packed = b""
        self.used.add(name)
        given = dict(values)
        for row in self.layouts[name]:
            kind, length = integer(row.type), sized(row.type)
            value = given.pop(row.name, None)
            if kind is not None and isinstance(value, int):
                packed += value.to_bytes(kind.size, kind.order)
                continue
            if length is None:
                raise Misfit(f"{name}: {row.name}")
            size = self._number(length[1], values)
            if value is None:
                value = bytes(size) if length[0] == "zeros" else _text(row.meaning).encode()
            if not isinstance(value, bytes) or len(value) != size:
                raise Misfit(f"{name}: {row.name} is {value!r}")
            packed += value
        need(not given, f"{name} lacks {sorted(given)}")
        return packed

    # --- msgpack and JSON --------------------------------------------------------------------------------------------

    def unpack(self, name: str, packed: bytes) -> Any:
        """A msgpack value of a type of the page."""
        try:
            value = msgpack.unpackb(packed, strict_map_key=False)
        except (ValueError, msgpack.UnpackException) as error:
            raise Misfit(f"{name}: no msgpack: {error}") from error
        return self.value(name, value)

    def value(self, kind: str, value: Any) -> Any:
        """`value`, with arrays turned into dicts by the names of their items. Raises `Misfit`."""
        choices = _split(kind)
        if len(choices) > 1:
            for choice in choices:
                try:
                    return self.value(choice, value)
                except Misfit as error:
                    last = error
            raise last
        plain = {"int": int, "float": float, "str": str, "bool": bool, "bytes": bytes, "nil": type(None)}
        if kind in plain:
            need(type(value) is plain[kind], f"{value!r} is no {kind}")
            return value
        if match := re.fullmatch(r"bytes\((\d+)\)", kind):
            need(type(value) is bytes and len(value) == int(match[1]), f"{value!r} is not {kind}")
            return value
        if match := re.fullmatch(r"hex(?:\((\d+)\))?", kind):
            need(type(value) is str and bool(re.fullmatch(r"(?:[0-9a-f]{2})+", value)), f"{value!r} is not {kind}")
            need(not match[1] or len(value) == 2 * int(match[1]), f"{value!r} is not {kind}")
            return bytes.fromhex(value)
        if match := re.fullmatch(r"\[(.+)\]", kind):
            need(type(value) is list, f"{value!r} is not a list")
            return [self.value(match[1], item) for item in value]
        if match := re.fullmatch(r"\{(\w+): (.+)\}", kind):
            need(type(value) is dict, f"{value!r} is not a map")
            return {self.value(match[1], k): self.value(match[2], v) for k, v in value.items()}
        if kind.startswith("packed "):
            need(type(value) is bytes, f"{value!r} is not binary")
            return self.several(kind.removeprefix("packed "), value)
        self.used.add(kind)
        if kind in self.arrays:
            rows = self.arrays[kind]
            need(type(value) is list and len(value) == len(rows), f"{kind}: {value!r}")
            return {row.name: self.value(row.type, item) for row, item in zip(rows, value, strict=True)}
        table = self.maps.get(kind, self.objects.get(kind))
        if table is None:
            raise Misfit(f"no type {kind!r}")
        need(type(value) is dict, f"{kind}: {value!r}")
        rows = self._rows_of(table, value)
        keys = {row.name for row in rows}
        optional = {row.name for row in rows if row.meaning.startswith("may be left out")}
        need(keys - optional <= value.keys() <= keys, f"{kind} has {sorted(value)}, and the page says {sorted(keys)}")
        for row in rows:
            if row.name in value and row.meaning.startswith("`") and re.fullmatch(r"`[^`]+`", row.meaning):
                need(value[row.name] == _text(row.meaning), f"{kind}: {row.name} is {value[row.name]!r}")
        return {row.name: self.value(row.type, value[row.name]) for row in rows if row.name in value}

    def _rows_of(self, table: list[Row], value: dict[Any, Any]) -> list[Row]:
        """The rows that are for this map: those whose cell `in` has the value of the first key. One with the key `…`
        stands for the rows of its type."""
        rows: list[Row] = []
        for row in table:
            if row.kinds == "all" or value.get(table[0].name) in row.kinds.split(", "):
                if row.name == "…":
                    self.used.add(row.type)
                    rows += self.maps[row.type]
                else:
                    rows.append(row)
        return rows

    # --- documents ---------------------------------------------------------------------------------------------------

    def document(self, data: bytes, at: int = 0) -> tuple[str, Any, int]:
        """A document: the name of its map, its body, and where it ends."""
        found, end = self.take("document", data, at)
        need(found["magic"] in self.magics, f"no map with magic {found['magic']!r}")
        name = self.magics[found["magic"]]
        need(found["version"] == self.versions[name], f"{name} has version {found['version']}")
        return name, self.unpack(name, found["body"]), end


def _split(kind: str) -> list[str]:
    """The choices of a type: "a or b", but not within brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[\[\]{}]| or ", kind):
        if match[0] == " or ":
            if not depth:
                parts.append(kind[start : match.start()])
                start = match.end()
        else:
            depth += 1 if match[0] in "[{" else -1
    return [*parts, kind[start:]]
