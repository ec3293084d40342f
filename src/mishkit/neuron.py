"""The APTx neuron, which replaces a linear layer and its activation; each weight is nonlinear.

    layer = mk.APTxLayer(784, 128)          # like torch.nn.Linear(784, 128)
    y = layer(x)                            # (..., 784) -> (..., 128)

Source: Kumar 2025, APTx Neuron (arXiv:2507.14270). Parameter names, shapes and random
initialization match the published package (aptx_neuron 0.0.10), so its checkpoints load.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from ._mode import is_exporting, is_transformed, wants_standard
from ._modules import Unscriptable
from .activation import DTYPES
from .backends import cpu, triton
from .ops import neuron as ops
from .ops.functions import fast_apply

INIT = ("published", "scaled")

_apply_layer = fast_apply(ops.Layer)
_kernels: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": DTYPES if cpu.isas() else (),
    "cuda": triton.DTYPES if triton.available() else (),
}
"""The dtypes that our kernels support on each device type. Compiled code calls the kernels for
these dtypes and lets the compiler fuse the formula otherwise.
"""


def aptx_layer(
    input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor | None = None
) -> Tensor:
    """y_o = Σ_i (α_oi + tanh(β_oi·x_i))·γ_oi·x_i + δ_o.

    Shapes: input (..., in), α, β, γ (out, in), δ (out,) or None; output (..., out). All tensors
    must have the same dtype, which is float32, float64, bfloat16 or float16; any strides are
    accepted. 16-bit types are computed in float32. Autocast casts the arguments as it does for
    `torch.nn.functional.linear`.

    On a CPU each tanh is accurate to 2e-7 (float64: 5e-16; 16-bit types: 6e-7), no finite βx
    overflows, and NaN gives NaN. Results do not depend on the number of threads or on the rest of
    the batch. No tensor of batch × out × in elements is ever held in the forward or backward pass;
    the exceptions are derivatives beyond the first, forward mode and torch.func.

    On a GPU, Triton kernels are built to do the same; float64 is left to plain torch. The kernels
    have been interpreted and compiled, but not yet run on a GPU.

    Raises ValueError if the shapes don't match and RuntimeError if the dtypes don't.

    Source: Kumar 2025, APTx Neuron (arXiv:2507.14270).
    """
    if not isinstance(input, Tensor) and has_torch_function_unary(input):  # a proxy of torch.fx
        return handle_torch_function(aptx_layer, (input,), input, alpha, beta, gamma, delta)
    _check(input, alpha, beta, gamma, delta)
    if delta is None:
        delta = gamma.new_empty(0)
    kind = input.device.type
    # Dynamo of torch 2.10 can't trace the question whether there is autocast for a device.
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    if has_autocast and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        input, alpha, beta, gamma, delta = (
            t if t.dtype == torch.float64 else t.to(dtype)
            for t in (input, alpha, beta, gamma, delta)
        )
    dtype = input.dtype
    same_dtype = dtype == alpha.dtype == beta.dtype == gamma.dtype == delta.dtype
    if not same_dtype or dtype not in DTYPES:
        _refuse_dtypes(input, alpha, beta, gamma, delta)
    transformed = is_transformed()
    if torch.compiler.is_compiling():
        has_kernels = dtype in _kernels.get(kind, ())
        if is_exporting() or transformed or not has_kernels:
            return ops.expression(input, alpha, beta, gamma, delta)
        return ops.traced_layer(input, alpha, beta, gamma, delta)
    if transformed or wants_standard():
        return ops.forward(input, alpha, beta, gamma, delta)
    run = _apply_layer if torch.is_grad_enabled() else ops.call
    return run(input, alpha, beta, gamma, delta)


def _check(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor | None) -> None:
    for name, tensor in (("input", input), ("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not isinstance(tensor, Tensor):
            raise TypeError(_wrong(f"{name} must be a tensor, not {type(tensor).__name__}"))
    if not (delta is None or isinstance(delta, Tensor)):
        raise TypeError(_wrong(f"delta must be a tensor or None, not {type(delta).__name__}"))
    shape = gamma.shape
    if len(shape) != 2 or not alpha.shape == beta.shape == shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (alpha, beta, gamma))
        raise ValueError(_wrong(f"alpha, beta, gamma must all be (out, in), not {shapes}"))
    if input.dim() == 0 or input.shape[-1] != shape[1]:
        actual = tuple(input.shape)
        raise ValueError(
            _wrong(f"the input's last dimension must be {shape[1]}; its shape is {actual}")
        )
    if delta is not None and delta.shape != shape[:1]:
        raise ValueError(_wrong(f"delta must have shape ({shape[0]},), not {tuple(delta.shape)}"))


def _refuse_dtypes(*tensors: Tensor) -> None:
    dtypes = list(dict.fromkeys(str(t.dtype).removeprefix("torch.") for t in tensors))
    if len(dtypes) > 1:
        raise RuntimeError(
            _wrong(f"the input and the parameters differ in dtype: {', '.join(dtypes)}")
        )
    raise RuntimeError(
        _wrong(f"expected tensors of float32, float64, bfloat16 or float16, got {dtypes[0]}")
    )


def _wrong(problem: str) -> str:
    return f"mishkit.aptx_layer: {problem}"


BENT = 0.522056
"""E[(tanh(βx)·x)²] for β and x from N(0, 1)."""


class _Neurons(Unscriptable):
    """Common base of a single neuron and a layer: parameters of shape (..., in)."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    delta: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        is_alpha_trainable: bool,
        use_delta: bool,
        init: str,
        **options: Any,
    ) -> None:
        super().__init__()
        if init not in INIT:
            raise ValueError(
                f'{type(self).__name__}: init must be "published" or "scaled", not {init!r}'
            )
        self.is_alpha_trainable, self.use_delta, self.init = is_alpha_trainable, use_delta, init
        alpha, beta, gamma = (torch.empty(shape, **options) for _ in range(3))
        if is_alpha_trainable:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)
        self.beta, self.gamma = nn.Parameter(beta), nn.Parameter(gamma)
        delta = nn.Parameter(torch.empty(shape[:-1] or 1, **options)) if use_delta else None
        self.register_parameter("delta", delta)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Redraw the parameters in the published order: α (unless it is fixed), β, γ."""
        if self.is_alpha_trainable:
            self.alpha.normal_()
        else:
            self.alpha.fill_(1)
        self.beta.normal_()
        self.gamma.normal_()
        if self.init == "scaled":
            self.gamma.div_(math.sqrt((1 + BENT) * max(1, self.gamma.shape[-1])))
        if self.delta is not None:
            self.delta.zero_()

    def extra_repr(self) -> str:
        """The constructor arguments, in the style of torch.nn.Linear."""
        names = ("input_dim", "output_dim", "is_alpha_trainable", "use_delta")
        arguments = [f"{name}={getattr(self, name)}" for name in names if hasattr(self, name)]
        if self.init != "published":
            arguments.append(f"init={self.init!r}")
        return ", ".join(arguments)


class APTxLayer(_Neurons):
    """A layer of APTx neurons: y_o = Σ_i (α_oi + tanh(β_oi·x_i))·γ_oi·x_i + δ_o.

    Shapes: input (..., input_dim), output (..., output_dim); α, β, γ (output_dim, input_dim), δ
    (output_dim,). See `mishkit.aptx_layer` for dtypes and errors.

    Source: Kumar 2025, APTx Neuron (arXiv:2507.14270).

    Parameters
    ----------
    is_alpha_trainable : bool, default True
        Whether α is a parameter; otherwise it is a buffer of ones.
    use_delta : bool, default True
        Whether there is a δ, which starts at 0.
    init : "published" or "scaled", default "published"
        Published: α, β and γ are drawn from N(0, 1), in this order. Inputs from N(0, 1) then give
        outputs with standard deviation √(1.522·input_dim), which is 35 for 784 inputs. Scaled: the
        same, but γ is divided by that number. Since α, β, γ and x are independent and γ has mean 0,
        the terms of the sum are uncorrelated. Each term has variance Var(γ)·E[(α + tanh(βx))²·x²].
        The expectation is E[α²] + E[(tanh(βx)·x)²] = 1 + 0.522 whether α is trained or fixed: the
        cross term vanishes because β is symmetric. So the outputs have variance 1, a third of which
        comes from the nonlinear part. The variance of the gradient with respect to the input is
        multiplied by 1.05·output_dim/input_dim, as by a linear layer with weights from N(0,
        1/input_dim).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        is_alpha_trainable: bool = True,
        use_delta: bool = True,
        *,
        init: str = "published",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (output_dim, input_dim)
        super().__init__(shape, is_alpha_trainable, use_delta, init, device=device, dtype=dtype)
        self.input_dim, self.output_dim = input_dim, output_dim

    def forward(self, input: Tensor) -> Tensor:
        return aptx_layer(input, self.alpha, self.beta, self.gamma, self.delta)


class APTxNeuron(_Neurons):
    """One APTx neuron: y = Σ_i (α_i + tanh(β_i·x_i))·γ_i·x_i + δ.

    Shapes: input (..., input_dim), output (..., 1); α, β, γ (input_dim,), δ (1,). Takes the same
    arguments as `APTxLayer`, without ``output_dim``.

    Source: Kumar 2025, APTx Neuron (arXiv:2507.14270).
    """

    def __init__(
        self,
        input_dim: int,
        is_alpha_trainable: bool = True,
        use_delta: bool = True,
        *,
        init: str = "published",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (input_dim,)
        super().__init__(shape, is_alpha_trainable, use_delta, init, device=device, dtype=dtype)
        self.input_dim = input_dim

    def forward(self, input: Tensor) -> Tensor:
        alpha, beta, gamma = (t.unsqueeze(0) for t in (self.alpha, self.beta, self.gamma))
        return aptx_layer(input, alpha, beta, gamma, self.delta)
