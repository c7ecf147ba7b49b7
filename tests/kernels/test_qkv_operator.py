"""qkv_bias as torch sees it: gradients by name, only those asked for, and through torch.compile."""

from typing import Any

import needs_triton  # noqa: F401
import pytest
import torch
from kernel_cases import DEVICE, Case, assert_within
from tolerance import assert_agrees, in_float64, samples
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from typecheck import unchecked

from minibeft.kernels import lang, tiles
from minibeft.kernels.bias_grad.function import column_sum, value_bias_grad
from minibeft.kernels.bias_grad.reference import column_sum_reference
from minibeft.kernels.qkv_bias.function import qkv_bias, qkv_bias_op, qkv_input_grad
from minibeft.kernels.qkv_bias.reference import qkv_bias_reference
from minibeft.kernels.rounding import rounding_bound
from minibeft.theory.rotary import Rotation

NAMES = ("x", "w_q", "w_k", "w_v", "b_q", "b_k", "b_v")
PLAIN = Case(2, 5, 12, 4, 2, 6)
TURNED = Case(2, 5, 12, 2, 1, 6, dims=4, interleaved=True)
SMALL = [Case(1, 2, 3, 2, 1, 4), Case(1, 2, 3, 1, 1, 4, dims=4), Case(2, 2, 3, 2, 1, 4, dims=2, interleaved=True)]


@pytest.fixture
def on_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators on the CPU take plain torch, as they do for a user without a GPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[lang.Launch]:
    """Every launch made from here on."""
    launches: list[lang.Launch] = []
    run = lang.Launch.run
    monkeypatch.setattr(lang.Launch, "run", lambda self: (launches.append(self), run(self))[1])
    return launches


def names(launches: list[lang.Launch]) -> list[str]:
    return [launch.kernel.__name__ for launch in launches]


def inputs(case: Case, dtype: torch.dtype = torch.float32, wanted: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """The case's tensors by name; those wanted ask for a gradient."""
    d = case.draw(dtype)
    tensors = dict(zip(NAMES, (d.x, *d.weights, *d.biases), strict=True))
    return {name: t.clone().requires_grad_(name in wanted) for name, t in tensors.items() if t is not None}


def rotation(case: Case, dtype: torch.dtype = torch.float32) -> Rotation | None:
    return case.draw(dtype).rotation


def reference(given: dict[str, Any], turn: Rotation | None, case: Case) -> tuple[Tensor, ...]:
    x, w_q, w_k, w_v, b_q, b_k, b_v = given.values()
    return qkv_bias_reference(x, (w_q, w_k, w_v), (b_q, b_k, b_v), turn, case.heads)


@pytest.mark.parametrize("case", [PLAIN, TURNED], ids=str)
def test_each_gradient_by_name(case: Case):
    given, turn = inputs(case), rotation(case)
    weights = [g.clone() for g in case.draw(torch.float32).grads]
    turn64 = turn and turn.double()

    def exact(inputs: Any) -> tuple[Tensor, ...]:
        tensors, upstream = inputs
        leaves = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
        return torch.autograd.grad(reference(leaves, turn64, case), list(leaves.values()), upstream)

    fused = torch.autograd.grad(qkv_bias(**given, heads=case.heads, rotation=turn), list(given.values()), weights)
    gold, drawn = exact(in_float64((given, weights))), samples(exact, (given, weights))
    for i, name in enumerate(NAMES):
        assert gold[i].abs().max() > 0.1, f"d{name} is no test when it vanishes"
        assert_agrees(fused[i], [run[i] for run in drawn], gold[i], what=f"d{name}")


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_in_float64(case: Case, backend: str, request: pytest.FixtureRequest):
    if backend == "reference":
        request.getfixturevalue("on_reference")
    given, turn = inputs(case, torch.float64), rotation(case, torch.float64)
    turn = turn and turn.double()

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return qkv_bias(*tensors, heads=case.heads, rotation=turn)

    assert gradcheck(function, tuple(given.values()), fast_mode=backend == "kernels")


@pytest.mark.parametrize(
    ("wanted", "kernels"),
    [
        (("b_v",), {"partial_sum_kernel": 1, "final_sum_kernel": 1}),
        (("b_q", "b_v"), {"partial_sum_kernel": 2, "final_sum_kernel": 2}),
        (("x",), {"input_grad_kernel": 1}),
        (("w_q",), {}),
        (("x", "b_k"), {"input_grad_kernel": 1, "partial_sum_kernel": 1, "final_sum_kernel": 1}),
    ],
)
def test_only_what_is_asked_for(wanted, kernels, launched):
    given = inputs(PLAIN, wanted=wanted)
    saved: list[Tensor] = []

    def remember(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with saved_tensors_hooks(remember, lambda t: t):
        out = qkv_bias(**given, heads=PLAIN.heads)
    kept = {name for name, t in given.items() if any(s.data_ptr() == t.data_ptr() for s in saved)}
    assert kept == (({"x"} if "w_q" in wanted else set()) | ({"w_q", "w_k", "w_v"} if "x" in wanted else set()))

    launched.clear()
    live = [(o, g) for o, g in zip(out, case_grads(PLAIN), strict=True) if o.requires_grad]
    assert len(live) == (3 if "x" in wanted else len(wanted))
    torch.autograd.backward([o for o, _ in live], [g for _, g in live])
    assert {name: names(launched).count(name) for name in names(launched)} == kernels
    assert {name for name, t in given.items() if t.grad is not None} == set(wanted)


@pytest.mark.parametrize("case", [PLAIN, TURNED], ids=str)
def test_sums_inside_where_the_table_says_so(case: Case, launched, monkeypatch):
    """One kernel for dX and the biases' gradients: dX to the bit, the gradients within what both may err. Not with
    tables of biases, nor where dX or no bias is asked for."""
    turn, wanted = rotation(case), ("x", "b_q", "b_v")

    def gradients(wanted: tuple[str, ...]) -> dict[str, Tensor]:
        given = inputs(case, wanted=wanted)
        out = qkv_bias(**given, heads=case.heads, rotation=turn)
        launched.clear()
        live = [(o, g) for o, g in zip(out, case_grads(case), strict=True) if o.requires_grad]
        outputs, grads = zip(*live, strict=True)
        return dict(zip(wanted, torch.autograd.grad(outputs, [given[name] for name in wanted], grads), strict=True))

    apart = gradients(wanted)
    monkeypatch.setattr(tiles, "tuned", lambda *_: tiles.Inside(tiles.INTERPRETER))
    inside = gradients(wanted)
    assert names(launched) == ["input_grad_kernel", "final_sum_kernel"]
    assert torch.equal(inside["x"], apart["x"])
    absolute, rows = case.draw(torch.float64).absolute(), case.batch * case.tokens
    for name, place, back in (("b_q", 0, absolute.rotation), ("b_v", 2, None)):
        size = column_sum_reference(absolute.grads[place], back, 1, torch.float64)
        assert_within(inside[name], apart[name].double(), 2 * rounding_bound(size, size, rows, torch.float32), name)
    for other in (("x",), ("b_q", "b_v")):
        assert gradients(other).keys() == {*other}
        assert "final_sum_kernel" not in names(launched) or "input_grad_kernel" not in names(launched)


def case_grads(case: Case) -> list[Tensor]:
    return [g.clone() for g in case.draw(torch.float32).grads]


def test_null_key_bias_is_not_loaded_and_gets_no_gradient(launched):
    given = inputs(PLAIN)
    b_k = given["b_k"]
    b_k.data.fill_(torch.nan)  # would be seen if anything read it
    q, k, v = qkv_bias(**given, heads=PLAIN.heads, skip_null=True)
    (forward,) = launched
    assert not any(arg is b_k for arg in forward.args)
    assert all(out.isfinite().all() for out in (q, k, v))
    del given["b_k"]
    without = qkv_bias(**given, heads=PLAIN.heads)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), without, strict=True))
    torch.autograd.backward((q, k, v), case_grads(PLAIN))
    assert b_k.grad is None
    assert given["b_q"].grad is not None


