"""bench curves: the operations beside each time are those that the work does, and the lines find what was planted."""

import json

import pytest
import torch
import torch.nn.functional as F
from counted_once import count_weights_once
from small_run import make_model
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from minibeft.benchmarks import curves, train
from minibeft.benchmarks.curves import Axis, Work, measure, render
from minibeft.checkpoints.tensors import read_json
from minibeft.cli.main import app
from minibeft.models.packed import frozen
from minibeft.models.packed.sets import Sets
from minibeft.show.files import wrote


@pytest.fixture
def raw(tmp_path):
    return read_json(make_model(tmp_path / "model") / "config.json")


@pytest.mark.parametrize("number", range(5))
def test_the_limit_counts_the_products_that_the_work_does(number, raw, monkeypatch):
    """As many runs, layers, … as its axis says, but for a product of the classifier, whose weight trains. torch counts
    neither oneDNN's products nor those that are added in place; Q Kᵀ is counted once."""
    count_weights_once(monkeypatch)
    monkeypatch.setattr(frozen, "has_onednn", lambda: False)
    monkeypatch.setattr(Sets, "linear", lambda sets, x, weight: F.linear(x, weight) + sets.picked(len(x)))
    axis = curves.axes(raw, 2)[number]
    counts = []
    for value in axis.values[:2]:
        work = axis.work(raw, value)
        with FlopCounterMode(display=False) as counter:
            work.run()
        runs, sequences = (value, curves.SEQUENCES) if number == 0 else (1, curves.SERVED)
        classifier = 2 * runs * sequences * 2 * 24  # of two classes, at the greatest width
        assert abs(counter.get_total_flops() - work.operations) <= classifier < work.operations / 20
        counts.append((work.operations, work.memory))
    assert (counts[0][0] == counts[1][0]) == (axis.name == "adapters in a stream")
    assert counts[0][1] < counts[1][1]


def test_threads_are_given_back(raw):
    before = torch.get_num_threads()
    curves.on_threads(raw, 1).run()
    assert torch.get_num_threads() == before


def planted(cost: float, monkeypatch: pytest.MonkeyPatch) -> dict:
    """An axis whose work takes 10 ms and `cost` for each of x, on a clock that nothing else moves."""
    now = 0.0

    def after(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(train.time, "perf_counter", lambda: now)
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (after(0.002), product(a, b))[1])
    work = lambda _, n: Work(lambda: after(0.010 + cost * n), 1000 * n, 7 * n + 5)  # noqa: E731
    return measure(Axis("runs", "runs", (1, 2, 4, 8), work), {}, 3, size=10)


def test_the_lines_find_the_planted_slopes(monkeypatch):
    found = planted(0.003, monkeypatch)
    seconds, limit, kept = (found["lines"][name] for name in ("seconds", "limit", "bytes"))
    assert seconds == pytest.approx({"slope": 0.003, "at_zero": 0.010, "r_squared": 1.0})
    assert limit == pytest.approx({"slope": 0.001, "at_zero": 0.0, "r_squared": 1.0}, abs=1e-12)
    assert kept == pytest.approx({"slope": 7, "at_zero": 5, "r_squared": 1.0})
    assert [point["limit_share"] for point in found["points"]] == pytest.approx(
        [n / (10 + 3 * n) for n in (1, 2, 4, 8)]
    )
    with monkeypatch.context() as other:  # negative twin: what costs a tenth more each is seen
        assert planted(0.0033, other)["lines"]["seconds"] != pytest.approx(seconds)


def test_the_command_writes_the_record_and_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "CEILING_SIZE", 8)
    model = make_model(tmp_path / "model")
    record, page = tmp_path / "curves.json", tmp_path / "curves.html"
    words = ["bench", "curves", str(model), "--rounds", "1", "--json", str(record), "--html", str(page)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(record.read_text())
    assert found["command"]
    text = page.read_text()
    assert wrote("minibeft bench curves", page), "the same command may replace it"
    for one in found["axes"]:
        assert one["axis"] in render(found).html()
        assert f"time: {one['axis']}" in text
        assert (f"memory: {one['axis']}" in text) == (one["axis"] != "threads")
    assert "<script" not in text
    assert "http" not in text
