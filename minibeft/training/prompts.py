"""Prompted classification for decoders, without a head: the class is the one whose label word is the likeliest.

    sst2   <sentence> It was                                                                   terrible, great
    rte    <premise>⏎Does this mean that "<hypothesis>" is true? Yes or No?⏎                   Yes, No
    cb     Suppose <premise> Can we infer that "<hypothesis>"? Yes, No, or Maybe?⏎             Yes, No, Maybe
    boolq  <passage> <Question>?⏎                                                              No, Yes

A class scores the mean of the log-probabilities of its label word's tokens, given the prompt: the mean and not the sum,
as in MeZO's code, which BEFT's decoders use. The loss is the cross entropy over these scores. Templates and
words: MeZO (arXiv 2305.17333, Table 14), sst2's from LM-BFF (arXiv 2012.15723), rte's and cb's from PromptSource.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from minibeft.checkpoints.tokenizer import encodings
from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.transformer import Transformer
from minibeft.training.batches import padded
from minibeft.training.tasks import OWN, Split, Task


@dataclass(frozen=True)
class Prompt:
    """A task's template and label words, in the order of the task's labels, and what the official script trains with.

    ask    an example's texts → the prompt
    words  the label word of each class, as it continues the prompt, spaces included
    """

    ask: Callable[[tuple[str, ...]], str]
    words: tuple[str, ...]
    learning_rate: float = 1e-3


def question(texts: tuple[str, ...]) -> str:
    """BoolQ's question as a sentence, after the passage."""
    asked, passage = texts
    return f"{passage} {asked[:1].upper()}{asked[1:].removesuffix('?')}?\n"


# The rest of the decoder protocol, as BEFT's finetune_BEFT.sh has it; MeZO cuts at this length.
EPOCHS, BATCH, EXAMPLES, EVALUATED, MAX_LENGTH = 5, 8, 1000, 1000, 2048
PROMPTS = {
    "sst2": Prompt(lambda t: f"{t[0].strip()} It was", (" terrible", " great")),
    "rte": Prompt(lambda t: f'{t[0]}\nDoes this mean that "{t[1]}" is true? Yes or No?\n', ("Yes", "No")),
    "cb": Prompt(
        lambda t: f'Suppose {t[0]} Can we infer that "{t[1]}"? Yes, No, or Maybe?\n', ("Yes", "No", "Maybe"), 1e-2
    ),
    "boolq": Prompt(question, ("No", "Yes")),
}


def is_prompted(task: str, family: str) -> bool:
    """Whether models of this family do this task by a prompt: decoders do, except on your own data, whose classes have
    no known label words; there a decoder gets a classification head."""
    return BODIES[family].decodes and task != OWN


def find_prompt(task: Task) -> Prompt:
    """The task's prompt, or BadInput with the tasks that have one."""
    if task.name not in PROMPTS:
        raise BadInput(
            f"--task {task.name}: has no prompt, which a decoder needs; choose among "
            f"{', '.join(PROMPTS)}, or give a table with --text-column to train a classification head"
        )
    return PROMPTS[task.name]


class PromptBatch(NamedTuple):
    """R prompts per example: one for all K classes where their words are one token, else one for each.

    targets  the tokens of each label word, at the right end of M places; real says which places hold a token
    """

    input_ids: Int[Tensor, "B R T"]
    attention_mask: Int[Tensor, "B R T"]
    targets: Int[Tensor, "B K M"]
    real: Bool[Tensor, "B K M"]
    labels: Float[Tensor, " B"]

    def scores(self, model: Transformer) -> Float[Tensor, "B K"]:
        """The mean log-probability of each label word's tokens, in float32 at least."""
        ids, mask = self.input_ids.flatten(0, 1), self.attention_mask.flatten(0, 1)
        (rows, classes, longest), each = self.targets.shape, self.input_ids.shape[1]
        # The last M tokens of a row predict the last M of its label word.
        places = mask.sum(1, keepdim=True) - longest + torch.arange(longest, device=ids.device)
        logits = model(ids, mask, places=places.clamp(min=0)).logits
        assert logits is not None
        found = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)  # (B·R, M, V)
        found = found.unflatten(0, (rows, each)).expand(rows, classes, longest, -1)
        found = found.gather(-1, self.targets[..., None])[..., 0]  # (B, K, M)
        return (found * self.real).sum(-1) / self.real.sum(-1)


