"""LMDB's file, page by page: checks that its trees are intact.

LMDB trusts its file. A page number or offset that changed on the disk can lead it out of its map, which kills the
process with a signal, or into an endless loop, or past entries. So before LMDB opens a file, its pages are read here
with plain reads and decoded. (If the file is too large for that, only `check` does so.) Every page must lie within the
file, have the right type and number, and be used once. Every node must lie within its page, without gaps between nodes.
Keys must ascend, within pages and from page to page, and agree with the branches. Each tree must have as many pages and
entries as it says. No free page may be in use. The contents of values are not checked here: they have seals.

LMDB 0.9's layout, native byte order, 64 bits: a page starts with its number (8), 2 bytes of padding, flags (2), and
then `lower` and `upper` (2 + 2: bounds of the free space) or the number of overflow pages (4). In a leaf or branch page
follow 2-byte offsets of its nodes, which fill the page from its end. A node: two low halves of a size or child page
(2 + 2), flags or the child's third part (2), key size (2), key, data; the whole padded to an even size. The meta
structure follows the page's header: magic, version (4 + 4), address, map size (8 + 8), two trees of 48 bytes, that of
the free list (whose first field is the page size) and that of the databases by name, last page (8), transaction (8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...env import File
from ...errors import Damaged

HEADER = 16
_META = struct.Struct("=II8xQ48s48sQQ")
_TREE = struct.Struct("=IHHQQQQQ")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_P_BRANCH, _P_LEAF, _P_OVERFLOW, _P_META = 1, 2, 4, 8
_F_BIGDATA, _F_SUBDATA = 1, 2
_INTEGER_KEYS = 8
_NO_PAGE = 0xFFFFFFFFFFFFFFFF
_MOST_LEVELS = 32
_KEY = 24
"""The bytes of a key that are compared. Our keys have at most 20."""
_AT_ONCE = 1024
_SPARE_PAGES = 1 << 20
"""How many free pages that were never written may lie beyond the file's end."""
Int64 = npt.NDArray[np.int64]


