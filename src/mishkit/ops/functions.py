"""The operators and their autograd, made in one loop for every function of the table.

Operators of a function `name` (shown without its parameters, which follow as floats):

    mishkit::name(input) -> output
    mishkit::name_out(input, out!)
    mishkit::name_backward(grad, input) -> grad_input
    mishkit::name_double_backward(grad_grad, grad, input) -> (grad_grad_output, grad_input)
    mishkit::name_packed(input) -> (output, side)
    mishkit::name_packed_out(input, out!) -> side
    mishkit::name_backward_packed(grad, output, side) -> grad_input

If the parameters can be trained, there are also operators that take them as one tensor of float32
(float64 for float64 input). It has one row per parameter, and either one column or one per channel
(dimension 1 of the input):

    mishkit::name_trained(input, parameters) -> output
    mishkit::name_trained_backward(grad, input, parameters) -> (grad_input, grad_parameters)

torch.compile gets an operator that keeps the output and the side. It consists of torch operators,
which the compiler can see, and an autograd rule:

    mishkit::name_traced(input) -> output

Results have the strides of `torch.empty_like(input)`. `side` is an array of ceil(n/8) bytes in the
memory order of the output, with element 0 in the lowest bit; it is empty for a monotone function.
These operators are not differentiable by themselves, except for `name_traced`; the classes made by
`_rules` add autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._mode import are_transforms_active
from .._torch_private import first_packed
from ..activation import Activation, Formulas
from ..backends import cpu, triton
from ..backends import torch as plain
from ..functions import ACTIVATIONS

SCHEMAS = {
    "": "(Tensor input{}) -> Tensor",
    "_out": "(Tensor input, Tensor(a!) out{}) -> ()",
    "_backward": "(Tensor grad, Tensor input{}) -> Tensor",
    "_double_backward": "(Tensor grad_grad, Tensor grad, Tensor input{}) -> (Tensor, Tensor)",
    "_packed": "(Tensor input{}) -> (Tensor, Tensor)",
    "_packed_out": "(Tensor input, Tensor(a!) out{}) -> Tensor",
    "_backward_packed": "(Tensor grad, Tensor output, Tensor side{}) -> Tensor",
}
"""The operators of every function: suffix of the name, and schema."""
TRAINED_SCHEMAS = {
    "_trained": "(Tensor input, Tensor parameters) -> Tensor",
    "_trained_backward": "(Tensor grad, Tensor input, Tensor parameters) -> (Tensor, Tensor)",
}
"""The additional operators of functions whose parameters can be trained."""


@dataclass(frozen=True)
class Rules:
    """The operators that a call needs, and the autograd functions around them."""

    forward: Callable[..., Tensor]
    forward_out: Callable[..., None]
    forward_packed_out: Callable[..., Tensor]
    saving_input: type[Function]
    """apply(input, *parameters); keeps the input; differentiable to any order, in any mode."""
    saving_output: type[Function]
    """apply(input, *parameters); keeps the output and the side, and is differentiable once."""
    in_place: type[Function]
    """Like `saving_output`, but overwrites the input."""
    copying: type[Function]
    """apply(input, copy of it, *parameters); overwrites the input, keeps the copy, and is
    differentiable to any order.
    """
    traced: Callable[..., Tensor]
    """Like `saving_output.apply`, in plain torch operations for torch.compile."""
    trained_forward: Callable[..., Tensor] | None
    trained: type[Function] | None
    """apply(input, parameters), differentiable with respect to both, to any order; None if the
    parameters are fixed.
    """


def fast_apply(function: type[Function]) -> Callable[..., Tensor]:
    """`function.apply` without its 30 µs of signature binding, which only functorch needs."""
    return super(Function, function).apply  # type: ignore[misc]


def differentiable_gradients(
    output: Callable[..., Tensor], grad: Tensor, inputs: tuple[Tensor, ...], needed: Any
) -> list[Tensor | None]:
    """The gradients of the inputs that need one, differentiable again."""
    with torch.enable_grad():
        # One input may have been made from another, and its own gradient is not wanted twice.
        apart = [x.view_as(x) for x in inputs]
        wanted = [x for x, needs in zip(apart, needed, strict=False) if needs]
        gradients = iter(torch.autograd.grad(output(*apart), wanted, grad, create_graph=True))
    return [next(gradients) if needs else None for _, needs in zip(inputs, needed, strict=False)]


def operator(name: str) -> Callable[..., Any]:
    """An operator without the Python wrapper of `OpOverload`, which costs 0.2 µs per call."""
    overload = getattr(torch.ops.mishkit, name).default
    return getattr(overload, "_op", overload)


def define_traced(library: torch.library.Library, schema: str, function: type[Function]) -> None:
    """Define an operator for compiled code that runs `function.apply`.

    Dynamo treats an operator as opaque and leaves its autograd to torch, which notices when a saved
    tensor is modified in place. From an autograd.Function, Dynamo would make a graph of its own, in
    which saved tensors change with later writes and nothing is checked.
    """
    library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    library.impl(schema.partition("(")[0], function.apply, "CompositeImplicitAutograd")


def _define(library: torch.library.Library, a: Activation) -> None:
    parameters = _arguments(a)
    for ending, schema in schemas(a).items():
        name = a.name + ending
        library.define(name + schema.format(parameters), tags=torch.Tag.pt2_compliant_tag)
        body = functools.partial(getattr(plain, _body(ending)), a)
        library.impl(name, body, "CompositeExplicitAutograd")
        if triton.available():
            library.impl(name, functools.partial(getattr(triton, _body(ending)), a), "CUDA")
        register_fake(library, name, functools.partial(_FAKES[ending], a))


def register_fake(library: torch.library.Library, name: str, fake: Callable[..., Any]) -> None:
    """Register what an operator returns for fake and meta tensors, possibly mixed with real ones.
    If the tensors are on different devices, it raises, as the kernels do.
    """

    def on_one_device(*arguments: Any) -> Any:
        if len({argument.device for argument in arguments if isinstance(argument, Tensor)}) > 1:
            raise RuntimeError(f"mishkit.{name}: the tensors are on different devices")
        return fake(*arguments)

    torch.library.register_fake(f"mishkit::{name}", on_one_device, lib=library)


def _arguments(a: Activation) -> str:
    return "".join(f", float {parameter.name}" for parameter in a.parameters)


def schemas(a: Activation) -> dict[str, str]:
    """The schemas of this function's operators, by suffix."""
    return {**SCHEMAS, **TRAINED_SCHEMAS} if a.trainable else SCHEMAS