@dataclass(frozen=True)
class Prompted:
    """All examples of a split as prompts, padded once to the longest; lengths: of an example's longest prompt."""

    ids: Int[Tensor, "N R L"]
    sizes: Int[Tensor, "N R"]
    targets: Int[Tensor, "N K M"]
    real: Bool[Tensor, "N K M"]
    labels: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """The tokens of each example's longest prompt; batches are made by them."""
        return self.sizes.amax(1)

    def gather(self, indices: Int[Tensor, " B"], width: int | None, device: torch.device) -> PromptBatch:
        """These examples, padded on the right to `width` tokens, or to the longest of them."""
        ids, mask = padded(self.ids[indices], self.sizes[indices], width, 0)
        parts = ids, mask, self.targets[indices], self.real[indices], self.labels[indices]
        return PromptBatch(*(part.to(device, non_blocking=True) for part in parts))


def encode_prompts(tokenizer: Tokenizer, task: Task, split: Split, *, max_length: int) -> Prompted:
    """Tokenise a split's prompts with every label word. If that is too long, the first tokens are cut, but not a <s>:
    the label word and the prompt's end stay.

    As in MeZO's code, prompt and word are tokenised together; the word's tokens are those that the prompt alone lacks.
    """
    prompt = find_prompt(task)
    asked = [prompt.ask(texts) for texts in split.texts]
    alone = [len(tokens_of(one)[0]) for one in encodings(tokenizer, [text.strip(" ") for text in asked])]
    whole = encodings(tokenizer, [f"{text}{word}".strip(" ") for text in asked for word in prompt.words])
    rows, words = [], []
    for number, encoding in enumerate(whole):
        ids, lead = tokens_of(encoding)
        size = len(ids) - alone[number // len(prompt.words)]
        word = prompt.words[number % len(prompt.words)]
        if size < 1:
            raise BadInput(f"{task.name}: this tokenizer has no token of its own for {word!r} after the prompt")
        if lead + size >= max_length:
            raise BadInput(f"--max-length {max_length}: leaves no room for a prompt before {word!r}")
        cut = max(0, len(ids) - max_length)
        ids = ids[:lead] + ids[lead + cut :]
        rows.append(ids[:-1])
        words.append(ids[-size:])
    return pack(rows, words, split, len(prompt.words))


def tokens_of(encoding: Encoding) -> tuple[list[int], int]:
    """The token ids without a special token at the end, and how many special ones are at the start (0 or 1)."""
    special, end = encoding.special_tokens_mask, len(encoding.ids)
    while end > 1 and special[end - 1]:
        end -= 1
    return encoding.ids[:end], special[0] if end else 0


def pack(rows: list[list[int]], words: list[list[int]], split: Split, classes: int) -> Prompted:
    """Rows and words of all classes of all examples as tensors; rows that are alike for all classes are kept once."""
    by_example = [rows[i : i + classes] for i in range(0, len(rows), classes)]
    if all(row == some[0] for some in by_example for row in some):
        rows = [some[0] for some in by_example]
    longest, widest = max(map(len, rows)), max(map(len, words))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    targets = torch.tensor([[0] * (widest - len(word)) + word for word in words])
    sizes = torch.tensor([len(word) for word in words])
    return Prompted(
        ids.unflatten(0, (len(split), -1)),
        torch.tensor([len(row) for row in rows]).unflatten(0, (len(split), -1)),
        targets.unflatten(0, (len(split), classes)),
        (torch.arange(widest) >= widest - sizes[:, None]).unflatten(0, (len(split), classes)),
        torch.tensor(split.labels, dtype=torch.float32),
    )
