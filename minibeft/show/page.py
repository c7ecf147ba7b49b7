"""Tables and plots as one HTML page that needs nothing else: no font, script or picture from elsewhere."""

from collections.abc import Iterable
from html import escape

from minibeft.show.files import MARK
from minibeft.show.grid import Grid, as_markdown
from minibeft.show.plot import Plot

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8886; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; }
svg { width: 100%; height: auto; }
.note { opacity: .75; font-size: .9em; overflow-wrap: anywhere; }
""".strip()


def page(
    title: str,
    grids: Iterable[Grid],
    plots: Iterable[Plot],
    note: str,
    *,
    style: str = "",
    intro: str = "",
    script: str = "",
) -> str:
    """The whole page. style, intro, script: its own CSS, HTML below the title, and JavaScript."""
    parts = [grid.html() for grid in grids] + [figure(plot) for plot in plots]
    return "\n".join(
        (
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="{MARK}">',
            f"<style>{STYLE}{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *filter(None, [intro]),
            *parts,
            f'<p class="note">{escape(note)}</p>',
            *(f"<script>{text}</script>" for text in filter(None, [script])),
            "</body></html>\n",
        )
    )


def figure(plot: Plot) -> str:
    """A plot that says in words what it shows to those who do not see it."""
    svg = plot.svg.replace("<svg", f'<svg role="img" aria-label="{escape(plot.alt)}"', 1)
    return f"<figure><h2>{escape(plot.title)}</h2>\n{svg}\n</figure>"


def markdown(title: str, grids: Iterable[Grid], note: str) -> str:
    """The same tables as Markdown."""
    parts = [f"## {as_markdown(grid.title)}\n\n{grid.markdown()}" for grid in grids]
    return "\n\n".join([f"# {as_markdown(title)}", *parts, as_markdown(note)]) + "\n"
