"""Tiny random models of every family: a drawn config.json, transformers' own model for it, and inputs with padding.

Hugging Face initialises every Linear bias to zero, so a freshly made model says nothing about biases: `reference`
redraws ALL parameters.
"""

import tempfile
from typing import Any, NamedTuple

import torch
import transformers
from hypothesis import strategies as st
from torch import Tensor, nn

import minibeft
from minibeft.families import BODIES, read_config
from minibeft.models.config import Backend, Task
from minibeft.models.transformer import Transformer
from minibeft.theory.draws import Draws

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ACTIVATIONS = st.sampled_from(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
DROPOUT = 0.25
WHISPER = transformers.models.whisper.modeling_whisper  # whose encoder has no name at top level
MIN_WIDTH = 8

# BERT's layout under other names.
BERTS = ("bert", "roberta", "xlm-roberta", "camembert")

# One configuration for each family that is searched at length, for tests that need no others; families.py draws some
# for every family.
ENCODER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
CONFIGS: dict[str, dict[str, Any]] = {
    **{
        name: {
            "architectures": [BODIES[name].stem + "ForSequenceClassification"],
            **ENCODER,
            "max_position_embeddings": 40,
        }
        for name in BERTS
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "max_position_embeddings": 40,
    },
    "llama": {"architectures": ["LlamaForCausalLM"], **ENCODER, "num_key_value_heads": 2, "attention_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], **ENCODER, "num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], **ENCODER, "num_key_value_heads": 2},
    "gptj": {"architectures": ["GPTJForCausalLM"], "n_embd": 24, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
}
# XLM-RoBERTa and CamemBERT are RoBERTa under another class name, which tests/families reads and writes for all.
LAYOUTS = [name for name in CONFIGS if name not in ("xlm-roberta", "camembert")]
# These with every task that they have.
CASES: list[tuple[str, Task]] = [(name, task) for name in LAYOUTS for task in ("hidden", *BODIES[name].heads)]


def architecture(family: str, task: Task) -> str:
    """transformers' class for this task."""
    return next(name for name, its in BODIES[family].architectures.items() if its == task)


def typical(family: str, task: Task, **changes: Any) -> dict[str, Any]:
    """The configuration above as a config.json for this task."""
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = {"model_type": family, "vocab_size": 40} | ends | CONFIGS[family] | changes
    return config | {"architectures": [architecture(family, task)]}


def encoder(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """BERT, RoBERTa and XLM-RoBERTa."""
    heads = draw(st.integers(1, 4))
    labels = draw(st.integers(1, 5))
    return {
        "vocab_size": draw(st.integers(20, 50)),
        "hidden_size": heads * draw(st.integers(-(-MIN_WIDTH // heads), 12)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(4, 40)),
        "hidden_act": draw(ACTIVATIONS),
        "type_vocab_size": draw(st.integers(1, 3)),
        "max_position_embeddings": draw(st.integers(16, 30)),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
        "pad_token_id": draw(st.integers(0, 3)),
        "hidden_dropout_prob": DROPOUT,
        "attention_probs_dropout_prob": DROPOUT,
        "classifier_dropout": draw(st.sampled_from([None, 0.5])),
        "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
        "label2id": {f"LABEL_{i}": i for i in range(labels)},
    }


def opt(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """OPT, with and without biases."""
    heads = draw(st.integers(1, 4))
    width = heads * draw(st.integers(-(-MIN_WIDTH // heads), 12))
    return {
        "vocab_size": draw(st.integers(20, 50)),
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "ffn_dim": draw(st.integers(4, 40)),
        "activation_function": draw(ACTIVATIONS),
        "max_position_embeddings": draw(st.integers(16, 30)),
        "enable_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "dropout": DROPOUT,
        "attention_dropout": DROPOUT,
    }


def rope(draw: st.DrawFn) -> dict[str, Any]:
    """Rotary positions in each spelling that config.json files use."""
    theta, factor = draw(st.sampled_from([100.0, 10_000.0, 1e6])), draw(st.sampled_from([1.5, 4.0]))
    return draw(
        st.sampled_from(
            [
                {},
                {"rope_theta": theta},
                {"rope_theta": theta, "rope_scaling": None},
                {"rope_theta": theta, "rope_scaling": {"type": "linear", "factor": factor}},
                {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": factor}},
                {"rope_parameters": {"rope_type": "default", "rope_theta": theta}},
                {"rope_parameters": {"rope_type": "linear", "rope_theta": theta, "factor": factor}},
            ]
        )
    )


def llama(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """LLaMA, Mistral and Qwen2: MHA, GQA or MQA; head_dim free of the width but for Qwen2."""
    groups, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * ratio
    size = 2 * draw(st.integers(-(-MIN_WIDTH // (2 * heads)), 6))
    config = {
        "vocab_size": draw(st.integers(20, 50)),
        "hidden_size": heads * size,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": draw(st.integers(4, 40)),
        "hidden_act": draw(ACTIVATIONS),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "max_position_embeddings": 32,
        "tie_word_embeddings": draw(st.booleans()),
        "attention_dropout": DROPOUT,
    } | rope(draw)
    if family == "qwen2":
        return config
    if draw(st.booleans()):
        config |= {"head_dim": size, "hidden_size": heads * draw(st.integers(-(-MIN_WIDTH // heads), 12))}
    if family == "mistral":
        return config | {"sliding_window": None}
    return config | {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}


def gptj(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """GPT-J, rotating all or a part of each head."""
    heads = draw(st.integers(1, 4))
    half = draw(st.integers(-(-MIN_WIDTH // (2 * heads)), 6))
    return {
        "vocab_size": draw(st.integers(20, 50)),
        "n_embd": heads * 2 * half,
        "n_layer": draw(st.integers(1, 3)),
        "n_head": heads,
        "n_inner": draw(st.one_of(st.none(), st.integers(4, 40))),
        "rotary_dim": 2 * draw(st.integers(1, half)),
        "n_positions": 32,
        "activation_function": draw(ACTIVATIONS),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
        "resid_pdrop": DROPOUT,
        "embd_pdrop": DROPOUT,
        "attn_pdrop": DROPOUT,
    }


DRAWERS = {
    **dict.fromkeys(BERTS, encoder),
    **dict.fromkeys(("llama", "mistral", "qwen2"), llama),
    "opt": opt,
    "gptj": gptj,
}


@st.composite
def configurations(draw: st.DrawFn, family: str, task: Task) -> dict[str, Any]:
    """A config.json of this family whose `architectures` names this task."""
    ends = {"bos_token_id": 0, "eos_token_id": 2}
    common = {"model_type": family, "architectures": [architecture(family, task)]} | ends
    return common | DRAWERS[family](draw, family)


def reference(raw: dict[str, Any], seed: int) -> Any:
    """transformers' own model in float32, every parameter redrawn: norm weights around 1, all others with std 0.5."""
    config = transformers.AutoConfig.for_model(**raw)
    config._attn_implementation = "eager"
    name = raw["architectures"][0]
    model = getattr(WHISPER if name == "WhisperEncoder" else transformers, name)(config).eval()
    redraw(model, seed)
    for module in model.modules():
        if type(module).__name__ == "BloomGelu":  # whose own backward pass has the derivative to nine digits
            module.forward = transformers.models.bloom.modeling_bloom.bloom_gelu_forward
    return model


@torch.no_grad()
def redraw(model: nn.Module, seed: int) -> None:
    """Every parameter anew: norm weights around 1; biases and embeddings with std 0.5; matrices with std 1/√fan-in, so
    that logits stay of order one: a saturated softmax would hide b_q and b_k."""
    generator = Draws(seed)
    norms = {id(m.weight) for m in model.modules() if "Norm" in type(m).__name__}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    turned = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}
    for parameter in model.parameters():
        if id(parameter) in norms:
            parameter.copy_(generator.normal(*parameter.shape, mean=1.0, std=0.2))
        else:
            fan_in = parameter.shape[0 if id(parameter) in turned else -1]
            std = fan_in**-0.5 if id(parameter) in matrices | turned else 0.5
            parameter.copy_(generator.normal(*parameter.shape, std=std))


class Batch(NamedTuple):
    """What a model is called with; the mask says which tokens are real."""

    input_ids: Tensor | None
    attention_mask: Tensor
    token_type_ids: Tensor | None
    features: Tensor | None = None


def batch(raw: dict[str, Any], seed: int, *, rows: int, length: int, padding: str) -> Batch:
    """Random tokens; rows of different length with padding on the left, on the right, or (None) none."""
    generator = Draws(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return generator.integers(low, high, *shape)

    if (source := read_config(raw, "hidden", "").features) is not None:
        x = generator.normal(rows, *source.shape)
        with torch.no_grad():
            made = source.embeddings(2, 0.0, same_dropout=False)(x)
        return Batch(None, torch.ones(made.shape[:2], dtype=torch.long), None, x)
    pad = raw.get("pad_token_id", 1)
    ids = integers(0, raw["vocab_size"] - 1, rows, length)
    ids += ids >= pad  # RoBERTa takes the padding token for padding wherever it stands
    mask = torch.ones_like(ids)
    if padding != "none":
        real = integers(1, length + 1, rows)[:, None]
        places = torch.arange(length)[None]
        mask = (places < real if padding == "right" else places >= length - real).long()
        ids = ids.where(mask.bool(), torch.tensor(pad))
    types = raw.get("type_vocab_size")
    return Batch(ids, mask, None if types is None else integers(0, types, rows, length))


def load(theirs: Any, dtype: torch.dtype, backend: Backend) -> Transformer:
    """Our model with transformers' weights, the way every user gets one."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return minibeft.load_model(folder, dtype=dtype, backend=backend)
