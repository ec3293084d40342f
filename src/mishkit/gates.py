"""Gates: an activation of one tensor times another, f(g)·u, in one pass forward and backward.

    y = mk.gate(g, u)                       # SwiGLU: F.silu(g) * u
    y = mk.gate(g, u, "gelu")               # GEGLU; any function of the library
    y = mk.glu(x, "gelu", gate="second")    # both in one tensor: F.gelu(x2) * x1

Source: Shazeer 2020, GLU Variants Improve Transformer (arXiv:2002.05202).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.overrides import handle_torch_function, has_torch_function

from ._calls import MOST_CHECKED, REFUSALS, Call, is_distributed, unsuited
from ._mode import (
    are_transforms_active,
    is_dynamo_compiling,
    is_tracing,
    is_transformed,
    wants_standard,
)
from ._modules import ActivationModule, Unscriptable
from .activation import DTYPES, Activation
from .backends import torch as plain
from .export import exported, portable
from .functions import ACTIVATIONS
from .modules import MODULES
from .ops import gate as ops
from .ops.blend import function as numbers_of
from .registry import get

Part = Literal["first", "second", "even", "odd"]
PARTS = get_args(Part)


def gate(
    g: Tensor,
    u: Tensor,
    function: str = "silu",
    *,
    limit: float | None = None,
    offset: float = 0.0,
    out: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """f(g)·u, elementwise, in one pass; backward gives both gradients in one pass.

    Between the passes g and u are kept, and nothing else. Written with torch, as
    ``F.silu(g) * u``, it keeps four tensors of this size where `mishkit.gate` and the linear layer
    behind it keep three.

    With a `limit` it is f(min(g, limit))·(clamp(u, −limit, limit) + offset), the limited SwiGLU of
    gpt-oss: ``mk.gate(g, u, "swish", beta=1.702, limit=7.0, offset=1.0)``. No gradient passes to
    what lies beyond the limit.

    The function is computed in float32 for 16-bit types (in float64 for float64), multiplied there,
    and the product is rounded once. torch rounds f(g) before it multiplies. Results do not depend
    on layout or threads.

    Source: Shazeer 2020, GLU Variants Improve Transformer (arXiv:2002.05202).

    Parameters
    ----------
    g, u : Tensor
        of one shape and float32, float64, bfloat16 or float16, with any strides: halves of one
        tensor, as ``chunk(2, -1)`` or ``[..., ::2]`` give them, are read where they lie. If they
        differ in dtype, both are converted to the one that ``g * u`` has.
    function : str, default "silu"
        the name of any function in `mishkit.names()`
    limit : float, optional
        positive
    offset : float, default 0
        what is added to u
    out : Tensor, optional
        where to write the result, of the result's shape and dtype; may be g or u; not with autograd
    **parameters
        of the function: ``beta=1.702`` for ``"swish"``. Tensors, of one element or one a channel
        (dimension 1), get gradients if the function trains its parameters.

    Returns
    -------
    Tensor
        of the shape and dtype of g; with its strides if g is dense

    Raises
    ------
    ValueError
        for an unknown function, shapes that differ, or parameters that the formula can't take
    TypeError
        if the function has no such parameter, or trains none and a tensor is given
    RuntimeError
        for other dtypes, different devices, or an `out` that overlaps an input in part

    Examples
    --------
    >>> g, u = torch.randn(2, 8, requires_grad=True).chunk(2)
    >>> y = mk.gate(g, u)
    >>> torch.allclose(y, torch.nn.functional.silu(g) * u)
    True
    """
    if not (isinstance(g, Tensor) and isinstance(u, Tensor)):
        if has_torch_function((g, u)):  # proxies of torch.fx
            given = _given(function, limit, offset, out, parameters)
            return handle_torch_function(gate, (g, u), g, u, **given)  # type: ignore[no-any-return]
        kind = type(u if isinstance(g, Tensor) else g).__name__
        raise TypeError(f"mishkit.gate: g and u must be tensors, not {kind}")
    if (_has_sizes() and g.shape != u.shape) or g.dtype != u.dtype or g.device != u.device:
        g, u = _alike(g, u)
    trained = parameters and any(isinstance(value, Tensor) for value in parameters.values())
    numbers = checked_numbers("mishkit.gate", function, limit, offset, parameters, bool(trained))
    if out is not None:
        _check_out(g, u, parameters, out)
    compiling = torch.compiler.is_compiling()
    if not compiling and not trained and out is None and not wants_standard():
        return gate_of(g, u, numbers)
    y = _special(g, u, numbers, parameters if trained else {}, out)
    return y if out is None or y is out else out.copy_(y)


def gate_of(g: Tensor, u: Tensor, numbers: ops.Numbers) -> Tensor:
    """`gate` in eager mode, of tensors alike in shape, dtype and device, for checked numbers."""
    try:
        if are_transforms_active() or forward_ad._current_level >= 0:
            return ops.differentiable(g, u, *numbers)
        if torch.is_grad_enabled() and (g.requires_grad or u.requires_grad):
            return ops.apply(g, u, *numbers)
        return ops.forward(g, u, *numbers)  # type: ignore[no-any-return]
    except REFUSALS as error:
        return _refused(error, g, u, numbers)


def glu(
    input: Tensor,
    function: str = "silu",
    dim: int = -1,
    *,
    gate: Part = "first",
    limit: float | None = None,
    offset: float = 0.0,
    **parameters: Any,
) -> Tensor:
    """f(g)·u, where g and u are parts of one tensor: `mishkit.gate` without a copy of either.

    Which part is the gate differs between models. SwiGLU in language models packs the gate
    **first**, which is the default here. torch's own `torch.nn.functional.glu` and GEGLU in
    diffusers have it **second**. gpt-oss takes the **even** elements as the gate and the odd ones
    as u.

    Backward writes the gradients of both parts into one tensor. Only the input is kept.

    Parameters
    ----------
    input : Tensor
        as for `mishkit.gate`; with an even size in dimension `dim`
    function : str, default "silu"
        the name of any function in `mishkit.names()`
    dim : int, default −1
        the dimension that has both parts
    gate : "first", "second", "even" or "odd", default "first"
        which half of that dimension, or which of its elements, are the gate
    limit, offset, **parameters
        as for `mishkit.gate`

    Returns
    -------
    Tensor
        of the input's shape, but for half the size in dimension `dim`

    Raises
    ------
    ValueError
        if the size is odd or `gate` is none of these words; and as `mishkit.gate`

    Examples
    --------
    >>> x = torch.randn(3, 8)
    >>> g, u = x.chunk(2, -1)
    >>> torch.equal(mk.glu(x), mk.gate(g, u))
    True
    """
    if not isinstance(input, Tensor):
        if has_torch_function((input,)):
            given = _given(function, limit, offset, None, parameters)
            return handle_torch_function(  # type: ignore[no-any-return]
                glu, (input,), input, dim=dim, gate=gate, **given
            )
        raise TypeError(f"mishkit.glu: the input must be a tensor, not {type(input).__name__}")
    if gate not in PARTS:
        raise ValueError(f"mishkit.glu: gate must be one of {', '.join(PARTS)}, not {gate!r}")
    if not input.dim() or (_has_sizes() and input.shape[dim] % 2):
        raise ValueError(
            f"mishkit.glu: dimension {dim} must have an even size; the shape is "
            f"{tuple(input.shape)}"
        )
    plainly = not (torch.compiler.is_compiling() or is_transformed() or wants_standard())
    needs_grad = input.requires_grad and torch.is_grad_enabled()
    if plainly and needs_grad and not any(isinstance(v, Tensor) for v in parameters.values()):
        numbers = checked_numbers("mishkit.glu", function, limit, offset, parameters, False)
        try:
            return ops.apply_packed(input, dim, gate, *numbers)
        except REFUSALS as error:
            return _refused(error, *ops.parts(input, dim, gate), numbers)
    g, u = ops.parts(input, dim, gate)
    return _gate(g, u, function, limit=limit, offset=offset, **parameters)


_gate = gate  # `glu` has an argument of this name


# ---- how a call is read --------------------------------------------------------------------------

_checked: dict[Any, ops.Numbers] = {}
"""The numbers of calls that have been checked, by the arguments."""


def _given(
    function: str,
    limit: float | None,
    offset: float,
    out: Tensor | None,
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments that are not the defaults, for another that handles the call."""
    given = {"function": function, "limit": limit, "offset": offset, "out": out}
    defaults = {"function": "silu", "limit": None, "offset": 0.0, "out": None}
    return {**{name: v for name, v in given.items() if v is not defaults[name]}, **parameters}


