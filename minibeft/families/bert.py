"""BERT: post-norm encoder, learned positions that count padding, token types, biases everywhere."""

from typing import Any

from minibeft.families.family import Family, Reader
from minibeft.models.layers import Learned


def derive(r: Reader) -> dict[str, Any]:
    """Heads, positions and dropouts."""
    heads, width = r.get("num_attention_heads", 12), r.get("hidden_size", 768)
    dropout = r.get("hidden_dropout_prob", 0.1)
    return {
        "kv_heads": heads,
        "head_size": r.head_size(width, heads),
        "positions": Learned(rows=r.get("max_position_embeddings", 512)),
        "embedding_dropout": dropout,
        "classifier_dropout": r.get("classifier_dropout", dropout),
    }


ENCODER_KEYS = {
    "vocab_size": ("vocab", 30522),
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("inner", 3072),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "type_vocab_size": ("token_types", 2),
    "layer_norm_eps": ("eps", 1e-12),
    "pad_token_id": ("pad", 0),
}
ENCODER_NAMES = {
    "embed.tokens": "embeddings.word_embeddings",
    "embed.positions": "embeddings.position_embeddings",
    "embed.types": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
    "blocks.{i}.attention.q": "encoder.layer.{i}.attention.self.query",
    "blocks.{i}.attention.k": "encoder.layer.{i}.attention.self.key",
    "blocks.{i}.attention.v": "encoder.layer.{i}.attention.self.value",
    "blocks.{i}.attention.o": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm1": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.mlp.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.mlp.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
    "head.dense": "pooler.dense",
}
ENCODER_FIXED = {
    "biases": frozenset({"q", "k", "v", "o", "mlp"}),
    "norm": "layer",
    "residual": "post",
    "causal": False,
    "embedding_norm": True,
    "tied": True,
    "head_bias": True,
}
# Untied, the two names of the masked-token head's bias mean different things to different versions of transformers.
ENCODER_ONLY = {"tie_word_embeddings": (True,)}
# A pooler that pretraining left behind is read by no masked-token head, nor by RoBERTa's classifier.
ENCODER_SPARE = (r"embeddings\.position_ids$", r"^pooler\.dense\.(weight|bias)$")

BERT = Family(
    model_type="bert",
    architectures={"BertModel": "hidden", "BertForSequenceClassification": "classification", "BertForMaskedLM": "lm"},
    prefix="bert.",
    names=ENCODER_NAMES,
    heads={
        "classification": {"head.out": "classifier"},
        "lm": {
            "head.dense": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.logits.bias": "cls.predictions.bias",
        },
    },
    keys=ENCODER_KEYS,
    derive=derive,
    only=ENCODER_ONLY,
    fixed=ENCODER_FIXED,
    spare=(*ENCODER_SPARE, r"^cls\.seq_relationship\."),
    copies={
        "cls.predictions.decoder.weight": "embed.tokens.weight",
        "cls.predictions.decoder.bias": "head.logits.bias",
    },
)
