"""BERT and its kin: post-norm encoders with learned positions, token types, and biases everywhere."""

from dataclasses import replace
from typing import Any

from minibeft.families.attention import Keys, Site
from minibeft.families.family import Body, Family, Vocabulary, learned
from minibeft.families.reading import Reader


def with_cross(c: Reader, site: Site) -> list[Site]:
    """The site, and a cross-attention of the same kind where add_cross_attention asks for it."""
    if not c.flag("add_cross_attention", False):
        return [site]
    spec = replace(site.spec, causal=False, cross=True, relative_query=False, relative_key=False)
    return [site, replace(site, name="cross-attention", spec=spec, takes_prefix=False)]


def sites(c: Reader, site: Site) -> list[Site]:
    """position_embedding_type is what a checkpoint was trained with; transformers 5 no longer reads it."""
    kind = c.choice("position_embedding_type", "absolute", ("absolute", "relative_key", "relative_key_query"))
    spec = replace(
        site.spec,
        causal=c.flag("is_decoder", False),
        relative_query=kind != "absolute",
        relative_key=kind == "relative_key_query",
    )
    return with_cross(c, replace(site, spec=spec))


def dropouts(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The embeddings drop as much as the blocks, and so does the classifier unless the file says otherwise."""
    dropout = values["dropout"]
    return {"embedding_dropout": dropout, "classifier_dropout": c.probability("classifier_dropout", dropout)}


def bert_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Positions count every token; the masked-token head has the activation of the MLPs."""
    positions = learned(c, c.count("max_position_embeddings", 512))
    return dropouts(c, values) | {"positions": positions, "head_activation": values["activation"]}


def ernie_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """BERT's, as long as tokens have no task types."""
    c.get("task_type_vocab_size", 3)
    return bert_rest(c, values)


def electra_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """The heads have GELU whatever the MLPs have; the summary_ keys are of a head that minibeft does not have."""
    return bert_rest(c, values) | {"head_activation": "gelu"}


def distilbert_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Positions are a learned table, even if started as sinusoids; qa_dropout belongs to a head that is not here."""
    c.get("qa_dropout", 0.1)
    dropout = {"embedding_dropout": values["dropout"], "head_activation": values["activation"]}
    return dropout | {"positions": learned(c, c.count("max_position_embeddings", 512))}


def roberta_rest(c: Reader, values: dict[str, Any]) -> dict[str, Any]:
    """Positions count the tokens that are not padding, and start behind the padding token's row."""
    rows = c.count("max_position_embeddings", 512)
    return dropouts(c, values) | {"positions": learned(c, rows, values["pad"] + 1, "tokens")}


BERT_BODY = Body(
    stem="Bert",
    lm="ForMaskedLM",
    prefix="bert.",
    names={
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
    },
    heads={
        "classification": {"head.out": "classifier"},
        "tokens": {"head.out": "classifier"},
        "lm": {
            "head.dense": "cls.predictions.transform.dense",
            "head.norm": "cls.predictions.transform.LayerNorm",
            "head.logits.bias": "cls.predictions.bias",
        },
    },
    keys={
        "vocab_size": ("vocab", 30522),
        "intermediate_size": ("inner", 3072),
        "hidden_act": ("activation", "gelu"),
        "hidden_dropout_prob": ("dropout", 0.1),
        "type_vocab_size": ("token_types", 2),
        "layer_norm_eps": ("eps", 1e-12),
        "pad_token_id": ("pad", 0),
    },
    fixed={"norm": "layer", "residual": "post", "embedding_norm": True, "tied": True, "head_bias": True},
    # Untied, the two names of the masked-token head's bias mean different things to different versions of
    # transformers.
    only={"position_embedding_type": ("absolute",), "tie_word_embeddings": (True,)},
    rest=bert_rest,
    # A pooler that pretraining left behind is read by no masked-token head, nor by RoBERTa's classifier.
    spare=(r"embeddings\.position_ids$", r"^pooler\.dense\.(weight|bias)$", r"^cls\.seq_relationship\."),
    copies={
        "cls.predictions.decoder.weight": "embed.tokens.weight",
        "cls.predictions.decoder.bias": "head.logits.bias",
    },
    vocabulary=Vocabulary(
        *("BertTokenizer", "words"),
        {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    ),
)
BERT = Family("bert", Keys(dropout=("attention_probs_dropout_prob", 0.1), sites=sites), BERT_BODY)
ROBERTA_BODY = replace(
    BERT_BODY,
    stem="Roberta",
    prefix="roberta.",
    heads={
        "classification": {"head.dense": "classifier.dense", "head.out": "classifier.out_proj"},
        "tokens": {"head.out": "classifier"},
        "lm": {"head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm", "head.logits.bias": "lm_head.bias"},
    },
    keys={**BERT_BODY.keys, "vocab_size": ("vocab", 50265), "pad_token_id": ("pad", 1)},
    fixed={**BERT_BODY.fixed, "drops_twice": True},
    rest=roberta_rest,
    spare=BERT_BODY.spare[:2],
    copies={"lm_head.decoder.weight": "embed.tokens.weight", "lm_head.decoder.bias": "head.logits.bias"},
    vocabulary=Vocabulary(
        *("RobertaTokenizer", "bytes"),
        {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    ),
    trains_longer=True,
)
ROBERTA = Family("roberta", BERT.attention, ROBERTA_BODY)
XLM_ROBERTA_BODY = replace(
    ROBERTA_BODY, stem="XLMRoberta", keys={**ROBERTA_BODY.keys, "vocab_size": ("vocab", 30522)}, vocabulary=None
)
XLM_ROBERTA = Family("xlm-roberta", BERT.attention, XLM_ROBERTA_BODY)
CAMEMBERT = Family("camembert", BERT.attention, replace(XLM_ROBERTA_BODY, stem="Camembert"))
DATA2VEC_BODY = replace(
    XLM_ROBERTA_BODY, stem="Data2VecText", prefix="data2vec_text.", vocabulary=ROBERTA_BODY.vocabulary
)
DATA2VEC = Family("data2vec-text", BERT.attention, DATA2VEC_BODY)
ERNIE = Family(
    "ernie",
    BERT.attention,
    replace(BERT_BODY, stem="Ernie", prefix="ernie.", only={"use_task_id": (False,)}, rest=ernie_rest),
)
ELECTRA = Family(
    "electra",
    replace(BERT.attention, sizes=(256, 4, 12)),
    replace(
        BERT_BODY,
        stem="Electra",
        prefix="electra.",
        names={ours: theirs for ours, theirs in BERT_BODY.names.items() if ours != "head.dense"}
        | {"embed.project": "embeddings_project"},
        heads={
            "classification": {"head.dense": "classifier.dense", "head.out": "classifier.out_proj"},
            "tokens": {"head.out": "classifier"},
            "lm": {
                "head.dense": "generator_predictions.dense",
                "head.norm": "generator_predictions.LayerNorm",
                "head.logits.bias": "generator_lm_head.bias",
            },
        },
        keys={
            **BERT_BODY.keys,
            "intermediate_size": ("inner", 1024),
            "embedding_size": ("embedding_width", 128),
        },
        fixed={**BERT_BODY.fixed, "pooler_activation": "gelu", "drops_twice": True},
        rest=electra_rest,
        spare=(r"embeddings\.position_ids$", r"^discriminator_predictions\."),
        copies={"generator_lm_head.weight": "embed.tokens.weight"},
    ),
)
DISTILBERT = Family(
    "distilbert",
    Keys(
        names=("dim|hidden_size", "n_heads|num_attention_heads", "n_layers|num_hidden_layers"),
        sizes=(768, 12, 6),
        dropout=("attention_dropout", 0.1),
    ),
    Body(
        stem="DistilBert",
        lm="ForMaskedLM",
        prefix="distilbert.",
        names={
            "embed.tokens": "embeddings.word_embeddings",
            "embed.positions": "embeddings.position_embeddings",
            "embed.norm": "embeddings.LayerNorm",
            "blocks.{i}.attention.q": "transformer.layer.{i}.attention.q_lin",
            "blocks.{i}.attention.k": "transformer.layer.{i}.attention.k_lin",
            "blocks.{i}.attention.v": "transformer.layer.{i}.attention.v_lin",
            "blocks.{i}.attention.o": "transformer.layer.{i}.attention.out_lin",
            "blocks.{i}.norm1": "transformer.layer.{i}.sa_layer_norm",
            "blocks.{i}.mlp.up": "transformer.layer.{i}.ffn.lin1",
            "blocks.{i}.mlp.down": "transformer.layer.{i}.ffn.lin2",
            "blocks.{i}.norm2": "transformer.layer.{i}.output_layer_norm",
        },
        heads={
            "classification": {"head.dense": "pre_classifier", "head.out": "classifier"},
            "tokens": {"head.out": "classifier"},
            "lm": {
                "head.dense": "vocab_transform",
                "head.norm": "vocab_layer_norm",
                "head.logits.bias": "vocab_projector.bias",
            },
        },
        keys={
            "vocab_size": ("vocab", 30522),
            "hidden_dim": ("inner", 3072),
            "activation": ("activation", "gelu"),
            "dropout": ("dropout", 0.1),
            "seq_classif_dropout": ("classifier_dropout", 0.2),
            "pad_token_id": ("pad", 0),
        },
        fixed={**BERT_BODY.fixed, "eps": 1e-12, "pooler_activation": "relu"},
        only={"sinusoidal_pos_embds": (False, True), "tie_weights_": (True,)},
        rest=distilbert_rest,
        spare=(r"embeddings\.position_ids$",),
        copies={"vocab_projector.weight": "embed.tokens.weight"},
        vocabulary=BERT_BODY.vocabulary,
    ),
)
FAMILIES = (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DATA2VEC, ERNIE, ELECTRA, DISTILBERT)
