"""The plots, made by matplotlib: for a page as SVG whose colours follow the page, or as PNG.

A plot is as wide as a phone's page and is scaled from there. A contestant of a curve has its own colour, marker and
dash, since a colour alone does not tell ten of them apart, and not everybody sees every colour. Bars need none: each
has its name above it, and ours has the colour.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ...engine.errors import SettingError
from ..harness import Curve, Latencies, Result
from .groups import Group, Overall, Shown
from .words import heading, number, power

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT = {"ink": "#1c2024", "dim": "#5b6470", "grid": "#e3e6ea", "paper": "#ffffff", "other": "#b4bcc6",
         "c0": "#0b5fb4", "c1": "#d47700", "c2": "#0b4f3f", "c3": "#ad1a6c", "c4": "#6394cb", "c5": "#6b4a1a",
         "c6": "#9a8f86"}
"""The colours of the plots by name, c0 for ours. c0 to c6 differ for eyes that lack a kind of cone, too."""
DARK = {"ink": "#e6e8ea", "dim": "#9aa4ae", "grid": "#2c3138", "paper": "#171a1e", "other": "#59626d",
        "c0": "#5aa9ff", "c1": "#ff8a2a", "c2": "#14b07c", "c3": "#d98fc8", "c4": "#d2eef5", "c5": "#e3cf9a",
        "c6": "#857a74"}
"""The same on a dark page."""

_WIDTH = 420
_TEXT = 12.0
_SMALL = 10.5
_ROW = 38
_LOG_FROM = 30.0
"""How many times the least the most is from which bars have a logarithmic scale, on which they are points."""
_MARKERS = "oDs^vPXd<>"
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)))
_PNG_SCALE = 2


@dataclass(frozen=True, slots=True)
class Style:
    """How a contestant looks in curves."""

    color: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]
    ours: bool


def styles(results: Sequence[Result]) -> dict[str, Style]:
    """A style for each contestant of the curves and latencies, the same in every plot."""
    ours: dict[str, None] = {}
    others: dict[str, None] = {}
    for result in results:
        if isinstance(result, Curve | Latencies):
            first, *rest = result.costs if isinstance(result, Curve) else result.percentiles
            ours[first] = None
            others.update(dict.fromkeys(rest))
    found = {name: Style("c0", "o", "solid", True) for name in ours}
    for number_, name in enumerate(name for name in others if name not in ours):
        found[name] = Style(f"c{1 + number_ % 6}", _MARKERS[1 + number_ % (len(_MARKERS) - 1)],
                            _DASHES[number_ // 6 % len(_DASHES)], False)
    return found


def require() -> None:
    """Raises `SettingError` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise SettingError("plots need matplotlib, which is not installed", hint="pip install 'holdfast[benchmarks]'")


# --- from a figure to a file -----------------------------------------------------------------------------------------


