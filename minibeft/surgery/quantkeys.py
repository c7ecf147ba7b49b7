"""Which shift of all keys makes a key cache easiest to quantise, and what it gains: a study of K1's freedom.

Adding one vector to every key that a softmax compares leaves its weights as they are: a shift of K adds s q_i·c to each
logit of row i, which the row shares. A cache holds keys as they are compared, after rotation and norm, so this freedom
is there under rotary positions too, where b_k, which is added before, has an effect (K4). The freedom ends where not
every key of a row is in the cache (a sink, foreign keys), where logits pass through a nonlinearity, or where K is read
twice. These shifts are compared:
    zero  no shift
    mean  the mean key over tokens (as in SageAttention, arXiv 2410.02367)
    best  the shift that minimises the mean squared step, which is 12 times the error that rounding to the nearest level
          makes on average. A step is a maximum of linear functions of the shift, so its square is convex: one minimum
    b_k   what the bias adds to each key, R_j b_k under rotary positions: known without data. It then differs between
          positions, so it is added again before the keys are compared

The quantisers round to the nearest of evenly spaced levels, with one step for each token ("token") or for each channel
over the tokens of a sentence ("channel"), in each key-value head by itself:
    min-max    step = (max − min)/(2ᵇ − 1), levels from min up; by channel it moves with s, so there s gains nothing
    symmetric  step = max|x|/(2ᵇ⁻¹ − 1), levels … −step, 0, step …

s is found on every other sentence and all errors are measured on the rest, layer by layer with exact inputs; queries
and values stay exact.
"""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor

from minibeft.certificate.certify import certify
from minibeft.checkpoints.find import find
from minibeft.checkpoints.load import load_model
from minibeft.errors import BadInput
from minibeft.show.files import MARK, write
from minibeft.theory.attention import attention_weights
from minibeft.theory.instance import Instance
from minibeft.verification.inputs import read_inputs
from minibeft.verification.probe import probe

BITS = (8, 4, 3)
STEPS = 150  # of descent on a convex function; on the demo model doubling it changes the key error by less than 1/1000


@dataclass(frozen=True)
class Quantiser:
    """Round to nearest with one step per token or per channel."""

    axis: Literal["token", "channel"]
    symmetric: bool

    @property
    def name(self) -> str:
        return f"{self.axis}, {'symmetric' if self.symmetric else 'min-max'}"

    @property
    def feels_shift(self) -> bool:
        """Whether a shift of the keys changes the error at all: min-max by channel moves with it."""
        return self.symmetric or self.axis == "token"

    def ends(self, k: Float[Tensor, "B G S D"], real: Bool[Tensor, "#B 1 #S 1"]) -> tuple[Tensor, Tensor]:
        """The smallest and the largest entry of each token or channel; padding counts in no channel."""
        if self.axis == "token":
            return k.amin(-1, keepdim=True), k.amax(-1, keepdim=True)
        low, high = k.masked_fill(~real, torch.inf), k.masked_fill(~real, -torch.inf)
        return low.amin(-2, keepdim=True), high.amax(-2, keepdim=True)

    def span(self, k: Float[Tensor, "B G S D"], real: Bool[Tensor, "#B 1 #S 1"]) -> Tensor:
        """The step times the number of steps: it does not depend on the bits."""
        low, high = self.ends(k, real)
        return torch.maximum(-low, high) if self.symmetric else high - low

    def __call__(
        self, k: Float[Tensor, "B G S D"], real: Bool[Tensor, "#B 1 #S 1"], bits: int
    ) -> Float[Tensor, "B G S D"]:
        """k as it comes back from a cache of so many bits per entry."""
        count = 2 ** (bits - 1) - 1 if self.symmetric else 2**bits - 1
        step = (self.span(k, real) / count).clamp_min(torch.finfo(k.dtype).tiny)
        start = 0.0 if self.symmetric else self.ends(k, real)[0]
        return torch.round((k - start) / step) * step + start


QUANTISERS = tuple(Quantiser(axis, symmetric) for axis, symmetric in product(("token", "channel"), (False, True)))


@dataclass(frozen=True)
class Row:
    """One cell of the study, over all layers.

    key     root mean square of K̂ − (K − s)
    weights mean over rows of the total variation between P and P̂
    output  ‖Ô − O‖ / ‖O‖, Frobenius norms
    """

    quantiser: str
    bits: int
    shift: str
    key: float
    weights: float
    output: float


@dataclass(frozen=True)
class Study:
    """shifts: the mean key of each layer and key-value head, which a cache may take off."""

    model: str
    head_size: int
    calibration: int
    evaluation: int
    rows: tuple[Row, ...]
    shifts: tuple[Float[Tensor, "G D"], ...]

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "shifts"}

    def export(self, file: Path) -> None:
        """Write the mean shifts as safetensors: layers.0.key_shift (G, D) and so on, in float32."""
        tensors = {f"layers.{i}.key_shift": shift.contiguous() for i, shift in enumerate(self.shifts)}
        write(file, save(tensors, {"format": "pt", "software": MARK, "model": self.model}))


# Broken before the keys are cached: what is compared is still a softmax of products with the cached keys.
BEFORE_THE_CACHE = ("unrotated", "no-qk-norm")


def require_freedom(model: str | Path) -> None:
    """BadInput where adding one vector to all cached keys changes what the model computes, or certify cannot tell."""
    verdict = certify(model).verdict("k")
    stopping = [hypothesis for hypothesis in verdict.broken if hypothesis not in BEFORE_THE_CACHE]
    if stopping or verdict.status == "unknown":
        why = f"{', '.join(stopping)}: {verdict.reason}" if stopping else verdict.reason
        raise BadInput(f"{model}: adding a vector to all cached keys may change this model ({why})")


