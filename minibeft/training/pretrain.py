"""A small OPT, GPT-J or LLaMA from scratch, by next-token prediction on SST-2's sentences: minutes on one core.

    python -m minibeft.training.pretrain opt OUT --data DIR

Real checkpoints of these families have billions of parameters; these have the architecture and about a million: an OPT
with learned positions and biases everywhere, a GPT-J with a quarter of each head rotated and no attention bias, a LLaMA
with whole heads rotated and no bias at all, each with a byte-level BPE tokenizer trained on the same texts. A short
statement of its label follows each sentence; it begins in one of WAYS, and its last word weighs as much in the loss as
all other tokens together. The prompt of the task, "It was", is not one of WAYS, so that the model's answers to it are
zero-shot. On the OPT b_k must change nothing (K1), on the others it may (K4).
OUT is a Hugging Face checkpoint; a seed decides its bits.
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from minibeft.checkpoints.load import build_model
from minibeft.checkpoints.save import save_model
from minibeft.models.biases import count
from minibeft.models.transformer import Transformer
from minibeft.show.console import out
from minibeft.show.files import new_folder, write_json
from minibeft.show.progress import progress
from minibeft.show.record import provenance
from minibeft.training.metrics import score
from minibeft.training.prompts import Prompted, encode_prompts
from minibeft.training.settings import Settings
from minibeft.training.tasks import Split, find_data, find_task, read_split
from minibeft.training.train import scores_of

VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 2048, 128, 4, 4, 128
BATCH, RATE, WARMUP = 16, 4e-3, 100
# What follows a sentence: the start of a statement, and its last word, after a negative and after a positive sentence.
WAYS = ("It is", "It felt", "This was", "The film was", "I found it", "They call it", "All in all, it is", "How")
WORDS = ((" terrible", " great"), (" bad", " good"), (" awful", " wonderful"), (" dull", " brilliant"))
# Beside the checkpoint: what made it.
PRETRAINING = "pretraining.json"


class Kind(StrEnum):
    """What to train."""

    opt = "opt"
    gptj = "gptj"
    llama = "llama"


# Special tokens; the last one separates two texts, as in the real models' data; OPT's tokenizer begins texts with it.
SPECIAL = {Kind.opt: ["<s>", "<pad>", "</s>"], Kind.gptj: ["<|endoftext|>"], Kind.llama: ["<s>"]}
OPT_SIZE = {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": LAYERS, "ffn_dim": 4 * WIDTH}
OPT_KIND = {"num_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "dropout": 0.0}
GPTJ_SIZE = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
GPTJ_KIND = {"rotary_dim": WIDTH // HEADS // 4, "tie_word_embeddings": True}
LLAMA_SIZE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": 3 * WIDTH}
LLAMA_KIND = {"num_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "tie_word_embeddings": True}
CONFIGS: dict[Kind, dict[str, Any]] = {
    Kind.opt: OPT_SIZE | OPT_KIND | {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1},
    Kind.gptj: GPTJ_SIZE | GPTJ_KIND | {"bos_token_id": 0, "eos_token_id": 0},
    Kind.llama: LLAMA_SIZE | LLAMA_KIND | {"bos_token_id": 0, "eos_token_id": 0},
}


def train_tokenizer(kind: Kind, texts: list[str]) -> Tokenizer:
    """A byte-level BPE as in GPT-2, OPT and GPT-J: a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL[kind], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if kind is Kind.opt:
        first, number = SPECIAL[kind][-1], len(SPECIAL[kind]) - 1
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, number)]
        )
    return tokenizer


class Stream(NamedTuple):
    """All texts in a row, each after a separator; told: whether a token belongs to the last word of its text."""

    tokens: Int[Tensor, " N"]
    told: Bool[Tensor, " N"]


def stream_of(tokenizer: Tokenizer, kind: Kind, texts: list[tuple[str, str]]) -> Stream:
    """The stream of these texts; each is given in two parts: all but its last word, and the last word."""
    separator = tokenizer.token_to_id(SPECIAL[kind][-1])
    starts, words = (tokenizer.encode_batch([*part], add_special_tokens=False) for part in zip(*texts, strict=True))
    rows = [([separator, *start.ids], word.ids) for start, word in zip(starts, words, strict=True)]
    told = [is_last for start, word in rows for is_last in (*[False] * len(start), *[True] * len(word))]
    return Stream(torch.tensor([token for start, word in rows for token in (*start, *word)]), torch.tensor(told))