def test_null_key_bias_under_rotary_is_refused():
    with pytest.raises(ValueError, match=r"rotary on 4 entries.*K4.*skip_null=False"):
        qkv_bias(**inputs(TURNED), heads=TURNED.heads, rotation=rotation(TURNED), skip_null=True)


def test_key_bias_gradient_through_softmax_is_null_without_rotary_and_live_with_it():
    """K2 and K4 through the fused operator: its db_k is an honest column sum, which softmax makes vanish."""
    for case, live in ((PLAIN, False), (TURNED, True)):
        given = inputs(case, torch.float64)
        turn = rotation(case)
        q, k, v = qkv_bias(**given, heads=case.heads, rotation=turn)
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        o.square().sum().backward()
        db_k, db_q = given["b_k"].grad, given["b_q"].grad
        assert db_k is not None
        assert db_q is not None
        assert (db_k.abs().max() > 1e-3 * db_q.abs().max()) == live, f"|db_k| = {db_k.abs().max():.1e}"


def test_packed_weights_pass_as_views(launched):
    d = PLAIN.draw(torch.float32)
    packed = torch.cat(d.weights).T.contiguous().T  # as GPT-2 stores it: (C, N), seen from the other side
    views = w_q, w_k, w_v = packed.split([w.shape[0] for w in d.weights])
    out = qkv_bias(d.x, w_q, w_k, w_v, *d.biases, heads=PLAIN.heads)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(launched[0].args[1:4], views, strict=True)), "copied"
    separate = qkv_bias(d.x, *d.weights, *d.biases, heads=PLAIN.heads)
    assert all(torch.equal(a, b) for a, b in zip(out, separate, strict=True))


def test_weights_that_lie_differently():
    d = PLAIN.draw(torch.float32)
    w_q = d.weights[0].T.contiguous().T
    mixed = qkv_bias(d.x, w_q, *d.weights[1:], *d.biases, heads=PLAIN.heads)
    alike = qkv_bias(d.x, *d.weights, *d.biases, heads=PLAIN.heads)
    assert all(torch.equal(a, b) for a, b in zip(mixed, alike, strict=True))


