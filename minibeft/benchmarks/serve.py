"""`minibeft bench serve`: requests for many adapters of one classifier, mixed in one stream, against other ways.

All ways answer the same batches of requests, each of which names its adapter at random, and take turns in several
rounds. An adapter is b_v, the pooler's bias and the classifier, drawn at random, in a folder that minibeft and PEFT
read. A way that computes one adapter at a time answers a batch's requests for the same adapter together.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.benchmarks.peers import CPU, examples_of, from_pretrained, require_peers
from minibeft.benchmarks.train import median_and_range, take_turns
from minibeft.checkpoints.adapters import apply_adapter, load_adapter, make_adapter, save_adapter
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import head_to_come, load_model
from minibeft.checkpoints.serve import load_adapters
from minibeft.errors import BadInput
from minibeft.models.biases import freeze_except
from minibeft.models.config import Backend
from minibeft.models.transformer import Transformer
from minibeft.show.grid import Grid
from minibeft.theory.agreement import distance, explained, within
from minibeft.theory.bounds import unit_roundoff
from minibeft.theory.draws import Draws
from minibeft.training.batches import Batch, by_length
from minibeft.training.loading import load
from minibeft.training.settings import Settings
from minibeft.training.train import EVALUATION_BATCH, fresh_head

BARE, MIXED, COPIES, SWITCH, LORA = (
    "the model without adapters",
    "minibeft",
    "merged copies",
    "PEFT, set_adapter",
    "PEFT, LoRA 8, adapter_names",
)
COUNTS = (1, 10, 100, 1000)
# A copy is a whole model; PEFT had not loaded 1,000 adapters of b_v after three minutes.
MOST = {COPIES: 10, SWITCH: 100, LORA: 100}
RANK, CHECKED, NUDGES = 8, 8, 3
Row = dict[str, Any]
Stream = list[tuple[Batch, list[int]]]
Answer = Callable[[Batch, list[int]], Float[Tensor, "B K"]]


def fresh(model: str, dtype: torch.dtype = torch.float32, backend: Backend = "fused") -> Transformer:
    """The checkpoint as a classifier of two classes, frozen."""
    with head_to_come():
        made = load_model(model, task="classification", dtype=dtype, backend=backend)
    fresh_head(made, 2, 0)
    return made.requires_grad_(False)


def draw_adapters(model: str, folder: Path, count: int) -> list[Path]:
    """Adapters in PEFT's format, numbered; their entries are normal, with the deviation of the model's own b_v."""
    made, draws = fresh(model), Draws(0)
    trained = freeze_except(made, "v", head=True)
    like = make_adapter(made, {name: value.detach().clone() for name, value in trained.items()}, base=str(find(model)))
    std = torch.cat([value.flatten() for name, value in trained.items() if not name.startswith("head.")]).std().item()
    for number in range(count):
        biases = {name: draws.normal(*value.shape, std=std).float() for name, value in like.biases.items()}
        saved = {name: draws.normal(*value.shape, std=0.1).float() for name, value in like.saved.items()}
        save_adapter(replace(like, biases=biases, saved=saved), folder / str(number))
    return [folder / str(number) for number in range(count)]


def stream_of(settings: Settings, adapters: int) -> Stream:
    """The requests in batches of like lengths, each with the number of its adapter."""
    _, data = examples_of(load(settings))
    numbers = Draws(adapters).integers(0, adapters, len(data))
    order = by_length(data.lengths, EVALUATION_BATCH)
    return [(data.gather(indices, None, CPU), numbers[indices].tolist()) for indices in order]


def one_adapter_at_a_time(answer: Callable[[int, list[Tensor]], Tensor]) -> Answer:
    """A way that computes one adapter at a time: a batch's requests by adapter, each group cut to its longest."""

    def run(batch: Batch, owners: list[int]) -> Float[Tensor, "B K"]:
        logits = torch.zeros(len(owners), 2, dtype=torch.float64)
        for number in dict.fromkeys(owners):
            own = torch.tensor([i for i, owner in enumerate(owners) if owner == number])
            longest = int(batch.attention_mask[own].sum(1).max())
            logits[own] = answer(number, [part[own, :longest] for part in batch[:3]]).double()
        return logits

    return run