@contextmanager
def _drawing() -> Iterator[None]:
    """Text is text, and a dollar in a name is a dollar. A character that matplotlib's font lacks is left to the
    reader's font."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "holdfast", "text.parse_math": False, "font.size": _TEXT,
        "font.family": "DejaVu Sans", "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["dim"],
        "xtick.color": LIGHT["dim"], "ytick.color": LIGHT["dim"], "grid.color": LIGHT["grid"]}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def svg(shown: Shown | Sequence[Overall], prefix: str, of: Mapping[str, Style]) -> str:
    """A plot as an element for a page that defines the colours as variables, such as `--c0`. `prefix`: begins its ids,
    and no other plot's on the page."""
    made = io.BytesIO()
    with _drawing():
        drawn(shown, of).savefig(made, format="svg", transparent=True,
                                 metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(made.getvalue(), prefix, _title(shown))


def png(shown: Shown | Sequence[Overall], path: Path, of: Mapping[str, Style]) -> None:
    """The same plot as a PNG on white, with its title. Raises `OSError`."""
    with _drawing():
        figure = drawn(shown, of)
        figure.text(0, 1, textwrap.fill(_title(shown), 52) + "\n", weight="bold", size=_TEXT + 1, va="bottom")
        figure.savefig(path, format="png", dpi=72 * _PNG_SCALE, facecolor=LIGHT["paper"], bbox_inches="tight",
                       pad_inches=0.2, metadata={"Software": None})


def _title(shown: Shown | Sequence[Overall]) -> str:
    return heading(shown) if isinstance(shown, Group | Curve | Latencies) else "How many times as good as each peer"


def _for_page(made: bytes, prefix: str, label: str) -> str:
    """matplotlib's SVG without what concerns the whole page: its style sheet, its ids, its fonts, its size."""
    root = ElementTree.fromstring(made)
    _, _, width, height = root.attrib["viewBox"].split()
    names = {color: f"var(--{name})" for name, color in LIGHT.items()}
    found = re.findall(rb'(?:url\(|href=")#([^)"]+)', made)
    wanted = {str(name, "ascii") for name in found}
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {}
        for name, value in element.attrib.items():
            if name == "id":
                if value in wanted:
                    attributes["id"] = f"{prefix}-{value}"
                continue
            if name == "style":
                value = _style(value, names)
            attributes[_local(name)] = re.sub(r"^(url\()?#", rf"\g<1>#{prefix}-", value)
        element.attrib.clear()
        element.attrib.update(attributes)
        if element.tag != "text":
            element.text = None
        element.tail = None
    root.attrib.clear()
    root.attrib.update({"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _style(style: str, colors: Mapping[str, str]) -> str:
    """A style with the page's colours, and with its font but for size and weight."""
    kept = []
    for one in style.split(";"):
        name, _, value = (part.strip() for part in one.partition(":"))
        if name == "font":
            size = re.search(r"[\d.]+px", value)
            kept.append(f"font-size:{size[0] if size else '12px'}")
            kept += ["font-weight:600"] if re.search("bold|700", value) else []
        elif name != "font-family" and name:
            kept.append(f"{name}:{re.sub('#[0-9a-f]{6}', lambda color: colors.get(color[0], color[0]), value)}")
    return ";".join(kept)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def drawn(shown: Shown | Sequence[Overall], of: Mapping[str, Style]) -> Figure:
    """The plot of a group, a curve, latencies, or of all peers."""
    if isinstance(shown, Group):
        return _bars(shown)
    if isinstance(shown, Curve):
        return _curve(shown, of)
    if isinstance(shown, Latencies):
        return _latencies(shown, of)
    return _overall(shown)


def _canvas(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure of `_WIDTH` by `height` units, one of which is a pixel at 72 dpi, with margins around its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (top + bottom) / height))
    axes.tick_params(length=0, labelsize=_SMALL, pad=4)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _short(value: float) -> str:
    """
    >>> [_short(value) for value in (250_000_000, 1500, 12, 0.5, 0.00002, 0)]
    ['250M', '1.5k', '12', '0.5', '2e-05', '0']
    """
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.3g}"


def _cut(text: str, most: int) -> str:
    """
    >>> _cut("a long name", 8)
    'a long …'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _ticks(axes: Axes, which: str, *, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
        subs = (1.0,) if high / low > 200 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=7))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _rows(figure: Figure, axes: Axes, names: Sequence[tuple[str, str, bool]]) -> None:
    """A name and a figure above each row of horizontal axes, the first at the top."""
    axes.set_ylim(len(names) - 0.5 + 0.16, -0.5)
    axes.set_yticks([])
    for at, (name, value, bold) in enumerate(names):
        y = at - 0.2
        weight = "bold" if bold else "normal"
        axes.text(0, y, _cut(name, 44), transform=axes.get_yaxis_transform(), va="baseline", weight=weight)
        axes.text(1, y, value, transform=axes.get_yaxis_transform(), va="baseline", ha="right", weight=weight)


def _bars(group: Group) -> Figure:
    bars = group.bars
    medians = [bar.samples.median for bar in bars]
    log = min(medians) > 0 and max(medians) / min(medians) > _LOG_FROM
    figure, axes = _canvas(_ROW * (len(bars) + 0.16) + 38, left=6, right=16, top=2, bottom=36)
    highest = max(bar.samples.high for bar in bars) or 1.0
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(bar.samples.low for bar in bars if bar.samples.low > 0) / 1.6, highest * 1.3)
    else:
        axes.set_xlim(0, highest * 1.03)
    _rows(figure, axes, [(bar.name, number(bar.samples.median), bar.ours) for bar in bars])
    for at, bar in enumerate(bars):
        y, color = at + 0.16, LIGHT["c0" if bar.ours else "other"]
        if log:
            axes.plot([axes.get_xlim()[0], bar.samples.median], [y, y], color=LIGHT["grid"], lw=1.5, zorder=1)
            axes.plot([bar.samples.median], [y], "o", color=color, ms=13, mec=LIGHT["paper"], mew=0.8, zorder=2)
        else:
            axes.barh(y, bar.samples.median, height=0.36, color=color, zorder=2)
        _rounds(axes, bar.samples.values, y, small=log)
    axes.grid(axis="x", lw=0.8)
    _ticks(axes, "x", log=log)
    more = "more is better →" if group.better == "more" else "← less is better"
    axes.set_xlabel(f"{group.unit}{', logarithmic' if log else ''}; {more}", fontsize=_SMALL, loc="right", labelpad=3)
    return figure


def _rounds(axes: Axes, values: Sequence[float], y: float, *, small: bool) -> None:
    """Whiskers from the lowest to the highest, and a dot for each round."""
    if len(values) > 1:
        low, high = min(values), max(values)
        axes.plot([low, high], [y, y], color=LIGHT["ink"], lw=1.2, zorder=3)
        axes.plot([low, high], [y, y], "|", color=LIGHT["ink"], ms=8, mew=1.2, zorder=3)
        axes.plot(values, [y] * len(values), "o", color=LIGHT["ink"], ms=3.4 if small else 4.6, mec=LIGHT["paper"],
                  mew=0.3 if small else 0.8, zorder=4)


def _overall(peers: Sequence[Overall]) -> Figure:
    figure, axes = _canvas(_ROW * (len(peers) + 0.16) + 38, left=6, right=16, top=2, bottom=36)
    every = [ratio for peer in peers for ratio in peer.advantages]
    axes.set_xscale("log")
    axes.set_xlim(min(0.45, min(every) / 1.3), max(2.2, max(every) * 1.3))
    _rows(figure, axes, [(f"{_cut(peer.peer, 30)}, {len(peer.advantages)} figures", f"{number(peer.mean)} ×", False)
                         for peer in peers])
    for at, peer in enumerate(peers):
        y = at + 0.16
        axes.plot([1, 1], [y - 0.22, y + 0.22], color=LIGHT["dim"], lw=1.2, zorder=1)
        axes.plot(peer.advantages, [y] * len(peer.advantages), "o", color=LIGHT["other"], ms=6, mec=LIGHT["paper"],
                  mew=0.7, zorder=2)
        axes.plot([peer.mean], [y], "D", color=LIGHT["c0"], ms=8, mec=LIGHT["paper"], mew=1, zorder=3)
    axes.grid(axis="x", lw=0.8)
    _ticks(axes, "x", log=True)
    axes.set_xlabel("← behind · times as good as the peer · ahead →", fontsize=_SMALL, loc="center", labelpad=3)
    return figure


def _plot(count: int, names: Sequence[str], xlabel: str, ylabel: str) -> tuple[Figure, Axes, float]:
    """Axes with room for a legend of so many names below them; and the legend's height."""
    columns = 1 if max(map(len, names)) > 26 else 2
    below = 17.0 * math.ceil(count / columns) + 8
    figure, axes = _canvas(250 + below, left=46, right=20, top=24, bottom=44 + below)
    axes.set_xlabel(xlabel, fontsize=_SMALL, labelpad=3)
    axes.set_title(ylabel, fontsize=_SMALL, loc="left", color=LIGHT["dim"], pad=8, x=-46 / (_WIDTH - 66))
    axes.grid(lw=0.8)
    return figure, axes, below


def _legend(figure: Figure, axes: Axes, below: float) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 26 else 2
    figure.legend(handles, [_cut(label, 52) for label in labels], loc="upper left", ncols=columns, frameon=False,
                  fontsize=_SMALL, bbox_to_anchor=(0, (below + 4) / (250 + below)), borderaxespad=0, handlelength=2.6,
                  labelspacing=0.45, columnspacing=1.5)


def _decades(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis that spans at least a decade, so that what is flat looks flat."""
    low, high = min(values) / 1.25, max(values) * 1.25
    if (short := math.log10(high / low)) < 1:
        low, high = low / 10 ** ((1 - short) / 2), high * 10 ** ((1 - short) / 2)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _ticks(axes, "y", log=True)


def _curve(curve: Curve, of: Mapping[str, Style]) -> Figure:
    labels = [f"{name}  {power(curve, name)}".rstrip() for name in curve.costs]
    figure, axes, below = _plot(len(labels), labels, f"{curve.along}, logarithmic", f"{curve.unit}, logarithmic")
    every: list[float] = []
    for label, (name, costs) in zip(labels, curve.costs.items(), strict=True):
        points = [(size, cost) for size, cost in zip(curve.sizes, costs, strict=True) if cost is not None]
        style, medians = of[name], [cost.median for _, cost in points]
        spans = [[cost.median - cost.low for _, cost in points], [cost.high - cost.median for _, cost in points]]
        every += [bound for _, cost in points for bound in (cost.low, cost.high) if bound > 0]
        axes.errorbar([size for size, _ in points], medians, yerr=spans, label=label, **_looks(style),
                      elinewidth=1, capsize=2.5)
    axes.set_xscale("log")
    axes.set_xlim(curve.sizes[0] / 1.25, curve.sizes[-1] * 1.25)
    _decades(axes, every or [1.0])
    _ticks(axes, "x", log=True)
    _legend(figure, axes, below)
    return figure


def _looks(style: Style) -> dict[str, Any]:
    return {"color": LIGHT[style.color], "marker": style.marker, "ls": style.dash, "lw": 2.4 if style.ours else 1.6,
            "ms": 6 if style.ours else 5, "mec": LIGHT["paper"], "mew": 0.6, "zorder": 5 if style.ours else 3}


def _latencies(latencies: Latencies, of: Mapping[str, Style]) -> Figure:
    """Over the share of calls, each tenth of the rest as wide as the one before: 90 %, 99 %, 99.9 %."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    names = list(latencies.percentiles)
    figure, axes, below = _plot(len(names), names, "% of the calls took no longer", "ms, logarithmic")
    every, farthest = [], 1.0
    for name, pairs in latencies.percentiles.items():
        least = 1 / (latencies.counts[name] + 1)  # the share of the slowest call, and of nothing beyond it
        points = [(-math.log10(max(1 - share, least)), ms) for share, ms in pairs
                  if ms > 0 and (share == 1 or 1 - share > least)]
        every += [ms for _, ms in points]
        farthest = max([farthest, *(x for x, _ in points)])
        axes.plot([x for x, _ in points], [ms for _, ms in points], label=name, **_looks(of[name]))
    axes.set_xlim(-0.08, farthest + 0.12)
    shares = {0.0: "0", math.log10(2): "50", 1.0: "90", 2.0: "99", 3.0: "99.9", 4.0: "99.99", 5.0: "99.999"}
    axes.xaxis.set_major_locator(FixedLocator([x for x in shares if x <= farthest + 0.05]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: next(
        (name for at, name in shares.items() if abs(at - x) < 0.01), "")))
    _decades(axes, every or [1.0])
    _legend(figure, axes, below)
    return figure
