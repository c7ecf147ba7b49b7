"""The keys of a quantised cache lie within half a step of the exact keys; a shift gains what the study says."""

import needs_triton  # noqa: F401
import pytest
import torch
from kernel_cases import DEVICE, Case, check_quantised_keys

from minibeft.kernels.key_cache.function import quantised_keys
from minibeft.kernels.key_cache.reference import shifted_keys_reference, unpacked
from minibeft.kernels.rounding import rounding_bound
from minibeft.surgery.quantkeys import Quantiser
from minibeft.theory.draws import Draws

CASES = [
    Case(2, 17, 33, 3, 3, 24),
    Case(3, 1, 45, 4, 2, 24, dims=24, positions="own"),
    Case(2, 7, 33, 1, 1, 80, dims=32, interleaved=True, biases=""),
    Case(2, 5, 33, 6, 2, 24, dims=8, layout="strided"),
    Case(2, 0, 16, 2, 1, 8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_half_a_step(case: Case, dtype: torch.dtype):
    check_quantised_keys(case, dtype)


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_mean_key_off_gains_what_the_study_says(bits: int, backend: str, monkeypatch: pytest.MonkeyPatch):
    """Keys around a long mean, whose error is more than halved. At a tie it is half a step either way, so two errors
    differ by no more than what was rounded to get there: a key and its step, each within `slack`, and four roundings of
    the rest, which are smaller."""
    if backend == "reference":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    draws, study, errors = Draws(0), Quantiser("token", symmetric=True), []
    x, w = draws.normal(1, 23, 8, dtype=torch.float32), draws.normal(16, 8, dtype=torch.float32)
    b = 20 * draws.normal(16, dtype=torch.float32)
    x, w, b = x.to(DEVICE), w.to(DEVICE), b.to(DEVICE)
    keys = shifted_keys_reference(x.double(), w.double(), b.double(), torch.zeros(1, 16).to(x.device).double(), None)
    sizes = x.abs().double() @ w.abs().double().T + b.abs().double()
    for shift in (torch.zeros(1, 16), keys.mean(2)[0].float()):
        codes, steps = quantised_keys(x, w, b, shift.to(x), bits=bits)
        codes = codes if bits == 8 else unpacked(codes, None)
        exact = keys - shift.to(keys)[:, None]
        error = (codes * steps[..., None].double() - exact).square().mean().sqrt()
        theirs = (study(exact, torch.ones(1, 1, 1, 1, dtype=torch.bool), bits) - exact).square().mean().sqrt()
        slack = rounding_bound(exact[0, 0], sizes[0] + shift.to(keys).abs(), 9, torch.float32).max()
        assert abs(error - theirs) <= 6 * slack
        errors.append(error)
    assert errors[1] < errors[0] / 2


def test_what_does_not_fit_is_refused():
    x, w = torch.zeros(1, 2, 8, device=DEVICE), torch.zeros(12, 8, device=DEVICE)
    for shift, bits, said in ((torch.zeros(4, 3), 8, "D even"), (torch.zeros(2, 6), 3, "bits = 3")):
        with pytest.raises(ValueError, match=said):
            quantised_keys(x, w, None, shift, bits=bits)
    with pytest.raises(ValueError, match=r"w_k has shape \(12, 8\), expected \(16, 8\)"):
        quantised_keys(x, w, None, torch.zeros(2, 8))
