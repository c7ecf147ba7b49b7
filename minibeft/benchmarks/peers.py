"""The contestants behind one interface: minibeft, transformers with PEFT's BEFT, and the way of BEFT's official code.

All train b_v of every layer, the pooler's bias and the classifier, from the same classifier, on the same tokens, with
AdamW and clipped gradients. A batch is padded to the longest text in it, but in the official way to the greatest length
that is allowed, 128 tokens.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minibeft.checkpoints.adapters import their_names
from minibeft.checkpoints.find import find
from minibeft.errors import BadInput, needs
from minibeft.training.batches import Batch, Examples, shuffled
from minibeft.training.loading import Loaded, load
from minibeft.training.settings import Settings
from minibeft.training.train import EVALUATION_BATCH, adamw, autocast, loss_of, predict, start, train_step

CPU = torch.device("cpu")
OURS, SAME_ORDER, PEFT, OFFICIAL = SIDES = "minibeft", "minibeft, their order", "transformers + peft", "official"
# How each pads; the official way to the longest that is allowed.
PADS = {OURS: "bucket", SAME_ORDER: "longest", PEFT: "longest"}


def require_peers() -> None:
    """BadInput when transformers or peft is not installed."""
    with needs("transformers and peft", "bench", "the benchmark"):
        import peft  # noqa: F401


def with_adapter(model: nn.Module, config: Any) -> nn.Module:
    """PEFT's model, without the warning that PEFT uses a name which transformers is about to change."""
    import peft

    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return peft.get_peft_model(model, config)  # type: ignore[arg-type]


@runtime_checkable
class Side(Protocol):
    """One contestant: data, an update, and the logits of all its evaluation examples."""

    settings: Settings
    train: Examples
    valid: Examples

    def set_dropout(self, on: bool) -> None: ...

    def step(self, indices: Int[Tensor, " B"]) -> Float[Tensor, ""]: ...

    def evaluate(self) -> Float[Tensor, "N K"]: ...


def batches(side: Side, epoch: int) -> list[Tensor]:
    """One pass over its training examples, in the order in which it would see them."""
    s = side.settings
    assert s.batch is not None
    return shuffled(side.train.lengths, s.batch, seed=s.seed, epoch=epoch, bucketed=s.pad == "bucket")


def examples_of(loaded: Loaded) -> tuple[Examples, Examples]:
    """Training and evaluation examples of an encoder."""
    train, valid = loaded.train, next(iter(loaded.valid.values()))
    if not (isinstance(train, Examples) and isinstance(valid, Examples)) or loaded.model.config.family != "bert":
        raise BadInput(f"{loaded.settings.model}: bench train measures BERT; give a folder of that family, or minilm")
    return train, valid


class Ours:
    """minibeft as finetune runs it."""

    def __init__(self, settings: Settings):
        loaded = load(settings)
        self.train, self.valid = examples_of(loaded)
        self.settings = loaded.settings
        self.run = start(loaded.settings, loaded.task, loaded.model)

    def set_dropout(self, on: bool) -> None:
        self.run.model.train(on)

    def step(self, indices: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """One update; the loss before it."""
        return train_step(self.run, self.train.gather(indices, self.settings.width, CPU))[0]

    def evaluate(self) -> Float[Tensor, "N K"]:
        """The logits of the evaluation examples."""
        return predict(self.run, self.valid)


class Theirs:
    """transformers' BertForSequenceClassification, with PEFT's BEFT around it or its own biases set to train."""

    def __init__(self, settings: Settings, *, adapter: bool):
        loaded = load(settings)
        self.train, self.valid = examples_of(loaded)
        self.settings, self.task = loaded.settings, loaded.task
        run = start(loaded.settings, loaded.task, loaded.model)
        assert run.model.head is not None
        self.model = from_pretrained(settings.model, "sdpa" if adapter else "eager")
        self.model.classifier.load_state_dict(run.model.head.out.state_dict())  # type: ignore[union-attr]
        names = their_names(run.model)
        wanted = {names[name] for name in run.trained}
        if adapter:
            import peft

            config = peft.BeftConfig(task_type="SEQ_CLS", target_modules=["value"], modules_to_save=["classifier"])
            self.model = with_adapter(self.model, config)
            self.model.get_parameter("base_model.model.bert.pooler.dense.bias").requires_grad_(True)
        else:
            for name, value in self.model.named_parameters():
                value.requires_grad_(name in wanted)
        self.trained = [value for value in self.model.parameters() if value.requires_grad]
        assert sum(v.numel() for v in self.trained) == sum(v.numel() for v in run.trained.values())
        self.optimizer = adamw(self.settings, self.trained, fused=adapter)
        torch.manual_seed(self.settings.seed)

    def set_dropout(self, on: bool) -> None:
        self.model.train(on)

    def logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        """In float32, computed in the settings' type."""
        with autocast(self.settings):
            found = self.model(
                batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids
            )
        return found.logits.float()

    def step(self, indices: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """One update; the loss before it."""
        batch = self.train.gather(indices, self.settings.width, CPU)
        loss = loss_of(self.task, self.logits(batch), batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @torch.inference_mode()
    def evaluate(self) -> Float[Tensor, "N K"]:
        """The logits of the evaluation examples, in batches of as many as minibeft takes."""
        self.model.eval()
        parts = torch.arange(len(self.valid)).split(EVALUATION_BATCH)
        return torch.cat([self.logits(self.valid.gather(part, self.settings.width, CPU)) for part in parts])


def from_pretrained(model: str | Path, attention: str) -> Any:
    """transformers' model of this checkpoint, without its report about the fresh classifier."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    make = transformers.AutoModelForSequenceClassification
    return make.from_pretrained(find(model), num_labels=2, attn_implementation=attention)


def make(name: str, settings: Settings) -> Side:
    """The contestant of this name."""
    settings = replace(settings, pad=PADS.get(name) or str(settings.max_length))
    return Ours(settings) if name in (OURS, SAME_ORDER) else Theirs(settings, adapter=name == PEFT)
