"""Vocabulary files older than tokenizer.json: vocab.txt (BERT), vocab.json and merges.txt (RoBERTa, OPT, GPT-J)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from minibeft.checkpoints.door import checked
from minibeft.checkpoints.find import why
from minibeft.checkpoints.tensors import read_json
from minibeft.errors import BadInput
from minibeft.families import BODIES


def parse(file: Path, reader: Callable[[], Any]) -> Any:
    """What the reader makes of the file, or BadInput."""
    checked(file)
    with refusing(f"{file}: cannot be read as a tokenizer"):
        return reader()


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """What `tokenizers` raises of the user's files and texts, bare Exceptions and panics, as BadInput."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{what} ({why(error)}); make one with transformers' save_pretrained, or download it") from error


def convert(folder: Path) -> Tokenizer:
    """A tokenizer from the vocabulary files of a BERT, RoBERTa, OPT or GPT-J checkpoint."""
    kind = read_json(folder / "config.json").get("model_type")
    vocabulary = BODIES[kind].vocabulary if kind in BODIES else None
    if vocabulary is not None and vocabulary.pieces == "words" and (folder / "vocab.txt").is_file():
        return word_piece(folder, Settings(folder, vocabulary.tokens))
    if vocabulary is not None and vocabulary.pieces == "bytes" and (folder / "vocab.json").is_file():
        return byte_pairs(folder, vocabulary.frame, Settings(folder, vocabulary.tokens))
    raise BadInput(
        f"{folder}: has no tokenizer.json, nor vocabulary files that a {kind} model is known by; make one with "
        "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


class Settings:
    """tokenizer_config.json, with special_tokens_map.json and added_tokens.json where there are any."""

    def __init__(self, folder: Path, tokens: Mapping[str, str]):
        self.file = folder / "tokenizer_config.json"
        self.raw = optional(folder / "special_tokens_map.json") | optional(self.file)
        named = {role: self.raw.get(f"{role}_token", default) for role, default in tokens.items()}
        self.tokens = {role: self.token(f"{role}_token", value) for role, value in named.items() if value is not None}
        self.added: dict[int, AddedToken] = {}
        for content, number in optional(folder / "added_tokens.json").items():
            self.added[self.number(content, number)] = AddedToken(content)
        decoder = self.raw.get("added_tokens_decoder", {})
        if not isinstance(decoder, dict):
            raise self.refuse("added_tokens_decoder", decoder, "must be an object: id → token")
        for number, value in decoder.items():
            self.added[self.number(value, number)] = self.token(number, value, special=False)

    def refuse(self, key: str, value: Any, why: str) -> BadInput:
        """The error for a value that cannot be used."""
        return BadInput(f"{self.file}: {key} = {value!r} {why}")

    def flag(self, key: str, default: Any) -> Any:
        """A switch; null counts as absent."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, value, "must be true or false")
        return default if value is None else value

    def number(self, token: Any, value: Any) -> int:
        """A token's id."""
        if isinstance(value, bool) or not str(value).isdecimal():
            raise self.refuse("added token", token, f"has the id {value!r}, which is not a number")
        return int(value)

    def token(self, key: str, value: Any, *, special: bool = True) -> AddedToken:
        """A token written as its text, or as an object that also says how it is matched."""
        if isinstance(value, str):
            # A mask takes the space before it along: so RoBERTa was trained, and BERT never sees spaces.
            return AddedToken(value, lstrip=key == "mask_token", normalized=False, special=special)
        if not isinstance(value, dict) or not isinstance(value.get("content"), str):
            raise self.refuse(key, value, "must be a token: a string, or an object with its content")
        how = {name: bool(value.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        return AddedToken(value["content"], special=special or bool(value.get("special", False)), **how)


def optional(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    return read_json(file) if file.exists() else {}


def word_piece(folder: Path, settings: Settings) -> Tokenizer:
    """BERT's: lowercased unless do_lower_case is off, split at spaces and punctuation, then into the longest pieces."""
    file = folder / "vocab.txt"
    for key in ("do_basic_tokenize", "do_split_on_punc"):
        if not settings.flag(key, True):
            raise settings.refuse(key, False, "is not handled: only true is")

    def read() -> Tokenizer:
        with file.open(encoding="utf-8") as stream:  # not splitlines(): a token may be U+2028
            vocabulary = {line.rstrip("\n"): number for number, line in enumerate(stream)}
        return Tokenizer(WordPiece(vocabulary, unk_token=settings.tokens["unk"].content))

    tokenizer = parse(file, read)
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.flag("strip_accents", None),
        lowercase=settings.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    cls, sep = add_tokens(tokenizer, file, settings, "cls", "sep", "unk")[:2]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]} $A {sep[0]}", pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1", special_tokens=[cls, sep]
    )
    return tokenizer


def byte_pairs(folder: Path, frame: str, settings: Settings) -> Tokenizer:
    """GPT-2's bytes and merges: RoBERTa puts <s> and </s> around a text, OPT </s> before it, GPT-J nothing."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not merges.is_file():
        raise BadInput(f"{merges}: missing; vocab.json alone makes no tokenizer")
    checked(vocabulary)
    prefix = settings.flag("add_prefix_space", False)
    tokenizer = Tokenizer(parse(merges, lambda: BPE.from_file(str(vocabulary), str(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if frame == "ends":
        sep, cls = add_tokens(tokenizer, vocabulary, settings, "sep", "cls")
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=prefix)
    elif settings.flag("add_bos_token", frame == "start"):
        (bos,) = add_tokens(tokenizer, vocabulary, settings, "bos")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]}:1 $B:1", special_tokens=[bos]
        )
    else:
        add_tokens(tokenizer, vocabulary, settings)
    return tokenizer


def add_tokens(tokenizer: Tokenizer, file: Path, settings: Settings, *needed: str) -> list[tuple[str, int]]:
    """Make the special and the added tokens known as such; the needed ones with their ids.

    A special token that the vocabulary lacks is left out: its id would lie beyond the embedding.
    """
    found = []
    for role in needed:
        token = settings.tokens[role].content if role in settings.tokens else None
        number = tokenizer.token_to_id(token) if token is not None else None
        if token is None or number is None:
            raise BadInput(
                f"{file}: lacks the {role}_token {token!r}; {settings.file.name} must name one that is there"
            )
        found.append((token, number))
    tokenizer.add_special_tokens(
        [token for token in settings.tokens.values() if tokenizer.token_to_id(token.content) is not None]
    )
    for number, token in sorted(settings.added.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise settings.refuse("added token", token.content, f"has the id {number}, which is taken or leaves a gap")
    return found
