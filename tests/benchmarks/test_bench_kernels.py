"""The benchmark runs from end to end in the interpreter, writes what it says, and prints nothing that is wrong."""

import json
from pathlib import Path
from typing import Any

import needs_triton  # noqa: F401
import pytest
import torch
from kernel_cases import DEVICE
from typer.testing import CliRunner

from minibeft.cli.main import app
from minibeft.errors import BadInput
from minibeft.kernels import gate, tiles, tune
from minibeft.kernels.bench import bench
from minibeft.kernels.contestants import Inputs
from minibeft.kernels.gate import check
from minibeft.kernels.lang import Launch, chip_of
from minibeft.kernels.qkv_bias import descriptors
from minibeft.kernels.shapes import SHAPES, SMALL, TYPES, Shape
from minibeft.kernels.tiles import VARIANTS, Tile, as_row, candidates, matmul_tile, tuned, variants

CPU = DEVICE.type == "cpu"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "kernels.json"
    returned = bench(json_path=path, png_path=None, device=DEVICE.type, small=True)
    assert json.loads(path.read_text(encoding="utf-8")) == returned
    return returned


def test_every_contest_is_run(record: dict):
    seen = {(row["shape"], row["dtype"], row["direction"], row["contestant"]) for row in record["rows"]}
    assert len(seen) == len(record["rows"])
    for shape in SMALL:
        for dtype in ("bfloat16", "float16"):
            both = {"fused", "linears", "compiled"}
            expected = {("forward", name) for name in both | (set() if shape.dims else {"addmm"})}
            expected |= {("backward", name) for name in both} | {
                ("column sum", name) for name in ("fused", "torch.sum")
            }
            assert {s[2:] for s in seen if s[:2] == (shape.name, dtype)} == expected


def test_ratios_are_of_the_times(record: dict):
    fused = {
        (r["shape"], r["dtype"], r["direction"]): r["seconds"] for r in record["rows"] if r["contestant"] == "fused"
    }
    for row in record["rows"]:
        assert row["times_fused"] == row["seconds"] / fused[row["shape"], row["dtype"], row["direction"]]


@pytest.mark.skipif(not CPU, reason="a GPU has rates")
def test_a_trial_run_claims_no_rates(record: dict):
    assert record["interpreted"]
    assert record["gpu"] is None
    assert not record["ceilings"]
    assert not any("share" in key for row in record["rows"] for key in row)


def test_red_gate_prints_no_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    fused = Inputs.fused
    monkeypatch.setattr(Inputs, "fused", lambda self: tuple(1.01 * out for out in fused(self)))
    with pytest.raises(RuntimeError, match=r"gate is red.*small.*q errs"):
        bench(json_path=tmp_path / "k.json", png_path=None, device=DEVICE.type, small=True)
    assert "×" not in capsys.readouterr().out
    assert not (tmp_path / "k.json").exists()


@pytest.mark.parametrize(("part", "name"), [(0, "d_x"), (1, "db_q"), (2, "db_v")])
def test_gate_sees_a_wrong_gradient(part: int, name: str, monkeypatch: pytest.MonkeyPatch):
    backward_of = Inputs.backward_of
    fused = Inputs.fused
    own: list[Any] = []

    def remember(self: Inputs) -> Any:
        own.append(fused(self))
        return own[-1]

    def wrong(self: Inputs, outputs: Any) -> Any:
        return tuple(
            g * 1.05 if outputs is own[-1] and n == part else g for n, g in enumerate(backward_of(self, outputs))
        )

    monkeypatch.setattr(Inputs, "fused", remember)
    monkeypatch.setattr(Inputs, "backward_of", wrong)
    with pytest.raises(RuntimeError, match=f"{name} errs"):
        check(SMALL[0], torch.float16, DEVICE)


@pytest.mark.parametrize("seed", [0, 9, 30, 31, 32])
def test_gate_lets_right_results_pass(seed: int, monkeypatch: pytest.MonkeyPatch):
    """For every seed. On seeds 9, 30, 31 and 32 right results erred by more than twice the error of plain torch."""

    class Drawn(Inputs):
        def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int):
            super().__init__(shape, dtype, device, seed=drawn)

    drawn = seed
    monkeypatch.setattr(gate, "Inputs", Drawn)
    for shape in SMALL:
        for dtype in TYPES:
            check(shape, dtype, DEVICE)


def test_the_two_numbers_of_bert_base():
    """2·2048·768·2304 operations; (2048·768 + 2304·768 + 2304 + 2048·2304) numbers of two bytes."""
    bert = SHAPES[0]
    assert bert.forward_operations() == 7_247_757_312
    assert bert.forward_bytes(torch.bfloat16) == 16_126_464
    assert bert.sum_bytes(torch.bfloat16) == 2 * 2049 * 768


@pytest.mark.skipif(not CPU, reason="has a GPU")
def test_refuses_what_it_cannot_measure():
    with pytest.raises(BadInput, match="torch sees no GPU here"):
        bench(json_path=None, png_path=None)
    with pytest.raises(BadInput, match="only a GPU can be measured; TRITON_INTERPRET=1"):
        bench(json_path=None, png_path=None, device="cpu")
    with pytest.raises(BadInput, match="--device x: must be cuda"):
        bench(json_path=None, png_path=None, device="x")


