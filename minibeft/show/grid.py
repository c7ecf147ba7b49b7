"""A table for every medium: terminal, Markdown, HTML."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from minibeft.show.console import shown

NUMBER = re.compile(r"[+−-]?\d|–$")
# Entries up to this long are short: in the terminal they are not broken into lines while others can be.
SHORT = 20


@dataclass(frozen=True)
class Grid:
    """A table. A cell's first line says what it is about, further lines are details.

    note    what to know when reading it
    styles  the terminal's style for a first line with exactly this text: {"holds": "green"}
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """For the terminal: numbers flush right, headings and long texts broken into lines to fit its width."""
        gap, widths = self.widths(options.max_width)
        table = Table(
            title=Text(f"\n{shown(self.title)}") if self.title else None,
            caption=Text(shown(self.note)) if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, gap - 1, 0, 0),
        )
        for width, name, *cells in zip(widths, self.header, *self.rows, strict=True):
            firsts = [first for cell in cells if (first := cell.partition("\n")[0])]
            number = bool(firsts) and all(map(NUMBER.match, firsts))
            table.add_column(Text(shown(name)), justify="right" if number else "left", width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*map(self.styled, row, widths))
        yield table

    def widths(self, room: int) -> tuple[int, list[int]]:
        """The gap between columns and the width of each. Where there is too little room the widest gives way first, and
        short entries are not broken unless nothing else helps."""
        columns = [[name, *cells] for name, *cells in zip(self.header, *self.rows, strict=True)]
        words = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
        lines = [[len(line) for cell in column[1:] for line in cell.split("\n")] for column in columns]
        whole = [max(len(column[0]), *sizes, 1) for column, sizes in zip(columns, lines, strict=True)]
        unbroken = [max(word, *(s for s in sizes if s <= SHORT), 1) for word, sizes in zip(words, lines, strict=True)]
        short = [1 if word > SHORT else word for word in words]
        for gap, least in ((2, unbroken), (1, unbroken), (1, short)):
            widths = list(whole)
            while sum(widths) + gap * (len(widths) - 1) > room:
                over = [i for i, width in enumerate(widths) if width > least[i]]
                if not over:
                    break
                widths[max(over, key=lambda i: widths[i])] -= 1
            else:
                return gap, widths
        return 1, short

    def styled(self, cell: str, width: int) -> Text:
        """A cell in the terminal: the first line in its style, the details dim."""
        first, line, details = shown(cell).partition("\n")
        style = self.styles.get(first, "")
        return Text(folded(first, width), style=style) + Text(line + folded(details, width), style="dim")

    def markdown(self) -> str:
        """For a README or an issue."""
        rows = [[as_markdown(cell) for cell in row] for row in (self.header, *self.rows)]
        rows.insert(1, ["---"] * len(self.header))
        note = ["", as_markdown(self.note)] if self.note else []
        return "\n".join([f"| {' | '.join(row)} |" for row in rows] + note)

    def html(self) -> str:
        """A section of a page, with its heading and note."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        cells = [[escape(cell).replace("\n", "<br>") for cell in row] for row in self.rows]
        rows = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
        return f'<h2>{escape(self.title)}</h2>\n<div class="wide">{table}</div>\n{note}'


def folded(text: str, width: int) -> str:
    """Long names go on in the next line after one of their dots, slashes, dashes or underscores, where one fits."""
    joint = re.compile(rf"(?=\S{{{width + 1}}})\S{{1,{width - 1}}}[./_-]") if width > 1 else None
    return re.sub(joint, lambda part: f"{part[0]}\n", text) if joint else text


def as_markdown(text: str) -> str:
    """Text in Markdown, where it is no HTML, no link, and not the end of a cell."""
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", shown(text)))
    return text.replace("|", "\\|").replace("](", "]\\(").replace("\n", "<br>")
