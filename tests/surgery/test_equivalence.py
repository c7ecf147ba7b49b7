"""The comparison of two models, part by part: what it refuses, what it computes in, and that it leaves no trace."""

import re
from pathlib import Path

import pytest
import torch
from tiny import batch, load, reference, typical

from minibeft.errors import BadInput
from minibeft.models.transformer import Transformer
from minibeft.surgery.equivalence import Agreement, Difference, compare, computing_in, is_rounded, outputs

FINE = Difference("float32", 1.0, 1.0)
WRONG = {
    "beyond": (Difference("float64", 1.5, 1.0), "the new outputs differ by 1.5, and rounding explains only 1"),
    "infinite": (Difference("float64", torch.inf, torch.inf), "outputs overflow, so nothing is verified"),
    "no limit": (Difference("float64", 0.0, torch.inf), "outputs overflow, so nothing is verified"),
    "nan": (Difference("float64", torch.nan, 1.0), "outputs overflow, so nothing is verified"),
}


@pytest.mark.parametrize(("wrong", "why"), WRONG.values(), ids=WRONG)
def test_either_difference_is_refused(wrong, why):
    Agreement(2, 1.0, FINE, FINE).require(Path("x"))
    for exact, written in ((wrong, FINE), (FINE, wrong)):
        with pytest.raises(BadInput, match=re.escape(f"x: nothing was written; in float64 {why}")):
            Agreement(2, 1.0, exact, written).require(Path("x"))


def model_and_batch() -> tuple[Transformer, dict[str, torch.Tensor]]:
    raw = typical("bert", "classification")
    b = batch(raw, 2, rows=3, length=6, padding="right")
    assert b.input_ids is not None
    return load(reference(raw, 1), torch.float32, "fused"), {
        "input_ids": b.input_ids,
        "attention_mask": b.attention_mask,
    }


def test_a_model_computes_in_another_type_and_is_then_what_it_was():
    """Also after an error; and no hook stays, so that it computes in its own type again."""
    model, given = model_and_batch()
    before = {name: (value, value.data_ptr()) for name, value in model.named_parameters()}
    plain = model(**given).hidden
    for fails in (False, True):
        try:
            with computing_in(model, torch.float64):
                inside = model(**given).hidden
                assert inside.dtype == torch.float64
                assert inside.data_ptr() != plain.data_ptr()
                assert not torch.equal(inside.float(), plain) or inside.numel() == 0
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert {name: (value, value.data_ptr()) for name, value in model.named_parameters()} == before
        assert all(value.dtype == torch.float32 for value in model.parameters())
        assert torch.equal(model(**given).hidden, plain)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_logits_of_all_or_states_of_the_real_tokens():
    model, given = model_and_batch()
    assert outputs(model, given).shape == (3, 2)
    model.head = None
    assert outputs(model, given).shape == (int(given["attention_mask"].sum()), 24)
    assert outputs(model, given, torch.float64).dtype == torch.float64


def test_what_is_compared():
    """A bias that does nothing goes; a bias that does something is seen, in both types."""
    intended, given = model_and_batch()
    written, _ = model_and_batch()
    name = "blocks.0.attention.k.bias"
    written.get_parameter(name).data.zero_()
    exact = {name: torch.zeros(24, dtype=torch.float64)}
    found = compare(intended, written, exact, given)
    found.require(Path("x"))
    assert (found.sentences, found.inputs, found.exact.dtype, found.written.dtype) == (
        3,
        "sentences",
        "float64",
        "float32",
    )
    assert found.largest == outputs(intended, given, torch.float64).abs().max().item()
    assert 0 < found.exact.value < 1e-12 < found.written.value < 1e-3
    other, _ = model_and_batch()
    name = "blocks.0.attention.v.bias"
    other.get_parameter(name).data.zero_()
    seen = compare(intended, other, {name: torch.zeros(24, dtype=torch.float64)}, given)
    assert not seen.exact.within
    assert not seen.written.within


def test_a_number_is_rounded_where_one_of_the_types_gives_it():
    exact = torch.tensor([1.0, 1 / 3], dtype=torch.float64)
    half, single = exact.half().double(), exact.float().double()
    assert is_rounded(half, exact, (torch.float32, torch.float16))
    assert is_rounded(single, exact, (torch.float16, torch.float32))
    assert not is_rounded(half, exact, (torch.float32, torch.bfloat16))
    assert not is_rounded(single, exact, ())
