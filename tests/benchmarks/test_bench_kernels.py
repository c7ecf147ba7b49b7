"""The benchmark runs from end to end in the interpreter, writes what it says, and prints nothing that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE

from minibeft.errors import BadInput
from minibeft.kernels import gate
from minibeft.kernels.bench import bench
from minibeft.kernels.contestants import Inputs
from minibeft.kernels.gate import check
from minibeft.kernels.shapes import SHAPES, SMALL, TYPES, Shape

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
    """Whatever is drawn. On seeds 9, 30, 31 and 32 twice the error of plain torch was below that of right results."""

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
