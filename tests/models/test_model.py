"""What every model promises about its input: padding changes nothing, and what does not fit is named."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import drawn
from tiny import CASES, LAYOUTS, batch, load, redraw, reference, typical
from tolerance import assert_agrees, in_float64, samples
from torch import Tensor

import minibeft
from minibeft.models.config import Backend, Task
from minibeft.models.embeddings import Embeddings
from minibeft.models.heads import LMHead, Map, make_head
from minibeft.models.layers import Learned, RMSNorm, make_norm
from minibeft.models.packed.dropout import Dropout
from minibeft.models.transformer import Block, Transformer, additive_mask
from minibeft.theory.bounds import gamma, unit_roundoff
from minibeft.theory.draws import Draws
from minibeft.theory.variants import AttentionSpec, alibi_slopes


def model_of(family: str, task: Task = "hidden", dtype: torch.dtype = torch.float32) -> Transformer:
    return load(reference(typical(family, task), 1), dtype, "fused")


def test_logits_of_some_positions_alone():
    """Each row has positions of its own. Sums of C products in another order differ by at most 2 γ_C |h| |W|ᵀ."""
    model, b = (
        model_of("llama", "lm", torch.float64),
        batch(typical("llama", "lm"), 2, rows=3, length=7, padding="right"),
    )
    whole, places = model(*b), torch.tensor([[0, 3], [2, 1], [1, 2]])
    some, rows = model(*b, places=places), torch.arange(3)[:, None]
    assert isinstance(model.head, LMHead)
    weight = model.token_vectors if model.head.weight is None else model.head.weight
    assert whole.logits is not None
    assert some.logits is not None
    assert weight is not None
    assert torch.equal(some.hidden, whole.hidden)
    rounding = 2 * gamma(model.config.width, unit_roundoff(torch.float64))
    allowed = rounding * (whole.hidden[rows, places].abs() @ weight.abs().mT)
    assert ((some.logits - whole.logits[rows, places]).abs() <= allowed).all()
    assert not ((some.logits - whole.logits[rows, places.roll(1, 1)]).abs() <= allowed).all()


@pytest.mark.parametrize("backend", ["fused", "plain"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_padding_changes_no_real_token(family: str, side: str, backend: str):
    """Each row alone and without padding gives what it gives in the batch.

    BERT and the rotary families number padding on the left too. That moves every position by the same amount, which
    only BERT, whose positions are learned, can tell.
    """
    raw = typical(family, "hidden")
    theirs = reference(raw, 1)
    b = batch(raw, 2, rows=4, length=9, padding=side)
    model, gold = load(theirs, torch.float32, backend), load(theirs, torch.float64, backend)  # type: ignore[arg-type]
    hidden, exact = model(*b).hidden, gold(*b).hidden
    for row, real in enumerate(b.attention_mask.bool()):

        def alone(m: Transformer, row: int = row, real: Tensor = real) -> Tensor:
            assert b.input_ids is not None
            types = None if b.token_type_ids is None else b.token_type_ids[row : row + 1, real]
            return m(b.input_ids[row : row + 1, real], None, types).hidden[0].detach()

        alone_exact = alone(in_float64(model))
        if family == "bert" and side == "left" and not real.all():
            with pytest.raises(AssertionError, match="float64"):
                torch.testing.assert_close(exact[row, real], alone_exact, msg=lambda text: f"float64: {text}")
        else:
            assert_agrees(
                hidden[row, real], samples(alone, model), alone_exact, what=f"{family}, padding on the {side}"
            )


@pytest.mark.parametrize("family", ["bert", "roberta", "opt"])
def test_too_long(family: str):
    """40 rows of positions: OPT has 40 and two more; RoBERTa's first two are never a token's."""
    model, longest = model_of(family), {"bert": 40, "roberta": 38, "opt": 40}[family]
    model(torch.full((1, longest), 5))
    with pytest.raises(ValueError, match=f"input has {longest + 1} tokens, the model has positions for {longest}"):
        model(torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gptj"])
def test_rotary_has_no_end(family: str):
    assert model_of(family)(torch.full((1, 3000), 5)).hidden.isfinite().all()


@pytest.mark.parametrize(
    ("ids", "mask", "types", "message"),
    [
        ([[1, 2, 40]], None, None, "input_ids run from 1 to 40, the model knows 0 to 39"),
        ([[1, -1, 2]], None, None, "input_ids run from -1 to 2, the model knows 0 to 39"),
        ([[1, 2, 3]], None, [[0, 2, 0]], "token_type_ids run from 0 to 2, the model knows 0 to 1"),
        ([[1, 2, 3]], [[1, 1]], None, r"attention_mask has shape \(1, 2\), input_ids \(1, 3\)"),
        ([[1, 2, 3]], [1, 1, 1], None, r"attention_mask has shape \(3,\), input_ids \(1, 3\)"),
        ([[1, 2, 3]], None, [[0], [0]], r"token_type_ids has shape \(2, 1\), input_ids \(1, 3\)"),
    ],
)
def test_input_that_does_not_fit(
    ids: list[list[int]], mask: list[list[int]] | None, types: list[list[int]] | None, message: str
):
    def tensor(value: list[list[int]] | None) -> Tensor | None:
        return None if value is None else torch.tensor(value)

    forward = inspect.unwrap(Transformer.forward)  # past the suite's own check of shapes, which users do not have
    with pytest.raises(ValueError, match=message):
        forward(model_of("bert"), torch.tensor(ids), tensor(mask), tensor(types))


@pytest.mark.parametrize(("family", "task"), CASES)
def test_output(family: str, task: Task):
    """Shapes; and hidden states do not depend on the head."""
    model = model_of(family, task)
    output = model(torch.tensor([[3, 4, 5], [5, 4, 3]]))
    assert output.hidden.shape == (2, 3, 24)
    shapes = {"hidden": None, "classification": (2, 2), "tokens": (2, 3, 2), "lm": (2, 3, 40)}
    assert (None if output.logits is None else tuple(output.logits.shape)) == shapes[task]
    assert not model.training


SEEN = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("alibi", [False, True])
def test_which_tokens_are_in_sight(causal, window, padded, alibi):
    """Entry by entry; ALiBi adds one slope more for each later key. With nothing to hide or add the mask is None."""
    spec = AttentionSpec(2, 2, 4, 8, causal=causal, window=window, position_bias="alibi" if alibi else None)
    like = torch.zeros(1, dtype=torch.float64)
    mask = additive_mask(SEEN if padded else torch.ones_like(SEEN), 4, spec, like)
    if not (causal or window or padded or alibi):
        assert mask is None
        assert additive_mask(None, 4, spec, like) is None
        return
    assert mask is not None
    if not padded:
        whole = additive_mask(None, 4, spec, like)
        assert whole is not None
        assert whole.shape == (1, 2 if alibi else 1, 4 if causal or window else 1, 4)
        assert torch.equal(whole.expand_as(mask), mask)
    assert mask.dtype == like.dtype
    full, slopes = mask.expand(2, 2, 4, 4), alibi_slopes(2).tolist()
    for b, h, i in itertools.product(range(2), range(2), range(4)):
        seen = [
            j for j in range(4)
            if not (causal and j > i) and not (window and i - j >= window) and not (padded and not SEEN[b, j])
        ]  # fmt: skip
        row = full[b, h, i].tolist()
        assert [j for j in range(4) if row[j] > -torch.inf] == seen
        for j in seen:
            assert row[j] - row[seen[0]] == pytest.approx(slopes[h] * (j - seen[0]) if alibi else 0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("counted", "rows"),
    [
        ("all", [[2, 3, 4, 5], [2, 3, 4, 5]]),
        ("tokens", [[2, 3, 1, 1], [1, 2, 3, 4]]),
        ("mask", [[2, 3, 4, 1], [1, 1, 2, 3]]),
    ],
)
def test_which_row_of_the_positions_a_token_reads(counted: str, rows: list[list[int]]):
    tokens, mask = torch.tensor([[5, 6, 9, 9], [9, 5, 6, 7]]), torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert Learned(8, start=2, counted=counted).indices(tokens, mask, pad=9).tolist() == rows


BRANCHES: dict[str, tuple[str, dict[str, Any], Callable[[Any, Tensor, Map, Map], Tensor]]] = {
    "post": ("bert", {}, lambda b, x, f, g: b.norm2((y := b.norm1(x + f(x))) + g(y))),
    "pre": ("gpt2", {}, lambda b, x, f, g: (y := x + f(b.norm1(x))) + g(b.norm2(y))),
    "parallel": ("gptj", {}, lambda b, x, f, g: x + f(b.norm1(x)) + g(b.norm1(x))),
    "twin": ("gpt_neox", {"use_parallel_residual": True}, lambda b, x, f, g: x + f(b.norm1(x)) + g(b.norm2(x))),
    "sandwich": (
        "gemma2", {}, lambda b, x, f, g: (y := x + b.after1(f(b.norm1(x)))) + b.after2(g(b.norm2(y)))
    ),
    "scaled": (
        "dinov2", {}, lambda b, x, f, g: (y := x + b.after1(f(b.norm1(x)))) + b.after2(g(b.norm2(y)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BRANCHES)
def test_where_the_norms_sit(kind: str):
    """And which sums form the residual stream, with every parameter of the block redrawn."""
    family, changes, formula = BRANCHES[kind]
    block = minibeft.build_model(drawn(family, "hidden", 0) | changes).blocks[0].double().eval()
    redraw(block, 1)
    assert isinstance(block, Block)
    assert block.residual == kind
    x = Draws(2).normal(1, 3, block.attention.q.in_features)
    found = block(x, None, None)
    torch.testing.assert_close(found, formula(block, x, lambda y: block.attention(y, None, None), block.mlp))


@pytest.mark.parametrize("backend", ["fused", "plain"])
def test_the_plain_backend_drops_as_torch_does(backend: Backend):
    """Its dropout draws the numbers that other implementations draw from the same seed."""
    model = minibeft.build_model(typical("bert", "hidden"), backend=backend)
    kinds = {type(module) for module in (model.embed.drop, *(block.drop for block in model.blocks))}
    assert kinds == {torch.nn.Dropout if backend == "plain" else Dropout}


def test_what_a_configuration_of_one_layer_says():
    config = minibeft.build_model(typical("llama", "hidden", num_hidden_layers=1)).config
    assert (config.layers, config.width, config.heads, config.kv_heads, config.head_size) == (1, 24, 4, 2, 6)
    assert config.causal


@pytest.mark.parametrize(("kind", "weight"), [("rms", 1.0), ("rms+1", 0.0)])
def test_a_new_norm_scales_by_one(kind, weight):
    """Gemma's weight is what its gain differs from 1 by."""
    norm = make_norm(kind, 3, 1e-6)
    assert isinstance(norm, RMSNorm)
    assert (norm.weight.tolist(), norm.gain.tolist()) == ([weight] * 3, [1.0] * 3)
    norm.weight.data.fill_(0.25)
    assert norm.gain.tolist() == [1.25 - weight] * 3


