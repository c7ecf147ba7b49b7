"""One forward pass of any model as products with parameters and softmaxes, cut from each other for autograd.

Each product with a parameter returns a new leaf, and so does each softmax. Autograd then sees only the path from the
nearest projections to a softmax's logits, and from its weights to the next product: the parts of one attention layer,
whatever the model calls them. All numbers are computed by the model itself, in float64: where the model casts to a
shorter type, the tracer passes float64 to torch instead.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# A product is named by its parameter and by how often that was used before.
Name = tuple[str, int]
# Function → its input, weight and bias.
Split = Callable[..., tuple[Any, Any, Any]]
LINEAR: Split = lambda input, weight, bias=None, *_, **__: (input, weight, bias)  # noqa: E731
MATMUL: Split = lambda input, other=None, mat2=None, **_: (input, mat2 if other is None else other, None)  # noqa: E731
ADDMM: Split = lambda input, mat1, mat2, **_: (mat1, mat2, input)  # noqa: E731
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm, Tensor.mm, Tensor.bmm)
PRODUCTS: dict[Any, Split] = {
    **dict.fromkeys((F.linear, *CONVOLUTIONS), LINEAR),
    **dict.fromkeys(MATMULS, MATMUL),
    **dict.fromkeys((torch.addmm, torch.baddbmm), ADDMM),
}
SOFTMAXES = (torch.softmax, Tensor.softmax)
ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.add_, Tensor.__iadd__)
SHORT = (torch.float32, torch.float16, torch.bfloat16)
LONGER = dict.fromkeys((Tensor.float, Tensor.half, Tensor.bfloat16), Tensor.double)


@dataclass(eq=False)
class Product:
    """A product with a parameter.

    source   its input, a function of the leaves before it
    result   what it gave, a leaf
    summed   the axes of the source that the parameter has too; the others are positions
    made     the axes of the result that the parameter has too; the others are positions
    bias     the name of the bias that it adds
    added    that bias, as it was added
    """

    name: Name
    source: Tensor
    result: Tensor
    summed: tuple[int, ...]
    made: tuple[int, ...]
    bias: str | None
    added: Tensor | None


@dataclass(eq=False)
class Softmax:
    """A softmax: its logits, a function of the leaves before it, and its weights, a leaf.

    The keys are the last axis of the logits; in the weights they are the axis that the model uses.

    seen    the logits whose weights are not rounded to zero, in the shape of the logits
    before  how many products came before it
    """

    logits: Tensor
    weights: Tensor
    seen: Tensor
    before: int


@dataclass(eq=False)
class Trace:
    """What one forward pass did, in order, the tensors that it returned, and the parameters that no step took."""

    products: list[Product] = field(default_factory=list)
    softmaxes: list[Softmax] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    idle: dict[str, Tensor] = field(default_factory=dict)

    def named(self, name: Name) -> Product | None:
        """The product of this name."""
        return next((product for product in self.products if product.name == name), None)


class Tracer(TorchFunctionMode):
    """Records a forward pass. Either it is cut, or `shifts` are added to what the products of these names give."""

    def __init__(self, model: nn.Module, shifts: Mapping[Name, Tensor] | None, dtype: torch.dtype):
        super().__init__()
        self.trace, self.dtype, self.shifts = Trace(), dtype, shifts
        self.kept: dict[int, Tensor] = {}  # so that no id is given twice
        self.names: dict[int, str] = {}  # of parameters, and of what is made of one alone
        self.uses: dict[str, int] = {}
        self.products: dict[int, Product] = {}
        for name, parameter in model.named_parameters(remove_duplicate=True):
            self.call_it(parameter, name)
            self.trace.idle[name] = parameter

    def call_it(self, tensor: Tensor, name: str) -> None:
        self.kept[id(tensor)], self.names[id(tensor)] = tensor, name

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for each in value if isinstance(value, tuple | list) else (value,):
                self.trace.idle.pop(self.names.get(id(each), ""), None)
        if self.dtype == torch.float64:
            func, args, kwargs = LONGER.get(func, func), longer(args), longer(kwargs)
        if func is F.scaled_dot_product_attention:
            with self:
                return eager(*args, **kwargs)
        if func in SOFTMAXES and isinstance(args[0], Tensor) and args[0].is_floating_point():
            return self.softmax(func, *args, **kwargs)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor | tuple | list):
            return result
        found = self.split(func, args, kwargs)
        if found is not None and isinstance(result, Tensor) and result.is_floating_point():
            return self.product(result, *found)
        self.follow(func, args, result)
        return result

    def split(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The source, weight, bias and axes of a product with a parameter; None for anything else."""
        if func is torch.functional.einsum and len(args) == 3 and isinstance(args[0], str) and "." not in args[0]:
            left, right = args[0].replace(" ", "").split("->")[0].split(",")
            result = args[0].replace(" ", "").split("->")[1]
            a, b = args[1:]
            if id(a) in self.names and id(b) not in self.names:
                left, right, a, b = right, left, b, a
            shared = [tuple(i for i, letter in enumerate(word) if letter in right) for word in (left, result)]
            return (a, b, None, *shared) if id(b) in self.names else None
        if func not in PRODUCTS:
            return None
        source, weight, bias = PRODUCTS[func](*args, **kwargs)
        if id(weight) not in self.names or weight.dim() < 2:
            return None
        if func in CONVOLUTIONS:
            return source, weight, bias, (1,), (1,)
        axes = (-1, *(-k for k in range(3, weight.dim() + 1) if weight.shape[-k] > 1))
        return source, weight, bias, axes, axes

    def product(self, result: Tensor, source: Tensor, weight: Tensor, bias: Any, summed: Any, made: Any) -> Tensor:
        """Record a product, and cut it or shift it."""
        parameter = self.names[id(weight)]
        name = parameter, self.uses.get(parameter, 0)
        self.uses[parameter] = name[1] + 1
        if self.shifts is None:
            result = result.detach().requires_grad_()
        elif name in self.shifts:
            result = result + self.shifts[name]
        found = Product(name, source, result, summed, made, self.names.get(id(bias)), bias)
        self.trace.products.append(found)
        result = result.clone()  # what follows may work in place
        self.kept[id(result)], self.products[id(result)] = result, found
        return result

    def softmax(self, func: Any, logits: Tensor, dim: int = -1, *rest: Any, **kwargs: Any) -> Tensor:
        """Record a softmax, and cut it."""
        weights = func(logits, dim, *rest, **kwargs)
        if self.shifts is None:
            weights = weights.detach().requires_grad_()
        seen = (weights.detach() > 0).movedim(dim, -1)
        self.trace.softmaxes.append(Softmax(logits.clone().movedim(dim, -1), weights, seen, len(self.trace.products)))
        return weights.clone()

    def follow(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Name a tensor that is computed from parameters alone, and note a bias that is added after the product."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        if func in ADDITIONS and len(tensors) == 2:
            product, bias = self.products.get(id(tensors[0])), self.names.get(id(tensors[1]))
            if product is not None and bias is not None and product.bias is None:
                product.bias, product.added = bias, tensors[1]
        if tensors and all(id(t) in self.names for t in tensors):
            for part in result if isinstance(result, tuple | list) else (result,):
                if isinstance(part, Tensor) and part.is_floating_point():
                    self.call_it(part, self.names[id(tensors[0])])


def longer(value: Any) -> Any:
    """The arguments with float64 in place of each shorter type."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value in SHORT else value
    if type(value) in (tuple, list):
        return type(value)(map(longer, value))
    return {key: longer(part) for key, part in value.items()} if type(value) is dict else value


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's attention in steps that a tracer sees."""
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:]).tril().logical_not(), -torch.inf)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return logits.softmax(-1) @ v


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of floating-point numbers in what a model returned."""
    if isinstance(value, Tensor):
        yield from [value] if value.is_floating_point() else []
    elif isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


@contextmanager
def in_c() -> Iterator[None]:
    """Within it a tracer does not see torch's functions written in Python, only the functions that these call."""
    with patch.multiple(F, **dict.fromkeys(CHECKS, lambda *_: False)):
        yield


CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def traced(
    model: nn.Module,
    inputs: Mapping[str, Any],
    shifts: Mapping[Name, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Trace:
    """One forward pass of a model of this type: cut for autograd, or, with `shifts`, not cut but shifted."""
    with torch.set_grad_enabled(shifts is None), in_c(), Tracer(model, shifts, dtype) as tracer:
        returned = model(**inputs)
    tracer.trace.outputs = [t.detach() for t in tensors(returned)]
    return tracer.trace
