"""`minibeft verify` on small checkpoints of each kind: what it says, what it exits with, and that it can fail."""

import json
import sys
from pathlib import Path

import pytest
import torch

import minibeft
from minibeft.checkpoints.find import MINILM_PACKAGE
from minibeft.cli import main as cli
from minibeft.models import transformer as model
from minibeft.theory import attention, instance
from minibeft.theory.draws import Draws
from minibeft.verification import probe
from minibeft.verification.findings import Report
from minibeft.verification.report import FLOOR, MARKS, draw
from minibeft.verification.verify import STEPS, verify

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
CONFIGS = {
    "bert": SIZES | {"model_type": "bert", "max_position_embeddings": 32},
    "opt": SIZES | {"model_type": "opt", "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "llama": SIZES | {"model_type": "llama", "num_key_value_heads": 2},
    "qwen2": SIZES | {"model_type": "qwen2", "num_key_value_heads": 2},
    "gptj": {
        "model_type": "gptj", "vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4,
    },
}  # fmt: skip
del CONFIGS["opt"]["intermediate_size"]


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A checkpoint of the family, every parameter redrawn: biases too, which would otherwise be zero."""
    tiny = minibeft.build_model(CONFIGS[request.param])
    draws = Draws(0)
    for name, value in tiny.named_parameters():
        mean = float("norm" in name and name.endswith("weight"))
        value.data.copy_(draws.normal(*value.shape, mean=mean, std=0.5))
    minibeft.save_model(tiny, tmp_path / request.param)
    return tmp_path / request.param


def verdicts(report: Report) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for check in report.checks:
        found.setdefault(check.theorem, set()).add(check.verdict)
    return found


@pytest.mark.parametrize("folder", ["bert", "opt"], indirect=True)
def test_everything_holds_without_rotary_positions(folder: Path):
    report = verify(folder)
    assert set(verdicts(report)) == {*"K1 K2 K8 K9 V1 V2 V3 V7 Q2 Q3 Q4 Q8 Q9 Q10 G2".split()}
    assert {check.verdict for check in report.checks} == {"holds"}
    assert report.ok
    assert "K1 holds" in report.reason


@pytest.mark.parametrize("folder", ["qwen2", "llama"], indirect=True)
def test_rotary_positions_break_k1_k2_and_q4_alone(folder: Path):
    report = verify(folder)
    found = verdicts(report)
    assert {name for name, all_ in found.items() if all_ == {"fails, as it must"}} == {"K1", "K2", "K8", "V7", "Q4"}
    assert all(found[name] == {"holds"} for name in ("V1", "V3", "Q2", "Q3", "K9", "K10", "Q8", "Q9", "Q10"))
    assert report.ok
    assert "K1 does not hold (hypothesis 'unrotated'): rotary positions" in report.reason


@pytest.mark.parametrize("folder", ["gptj"], indirect=True)
def test_partial_rotary_positions_leave_k1_on_the_other_entries(folder: Path):
    report = verify(folder)
    k1 = [check for check in report.checks if check.theorem == "K1"]
    assert {check.verdict for check in k1 if "entries 0–3" in check.what} == {"fails, as it must"}
    assert {check.verdict for check in k1 if "entries 4–15" in check.what} == {"holds"}
    assert report.norms == [{"q": None, "k": None, "v": None}] * 2


def wrong_softmax(q, k, mask, scale, softcap):
    """Planted: ReLU in place of exp, so rows no longer share what b_k adds, nor sum to one."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.mT * scale + (0.0 if mask is None else mask)
    return logits.relu() / q.shape[-2]


def uneven_keys(x, weight, bias, heads):
    """Planted: the bias grows with the token's place, so b_k is not the same for every key."""
    y = torch.nn.functional.linear(x, weight)
    if bias is not None:
        y = y + bias * torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[:, None]
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
@pytest.mark.parametrize(
    ("name", "bug", "caught"),
    [
        ("attention_weights", wrong_softmax, {"K1", "K2", "V1", "Q4"}),
        ("project", uneven_keys, {"K1", "K2", "V1", "Q4"}),
    ],
)
def test_a_planted_bug_is_a_violation(folder: Path, monkeypatch: pytest.MonkeyPatch, name, bug, caught: set[str]):
    plain = attention.mix
    monkeypatch.setattr(attention, "mix", lambda *a, **k: plain(*a, **{**k, "fused": False}))
    for module in (attention, instance):
        monkeypatch.setattr(module, name, bug, raising=False)
    report = verify(folder)
    violated = {check.theorem for check in report.checks if check.verdict == "VIOLATED"}
    assert violated >= caught
    assert not report.ok


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_progress_counts_every_step(folder: Path):
    seen: list[str] = []
    verify(folder, progress=seen.append)
    assert len(seen) == STEPS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["minibeft", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_the_command_writes_every_number(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    files = "--json", str(tmp_path / "v.json"), "--png", str(tmp_path / "v.png")
    assert run(monkeypatch, "verify", str(folder), *files) == 0
    assert (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert record["ok"] is True
    assert {"command", "date", "versions", "machine", "settings", "norms"} <= record.keys()
    layers = [m["layer"] for check in record["checks"] for m in check["measurements"]]
    assert set(layers) == {-1, 0, 1}
    shown = capsys.readouterr().out
    assert "run on random tokens, for want of a tokenizer" in shown
    assert "came out as the theory says" in shown


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_the_picture_shows_every_check_under_its_verdict(folder: Path):
    """Where it was measured and what is allowed, on a line each; an exact zero at the edge."""
    report = verify(folder)
    figure = pytest.importorskip("matplotlib.figure").Figure()
    draw(report, figure)
    (axes,) = figure.axes
    allowed, *marks = axes.lines
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == [c.theorem for c in report.checks]
    assert list(allowed.get_xdata()) == [max(c.worst.allowed, FLOOR) for c in report.checks]
    shown = {(MEANT[m.get_label()], y, x) for m in marks for x, y in zip(m.get_xdata(), m.get_ydata(), strict=True)}
    assert shown == {(c.verdict, y, max(c.worst.value, FLOOR)) for y, c in enumerate(report.checks)}
    assert {"holds", "fails, as it must"} <= {verdict for verdict, _, _ in shown}


MEANT = {meaning: verdict for verdict, (_, _, meaning) in MARKS.items()}


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_a_violation_ends_in_status_1(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "project", uneven_keys)
    monkeypatch.setattr(instance, "project", uneven_keys)
    assert run(monkeypatch, "verify", str(folder)) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere/at/all"], "no such folder"),
        (["--task", "chess"], "--task chess: must be hidden, classification, tokens or lm"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "verify", *arguments) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert "Traceback" not in shown.err + shown.out


def test_the_real_model():
    pytest.importorskip(MINILM_PACKAGE)
    report = verify("minilm")
    assert report.settings["input"] == "sentences"
    assert {check.verdict for check in report.checks} == {"holds"}
    norms = {name: [row[name] or 0.0 for row in report.norms] for name in "qkv"}
    # Theorem K7: pretraining left b_k next to zero. Its largest norm lies below the smallest of b_q and of b_v.
    assert max(norms["k"]) < min(norms["v"]) < min(norms["q"])
    assert 0.010 < min(norms["k"]) <= max(norms["k"]) < 0.020
    biases = [
        layer.b_k for layer in minibeft.probe(minibeft.load_model("minilm"), {"input_ids": torch.ones(1, 2).long()})
    ]
    assert all(b_k is not None and b_k.all() for b_k in biases)  # BERT starts b_k at 0; nothing is 0 any more


def test_attention_modules_are_found_in_order():
    tiny = minibeft.build_model(CONFIGS["bert"])
    blocks = [block.attention for block in tiny.blocks if isinstance(block, model.Block)]
    assert probe.modules_of(tiny) == blocks
