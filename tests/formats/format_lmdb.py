"""Takes an LMDB file apart by the page: its trees walked from the meta pages, every page accounted for."""

from __future__ import annotations

from typing import Any

from format_page import Page, need

EMPTY = (1 << 64) - 1


class Lmdb:
    """An LMDB file: the databases in it by name, as sorted (key, value), every page accounted for.

    Attributes:
        databases: what they hold.
        whole: it is as an image is: no more than its pages, free ones zero, both meta pages alike.
    """

    def __init__(self, page: Page, data: bytes) -> None:
        self.page, self.data = page, data
        self.size = page.take("LMDB meta page", data[:512])[0]["free"]["pad"]
        need(self.size in (1 << n for n in range(9, 17)), f"pages of {self.size} bytes")
        first, second = (page.whole("LMDB meta page", data[at : at + self.size]) for at in (0, self.size))
        need((first["number"], second["number"]) == (0, 1), "the numbers of the meta pages")
        need(first["txn"] == second["txn"] or (first["txn"] % 2, second["txn"] % 2) == (0, 1), "the meta pages")
        meta = max(first, second, key=lambda m: m["txn"])
        self.used: set[int] = {0, 1}
        free: list[int] = []
        for key, value, _ in self._walk(meta["free"]):
            need(len(key) == 8 and int.from_bytes(key, "little") <= meta["txn"], f"free pages of {key!r}")
            numbers = [int.from_bytes(value[i : i + 8], "little") for i in range(0, len(value), 8)]
            need(numbers[0] <= len(numbers) - 1, "fewer free pages than their count")
            free += numbers[1 : numbers[0] + 1]
        self.databases: dict[str, list[tuple[bytes, bytes]]] = {}
        for key, value, flags in self._walk(meta["main"]):
            need(flags == 2, f"{key!r} is not a database")
            self.databases[key.decode()] = [(k, v) for k, v, f in self._walk(page.whole("LMDB tree", value)) if f != 2]
        need(len(free) == len(set(free)) and not self.used & set(free), "free pages that are used")
        need(self.used | set(free) == set(range(meta["last_page"] + 1)), "pages that are neither used nor free")
        size = self.size
        self.whole = (len(data) == size * (meta["last_page"] + 1) and data[8:size] == data[size + 8 : 2 * size]
                      and not any(any(data[size * n : size * (n + 1)]) for n in free))
        need(size * (max(self.used) + 1) <= len(data) and meta["map_size"] >= len(data), "a file that is too short")

    def _walk(self, tree: dict[str, Any]) -> list[tuple[bytes, bytes, int]]:
        """(key, value, flags) of a tree, in order; its pages counted and compared with what it says."""
        found: list[tuple[bytes, bytes, int]] = []
        self._counts = {1: 0, 2: 0, 4: 0}
        depth = 0 if tree["root"] == EMPTY else self._page(tree["root"], found)
        counts = self._counts
        need((depth, counts[1], counts[2], counts[4], len(found)) == tuple(tree[k] for k in (
            "depth", "branch_pages", "leaf_pages", "overflow_pages", "entries")), f"a tree that is not {tree}")
        keys = [key for key, *_ in found]
        integers = [int.from_bytes(key, "little") for key in keys] if tree["flags"] & 8 else keys
        need(integers == sorted(integers), "a tree out of order")
        return found

    def _own(self, number: int, kind: int) -> bytes:
        need(number not in self.used, f"page {number} is used twice")
        self.used.add(number)
        self._counts[kind] += 1
        data = self.data[number * self.size : (number + 1) * self.size]
        need(len(data) == self.size, f"page {number} is not there")
        return data

    def _page(self, number: int, found: list[tuple[bytes, bytes, int]]) -> int:
        data = self.data[number * self.size : (number + 1) * self.size]
        head = self.page.whole("LMDB page", data)
        need(head["flags"] in (1, 2) and head["number"] == number, f"page {number} is {head['flags']}")
        self._own(number, head["flags"])
        start = len(data) - len(head["rest"])
        need(start <= head["lower"] <= head["upper"] <= len(data) and head["lower"] % 2 == 0, f"page {number}'s bounds")
        offsets = [int.from_bytes(data[at : at + 2], "little") for at in range(start, head["lower"], 2)]
        extents, depths = [], set()
        for offset in offsets:
            node, _ = self.page.take("LMDB node", data, offset)
            size = node["low"] + (node["high"] << 16)
            end = len(data) - len(node["rest"])
            if head["flags"] == 1:
                depths.add(self._page(size + (node["third"] << 32), found))
            elif node["third"] == 1:
                found.append((node["key"], self._overflow(int.from_bytes(node["rest"][:8], "little"), size), 1))
                end += 8
            else:
                need(node["third"] in (0, 2) and size <= len(node["rest"]), f"a node with flags {node['third']}")
                found.append((node["key"], node["rest"][:size], node["third"]))
                end += size
            extents.append((offset, end + end % 2))
        extents.sort()
        need([first for first, _ in extents] == [head["upper"], *(end for _, end in extents[:-1])]
             and extents[-1][1] == len(data), f"page {number} has bytes between its nodes")
        need(len(depths) <= 1, "a tree of different depths")
        return 1 + (depths.pop() if depths else 0)

    def _overflow(self, number: int, size: int) -> bytes:
        head, _ = self.page.take("LMDB overflow page", self.data[number * self.size : (number + 1) * self.size])
        need(head["number"] == number, f"overflow page {number}")
        data = b"".join(self._own(number + i, 4) for i in range(head["pages"]))
        start = self.size - len(head["rest"])
        need(0 <= len(data) - start - size < self.size, f"an overflow value of {size} bytes on {head['pages']} pages")
        return data[start : start + size]
