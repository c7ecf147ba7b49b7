"""A table from nothing to its page: resumed after a kill, nothing run twice, K3 enforced, no other folder touched."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_run import small_settings
from typer.testing import CliRunner, Result

from minibeft.checkpoints.tensors import read_json
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.reproduce.same import compare
from minibeft.reproduce.series import open_series
from minibeft.show.files import held
from minibeft.training.records import digest

pytestmark = pytest.mark.slow
SEEDS, ROWS = (0, 1), ("v", "q", "k", "none", "all")


def words(root: Path, table: str, out: Path, *more: str) -> list[str]:
    """The command on the small model: two epochs of 24 examples, two rates, two seeds."""
    small_settings(root)
    line = f"reproduce {table} --model {root}/model --data {root}/data --out {out} --seeds 0-1 --device cpu"
    line += " --examples 24 --epochs 2 --batch 8 --max-length 24 --rates 1e-3,1e-2 --held-out 20"
    return [*line.split(), *more]


def run(root: Path, table: str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, words(root, table, out, *more))


def timeless(run: dict) -> dict:
    """The part of a record that must not depend on when and how often the command was run."""
    return {name: value for name, value in run.items() if name != "seconds"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, dict]:
    """(root, folder, record) of `reproduce biases`, run without a break."""
    root = tmp_path_factory.mktemp("reproduce")
    result = run(root, "biases", root / "out")
    assert result.exit_code == 0, result.output
    return root, root / "out", read_json(root / "out" / "biases.json")


def test_every_row_seed_and_rate_is_there(done):
    _, folder, record = done
    cells = {(cell["row"], cell["rate"]): cell for cell in record["cells"]}
    assert set(cells) == {(row, rate) for row in ROWS for rate in ("protocol", "own")}
    for (row, rate), cell in cells.items():
        runs = [record["runs"][name] for name in cell["runs"]]
        assert [one["seed"] for one in runs] == list(SEEDS)
        assert cell["scores"] == pytest.approx([one["validation"]["accuracy"][-1] for one in runs], rel=1e-5)
        assert cell["learning_rate"] == (4e-4 if rate == "protocol" else best(record, row))
        assert all((folder / "runs" / name / "run.json").is_file() for name in cell["runs"])
    assert cells["v", "protocol"]["numbers"] == cells["none", "protocol"]["numbers"] + 2 * 16


def best(record: dict, row: str) -> float:
    return next(one["best"] for one in record["searches"] if one["row"] == row)


def test_the_rate_is_chosen_on_held_out_examples_with_the_same_budget(done):
    """Every row at every rate, on training examples that no run trains on; dev is not even read."""
    record = done[2]
    searched = [one for one in record["runs"].values() if one["held_out"]]
    assert {(one["terms"], one["learning_rate"]) for one in searched} == {(r, lr) for r in ROWS for lr in (1e-3, 1e-2)}
    assert all("held_out" in one and "validation" not in one for one in searched)
    for search in record["searches"]:
        assert max(score for _, score in search["scores"]) == dict(search["scores"])[search["best"]]


def test_b_k_is_the_head_alone_and_what_has_an_effect_is_not(done):
    """K3 on every pair of runs; with b_q in b_k's place the same comparison fails."""
    _, folder, record = done
    assert record["ok"]
    assert {(s["seed"], s["learning_rate"]) for s in record["same"]} >= {(0, 4e-4), (1, 4e-4), (0, 1e-3), (0, 1e-2)}
    for term, holds in (("k", True), ("q", False), ("v", False)):
        folders = tuple(folder / "runs" / f"{terms}-plain-low-0.0004-seed-0" for terms in ("none", term))
        records = tuple(read_json(one / "run.json") for one in folders)
        assert compare(("none", term), (records[0], records[1]), (folders[0], folders[1])).ok == holds


def test_a_head_that_differs_fails_the_command(done):
    """Planted: the head-only run ends a thousandth elsewhere in one number."""
    root, folder, _ = done
    file = folder / "runs" / "none-plain-low-0.0004-seed-1" / "trained.safetensors"
    record = file.with_name("run.json")
    before = {each: each.read_bytes() for each in (file, record)}
    tensors = load_file(file)
    tensors["classifier.weight"][0, 0] += 1e-3
    save_file(tensors, file)
    record.write_text(json.dumps(read_json(record) | {"written": digest([file])}))
    try:
        result = run(root, "biases", folder)
        wrong = [(s["learning_rate"], s["seed"]) for s in read_json(folder / "biases.json")["same"] if not s["ok"]]
    finally:
        for each, content in before.items():
            each.write_bytes(content)
    assert result.exit_code == 1
    assert wrong == [(4e-4, 1)]
    assert " NO " in result.output
    assert run(root, "biases", folder).exit_code == 0