def bare(model: str) -> Answer:
    """The model without adapters; no way with adapters can be faster."""
    made = fresh(model)
    made.join()
    return lambda batch, owners: made.classify(*batch[:3])


def mixed(model: str, folders: Sequence[Path]) -> tuple[Answer, float]:
    """minibeft's way, and the bytes of an adapter."""
    made = load_adapters(fresh(model), folders)
    made.join()
    assert made.served is not None
    own = [*made.served.tables.values(), *(value for name, value in made.served.head.items() if name != "dense.weight")]
    return lambda batch, owners: made.classify(*batch[:3], adapters=torch.tensor(owners)), size(own) / len(folders)


def copies(model: str, folders: Sequence[Path]) -> tuple[Answer, float]:
    """A whole model for each adapter."""
    made = {number: apply_adapter(fresh(model), load_adapter(path)) for number, path in enumerate(folders)}
    for each in made.values():
        each.join()
    return one_adapter_at_a_time(lambda number, parts: made[number].classify(*parts)), size(made[0].parameters())


def switched(model: str, folders: Sequence[Path]) -> tuple[Answer, float]:
    """PEFT with all adapters loaded, one of them active."""
    import peft

    plain = from_pretrained(model, "sdpa")
    before = size(plain.parameters())
    theirs = peft.PeftModel.from_pretrained(plain, str(folders[0]), adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        theirs.load_adapter(str(folder), adapter_name=str(number))
    theirs.eval()

    def answer(number: int, parts: list[Tensor]) -> Tensor:
        theirs.set_adapter(str(number))
        return theirs(parts[0], attention_mask=parts[1], token_type_ids=parts[2]).logits

    return one_adapter_at_a_time(answer), (size(theirs.parameters()) - before) / len(folders)


def lora(model: str, folders: Sequence[Path]) -> tuple[Answer, float]:
    """PEFT's LoRA beside W_q and W_v (arXiv 2106.09685), a batch's adapters mixed: as many, but of matrices."""
    import peft

    plain = from_pretrained(model, "sdpa")
    before = size(plain.parameters())
    config = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": RANK, "init_lora_weights": False}
    theirs = peft.get_peft_model(plain, peft.LoraConfig(**config), adapter_name="0")
    for number in range(1, len(folders)):
        theirs.add_adapter(str(number), peft.LoraConfig(**config))
    theirs.eval()

    def answer(batch: Batch, owners: list[int]) -> Tensor:
        ids, mask, types = batch[:3]
        return theirs(ids, attention_mask=mask, token_type_ids=types, adapter_names=[str(n) for n in owners]).logits

    return answer, (size(theirs.parameters()) - before) / len(folders)


WAYS = {MIXED: mixed, COPIES: copies, SWITCH: switched, LORA: lora}


def size(values: Any) -> int:
    """Bytes of these tensors."""
    return sum(value.nbytes for value in values)


def require_agreement(model: str, folders: Sequence[Path], stream: Stream, ways: dict[str, Answer]) -> Row:
    """How far each way's logits for the first requests are from the merged models' in float64, beside what rounding
    explains; BadInput where one is further.

    Rounding is sampled as in agreement.py: by the padded formula in float32, and with parameters off by a rounding.
    """
    whole, owners = stream[0][0], stream[0][1][:CHECKED]
    batch, asked = Batch(*(part[:CHECKED] for part in whole)), set(owners)

    def merged(dtype: torch.dtype) -> dict[int, Transformer]:
        return {n: apply_adapter(fresh(model, dtype, "plain"), load_adapter(folders[n])) for n in asked}

    def logits(made: dict[int, Transformer]) -> Float[Tensor, "B K"]:
        return one_adapter_at_a_time(lambda number, parts: made[number].classify(*parts))(batch, owners)

    made, u = merged(torch.float64), unit_roundoff(torch.float32)
    gold = logits(made)
    rounding = distance(logits(merged(torch.float32)), gold)
    original = {number: [value.clone() for value in each.parameters()] for number, each in made.items()}
    for seed in range(NUDGES):
        draws = Draws(seed)
        for number, each in made.items():
            for value, was in zip(each.parameters(), original[number], strict=True):
                value.data = was * (1 + draws.uniform(*was.shape, low=-u, high=u))
        rounding = max(rounding, distance(logits(made), gold))
    allowed = explained(rounding, gold.abs().max().item(), torch.float32)
    errors = {name: distance(answer(batch, owners), gold) for name, answer in ways.items()}
    for name, error in errors.items():
        if not within(error, allowed):
            raise BadInput(
                f"{name}: its logits are {error:.2e} from the merged models', rounding explains {allowed:.2e}; nothing "
                "is reported, because the ways do not compute the same"
            )
    return errors | {"allowed": allowed}


def compare(settings: Settings, folders: Sequence[Path], rounds: int, say: Callable[[str], None]) -> Row:
    """All ways with these adapters: requests per second, and as a share of the bare model's, round by round."""
    model, stream, count = settings.model, stream_of(settings, len(folders)), len(folders)
    ways, bytes_each, loading = {BARE: bare(model)}, dict[str, float](), dict[str, float]()
    for name, make in WAYS.items():
        if count > MOST.get(name, count):
            continue
        say(f"{count:,} adapters: loading, {name}")
        begun = time.perf_counter()
        # peft uses a name that transformers is about to change
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            ways[name], bytes_each[name] = make(model, folders)
        loading[name] = time.perf_counter() - begun
    say(f"{count:,} adapters: do all compute the same?")
    agreement = require_agreement(model, folders, stream, {n: way for n, way in ways.items() if n not in (BARE, LORA)})
    say(f"{count:,} adapters: requests")
    passes = {name: lambda _, way=way: [way(*part) for part in stream] for name, way in ways.items()}
    take_turns(passes, 1)
    seconds = take_turns(passes, rounds)
    requests = sum(len(owners) for _, owners in stream)
    rows = [
        {
            "side": name,
            "rate": median_and_range([requests / s for s in found]),
            "of_the_model_without": median_and_range([b / s for b, s in zip(seconds[BARE], found, strict=True)]),
            "bytes_per_adapter": bytes_each.get(name),
            "seconds_to_load": loading.get(name),
        }
        for name, found in seconds.items()
    ]
    return {"adapters": count, "requests": requests, "logit_errors": agreement, "rows": rows}


@torch.inference_mode()
def bench(settings: Settings, rounds: int, say: Callable[[str], None]) -> Row:
    """The record: all ways, with every number of adapters."""
    require_peers()
    with tempfile.TemporaryDirectory() as place:
        folders = draw_adapters(settings.model, Path(place), max(COUNTS))
        found = [compare(settings, folders[:count], rounds, say) for count in COUNTS]
    return {"settings": settings.as_json(), "threads": torch.get_num_threads(), "rounds": rounds} | {"by_count": found}


def steps_of() -> int:
    """How many steps bench announces."""
    return sum(2 + sum(count <= MOST.get(name, count) for name in WAYS) for count in COUNTS)


def render(record: Row) -> list[Grid]:
    """What the record says."""
    cells = []
    for one in record["by_count"]:
        for row in one["rows"]:
            share, each, load = (row[key] for key in ("of_the_model_without", "bytes_per_adapter", "seconds_to_load"))
            cells.append(
                (
                    f"{one['adapters']:,}",
                    row["side"],
                    f"{row['rate']['median']:.0f}",
                    f"{share['median']:.2f} × ({share['min']:.2f}–{share['max']:.2f})",
                    f"{each / 1024:,.0f} KB" if each else "",
                    f"{load:.1f} s" if load else "",
                )
            )
    header = ("adapters", "", "requests/s", "of the model without", "an adapter takes", "to load all")
    requests, threads = record["by_count"][0]["requests"], record["threads"]
    note = f"{requests} requests per round, in batches of at most {EVALUATION_BATCH}; threads: {threads}. Not run: " + (
        ", ".join(f"{name} beyond {most:,} adapters" for name, most in MOST.items())
    )
    return [Grid("many adapters of b_v in one stream of requests", header, cells, note)]