def _body(ending: str) -> str:
    if "backward" in ending or ending in TRAINED_SCHEMAS:
        return ending.lstrip("_")
    return "forward" + ending


def _side_like(a: Activation, x: Tensor) -> Tensor:
    size = 0 if a.turn is None else (x.numel() + 7) // 8
    return x.new_empty(size, dtype=torch.uint8)


_FAKES: dict[str, Callable[..., Any]] = {
    "": lambda a, x, *_: torch.empty_like(x),
    "_out": lambda a, x, out, *_: plain.check_out(a.name, x, out),
    "_backward": lambda a, grad, x, *_: torch.empty_like(x),
    "_double_backward": lambda a, gg, g, x, *_: (torch.empty_like(x), torch.empty_like(x)),
    "_packed": lambda a, x, *_: (torch.empty_like(x), _side_like(a, x)),
    "_packed_out": lambda a, x, out, *_: _side_like(a, x),
    "_backward_packed": lambda a, grad, y, side, *_: torch.empty_like(y),
    "_trained": lambda a, x, parameters: torch.empty_like(x),
    "_trained_backward": lambda a, grad, x, parameters: (
        torch.empty_like(x),
        parameters.new_empty(parameters.shape),
    ),
}


def saving_input(
    a: Formulas,
    forward: Callable[..., Tensor],
    backward: Callable[..., Tensor],
    double_backward: Callable[..., tuple[Tensor, Tensor]],
    count: int,
) -> type[Function]:
    """Make the autograd.Function around the operators that keeps the input.

    `count` arguments without gradients follow the input. Plain torch computes any derivatives that
    the operators don't.
    """
    no_gradients = (None,) * count

    class Backward(Function):
        """(grad, input) -> grad·f'(input)."""

        @staticmethod
        def forward(grad: Tensor, x: Tensor, *parameters: float) -> Tensor:
            return backward(grad, x, *parameters)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            grad, x, *ctx.parameters = inputs
            ctx.save_for_backward(grad, x)
            ctx.save_for_forward(grad, x)

        @staticmethod
        def backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
            grad, x = ctx.saved_tensors
            if torch.is_grad_enabled() or are_transforms_active():
                # A third derivative is wanted: torch differentiates the plain formulas.
                results = plain.double_backward(a, grad_grad, grad, x, *ctx.parameters)
            else:
                results = double_backward(grad_grad, grad, x, *ctx.parameters)
            return *results, *no_gradients

        @staticmethod
        def jvp(
            ctx: Any, grad_tangent: Tensor | None, x_tangent: Tensor | None, *_: None
        ) -> Tensor:
            grad, x = ctx.saved_tensors
            tangent = torch.zeros_like(x)
            if grad_tangent is not None:
                tangent = tangent + plain.backward(a, grad_tangent, x, *ctx.parameters)
            if x_tangent is not None:
                by_x = plain.double_backward(a, x_tangent, grad, x, *ctx.parameters)[1]
                tangent = tangent + by_x
            return tangent

        @staticmethod
        def vmap(
            info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, *parameters: float
        ) -> tuple[Tensor, int]:
            grad, x = (
                t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
                for t, dim in zip((grad, x), in_dims, strict=False)
            )
            return Backward.apply(grad, x, *parameters), 0

    class SavingInput(Function):
        @staticmethod
        def forward(x: Tensor, *parameters: float) -> Tensor:
            return forward(x, *parameters)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            x, *ctx.parameters = inputs
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            differentiable = torch.is_grad_enabled() or are_transforms_active()
            gradient = None if differentiable else _without_input(ctx, a.name, grad)
            if gradient is None:
                (x,) = ctx.saved_tensors
                gradient_of = Backward.apply if differentiable else backward
                gradient = gradient_of(grad, x, *ctx.parameters)
            return gradient, *no_gradients

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
            (x,) = ctx.saved_tensors
            return Backward.apply(tangent, x, *ctx.parameters)

        @staticmethod
        def vmap(
            info: Any, in_dims: tuple[int | None, ...], x: Tensor, *parameters: float
        ) -> tuple[Tensor, int | None]:
            return SavingInput.apply(x, *parameters), in_dims[0]

    return SavingInput


