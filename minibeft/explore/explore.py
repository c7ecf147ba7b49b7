"""One layer of a model on one sentence, as a page that computes attention itself while sliders move its biases.

The page (page.html, page.css, attention.js, views.js) needs nothing else: no network, no font, no library. What it
computes with are the model's own numbers in float64, written into it as base64.
"""

import json
from base64 import b64encode
from dataclasses import asdict, dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from minibeft.errors import BadInput
from minibeft.proofs.formal.trust import theorem_in
from minibeft.show.files import MARK
from minibeft.theory.attention import HeadNorm
from minibeft.theory.draws import Draws
from minibeft.theory.instance import Instance
from minibeft.theory.mechanisms import MECHANISMS
from minibeft.theory.rotary import Rotary, Rotation
from minibeft.theory.theorems import THEOREMS
from minibeft.verification.picture import one_layer

TEXT = "The film was dull, but its last scene was a quiet marvel."
PARTS = ("page.html", "page.css", "attention.js", "views.js")
MOST_TOKENS = 48  # more cannot be read in a heat map
CAP = 5.0  # of the logits, where the model has none
SHOWN = ("K1", "K4", "Q3", "Q5", "Q6", "V1", "V2")  # the statements that the page names
# switch of the page → the hypothesis that it breaks for b_k
SWITCHES = {"rotary": "unrotated", "sink": "no-sink", "qk_norm": "no-qk-norm", "softcap": "no-softcap"}


@dataclass(frozen=True)
class Plane:
    """Two directions at right angles, in which a slider turns a bias; the model's own has this size and angle.

    The angle is in radians from the first direction. `named` says what the two directions are.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    size: float
    angle: float
    most: float
    named: tuple[str, str]


def explore(model: str, *, text: str = TEXT, layer: int = 0, head: int = 0) -> str:
    """The page as HTML. BadInput for a layer or head that is not there, and for a text of too many tokens."""
    tokens, seen = one_layer(model, text, layer, head)
    if not 2 <= len(tokens) <= MOST_TOKENS:
        raise BadInput(f"--text: has {len(tokens)} tokens; the page shows 2 to {MOST_TOKENS}, choose another text")
    named = Path(model).resolve().name if Path(model).is_dir() else model
    given = {"model": named, "text": text, "layer": layer, "head": head, "tokens": tokens}
    return assemble(given | numbers(seen) | words())


def numbers(p: Instance) -> dict[str, Any]:
    """What the page computes with: queries, keys and values of each head before biases, norms and turns; the planes."""
    size = p.w_q.shape[0] // p.heads
    bare = replace(p, rotate=None, q_norm=None, k_norm=None)
    q, k, v = (side[0] for side in (bare.q(None), bare.k(None), bare.v(None)))  # (H, T, D)
    rotation = p.rotate or Rotary(size - size % 2).rotate(torch.arange(q.shape[1]))
    mask = torch.zeros(1) if p.mask is None else p.mask.double()
    mask = mask.expand(1, p.heads, q.shape[1], q.shape[1])[0]
    return {
        "size": size,
        "scale": p.factor,
        "rotation": turning(rotation, own=p.rotate is not None),
        "norms": {"q": gain(p.q_norm, size), "k": gain(p.k_norm, size), "own": p.q_norm is not None},
        "cap": {"at": p.softcap or CAP, "own": p.softcap is not None},
        "heads": [
            {"q": packed(q[h]), "k": packed(k[h]), "v": packed(v[h]), "mask": packed(mask[h])}
            | {name: asdict(plane) for name, plane in planes(p, h, q[h], k[h], v[h]).items()}
            for h in range(p.heads)
        ],
    }


def turning(rotation: Rotation, own: bool) -> dict[str, Any]:
    """The rotary positions of the model, or where it has none those that LLaMA would have."""
    cos, sin = (table.double().reshape(-1, table.shape[-1]) for table in (rotation.cos, rotation.sin))
    return {"cos": packed(cos), "sin": packed(sin), "interleaved": rotation.interleaved, "own": own}


def gain(norm: HeadNorm | None, size: int) -> dict[str, Any]:
    """The model's norm of queries or keys, or where it has none one with a gain of one."""
    norm = norm or HeadNorm(torch.ones(size), 1e-6)
    return {"gain": packed(norm.gain), "eps": norm.eps}


