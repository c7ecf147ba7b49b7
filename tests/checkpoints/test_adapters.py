"""Adapters travel: what is trained here runs in PEFT to the same logits, and what PEFT trained runs here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from peft import BeftConfig, PeftModel, get_peft_model
from rounding import Unrounded
from tolerance import assert_agrees, in_float64, samples
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from minibeft.checkpoints.adapters import apply_adapter, load_adapted, load_adapter, make_adapter, save_adapter
from minibeft.checkpoints.load import build_model, load_model
from minibeft.checkpoints.save import save_model
from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.biases import add_bias, freeze_except, select
from minibeft.models.config import Task
from minibeft.models.transformer import Transformer
from minibeft.surgery.merge import merge
from minibeft.theory.draws import Draws

pytestmark = [  # both from PEFT itself: a name that transformers gave up, and its note on bias-free layers
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term"),
]
ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
SIZES = {
    "bert": ENCODER,
    "roberta": ENCODER | {"max_position_embeddings": 20},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24},
    "llama": ENCODER | {"num_key_value_heads": 2},
    "qwen2": ENCODER | {"num_key_value_heads": 2},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 2},
}
TASKS: dict[str, Task] = {"bert": "classification", "roberta": "classification"}
VOCAB = 23


def redraw(module: nn.Module, seed: int) -> None:
    """Every parameter anew: biases and norms too."""
    generator = Draws(seed)
    for parameter in module.parameters():
        parameter.data = generator.normal(*parameter.shape, dtype=torch.float32) * 0.5


@pytest.fixture(params=list(SIZES))
def base(request, tmp_path) -> Path:
    """A checkpoint of each family, no parameter zero."""
    family = request.param
    raw = {"model_type": family, "vocab_size": VOCAB, "pad_token_id": 1, **SIZES[family]}
    model = build_model(raw, task=TASKS.get(family, "lm"))
    redraw(model, 0)
    save_model(model, tmp_path / family)
    return tmp_path / family


def in_transformers(folder: Path, dtype: torch.dtype) -> nn.Module:
    auto = AutoModelForSequenceClassification if folder.name in TASKS else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def ids() -> dict[str, Tensor]:
    tokens = Draws(3).integers(2, VOCAB, 3, 7)
    mask = torch.ones_like(tokens)
    mask[0, 5:] = 0
    return {"input_ids": tokens.masked_fill(mask == 0, 1), "attention_mask": mask}


@torch.inference_mode()
def logits(model: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """The logits of the real tokens."""
    found = (model if dtype is None else model.to(dtype))(**ids()).logits
    return found[ids()["attention_mask"].bool()] if found.ndim == 3 else found


def trained(folder: Path, terms: str) -> tuple[Transformer, dict[str, Tensor]]:
    """The checkpoint with these biases, and the head, moved as training would move them; and what they were before."""
    model = load_model(folder)
    if not select_exists(model, terms):
        add_bias(model, terms)
    moving = freeze_except(model, terms, head=model.config.task == "classification")
    before = {name: value.detach().clone() for name, value in moving.items()}
    generator = Draws(1)
    for value in moving.values():
        value.data += generator.normal(*value.shape, dtype=torch.float32)
    return model, before


def select_exists(model: Transformer, terms: str) -> bool:
    try:
        return bool(select(model, terms))
    except BadInput:
        return False


def peft_model(folder: Path, adapter: Path, dtype: torch.dtype) -> nn.Module:
    return PeftModel.from_pretrained(in_transformers(folder, dtype), adapter).eval()


def peft_runs(folder: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    """The logits in PEFT, of the weights in this type: gold, and the samples of rounding in it."""
    model = peft_model(folder, adapter, dtype)
    with Unrounded():
        return logits(in_float64(model)), samples(logits, model, dtype)


@pytest.mark.parametrize("terms", ["v", "q,k", "q,k,v"])
def test_trained_here_runs_in_peft(base, tmp_path, terms):
    model, before = trained(base, terms)
    adapter = make_adapter(model, before, base=str(base))
    save_adapter(adapter, tmp_path / "adapter")
    gold, plain = peft_runs(base, tmp_path / "adapter")
    assert_agrees(logits(model), plain, gold, what="the trained model")
    assert_agrees(logits(load_adapted(base, tmp_path / "adapter")), plain, gold, what="the adapter loaded here")
    # without the adapter it is another model: each Δ of v and q, and of k where positions are rotary, matters
    assert (logits(load_model(base)) - gold).abs().max() > 0.01


@pytest.mark.parametrize("terms", ["v", "q,k"])
def test_trained_in_peft_runs_here(base, tmp_path, terms):
    leaves = {"bert": ("query", "key", "value"), "roberta": ("query", "key", "value")}
    names = dict(zip("qkv", leaves.get(base.name, ("q_proj", "k_proj", "v_proj")), strict=True))
    classifies = base.name in TASKS
    config = BeftConfig(
        target_modules=[names[term] for term in terms.split(",")],
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
        modules_to_save=["pooler"] if base.name == "bert" else None,
    )
    theirs = get_peft_model(in_transformers(base, torch.float32), config)
    generator = Draws(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = generator.normal(*parameter.shape, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapted(base, tmp_path / "adapter")
    gold, plain = peft_runs(base, tmp_path / "adapter")
    assert_agrees(logits(ours), plain, gold)


HEADS: dict[str, tuple[Task, Any]] = {
    "SEQ_CLS": ("classification", AutoModelForSequenceClassification),
    "TOKEN_CLS": ("tokens", AutoModelForTokenClassification),
    "CAUSAL_LM": ("lm", AutoModelForCausalLM),
}


@pytest.mark.parametrize(
    ("family", "kind", "targets"),
    [
        ("llama", "SEQ_CLS", "all-linear"),
        ("llama", "TOKEN_CLS", ["v_proj", "q_proj"]),
        ("llama", "CAUSAL_LM", "all-linear"),
        ("opt", "SEQ_CLS", ["v_proj"]),
        ("gptj", "SEQ_CLS", ["v_proj", "fc_out"]),
        ("bert", "TOKEN_CLS", ["value", "output.dense"]),
        ("roberta", "TOKEN_CLS", ["value"]),
        ("roberta", "SEQ_CLS", "all-linear"),
    ],
)
def test_every_kind_of_head_and_map(family, kind, targets, tmp_path):
    """Trained in PEFT on a checkpoint without that head: the same logits here, in the merged folder as transformers
    loads it, and from there again here. One row is padded on the right."""
    task, auto = HEADS[kind]
    biases: dict[str, Any] = {"attention_bias": False, "mlp_bias": False} if family == "llama" else {}
    stem: dict[str, Any] = {"architectures": [BODIES[family].stem + "Model"]} if kind != "CAUSAL_LM" else {}
    base = write_checkpoint(tmp_path / "base", family, shard="1GB", **biases, **stem)
    labels = {} if kind == "CAUSAL_LM" else {"num_labels": 3}
    make = lambda: auto.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", **labels)  # noqa: E731
    theirs = get_peft_model(make(), BeftConfig(target_modules=targets, task_type=kind))
    generator = Draws(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = generator.normal(*parameter.shape, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "adapter")
    whole = PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
    with Unrounded():
        gold, plain = logits(in_float64(whole)), samples(logits, whole, torch.float32)
    ours = load_adapted(base, tmp_path / "adapter")
    assert ours.config.task == task
    assert_agrees(logits(ours), plain, gold, what="the adapter loaded here")
    if family != "gptj":  # whose format has no place for b_v
        merge(tmp_path / "adapter", base, tmp_path / "merged")
        served = auto.from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="eager").eval()
        assert len(served.config.id2label) == labels.get("num_labels", 2)
        assert_agrees(logits(served), plain, gold, what="the merged folder")
        assert_agrees(logits(load_model(tmp_path / "merged")), plain, gold, what="the merged folder here")


def test_round_trip_is_exact(base, tmp_path):
    model, before = trained(base, "v")
    adapter = make_adapter(model, before, base="some/model")
    save_adapter(adapter, tmp_path / "adapter")
    read = load_adapter(tmp_path / "adapter")
    assert read.config == adapter.config
    assert read.biases.keys() == adapter.biases.keys()
    assert read.saved.keys() == adapter.saved.keys()
    assert all(torch.equal(read.biases[name], adapter.biases[name]) for name in read.biases)
    assert all(torch.equal(read.saved[name], adapter.saved[name]) for name in read.saved)


@pytest.mark.parametrize("base", ["bert"], indirect=True)
def test_the_file_is_laid_out_as_peft_lays_it_out(base, tmp_path):
    """The tensors and the configuration that PEFT itself would write for the same adapter."""
    model, before = trained(base, "v")
    save_adapter(make_adapter(model, before), tmp_path / "ours")
    config = BeftConfig(target_modules=["value", "bert.pooler.dense"], task_type="SEQ_CLS")
    get_peft_model(in_transformers(base, torch.float32), config).save_pretrained(tmp_path / "theirs")
    from safetensors.torch import load_file

    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    written, reference = (
        json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")
    )
    assert written.keys() <= reference.keys()
    assert written["target_modules"] == ["attention.self.value", "bert.pooler.dense"]
    assert written["modules_to_save"] == ["classifier"]
    assert sum(value.numel() for value in ours.values()) == sum(value.numel() for value in before.values())


@pytest.mark.parametrize("base", ["bert", "opt"], indirect=True)  # they have biases everywhere
@pytest.mark.parametrize("terms", ["m1", "m2,m3", "ln1,v", "all"])
def test_other_biases_travel_too(base, tmp_path, terms):
    """m1 to m3 as BEFT biases, whose names must not match one another's; norms as modules that are saved whole."""
    model, before = trained(base, terms)
    save_adapter(make_adapter(model, before), tmp_path / "adapter")
    gold, plain = peft_runs(base, tmp_path / "adapter")
    assert_agrees(logits(model), plain, gold, what="trained here")
    assert_agrees(logits(load_adapted(base, tmp_path / "adapter")), plain, gold, what="loaded here")