def _without_input(ctx: Any, name: str, grad: Tensor) -> Tensor | None:
    """grad·f'(x), if hooks on saved tensors have dropped x and can compute this without x, as
    `mishkit.recompute` can behind a normalisation.
    """
    gradient_through = getattr(first_packed(ctx), "gradient_through", None)
    return None if gradient_through is None else gradient_through(name, ctx.parameters, grad)


def _copying(keeping_input: type[Function], forward_out: Callable[..., None]) -> type[Function]:
    """The autograd.Function that overwrites its input and keeps a copy, which is passed to it."""

    class Copying(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, copy: Tensor, *parameters: float) -> Tensor:
            forward_out(copy, x, *parameters)
            ctx.mark_dirty(x)
            ctx.save_for_backward(copy)
            ctx.parameters = parameters
            return x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            gradient, *no_gradients = keeping_input.backward(ctx, grad)
            return gradient, None, *no_gradients

    return Copying


def _rules(a: Activation) -> Rules:
    saving_output, in_place = _saving_output(a)
    keeping_input = saving_input(
        a,
        operator(a.name),
        operator(a.name + "_backward"),
        operator(a.name + "_double_backward"),
        len(a.parameters),
    )
    _define_traced(a)
    return Rules(
        forward=operator(a.name),
        forward_out=operator(a.name + "_out"),
        forward_packed_out=operator(a.name + "_packed_out"),
        saving_input=keeping_input,
        saving_output=saving_output,
        in_place=in_place,
        copying=_copying(keeping_input, operator(a.name + "_out")),
        traced=getattr(torch.ops.mishkit, a.name + "_traced").default,
        trained_forward=operator(a.name + "_trained") if a.trainable else None,
        trained=_trained(a) if a.trainable else None,
    )


