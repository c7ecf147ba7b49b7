"""Attention with a bug in it: what the property tests must reject. Each has the signature of attend()."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from minibeft.theory.attention import Attended, attend, project
from minibeft.theory.rotary import Rotary


def first_key_only(x, w_q, w_k, w_v, w_o=None, *, b_k=None, **given: Any) -> Attended:
    """b_k is added to the first key alone."""
    if b_k is None:
        return attend(x, w_q, w_k, w_v, w_o, **given)
    y = x if given.get("y") is None else given["y"]
    heads, kv_heads, mask = given["heads"], given.get("kv_heads") or given["heads"], given.get("mask")
    q = project(x, w_q, given.get("b_q"), heads)
    bias = b_k.view(kv_heads, 1, -1).repeat_interleave(heads // kv_heads, 0)
    scale = given.get("scale") or q.shape[-1] ** -0.5
    extra = scale * (q * bias).sum(-1, keepdim=True) * (torch.arange(y.shape[1]) == 0)
    return attend(x, w_q, w_k, w_v, w_o, **{**given, "mask": extra if mask is None else mask + extra})


def mixed_up_groups(x, w_q, w_k, w_v, w_o=None, *, heads: int, kv_heads: int | None = None, **given: Any) -> Attended:
    """Query head h reads key-value head h mod G instead of h // (H/G)."""
    groups = heads // (kv_heads or heads)

    def spread(t):
        return torch.cat([t.view(heads // groups, -1, *t.shape[1:])] * groups).flatten(0, 1)

    given |= {name: spread(given[name]) for name in ("b_k", "b_v") if given.get(name) is not None}
    return attend(x, w_q, spread(w_k), spread(w_v), w_o, heads=heads, **given)


def thin_rows(x, w_q, w_k, w_v, w_o=None, **given: Any) -> Attended:
    """The weights of each row sum to 1 − 1e-3."""
    output, weights = attend(x, w_q, w_k, w_v, w_o, **given)
    return Attended(output * 0.999, None if weights is None else weights * 0.999)


def off_by_one(x, w_q, w_k, w_v, w_o=None, **given: Any) -> Attended:
    """Softmax-off-by-one: a sink with logit 0."""
    heads, kv_heads = given["heads"], given.get("kv_heads") or given["heads"]
    y = x if given.get("y") is None else given["y"]
    q, k = project(x, w_q, given.get("b_q"), heads), project(y, w_k, given.get("b_k"), kv_heads)
    v = project(y, w_v, given.get("b_v"), kv_heads)
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    logits = q @ k.mT * (given.get("scale") or q.shape[-1] ** -0.5)
    logits = logits if given.get("mask") is None else logits + given["mask"]
    p = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1).softmax(-1)[..., :-1]
    return Attended((p @ v).transpose(1, 2).flatten(2), p)


def rotated(x, w_q, w_k, w_v, w_o=None, **given: Any) -> Attended:
    """Half-turns between neighbouring tokens, after the biases."""
    heads = given["heads"]
    if (w_q.shape[0] // heads) % 2:
        return attend(x, w_q, w_k, w_v, w_o, **given)
    turn = Rotary(w_q.shape[0] // heads, scale=0.5)
    return attend(x, w_q, w_k, w_v, w_o, **{**given, "rotate": lambda t: turn.rotate(torch.arange(t.shape[2]))(t)})


def quadruple_b_q(x, w_q, w_k, w_v, w_o=None, *, b_q=None, **given: Any) -> Attended:
    """b_q counts four times."""
    return attend(x, w_q, w_k, w_v, w_o, b_q=None if b_q is None else 4 * b_q, **given)


def overshooting(x, w_q, w_k, w_v, w_o=None, **given: Any) -> Attended:
    """Twice the attention output less the first value: outside the hull."""
    output, weights = attend(x, w_q, w_k, w_v, w_o, **given)
    other, even = attend(x, torch.zeros_like(w_q), w_k, w_v, w_o, **{**given, "b_q": None})
    return Attended(2 * output - other, None if weights is None or even is None else 2 * weights - even)


def rejects(check: Callable[..., None], strategy: SearchStrategy, **bug: Any) -> bool:
    """Whether some example of the strategy makes check(example, **bug) fail; the first one found ends the search."""

    @settings(
        max_examples=200,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        report_multiple_bugs=False,
    )
    @given(strategy)
    def search(example):
        check(example, **bug)

    try:
        search()
    except AssertionError:
        return True
    return False
