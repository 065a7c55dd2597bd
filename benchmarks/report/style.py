"""How the page of HTML looks, and the few lines of script that filter it."""

from __future__ import annotations

from .figures import DARK, LIGHT

_STYLE = """
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; max-width: 76rem; padding: 1.75rem 1rem 4rem; background: var(--back); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .35rem; line-height: 1.35; }
section > h3 { margin-top: 1.5rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
small { font-size: .8rem; }
.dim, dt { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); }
.warning { background: var(--warn-box); color: var(--warn); border-radius: .5rem; padding: .5rem .9rem; }
.warning.bad { color: var(--bad); }
.sum { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .6rem; margin: 1.25rem 0; }
.sum div { background: var(--box); border-radius: .5rem; padding: .6rem .9rem; color: var(--dim); line-height: 1.3; }
.sum b { display: block; font-size: 1.5rem; font-weight: 600; color: var(--ink); }
.sum .good b { color: var(--good); } .sum .bad b { color: var(--bad); }
nav { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; }
nav a { color: var(--ink); text-decoration: none; border: 1px solid var(--line); border-radius: 1rem;
        padding: .15rem .75rem; font-size: .9rem; }
nav a:hover { border-color: var(--c0); }
nav input { font: inherit; font-size: .9rem; color: var(--ink); background: var(--paper); min-width: 10rem; flex: 1;
            max-width: 20rem; border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .75rem; }
.cards { display: flex; gap: 1rem; }
.cards > div { flex: 1; min-width: 0; }
article { background: var(--paper); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem;
          margin-bottom: 1rem; }
article p { font-size: .85rem; margin: 0 0 .5rem; }
svg { display: block; width: 100%; height: auto; margin: .25rem 0 .5rem; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, sans-serif; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; line-height: 1.35; }
th, td { padding: .35rem 0 .35rem .75rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; }
tr:first-child th { border-top: 0; color: var(--dim); font-weight: 400; font-size: .8rem; }
td, tr:first-child th:nth-child(n+2) { overflow-wrap: normal; }
td span, td small { white-space: nowrap; }
section > table { max-width: 60rem; }
th[scope] { font-weight: 400; }
.ours > th, .ours span { font-weight: 600; }
td small { color: var(--dim); }
td small.good { color: var(--good); } td small.bad { color: var(--bad); }
.wide { overflow-x: auto; }
.wide td { white-space: nowrap; }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--dim); font-size: .875rem; }
dl { display: grid; grid-template-columns: fit-content(45%) minmax(0, 1fr); gap: .1rem 1rem; margin: 0;
     font-size: .9rem; }
dd { margin: 0; }
@media (max-width: 56rem) {
  .cards { flex-direction: column; gap: 0; } .cards > div { display: contents; }
}
@media (max-width: 30rem) {
  article { padding: .75rem .7rem; }
  table { font-size: .8rem; } small { font-size: .72rem; }
  th, td { padding-left: .45rem; } td small { white-space: normal; }
}
"""
_PAGE_LIGHT = {"back": "#f7f8f9", "box": "#eceff2", "line": "#d9dee3", "good": "#18794e", "bad": "#c62a2f",
               "warn": "#7a4d00", "warn-box": "#fff3d0"}
_PAGE_DARK = {"back": "#0f1114", "box": "#1d2024", "line": "#30353c", "good": "#4cc38a", "bad": "#ff8286",
              "warn": "#f1b84b", "warn-box": "#2b2413"}

SCRIPT = """
const box = document.getElementById("filter");
box.hidden = false;
box.oninput = () => {
  const words = box.value.toLowerCase().split(/\\s+/);
  for (const one of document.querySelectorAll(".one"))
    one.hidden = !words.every(word => one.textContent.toLowerCase().includes(word));
};
"""


def style() -> str:
    """The style sheet, with the colours of the plots for light and dark."""
    light, dark = (" ".join(f"--{name}: {color};" for name, color in colors.items())
                   for colors in ({**LIGHT, **_PAGE_LIGHT}, {**DARK, **_PAGE_DARK}))
    return (f":root {{ color-scheme: light dark; {light} }}\n"
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}{_STYLE}")