HEADS = {
    "bert": {
        "classification": "ClassificationHead",
        "tokens": "TokenHead",
        "lm": "MaskedLMHead",
        "hidden": "NoneType",
    },
    "llama": {"classification": "LastTokenHead", "lm": "LMHead", "hidden": "NoneType"},
    "vit": {"classification": "LinearHead", "hidden": "NoneType"},
    "whisper": {"classification": "MeanHead", "hidden": "NoneType"},
}


@pytest.mark.parametrize("family", HEADS)
def test_which_head_a_task_has(family: str):
    config = replace(minibeft.build_model(drawn(family, "hidden", 0)).config, vocab=5, labels=2, pooler=False)
    made = {task: type(make_head(replace(config, task=task))).__name__ for task in HEADS[family]}  # type: ignore[arg-type]
    assert made == HEADS[family]
    assert type(make_head(replace(config, pooler=True))).__name__ == "ClassificationHead"


def test_a_new_untied_head_is_drawn_as_small_as_the_rest():
    torch.manual_seed(0)
    head = minibeft.build_model(typical("llama", "lm", tie_word_embeddings=False), task="lm").head
    assert isinstance(head, LMHead)
    assert head.weight is not None
    assert 0.015 < head.weight.std() < 0.025  # 960 numbers with std 0.02: a quarter of it is eleven deviations


