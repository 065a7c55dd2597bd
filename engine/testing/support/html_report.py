"""A report of `check_engine` as one page of HTML, to hand to somebody: it needs no other file and no network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

from .growth import Growth
from .never_ran import said
from .report import Fault, Report, Tried

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --dim: #5b6470; --back: #fcfcfd; --box: #f1f3f5; --line: #d9dee3;
        --good: #18794e; --bad: #c62a2f; --warn: #8f5a00; --warn-box: #fff7e0;
        --lines: #2563eb; --memory: #b4540a; --moved: #0d7f6e; --seconds: #9333ea; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ea; --dim: #9aa4ae; --back: #131518; --box: #1d2024; --line: #33383e;
          --good: #4cc38a; --bad: #ff7a7f; --warn: #f1b84b; --warn-box: #2b2413;
          --lines: #7ab0ff; --memory: #ffa057; --moved: #3fcfb4; --seconds: #c99bff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .25rem 0 .75rem; }
.dim, dt { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.sum { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.sum div { background: var(--box); border-radius: .5rem; padding: .6rem .9rem; color: var(--dim); line-height: 1.3; }
.sum b { display: block; font-size: 1.5rem; font-weight: 600; color: var(--text); }
.sum .good b { color: var(--good); } .sum .bad b { color: var(--bad); } .sum .warn b { color: var(--warn); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dd { margin: 0; }
pre { background: var(--box); border-radius: .5rem; padding: .75rem 1rem; white-space: pre-wrap; margin: .5rem 0;
      font: .85rem/1.45 ui-monospace, monospace; }
.fault { border-left: .25rem solid var(--bad); padding-left: 1rem; margin: 1rem 0 1.5rem; }
.untried { background: var(--warn-box); border-radius: .5rem; padding: .5rem 1rem; }
.untried p { margin: .4rem 0; }
details { border-top: 1px solid var(--line); } details:last-of-type { border-bottom: 1px solid var(--line); }
summary { padding: .6rem 0; cursor: pointer; font-weight: 600; }
.check { padding: .4rem 0; border-top: 1px solid var(--line); }
.check p { margin: 0; }
.check .dim { font-size: .85rem; }
code { font: .85em ui-monospace, monospace; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
table { width: 100%; border-collapse: collapse; font-size: .8rem; line-height: 1.5; color: var(--dim); }
th { font-weight: 400; text-align: left; }
td:nth-child(n+2), th:nth-child(n+2) { text-align: right; white-space: nowrap; }
td i { display: inline-block; width: .7rem; height: .2rem; margin-right: .4rem; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; margin: .25rem 0; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
"""
_MEASURES = {"lines": "lines of Python", "memory": "memory, bytes", "moved": "files, bytes", "seconds": "CPU, seconds"}
_COUNTED = {"history": "transactions", "size": "things"}
_WIDTH, _HEIGHT, _LEFT, _BELOW, _TOP = 280, 150, 46, 20, 14


