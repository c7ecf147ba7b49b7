"""ModelConfig: everything that decides a model's function, frozen; which biases exist is part of it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from minibeft.models.features import Patches, Spectrogram
from minibeft.models.layers import Learned
from minibeft.theory.variants import AttentionSpec

Task = Literal["hidden", "classification", "tokens", "lm"]
CLASSIFY: tuple[Task, ...] = ("classification", "tokens")  # whose head has a row for each class
Backend = Literal["fused", "plain", "triton"]


@dataclass(frozen=True)
class ModelConfig:
    """One model of any family. Letters are those of the shape glossary in attention.py.

    attention the attention of each layer; heads, sizes and widths are the same in all
    biases   which of the modules q, k, v, o (attention) and mlp carry a bias; norms of kind "layer" always do
    residual "post" norms after each addition (BERT), "pre" norms each branch's input (OPT, LLaMA), "parallel" feeds
             both branches from one norm (GPT-J), "twin" each from its own norm (GPT-NeoX), "sandwich" norms each
             branch's input and output (Gemma 2), "scaled" norms each branch's input and multiplies its output by a
             learned vector (DINOv2)
    embedding_width  None: C; else a linear map leads from the embeddings to C. embedding_scale multiplies token vectors
    features images or spectrograms, which are then read in place of tokens; vocab is 0
    reads    what a classifier reads of the hidden states: the first token through a dense layer, the first token alone,
             the first token and the mean of the others, or the mean of all through a linear map to classifier_width
    head_activation  of a masked-token head; pooler_activation: of a classifier's dense layer, before which drops_twice
                     drops as well; logit_cap: the most that a token's logit can be
    decodes  a decoder: its language-model head predicts the next token, and a text is classified by its last token
    pooler   an encoder's pooler that the checkpoint carries although its task does not need it
    source   the config.json that this was read from; save_model writes it again
    """

    family: str
    task: Task
    vocab: int
    attention: tuple[AttentionSpec, ...]
    inner: int
    activation: str
    biases: frozenset[str]
    norm: Literal["layer", "rms", "rms+1"]
    eps: float
    residual: Literal["post", "pre", "parallel", "twin", "sandwich", "scaled"]
    features: Patches | Spectrogram | None = None
    positions: Learned | None = None
    gated: bool = False
    embedding_norm: bool = False
    embedding_width: int | None = None
    embedding_scale: float = 1.0
    token_types: int = 0
    pad: int | None = None
    tied: bool = False
    head_bias: bool = False
    head_activation: str = "gelu"
    reads: Literal["dense", "first", "first and mean", "mean"] = "dense"
    classifier_width: int | None = None
    pooler_activation: str = "tanh"
    drops_twice: bool = False
    logit_cap: float | None = None
    labels: int = 2
    decodes: bool = False
    pooler: bool = False
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    classifier_dropout: float = 0.0
    source: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def layers(self) -> int:
        return len(self.attention)

    @property
    def width(self) -> int:
        """C"""
        return self.attention[0].width

    @property
    def heads(self) -> int:
        """H"""
        return self.attention[0].heads

    @property
    def kv_heads(self) -> int:
        """G"""
        return self.attention[0].kv_heads

    @property
    def head_size(self) -> int:
        """D"""
        return self.attention[0].head_size

    @property
    def causal(self) -> bool:
        return self.attention[0].causal