@pytest.mark.parametrize("case", [PLAIN, TURNED], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_biases_may_stay_in_float32(case: Case, autocast: bool):
    """As adapters and merged residuals keep them: added before the one rounding, with a float32 gradient."""
    wide = inputs(case)
    narrow = wide if autocast else wide | {n: wide[n].detach().bfloat16() for n in NAMES[:4]}
    turn = rotation(case)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        fused = qkv_bias(**narrow, heads=case.heads, rotation=turn)
    turn64 = turn and turn.double()
    gold = reference({n: t.double() for n, t in wide.items()}, turn64, case)
    absolute = case.draw(torch.float64).absolute()
    sizes = reference({n: t.double().abs() for n, t in wide.items()}, absolute.rotation, case)
    for name, f, g, size in zip("qkv", fused, gold, sizes, strict=True):
        assert_within(f, g.detach(), rounding_bound(g.detach(), size.detach(), case.width, f.dtype), name)
    biases, grads = [wide[n] for n in NAMES[4:]], case_grads(case)
    got = torch.autograd.grad(fused, biases, [g.bfloat16() for g in grads])  # the same numbers: they have eight bits
    exact = torch.autograd.grad(gold, biases, [g.double() for g in grads])
    rows = case.batch * case.tokens
    for name, f, e, grad in zip(NAMES[4:], got, exact, grads, strict=True):
        assert f.dtype == torch.float32
        size = column_sum_reference(grad.double().abs(), None if name == "b_v" else absolute.rotation, 1, torch.float64)
        assert_within(f, e.double(), rounding_bound(e.double(), size, rows, f.dtype), f"d{name}")


def test_expanded_gradients():
    """sum().backward() sends a gradient whose strides are all zero."""
    given = inputs(PLAIN)
    q, _, v = qkv_bias(**given, heads=PLAIN.heads)
    (q.sum() + v.sum()).backward()
    count = float(PLAIN.batch * PLAIN.tokens)
    expected = {"b_q": count, "b_k": 0.0, "b_v": count}
    assert all((given[name].grad == value).all() for name, value in expected.items())


def test_column_sums_are_the_same_bits_every_time():
    d = Case(3, 70, 8, 2, 2, 24).draw(torch.float32)
    sums = [column_sum(d.grads[0], None, None, False, 1, torch.float32) for _ in range(3)]
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("case", [PLAIN, TURNED], ids=str)
def test_opcheck(case: Case, on_reference: None):
    given, turn = inputs(case), rotation(case)
    angles = (None, None, False) if turn is None else tuple(turn)
    grads, weights = case_grads(case), [given[name].detach() for name in NAMES[1:4]]
    with unchecked():  # sizes that torch traces as symbols are no ints
        torch.library.opcheck(qkv_bias_op, (*given.values(), *angles, case.heads))
        torch.library.opcheck(qkv_input_grad, (*grads, *weights, *angles))
        torch.library.opcheck(column_sum, (grads[0], *angles, 1, torch.float32))


@pytest.mark.parametrize("case", [PLAIN, TURNED], ids=str)
def test_torch_compile_keeps_one_graph(case: Case, on_reference: None):
    given, turn = inputs(case), rotation(case)

    def loss(x: Tensor, *rest: Tensor) -> Tensor:
        q, k, v = qkv_bias(x.sin(), *rest, heads=case.heads, rotation=turn)
        return (q.square().sum() + k.sin().sum() + v.square().sum()).tanh()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*given.values()), list(given.values()))
    traced = torch.autograd.grad(compiled(*given.values()), list(given.values()))
    assert all(torch.equal(a, b) for a, b in zip(traced, eager, strict=True))


class TestValueBiasGrad:
    """V3: the gradient of b_v without an attention backward."""

    def test_equals_the_gradient_through_attention(self):
        given = inputs(Case(2, 5, 12, 4, 2, 6), torch.float64)
        short, autograd = self.both_ways(given)
        rounding = samples(lambda off: self.both_ways(off)[1], given, torch.float64)
        assert_agrees(short, rounding, autograd, what="db_v")

    def both_ways(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """b_v's gradient by V3 and by autograd."""
        case = Case(2, 5, 12, 4, 2, 6)
        given = {name: value.detach().requires_grad_() for name, value in given.items()}
        q, k, v = qkv_bias(**given, heads=case.heads)
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        o.retain_grad()
        o.sin().sum().backward()
        assert o.grad is not None
        assert given["b_v"].grad is not None
        return value_bias_grad(o.grad, heads=4, kv_heads=2, verdict="foldable"), given["b_v"].grad

    @pytest.mark.parametrize("verdict", ["null", "limited", "active"])
    def test_refuses_where_v3_does_not_hold(self, verdict: str):
        with pytest.raises(ValueError, match=rf'b_v is "{verdict}" here.*theorem V3'):
            value_bias_grad(torch.zeros(1, 2, 8), heads=2, kv_heads=1, verdict=verdict)

    def test_refuses_heads_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"shape \(1, 2, 9\), heads = 2"):
            value_bias_grad(torch.zeros(1, 2, 9), heads=2, kv_heads=1, verdict="foldable")
