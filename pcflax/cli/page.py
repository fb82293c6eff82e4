"""One HTML page that needs no other file: what it shows is in it, for light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --page: #fff; --faint: #667085; --line: #d5dae2;
  --box: #f4f6f9; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ef; --page: #14181f; --faint: #98a2b3;
  --line: #333c4a; --box: #1d232d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.faint, figcaption { color: var(--faint); font-size: .875rem; }
.verdict { border-left: .25rem solid var(--line); padding: .25rem .75rem; }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; max-width: 34rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left;
  vertical-align: top; overflow-wrap: normal; }
td.sentence { min-width: 16rem; }
pre { background: var(--box); border-radius: .3rem; padding: .6rem .75rem; white-space: pre-wrap;
  font-size: .875rem; }
summary { cursor: pointer; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def element(name: str, text: str, kind: str = "") -> str:
    """Return an element with text in it.

    >>> element("p", "a < b", "faint")
    '<p class="faint">a &lt; b</p>'
    """
    told = f' class="{kind}"' if kind else ""
    return f"<{name}{told}>{escape(text)}</{name}>"


def panels(figures: Sequence[tuple[str, str]]) -> str:
    """Return figures (SVG, what it shows) side by side where there is room."""
    shown = (f"<figure>{svg}{element('figcaption', told)}</figure>" for svg, told in figures)
    return f'<div class="panels">{"".join(shown)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where it is too wide; a column without a name has sentences."""
    head = "".join(element("th", name.strip()) for name in columns)
    body = ""
    for row in rows:
        cells = zip(columns, row, strict=True)
        told = (element("td", cell, "" if name.strip() else "sentence") for name, cell in cells)
        body += f"<tr>{''.join(told)}</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """Return what is shown when it is asked for."""
    return f"<details>{element('summary', title)}{content}</details>"
