"""A table for every medium: terminal, Markdown, HTML."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

NUMBER = re.compile(r"[+−-]?\d|–$")
# In the terminal a column of entries up to this long is never broken into lines.
SHORT = 20


@dataclass(frozen=True)
class Grid:
    """A table. A cell's first line says what it is about, further lines are details.

    note    what to know when reading it
    styles  how the terminal shows a first line that reads so: {"holds": "green"}
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)

    def __rich__(self) -> Table:
        """For the terminal: numbers flush right, long texts in lines of what is left of the width."""
        table = Table(
            title=self.title or None,
            caption=self.note or None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for name, *column in zip(self.header, *self.rows, strict=True):
            firsts = [cell.partition("\n")[0] for cell in column]
            number = any(firsts) and all(NUMBER.match(first) for first in firsts if first)
            short = all(len(line) <= SHORT for cell in column for line in cell.split("\n"))
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=short)
        for row in self.rows:
            table.add_row(*map(self.styled, row))
        return table

    def styled(self, cell: str) -> Text:
        """A cell in the terminal: the first line in its style, the details dim."""
        first, line, details = cell.partition("\n")
        return Text(first, style=self.styles.get(first, "")) + Text(line + details, style="dim")

    def markdown(self) -> str:
        """For a README or an issue."""
        lines = [f"| {' | '.join(row)} |" for row in (self.header, ("---",) * len(self.header), *self.rows)]
        return "\n".join([line.replace("\n", "<br>") for line in lines] + (["", self.note] if self.note else []))

    def html(self) -> str:
        """A section of a page, with its heading and note."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        cells = [[escape(cell).replace("\n", "<br>") for cell in row] for row in self.rows]
        rows = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
        return f'<h2>{escape(self.title)}</h2>\n<div class="wide">{table}</div>\n{note}'
