"""A record as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from html import escape

from minibeft.reproduce.plots import Plot
from minibeft.reproduce.report import Grid, Record, made_by

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8886; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; }
svg { width: 100%; height: auto; }
.note { opacity: .75; font-size: .9em; }
""".strip()


def page(record: Record, grids: list[Grid], plots: list[Plot]) -> str:
    """The whole page."""
    title = f"{record['table']}: {record['model']} on {record['task']}"
    parts = [section(grid) for grid in grids] + [figure(plot) for plot in plots]
    return "\n".join(
        (
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            f'<p class="note">{escape(made_by(record))}</p>',
            "</body></html>\n",
        )
    )


def section(grid: Grid) -> str:
    """A table with its heading and note."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in grid.header)
    rows = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in grid.rows)
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    return f'<h2>{escape(grid.title)}</h2>\n<div class="wide">{table}</div>\n{note}'


def figure(plot: Plot) -> str:
    """A plot that says in words what it shows to those who do not see it."""
    svg = plot.svg.replace("<svg", f'<svg role="img" aria-label="{escape(plot.alt)}"', 1)
    return f"<figure><h2>{escape(plot.title)}</h2>\n{svg}\n</figure>"
