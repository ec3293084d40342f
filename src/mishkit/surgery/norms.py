"""RMS norms that a model computes step by step, in one pass.

The language models of transformers square, average and multiply in five operators, each of which
reads and writes the whole tensor, and keeps some of it. `lean` gives such modules a `forward` that
calls `mishkit.ops.norm` on CPUs. A module is recognised by evaluating it, whatever its class: with
one parameter of one dimension, and a forward that is an RMS norm of the last dimension.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._mode import compiler, is_tracing, is_transformed
from .._torch_private import FakeTensor
from ..activation import DTYPES
from ..backends import cpu
from ..ops import norm
from .evaluated import PLAIN, remembered, takes_one
from .slots import Slot

TOLERANCE = 4e-6
"""How far outputs and gradients may differ, relative to the largest: they are float32."""
SIZES = (1.0, 1e-3, 1e-6)
"""Sizes of inputs to evaluate at; epsilon shows in the small ones."""


class Norm(NamedTuple):
    """What an RMS norm computes: x/√(mean(x²) + epsilon)·(weight + offset)."""

    parameter: str
    """The name of the weight."""
    epsilon: float | None
    """None for the machine precision of float32 or float64, as in `torch.nn.RMSNorm`. For 16-bit
    types, torch's releases disagree about which precision that is.
    """
    offset: float


_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Norm | None]] = weakref.WeakKeyDictionary()


def norms_in(model: nn.Module) -> Iterator[tuple[Slot, Callable[[Tensor], Any]]]:
    """The `forward` of every RMS norm on a CPU, except that of the model itself, and what to put
    there. Yields nothing if there are no kernels for this CPU.
    """
    if not cpu.isas():
        return
    for name, module in model.named_modules():
        computed = rms_norm_of(module) if name else None
        if computed is not None and _is_here(getattr(module, computed.parameter)):
            slot = Slot(f"{name}.forward", module, "forward", module.forward, None)
            yield slot, functools.partial(_forward, module, computed)


def rms_norm_of(module: nn.Module) -> Norm | None:
    """The norm that a module computes; None if it computes none or if it can't be told."""
    return remembered(_known, module, _evaluate) if _is_candidate(module) else None


def _is_candidate(module: nn.Module) -> bool:
    if type(module).__module__.partition(".")[0] == "mishkit" or "forward" in vars(module):
        return False
    if module._buffers or module._modules or len(module._parameters) != 1:
        return False
    (weight,) = module._parameters.values()
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not weight.is_floating_point():
        return False
    held = (vars(module)[name] for name in vars(module).keys() - vars(nn.Module()).keys())
    return all(isinstance(value, (*PLAIN, tuple)) for value in held) and takes_one(module)


def _evaluate(module: nn.Module) -> Norm | None:
    """Run a copy that has a random weight, and compare the results with those of RMS norms."""
    ((parameter, original),) = module._parameters.items()
    assert original is not None
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.rand(original.shape, generator=generator) + 0.5)
    clone = copy.copy(module)
    vars(clone)["_parameters"] = {parameter: weight}
    rows = torch.randn(2, 3, len(weight), generator=generator)
    grad = torch.randn(rows.shape, generator=generator)
    results = []
    for size in SIZES:
        x = (rows * size).requires_grad_()
        y = clone.forward(x)
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
            return None
        results.append((x, (y, *torch.autograd.grad(y, (x, weight), grad))))
    for epsilon in _epsilons(module):
        number = torch.finfo(torch.float32).eps if epsilon is None else epsilon
        for offset in (0.0, 1.0):
            if all(_agree(x, weight, grad, number, offset, computed) for x, computed in results):
                return Norm(parameter, epsilon, offset)
    return None


def _epsilons(module: nn.Module) -> Iterator[float | None]:
    """Numbers among the module's attributes that may be its epsilon."""
    for value in vars(module).values():
        if type(value) is float and 0 < value < 1:
            yield value
    yield None


def _agree(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    epsilon: float,
    offset: float,
    computed: tuple[Tensor, ...],
) -> bool:
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    y = norm.differentiable(wide[0], wide[1], epsilon, offset)
    expected = y, *torch.autograd.grad(y, wide, grad.double())
    return all(
        bool((g - w).abs().max() <= TOLERANCE * w.abs().max())
        for g, w in zip(computed, expected, strict=True)
    )


_WIDE = torch.float32, torch.float64
_TENSORS = frozenset((Tensor, nn.Parameter, FakeTensor))


def _forward(module: nn.Module, computed: Norm, input: Tensor) -> Any:
    """The forward of the module: in one pass where there is a kernel, otherwise its own."""
    weight = getattr(module, computed.parameter)
    epsilon = computed.epsilon
    if epsilon is None and type(input) in _TENSORS and input.dtype in _WIDE:
        epsilon = torch.finfo(input.dtype).eps
    if epsilon is None or not _has_kernel(input, weight):
        return type(module).forward(module, input)
    if not (input.is_contiguous() and weight.is_contiguous()):
        input, weight = input.contiguous(), weight.contiguous()
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return norm.apply(input, weight, epsilon, computed.offset)
    return norm.forward(input, weight, epsilon, computed.offset)


def _is_here(tensor: Tensor) -> bool:
    """Whether a tensor is on a CPU or on the meta device, as that of a model for CPUs may be."""
    return tensor.is_cpu or tensor.is_meta


def _has_kernel(x: Any, weight: Any) -> bool:
    # Every line costs a microsecond or more, since a model's other work empties the caches.
    if type(x) not in _TENSORS or type(weight) not in _TENSORS:
        return False
    dtype = x.dtype
    return (
        dtype is weight.dtype
        and dtype in DTYPES
        and ((x.is_cpu and weight.is_cpu) or (x.is_meta and weight.is_meta))
        and x.layout is torch.strided
        and x.dim() > 1
        and x.shape[-1] == weight.shape[0]
        and not (compiler.is_compiling() or is_tracing() or is_transformed())
    )
