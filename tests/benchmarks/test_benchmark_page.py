"""The report's plots, and its page: whole, in a browser, and with names that mean harm."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from benchmark_runs import CURVE, HOSTILE, LATENCIES, everything, hostile, line, run_of
from browser import Browser, why_no_browser
from fault_rig import require

from holdfast.benchmarks.report import compare, figures, html, png
from holdfast.benchmarks.report.groups import Group, grouped
from holdfast.benchmarks.report.words import heading
from holdfast.engine.errors import SettingError


def test_each_contestant_looks_the_same_in_every_plot_and_like_no_other() -> None:
    many = replace(CURVE, costs=dict.fromkeys(("Holdfast", *map(str, range(12))), CURVE.costs["Kùzu"]))
    found = figures.styles([LATENCIES, many])
    assert found["Holdfast"].ours
    assert [name for name, style in found.items() if style.color == "c0"] == ["Holdfast"]
    assert len(set(found.values())) == len(found) == 14
    assert found["SQLite"] == figures.styles([LATENCIES])["SQLite"]


_SEEN = {
    "everything": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "no blue": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""What eyes make of linear red, green and blue: Machado, Oliveira and Fernandes (2009), full severity."""


def _linear(color: str) -> list[float]:
    values = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def _lab(rgb: list[float]) -> tuple[float, float, float]:
    def curved(part: float) -> float:
        return part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116

    red, green, blue = (max(0.0, part) for part in rgb)
    x, y, z = (curved((0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047),
               curved(0.2126 * red + 0.7152 * green + 0.0722 * blue),
               curved((0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("colors", [figures.LIGHT, figures.DARK], ids=["light", "dark"])
def test_colors_can_be_told_apart_by_everybody(colors: dict[str, str]) -> None:
    def seen(color: str, eyes: str) -> tuple[float, float, float]:
        return _lab([sum(a * b for a, b in zip(row, _linear(color), strict=True)) for row in _SEEN[eyes]])

    def luminance(color: str) -> float:
        red, green, blue = _linear(color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    lines = [color for name, color in colors.items() if re.fullmatch(r"c\d", name)]
    for eyes in _SEEN:
        for one, other in itertools.combinations(lines, 2):
            assert math.dist(seen(one, eyes), seen(other, eyes)) > 10, (eyes, one, other)
    for color, least in [(color, 3.0) for color in lines] + [(colors["ink"], 7.0), (colors["dim"], 4.5)]:
        darker, lighter = sorted((luminance(color), luminance(colors["paper"])))
        assert lighter / darker >= least, color
    assert figures.LIGHT.keys() == figures.DARK.keys()
    assert len(set(colors.values())) == len(colors)


def test_pictures_are_named_by_what_they_show(tmp_path: Path) -> None:
    made = png.save(tmp_path / "pictures", everything())
    assert [path.name for path in made] == ["some-commits.png", "some-opening-by-edges.png", "some-mixed-reads.png",
                                            "some-bytes.png"]
    assert sorted(made) == sorted((tmp_path / "pictures").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    names = [path.name for path in png.save(tmp_path / "hostile", hostile())]
    assert len(set(names)) == len(names) == 5
    assert names[0] == "peers.png"
    assert all(re.fullmatch(r"[a-z0-9-]+\.png", name) for name in names), names


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"holdfast\[benchmarks\]"):
        html.page(everything())
    with pytest.raises(SettingError, match=r"holdfast\[benchmarks\]"):
        png.save(tmp_path / "made", everything())
    assert not (tmp_path / "made").exists()


# --- the page --------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Reads a page, and fails if an element is not closed in its turn."""

    VOID = {"meta", "input", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"{tag} is not a part of a plot"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        kind = self.open[-1] if self.open else ""
        self.text[kind] = self.text.get(kind, "") + data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("make", [everything, hostile])
def test_the_page_is_whole_and_needs_nothing_else(make: Any) -> None:
    run = make()
    page = html.page(run, compare.compare(run_of(line(), line("gone")), run))
    read = Reader(page)
    assert "http" not in page
    assert "//" not in page
    assert [len(read.all(tag)) for tag in ("script", "style", "link", "img", "iframe", "object")] == [1, 1, 0, 0, 0, 0]
    ids = [value for _, attributes in read.elements for name, value in attributes.items() if name == "id"]
    assert len(set(ids)) == len(ids)
    wanted = [(value or "")[1:] for _, attributes in read.elements for name, value in attributes.items()
              if name == "href"]
    wanted += re.findall(r"url\(#([^)]+)\)", page)
    assert len(wanted) > 20
    assert set(wanted) <= set(ids)
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    plots = page[page.index("<main>") :]
    for color in figures.LIGHT.values():
        assert f":{color}" not in plots, "a color that does not follow the page"
    assert "font-family" not in plots


def test_the_page_says_what_was_measured() -> None:
    read = Reader(html.page(everything()))
    assert "3 of 4 targets met" in read.text["title"]
    assert read.text["h2"] == "Targets not metSomeMeasured on"
    labels = [attributes["aria-label"] for attributes in read.all("svg")]
    assert sorted(map(str, labels)) == ["bytes", "commits", "mixed reads", "opening, by edges"]
    for word in ("Kùzu", "n^1.00", "RocksDB", "plain loop"):
        assert word in read.text["text"], word
    assert "ahead" in read.text["small"]
    assert "behind" in read.text["small"]
    assert "cluster" in read.text["p"]


def test_a_hostile_name_is_text() -> None:
    read = Reader(html.page(hostile()))
    for kind in ("h3", "th", "text", "p", "dd", "dt"):
        assert "<script>" in read.text[kind], kind
    assert "alert" not in read.text["script"]
    assert HOSTILE[:20] in (read.all("svg")[1]["aria-label"] or "")


def test_an_empty_run_has_a_page() -> None:
    read = Reader(html.page(replace(run_of(), results={"some": []})))
    assert not read.all("svg")
    assert "no targets" in read.text["title"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    require("browser", why_no_browser())
    (tmp_path / "profile").mkdir()
    with Browser(tmp_path / "profile") as made:
        yield made


@pytest.mark.parametrize("make", [everything, hostile])
def test_the_page_in_a_browser(tmp_path: Path, browser: Browser, make: Any) -> None:
    run = make()
    html.save(tmp_path / "page.html", run, compare.compare(run_of(line()), run))
    for width in (390, 1280):
        browser.screen(width, 900, phone=width < 500)
        browser.open((tmp_path / "page.html").as_uri())
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate("performance.getEntriesByType('resource').length") == 0
        # Every plot is inside its card, and its smallest text can be read.
        assert browser.evaluate("""[...document.querySelectorAll('svg')].every(plot => {
            const plotted = plot.getBoundingClientRect(), card = plot.closest('article').getBoundingClientRect();
            return plotted.width > 300 && plotted.left >= card.left && plotted.right <= card.right })""")
        assert browser.evaluate("""Math.min(...[...document.querySelectorAll('svg text')].map(
            text => text.getBoundingClientRect().height))""") > 8
        # One column has the cards in their order, whichever of the two columns they are in on a wide screen.
        cards = browser.evaluate("""[...document.querySelectorAll('section:nth-last-child(2) article')].map(
            card => [card.getBoundingClientRect().top, card.querySelector('svg').getAttribute('aria-label')])""")
        tops = [top for top, _ in cards]
        assert (len(set(tops)) == len(tops)) is (width < 500)
        if width < 500:
            assert [name for _, name in sorted(cards)] == [
                heading(one) for one in grouped(run.results["some"]) if not isinstance(one, Group) or len(one.bars) > 1]
        # Colors follow the reader's choice.
        grounds = set()
        for scheme in ("light", "dark"):
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            grounds.add(browser.evaluate("getComputedStyle(document.querySelector('article')).backgroundColor"))
            browser.screenshot(tmp_path / f"{width}-{scheme}.png")
        assert len(grounds) == 2
    shown = "[...document.querySelectorAll('.one')].filter(one => one.offsetParent).length"
    before = browser.evaluate(shown)
    browser.evaluate("""const input = document.getElementById('filter'); input.value = 'No Such thing';
        input.dispatchEvent(new Event('input'))""")
    assert before > 3
    assert browser.evaluate(shown) == 0