def checked_numbers(
    caller: str,
    function: str,
    limit: float | None,
    offset: float,
    parameters: Mapping[str, Any],
    trained: bool,
) -> ops.Numbers:
    """What the operators take behind the tensors; with tensors as parameters, their defaults."""
    key = None
    if not trained and not torch.compiler.is_compiling():
        key = (function, limit, offset, *parameters.items())
        try:
            if key in _checked:
                return _checked[key]
        except TypeError:  # something that can't be a number
            key = None
    a = _activation(caller, function)
    names = [parameter.name for parameter in a.parameters]
    for name in parameters:
        if name not in names:
            has = f"only {', '.join(names)}" if names else "none"
            raise TypeError(f"{caller}: {function} has no parameter {name!r}, {has}")
    if trained:
        if not a.trainable:
            raise TypeError(f"{caller}: the parameters of {function} must be numbers")
        values = a.defaults
    else:
        values = tuple(float(parameters.get(p.name, p.default)) for p in a.parameters)
        a.check(*values)
    most, more = math.inf if limit is None else float(limit), float(offset)
    if not most > 0:
        raise ValueError(f"{caller}: limit must be positive, not {limit}")
    if not math.isfinite(more):
        raise ValueError(f"{caller}: offset must be finite, not {offset}")
    numbers = (*numbers_of(a.name, *values), most, more)
    if key is not None and len(_checked) < MOST_CHECKED:
        _checked[key] = numbers
    return numbers