def best_shift(
    k: Float[Tensor, "B G S D"], real: Bool[Tensor, "#B 1 #S 1"], quantiser: Quantiser
) -> Float[Tensor, "G 1 D"]:
    """The shift that minimises the mean squared step, by descent from the mean; the best one met is kept."""
    shift = mean_shift(k, real).requires_grad_(True)
    if not quantiser.feels_shift:
        return shift.detach()
    if quantiser.axis == "token":  # every token by itself: (tokens, G, 1, D) without the padding
        k = k.transpose(1, 2)[real[:, 0, :, 0]].unsqueeze(2)
        real = real.new_ones(1, 1, 1, 1)
    optimiser = torch.optim.Adam([shift], lr=k.std().item() / 10)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1e-3, STEPS)
    best, least = shift.detach().clone(), torch.full((k.shape[1],), torch.inf, dtype=k.dtype)
    for _ in range(STEPS):
        squares = quantiser.span(k - shift, real).square().sum((0, 2, 3))  # (G)
        better = squares.detach() < least
        least = torch.where(better, squares.detach(), least)
        best = torch.where(better[:, None, None], shift.detach(), best)
        optimiser.zero_grad()
        squares.sum().backward()
        optimiser.step()
        decay.step()
    return best


def mean_shift(k: Float[Tensor, "B G S D"], real: Bool[Tensor, "#B 1 #S 1"]) -> Float[Tensor, "G 1 D"]:
    """The mean key of each head."""
    return (k * real).sum((0, 2)).div(real.sum())[:, None]


def bias_shift(layer: Instance) -> Float[Tensor, "1 G S D"] | None:
    """What b_k adds to the cached keys; None without b_k."""
    if layer.b_k is None:
        return None
    size = layer.source.shape[1]
    b_k = layer.b_k.view(1, layer.kv_heads, 1, -1).expand(-1, -1, size, -1)
    return b_k if layer.rotate is None else layer.rotate(b_k)


def quantkeys(model: str | Path, *, text: Path | None = None) -> Study:
    """The study on a folder, hub id or "minilm", with the built-in sentences or those of a text file, one per line.

    BadInput where the freedom that it uses is not there (require_freedom).
    """
    folder = find(model)
    require_freedom(folder)
    loaded = load_model(folder, task="hidden", dtype=torch.float32)
    batch = read_inputs(folder, text, loaded.config)
    if len(batch["attention_mask"]) < 2:
        raise BadInput(f"{text}: holds one sentence; the shift is found on one half and measured on the other")
    halves = [{name: value[start::2] for name, value in batch.items()} for start in (0, 1)]
    found, held = (probe(loaded, half) for half in halves)
    reals = [half["attention_mask"].bool()[:, None, :, None] for half in halves]
    keys = [keys_of(layer) for layer in found]
    means = [mean_shift(k, reals[0]) for k in keys]
    fixed: dict[str, list[Tensor]] = {"zero": [torch.zeros_like(mean) for mean in means], "mean": means}
    biases = [bias for layer in held if (bias := bias_shift(layer)) is not None]
    rows = []
    for quantiser in QUANTISERS:
        shifts = fixed | {"best": [best_shift(k, reals[0], quantiser) for k in keys]}
        shifts |= {"b_k": biases} if biases else {}
        for bits, (name, values) in product(BITS, shifts.items()):
            errors = [errors_of(layer, s, reals[1], quantiser, bits) for layer, s in zip(held, values, strict=True)]
            rows.append(Row(quantiser.name, bits, name, **summarise(torch.tensor(errors, dtype=torch.float64))))
    found_on, measured_on = (len(half["attention_mask"]) for half in halves)
    kept = tuple(mean[:, 0] for mean in means)
    return Study(str(model), loaded.config.head_size, found_on, measured_on, tuple(rows), kept)


def keys_of(layer: Instance) -> Float[Tensor, "B G S D"]:
    """The keys as they are cached: with b_k, turned where positions are rotary, one for each key-value head."""
    return layer.k(layer.b_k)[:, :: layer.group].to(layer.x)


def errors_of(
    layer: Instance,
    shift: Float[Tensor, "*#B G #S D"],
    real: Bool[Tensor, "#B 1 #S 1"],
    quantiser: Quantiser,
    bits: int,
) -> tuple[float, ...]:
    """Six sums over one layer: squared key error, entries, total variation, rows, squared output error and output."""
    q, k, v = layer.q(layer.b_q).to(layer.x), keys_of(layer), layer.v(layer.b_v).to(layer.x)
    stored = quantiser(k - shift, real, bits)
    compared = stored if shift.shape[-2] == 1 else stored + shift  # one vector for all keys may stay off
    p, changed = (attention_weights(q, keys, layer.mask, layer.factor) for keys in (k, compared))
    variation = (p - changed).abs().sum(-1, keepdim=True) / 2 * real  # (B, H, T, 1)
    o, error = p @ v * real, (changed - p) @ v * real
    return (
        ((stored - k + shift) * real).double().square().sum().item(),
        real.sum().item() * k.shape[1] * k.shape[3],
        variation.double().sum().item(),
        real.sum().item() * q.shape[1],
        error.double().square().sum().item(),
        o.double().square().sum().item(),
    )


def summarise(errors: Float[Tensor, "layers six"]) -> dict[str, float]:
    """key, weights and output of Row."""
    key, entries, variation, rows, error, output = errors.sum(0).tolist()
    return {"key": (key / entries) ** 0.5, "weights": variation / rows, "output": (error / output) ** 0.5}
