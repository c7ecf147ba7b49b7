"""Every setting of a run, with the protocols' values as defaults; the run's record holds them all."""

import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from minibeft.checkpoints.tokenizer import room
from minibeft.errors import BadInput
from minibeft.families import BODIES
from minibeft.models.biases import read_terms
from minibeft.models.config import Backend, ModelConfig
from minibeft.training import prompts
from minibeft.training.reparam import FORMS, RANK, SCALE
from minibeft.training.tasks import OWN, REGIMES, Task, is_folders

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTO = "auto"  # the faster of the two on this machine
REPARAMETRISED_EPOCHS = {"sst2": 50}
LARGE_EPOCHS = {"sst2": 30, "wic": 30}  # BERT-large and RoBERTa
FULL_LEARNING_RATE = 1e-5
BATCH, MAX_LENGTH = 16, 128
MOST, WIDEST = 2**31, 2**16


@dataclass(frozen=True)
class Settings:
    """The settings of one run. None stands for the protocol's value, which depends on the task and the family. Encoders
    also train a classification head, and so do decoders on your own data; on the paper's tasks decoders are prompted
    (prompts.py) and train only the bias terms.

    terms      bias terms, comma-separated, or all, none, full (biases.py); a decoder gets those that it lacks, and with
               none a prompted decoder is evaluated as it is (zero-shot)
    task       one of tasks.py, or own: then data is a file or a folder of tables with the columns below (data.py), or
               for a model of images or speech a folder train/CLASS/FILE (folders.py)
    form       plain, lora, vera, vera1d, dora (reparam.py)
    examples   how many training examples; None: as many as the regime has
    held_out   examples of the training split to evaluate on instead of the validation split
    evaluated  at most this many validation examples; None: all for encoders, 1,000 for decoders
    data_seed  draws the training subset; seed: head, order and dropout
    pad        "bucket": batches of like lengths; "longest": random ones, padded to their longest; or a number of tokens
    dtype      bfloat16 computes under autocast; trainable parameters stay float32. auto becomes one of the two before
               a run begins (precision.py)
    """

    model: str
    task: str
    data: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str = "label"
    terms: str = "v"
    form: str = "plain"
    rank: int = RANK
    scale: float = SCALE
    regime: str = "low"
    examples: int | None = None
    held_out: int = 0
    evaluated: int | None = None
    data_seed: int = 0
    seed: int = 0
    learning_rate: float | None = None
    epochs: int | None = None
    batch: int | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0
    clip: float = 1.0
    dropout: bool = True
    pad: str = "bucket"
    max_length: int | None = None
    dtype: str = "float32"
    backend: Backend = "fused"
    device: str = "auto"

    def check(self) -> None:
        """BadInput for a value that no run can have."""
        read_terms(self.terms)
        own = self.text_column is not None or (self.task == OWN and is_folders(self.data))
        if (self.task == OWN) != own or (self.pair_column and self.text_column is None):
            raise BadInput("--text-column: is of your own data, given by --data, and goes with no --task")
        backends = ("fused", "plain", "triton")
        one_of = {"form": ("plain", *FORMS), "regime": REGIMES, "dtype": (*DTYPES, AUTO), "backend": backends}
        for name, allowed in one_of.items():
            if getattr(self, name) not in allowed:
                raise BadInput(f"--{name} {getattr(self, name)}: choose among {', '.join(allowed)}")
        if self.form != "plain" and self.terms in ("none", "full"):
            raise BadInput(f"--form {self.form}: needs bias terms, not {self.terms}")
        counts, sizes = ("rank", "examples", "evaluated", "epochs", "batch", "max_length"), ("eps", "clip", "scale")
        for name in (*counts, "learning_rate", *sizes):
            value, end = getattr(self, name), MOST if name in counts else math.inf
            if value is not None and not 0 < value < end:
                raise BadInput(f"--{name.replace('_', '-')} {value}: must be above 0 and below {end}")
        for name, end in {"held_out": MOST, "weight_decay": math.inf, "seed": 2**32, "data_seed": 2**32}.items():
            if not 0 <= getattr(self, name) < end:
                raise BadInput(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative, and below {end}"
                )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"--{name} {getattr(self, name)}: must be in [0, 1)")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise BadInput(f"--device {self.device}: must be auto, cpu or cuda")
        if self.device.startswith("cuda") and int(self.device[5:] or 0) >= torch.cuda.device_count():
            raise BadInput(f"--device {self.device}: torch sees no such GPU here; give auto or cpu")
        longest = self.max_length or MAX_LENGTH
        if self.pad not in ("bucket", "longest") and not (self.width and longest <= self.width <= WIDEST):
            raise BadInput(f"--pad {self.pad}: bucket, longest, or a number of tokens, {longest} to {WIDEST}")

    @property
    def width(self) -> int | None:
        """The number of tokens that every batch is padded to; None: to the longest text in it."""
        return int(self.pad) if re.fullmatch(r"[0-9]{1,9}", self.pad) else None

    @property
    def reads_files(self) -> bool:
        """Whether the data are files in a folder for each class, not texts."""
        return self.task == OWN and self.text_column is None

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def resolve(settings: Settings, task: Task, available: int, config: ModelConfig) -> Settings:
    """The settings with the protocol's values where none were given; available: examples to train on."""
    fill = prompted if prompts.is_prompted(task.name, config.family) else classified
    values = fill(settings, task, available, config)
    if settings.terms == "full":
        values["learning_rate"] = FULL_LEARNING_RATE
    if (most := room(config)) is not None:
        values["max_length"] = min(values["max_length"], most)
        for name, tokens in {"max-length": settings.max_length, "pad": settings.width}.items():
            if (tokens or 0) > most:
                raise BadInput(f"--{name} {tokens}: this model has positions for {most} tokens")
    given = {name: value for name in values if (value := getattr(settings, name)) is not None}
    if is_zero_shot(settings, config):
        given["epochs"] = 1
    found = replace(settings, **(values | given), device=device_of(settings))
    for name in ("learning_rate", "epochs"):
        if getattr(found, name) is None:
            raise BadInput(
                f"--task {task.name}: the encoder protocol has no {name} for it; give --{name}".replace("_", "-")
            )
    return found


