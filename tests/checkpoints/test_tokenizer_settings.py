"""tokenizer_config.json against tokenizer.json, in combinations: ids and types are transformers', or it is refused."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors

import minibeft
from minibeft.errors import BadInput

TEXTS = ["Hello wörld Über", "hello [MASK]x new  <new> Wörld", "naïve 中文 héllo", " <mask> hello</s> a"]
LETTERS = [*"abdehlnoruvwxïöéüHWUÜÖ", "中", "文"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "new", "Hello", "<", ">", "world", "wörld", *LETTERS]
WORDS += [f"##{letter}" for letter in LETTERS]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]


def maybe(*values: Any) -> st.SearchStrategy[list[Any]]:
    """No key, or one of these values."""
    return st.sampled_from([[], *([value] for value in values)])


BERT = {
    "do_lower_case": maybe(True, False),
    "strip_accents": maybe(None, True, False),
    "tokenize_chinese_chars": maybe(False),
    "tokenizer_class": maybe("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "RobertaTokenizer"),
    "model_input_names": maybe(["input_ids", "attention_mask"]),
    "added_tokens_decoder": maybe(
        {"6": {"content": "new", "normalized": False}}, {str(len(WORDS)): {"content": "<new>", "lstrip": True}}
    ),
    "mask_token": maybe({"__type": "AddedToken", "content": "[MASK]", "lstrip": True}),
}
BYTES = {
    "add_prefix_space": maybe(True, False),
    "tokenizer_class": maybe("RobertaTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "BertTokenizer"),
    "model_input_names": maybe(["input_ids", "attention_mask"]),
    "mask_token": maybe("<mask>", {"__type": "AddedToken", "content": "<mask>", "lstrip": True}),
}


def settings(keys: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(keys).map(lambda drawn: {key: value[0] for key, value in drawn.items() if value})


def check(folder: Path, kind: str, tokenizer: Tokenizer, config: dict[str, Any]) -> bool:
    """Whether ours is transformers' on sentences and pairs; False where ours is refused."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        ours = minibeft.load_tokenizer(folder)
    except BadInput:
        return False
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, *zip(TEXTS, reversed(TEXTS), strict=True)):
        expected = theirs(*text if isinstance(text, tuple) else (text,))
        found = ours.encode(text) if isinstance(text, str) else ours.encode(*text)
        assert found.ids == expected["input_ids"], (text, config)
        if kind in ("bert", "roberta"):  # the other models have no types
            assert found.type_ids == expected.get("token_type_ids", [0] * len(found.ids)), (text, config)
    return True


def bert_file(lower: bool | None, frame: str | None, added: bool) -> Tokenizer:
    """A word piece tokenizer whose own settings may be others than tokenizer_config.json has."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    if lower is not None:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    ends = ("[SEP]", 3), ("[CLS]", 2)
    if frame == "bert":
        tokenizer.post_processor = processors.BertProcessing(*ends)  # type: ignore[assignment]
    elif frame == "template":
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A", pair="[CLS] $A [SEP]:1 $B:1", special_tokens=list(ends)
        )
    tokenizer.add_special_tokens(WORDS[:5])
    if added:
        tokenizer.add_tokens([AddedToken("<new>", rstrip=True)])
    return tokenizer


@given(
    config=settings(BERT),
    lower=st.sampled_from([None, True, False]),
    frame=st.sampled_from([None, "bert", "template"]),
    added=st.booleans(),
)
def test_word_pieces(config: dict[str, Any], lower: bool | None, frame: str | None, added: bool):
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), "bert", bert_file(lower, frame, added), config)


@pytest.fixture(scope="module")
def pairs() -> Tokenizer:
    """Byte pairs, special tokens included."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS * 3, vocab_size=320, special_tokens=SPECIAL, show_progress=False)
    return Tokenizer.from_str(made.to_str())


@given(
    config=settings(BYTES),
    kind=st.sampled_from(["roberta", "opt", "gptj"]),
    prefix=st.booleans(),
    frame=st.sampled_from([None, "roberta", "template"]),
)
def test_byte_pairs(config: dict[str, Any], kind: str, prefix: bool, frame: str | None, pairs: Tokenizer):
    file = Tokenizer.from_str(pairs.to_str())
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # type: ignore[assignment]
    if frame == "roberta":
        file.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))  # type: ignore[assignment]
    elif frame == "template":
        file.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="</s> $A", pair="</s> $A $B:1", special_tokens=[("</s>", 2)]
        )
    else:
        file.post_processor = None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), kind, file, config)


@pytest.mark.parametrize(
    "config", [{}, {"do_lower_case": False}, {"tokenizer_class": "PreTrainedTokenizerFast"}], ids=str
)
def test_the_usual_settings_are_not_refused(config: dict[str, Any], tmp_path: Path):
    """So that the comparison above compares something."""
    assert check(tmp_path, "bert", bert_file(True, "bert", False), config)


def test_a_class_that_is_not_known_is_refused_by_name(tmp_path: Path):
    check(tmp_path, "bert", bert_file(True, "bert", False), {"tokenizer_class": "MPNetTokenizer"})
    with pytest.raises(BadInput, match="tokenizer_class = 'MPNetTokenizer' is not known here for a bert model"):
        minibeft.load_tokenizer(tmp_path)