def _activation(caller: str, function: str) -> Activation:
    try:
        return ACTIVATIONS[function]
    except (KeyError, TypeError):
        near = difflib.get_close_matches(str(function), ACTIVATIONS, n=1)
        meant = f'; did you mean "{near[0]}"?' if near else f": {', '.join(ACTIVATIONS)}"
        raise ValueError(f"{caller}: there is no function {function!r}{meant}") from None


def _has_sizes() -> bool:
    """Whether sizes are numbers: under torch.jit.trace they are tensors."""
    return is_dynamo_compiling() or not is_tracing()


def _alike(g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype; refuses what differs otherwise."""
    if _has_sizes() and g.shape != u.shape:
        raise ValueError(
            f"mishkit.gate: g and u must have one shape, not {tuple(g.shape)} and {tuple(u.shape)}"
        )
    if g.device != u.device:
        raise RuntimeError(f"mishkit.gate: g is on {g.device} and u on {u.device}")
    if g.dtype not in DTYPES or u.dtype not in DTYPES:
        raise RuntimeError(_expected(g, u))
    dtype = torch.promote_types(g.dtype, u.dtype)
    return g.to(dtype), u.to(dtype)


def _expected(g: Tensor, u: Tensor) -> str:
    kinds = " and ".join(dict.fromkeys(unsuited(t) or str(t.dtype)[6:] for t in (g, u)))
    return f"mishkit.gate: expected tensors of float32, float64, bfloat16 or float16, got {kinds}"


def _check_out(g: Tensor, u: Tensor, parameters: Mapping[str, Any], out: Any) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"mishkit.gate: out must be a tensor, not {type(out).__name__}")
    tensors = [t for t in (g, u, out, *parameters.values()) if isinstance(t, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError("mishkit.gate: out= doesn't support autograd; use torch.no_grad()")
    plain.check_out("gate", g, out)
    if out.is_neg():
        raise RuntimeError(
            "mishkit.gate: can't write over a lazily negated tensor; resolve_neg() it"
        )


def _special(
    g: Tensor, u: Tensor, numbers: ops.Numbers, trained: Mapping[str, Any], out: Tensor | None
) -> Tensor:
    """Calls with `out`, with tensors among the parameters, and in compiled or exported code."""
    if trained:
        return _with_trained(g, u, numbers, trained)
    if wants_standard() or (
        torch.compiler.is_compiling() and g.dtype in DTYPES and (unsuited(g) or is_distributed(g))
    ):
        return _standard(g, u, numbers)
    a, parameters, limit, offset = ops.split(numbers)
    if torch.compiler.is_compiling():
        if g.dtype not in DTYPES:
            raise RuntimeError(_expected(g, u))
        return plain.gate(a, g, u, limit, offset, *parameters)
    if is_transformed():
        return ops.differentiable(g, u, *numbers)
    assert out is not None
    try:
        ops.forward_out(g, u, out, *numbers)
    except REFUSALS as error:
        return _refused(error, g, u, numbers)
    if not out.is_inference():
        increment_version(out)
    return out


def _with_trained(g: Tensor, u: Tensor, numbers: ops.Numbers, trained: Mapping[str, Any]) -> Tensor:
    a, _, limit, offset = ops.split(numbers)
    parameters = _CALLS[a.name].stack(
        g, tuple(trained.get(p.name, p.default) for p in a.parameters)
    )
    if wants_standard() or unsuited(g) or unsuited(u) or is_distributed(g):
        rows = plain.by_channel(parameters.to(g.dtype), g)
        write = exported if wants_standard() else portable
        return plain.gated(lambda x: write(a, x, rows), g, u, limit, offset)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (g, u, parameters))
    special = torch.compiler.is_compiling() or is_transformed() or limit != math.inf or offset
    if special or not needs_grad:
        return ops.trained_differentiable(a.name, g, u, parameters, limit, offset)
    return ops.apply_trained(g, u, parameters, a.name)


_CALLS = {name: Call(a) for name, a in ACTIVATIONS.items() if a.trainable}


def _standard(g: Tensor, u: Tensor, numbers: ops.Numbers) -> Tensor:
    """In torch's own operators and the dtype of the tensors, for other programs."""
    a, parameters, limit, offset = ops.split(numbers)
    write = exported if wants_standard() else portable
    if limit != math.inf:
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    y: Tensor = write(a, g, parameters) * (u + offset if offset else u)
    return y


def _refused(error: Exception, g: Tensor, u: Tensor, numbers: ops.Numbers) -> Tensor:
    """Handle tensors that our operators rejected: torch's own operators may accept them."""
    if not (unsuited(g) or unsuited(u) or is_distributed(g) or is_distributed(u)):
        raise error
    if g.dtype not in DTYPES:
        raise RuntimeError(_expected(g, u)) from error
    try:
        return _standard(g, u, numbers)
    except REFUSALS as error_of_torch:
        raise RuntimeError(_expected(g, u)) from error_of_torch


# ---- modules -------------------------------------------------------------------------------------


_OURS = frozenset(MODULES.values())


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Gated(Unscriptable):
    """What the modules share: the function is a module of ours, which has its parameters."""

    way_out = "torch.jit.trace the model"

    def __init__(
        self, function: str, limit: float | None, offset: float, parameters: dict[str, Any]
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        for name in ("inplace", "save"):
            if name in parameters:
                raise TypeError(f"{kind}: a gate keeps g and u; there is no {name}=")
        _activation(f"mishkit.{kind}", function)
        self.activation = get(function, **parameters)
        self.limit, self.offset = limit, offset
        checked_numbers(f"mishkit.{kind}", function, limit, offset, {}, False)

    @property
    def function(self) -> str:
        """The name of the function."""
        name: str = self.activation.activation.name  # type: ignore[union-attr, assignment]
        return name

    def options(self) -> dict[str, Any] | None:
        """The arguments of `gate`; None if what has taken the activation's place, or has been added
        to it, has to be called as a module.
        """
        act = self.activation
        if not isinstance(act, ActivationModule) or type(act) not in _OURS:
            return None
        # Dynamo of torch 2.10 can't trace `vars`.
        if any(getattr(act, hooks) for hooks in _HOOKS):
            return None
        if not is_dynamo_compiling() and "forward" in vars(act):
            return None
        parameters = {name: getattr(act, name) for name in act.parameter_names}
        name = act.activation.name
        if name == "gelu" and getattr(act, "approximate", "none") == "tanh":
            name = "gelu_tanh"
        return {"function": name, "limit": self.limit, "offset": self.offset, **parameters}

    def apart(self, g: Tensor, u: Tensor) -> Tensor:
        """The gate with the activation called as a module."""
        limit = math.inf if self.limit is None else self.limit
        return plain.gated(lambda x: self.activation(x.to(g.dtype)), g, u, limit, self.offset)

    def extra_repr(self) -> str:
        """The options, where they are given."""
        shown = [f"limit={self.limit}"] if self.limit is not None else []
        return ", ".join([*shown, *([f"offset={self.offset}"] if self.offset else [])])


class Gate(_Gated):
    """f(g)·u as a module: ``mk.Gate("silu")(g, u)``; see `mishkit.gate`.

    The submodule `activation` is the activation as a module of mishkit, so `mishkit.swap` can
    replace it. Its parameters are trained with ``trainable=True``, for the functions that train
    them (``"swish"``, ``"aptx"``).

    Shapes: g, u and the output have one shape.

    Parameters
    ----------
    function : str, default "silu"
        the name of any function in `mishkit.names()`
    limit, offset
        as for `mishkit.gate`
    **parameters
        of the function, and `trainable` and `num_parameters`, as its own module takes them

    Raises
    ------
    ValueError
        for an unknown function or parameters that it can't take
    TypeError
        if the function has no such parameter
    """

    def __init__(
        self,
        function: str = "silu",
        *,
        limit: float | None = None,
        offset: float = 0.0,
        **parameters: Any,
    ) -> None:
        super().__init__(function, limit, offset, parameters)

    def forward(self, g: Tensor, u: Tensor) -> Tensor:
        options = self.options()
        return self.apart(g, u) if options is None else gate(g, u, **options)


class GLU(_Gated):
    """f(g)·u, where g and u are parts of one input: ``mk.GLU("silu")(x)``; see `mishkit.glu`.

    `torch.nn.GLU` takes the second half as the gate, and so does GEGLU in diffusers:
    ``mk.GLU("gelu", gate="second")``. SwiGLU in language models packs the gate first, which is the
    default here.

    Shapes: the input has an even size in dimension `dim`, the output half of it.

    Parameters
    ----------
    function : str, default "silu"
        the name of any function in `mishkit.names()`
    dim : int, default −1
        the dimension that has both parts
    gate : "first", "second", "even" or "odd", default "first"
        which half of that dimension, or which of its elements, are the gate
    limit, offset, **parameters
        as for `mishkit.Gate`

    Raises
    ------
    ValueError
        for an unknown function, another word for `gate`, or parameters that the function can't take
    TypeError
        if the function has no such parameter
    """

    def __init__(
        self,
        function: str = "silu",
        dim: int = -1,
        *,
        gate: Part = "first",
        limit: float | None = None,
        offset: float = 0.0,
        **parameters: Any,
    ) -> None:
        super().__init__(function, limit, offset, parameters)
        if gate not in PARTS:
            raise ValueError(f"GLU: gate must be one of {', '.join(PARTS)}, not {gate!r}")
        self.dim, self.gate = dim, gate

    def forward(self, input: Tensor) -> Tensor:
        options = self.options()
        if options is None:
            return self.apart(*ops.parts(input, self.dim, self.gate))
        return glu(input, dim=self.dim, gate=self.gate, **options)

    def extra_repr(self) -> str:
        """The arguments in the style of torch.nn."""
        return ", ".join(
            filter(None, (f"dim={self.dim}, gate={self.gate!r}", super().extra_repr()))
        )
