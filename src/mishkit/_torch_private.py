"""Private names of torch, each with a fallback for releases that don't have it.

No other file of the library uses them, except `mishkit.lab.code.inductor`. A fallback may be slower
or do less, but it is never wrong. `tests/core/test_torch_private.py` fails if a name has
disappeared, so changes in a new torch release are noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

try:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._python_dispatch import _disable_current_modes
    from torch.utils._python_dispatch import (
        is_traceable_wrapper_subclass as is_traceable_wrapper_subclass,
    )
except ImportError:  # pragma: no cover

    class TorchDispatchMode:  # type: ignore[no-redef]
        def __init__(self) -> None:
            raise RuntimeError(
                f"mishkit can't watch models with torch {torch.__version__}: it has no "
                "TorchDispatchMode"
            )

    _disable_current_modes = nullcontext  # type: ignore[assignment]

    def is_traceable_wrapper_subclass(t: object) -> bool:  # type: ignore[misc]
        return type(t) is not Tensor and hasattr(t, "__tensor_flatten__")


try:
    from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
except ImportError:  # pragma: no cover

    class FakeTensor(Tensor):  # type: ignore[no-redef]
        """Stands in for a class of which there can be no instances."""


without_modes: Callable[[], Any] = _disable_current_modes
"""A context in which no dispatch mode is active; without the name, they stay and cost time."""

is_tracing: Callable[[], bool] = (
    getattr(torch._C, "_is_tracing", None) or torch.jit.is_tracing  # type: ignore[attr-defined]
)
"""Whether torch.jit.trace is running; the public function takes three times as long."""

are_transforms_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: True
)
"""Whether a torch.func transform is active. If there is no way to tell, every call takes the path
that transforms understand, which costs 30 µs more.
"""

increment_versions: Callable[[tuple[Tensor, ...]], None] = getattr(
    torch._C, "_increment_version", torch.autograd.graph.increment_version
)
"""Tells autograd that tensors were written to; the public function takes 0.1 µs longer."""

is_any_autocast_enabled: Callable[[], bool] = getattr(
    torch._C, "_is_any_autocast_enabled", lambda: True
)
"""Whether autocast is enabled for any kind of device. If there is no way to tell, a tensor that is
recomputed takes the path that switches autocast off, which costs a few microseconds.
"""

if hasattr(torch.compiler, "_is_exporting_flag"):

    def is_exporting() -> bool:
        """Whether torch.export is running.

        Up to torch 2.11 Dynamo takes `torch.compiler.is_exporting()` to be True in all compiled
        code. This is the flag behind it.
        """
        return torch.compiler._is_exporting_flag

else:  # pragma: no cover
    is_exporting = torch.compiler.is_exporting


def first_packed(node: Any) -> Any:
    """What hooks on saved tensors have put in the place of the first tensor that a Python autograd
    function saved; without hooks it is that tensor. None if there is no way to tell.
    """
    try:
        return node._raw_saved_tensors[0].data
    except (AttributeError, IndexError, RuntimeError):  # the graph may have been freed
        return None


DisableTorchDispatch: Callable[[], Any] = getattr(torch._C, "_DisableTorchDispatch", nullcontext)
"""Within this context, operators don't reach `__torch_dispatch__`."""

DisableTorchFunctionSubclass: Callable[[], Any] = getattr(
    torch._C, "DisableTorchFunctionSubclass", torch._C.DisableTorchFunction
)
"""Within this context, functions don't reach the `__torch_function__` of subclasses."""

top_saved_tensor_hooks: Callable[[bool], Any] = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", lambda _: None
)
"""The active saved-tensor hooks, as a pair, or None."""

DropoutNd: type[nn.Module] | tuple[type[nn.Module], ...] = getattr(
    nn.modules.dropout,
    "_DropoutNd",
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
"""The common class of all dropouts."""


def _memory_format(x: Tensor) -> torch.memory_format:
    if x.is_contiguous():
        return torch.contiguous_format
    for layout in (torch.channels_last, torch.channels_last_3d):
        if x.dim() == 4 + (layout is torch.channels_last_3d):
            return layout if x.is_contiguous(memory_format=layout) else torch.contiguous_format
    return torch.contiguous_format


try:
    from torch._prims_common import suggest_memory_format as suggest_memory_format
except ImportError:  # pragma: no cover
    suggest_memory_format = _memory_format


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, weight * x)


prelu_kernel: Callable[[Tensor, Tensor], Tensor] = getattr(torch, "_prelu_kernel", _prelu)
"""max(0, x) + weight·min(0, x), where weight has as many dimensions as x."""


def _no_fused_rms_norm(*_: Any) -> tuple[Tensor, Tensor]:
    raise RuntimeError(f"torch {torch.__version__} has no fused RMS norm")


fused_rms_norm: Callable[..., tuple[Tensor, Tensor]] = getattr(
    torch.ops.aten, "_fused_rms_norm", _no_fused_rms_norm
)
"""(input, normalized_shape, weight, eps) -> (output, the reciprocal of the root mean square)."""


def _next_number() -> int:
    node = torch.zeros((), requires_grad=True).clone().grad_fn
    assert node is not None
    return node._sequence_nr() + 1


sequence_number: Callable[[], int] = getattr(torch.autograd, "_get_sequence_nr", _next_number)
"""The sequence number that autograd will give to the next node on this thread."""


def _cpu_kernels() -> dict[str, tuple[str, ...]]:
    one, two, out = "RKNS_6TensorE", "RKNS_6TensorES3_", "RS1_"
    plain = ("",)
    # std::string_view, as named by the C++ libraries of GCC and of clang
    text = (
        "St17basic_string_viewIcSt11char_traitsIcEE",
        "NSt3__117basic_string_viewIcNS4_11char_traitsIcEEEE",
    )

    def symbols(name: str, inputs: str, options: tuple[str, ...], end: str) -> tuple[str, ...]:
        return tuple(f"_ZN2at3cpu{len(name)}{name}E{inputs}{option}{end}" for option in options)

    kernels = {}
    for name, options, has_backward_out in (
        ("mish", plain, False),
        ("silu", plain, True),
        ("gelu", text, True),
        ("hardswish", plain, False),
    ):
        kernels[name] = symbols(name, one, options, "")
        kernels[f"{name}_"] = symbols(f"{name}_", "RNS_6TensorE", options, "")
        kernels[f"{name}.out"] = symbols(f"{name}_outf", one, options, out)
        kernels[f"{name}_backward"] = symbols(f"{name}_backward", two, options, "")
        if has_backward_out:
            kernels[f"{name}_backward.grad_input"] = symbols(
                f"{name}_backward_outf", two, options, out
            )
    return kernels


CPU_KERNELS = _cpu_kernels()
"""The symbols of torch's own CPU kernels, `at::cpu::silu` and so on, by overload: what each C++
compiler calls them. Where a torch has none of an overload's symbols, `mishkit.enable` leaves the
overload to torch.
"""
