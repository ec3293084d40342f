"""Names of torch that are not public: each is there in this release, and its stand-in is right.

A failure here says that a release of torch has lost a name, so that `mishkit._torch_private` now
serves what stands in for it: slower, or less, but not wrong.
"""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.modules.module as torch_module
import torch.utils._python_dispatch as dispatch
from torch import nn
from torch._subclasses import fake_tensor

import mishkit as mk
from mishkit import _torch_private as private
from mishkit.backends import cpu

NAMES = [
    (torch._C, "_is_tracing"),
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_increment_version"),
    (torch._C, "_is_any_autocast_enabled"),
    (torch._C, "_DisableTorchDispatch"),
    (torch._C, "DisableTorchFunctionSubclass"),
    (torch._C._autograd, "_top_saved_tensors_default_hooks"),
    (torch.compiler, "_is_exporting_flag"),
    (torch.compiler, "_is_compiling_flag"),
    (torch, "_prelu_kernel"),
    (torch.autograd, "_get_sequence_nr"),
    (nn.modules.dropout, "_DropoutNd"),
    (forward_ad, "_current_level"),
    (dispatch, "TorchDispatchMode"),
    (dispatch, "is_traceable_wrapper_subclass"),
    (dispatch, "_disable_current_modes"),
    (fake_tensor, "FakeTensor"),
    (torch.ops.aten, "_fused_rms_norm"),
    *((torch_module, f"_global_{kind}_hooks") for kind in ("forward", "forward_pre", "backward")),
]


@pytest.mark.parametrize(("owner", "name"), NAMES, ids=[name for _, name in NAMES])
def test_torch_has_the_name(owner: object, name: str) -> None:
    assert hasattr(owner, name)


@pytest.mark.skipif(not cpu.isas(), reason="there are no kernels")
def test_torch_has_the_cpu_kernels() -> None:
    assert cpu._torchs_kernels().keys() == private.CPU_KERNELS.keys()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> object:
    """The file as it is for a torch that has none of the names which can be taken away."""
    for owner, name in NAMES[:7] + NAMES[8:11]:
        monkeypatch.delattr(owner, name)
    monkeypatch.setitem(sys.modules, "torch.utils._python_dispatch", None)
    monkeypatch.setitem(sys.modules, "torch._prims_common", None)
    monkeypatch.setitem(sys.modules, "torch._subclasses.fake_tensor", None)
    specification = importlib.util.find_spec("mishkit._torch_private")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.undo()
    return module


def test_what_stands_in_is_right(without: object) -> None:
    x = torch.randn(2, 3, 4, 5)
    weight = torch.rand(1, 3, 1, 1)
    want = private.prelu_kernel(x, weight)
    assert torch.equal(without.prelu_kernel(x, weight), want)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = x.contiguous(memory_format=layout)
        assert without.suggest_memory_format(y) is private.suggest_memory_format(y) is layout
    for kind in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout):
        assert isinstance(kind(), without.DropoutNd) and isinstance(kind(), private.DropoutNd)
    assert not isinstance(nn.ReLU(), without.DropoutNd)
    leaf = torch.zeros(1, requires_grad=True)
    number = without.sequence_number()
    assert (leaf * 2).grad_fn._sequence_nr() == number
    assert private.sequence_number() == number + 1
    assert not without.is_traceable_wrapper_subclass(x) and not isinstance(x, without.FakeTensor)
    assert not without.is_exporting() and not without.is_tracing()
    assert without.is_any_autocast_enabled()
    assert without.are_transforms_active()  # slower, but never wrong
    assert without.top_saved_tensor_hooks(True) is None
    with pytest.raises(RuntimeError, match="no TorchDispatchMode"):
        without.TorchDispatchMode()


def test_tracing_is_seen() -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append((private.is_tracing(), torch.jit.is_tracing()))
        return mk.mish(x)

    with pytest.warns((DeprecationWarning, FutureWarning)):
        torch.jit.trace(function, torch.randn(3))
    assert seen[0] == (True, True)


def test_what_hooks_have_packed() -> None:
    x = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: "packed", lambda _: x):
        y = mk.mish(x)
    assert private.first_packed(y.grad_fn) == "packed"
    assert private.first_packed(mk.mish(x).grad_fn) is not None
    y.sum().backward()
    assert private.first_packed(y.grad_fn) is None
    assert private.first_packed((x * 2).grad_fn) is None