def losses_of(model: Transformer, stream: Stream, places: Int[Tensor, "B T"]) -> tuple[Float[Tensor, ""], ...]:
    """Two mean cross entropies, in nats per token: over the tokens of the texts' last words, and over the others. The
    first of each row's places is read, but not predicted."""
    logits = model(stream.tokens[places[:, :-1]]).logits
    assert logits is not None
    each = F.cross_entropy(logits.flatten(0, 1), stream.tokens[places[:, 1:]].flatten(), reduction="none")
    told = stream.told[places[:, 1:]].flatten()
    return each[told].mean(), each[~told].mean()


def train(model: Transformer, stream: Stream, steps: int, seed: int) -> Iterator[float]:
    """AdamW on windows drawn at random; the rate rises for 100 steps and falls linearly to 0. Yields the losses."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [value for value in model.parameters() if value.ndim > 1]
    vectors = [value for value in model.parameters() if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / WARMUP, 1 - s / steps))
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(stream.tokens) - POSITIONS, (BATCH, 1), generator=generator)
        loss = torch.stack(losses_of(model, stream, starts + torch.arange(POSITIONS + 1))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()
    model.eval()


@torch.inference_mode()
def held_out_loss(model: Transformer, stream: Stream) -> float:
    """Nats per token on the validation sentences and the statements after them, without the last words."""
    count = len(stream.tokens) // (POSITIONS + 1)
    return losses_of(model, stream, torch.arange(count * (POSITIONS + 1)).view(count, -1))[1].item()


def pretrain(
    kind: Kind,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="a new folder for the checkpoint")],
    data: Annotated[str | None, typer.Option(envvar="MINIBEFT_DATA", help="the folder that holds sst2/")] = None,
    steps: Annotated[int, typer.Option(min=1, help="updates")] = 2500,
    seed: Annotated[int, typer.Option(help="of weights, statements and windows")] = 0,
) -> None:
    """Train a small OPT, GPT-J or LLaMA on the SST-2 sentences and write it as a Hugging Face checkpoint."""
    task = find_task("sst2")
    splits = {split: read_split(task, find_data(task, data), split) for split in ("train", "validation")}
    texts = {name: told(split, seed) for name, split in splits.items()}
    with new_folder(folder) as ready:  # before the training, which a folder in use would waste
        tokenizer = train_tokenizer(kind, [" " + "".join(parts) for parts in texts["train"]])
        streams = {split: stream_of(tokenizer, kind, sentences) for split, sentences in texts.items()}
        torch.manual_seed(seed)
        model = build_model({"model_type": kind.value, "vocab_size": VOCABULARY, **CONFIGS[kind]}, task="lm")
        with progress() as lines:
            for step, loss in enumerate(train(model, streams["train"], steps, seed), 1):
                lines.show(kind.value, step, steps, f"loss {loss:.3f}")
        save_model(model, ready)
        tokenizer.save(str(ready / "tokenizer.json"))
        write_json(ready / "tokenizer_config.json", tokenizer_config(kind))
        record = {"parameters": count(dict(model.named_parameters())), "steps": steps, "seed": seed}
        record |= {"validation_nats_per_token": held_out_loss(model, streams["validation"])}
        prompts = encode_prompts(tokenizer, task, splits["validation"], max_length=POSITIONS)
        record |= {"zero_shot_accuracy": zero_shot(model, prompts)}
        write_json(ready / PRETRAINING, record | provenance())
    out.print(f"wrote {folder}: " + ", ".join(f"{name} {value:.6g}" for name, value in record.items()))


def told(split: Split, seed: int) -> list[tuple[str, str]]:
    """Each sentence with a randomly drawn statement of its label, in two parts: all but the last word, and that."""
    draw = np.random.Generator(np.random.PCG64(seed))
    ways, words = (draw.integers(len(all_), size=len(split)) for all_ in (WAYS, WORDS))
    return [
        (f"{texts[0].strip()} {WAYS[way]}", WORDS[word][int(label)])
        for texts, label, way, word in zip(split.texts, split.labels, ways, words, strict=True)
    ]


def zero_shot(model: Transformer, examples: Prompted) -> float:
    """The share of sentences for which the right label word is the likelier one after the task's own prompt."""
    predicted = scores_of(model, Settings("", "sst2", device="cpu"), examples).argmax(1)
    return score("accuracy", predicted.numpy(), examples.labels.numpy())


def tokenizer_config(kind: Kind) -> dict[str, Any]:
    """What transformers reads beside tokenizer.json."""
    separator = SPECIAL[kind][-1]
    pad = {"pad_token": "<pad>"} if kind is Kind.opt else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": separator, "eos_token": separator} | pad


if __name__ == "__main__":
    from minibeft.cli.console import execute, run

    app = typer.Typer(add_completion=False)
    app.command()(pretrain)
    run(lambda: execute(app))
