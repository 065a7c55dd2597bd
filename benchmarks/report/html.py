"""The report as one page of HTML: it needs no other file, no network, and no script to be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path

from ..harness import Curve, Latencies, Line, Result, Samples
from . import figures
from .compare import Change, Comparison, Verdict, busy
from .groups import Group, Shown, grouped, judged, overall, standing, unmet
from .saved import Run
from .style import SCRIPT, style
from .words import RATIO, counted, grown, heading, number, power, share_name, spread, target

_LIMITS = ("A target compares the median. “Ahead” and “behind” are said only of a peer that we were ahead of, or "
           "behind, in every round.")

_CARD = 550
"""The width of a card's plot on a wide screen, about."""


def save(path: Path, run: Run, comparison: Comparison | None = None) -> None:
    """Write the page. Raises `OSError`, and `SettingError` if matplotlib is not installed."""
    path.write_text(page(run, comparison), encoding="utf-8")


def page(run: Run, comparison: Comparison | None = None) -> str:
    """The page; with what changed since an earlier run, if it is given. Takes about a tenth of a second for each plot.
    Raises `SettingError` if matplotlib is not installed."""
    figures.require()
    results = [one for results in run.results.values() for one in results]
    looks, numbers = figures.styles(results), count()
    of = len(judged(results))
    met = f"{of - len(unmet(results))} of {of} targets met" if of else "no targets"
    good = "bad" if unmet(results) or run.failed else "good"
    sections = [("missed", "Targets not met", list(_missed(unmet(results)))),
                ("peers", "Beside each peer", list(_peers(results))),
                ("compared", "Since the earlier run", list(_compared(comparison)))]
    sections += [(f"of-{at}", name[:1].upper() + name[1:], list(_results(found, looks, numbers)))
                 for at, (name, found) in enumerate(run.results.items())]
    sections.append(("machine", "Measured on", list(_machine(run))))
    sections = [section for section in sections if section[2]]
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', '<head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Holdfast benchmarks: {met}</title>", f"<style>{style()}</style></head>", "<body>", "<header>",
        f'<h1>Holdfast benchmarks: <span class="{good}">{met}</span></h1>', *_head(run), "</header>",
        *_summary(results, comparison), "<nav>",
        *(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections),
        '<input type="search" id="filter" placeholder="Show only …" aria-label="Show only" hidden></nav>', "<main>",
        *(line for key, name, parts in sections
          for line in (f'<section id="{key}"><h2>{escape(name)}</h2>', *parts, "</section>")),
        "</main>", f"<script>{SCRIPT}</script>", "</body>", "</html>", ""])


# --- the top ---------------------------------------------------------------------------------------------------------


def _head(run: Run) -> Iterator[str]:
    of = run.machine
    yield (f'<p class="dim">{escape(_when(of["time"]))} · {of["cores"]} cores of {escape(of["cpu"])} · '
           f"{escape(of['file_system'])} · Python {escape(of['python'])} · took {_span(run.seconds)}</p>")
    if run.failed:
        yield f'<p class="warning bad">Failed, and so not all here: {escape(", ".join(run.failed))}.</p>'
    if said := busy(of):
        yield f'<p class="warning">{escape(said)}</p>'
    yield f"<p>{RATIO} {_LIMITS} Bars have a dot for each round.</p>"


def _when(time: str) -> str:
    """
    >>> _when("2026-11-29T16:21:05+00:00")
    '2026-11-29 16:21 UTC'
    """
    return f"{time[:10]} {time[11:16]} UTC"


