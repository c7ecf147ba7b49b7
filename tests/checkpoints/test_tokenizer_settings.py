"""tokenizer_config.json against tokenizer.json, in combinations: ids and types are transformers', or it is refused."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import minibeft
from minibeft.errors import BadInput
from minibeft.families import BODIES

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


KINDS = [name for name, body in BODIES.items() if body.decodes and name not in ("opt", "gptj", "gpt2")]
SPACES = ("prepend", "replace", "metaspace", "bytes")
DECODERS = {
    "add_bos_token": maybe(True, False),
    "add_eos_token": maybe(True),
    "legacy": maybe(True, False),
    "add_prefix_space": maybe(True, False),
    "tokenizer_class": maybe(
        "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2TokenizerFast", "GemmaTokenizer", "GPTNeoXTokenizerFast",
        "GPT2Tokenizer", "PreTrainedTokenizerFast", "CodeGenTokenizer", "BloomTokenizerFast",
    ),
}  # fmt: skip


@cache
def decoders() -> dict[str, str]:
    """A tokenizer.json for each way to write spaces: as LLaMA 2 and Gemma have it on the hub, and as bytes."""
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    found = {}
    for how in SPACES:
        tokenizer, alphabet = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)), []
        bytewise = [f"<0x{number:02X}>" for number in range(256)]
        if how == "prepend":
            tokenizer.normalizer = normalizers.Sequence(spaces)  # type: ignore[assignment]
        elif how == "replace":
            tokenizer.normalizer = spaces[1]  # type: ignore[assignment]
        elif how == "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)  # type: ignore[assignment]
        else:
            tokenizer, alphabet, bytewise = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet(), []
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        special = ["<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<mask>", "<|endoftext|>", *bytewise]
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS * 5, trainer)
        found[how] = tokenizer.to_str()
    return found


@given(
    config=settings(DECODERS),
    kind=st.sampled_from(KINDS),
    how=st.sampled_from(SPACES),
    frame=st.booleans(),
    added=st.booleans(),
)
# LLaMA 2 and LLaMA 3 as they are on the hub, and others whose class decides.
@example(config={"tokenizer_class": "LlamaTokenizer"}, kind="llama", how="prepend", frame=True, added=False)
@example(config={"tokenizer_class": "PreTrainedTokenizerFast"}, kind="llama", how="bytes", frame=True, added=False)
@example(config={}, kind="qwen2", how="bytes", frame=False, added=True)
@example(config={}, kind="gemma", how="replace", frame=True, added=False)
@example(config={}, kind="gpt_neox", how="bytes", frame=True, added=False)
def test_decoders(config: dict[str, Any], kind: str, how: str, frame: bool, added: bool):
    file = Tokenizer.from_str(decoders()[how])
    if frame:
        file.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
        )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    new = {"added_tokens_decoder": {str(file.get_vocab_size()): {"content": "<new>", "lstrip": True}}} if added else {}
    with tempfile.TemporaryDirectory() as folder:
        assert check(Path(folder), kind, file, roles | config | new)


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


def test_a_decoders_class_that_is_not_known_is_refused_by_name(tmp_path: Path):
    check(tmp_path, "llama", Tokenizer.from_str(decoders()["bytes"]), {"tokenizer_class": "CodeLlamaTokenizer"})
    with pytest.raises(BadInput, match="tokenizer_class = 'CodeLlamaTokenizer' is not known here for a llama model"):
        minibeft.load_tokenizer(tmp_path)
