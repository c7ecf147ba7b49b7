"""A tokenizer built from a vocabulary, as transformers builds it.

The vocabulary is vocab.txt (BERT), vocab.json with merges.txt (RoBERTa, OPT, GPT-J), or the one in tokenizer.json. The
other parts of tokenizer.json are overruled by the tokenizer's class and by tokenizer_config.json.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from minibeft.families.family import Vocabulary
from minibeft.families.tokenizers import CLASSES, GENERIC, KEEPS_FRAME, TOKENS, class_of

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def parse(file: Path, reader: Callable[[], Any]) -> Any:
    """What the reader makes of the file, or BadInput."""
    checked(file)
    with refusing(f"{file}: cannot be read as a tokenizer"):
        return reader()


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what `tokenizers` raises on the user's files and texts, bare Exceptions and panics, into BadInput."""
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
        return word_piece(folder / "vocab.txt", read_words, Settings(folder, vocabulary.tokens))
    if vocabulary is not None and vocabulary.pieces == "bytes" and (folder / "vocab.json").is_file():
        return byte_pairs(folder / "vocab.json", read_pairs, vocabulary.frame, Settings(folder, vocabulary.tokens))
    raise BadInput(
        f"{folder}: has no tokenizer.json, nor vocabulary files that a {kind} model is known by; make one with "
        "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def agreed(folder: Path, file: Path) -> Tokenizer:
    """The tokenizer that transformers makes of a folder with a tokenizer.json.

    The file is used as it is where the class is generic, or is not known here to overrule the file. Otherwise only its
    vocabulary is used, and everything else comes from the class and tokenizer_config.json.
    BadInput where the class is that of another family and not known here, or reads another kind of vocabulary.
    """
    config, model = optional(folder / "tokenizer_config.json"), optional(folder / "config.json")
    body = BODIES.get(kind) if isinstance(kind := model.get("model_type"), str) else None
    own = body.vocabulary if body else None
    whole = parse(file, lambda: Tokenizer.from_file(str(file)))
    raw = read_json(file)
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    named = class_of(kind, named, str(raw.get("pre_tokenizer"))) or (own.made_by if own else GENERIC[0])
    known = {each.vocabulary.made_by: each.vocabulary for each in BODIES.values() if each.vocabulary}
    strict = body is not None and (own is not None or body.decodes)
    if not isinstance(named, str) or (strict and named.removesuffix("Fast") not in (*known, *CLASSES, *GENERIC)):
        raise BadInput(
            f"{folder}: tokenizer_class = {named!r} is not known here for a {kind} model; make the folder's tokenizer "
            "with transformers' save_pretrained, and name the class PreTrainedTokenizerFast"
        )
    vocabulary = own if own and own.made_by == named.removesuffix("Fast") else known.get(named.removesuffix("Fast"))
    if (make := CLASSES.get(named.removesuffix("Fast"))) is not None:
        made = split_by(make, folder, file, raw, named, whole)
    elif vocabulary is None:
        made = whole
        add_tokens(made, file, Settings(folder, {}))
    else:
        made = made_again(folder, file, raw, vocabulary, whole)
    words = vocabulary is not None and vocabulary.pieces == "words"
    inputs = config.get("model_input_names", ["token_type_ids"] if words else [])
    shown = isinstance(inputs, list) and "token_type_ids" in inputs
    reads = body is not None and any(ours == "token_types" for ours, _ in body.keys.values())
    return without_types(made) if reads and not shown else made


def made_again(folder: Path, file: Path, raw: dict[str, Any], vocabulary: Vocabulary, whole: Tokenizer) -> Tokenizer:
    """The tokenizer of this class with the vocabulary of the file."""
    model, settings = raw["model"], Settings(folder, vocabulary.tokens, raw.get("added_tokens") or [])
    kinds = ("WordPiece", "WordLevel") if vocabulary.pieces == "words" else ("BPE",)
    if model.get("type") not in kinds:
        raise BadInput(
            f"{file}: holds a {model.get('type')} model, which {vocabulary.made_by} reads otherwise than it stands "
            "there; name the class PreTrainedTokenizerFast in tokenizer_config.json to have the file as it is"
        )
    if vocabulary.pieces == "words":
        return word_piece(file, lambda _, unknown: WordPiece(model["vocab"], unk_token=unknown), settings)
    pairs: list[Any] = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    frame = vocabulary.frame if vocabulary.frame == "ends" else "none"
    made = byte_pairs(file, lambda _: BPE(model["vocab"], pairs), frame, settings)
    if frame == "none":
        made.post_processor = whole.post_processor
    return made


def split_by(make: Any, folder: Path, file: Path, raw: dict[str, Any], named: str, whole: Tokenizer) -> Tokenizer:
    """The tokenizer of a decoder's class with the vocabulary of the file, and what the file puts around a text."""
    plain = named.removesuffix("Fast")
    model, settings = raw["model"], Settings(folder, TOKENS[plain], raw.get("added_tokens") or [])
    if model.get("type") != "BPE":
        raise BadInput(
            f"{file}: holds a {model.get('type')} model, which {named} reads otherwise than it stands there; name the "
            "class PreTrainedTokenizerFast in tokenizer_config.json to have the file as it is"
        )
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = parse(file, lambda: make(model["vocab"], pairs, settings.tokens["unk"].content, settings.flag))
    made.post_processor = whole.post_processor if plain in KEEPS_FRAME else None
    made.decoder = whole.decoder
    add_tokens(made, file, settings)
    return made


def without_types(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer whose texts are all of type 0."""

    def zero(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: 0 if key == "type_id" else zero(value) for key, value in part.items()}
        return [zero(each) for each in part] if isinstance(part, list) else part

    raw = json.loads(tokenizer.to_str())
    after = raw["post_processor"] or {"type": "ByteLevel"}
    if after["type"] not in ("BertProcessing", "ByteLevel"):
        return Tokenizer.from_str(json.dumps(raw | {"post_processor": zero(after)}, ensure_ascii=False))
    ends = [tuple(after[name]) for name in ("cls", "sep") if name in after]
    cls, sep = [[token] for token, _ in ends] or ([], [])
    single, pair = (" ".join([*cls, "$A", *sep, *second]) for second in ([], ["$B", *sep]))
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    return tokenizer


class Settings:
    """tokenizer_config.json, with special_tokens_map.json, added_tokens.json and what tokenizer.json adds, where there
    are any."""

    def __init__(self, folder: Path, tokens: Mapping[str, Any], added: Sequence[Any] = ()):
        self.file = folder / "tokenizer_config.json"
        self.raw = optional(folder / "special_tokens_map.json") | optional(self.file)
        roles = {role: None for role in ROLES if isinstance(self.raw.get(f"{role}_token"), str | dict)} | dict(tokens)
        named = {role: self.raw.get(f"{role}_token", default) for role, default in roles.items()}
        self.tokens = {role: self.token(f"{role}_token", value) for role, value in named.items() if value is not None}
        self.added: dict[int, AddedToken] = {}
        for content, number in optional(folder / "added_tokens.json").items():
            self.added[self.number(content, number)] = AddedToken(content)
        if "added_tokens_decoder" not in self.raw:
            for each in added:
                self.added[self.number(each, each.get("id"))] = self.token("added token", each, special=False)
        decoder = self.raw.get("added_tokens_decoder", {})
        if not isinstance(decoder, dict):
            raise self.refuse("added_tokens_decoder", decoder, "must be an object: id → token")
        for number, value in decoder.items():
            self.added[self.number(value, number)] = self.token(number, value, special=False)

        for token in self.added.values():  # what is said of a token there holds for its role, too
            roles = [role for role, named in self.tokens.items() if named.content == token.content]
            token.special = token.special or bool(roles)
            self.tokens.update(dict.fromkeys(roles, token))

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
            # A mask token absorbs the space before it: RoBERTa was trained so, and BERT never sees spaces.
            return AddedToken(value, lstrip=key == "mask_token", normalized=False, special=special)
        if not isinstance(value, dict) or not isinstance(value.get("content"), str):
            raise self.refuse(key, value, "must be a token: a string, or an object with its content")
        special = special or bool(value.get("special", False))
        how = {name: bool(value.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
        return AddedToken(
            value["content"], special=special, normalized=bool(value.get("normalized", not special)), **how
        )


def optional(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    return read_json(file) if file.exists() else {}


def read_words(file: Path, unknown: str) -> WordPiece:
    """vocab.txt: a token a line."""
    with file.open(encoding="utf-8") as stream:  # not splitlines(): a token may be U+2028
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(stream)}
    return WordPiece(vocabulary, unk_token=unknown)


def read_pairs(file: Path) -> BPE:
    """vocab.json, and the merges.txt beside it."""
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise BadInput(f"{merges}: missing; vocab.json alone makes no tokenizer")
    return parse(merges, lambda: BPE.from_file(str(checked(file)), str(merges)))


def word_piece(file: Path, read: Callable[[Path, str], WordPiece], settings: Settings) -> Tokenizer:
    """BERT's: lowercased unless do_lower_case is off, split at spaces and punctuation, then into the longest pieces."""
    for key in ("do_basic_tokenize", "do_split_on_punc"):
        if not settings.flag(key, True):
            raise settings.refuse(key, False, "is not handled: only true is")
    unknown = settings.tokens["unk"].content
    tokenizer = parse(file, lambda: Tokenizer(read(file, unknown)))
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


def byte_pairs(vocabulary: Path, read: Callable[[Path], BPE], frame: str, settings: Settings) -> Tokenizer:
    """GPT-2's bytes and merges: RoBERTa puts <s> and </s> around a text, OPT </s> before it, GPT-J nothing."""
    prefix = settings.flag("add_prefix_space", False)
    tokenizer = parse(vocabulary, lambda: Tokenizer(read(vocabulary)))
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
    """Register the special and the added tokens with the tokenizer; returns the needed ones with their ids.

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
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    new = [token for token in settings.tokens.values() if token.content not in there]
    tokenizer.add_special_tokens([token for token in new if tokenizer.token_to_id(token.content) is not None])
    for number, token in sorted(settings.added.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise settings.refuse("added token", token.content, f"has the id {number}, which is taken or leaves a gap")
    return found