def _span(seconds: float) -> str:
    """
    >>> _span(59.7), _span(601)
    ('60 s', '10 minutes')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _summary(results: Sequence[Result], comparison: Comparison | None) -> Iterator[str]:
    peers = [line for line in results if isinstance(line, Line) and line.ratio is not None]
    missed = len(unmet(results))
    ahead, behind = (sum(standing(line) == word for line in peers) for word in ("ahead", "behind"))
    boxes = [("good", len(judged(results)) - missed, "targets met"), ("bad" if missed else "", missed, "not met"),
             ("", ahead, "ahead in every round"), ("", behind, "behind in every round"),
             ("", len(peers) - ahead - behind, "neither of these")]
    if comparison is not None:
        counts = comparison.counts()
        boxes += [("", counts["better"], "better than before"),
                  ("bad" if counts["worse"] else "", counts["worse"], "worse than before")]
    yield '<div class="sum">'
    yield from (f'<div class="{kind}"><b>{of:,}</b>{name}</div>' for kind, of, name in boxes)
    yield "</div>"


def _missed(missed: Iterable[Line | Curve]) -> Iterator[str]:
    rows = []
    for one in missed:
        if isinstance(one, Curve):
            found = grown(one)
            beside = ""
        else:
            found = _spread(one.ratio, " ×") if one.ratio else _spread(one.figure, f" {one.unit}")
            beside = f', beside {escape(one.peer)}' if one.peer else ""
        rows.append(f'<tr class="one"><th scope="row">{escape(heading(one))}{beside}</th><td>{found}</td>'
                    f"<td>{escape(target(one))}</td></tr>")
    if rows:
        yield f'<table><tr><th></th><th>is</th><th>should be</th></tr>{"".join(rows)}</table>'


def _peers(results: Sequence[Result]) -> Iterator[str]:
    if not (peers := overall(results)):
        return
    yield ('<p class="dim">How many times as good as each peer we are, over all that was measured beside it more than '
           "once: a dot for each, and their geometric mean. Twice as good here and half as good there is 1.</p>")
    rows = "".join(f'<tr class="one"><th scope="row">{escape(peer.peer)}</th><td>{len(peer.advantages)}</td>'
                   f"<td><span>{number(peer.mean)} ×</span></td><td><span>{number(min(peer.advantages))} … "
                   f"{number(max(peer.advantages))} ×</span></td></tr>" for peer in peers)
    yield from _columns([figures.svg(peers, "peers", {}), "<table><tr><th>peer</th><th>figures</th><th>mean</th>"
                         f"<th>worst … best</th></tr>{rows}</table>"])


def _compared(comparison: Comparison | None) -> Iterator[str]:
    if comparison is None:
        return
    yield f"<p>Compared with the run of {escape(_when(comparison.time))}: {escape(counted(comparison))}</p>"
    yield from (f'<p class="warning">{escape(warning)}</p>' for warning in comparison.warnings)
    told = [change for change in comparison.changes if change.verdict in ("better", "worse")]
    if told:
        yield _changes(sorted(told, key=lambda change: change.verdict == "better"))
    if rest := [change for change in comparison.changes if change not in told]:
        yield f"<details><summary>{len(rest):,} others</summary>{_changes(rest)}</details>"
    for word, only in (("then", comparison.only_then), ("now", comparison.only_now)):
        if only:
            yield (f"<details><summary>{len(only):,} measured only {word}</summary><ul>"
                   f"{''.join(f'<li>{escape(what)}</li>' for what in only)}</ul></details>")


_VERDICTS: Mapping[Verdict, str] = {"better": '<b class="good">better</b>', "worse": '<b class="bad">worse</b>',
                                    "no difference": "none that the rounds show", "not judged": "not judged"}


def _changes(changes: Iterable[Change]) -> str:
    rows = []
    for change in changes:
        sign = " ×" if change.now.unit == "×" else f" {change.now.unit}"
        rows.append(f'<tr class="one"><th scope="row">{escape(change.now.what)}</th>'
                    f"<td>{_spread(change.then.samples, sign)}</td><td>{_spread(change.now.samples, sign)}</td>"
                    f"<td>{_VERDICTS[change.verdict]}</td></tr>")
    return f"<table><tr><th></th><th>then</th><th>now</th><th>difference</th></tr>{''.join(rows)}</table>"


# --- the results -----------------------------------------------------------------------------------------------------


def _results(results: Iterable[Result], looks: Mapping[str, figures.Style], numbers: Iterator[int]) -> Iterator[str]:
    shown = grouped(results)
    alone = [one for one in shown if isinstance(one, Group) and len(one.bars) == 1]
    plotted = [one for one in shown if one not in alone]
    yield from _columns([_card(one, figures.svg(one, f"p{next(numbers)}", looks)) for one in plotted])
    if alone:
        rows = "".join(f'<tr class="one"><th scope="row">{_title(line)}</th>'
                       f"<td>{_spread(line.figure, f' {line.unit}')}</td><td>{_target(line)}</td></tr>"
                       for group in alone for line in group.lines)
        yield f"<h3>Without a peer</h3><table><tr><th></th><th>figure</th><th>target</th></tr>{rows}</table>"


def _columns(cards: Sequence[str]) -> Iterator[str]:
    """Cards in two columns, each in the one that is shorter so far. On a narrow screen they are one column, in their
    order."""
    columns: tuple[list[str], list[str]] = ([], [])
    heights = [0.0, 0.0]
    for at, card in enumerate(cards):
        lower = heights.index(min(heights))
        columns[lower].append(f'<article class="one" style="order:{at}">{card}</article>')
        plot = re.search(r'viewBox="0 0 (\S+) (\S+)"', card)
        heights[lower] += 100 + (_CARD * float(plot[2]) / float(plot[1]) if plot else 0) + 50 * card.count("<tr")
    if cards:
        yield f'<div class="cards">{"".join(f"<div>{chr(10).join(column)}</div>" for column in columns)}</div>'


def _title(result: Result) -> str:
    note = f'<br><small class="dim">{escape(result.note)}</small>' if result.note else ""
    return escape(result.workload) + note


def _card(shown: Shown, plot: str) -> str:
    if isinstance(shown, Group):
        notes, table = dict.fromkeys(line.note for line in shown.lines if line.note), _lines(shown)
    elif isinstance(shown, Curve):
        notes, table = dict.fromkeys([shown.note] if shown.note else []), _costs(shown)
    else:
        notes, table = dict.fromkeys([shown.note] if shown.note else []), _percentiles(shown)
    said = f'<p class="dim">{escape("; ".join(notes))}</p>' if notes else ""
    return f"<h3>{escape(heading(shown))}</h3>{said}{plot}{table}"


def _lines(group: Group) -> str:
    rows = [f'<tr class="ours"><th scope="row">{escape(bar.name)}</th><td>{_spread(bar.samples)}</td><td></td></tr>'
            for bar in group.bars if bar.ours]
    for line in group.lines:
        if line.peer_figure is None:
            continue
        how = standing(line)
        word = f'<small class="{"good" if how == "ahead" else "bad"}">{how}</small> ' if how else ""
        aim = f"<br><small>target</small> {_target(line)}" if line.target is not None else ""
        rows.append(f'<tr><th scope="row">{escape(line.peer or "")}</th><td>{_spread(line.peer_figure)}</td>'
                    f"<td>{word}{_spread(line.ratio, ' ×')}{aim}</td></tr>")
    return f"<table><tr><th></th><th>{escape(group.unit)}</th><th>ratio</th></tr>{''.join(rows)}</table>"


def _costs(curve: Curve) -> str:
    verdict = f"<p>{escape(grown(curve))}{_aim(curve)}.</p>" if grown(curve) else ""
    heads = "".join(f"<th>{size:,}</th>" for size in curve.sizes)
    rows = "".join(f'<tr{_ours(at)}><th scope="row">{escape(name)}</th><td>{power(curve, name)}</td>'
                   f"{''.join(f'<td>{_spread(cost)}</td>' for cost in costs)}</tr>"
                   for at, (name, costs) in enumerate(curve.costs.items()))
    return (f'{verdict}<details><summary>Figures</summary><div class="wide"><table><tr><th>{escape(curve.unit)}, by '
            f"{escape(curve.along)}</th><th>grows</th>{heads}</tr>{rows}</table></div></details>")


def _aim(curve: Curve) -> str:
    return "" if curve.met is None else f": {_target(curve)}"


def _percentiles(latencies: Latencies) -> str:
    shares = [share for share in (0.5, 0.9, 0.99, 0.999, 1.0)
              if all(share in dict(pairs) for pairs in latencies.percentiles.values())]
    heads = "".join(f"<th>{share_name(share)}</th>" for share in shares)
    rows = "".join(f'<tr{_ours(at)}><th scope="row">{escape(name)}</th>'
                   f"{''.join(f'<td>{number(dict(pairs)[share])}</td>' for share in shares)}"
                   f"<td>{latencies.counts[name]:,}</td></tr>"
                   for at, (name, pairs) in enumerate(latencies.percentiles.items()))
    return (f'<div class="wide"><table><tr><th>ms</th>{heads}<th>calls</th></tr>{rows}</table></div>')


def _ours(at: int) -> str:
    return "" if at else ' class="ours"'


def _target(result: Line | Curve) -> str:
    if result.met is None:
        return f"<small>{escape(target(result))}</small>"
    kind, word = ("good", "met") if result.met else ("bad", "NOT MET")
    return f'<small>{escape(target(result))} <span class="{kind}">{word}</span></small>'


def _spread(samples: Samples | None, sign: str = "") -> str:
    """The median, and below it the lowest and highest."""
    said, _, span = escape(spread(samples, sign=sign)).partition(" (")
    return f"<span>{said}</span>" + (f"<br><small>{span.removesuffix(')')}</small>" if span else "")


def _machine(run: Run) -> Iterator[str]:
    of = run.machine
    load = ", ".join(f"{value:g}" for value in of["load"])
    rows = {"begun": _when(of["time"]), "took": _span(run.seconds), "processor": of["cpu"], "cores": of["cores"],
            "memory": of["memory"], "system": of["system"], "file system": of["file_system"],
            "load before": f"{load} over 1, 5 and 15 minutes", "Python": of["python"], "SQLite": of["sqlite"],
            **of["versions"]}
    work = {name.replace("_", " "): ", ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in run.scale.items() if value is not None}
    yield from _columns([f"<h3>{title}</h3><dl>" + "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()) + "</dl>"
        for title, facts in (("The machine", rows), ("How much was done", work))])
