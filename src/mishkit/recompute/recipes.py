"""How an operation's output is recomputed from what its autograd node keeps.

A recipe is an entry in a table, under the name of the node. The outputs of nodes without a recipe
are kept as usual, so the table may be incomplete. It must never be wrong. A recipe therefore calls
the very kernel of the forward pass, which gives the same bits for the same numbers, or a formula
that has been compared with that kernel, bit by bit, in this process.

The output of a node that keeps its own output (ReLU, sigmoid, tanh, exp) is recomputed from the
node's input, if that can be recomputed. The output is never recomputed from itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch_private import (
    first_packed,
    fused_rms_norm,
    prelu_kernel,
    suggest_memory_format,
    without_modes,
)
from ..ops import gate, norm
from ..ops.affine import NO_FUNCTION, Affine, affine, layer_norm_again, wide
from ..ops.blend import function
from ..ops.functions import RULES

Node = Any
"""A node of the autograd graph."""


def _none(node: Node) -> Sequence[int]:
    return ()


def _always(node: Node) -> bool:
    return True


@dataclass(frozen=True)
class Recipe:
    """How to recompute the output of a node."""

    make: Callable[[Node, Sequence[Tensor], int], Tensor]
    """make(node, inputs, output number); called without gradients."""
    inputs: Callable[[Node], Sequence[int]] = _none
    """The numbers of the inputs that `make` needs but the node does not keep."""
    applies: Callable[[Node], bool] = _always
    """Whether this node keeps enough for the recipe."""
    sums: int = 0
    """How many sums this adds to a chain: x + f(x) needs the previous sum, and so on."""
    is_product: bool = False
    """Whether it runs a matrix product again, which takes long: only a budget asks for that."""
    outputs: bool = False
    """Whether it can make every output, not only the first."""
    affine: Callable[[Node, Sequence[Any]], Affine | None] | None = None
    """affine(node, what provides the inputs): the output as scale·x + shift, if that is known."""


def find(node: Node) -> Recipe | None:
    """The recipe for a node, if there is one and the node keeps enough; `LEAF` for a leaf."""
    kind = type(node)
    if kind not in _by_class:
        # Nodes of C++ extensions may share a class.
        if kind.__name__ not in (node.name(), "AccumulateGrad"):
            return _RECIPES.get(node.name())
        _by_class[kind] = _of_class(node)
    recipe = _by_class[kind]
    if recipe is None or recipe.applies is _always or recipe.applies(node):
        return recipe
    return None


_by_class: dict[type, Recipe | None] = {}
"""The recipes that have been looked up, by the class of the node."""


def _of_class(node: Node) -> Recipe | None:
    if hasattr(node, "variable"):
        return LEAF
    return _RECIPES.get(node.name()) or _OURS.get(getattr(node, "_forward_cls", None))


def _first(node: Node) -> Sequence[int]:
    return (0,)


def _from_input(function: Callable[[Node, Tensor], Tensor]) -> Recipe:
    """From the node's only input: what keeps nothing but the output, and views of the input."""
    return Recipe(lambda node, inputs, number: function(node, inputs[0]), _first)


def _elu(node: Node, x: Tensor) -> Tensor:
    """ELU, SELU and their like."""
    elu: Tensor = torch.ops.aten.elu(
        x, node._saved_alpha, node._saved_scale, node._saved_input_scale
    )
    return elu


LEAF = Recipe(lambda node, inputs, number: node.variable)
"""Of the node behind a leaf, which holds it."""


def _all(node: Node) -> Sequence[int]:
    return range(len(node.next_functions))