def test_gemma_scales_its_token_vectors():
    """By √C; positions turn, so nothing else comes in."""
    model = minibeft.build_model(drawn("gemma", "hidden", 0)).double().eval()
    assert isinstance(model.embed, Embeddings)
    table = model.embed.tokens.weight
    for ids in (torch.tensor([[3, 4, 5]]), torch.tensor([[7]])):
        found = model.embed(ids, torch.ones_like(ids), None)
        torch.testing.assert_close(found, table[ids] * table.shape[1] ** 0.5)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2", "bert"])
def test_the_kernels_way_is_the_plain_way(family: str, monkeypatch: pytest.MonkeyPatch):
    """With QK-norm and turns, with turns, with b_k that is null, in float64; the kernels' reference stands for them."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    raw = drawn(family, "hidden", 3)
    backends: tuple[Backend, ...] = ("plain", "triton")
    models = [load(reference(raw, 1), torch.float64, backend) for backend in backends]
    assert (models[0].config.attention[0].qk_norm is not None) == (family == "qwen3")
    b = batch(raw, 2, rows=2, length=5, padding="right")
    one, other = (model(*b).hidden[b.attention_mask.bool()] for model in models)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_generate_stops():
    model = model_of("llama", "lm")
    start = torch.tensor([[3, 4], [5, 6]])
    long = minibeft.generate(model, start, tokens=6)
    assert long.shape == (2, 8)
    assert torch.equal(long[:, :2], start)
    for i in range(6):
        assert torch.equal(model(long[:, : 2 + i]).logits[:, -1].argmax(-1), long[:, 2 + i])
    assert minibeft.generate(model, start[:1], tokens=6, stop=int(long[0, 2])).shape == (1, 3)
    with pytest.raises(ValueError, match="LM head; this one was loaded for hidden"):
        minibeft.generate(model_of("bert"), start, tokens=1)


def test_no_module_hides_a_public_name():
    """Importing a submodule puts it into the package under its own name, over whatever was there."""
    assert not minibeft.HOMES.keys() & set(minibeft.HOMES.values())
    assert set(minibeft.__all__) == minibeft.HOMES.keys()
    for name in minibeft.__all__:
        assert getattr(minibeft, name) is getattr(minibeft, name)
        assert callable(getattr(minibeft, name))


def test_a_new_model_is_ready_to_train():
    """build_model: std 0.02, biases zero, norms one, gradients everywhere that the loss reaches."""
    torch.manual_seed(0)
    model = minibeft.build_model(typical("roberta", "classification"))
    model(torch.tensor([[3, 4, 5]])).logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert 0.01 < parameter.std() < 0.03, name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name
