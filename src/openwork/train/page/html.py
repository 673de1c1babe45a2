"""The frame of the page: sections, figures, tables and legends, with everything that a user named escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import openwork
from openwork.train.page.colours import Look, looks
from openwork.train.runs import Run

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 74rem; padding: 1rem; background: #fff; color: #1a1a1a; line-height: 1.45;
       font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: .2rem 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; max-width: 60rem; overflow-wrap: anywhere; }
nav, .note { color: #555; font-size: .9rem; }
nav a { margin-right: .8rem; white-space: nowrap; display: inline-block; }
a { color: #0059b3; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
figure { margin: .4rem 0; flex: 1 1 26rem; min-width: 0; max-width: 34rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e5e5e5; }
th { vertical-align: bottom; font-weight: 600; white-space: normal; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
ul.legend { list-style: none; margin: .3rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem;
            font-size: .9rem; }
ul.legend li { overflow-wrap: anywhere; }
.key { width: 1.9rem; height: .7rem; vertical-align: middle; margin-right: .3rem; }
@media (max-width: 40rem) { figure { flex-basis: 100%; } body { padding: .7rem; } }
"""


@dataclass(frozen=True)
class Section:
    """One theme of the page.

    Args:
        name: for links, a word.
        title: its heading.
        text: what is shown, as HTML.
        keyed: whether its figures have the runs' colours, and want the legend beside them.
    """

    name: str
    title: str
    text: str
    keyed: bool = False


def page(runs: Sequence[Run], done: Sequence[Section]) -> str:
    """The whole page.

    Args:
        runs: those that it is about.
        done: its sections, in order.
    """
    names = [run.title for run in runs if not run.is_dense] or [run.title for run in runs]
    title = "Training report: " + (", ".join(names) if len(names) <= 3 else f"{len(names)} runs")
    links = "".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in done)
    keys = legend(runs)
    bodies = "\n".join(
        f'<section id="{section.name}">\n<h2>{escape(section.title)}</h2>\n'
        f"{keys if section.keyed else ''}{section.text}\n</section>"
        for section in done
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{keys}
<nav>{links}</nav>
</header>
<main>
{bodies}
</main>
<footer><p class="note">openwork {escape(openwork.__version__)}</p></footer>
</body>
</html>
"""


def legend(runs: Sequence[Run]) -> str:
    """The runs with their colours."""
    items = "".join(f"<li>{key(look)}{escape(run.title)}</li>" for run, look in zip(runs, looks(runs), strict=True))
    return f'<ul class="legend">{items}</ul>'


def key(look: Look) -> str:
    """A short piece of a run's line."""
    dashes = ' stroke-dasharray="6 3"' if look.dashed else ""
    fill = "#fff" if look.dashed else look.colour
    return (
        f'<svg class="key" viewBox="0 0 30 10" aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" stroke="{look.colour}" '
        f'stroke-width="2"{dashes}/><circle cx="15" cy="5" r="3" fill="{fill}" stroke="{look.colour}"/></svg>'
    )


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph of plain text."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{escape(text)}</p>"


def figures(panels: Sequence[tuple[str, str]]) -> str:
    """Pairs of a caption and an SVG element, side by side where there is room."""
    held = "".join(
        f'<figure role="group" aria-label="{escape(caption)}"><figcaption>{escape(caption)}</figcaption>{svg}</figure>'
        for caption, svg in panels
    )
    return f'<div class="figures">{held}</div>'


def table(headings: Sequence[str], rows: Sequence[tuple[Look | None, Sequence[str]]]) -> str:
    """Rows of plain text, each after the key of its run."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{key(look) if look is not None and not i else ''}{escape(cell)}</td>" for i, cell in enumerate(cells))
        + "</tr>"
        for look, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