def test_bfloat16_keeps_all_of_the_adapter(base, tmp_path):
    """Added in float32, as PEFT does. Gold is the same bfloat16 weights and the same float32 Δ in float64; the error
    against it is that of bfloat16."""
    model, before = trained(base, "v")
    save_adapter(make_adapter(model, before), tmp_path / "adapter")
    ours = load_adapted(base, tmp_path / "adapter", dtype=torch.bfloat16)
    bias = ours.blocks[0].attention.v.bias  # type: ignore[union-attr]
    assert bias.dtype == torch.float32  # type: ignore[union-attr]
    gold, plain = peft_runs(base, tmp_path / "adapter", torch.bfloat16)
    assert_agrees(logits(ours), plain, gold)


def test_a_head_with_another_number_of_labels(tmp_path):
    model = build_model({"model_type": "bert", "vocab_size": VOCAB, **ENCODER}, task="hidden")
    redraw(model, 0)
    save_model(model, tmp_path / "base")
    raw = {"model_type": "bert", "vocab_size": VOCAB, "num_labels": 3, **ENCODER}
    tuned = build_model(raw, task="classification")
    tuned.load_state_dict(model.state_dict(), strict=False)
    tuned.fresh = frozenset(name for name, _ in tuned.named_parameters() if name.startswith("head."))
    before = {n: p.detach().clone() for n, p in freeze_except(tuned, "v", head=True).items()}
    redraw(tuned.head, 5)  # type: ignore[arg-type]
    save_adapter(make_adapter(tuned, before), tmp_path / "adapter")
    loaded = load_adapted(tmp_path / "base", tmp_path / "adapter")
    assert loaded.config.labels == 3
    assert torch.equal(logits(loaded), logits(tuned.eval()))