class Tree(NamedTuple):
    """A tree as its root record describes it."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Meta(NamedTuple):
    """A decoded meta page."""

    page_size: int
    free: Tree
    main: Tree
    last_page: int
    txn: int
    raw: bytes

    @property
    def size(self) -> int:
        return (self.last_page + 1) * self.page_size


def read_metas(file: File) -> list[Meta]:
    """The two meta pages. Raises `Damaged`."""
    path = str(file.path)
    head = file.pread(HEADER + _META.size, 0)
    if len(head) < HEADER + _META.size:
        raise Damaged("is too short for an LMDB file", path=path, offset=len(head))
    found = []
    page_size = _TREE.unpack(_META.unpack_from(head, HEADER)[3])[0]
    if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
        raise Damaged("has no LMDB page size", path=path, offset=HEADER + 24)
    for slot in (0, 1):
        page = file.pread(page_size, slot * page_size)
        if len(page) < page_size:
            raise Damaged("is too short for an LMDB file", path=path, offset=len(page))
        number, flags = struct.unpack_from("=Q2xH", page)
        magic, version, _, free, main, last, txn = _META.unpack_from(page, HEADER)
        meta = Meta(page_size, Tree(*_TREE.unpack(free)), Tree(*_TREE.unpack(main)), last, txn, page)
        if magic != _MAGIC or version != _VERSION or number != slot or flags != _P_META or last < 1 or (
                (meta.free.pad, meta.free.flags, meta.main.pad, meta.main.flags) != (page_size, _INTEGER_KEYS, 0, 0)):
            raise Damaged("is not an LMDB file of a known version", path=path, offset=slot * page_size + HEADER)
        found.append(meta)
    return found


def newest_meta(file: File) -> Meta:
    """The meta page of the state that LMDB shows when it opens the file. Raises `Damaged`."""
    return max(read_metas(file), key=lambda meta: meta.txn)


def free_pages(file: File, meta: Meta) -> Int64:
    """The sorted numbers of the pages that are free in a state. Raises `Damaged`."""
    return _Pages(file, meta).free()


def check_ends(file: File, meta: Meta) -> None:
    """Check that a file has all pages of a state; free ones may be missing. Raises `Damaged`. Reads the free list."""
    size = file.size()
    if size < meta.size:
        # LMDB never writes a last page that is free.
        first, last = size // meta.page_size, meta.last_page
        if first < 2 or last - first > _SPARE_PAGES or not np.isin(np.arange(first, last + 1),
                                                                   free_pages(file, meta)).all():
            raise Damaged(f"has {size:,} bytes, but its pages take {meta.size:,}", path=str(file.path), offset=size)


def check_pages(file: File, meta: Meta) -> None:
    """Check that all trees of a state are intact (see the module's text). Raises `Damaged`.

    Cost: each branch, leaf and first overflow page is read once, some megabytes at a time.
    """
    check_ends(file, meta)
    pages = _Pages(file, meta)
    free = pages.free()
    for name, value, flags in pages.tree(meta.main, "the databases", collect=True):
        if flags != _F_SUBDATA or len(value) != _TREE.size:
            raise pages.damaged(f"{name!r} is not a database")
        tree = Tree(*_TREE.unpack(value))
        if tree.pad or tree.flags:
            raise pages.damaged(f"{name!r} is a database of another kind")
        pages.tree(tree, f"database {name!r}")
    if pages.used[free].any():
        raise pages.damaged(f"page {free[pages.used[free]][0]} is in use and in the free list")


class _Nodes(NamedTuple):
    """The nodes of some pages: how many each page has; the key of each, as `_keys` makes them; its child page (branch),
    or its flags, size and the offset of its data in `flat` (leaf)."""

    counts: Int64
    keys: Any
    children: Int64
    flags: Any
    sizes: Int64
    data: Int64
    flat: Any


class _Pages:
    """The pages of one state. Each may be used once."""

    def __init__(self, file: File, meta: Meta) -> None:
        self._file = file
        self._meta = meta
        self._size = meta.page_size
        self._path = str(file.path)
        there = min(meta.last_page, file.size() // meta.page_size + _SPARE_PAGES)
        self.used = np.zeros(there + 1, bool)
        self.used[:2] = True

    def damaged(self, what: str, page: int | None = None) -> Damaged:
        return Damaged(what, path=self._path, offset=None if page is None else int(page) * self._size)

    def free(self) -> Int64:
        """The free list: sorted page numbers."""
        found = []
        for _, value, _ in self.tree(self._meta.free, "the free list", collect=True, integers=True):
            ids = np.frombuffer(value[: len(value) // 8 * 8], np.uint64)
            if not len(ids) or int(ids[0]) > len(ids) - 1:
                raise self.damaged("an entry of the free list has fewer pages than it says")
            found.append(ids[1 : int(ids[0]) + 1])
        if not found:
            return np.empty(0, np.int64)
        numbers = np.sort(np.concatenate(found))
        if len(numbers) and (numbers[0] < 2 or numbers[-1] >= len(self.used) or (numbers[1:] == numbers[:-1]).any()):
            raise self.damaged("the free list names a page that is not there, or one twice")
        return numbers.astype(np.int64)

    def tree(self, tree: Tree, name: str, *, collect: bool = False,
             integers: bool = False) -> list[tuple[bytes, bytes, int]]:
        """Walk a tree, level by level. Returns the entries (key, value, flags) if `collect` is set."""
        if tree.root == _NO_PAGE:
            if tree[2:7] != (0, 0, 0, 0, 0):
                raise self.damaged(f"{name}: it has no pages, but says that it has some")
            return []
        if not 1 <= tree.depth <= _MOST_LEVELS:
            raise self.damaged(f"{name}: {tree.depth} levels")
        collected: list[tuple[bytes, bytes, int]] = []
        numbers = np.array([tree.root], np.uint64)
        branches: list[tuple[Int64, Any]] = []
        ends: tuple[Any, Any] | None = None
        branch_pages = overflow = entries = 0
        for level in range(1, tree.depth + 1):
            if level < tree.depth:
                parts = [self._nodes(chunk, False, name, integers) for chunk in self._chunks(numbers)]
                branch_pages += len(numbers)
                branches.append((np.concatenate([part.counts for part in parts]),
                                 np.concatenate([part.keys for part in parts])))
                numbers = np.concatenate([part.children for part in parts]).astype(np.uint64)
                if len(numbers) > len(self.used):
                    raise self.damaged(f"{name}: more pages than the file has")
                continue
            firsts, lasts = [], []
            for chunk in self._chunks(numbers):
                nodes = self._nodes(chunk, True, name, integers)
                entries += len(nodes.sizes)
                overflow += self._overflows(nodes, name)
                if collect:
                    collected += self._collected(nodes)
                last = np.cumsum(nodes.counts) - 1
                firsts.append(nodes.keys[last - nodes.counts + 1])
                lasts.append(nodes.keys[last])
            ends = np.concatenate(firsts), np.concatenate(lasts)
        if (branch_pages, len(numbers), overflow, entries) != tree[3:7]:
            raise self.damaged(f"{name}: it says that it has {tree.entries:,} entries on {tree.leaf_pages:,} pages; "
                               f"{entries:,} are there, on {len(numbers):,}")
        assert ends is not None
        if not _less(ends[1][:-1], ends[0][1:]).all():
            raise self.damaged(f"{name}: its pages are out of order")
        for counts, keys in reversed(branches):
            self._separators(counts, keys, *ends, name)
            last = np.cumsum(counts) - 1
            ends = ends[0][last - counts + 1], ends[1][last]
        return collected

    def _separators(self, counts: Int64, keys: Any, firsts: Any, lasts: Any, name: str) -> None:
        """Check that a branch's key separates: keys of its page are not below it, keys of the page before are."""
        inner = np.ones(len(keys), bool)
        inner[np.cumsum(counts) - counts] = False
        at = np.flatnonzero(inner)
        if not _less(lasts[at - 1], keys[at]).all() or _less(firsts[at], keys[at]).any():
            raise self.damaged(f"{name}: a branch leads to the wrong page")

    def _chunks(self, numbers: Any) -> Iterator[Any]:
        for at in range(0, len(numbers), _AT_ONCE):
            yield numbers[at : at + _AT_ONCE]

    def _take(self, numbers: Any, name: str) -> Int64:
        """Mark pages as used. Raises `Damaged` if one is used already. Returns their numbers."""
        if (numbers >= len(self.used)).any():
            raise self.damaged(f"{name}: it has a page {int(numbers.max())}, behind the last one")
        taken: Int64 = numbers.astype(np.int64)
        ordered = np.sort(taken)
        if self.used[taken].any() or (ordered[1:] == ordered[:-1]).any():
            raise self.damaged(f"{name}: it has a page that is used elsewhere")
        self.used[taken] = True
        return taken

    def _nodes(self, numbers: Any, leaf: bool, name: str, integers: bool) -> _Nodes:
        """Read some pages, and decode their nodes."""
        size = self._size
        taken = self._take(numbers, name)
        raw = b"".join(self._runs(taken))
        if len(raw) != size * len(taken):
            raise self.damaged(f"{name}: the file ends before its pages do")
        flat = np.frombuffer(raw + bytes(_KEY), np.uint8)
        words = flat[: len(raw)].view("<u2")
        heads = words.reshape(len(taken), size // 2)
        own = np.ascontiguousarray(heads[:, :4]).view("<u8")[:, 0]
        lower, upper = heads[:, 6].astype(np.int64), heads[:, 7].astype(np.int64)
        good = (own == numbers) & (heads[:, 5] == (_P_LEAF if leaf else _P_BRANCH)) & (
            lower > HEADER) & (lower & 1 == 0) & (lower <= upper) & (upper <= size)
        if not good.all():
            at = taken[~good][0]
            raise self.damaged(f"{name}: page {at} is not the page that it should be", at)
        counts = (lower - HEADER) >> 1
        page = np.repeat(np.arange(len(taken)), counts)
        starts = np.cumsum(counts) - counts
        slots = np.arange(len(page)) - np.repeat(starts, counts)
        offsets = heads[page, HEADER // 2 + slots].astype(np.int64)
        if ((offsets & 1 != 0) | (offsets < upper[page]) | (offsets + 8 > size)).any():
            raise self.damaged(f"{name}: a node lies outside of its page", taken[0])
        base = page * size + offsets
        at = base >> 1
        low, high, third, width = (words[at + i].astype(np.int64) for i in range(4))
        if leaf:
            sizes = low | high << 16
            children = np.empty(0, np.int64)
            held = np.where(third == _F_BIGDATA, 8, sizes)
            if (third > _F_SUBDATA).any():
                raise self.damaged(f"{name}: a node with flags that mean nothing", taken[0])
        else:
            children = low | high << 16 | third << 32
            sizes = held = np.zeros(len(base), np.int64)
        ends = base + 8 + width + held
        ends += ends & 1
        order = np.argsort(base)
        begins, ended = base[order], ends[order]
        firsts, lasts = starts, starts + counts - 1
        tiled = np.ones(len(base), bool)
        tiled[1:] = begins[1:] == ended[:-1]
        tiled[firsts] = begins[firsts] == np.arange(len(taken)) * size + upper
        if not tiled.all() or (ended[lasts] != np.arange(1, len(taken) + 1) * size).any():
            raise self.damaged(f"{name}: the nodes of a page do not fill it", taken[0])
        if (width > _KEY).any():
            raise self.damaged(f"{name}: a key of {int(width.max())} bytes", taken[0])
        keys = _keys(flat, base + 8, width, integers)
        inner = np.flatnonzero(slots > (0 if leaf else 1))  # a branch page's first key means "everything below"
        if not _less(keys[inner - 1], keys[inner]).all():
            raise self.damaged(f"{name}: keys out of order", taken[0])
        return _Nodes(counts, keys, children, third, sizes, base + 8 + width, flat)

    def _runs(self, numbers: Int64) -> Iterator[bytes]:
        """The bytes of pages. Adjacent ones are read together."""
        size = self._size
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(numbers)], strict=True):
            yield self._file.pread((last - first) * size, int(numbers[first]) * size)

    def _overflows(self, nodes: _Nodes, name: str) -> int:
        """How many pages the large values of some leaves take. Checks each value's first page."""
        large = np.flatnonzero(nodes.flags == _F_BIGDATA)
        if not len(large):
            return 0
        numbers = _gathered(nodes.flat, nodes.data[large], 8).view("<u8")[:, 0]
        needed = (HEADER + nodes.sizes[large] + self._size - 1) // self._size
        self._take(numbers, name)
        total = 0
        for number, least in zip(numbers.tolist(), needed.tolist(), strict=True):
            head = self._file.pread(HEADER, number * self._size)
            own, flags, pages = struct.unpack("=Q2xHI", head) if len(head) == HEADER else (0, 0, 0)
            if own != number or flags != _P_OVERFLOW or pages < least or number + pages > len(self.used):
                raise self.damaged(f"{name}: page {number} does not begin a value of {least} pages", number)
            if pages > 1:
                self._take(np.arange(number + 1, number + pages, dtype=np.uint64), name)
            total += pages
        return total

    def _collected(self, nodes: _Nodes) -> Iterator[tuple[bytes, bytes, int]]:
        raw = nodes.flat.tobytes()
        for key, flags, size, at in zip(nodes.keys, nodes.flags.tolist(), nodes.sizes.tolist(), nodes.data.tolist(),
                                        strict=True):
            if flags == _F_BIGDATA:
                value = self._file.pread(size, int.from_bytes(raw[at : at + 8], "little") * self._size + HEADER)
                if len(value) != size:
                    raise self.damaged("the file ends before a value does")
            else:
                value = raw[at : at + size]
            width = int(key[-1])
            yield key[:-1].astype(">u8").tobytes()[:width], value, flags


def _gathered(flat: Any, starts: Int64, length: int) -> Any:
    """`length` bytes from each of `starts` on, as the rows of a new array."""
    return np.lib.stride_tricks.sliding_window_view(flat, length)[starts]


def _keys(flat: Any, starts: Int64, widths: Int64, integers: bool) -> Any:
    """Keys in columns that compare as LMDB compares keys: bytes, padded with zeros, then the length. Keys that are
    numbers become one column."""
    rows = _gathered(flat, starts, _KEY)
    if (widths == (least := int(widths.min()))).all():  # the usual case
        rows[:, least:] = 0
    else:
        rows[np.arange(_KEY) >= widths[:, None]] = 0
    keys = np.empty((len(starts), _KEY // 8 + 1), np.uint64)
    keys[:, :-1] = rows.view("<u8") if integers else rows.view(">u8")
    keys[:, -1] = widths
    return keys


def _less(a: Any, b: Any) -> Any:
    """Row by row, whether the key in `a` comes before that in `b`."""
    less = a[:, 0] < b[:, 0]
    same = a[:, 0] == b[:, 0]
    for column in range(1, a.shape[1]):
        if not same.any():
            break
        less |= same & (a[:, column] < b[:, column])
        same &= a[:, column] == b[:, column]
    return less