def device_of(settings: Settings) -> str:
    """Where to compute: what the settings say; with auto on a GPU if there is one."""
    return settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def is_zero_shot(settings: Settings, config: ModelConfig) -> bool:
    """Whether nothing trains: a prompted decoder has no head, so without bias terms it is evaluated once, as it is."""
    return settings.terms == "none" and prompts.is_prompted(settings.task, config.family)


def classified(settings: Settings, task: Task, available: int, config: ModelConfig) -> dict[str, Any]:
    """The protocol for models with a classification head."""
    large = config.layers >= 24 or BODIES[config.family].trains_longer
    epochs = LARGE_EPOCHS.get(task.name, task.epochs) if large else task.epochs
    if settings.form != "plain":
        epochs = REPARAMETRISED_EPOCHS.get(task.name, epochs)
    size = task.sizes[REGIMES.index(settings.regime)] if task.sizes else available
    fixed = {"batch": BATCH, "max_length": MAX_LENGTH}
    return {"learning_rate": task.learning_rate, "epochs": epochs, "examples": size} | fixed


def prompted(settings: Settings, task: Task, available: int, config: ModelConfig) -> dict[str, Any]:
    """The decoder protocol."""
    return {
        "learning_rate": prompts.find_prompt(task).learning_rate,
        "epochs": prompts.EPOCHS,
        "examples": min(prompts.EXAMPLES, available),
        "evaluated": prompts.EVALUATED,
        "batch": prompts.BATCH,
        "max_length": prompts.MAX_LENGTH,
    }