def test_draws_a_bar_chart(record: dict):
    pytest.importorskip("matplotlib", reason="the chart is for the extra [bench]")
    from minibeft.kernels.chart import draw
    from minibeft.show.plot import as_png

    assert as_png(lambda figure: draw(figure, record)).startswith(b"\x89PNG")


TINY = Shape("tiny", 1, 5, 32, 2, 2, 16)


class TestTuning:
    """In the interpreter, whose times decide between two ways that are both right."""

    def test_every_way_is_measured_and_the_quickest_is_found(self):
        rows = tune.measure_all((TINY,), DEVICE)
        assert len(rows) == len(candidates(chip_of(DEVICE))) * 4 + len(variants(chip_of(DEVICE)))
        assert [row["inside"] for row in rows if "inside" in row] == [True] * len(candidates(chip_of(DEVICE)))
        for best in tune.quickest(rows):
            same = [row for row in rows if row["direction"] == best["direction"]]
            assert best["seconds"] == min(row["seconds"] for row in same)

    def test_a_wrong_way_stops_it(self, monkeypatch: pytest.MonkeyPatch):
        plan = tune.plan_qkv_bias
        monkeypatch.setattr(
            tune, "plan_qkv_bias", lambda asked, tile: plan(asked._replace(biases=(None, *asked.biases[1:])), tile)
        )
        with pytest.raises(RuntimeError, match=r"gate is red.*tiny q by Tile"):
            tune.measure(TINY, DEVICE)

    def test_a_wrong_sum_stops_it(self, monkeypatch: pytest.MonkeyPatch):
        plan = tune.plan_column_sum
        monkeypatch.setattr(tune, "plan_column_sum", lambda grad, part, back, _: plan(grad, part, None, 1))
        turned = next(shape for shape in SMALL if shape.dims)
        with pytest.raises(RuntimeError, match=r"gate is red.* d_b by Tile"):
            tune.measure(turned, DEVICE)

    def test_what_does_not_run_is_said_and_not_chosen(self, monkeypatch: pytest.MonkeyPatch):
        def fail(*_: Any) -> None:
            raise RuntimeError("out of shared memory\nand more")

        monkeypatch.setattr(Launch, "run", fail)
        rows = tune.measure(TINY, DEVICE)
        assert {row["failed"] for row in rows} == {"out of shared memory"}
        assert tune.quickest(rows) == []

    def test_the_table_is_what_the_kernels_go_by(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """They use the nearest shape with the same direction and the same turning, never another chip or type."""
        tile, variant = Tile(64, 64, 64, 4, 3), VARIANTS[90][1]
        base = {"direction": "forward", "turned": False, "columns": 2304}
        rows = [base | {"rows": 128} | as_row(tile), base | {"rows": 2048} | as_row(variant)]
        (tmp_path / "tuned.json").write_text(json.dumps({"90": rows}), encoding="utf-8")
        monkeypatch.setattr(tiles, "TUNED", tmp_path / "tuned.json")
        tiles.table.cache_clear()
        half = torch.bfloat16
        assert (
            tuned(90, half, "forward", 150, 2304, False) == matmul_tile(90, half, "forward", 150, 2304, False) == tile
        )
        assert tuned(90, half, "forward", 1500, 3072, False) == variant
        assert tiles.from_row(as_row(tiles.Inside(tile))) == tiles.Inside(tile)
        assert matmul_tile(90, half, "forward", 1500, 3072, False) == tiles.MATMUL[90, 2].narrow
        for chip, dtype, direction, turning in (
            (80, half, "forward", False),
            (90, torch.float32, "forward", False),
            (90, half, "backward", False),
            (90, half, "forward", True),
            (None, half, "forward", False),
        ):
            assert tuned(chip, dtype, direction, 128, 2304, turning) is None
        tiles.table.cache_clear()

    def test_the_operator_takes_descriptors_where_the_table_says_so(self, monkeypatch: pytest.MonkeyPatch):
        inputs, seen = Inputs(TINY, torch.float32, DEVICE, 0), list[str]()
        without, run = inputs.fused(), Launch.run
        monkeypatch.setattr(descriptors, "tuned", lambda *_: tiles.INTERPRETED_VARIANT)
        monkeypatch.setattr(Launch, "run", lambda self: (seen.append(self.kernel.__name__), run(self)))
        found = inputs.fused()
        assert seen == ["described_kernel"]
        for one, other in zip(found, without, strict=True):
            torch.testing.assert_close(one, other)
        check(TINY, torch.bfloat16, DEVICE)

    @pytest.mark.skipif(not CPU, reason="has a GPU")
    def test_refuses_what_it_cannot_measure(self, tmp_path: Path):
        before = tiles.TUNED.exists()
        done = CliRunner().invoke(app, ["bench", "kernels", "--tune", "--json", str(tmp_path / "k.json")])
        assert isinstance(done.exception, BadInput)
        assert "torch sees no GPU here" in str(done.exception)
        done = CliRunner().invoke(app, ["bench", "kernels", "--tune", "--png", str(tmp_path / "k.png")])
        assert "draws no picture" in str(done.exception)
        assert not list(tmp_path.iterdir())
        assert tiles.TUNED.exists() == before
