"""Tables lose nothing in a narrow terminal, JSON keeps every value, and a page needs nothing else."""

import io
import json

import pytest
from evidence import ROOT, record
from rich.console import Console

from minibeft.benchmarks.report import memory_grid
from minibeft.reproduce.reproduce import shown
from minibeft.show.files import write_json
from minibeft.show.grid import Grid
from minibeft.show.page import page
from minibeft.show.record import made_by


def printed(grid: Grid, width: int) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print(grid)
    return file.getvalue().splitlines()


def grids() -> list[Grid]:
    """Real tables, from committed records, and one that does not fit."""
    found = [memory_grid(record("bench-memory"))]
    for name in ("biases", "reparam", "ranking"):
        found += shown(record(f"reproduce-{name}"))[0]
    return [*found, Grid("long", ("name", "why"), [("x" * 90, "because\nof this")])]


@pytest.mark.parametrize("width", [80, 140])
def test_every_letter_of_a_table_is_printed(width):
    for grid in grids():
        lines = printed(grid, width)
        assert max(map(len, lines)) <= width
        letters = sorted("".join([*grid.header, *(cell for row in grid.rows for cell in row)]).replace(" ", ""))
        body = lines[next(i for i, line in enumerate(lines) if line.strip() == grid.title.strip()) + 1 :]
        body = body[: len(body) - sum(1 for _ in printed(Grid("", (), [], grid.note), width))] if grid.note else body
        found = "".join(body).replace(" ", "").replace("─", "")
        assert all(found.count(letter) >= letters.count(letter) for letter in set(letters) - {"\n"}), grid.title


def test_numbers_are_flush_right_and_short_entries_whole():
    lines = printed(Grid("", ("a", "b"), [("1", "one"), ("10", "ten")]), 80)
    assert lines[-2:] == [" 1  one", "10  ten"]


def test_the_three_media_say_the_same():
    grid = Grid("t", ("a", "b"), [("1 < 2", "x\ny")], "note")
    assert grid.markdown() == "| a | b |\n| --- | --- |\n| 1 < 2 | x<br>y |\n\nnote"
    assert "<td>1 &lt; 2</td><td>x<br>y</td>" in grid.html()


def test_json_is_what_it_was_with_numbers_on_a_line(tmp_path):
    value = {
        "text": "[\n 1,  2\n]",
        "numbers": [1, -2.5e-07, None, True],
        "words": ["a  b", "[ c ]"],
        "deep": [[1], []],
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '"numbers": [1, -2.5e-07, null, true]' in text
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("name", ["biases", "reparam", "regimes", "rates", "ranking"])
def test_the_committed_pages_say_what_their_records_say(name):
    """Every table of the page again; its pictures are matplotlib's, whose bytes its version decides."""
    found = record(f"reproduce-{name}")
    tables, _ = shown(found)
    title = f"{found['table']}: {found['model']} on {found['task']}"
    drawn = page(title, tables, [], made_by(found))
    text = (ROOT / "records" / f"reproduce-{name}.html").read_text(encoding="utf-8")
    head, _, _ = drawn.partition('<p class="note">' + made_by(found)[:20])
    assert text.startswith(head.rstrip())


def test_long_names_break_at_their_joints():
    """Each line of a name in a narrow column ends where a part of it ends; a name without joints is cut anywhere."""
    name = "encoder.layer.{i}.attention.self.query.bias"
    lines = printed(Grid("", ("term", "name"), [("q", name), ("k", "x" * 60)]), 40)
    assert [line.split()[-1] for line in lines[2:4]] == ["encoder.layer.{i}.attention.self.", "query.bias"]
    assert "".join("".join(lines[4:]).split()) == "k" + "x" * 60
