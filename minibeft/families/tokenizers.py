"""What transformers makes of a decoder's tokenizer.json: the class decides how a text is split, whatever the file says;
vocabulary, merges and what stands around a text are the file's. Source: transformers 5, models/*/tokenization_*.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

SPACE = "▁"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# model_type → the class where tokenizer_config.json names none; those of FIXED have it whatever is named.
DEFAULTS = {
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("phi", "starcoder2"), "GPT2Tokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
}
# Classes that read the file as it is, and those that are another under an older name.
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "BloomTokenizer")
SAME = {"CodeGenTokenizer": "GPT2Tokenizer"}
FIXED = {"qwen2": "Qwen2Tokenizer", "mistral": "TokenizersBackend"}
Flag = Callable[[str, Any], Any]


def llama(vocab: Any, merges: Any, _: str, flag: Flag) -> Tokenizer:
    """Spaces become ▁, and one is added before a text; with `legacy` also after each special token."""
    made = Tokenizer(BPE(vocab, merges, fuse_unk=True, byte_fallback=True))
    scheme = "never" if not flag("add_prefix_space", True) else "always" if flag("legacy", False) else "first"
    made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)  # type: ignore[assignment]
    return made


def gemma(vocab: Any, merges: Any, unknown: str, _: Flag) -> Tokenizer:
    """Spaces become ▁; none is added."""
    made = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # type: ignore[assignment]
    return made


def qwen2(vocab: Any, merges: Any, _: str, flag: Flag) -> Tokenizer:
    """Text in NFC, split into words by a pattern, and these into bytes."""
    made = Tokenizer(BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    made.normalizer = normalizers.NFC()  # type: ignore[assignment]
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    prefix = flag("add_prefix_space", False)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # type: ignore[assignment]
    return made


def neox(vocab: Any, merges: Any, _: str, flag: Flag) -> Tokenizer:
    """Text in NFC, split into bytes as GPT-2 does."""
    made = Tokenizer(BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    made.normalizer = normalizers.NFC()  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=flag("add_prefix_space", False))  # type: ignore[assignment]
    return made


CLASSES: Mapping[str, Callable[[Any, Any, str, Flag], Tokenizer]] = {
    "LlamaTokenizer": llama,
    "GemmaTokenizer": gemma,
    "Qwen2Tokenizer": qwen2,
    "GPTNeoXTokenizer": neox,
}
# Their special tokens, where tokenizer_config.json names no other.
END = "<|endoftext|>"
TOKENS: dict[str, dict[str, Any]] = {
    "LlamaTokenizer": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    "GemmaTokenizer": {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": {"content": "<mask>"}},
    "Qwen2Tokenizer": {"unk": END, "eos": END, "pad": END},
    "GPTNeoXTokenizer": {"unk": END, "bos": END, "eos": END, "pad": "<|padding|>"},
}
# Classes that leave what the file puts around a text.
KEEPS_FRAME = CLASSES.keys() - {"GPTNeoXTokenizer"}


def class_of(kind: Any, named: Any, pre_tokenizer: str) -> str | None:
    """The class that transformers takes for this model_type, where tokenizer_config.json names this one; None: what
    it names. LlamaTokenizer with a file that splits into bytes is one that was meant to be generic."""
    if kind in FIXED:
        return FIXED[kind]
    chosen = named or DEFAULTS.get(kind)
    plain = chosen.removesuffix("Fast") if isinstance(chosen, str) else ""
    if plain == "LlamaTokenizer" and "ByteLevel" in pre_tokenizer:
        return "TokenizersBackend"
    return SAME.get(plain, chosen)
