"""What certify reads off config.json, transformers' own model does: each family, tiny, with all parameters redrawn.

b_k, b_v and b_q are added behind the projections by hooks, whether the family has them or not. transformers takes the
softmax in float32 even in a float64 model, so what does nothing still moves the output by some u32 = 6e-8 of its size;
a random unit bias that acts moves it by a hundredth or more. The lines at 1e-5 and 1e-3 are far from both.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers
from tiny import BERTS
from torch import Tensor, nn

from minibeft.certificate.certify import Certificate, certify
from minibeft.families import FAMILIES
from minibeft.theory.draws import Draws

transformers.logging.set_verbosity_error()
STILL, MOVED = 1e-5, 1e-3

BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 30}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 30, "n_positions": 16}
LLAMA = BERT | {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(BERTS, BERT),
    "electra": BERT,
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "vocab_size": 30},
    "vit": BERT | {"image_size": 8, "patch_size": 4},
    "opt": BERT | {"ffn_dim": 20, "word_embed_proj_dim": 24},
    "gpt2": GPT2,
    "gptj": GPT2 | {"rotary_dim": 4},
    "gpt_neox": BERT | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 100.0}},
    "bloom": {"hidden_size": 24, "n_layer": 2, "n_head": 3, "vocab_size": 30},
    "phi": LLAMA | {"hidden_size": 32, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 100.0}},
    "llama": LLAMA | {"hidden_size": 32},
    "mistral": LLAMA | {"head_dim": 10, "sliding_window": 3},
    "qwen2": LLAMA | {"hidden_size": 32},
    "qwen3": LLAMA | {"head_dim": 10},
    "gemma2": LLAMA | {"head_dim": 10, "sliding_window": 3, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5},
    "gpt_oss": LLAMA | {"head_dim": 10, "num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": 3},
    "t5": {"d_model": 24, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 4, "vocab_size": 30},
    "whisper": {
        "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "vocab_size": 30,
        "num_mel_bins": 4, "max_source_positions": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
}  # fmt: skip

# Where each family keeps its projections; fused ones are cut by `rows`.
SPLIT = {"q": r"\.q_proj$", "k": r"\.k_proj$", "v": r"\.v_proj$", "o": r"attn\.(o_proj|out_proj)$|attention\.o_proj$"}
ENCODER = {"q": r"self\.query$", "k": r"self\.key$", "v": r"self\.value$", "o": r"attention\.output\.dense$"}
NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(FAMILIES, SPLIT),
    **dict.fromkeys(BERTS, ENCODER),
    "electra": ENCODER,
    "distilbert": {"q": r"\.q_lin$", "k": r"\.k_lin$", "v": r"\.v_lin$", "o": r"\.out_lin$"},
    "phi": SPLIT | {"o": r"attn\.dense$"},
    "gpt2": {**dict.fromkeys("qkv", r"\.c_attn$"), "o": r"attn\.c_proj$"},
    "gpt_neox": {**dict.fromkeys("qkv", r"\.query_key_value$"), "o": r"attention\.dense$"},
    "bloom": {**dict.fromkeys("qkv", r"\.query_key_value$"), "o": r"attention\.dense$"},
    "t5": {"q": r"Attention\.q$", "k": r"Attention\.k$", "v": r"Attention\.v$", "o": r"Attention\.o$"},
}


def build(family: str, **changes: Any) -> tuple[nn.Module, Certificate]:
    """transformers' model with every parameter redrawn, in float64, and the certificate of its config.json."""
    config = transformers.CONFIG_MAPPING[family](**SMALL[family] | changes)
    config._experts_implementation = "eager"  # grouped kernels take no float64
    draws = Draws(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draws.normal(*parameter.shape, std=0.5))
    return model, certify(config.to_dict())


def run(model: nn.Module, family: str) -> Tensor:
    """Hidden states for fixed inputs."""
    g = Draws(1)
    ids = g.integers(3, 30, 2, 7)
    given: dict[str, Any] = {"input_ids": ids}
    if family == "vit":
        given = {"pixel_values": g.normal(2, 3, 8, 8)}
    elif family == "t5":
        given["decoder_input_ids"] = ids[:, :5]
    elif family == "whisper":
        sound = g.normal(2, 4, 12)
        given = {"input_features": sound, "decoder_input_ids": ids[:, :5]}
    with torch.no_grad():
        return model(**given).last_hidden_state


def rows(family: str, heads: int, size: int, name: str, out: int) -> Tensor:
    """Which outputs of the projection are q, k or v, head by head."""
    at = "qkv".index(name)
    if family == "gpt2":
        return torch.arange(out).view(3, -1)[at]
    if family in ("gpt_neox", "bloom"):
        return torch.arange(out).view(heads, 3, size)[:, at].flatten()
    return torch.arange(out)


def modules(model: nn.Module, family: str, name: str) -> list[nn.Module]:
    found = [module for path, module in model.named_modules() if re.search(NAMES[family][name], path)]
    assert found, f"{family} has no {name}"
    return found


def weight(module: nn.Module) -> Tensor:
    """(out, in), of Linear and of GPT-2's Conv1D."""
    w = module.get_parameter("weight")
    return w if isinstance(module, nn.Linear) else w.T