def planes(
    p: Instance, head: int, q: Float[Tensor, "T D"], k: Float[Tensor, "T D"], v: Float[Tensor, "T D"]
) -> dict[str, Plane]:
    """For each bias, a plane that contains the model's own bias, or a random one where that is absent or zero.

    b_q: its part in the span of the keys' differences, and its null part (Q5); b_k: itself and a drawn direction;
    b_v: itself, and the direction at right angles to it in which the values differ most.
    """
    draws, size = Draws(head), q.shape[1]
    own = {name: own_bias(p, name, head) for name in "qkv"}
    start = {name: bias if bias.any() else draws.normal(size) for name, bias in own.items()}
    active = onto_differences(k, start["q"])
    second = {
        "q": start["q"] - active if len(k) <= size else draws.normal(size),
        "k": draws.normal(size),
        "v": torch.linalg.svd(without(v - v.mean(0), start["v"]))[2][0],
    }
    drawn = {name: "a drawn direction" if not bias.any() else f"b_{name}" for name, bias in own.items()}
    named = {
        "q": ("the part that moves P", "its null direction" if len(k) <= size else "a drawn direction"),
        "k": (drawn["k"], "another, drawn" if not own["k"].any() else "a drawn direction"),
        "v": (drawn["v"], "where the values differ most"),
    }
    found = {}
    for name, side in zip("qkv", (q, k, v), strict=True):
        first = active if name == "q" else start[name]
        most = max(4 * own[name].norm().item(), side.norm(dim=-1).median().item())
        found[f"b_{name}"] = plane(first, second[name], own[name], most, named[name])
    return found


def plane(
    first: Float[Tensor, " D"],
    second: Float[Tensor, " D"],
    own: Float[Tensor, " D"],
    most: float,
    named: tuple[str, str],
) -> Plane:
    """The plane of two vectors, and where in it the model's own bias lies."""
    first = first / first.norm()
    second = without(second, first)
    second = second / second.norm()
    angle = torch.atan2(own @ second, own @ first).item()
    return Plane(packed(first), packed(second), own.norm().item(), angle, most, named)


def own_bias(p: Instance, name: str, head: int) -> Float[Tensor, " D"]:
    """The model's bias as this query head meets it, zero where it has none."""
    return p.filled().per_head(getattr(p.filled(), f"b_{name}"))[head, 0]


def without(x: Float[Tensor, "*n D"], direction: Float[Tensor, " D"]) -> Float[Tensor, "*n D"]:
    """x less its part in a direction."""
    unit = direction / direction.norm()
    return x - (x @ unit).unsqueeze(-1) * unit


def onto_differences(keys: Float[Tensor, "T D"], x: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """The part of x in the span of the keys' differences: the only part of a b_q that moves P (Q5)."""
    _, sizes, directions = torch.linalg.svd(keys - keys.mean(0), full_matrices=False)
    span = directions[sizes > 1e-9 * sizes[0]]
    return span.mT @ (span @ x)


def packed(x: Tensor) -> dict[str, Any]:
    """A tensor as base64 of float64, row by row, with the length of a row: every bit of it."""
    return {
        "columns": x.shape[-1],
        "base64": b64encode(x.detach().double().contiguous().numpy().astype("<f8").tobytes()).decode(),
    }


def words() -> dict[str, Any]:
    """What the page says: each statement with its theorems in Coq and the places of its proofs and test, and why each
    switch wakes b_k."""
    theorems = {
        name: {
            "title": THEOREMS[name].title,
            "claim": THEOREMS[name].claim,
            "places": [str(p) for p in THEOREMS[name].evidence.places()],
            "coq": [theorem_in(one) for one in THEOREMS[name].evidence.theorems(name)],
        }
        for name in SHOWN
    }
    why = {m.hypothesis: m.why["k"] for m in MECHANISMS if "k" in m.why}
    return {"theorems": theorems, "why": {switch: why[hypothesis] for switch, hypothesis in SWITCHES.items()}}


def assemble(given: dict[str, Any]) -> str:
    """The four files and the numbers as one. No text of the model or its user can end a script or open a tag."""
    parts = {name: files("minibeft.explore").joinpath(name).read_text("utf-8") for name in PARTS}
    page = parts.pop("page.html").replace("{mark}", MARK).replace("{title}", escape(given["text"]))
    for name, content in parts.items():
        page = page.replace(f"{{{name}}}", content)
    return page.replace("{numbers}", json.dumps(given, ensure_ascii=False).replace("<", "\\u003c"))
