"""RoBERTa: BERT with positions that start after the padding index, and a classification head of its own."""

from typing import Any

from minibeft.families import bert
from minibeft.families.family import Family, Reader
from minibeft.models.layers import Learned


def derive(r: Reader) -> dict[str, Any]:
    """BERT's, except for the positions."""
    rows, pad = r.get("max_position_embeddings", 514), r.get("pad_token_id", 1)
    return bert.derive(r) | {"positions": Learned(rows, start=pad + 1, counted="tokens")}


ROBERTA = Family(
    model_type="roberta",
    architectures={
        "RobertaModel": "hidden",
        "RobertaForSequenceClassification": "classification",
        "RobertaForMaskedLM": "lm",
    },
    prefix="roberta.",
    names=bert.ENCODER_NAMES,
    heads={
        "classification": {"head.dense": "classifier.dense", "head.out": "classifier.out_proj"},
        "lm": {
            "head.dense": "lm_head.dense",
            "head.norm": "lm_head.layer_norm",
            "head.logits.bias": "lm_head.bias",
        },
    },
    keys=bert.ENCODER_KEYS | {"vocab_size": ("vocab", 50265), "pad_token_id": ("pad", 1)},
    derive=derive,
    only=bert.ENCODER_ONLY,
    fixed=bert.ENCODER_FIXED,
    spare=bert.ENCODER_SPARE,
    copies={"lm_head.decoder.weight": "embed.tokens.weight", "lm_head.decoder.bias": "head.logits.bias"},
)
