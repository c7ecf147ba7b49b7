"""The benchmark of fine-tuning: it refuses contestants that compute something else, counts right, and reports all."""

import json

import pytest
import torch
from counted_once import count_weights_once
from small_run import small_settings
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from minibeft.benchmarks import agreement, peers
from minibeft.benchmarks import train as bench
from minibeft.benchmarks.cost import forward_operations, least_operations
from minibeft.benchmarks.memory import keeps, measure, minibeft
from minibeft.benchmarks.peers import OFFICIAL, OURS, PEFT, SAME_ORDER, make
from minibeft.benchmarks.scaling import straight
from minibeft.benchmarks.train import rows_of, take_turns
from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.models.biases import select

pytest.importorskip("peft")
# transformers and torch's compiler warn of their own names.
IGNORED = ("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
pytestmark = pytest.mark.filterwarnings(*IGNORED)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    small_settings(root)
    return root


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_contestants_compute_the_same(root, dtype):
    settings = small_settings(root, dtype=dtype)
    sides = {name: make(name, settings) for name in (OURS, SAME_ORDER, PEFT, OFFICIAL)}
    errors = agreement.require_same_losses(sides, settings)
    assert all(errors[name] <= errors["allowed"] for name in sides)


def broken_weight(side, monkeypatch):
    side.model.get_parameter("base_model.model.bert.encoder.layer.0.attention.self.key.weight").data *= 1.01


def broken_rate(side, monkeypatch):
    side.optimizer.param_groups[0]["lr"] *= 1.5


def broken_mask(side, monkeypatch):
    """It looks at the padding."""
    logits = side.logits
    monkeypatch.setattr(side, "logits", lambda b: logits(b._replace(attention_mask=torch.ones_like(b.input_ids))))


def left_out(side, monkeypatch):
    """The first layer's b_v does not train."""
    side.optimizer.param_groups[0]["params"] = side.trained[1:]


@pytest.mark.parametrize("planted", [broken_weight, broken_rate, broken_mask, left_out])
def test_it_refuses_a_contestant_that_computes_something_else(root, monkeypatch, planted):
    settings = small_settings(root)
    side = make(PEFT, settings)
    planted(side, monkeypatch)
    with pytest.raises(BadInput, match="do not compute the same"):
        agreement.require_same_losses({PEFT: side}, settings)


@pytest.mark.parametrize("lowest", [0, 1])
def test_the_count_of_operations_is_what_one_update_executes(root, lowest, monkeypatch):
    """torch counts the products of an update on two sequences of seven tokens; in float64 it knows all of them. Q Kᵀ,
    which an update computes twice to keep less, is counted once."""
    count_weights_once(monkeypatch)
    model, logits = minibeft(str(root / "model"), "none")
    for name, value in select(model, "v").items():
        value.requires_grad_(int(name.split(".")[1]) >= lowest)
    assert model.head is not None
    model.head.requires_grad_(False)  # the count leaves out the head's own gradients
    model.double()
    ids = torch.arange(14).view(2, 7) + 3
    with FlopCounterMode(display=False) as counter:
        logits(ids, torch.ones_like(ids)).sum().backward()
    assert counter.get_total_flops() == least_operations(model.config, [7, 7], lowest)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits(ids, torch.ones_like(ids))
    assert counter.get_total_flops() == forward_operations(model.config, [7, 7])


@pytest.mark.parametrize("length", [5, 9])
def test_a_whole_layer_keeps_what_the_formula_says(root, length):
    """3C + I + 2C numbers per token, two for each norm; the layers are one more in the larger model."""
    rows, columns = 3, length
    ids = torch.arange(rows * columns).view(rows, columns) % 30 + 3
    model, logits = minibeft(str(root / "model"), "v")
    model.eval()
    found = keeps(model, lambda: logits(ids, torch.ones_like(ids)))
    c = model.config
    # Layer 0 is the lowest: of its attention P alone. Layer 1 is the last: one query a sequence, all keys and values.
    tokens = rows * columns
    expected = {
        "attention": tokens * c.heads * columns + rows * c.width + 2 * tokens * c.width,
        "norm": 2 * (tokens + rows) * c.width + 4 * (tokens + rows),
        "MLP": (tokens + rows) * c.inner,
    }
    sizes = {kind: sum(o.bytes for o in found if o.kind == kind and o.dtype == "float32") // 4 for kind in expected}
    assert sizes == expected
    assert not [one for one in found if one.kind == "dropout"]


def test_weights_that_train_keep_the_inputs_of_their_maps(root):
    rows = {row["way"]: row for row in measure(str(root / "model"), 4, 8)["rows"]}
    ours, theirs, low_rank, full = (rows[n] for n in ("b_v, minibeft", "b_v, peft", "LoRA 8, peft", "full, minibeft"))
    assert ours["bytes"] < theirs["bytes"] < low_rank["bytes"] < rows["full, transformers"]["bytes"]
    assert ours["by_kind"]["linear"] < low_rank["by_kind"]["linear"]
    assert ours["by_kind"]["linear"] < full["by_kind"]["linear"]
    assert full["bytes"] <= rows["full, transformers"]["bytes"]
    flat = [one["shape"] for one in full["tensors"] if one["kind"] == "attention" and len(one["shape"]) == 2]
    assert not flat, "the maps keep their inputs, and nothing keeps a copy of a weight"
    assert ours["bytes"] == sum(t["bytes"] * t["number"] for t in ours["tensors"])


def test_turns_and_ratios():
    seen = []
    seconds = take_turns({name: lambda n, name=name: seen.append((n, name)) for name in "abc"}, 3)
    assert "".join(name for _, name in seen) == "abcbcacab"
    assert [len(found) for found in seconds.values()] == [3, 3, 3]
    ours, theirs = rows_of("training", {OURS: [1.0, 2.0, 1.0], PEFT: [2.0, 6.0, 2.5]}, 10)
    assert ours["rate"] == {"median": 10.0, "min": 5.0, "max": 10.0}
    assert theirs["minibeft_is_times_as_fast"] == {"median": 2.5, "min": 2.0, "max": 3.0}


def test_the_share_is_of_the_products_of_the_same_round(monkeypatch: pytest.MonkeyPatch):
    """A machine that slows down by half slows the products too: the share stays what it was."""
    of_products, calls = bench.CEILING_TIMES * 2 * bench.CEILING_SIZE**3, []
    given = {OURS: [1.0, 2.0, 1.0], PEFT: [4.0, 8.0, 4.0], bench.PRODUCT: [1.0, 2.0, 1.0]}

    def turns(passes, rounds):
        passes[bench.PRODUCT](0)
        assert (passes.keys(), rounds) == (given.keys(), 3)
        return given

    monkeypatch.setattr(bench, "take_turns", turns)
    passes = {name: lambda _: None for name in (OURS, PEFT)}
    rows, speed = bench.beside_products("training", passes, 3, 8, of_products // 2, lambda: calls.append(1))
    assert [(row["side"], row["share_of_matmul_ceiling"]) for row in rows] == [(OURS, 0.5), (PEFT, 0.125)]
    assert (speed, len(calls)) == (of_products, bench.CEILING_TIMES)


def test_a_line_is_found():
    line = straight([(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)])
    assert line["seconds_each"] == pytest.approx(2.0)
    assert line["seconds_at_zero"] == pytest.approx(3.0)
    assert line["r_squared"] == pytest.approx(1.0)
    assert straight([(1.0, 1.0), (2.0, 4.0), (3.0, 9.0), (4.0, 16.0)])["r_squared"] < 0.99


def test_the_command_writes_all_that_it_measured(root, tmp_path, monkeypatch):
    """Here only minibeft's memory is measured, in its own process: those of the others take long to import."""
    measured = bench.peak_in_process
    monkeypatch.setattr(
        bench, "peak_in_process", lambda side, settings: measured(side, settings) if side == OURS else 1
    )
    out, png = tmp_path / "bench.json", tmp_path / "bench.png"
    words = ["bench", "train", str(root / "model"), "--data", str(root / "data"), "--examples", "32", "--rounds", "1"]
    words += ["--dtype", "bfloat16"]
    result = CliRunner().invoke(app, [*words, "--json", str(out), "--png", str(png)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert [one["dtype"] for one in record["by_dtype"]] == ["bfloat16"]
    for one in record["by_dtype"]:
        rows = {(row["what"], row["side"]): row for row in one["rows"]}
        assert {side for what, side in rows if what == "training"} == {OURS, SAME_ORDER, PEFT, OFFICIAL}
        assert {side for what, side in rows if what == "evaluation"} == {OURS, PEFT, OFFICIAL}
        assert all(row["seconds_to_start"] > 0 for (what, _), row in rows.items() if what == "training")
        assert rows["training", OURS]["peak_bytes_above_weights"] > 0
        assert rows["training", OURS]["minibeft_is_times_as_fast"]["median"] == 1.0
        assert all(0 < row["share_of_matmul_ceiling"] < 1.5 for row in one["rows"])
        assert one["matmul_ceiling"].keys() == {"training", "evaluation"}
        text = " ".join(result.output.split())
        assert [text.count(f"{column}: ") for column in ("minibeft is", "of the limit", "minibeft takes")] == [3, 2, 1]
    assert len(record["scaling"]["examples"]["points"]) == 5
    assert [layers for layers, _ in record["scaling"]["layers"]["points"]] == [1, 2]
    assert png.stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dtype", "float8"], "--dtype float8: must be some of float32,bfloat16"),
        (["--json", "nowhere/x.json"], "name a file in a folder that exists"),
        (["--examples", "400"], "fewer than the 400 examples asked for"),
    ],
)
def test_what_cannot_be_is_one_line(root, more, message):
    words = ["bench", "train", str(root / "model"), "--data", str(root / "data"), *more]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, BadInput)
    assert message in str(result.exception)


def test_it_needs_the_peers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(BadInput, match="pip install 'minibeft\\[bench\\]'"):
        peers.require_peers()