def save(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    """Write a report to files, which may be pipes. Raises `OSError`."""
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if html_file is not None:
        html_file.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The page."""
    verdict = "every check holds" if report.ok else f"{_many(len(report.faults), 'check')} broken"
    of = report.circumstances
    title = f"{report.engine}: {verdict}"
    parts = [
        "<!DOCTYPE html>", '<html lang="en">', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", "<header>",
        f"<h1>{escape(report.engine)}: <span class={'good' if report.ok else 'bad'}>{verdict}</span></h1>",
        f"<p class=dim>{escape(' '.join((of.engine, of.version)).strip())}, tried by the contract suites of Holdfast "
        f"{escape(of.holdfast)} on {escape(of.python)}, {escape(of.time[:10])}, profile {escape(of.profile)}</p>",
        "</header>", "<main>", *_summary(report), *_faults(report.faults), *_untried(report),
        *_tried(report), *_checks(report), *_growth(report.growth), *_circumstances(report), "</main>", "</html>", ""]
    return "\n".join(parts)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _summary(report: Report) -> Iterator[str]:
    yield "<div class=sum>"
    yield f"<div class=good><b>{len(report.passed)}</b>hold</div>"
    yield f"<div class={'bad' if report.faults else 'none'}><b>{len(report.faults)}</b>broken</div>"
    yield f"<div><b>{len(report.skipped)}</b>do not apply</div>"
    lacking = len(report.untried) + len(report.never_ran)
    yield f"<div class={'warn' if lacking else 'none'}><b>{lacking}</b>not tried</div>"
    yield "</div>"


def _faults(faults: list[Fault]) -> Iterator[str]:
    if faults:
        yield "<h2>What is broken</h2>"
    for fault in faults:
        yield (f"<section class=fault><h3 class=bad>{_name(fault.check)}</h3><p>{_prose(fault.property)}</p>"
               f"<pre>{escape(fault.message)}</pre></section>")


def _untried(report: Report) -> Iterator[str]:
    lacking = [(_prose(what), _prose(why)) for what, why in report.untried.items()]
    lacking += [(f"lines of {escape(file)} that never ran", said(lines)) for file, lines in report.never_ran.items()]
    if lacking:
        yield "<h2>What was not tried</h2><div class=untried>"
        yield from (f"<p><b class=warn>{what}</b>: {why}</p>" for what, why in lacking)
        yield "</div>"


def _tried(report: Report) -> Iterator[str]:
    figures = {"examples": sum(check.examples for check in report.tried), **report.figures}
    yield "<h2>How much was tried</h2><dl>"
    yield from (f"<dt>{escape(what)}</dt><dd>{number:,}</dd>" for what, number in figures.items())
    yield f"<dt>time</dt><dd>{sum(check.seconds for check in report.tried):,.0f} s</dd></dl>"


def _checks(report: Report) -> Iterator[str]:
    yield "<h2>What was proved</h2>"
    for contract, checks in groupby(report.tried, lambda check: check.check.partition(".")[0]):
        among = list(checks)
        hold = sum(check.outcome == "holds" for check in among)
        yield f"<details><summary>{escape(contract)}: {hold} of {len(among)} hold</summary>"
        yield from (_check(check, report.skipped.get(check.check, "")) for check in among)
        yield "</details>"


def _check(check: Tried, why: str) -> str:
    mark = {"holds": "<span class=good>holds</span>", "broken": "<span class=bad>broken</span>",
            "does not apply": "does not apply"}[check.outcome]
    examples = f", {_many(check.examples, 'example')}" if check.examples else ""
    how = f": {_prose(why)}" if why else f"{examples}, {check.seconds:.1f} s"
    return (f"<div class=check><p>{_prose(check.property)}</p>"
            f"<p class=dim>{mark}{how} · <code>{_name(check.check)}</code></p></div>")


def _circumstances(report: Report) -> Iterator[str]:
    of = report.circumstances
    rows = {"engine": of.engine, "version": of.version or "not installed as a package", "formats": of.formats,
            "Holdfast": of.holdfast, "Python": of.python, "machine": of.machine, "begun": of.time,
            "profile": of.profile, "seed": "another for each check" if of.seed is None else str(of.seed)}
    yield "<h2>Circumstances</h2><dl>"
    yield from (f"<dt>{what}</dt><dd>{escape(value)}</dd>" for what, value in rows.items())
    yield "</dl>"


def _prose(text: str) -> str:
    """Text in which code stands in backquotes."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _name(check: str) -> str:
    """Where a long name may break."""
    return escape(check).replace("_", "_<wbr>").replace(".", ".<wbr>")


# --- curves ----------------------------------------------------------------------------------------------------------


def _growth(growth: list[Growth]) -> Iterator[str]:
    if growth:
        yield ("<h2>How costs grow</h2><p class=dim>How many times as much each costs as at first, by how many times "
               "as long the history or as large the state is, both logarithmic. The dashed line grows in proportion: "
               "its exponent is 1. What is flat has 0.</p><div class=curves>")
        yield from map(_figure, growth)
        yield "</div>"


def _figure(grown: Growth) -> str:
    measures = [name for name in _MEASURES if all(getattr(cost, name) for _, cost in grown.points)]
    (_, first), (_, last) = grown.points[0], grown.points[-1]
    rows = "".join(f"<tr><td><i style='background:var(--{name})'></i>{_MEASURES[name]}</td>"
                   f"<td>{_short(getattr(first, name))} to {_short(getattr(last, name))}</td>"
                   f"<td>{round(grown.exponents.get(name, 0.0), 1) + 0.0:.1f}</td></tr>" for name in measures)
    return (f"<figure><figcaption><b>{escape(grown.call)} against {escape(grown.against)}</b></figcaption>"
            f"{_curves(grown, measures)}<table><tr><th>of each call</th><th></th><th>exponent</th></tr>{rows}</table>"
            "</figure>")


def _curves(grown: Growth, measures: list[str]) -> str:
    counts = [count for count, _ in grown.points]
    xs = [math.log10(count / counts[0]) for count in counts]
    lines = {name: [math.log10(getattr(cost, name) / getattr(grown.points[0][1], name)) for _, cost in grown.points]
             for name in measures}
    most = max(xs[-1], *(max(ys) for ys in lines.values()), 1e-3)
    least = min(0.0, *(min(ys) for ys in lines.values()))
    right, floor = _WIDTH - 12, _HEIGHT - _BELOW

    def place(x: float, y: float) -> str:
        return (f"{_LEFT + x / (xs[-1] or 1) * (right - _LEFT):.1f},"
                f"{floor - 4 - (y - least) / (most - least) * (floor - 4 - _TOP):.1f}")

    drawn = "".join(f'<polyline points="{" ".join(place(x, y) for x, y in zip(xs, ys, strict=True))}" fill="none" '
                    f'stroke="var(--{name})" stroke-width="2"/>' for name, ys in lines.items())
    levels = "".join(f'<text x="{_LEFT - 6}" y="{float(place(0, y).split(",")[1]) + 4:.1f}" text-anchor="end">'
                     f"×{10**y:,.0f}</text>" for y in (0.0, most))
    return (f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><path d="M{_LEFT} {_TOP - 6}V{floor}H{right}" '
            f'fill="none" stroke="var(--line)"/><polyline points="{place(0, 0)} {place(xs[-1], xs[-1])}" fill="none" '
            f'stroke="var(--dim)" stroke-dasharray="3 4"/>{drawn}{levels}<text x="{_LEFT}" y="{_HEIGHT - 5}">'
            f'{counts[0]:,}</text><text x="{right}" y="{_HEIGHT - 5}" text-anchor="end">{counts[-1]:,} '
            f"{_COUNTED.get(grown.against, '')}</text></svg>")


def _short(value: float) -> str:
    """
    >>> _short(1234567.0), _short(1234.0), _short(12.3), _short(0.00042)
    ('1.2M', '1.2k', '12', '420µ')
    """
    units = ((1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
    factor, unit = next((one for one in units if value >= one[0]), units[-1])
    digits = 0 if value >= 10 * factor or value == factor * round(value / factor) else 1
    return f"{value / factor:.{digits}f}{unit}"