class TestRefusals:
    @pytest.fixture
    def adapter(self, tmp_path) -> Path:
        model = build_model({"model_type": "opt", "vocab_size": VOCAB, **SIZES["opt"]}, task="lm")
        save_adapter(make_adapter(model, select(model, "v")), tmp_path / "a")
        return tmp_path / "a"

    def edit(self, adapter: Path, **changes) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def test_another_method(self, adapter):
        self.edit(adapter, peft_type="LORA")
        with pytest.raises(BadInput, match=r"adapter_config\.json: peft_type = 'LORA'"):
            load_adapter(adapter)

    def test_a_missing_file(self, adapter, tmp_path):
        with pytest.raises(BadInput, match=r"holds no adapter_config\.json"):
            load_adapter(tmp_path)
        (adapter / "adapter_model.safetensors").unlink()
        with pytest.raises(BadInput, match=r"adapter_model\.safetensors: missing"):
            load_adapter(adapter)

    @pytest.mark.parametrize(
        ("name", "value", "why"),
        [
            ("model.x.beft_bias", torch.zeros(1, 4), "does not begin with"),
            ("base_model.model.x.beft_bias", torch.zeros(4), r"shape \(4,\), must be"),
            ("base_model.model.x.beft_bias", torch.full((1, 4), torch.nan), "finite"),
            ("base_model.model.x.lora_A.weight", torch.zeros(1, 4), "neither a bias nor"),
        ],
    )
    def test_a_tensor_without_meaning(self, adapter, name, value, why):
        from safetensors.torch import save_file

        save_file({name: value}, adapter / "adapter_model.safetensors")
        with pytest.raises(BadInput, match=why):
            load_adapter(adapter)

    def test_another_model(self, adapter):
        loaded = load_adapter(adapter)
        other = build_model({"model_type": "llama", "vocab_size": VOCAB, **SIZES["llama"]}, task="lm")
        with pytest.raises(BadInput, match="which this llama model does not have"):
            apply_adapter(other, loaded)
        wide = build_model({"model_type": "opt", "vocab_size": VOCAB, **SIZES["opt"], "hidden_size": 32}, task="lm")
        with pytest.raises(BadInput, match=r"has shape \(16,\), the model's has \(32,\)"):
            apply_adapter(wide, loaded)

    def test_what_is_no_bias_adapter(self):
        model = build_model({"model_type": "bert", "vocab_size": VOCAB, **ENCODER}, task="classification")
        with pytest.raises(BadInput, match="is no bias"):
            make_adapter(model, dict(model.named_parameters()))
        with pytest.raises(BadInput, match="cannot hold a head or norms alone"):
            make_adapter(model, freeze_except(model, "none", head=True))

    def test_nothing_is_overwritten(self, adapter):
        model = build_model({"model_type": "opt", "vocab_size": VOCAB, **SIZES["opt"]}, task="lm")
        with pytest.raises(BadInput, match="exists and is not empty"):
            save_adapter(make_adapter(model, select(model, "q")), adapter)