def test_what_tables_share_is_not_run_again(done):
    """reparam's plain rows are those of biases, and b_k's forms are one run too (K3 with R2); ranking takes `all`."""
    root, folder, _ = done
    before = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/run.json")}
    result = run(root, "reparam", folder)
    assert result.exit_code == 0, result.output
    same = read_json(folder / "reparam.json")["same"]
    assert {(s["first"], s["second"]) for s in same} == {("k lora", f"k {form}") for form in ("vera", "vera1d", "dora")}
    result = run(root, "ranking", folder)
    assert result.exit_code == 0, result.output
    assert {file: file.stat().st_mtime_ns for file in before} == before
    ranking = read_json(folder / "ranking.json")
    assert ranking["drift"]["eps 1e-6"]["predictions_changed"] == 0
    assert [scores["v"] for scores in ranking["scores"]["mag_angle"]] != []


def children(process: int) -> list[int]:
    """Its processes, and theirs."""
    tasks = Path(f"/proc/{process}/task")
    own = [int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split()] if tasks.exists() else []
    return own + [pid for child in own for pid in children(child)]


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds child processes in /proc")
def test_a_killed_reproduction_resumes_without_losing_a_run(done, tmp_path):
    """SIGKILL with runs finished and runs under way: no process stays behind, and the next start does only the rest."""
    root, _, whole = done
    out = tmp_path / "killed"
    line = words(root, "biases", out, "--rates", "none", "--seeds", "0", "--jobs", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "minibeft", *line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and len(finished(out)) < 2:
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert workers
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    kept = {file: file.stat().st_mtime_ns for file in finished(out)}
    assert 2 <= len(kept) < len(ROWS)
    assert CliRunner().invoke(app, line).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    runs = read_json(out / "biases.json")["runs"]
    assert len(runs) == len(ROWS)
    assert {name: timeless(one) for name, one in runs.items()} == {name: timeless(whole["runs"][name]) for name in runs}


def test_a_kill_before_the_first_file_is_in_its_place(done, tmp_path, monkeypatch):
    """The folder holds the first words of a series and no series: the same command begins it."""

    def kill(_: int) -> None:
        raise KeyboardInterrupt

    settings = small_settings(done[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(KeyboardInterrupt):
            open_series(settings, tmp_path / "out", held_out=0).__enter__()
    assert os.listdir(tmp_path / "out") == [".series.json.new"]
    with open_series(settings, tmp_path / "out", held_out=0):
        assert os.listdir(tmp_path / "out") == ["series.json"]


def finished(out: Path) -> list[Path]:
    """The records of the runs that are complete."""
    return [file for file in out.glob("runs/*/run.json") if json.loads(file.read_text()).get("complete")]


class Loads(HTMLParser):
    """Whatever a page would fetch, and the words for its pictures."""

    def __init__(self):
        super().__init__()
        self.fetched: list[str] = []
        self.pictures: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        links = [found[name] for name in ("src", "href", "xlink:href", "data", "srcset") if found.get(name)]
        self.fetched += [link for link in links if link and not link.startswith(("#", "data:"))]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "object") else []
        if tag in ("svg", "img"):
            self.pictures.append(found.get("aria-label") or found.get("alt"))


@pytest.mark.parametrize("table", ["biases", "reparam", "ranking"])
def test_the_page_needs_nothing_else(done, table):
    root, folder, _ = done
    assert run(root, table, folder).exit_code == 0
    text = (folder / f"{table}.html").read_text(encoding="utf-8")
    page = Loads()
    page.feed(text)
    assert page.fetched == []
    assert "http" not in text
    assert "@import" not in text
    assert page.pictures
    assert all(page.pictures)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    assert {name.removeprefix("#") for name in re.findall(r'href="(#[^"]*)"', text)} <= set(ids)
    assert "currentColor" in text


def test_the_markdown_shows_the_paper_beside_the_measured(done):
    root, folder, _ = done
    assert run(root, "biases", folder).exit_code == 0
    text = (folder / "biases.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| v |"))
    assert row.split(" | ")[2] == "85.8"
    assert "0.5" in text.partition("cannot give less than")[2][:8]  # two seeds: 2 of 4 patterns


def test_what_cannot_be_is_one_line(done, tmp_path):
    root, folder, _ = done
    before = {file: file.read_bytes() for file in folder.rglob("*.json")}
    for table, out, more, message in (
        ("table9", tmp_path / "new", (), "table9: is no table; choose among biases, reparam"),
        ("biases", folder, ("--pad", "longest"), "holds another reproduction (pad is 'bucket' there"),
        ("biases", folder, ("--examples", "40"), "holds another reproduction (examples is 24 there, 40 here"),
        ("biases", root / "data", (), "is not empty and holds no series.json"),
        ("biases", tmp_path / "new", ("--rates", "fast"), "--rates fast: give numbers between 0 and 1"),
        ("biases", tmp_path / "new", ("--held-out", "80"), "fewer than the 24 examples and 80 held out"),
    ):
        result = run(root, table, out, *more)
        assert result.exit_code == 2 or isinstance(result.exception, BadInput), result.output
        said = f"{result.output}{result.exception}"
        assert message in " ".join(said.split())
    assert {file: file.read_bytes() for file in folder.rglob("*.json")} == before
    assert not (tmp_path / "new").exists()


def test_two_at_work_in_one_folder(done):
    """The operating system holds the lock: as long as this process has the folder open, no longer."""
    root, folder, _ = done
    with held(folder):
        result = run(root, "biases", folder)
    assert "another minibeft is at work there" in " ".join(f"{result.output}{result.exception}".split())
