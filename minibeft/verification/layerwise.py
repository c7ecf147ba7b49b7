"""The statements about one attention layer, measured in every layer of a model on the inputs that it got."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from minibeft.models.transformer import Transformer
from minibeft.theory import gauge, norms, query_slope, statements
from minibeft.theory.bounds import gamma
from minibeft.theory.instance import Instance
from minibeft.theory.mechanisms import broken
from minibeft.theory.norms import Normed
from minibeft.theory.statements import Gap
from minibeft.verification.backward import Passed, at_heads, backward
from minibeft.verification.findings import Check
from minibeft.verification.measure import draw, worst
from minibeft.verification.probe import Batch, live_part, null_part, where

MAGNITUDES = (0.1, 1.0, 10.0)  # standard deviations that b_k is redrawn with; real b_q reach about 1
# Where one of these is broken, the logits depend on more than W_qᵀ W_k.
UNTRADED = {"unrotated", "no-relative-vectors", "no-qk-norm", "no-foreign-keys"}
DIRECTIONS = 16  # in which the hull of the values is tried
T = TypeVar("T")


def check(
    theorem: str, what: str, layers: Mapping[int, Instance], measure: Callable[[Instance], Gap], **more: Any
) -> Check:
    """One statement in each of these layers."""
    return Check(theorem, what, tuple(worst(i, measure(layer)) for i, layer in layers.items()), **more)


def groups(values: Iterable[T | None]) -> dict[T, list[int]]:
    """The layers that share a value, None left out."""
    found: dict[T, list[int]] = {}
    for i, value in enumerate(values):
        if value is not None:
            found.setdefault(value, []).append(i)
    return found


def keys(model: Transformer, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """Redraw b_k at several magnitudes, where it must do nothing and where it must not."""
    specs = dict(enumerate(model.config.attention))

    def effect(layer: Instance, part: range, magnitude: float) -> Gap:
        assert layer.b_k is not None
        b_k = torch.zeros_like(layer.b_k).view(layer.kv_heads, -1)
        entries = slice(part.start, part.stop)
        b_k[:, entries] = draw(b_k[:, entries], magnitude, generator)
        return statements.key_effect(replace(layer, b_k=b_k.flatten()))

    for find, must_hold in ((null_part, True), (live_part, False)):
        for part, which in groups(map(find, specs.values())).items():
            for magnitude in MAGNITUDES:
                place = where(specs, dict.fromkeys(which, part))
                what = f"b_k redrawn, σ = {magnitude:g}{place}: change of the attention output"
                measure = lambda layer, p=part, m=magnitude: effect(layer, p, m)  # noqa: E731
                yield check("K1", what, {i: layers[i] for i in which}, measure, must_hold=must_hold)


def linear_layers(model: Transformer, layers: list[Instance]) -> dict[int, Instance]:
    """The layers whose logits are products of q and k, rotated or not: no norm, no cap, no YaRN, which also scales."""
    stretched = [spec.rotary is not None and spec.rotary.gain != 1 for spec in model.config.attention]
    plain = {i: p for i, p in enumerate(layers) if p.q_norm is None and p.softcap is None}
    return {i: p for i, p in plain.items() if not stretched[i]}


def cache(model: Transformer, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """Keys as they are cached (K9), and how much a b_k moves P under rotary positions (K10)."""
    free = {i: p for i, p in enumerate(layers) if p.softcap is None}
    mean = lambda p: statements.cached_keys(p, p.k(p.b_k)[:, :: p.group].mean(-2, keepdim=True))  # noqa: E731
    yield check("K9", "cached keys without their mean: change of the attention output", free, mean)
    turned = {i: p for i, p in linear_layers(model, layers).items() if p.rotate is not None}

    def waves(i: int, p: Instance) -> Gap:
        rotary = model.config.attention[i].rotary
        assert rotary is not None
        assert p.b_k is not None
        moved = replace(p, b_k=draw(p.b_k, 1.0, generator))
        return statements.rotary_variation(
            moved, rotary.angles(torch.ones(1, dtype=torch.int64))[0], rotary.interleaved
        )

    if turned:
        what = "b_k redrawn, σ = 1: total variation of P, against the waves' bound"
        yield Check("K10", what, tuple(worst(i, waves(i, p)) for i, p in turned.items()))


def values(layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """The shift law at the attention output."""

    def shift(layer: Instance) -> Gap:
        assert layer.b_v is not None
        return statements.value_shift(replace(layer, b_v=draw(layer.b_v, 1.0, generator)))

    what = "b_v redrawn: the attention output shifts by b_v, but for"
    yield check("V1", what, dict(enumerate(layers)), shift)


def gradients(model: Transformer, batch: Batch, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """The gradients of b_k, b_v and b_q (K2, V3, Q8), what the norms around attention hide (K8, V7), and G2."""
    passed = backward(model, batch, generator)
    d_outs = [layer.d_out for layer in passed]
    d_os = [at_heads(layer, d_out) for layer, d_out in zip(layers, d_outs, strict=True)]
    at = {id(layer): (d_out, d_o) for layer, d_out, d_o in zip(layers, d_outs, d_os, strict=True)}
    first = statements.bias_gradients(layers[0], d_os[0])
    scale = f"layer 0: ‖∂L/∂b_k‖ {first['b_k'].norm():.0e}, ‖∂L/∂b_v‖ {first['b_v'].norm():.0e}"
    every, specs = dict(enumerate(layers)), dict(enumerate(model.config.attention))
    measure = lambda layer: statements.key_gradient(layer, at[id(layer)][1])  # noqa: E731
    for find, must_hold in ((null_part, True), (live_part, False)):
        # where a part of each head turns, the gradient is zero on the rest alone
        whole = {i: heads for i, spec in specs.items() if find(spec) == (heads := range(spec.head_size))}
        if whole:
            what = f"∂L/∂b_k, of any loss{where(specs, whole)}"
            yield check("K2", what, {i: layers[i] for i in whole}, measure, must_hold=must_hold, note=scale)
    measure = lambda layer: statements.value_gradient(layer, at[id(layer)][1])  # noqa: E731
    yield check("V3", "∂L/∂b_v − Σ_i ∂L/∂O_i", every, measure)
    yield check("V3", "∂L/∂b_v − W_oᵀ ∂L/∂b_o", every, lambda layer: output_gradient(layer, at[id(layer)][0]))
    yield from hidden(model, list(zip(layers, d_os, passed, strict=True)))
    scored = {i: layers[i] for i, spec in specs.items() if not {"no-qk-norm", "no-softcap"} & {*broken(spec, "q")}}
    if scored:
        slope = lambda layer: query_slope.slope_bound(layer, at[id(layer)][1])  # noqa: E731
        yield check("Q8", "‖∂L/∂b_q‖ of a head, against (s/4) Σ_i diam K diam V ‖∂L/∂O_i‖", scored, slope)
    traded = {i for i, spec in specs.items() if not UNTRADED & {*broken(spec, "q"), *broken(spec, "k")}}
    agree = lambda layer: gauge.queries_and_keys(layer, at[id(layer)][1])  # noqa: E731
    for which, must_hold in ((traded, True), (specs.keys() - traded, False)):
        some = {i: layers[i] for i in sorted(which)}
        if some:
            yield check("G2", "G̃_q W̃_qᵀ − W̃_k G̃_kᵀ, heads of a group summed", some, agree, must_hold=must_hold)
    agree = lambda layer: gauge.values_and_output(layer, at[id(layer)][0])  # noqa: E731
    yield check("G2", "G̃_v W̃_vᵀ − W_oᵀ G_o, heads of a group summed", every, agree)


def hidden(model: Transformer, layers: list[tuple[Instance, Tensor, Passed]]) -> Iterator[Check]:
    """K8 in the layers that read the output of a norm, and V7."""
    specs = dict(enumerate(model.config.attention))
    centred = model.config.norm == "layer"
    read = centred and model.config.residual != "scaled"  # there a learned vector multiplies out before the norms
    for find, null in ((null_part, True), (live_part, False)):
        whole = {i: heads for i, spec in specs.items() if find(spec) == (heads := range(spec.head_size))}
        behind = [(i, p, d_o, x.source) for i, (p, d_o, x) in enumerate(layers) if i in whole and x.source is not None]
        if behind:
            found = tuple(worst(i, norms.hidden_gradient(p, d_o, source)) for i, p, d_o, source in behind)
            yield Check("K8", f"(∂L/∂W_k) n, n = 1/γ{where(specs, whole)}", found, null and centred, sizes(*behind[0]))
    found = tuple(worst(i, norms.unread_mean(x.d_out, x.readers)) for i, (_, _, x) in enumerate(layers))
    yield Check("V7", "1ᵀ ∂L/∂out of each token, and so 1ᵀ ∂L/∂b_o", found, read)


def sizes(at: int, layer: Instance, d_o: Tensor, source: Normed) -> str:
    """How large the gradients of the three matrices are along n."""
    grads = statements.gradients(layer, d_o, "w_q", "w_k", "w_v")
    norms = (f"W_{name} {(grads[f'w_{name}'] @ source.direction).norm():.0e}" for name in "kqv")
    return f"layer {at}: ‖(∂L/∂W) n‖ of {', '.join(norms)}"


def output_gradient(layer: Instance, d_out: Float[Tensor, "B T C"]) -> Gap:
    """V3, the other way: |Σ_i W_oᵀ ∂L/∂out_i − W_oᵀ ∂L/∂b_o|; both are sums of B·T·C products in another order."""
    w_o = layer.w_o
    assert w_o is not None
    one, other = (d_out @ w_o).sum((0, 1)), d_out.sum((0, 1)) @ w_o
    rows = d_out.shape[0] * d_out.shape[1]
    allowed = 2 * gamma(rows + w_o.shape[0], layer.arithmetic.u) * (d_out.abs() @ w_o.abs()).sum((0, 1))
    return Gap((one - other).abs(), allowed)


def queries(model: Transformer, layers: list[Instance], generator: Generator) -> Iterator[Check]:
    """The hull, the bound, the price and the double differences, with the model's b_q and with a redrawn one."""
    choices = [("b_q redrawn, σ = 1", [replace(p, b_q=draw(p.b_q, 1.0, generator)) for p in layers])]  # type: ignore[arg-type]
    if "q" in model.config.biases:
        choices.insert(0, ("the model's b_q", layers))
    directions = draw(layers[0].w_q.new_zeros(model.config.head_size, DIRECTIONS), 1.0, generator)
    specs = dict(enumerate(model.config.attention))
    for name, chosen in choices:
        every = dict(enumerate(chosen))
        hull = lambda layer: statements.hull(layer, directions)  # noqa: E731
        yield check("Q2", f"{name}: reach of O beyond the convex hull of V", every, hull)
        what = f"{name}: total variation of P, against tanh(osc(β)/4)"
        yield check("Q3", what, every, statements.query_variation)
        yield check("Q9", f"{name}: KL of P and P(0), either way, against osc(β)²/8", every, statements.nats)
        plain = linear_layers(model, chosen)
        if plain:
            what = f"{name}: the ‖b_q‖ that its effect needs"
            yield check("Q10", what, plain, statements.query_price, note=price(chosen[0]))
        for must_hold, which in groups(not broken(spec, "q") for spec in specs.values()).items():
            place = where(specs, {i: range(specs[i].head_size) for i in which})
            what = f"{name}: change of double differences of log P{place}"
            yield check("Q4", what, {i: chosen[i] for i in which}, statements.blindness, must_hold=must_hold)


def price(layer: Instance) -> str:
    """Q10 in the median head: ‖b_q‖, what its effect needs, and what leaves 1 % to all keys but one in every row."""
    gap, enough = statements.query_price(layer), statements.enough(layer, 0.01)
    length, needed, enough = (x.median().item() for x in (gap.allowed, gap.value.amax((0, 2)), enough))
    return f"layer 0, median head: ‖b_q‖ {length:.3g}, needed {needed:.3g}, enough for 99 % on one key {enough:.3g}"