def shapes(certificate: Certificate, count: int) -> list[Any]:
    """The spec of each attention module, in the order of the module list."""
    sites = certificate.findings
    if len(sites) == 1 or "sliding" in sites[-1].site.name:
        return [sites[0].site.spec] * count
    encoder, decoder, cross = (f.site.spec for f in sites)
    layers = len(sites[0].site.layers)
    return [encoder] * layers + [decoder, cross] * len(sites[1].site.layers)


def biases(
    model: nn.Module, certificate: Certificate, family: str, name: str, dims: range | None = None
) -> list[Tensor]:
    """One random bias for each attention module, (heads, size), on these dims of each head."""
    g = Draws(2)
    drawn = []
    for spec in shapes(certificate, len(modules(model, family, name))):
        heads = spec.heads if name == "q" else spec.kv_heads
        b = g.normal(heads, spec.head_size)
        if dims is not None:
            b *= torch.tensor([float(i in dims) for i in range(spec.head_size)], dtype=torch.float64)
        drawn.append(b)
    return drawn


def adding(indices: Tensor, vector: Tensor) -> Callable[..., Tensor]:
    """A forward hook that adds the vector to these outputs."""

    def hook(_module, _inputs, output):
        return output.index_add(-1, indices, vector.expand(*output.shape[:-1], -1))

    return hook


def change(
    model: nn.Module, certificate: Certificate, family: str, name: str, dims: range | None = None, *, fold: bool = False
) -> float:
    """How much the hidden states change, relative to their size, when this bias is added; with fold, when W_o b_v is
    taken away again behind the output projection."""
    before = run(model, family)
    projections = modules(model, family, name)
    outputs = modules(model, family, "o")
    specs = shapes(certificate, len(projections))
    assert len(projections) == len(outputs) == len(specs)
    with ExitStack() as hooks:
        drawn = biases(model, certificate, family, name, dims)
        for module, out, spec, bias in zip(projections, outputs, specs, drawn, strict=True):
            at = rows(family, spec.heads, spec.head_size, name, weight(module).shape[0])
            hooks.callback(module.register_forward_hook(adding(at, bias.flatten())).remove)
            if fold:
                shift = bias.repeat_interleave(spec.heads // spec.kv_heads, 0).flatten()
                back = -(weight(out) @ shift)
                hooks.callback(out.register_forward_hook(adding(torch.arange(len(back)), back)).remove)
        after = run(model, family)
    return ((after - before).abs().max() / before.abs().max()).item()


CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in SMALL),
    ("gpt2", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 100.0}}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}}),
    ("phi", {"qk_layernorm": True}),
    ("llama", {"attention_bias": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
    ("qwen3", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("vit", {"qkv_bias": False}),
    ("opt", {"enable_bias": False}),
    ("bert", {"is_decoder": True}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), CASES, ids=lambda value: str(value))
def test_the_model_does_what_the_certificate_says(family, changes):
    model, certificate = build(family, **changes)
    assert certificate.unclear is None
    statuses = {name: certificate.verdict(name).status for name in "qkv"}
    assert (change(model, certificate, family, "k") < STILL) == (statuses["k"] == "null")
    assert (change(model, certificate, family, "v", fold=True) < STILL) == (statuses["v"] == "foldable")
    assert change(model, certificate, family, "v") > MOVED
    assert change(model, certificate, family, "q") > MOVED
    for part in certificate.verdict("k").dims:
        moved = change(model, certificate, family, "k", range(part.first, part.last + 1))
        assert moved < STILL if part.status == "null" else moved > MOVED
    if statuses["k"] == "active":
        assert change(model, certificate, family, "k") > MOVED


@pytest.mark.parametrize(("family", "changes"), CASES, ids=lambda value: str(value))
def test_the_model_has_the_biases_that_the_certificate_says(family, changes):
    model, certificate = build(family, **changes)
    for name in "qkvo":
        for module, spec in zip(modules(model, family, name), shapes(certificate, 99), strict=False):
            has = getattr(module, "bias", None) is not None
            assert has == (name in spec.biases), f"{family}: b_{name}"


def test_the_checked_families_are_known():
    """The others are held against audit's measurement, in tests/audit and by the atlas (records/atlas.json)."""
    assert set(SMALL) <= set(FAMILIES)


def test_the_check_can_fail():
    """BERT's certificate on LLaMA's model, and the other way round, is found out."""
    bert, bert_says = build("bert")
    llama, llama_says = build("llama")
    assert change(llama, llama_says, "llama", "k") > MOVED
    assert bert_says.verdict("k").status == "null"
    assert change(bert, bert_says, "bert", "v", fold=False) > MOVED
    sink, sink_says = build("gpt_oss")
    assert change(sink, sink_says, "gpt_oss", "v", fold=True) > MOVED


def test_a_bloom_that_forgets_its_output_bias_does_not_fold():
    """slow_but_exact with several slices never adds b_o; with one slice it does."""
    raw = {"model_type": "bloom", "slow_but_exact": True}
    assert certify({**raw, "pretraining_tp": 4}).verdict("v").status == "active"
    assert certify({**raw, "pretraining_tp": 4}).verdict("k").status == "null"
    assert certify({**raw, "pretraining_tp": 1}).verdict("v").status == "foldable"