def _saving_output(a: Activation) -> tuple[type[Function], type[Function]]:
    """The autograd.Functions that keep the output and the side, out of place and in place."""
    forward_packed = operator(a.name + "_packed")
    forward_packed_out = operator(a.name + "_packed_out")
    backward_packed = _once(a, operator(a.name + "_backward_packed"))
    no_gradients = (None,) * len(a.parameters)

    def save(ctx: Any, y: Tensor, side: Tensor, parameters: tuple[float, ...]) -> None:
        ctx.save_for_backward(y, side)
        # The side is in y's memory order, which saved-tensor hooks may not preserve.
        ctx.strides = y.stride()
        ctx.parameters = parameters

    def gradient_from_output(ctx: Any, grad: Tensor) -> Any:
        y, side = ctx.saved_tensors
        if y.stride() != ctx.strides:
            y = torch.empty_strided(y.shape, ctx.strides, dtype=y.dtype, device=y.device).copy_(y)
        return backward_packed(grad, y, side, *ctx.parameters), *no_gradients

    class SavingOutput(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *parameters: float) -> Tensor:
            y, side = forward_packed(x, *parameters)
            save(ctx, y, side, parameters)
            return y

        backward = staticmethod(gradient_from_output)

    class InPlace(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *parameters: float) -> Tensor:
            side = forward_packed_out(x, x, *parameters)
            ctx.mark_dirty(x)
            save(ctx, x, side, parameters)
            return x

        backward = staticmethod(gradient_from_output)

    return SavingOutput, InPlace


def _define_traced(a: Activation) -> None:
    """Define the operator that compiled code calls to keep the output."""
    backward_sided = _once(a, functools.partial(plain.backward_sided, a))
    no_gradients = (None,) * len(a.parameters)

    class Traced(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *parameters: float) -> Tensor:
            y = plain.forward_kept(a, x, *parameters)
            # In logical order: no other backend reads it, and Dynamo can't sort symbolic strides.
            side = y
            if a.turn is not None:
                side = plain.pack(plain.right_of_turn(a, x.reshape(-1), *parameters))
            ctx.save_for_backward(y, side)
            ctx.parameters = parameters
            return y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            y, side = ctx.saved_tensors
            right = y
            if a.turn is not None:
                logical = plain.unpack(side, y.numel()).view(y.shape)
                # In y's layout, which the gradient then has as well.
                right = torch.empty_like(y, dtype=torch.bool).copy_(logical)
            return backward_sided(grad, y, right, *ctx.parameters), *no_gradients

    define_traced(_library, f"{a.name}_traced(Tensor input{_arguments(a)}) -> Tensor", Traced)


def _once(a: Activation, gradient: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A gradient computed from the output; asking for its own gradient raises."""

    class Once(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            return gradient(*arguments)

        @staticmethod
        def backward(ctx: Any, grad_grad: Tensor) -> Any:
            raise RuntimeError(
                f'mishkit.{a.name}: a second derivative needs save="input" and inplace=False; '
                "the output and the side give the first alone"
            )

    def once(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            return Once.apply(*arguments)  # type: ignore[no-any-return]
        return gradient(*arguments)

    return once


def _trained(a: Activation) -> type[Function]:
    """The autograd.Function for trained parameters."""
    trained_forward = operator(a.name + "_trained")
    trained_backward: Any = operator(a.name + "_trained_backward")

    class Trained(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, parameters: Tensor) -> Tensor:
            ctx.save_for_backward(x, parameters)
            return trained_forward(x, parameters)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, parameters = ctx.saved_tensors
            if torch.is_grad_enabled():  # torch differentiates the plain formulas
                return plain.trained_backward(a, grad, x, parameters)
            return trained_backward(grad, x, parameters)

    return Trained


_library = torch.library.Library("mishkit", "DEF")
for _activation in ACTIVATIONS.values():
    _define(_library, _activation)
cpu.load()
RULES = {name: _rules(activation) for name, activation in ACTIVATIONS.items()}