def _signed(number: int) -> int:
    """Autograd nodes report negative numbers modulo 2⁶⁴."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _bound(number: int | None) -> int | None:
    """One end of a slice; None if it is open."""
    return None if number is None else _signed(number)


def _shape(node: Node) -> torch.Size:
    return node._input_metadata[0].shape


# ---- from what the node keeps -----------------------------------------------------------------


def _kept(function: Callable[[Node], Tensor]) -> Recipe:
    """A recipe that needs only the node."""
    return Recipe(lambda node, inputs, number: function(node))


def _needs_gradient(node: Node, number: int) -> bool:
    return node.next_functions[number][0] is not None


def _unkept_factors(node: Node) -> Sequence[int]:
    """A product keeps a factor only if the other factor needs a gradient."""
    return [number for number in (0, 1) if not _needs_gradient(node, 1 - number)]


def _factors(node: Node, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    given = list(inputs)
    first = node._saved_self if _needs_gradient(node, 1) else given.pop(0)
    return first, node._saved_other if _needs_gradient(node, 0) else given.pop(0)


def _product(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return torch.mul(*_factors(node, inputs))


def _unkept_dividend(node: Node) -> Sequence[int]:
    return () if _needs_gradient(node, 1) else (0,)


def _quotient(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    dividend = inputs[0] if inputs else node._saved_self
    return dividend / node._saved_other


def _sum(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return torch.add(inputs[0], inputs[1], alpha=node._saved_alpha)


def _difference(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return torch.sub(inputs[0], inputs[1], alpha=node._saved_alpha)


def _concatenation(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return torch.cat(list(inputs), _signed(node._saved_dim))


def _stack(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return torch.stack(list(inputs), _signed(node._saved_dim))


def _indexed(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    """The rows of the tokens of an expert, for example."""
    indexed: Tensor = torch.ops.aten.index(inputs[0], list(node._saved_indices))
    return indexed


def _embedded(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return F.embedding(node._saved_indices, inputs[0])


def _has_both_factors(node: Node) -> bool:
    """Whether a matrix product keeps both factors, which it does if each needs a gradient."""
    return _needs_gradient(node, -1) and _needs_gradient(node, -2)


def _product_with_bias(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    factors = node._saved_mat1, node._saved_mat2
    return torch.addmm(inputs[0], *factors, beta=node._saved_beta, alpha=node._saved_alpha)


def _where(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return torch.where(node._saved_condition, inputs[0], inputs[1])


def _cast(node: Node, inputs: Sequence[Tensor], number: int) -> Tensor:
    return inputs[0].to(node._input_metadata[0].dtype)


# ---- normalisation, dropout -------------------------------------------------------------------

# Torch's kernels can't be called again: the nodes do not keep ε, some of them do not keep the
# shift, and none keep a generator's state. The operators of `mishkit.ops.affine` and the formulas
# below round as the kernels do, which `_rounds_alike` verifies.


def _by_channel(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor) -> Affine:
    """A batch norm."""
    scale = wide(invstd) * wide(weight)
    return Affine(x, scale, torch.addcmul(wide(bias), wide(mean), scale, value=-1))


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    if _is_in_order(x):
        return _computed(_by_channel(x, weight, bias, mean, invstd))
    ones = [1] * (x.dim() - 2)
    mean, invstd, weight, bias = (t.view(-1, *ones) for t in (mean, invstd, weight, bias))
    return ((x - mean) * invstd * weight + bias).to(x.dtype).contiguous()


def _is_in_order(x: Tensor) -> bool:
    """Whether a batch norm of x rounds as scale·x + shift. On a CPU torch has another kernel for
    inputs in an order that is no memory format.
    """
    return (
        not (x.is_cpu or x.is_meta)
        or x.is_contiguous()
        or x.is_contiguous(memory_format=suggest_memory_format(x))
    )


def _by_sample(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Affine:
    """A group norm."""
    by_channels = suggest_memory_format(x) is not torch.contiguous_format
    channels = x.shape[1] // mean.shape[1]
    key = (x.dtype, weight.dtype, _kernels_of(x), by_channels, channels)
    return _by_sample_rounded(x, weight, bias, mean, rstd, _shift_rounds_once(*key))


def _by_sample_rounded(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, rounds_once: bool
) -> Affine:
    repeats = x.shape[1] // mean.shape[1]
    mean = wide(mean).repeat_interleave(repeats, 1)
    scale = wide(rstd).repeat_interleave(repeats, 1) * wide(weight)
    bias = wide(bias)
    if rounds_once:
        shift = torch.addcmul(bias.expand_as(scale), mean, scale, value=-1)
    else:
        shift = bias - mean * scale
    samples_first = x.shape[0] == 1 or x.stride(0) * x.shape[0] == x.numel()
    return Affine(x if samples_first else x.contiguous(), scale, shift)


def _kernels_of(tensor: Any) -> str:
    """The device whose kernels make the numbers; a meta tensor stands for one on the CPU."""
    device: torch.device = tensor.device
    if device == _CPU:  # takes a fifth of the time that reading the type takes
        return "cpu"
    return "cpu" if device.type == "meta" else device.type


_CPU = torch.device("cpu")


@functools.cache
def _shift_rounds_once(
    dtype: torch.dtype, weights: torch.dtype, device: str, by_channels: bool, channels: int
) -> bool:
    """Whether the group-norm kernel rounds bias − mean·scale once, or rounds the product first.

    In `channels_last`, torch 2.14 does the one or the other, depending on how many channels a group
    has. If it does neither, `_rounds_alike` will notice.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).add_(1).to(dtype).to(device)

    layout = torch.channels_last if by_channels else torch.contiguous_format
    width = 6 * channels
    with without_modes():  # under a FakeTensorMode there would be nothing to compare
        for side in (5, 16, 64):  # in 16 bits it takes many numbers for the two to differ
            x = normal(dtype, 4, width, side, side).contiguous(memory_format=layout)
            weight, bias = normal(weights, 2, width)
            y, mean, rstd = torch.native_group_norm(x, weight, bias, 4, width, side * side, 6, 1e-5)
            once, twice = (
                _computed(_by_sample_rounded(x, weight, bias, mean, rstd, rounds_once))
                for rounds_once in (True, False)
            )
            if not torch.equal(once, twice):
                return torch.equal(y, once)
    return True


