"""The kernels that torch.compile makes from torch's own functions, without the GPU they are for.

Inductor writes Triton for fake tensors on a device that describes itself; only that device is faked
here. The traces are taken on fake CPU tensors, where autograd works without CUDA, and then moved to
the device. torch decomposes the functions into the same operators there.

This relies on parts of torch that change between releases. Callers that compile these kernels
report whatever is raised, and go on without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule

from .gpu import Build

PREFIX = "F."
"""Prefix of torch's function names."""
SIZE = 1 << 24
"""Elements. Inductor knows the number, and omits masks if it is a multiple of its block."""
_PROCESSORS = {"sm_75": 40, "sm_80": 108, "sm_90": 132, "sm_100": 148}


def build(function: str, body: str, dtype: str, target: str) -> Build | None:
    """Inductor's kernel for "F.mish", forward or backward; None if there is none.

    Inductor times several block sizes and keeps the best. Without a GPU we use the first, which is
    its largest.
    """
    name = function.removeprefix(PREFIX)
    if name == function or body not in ("forward", "backward") or target not in _PROCESSORS:
        return None
    tensors = 2 if body == "forward" else 3
    with _feigned(target):
        graph = _trace(getattr(torch.nn.functional, name), body, getattr(torch, dtype))
        tuner = _load(*_only_kernel(_code(graph)))
    config = tuner.configs[0]
    kinds = tuner.triton_meta["signature"]
    pointers = [kind for kind in kinds.values() if kind.startswith("*")]
    if len(pointers) != tensors:
        raise ValueError(f"inductor's kernel has {len(pointers)} tensors, {tensors} were expected")
    return Build(
        kernel=tuner.fn,
        signature=kinds,
        constexprs={**tuner.triton_meta["constants"], **config.kwargs},
        num_warps=config.num_warps,
        elements=config.kwargs["XBLOCK"],
        bytes_per_element=tensors * getattr(torch, dtype).itemsize,
        aligned=tuple(list(kinds)[path[0]] for path in tuner.triton_meta["configs"][0]),
    )


def _trace(function: Callable[[Tensor], Tensor], body: str, dtype: torch.dtype) -> GraphModule:
    """The graph of one pass on a fake GPU, in the operators that inductor lowers."""
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def forward(x: Tensor) -> Tensor:
        return function(x)

    def backward(g: Tensor, x: Tensor) -> Tensor:
        return torch.func.vjp(function, x)[1](g)[0]

    run: Any = forward if body == "forward" else backward
    with FakeTensorMode():
        inputs = [torch.empty(SIZE, dtype=dtype) for _ in range(1 if body == "forward" else 2)]
        whole = torch.func.functionalize(run, remove="mutations_and_views")
        graph = make_fx(whole, select_decomp_table(), tracing_mode="fake")(*inputs)
        graph.graph.eliminate_dead_code()
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        graph.recompile()
        return make_fx(graph, tracing_mode="fake")(*(_on_gpu(x) for x in inputs))


def _on_gpu(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="cuda")


def _code(graph: GraphModule) -> str:
    """The source of the module that inductor writes."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    lowering = GraphLowering(graph, example_inputs=inputs)
    with (
        inputs[0].fake_mode as mode,
        V.set_graph_handler(lowering),
        V.set_fake_mode(mode),
        V.set_debug_handler(DebugContext()),
    ):
        lowering.run(*inputs)
        code: Any = lowering.codegen()[0]
    return getattr(code, "value", code)


def _only_kernel(code: str) -> tuple[str, str]:
    """The name and source of the only kernel."""
    kernels = re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL)
    if len(kernels) != 1:
        raise ValueError(f"inductor made {len(kernels)} kernels, one was expected")
    return kernels[0]


def _load(name: str, source: str) -> Any:
    """The object that decorates the kernel, with its argument types and the block sizes to try."""
    from torch._inductor.codecache import PyCodeCache

    return getattr(PyCodeCache.load(source), name)


@contextmanager
def _feigned(target: str) -> Iterator[None]:
    """A fake GPU that inductor can query."""
    from torch._dynamo import device_interface
    from torch._inductor.runtime import triton_helpers
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    number = int(target[3:])
    properties = SimpleNamespace(
        name=target,
        type="cuda",
        index=0,
        major=number // 10,
        minor=number % 10,
        multi_processor_count=_PROCESSORS[target],
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1024 if target == "sm_75" else 2048,
        warp_size=32,
        total_memory=16 << 30,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=64 << 10,
        L2_cache_size=4 << 20,
        gcnArchName="",
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_compute_capability": number,
        "is_bf16_supported": True,
        "is_dtype_supported": True,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "synchronize": None,
        "get_raw_stream": 0,
    }

    def always(answer: Any) -> Any:
        return staticmethod(lambda *_, **__: answer)

    methods = {name: always(answer) for name, answer in answers.items()}
    base = device_interface.CudaInterface
    worker = type("Worker", (base.Worker,), methods)
    interface = type("Interface", (base,), {**methods, "Worker": worker})
    current = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", number, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
    )
    device_interface.get_interface_for_device("cpu")  # registers all, which would undo ours
    capability = (properties.major, properties.minor)
    with ExitStack() as stack:
        for owner, name, stand_in in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "get_device_properties", lambda *_: properties),
            (torch.cuda, "get_device_capability", lambda *_: capability),
            (triton_helpers, "set_driver_to_gpu", lambda: None),
            (driver, "_active", current),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        ours = {"cuda": interface, "cuda:0": interface}
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, ours))
        yield