def _computed(affine_of_x: Affine) -> Tensor:
    return affine(*affine_of_x, *NO_FUNCTION)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    rows = (wide(number).contiguous() for number in (mean, rstd, weight, bias))
    return layer_norm_again(x.contiguous(), *rows)


def _rms_norm(x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    return (wide(x) * wide(rstd) * wide(weight)).to(x.dtype)


def _known_shift(node: Node) -> Sequence[int]:
    return (2,)


def _statistics(node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the reciprocal of the deviation that a batch norm of x used."""
    if node._saved_training:
        return node._saved_result1, node._saved_result2
    deviation = _inverse_deviation(node._saved_running_var, node._saved_eps, _is_in_order(x))
    return node._saved_running_mean, deviation


def _inverse_deviation(variance: Tensor, epsilon: float, is_in_order: bool) -> Tensor:
    if is_in_order:
        return torch.rsqrt(wide(variance) + epsilon)
    return 1 / torch.sqrt(variance + epsilon)  # as torch's other kernel rounds it


def _dropout(x: Tensor, mask: Tensor, p: float) -> Tensor:
    return x * (mask.to(x.dtype) * (1 / (1 - p)))


def _again_batch(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y, *kept = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
    return y, _batch_norm(x, weight, bias, *kept)


def _again_cudnn_batch(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y, *kept, _ = torch.cudnn_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
    return y, _batch_norm(x, weight, bias, *kept)


def _again_frozen_batch(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = bias - 0.5, weight * weight
    y, *_ = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.1, 1e-5)
    deviation = _inverse_deviation(variance, 1e-5, _is_in_order(x))
    return y, _batch_norm(x, weight, bias, mean, deviation)


def _again_group(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous(memory_format=suggest_memory_format(x))  # as torch's function does
    samples, channels, *sides = x.shape
    sizes = samples, channels, math.prod(sides), 6
    y, *kept = torch.native_group_norm(x, weight, bias, *sizes, 1e-5)
    return y, _computed(_by_sample(x, weight, bias, *kept))


def _again_layer(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.transpose(1, -1)
    y, *kept = torch.native_layer_norm(rows, weight.shape, weight, bias, 1e-5)
    return y, _layer_norm(rows, weight, bias, *kept)


def _again_rms(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.transpose(1, -1)
    y, rstd = fused_rms_norm(rows, weight.shape, weight, 1e-5)
    return y, _rms_norm(rows, weight, rstd)


def _again_dropout(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    devices = [] if x.device.type == "cpu" else [x.device]
    with torch.random.fork_rng(devices, device_type=x.device.type):
        y, mask = torch.native_dropout(x, 0.3, True)
    return y, _dropout(x, mask, 0.3)


@functools.cache
def _rounds_alike(
    again: Callable[..., tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    weights: torch.dtype,
    device: str,
) -> bool:
    """Whether the formula matches torch's kernel bit for bit for an input and weights of these
    dtypes, in this process.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(3).add_(1).to(dtype).to(device)

    # Rows of 24 are shorter than some kernels' vectors, and one result in thousands may differ.
    # Under a FakeTensorMode there would be nothing to compare.
    with without_modes(), torch.no_grad(), torch.autocast(device, enabled=False):
        for channels, size in itertools.product((24, 144), (1, 5, 7, 16)):
            try:
                x = normal(dtype, 4, channels, size, size)
                weight, bias = normal(weights, 2, channels)
            except (AssertionError, RuntimeError):  # fake tensors may name a device that is missing
                return False
            layouts = [x, x.contiguous(memory_format=torch.channels_last)]
            if device == "cpu":
                layouts.append(x.transpose(0, 1).contiguous().transpose(0, 1))
            for laid_out in layouts:
                try:
                    y, made = again(laid_out, weight, bias)
                except RuntimeError:  # torch does not mix these dtypes
                    return False
                if made.dtype != y.dtype or not torch.equal(made, y):
                    return False
    return True


def _norm_applies(node: Node, again: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether the formula holds for a norm, and weight and bias are available. A batch norm or a
    group norm does not keep its bias. If that needs no gradient, or is no leaf, it can't be found.
    """
    (_, _), (weight, _), (bias, _) = node.next_functions
    leaf = getattr(bias, "variable", None)
    if weight is None or leaf is None:
        return False
    return _rounds_alike(again, node._input_metadata[0].dtype, leaf.dtype, _kernels_of(leaf))


def _batch_norm_applies(node: Node) -> bool:
    return _norm_applies(node, _again_batch if node._saved_training else _again_frozen_batch)


def _cudnn_batch_norm_applies(node: Node) -> bool:
    return bool(node._saved_training) and _norm_applies(node, _again_cudnn_batch)


def _group_norm_applies(node: Node) -> bool:
    return _norm_applies(node, _again_group)


def _layer_norm_applies(node: Node) -> bool:
    return _norm_applies(node, _again_layer)


def _rms_norm_applies(node: Node) -> bool:
    weight, dtype = node._saved_weight, node._input_metadata[0].dtype
    return weight is not None and _rounds_alike(
        _again_rms, dtype, weight.dtype, _kernels_of(weight)
    )


def _dropout_applies(node: Node) -> bool:
    output = node._input_metadata[0]
    return _rounds_alike(_again_dropout, output.dtype, output.dtype, _kernels_of(output))


def _affine_norm(
    make: Callable[[Node, Tensor], Tensor],
    affine_of: Callable[[Node, Tensor], Affine | None],
    applies: Callable[[Node], bool],
) -> Recipe:
    """A norm of which scale·x + shift may be known; both functions get the node and the shift."""
    return Recipe(
        lambda node, inputs, number: make(node, inputs[0]),
        _known_shift,
        applies,
        affine=lambda node, inputs: affine_of(node, inputs[0].value()),
    )


def _made_of_batch(node: Node, shift: Tensor) -> Tensor:
    x = node._saved_input
    return _batch_norm(x, node._saved_weight, shift, *_statistics(node, x))


def _affine_of_batch(node: Node, shift: Tensor) -> Affine | None:
    x = node._saved_input
    if not _is_in_order(x):
        return None
    return _by_channel(x, node._saved_weight, shift, *_statistics(node, x))


def _affine_of_group(node: Node, shift: Tensor) -> Affine:
    statistics = node._saved_result1, node._saved_result2
    return _by_sample(node._saved_input, node._saved_weight, shift, *statistics)


_BATCH_NORM = _affine_norm(_made_of_batch, _affine_of_batch, _batch_norm_applies)
_CUDNN_BATCH_NORM = _affine_norm(_made_of_batch, _affine_of_batch, _cudnn_batch_norm_applies)
_GROUP_NORM = _affine_norm(
    lambda node, shift: _computed(_affine_of_group(node, shift)),
    _affine_of_group,
    _group_norm_applies,
)
_LAYER_NORM = Recipe(
    lambda n, inputs, number: _layer_norm(
        n._saved_input, n._saved_weight, n._saved_bias, n._saved_result1, n._saved_result2
    ),
    applies=_layer_norm_applies,
)
_RMS_NORM = Recipe(
    lambda n, inputs, number: _rms_norm(n._saved_input, n._saved_weight, n._saved_result1),
    applies=_rms_norm_applies,
)


# ---- views ------------------------------------------------------------------------------------


def _views(function: Callable[[Node, Tensor], Sequence[Tensor]]) -> Recipe:
    return Recipe(
        lambda node, inputs, number: function(node, inputs[0])[number], _first, outputs=True
    )


def _same(node: Node, inputs: Sequence[Any]) -> Affine | None:
    return inputs[0].affine() if hasattr(inputs[0], "affine") else None


_SAME = Recipe(lambda node, inputs, number: inputs[0], _first, affine=_same)
_RESHAPED = _from_input(lambda node, x: x.reshape(_shape(node)))


_RECIPES: dict[str, Recipe] = {
    # activations
    "SiluBackward0": _kept(lambda n: F.silu(n._saved_self)),
    "GeluBackward0": _kept(lambda n: F.gelu(n._saved_self, approximate=n._saved_approximate)),
    "MishBackward0": _kept(lambda n: F.mish(n._saved_self)),
    "HardswishBackward0": _kept(lambda n: F.hardswish(n._saved_self)),
    "HardsigmoidBackward0": _kept(lambda n: F.hardsigmoid(n._saved_self)),
    "SoftplusBackward0": _kept(
        lambda n: F.softplus(n._saved_self, n._saved_beta, n._saved_threshold)
    ),
    "HardtanhBackward0": _kept(
        lambda n: F.hardtanh(n._saved_self, n._saved_min_val, n._saved_max_val)
    ),
    "LeakyReluBackward0": _kept(lambda n: F.leaky_relu(n._saved_self, n._saved_negative_slope)),
    "LeakyReluBackward1": _from_input(lambda n, x: F.leaky_relu(x, n._saved_negative_slope)),
    "EluBackward0": _kept(lambda n: _elu(n, n._saved_self)),
    "EluBackward1": _from_input(_elu),
    "CeluBackward0": _kept(lambda n: F.celu(n._saved_self, n._saved_alpha)),
    "CeluBackward1": _from_input(lambda n, x: F.celu(x, n._saved_alpha)),
    "PreluKernelBackward0": _kept(lambda n: prelu_kernel(n._saved_self, n._saved_weight)),
    "GluBackward0": _kept(lambda n: F.glu(n._saved_self, _signed(n._saved_dim))),
    "ReluBackward0": _from_input(lambda node, x: torch.relu(x)),
    "SigmoidBackward0": _from_input(lambda node, x: torch.sigmoid(x)),
    "TanhBackward0": _from_input(lambda node, x: torch.tanh(x)),
    "ExpBackward0": _from_input(lambda node, x: torch.exp(x)),
    "SqrtBackward0": _from_input(lambda node, x: torch.sqrt(x)),
    "RsqrtBackward0": _from_input(lambda node, x: torch.rsqrt(x)),
    # arithmetic
    "MulBackward0": Recipe(_product, _unkept_factors),
    "DivBackward0": Recipe(_quotient, _unkept_dividend),
    "AddBackward0": Recipe(_sum, _all, sums=1),
    "SubBackward0": Recipe(_difference, _all, sums=1),
    "NegBackward0": _from_input(lambda node, x: -x),
    "PowBackward0": _kept(lambda n: torch.pow(n._saved_self, n._saved_exponent)),
    "ClampBackward1": _kept(lambda n: torch.clamp(n._saved_self, n._saved_min, n._saved_max)),
    "ClampMinBackward0": _kept(lambda n: torch.clamp_min(n._saved_self, n._saved_min)),
    "ClampMaxBackward0": _kept(lambda n: torch.clamp_max(n._saved_self, n._saved_max)),
    "WhereBackward0": Recipe(_where, _all),
    "NativeDropoutBackward0": Recipe(
        lambda n, inputs, number: _dropout(inputs[0], n._saved_result1, n._saved_p),
        _first,
        _dropout_applies,
    ),
    "CatBackward0": Recipe(_concatenation, _all),
    "StackBackward0": Recipe(_stack, _all),
    "IndexBackward0": Recipe(_indexed, _first),
    "EmbeddingBackward0": Recipe(_embedded, _first),
    "ToCopyBackward0": Recipe(_cast, _first),
    # matrix products
    "MmBackward0": Recipe(
        lambda n, inputs, number: torch.mm(n._saved_self, n._saved_mat2),
        applies=_has_both_factors,
        is_product=True,
    ),
    "AddmmBackward0": Recipe(
        _product_with_bias, _first, applies=_has_both_factors, is_product=True
    ),
    # normalisation
    "NativeBatchNormBackward0": _BATCH_NORM,
    "CudnnBatchNormBackward0": _CUDNN_BATCH_NORM,
    "NativeLayerNormBackward0": _LAYER_NORM,
    "FusedRmsNormBackward0": _RMS_NORM,  # of GPUs; on a CPU the norm is made of its steps
    "NativeGroupNormBackward0": _GROUP_NORM,
    # views, and copies that have the values of their input
    "AliasBackward0": _SAME,
    "CloneBackward0": _SAME,
    "ViewBackward0": _RESHAPED,
    "UnsafeViewBackward0": _RESHAPED,
    "ReshapeAliasBackward0": _RESHAPED,
    "UnsqueezeBackward0": _RESHAPED,
    "SqueezeBackward0": _RESHAPED,
    "SqueezeBackward1": _RESHAPED,
    "SqueezeBackward2": _RESHAPED,
    "ExpandBackward0": _from_input(lambda node, x: x.expand(_shape(node))),
    "TBackward0": _from_input(lambda node, x: x.t()),
    "TransposeBackward0": _from_input(
        lambda n, x: x.transpose(_signed(n._saved_dim0), _signed(n._saved_dim1))
    ),
    "PermuteBackward0": _from_input(lambda n, x: x.permute([_signed(d) for d in n._saved_dims])),
    "SelectBackward0": _from_input(
        lambda n, x: x.select(_signed(n._saved_dim), _signed(n._saved_index))
    ),
    "SliceBackward0": _from_input(
        lambda n, x: torch.ops.aten.slice(
            x, _signed(n._saved_dim), _bound(n._saved_start), _bound(n._saved_end), n._saved_step
        )
    ),
    "SplitBackward0": _views(lambda n, x: x.split(n._saved_split_size, _signed(n._saved_dim))),
    "SplitWithSizesBackward0": _views(
        lambda n, x: x.split(list(n._saved_split_sizes), _signed(n._saved_dim))
    ),
    "UnbindBackward0": _views(lambda n, x: x.unbind(_signed(n._saved_dim))),
}
"""One entry per node type."""


def recipe(name: str) -> Callable[[Callable[[Node], Tensor]], Callable[[Node], Tensor]]:
    """Tell `mishkit.recompute` how to recompute the output of autograd's nodes of this name.

    The function gets a node and returns what its operation returned, to the bit, from what the node
    keeps. The node of a `torch.autograd.Function` has its name with ``Backward`` behind it::

        @mishkit.recompute.recipe("SquareBackward")
        def square(node):
            (x,) = node.saved_tensors
            return x * x

    Only the first output of a node is recomputed, without gradients and outside autocast.

    Raises
    ------
    ValueError
        if there is a recipe for that name already
    """
    if name in _RECIPES:
        raise ValueError(f"mishkit.recompute: there is a recipe for {name} already")

    def register(function: Callable[[Node], Tensor]) -> Callable[[Node], Tensor]:
        _RECIPES[name] = _kept(function)
        _by_class.clear()
        return function

    return register


def _ours(forward: Callable[..., Tensor], name: str = "") -> Recipe:
    """A function of ours, from the input that its node keeps; `name` if it can follow an affine."""

    def make(node: Node) -> Tensor:
        parameters = getattr(node, "parameters", ())
        behind = getattr(first_packed(node), "affine", None) if name else None
        x = None if behind is None else behind()
        if x is not None:
            return affine(*x, *function(name, *parameters))
        return forward(*node.saved_tensors, *parameters)

    return _kept(make)


_OURS: dict[Any, Recipe] = {
    **{rules.saving_input: _ours(rules.forward, name) for name, rules in RULES.items()},
    **{rules.copying: _ours(rules.forward, name) for name, rules in RULES.items()},
    **{
        rules.trained: _ours(rules.trained_forward)
        for rules in RULES.values()
        if rules.trained is not None and rules.trained_forward is not None
    },
    gate.Gate: _kept(lambda n: gate.forward(*n.saved_tensors, *n.numbers)),
    gate.Packed: _kept(lambda n: gate.forward(*gate.parts(*n.saved_tensors, *n.place), *n.numbers)),
    gate.Trained: _kept(lambda n: gate.with_trained(n.function, *n.saved_tensors)),
    norm.RmsNorm: _kept(lambda node: norm.forward(*norm.given(node))),
}
"""Our own functions keep their input, and the parameters if these are trained; gates keep both
inputs.
"""
